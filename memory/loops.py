"""The loops that a search spends its time in, compiled by numba when they are first run.

They read sketches of members as `Ordered` has them, one cache line after another, and stop reading a member as soon as
it is too far. Squares are added up in any order. Whatever is no number rules nothing out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from editable.memory.distance import measured_at_most, squared_at_most

Loop = TypeVar("Loop", bound=Callable[..., Any])
Numbers = NDArray[Any]
Plain = tuple[Any, ...]  # what `Sorted` has: its names would take a loop a hundred times as long to understand

HEAD = 64  # numbers of a sketch that are read first, filled up with 0: as bytes, one cache line
SLICES = 16  # parts of a cell, each as full, by how far its members are from the centre
ROUNDING = 1e-5  # relative error of a bound computed in float32, generously


class Sorted(NamedTuple):
    """Members in cells.

    Args:
        centres: (cells, width), see `Cells`.
        edges: (cells, SLICES + 1), the same.
        outer: (cells,) the last of each.
        starts: (cells + 1,), and the others (members,) or (members, some): see `Ordered`.
        rows: the same.
        scales: the same.
        heads: the same.
        tails: the same.
        error: of a member's code, in units of its scale.
    """

    centres: Numbers
    edges: Numbers
    outer: Numbers
    starts: Numbers
    rows: Numbers
    scales: Numbers
    heads: Numbers
    tails: Numbers
    error: float


def compiled(loop: Loop) -> Loop:
    """Other threads go on while it runs. What is compiled is kept for the next process, where there is a place."""
    # Not "fast" altogether: that would let the compiler assume that there are no infinities and no NaN.
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return njit(cache=True, **how)(loop)  # type: ignore[no-any-return]
    except RuntimeError:
        return njit(**how)(loop)  # type: ignore[no-any-return]


_measured_at_most = compiled(measured_at_most)
_squared_at_most = compiled(squared_at_most)


@compiled
def _head(offset: Numbers, heads: Numbers, member: int, scale: Any) -> Any:
    """Squared distance in the first numbers of a sketch: of so many that the compiler knows how many."""
    total = np.float32(0)
    for number in range(HEAD):
        apart = offset[number] - np.float32(heads[member, number]) * scale
        total += apart * apart
    return total


@compiled
def _tail(offset: Numbers, tails: Numbers, member: int, scale: Any) -> Any:
    """Squared distance in the others."""
    total = np.float32(0)
    for number in range(tails.shape[1]):
        apart = offset[HEAD + number] - np.float32(tails[member, number]) * scale
        total += apart * apart
    return total


@compiled
def _bound(square: Any, wrong: Any) -> Any:
    """What a distance is at least, where its measured square is this and the code may be wrong by so much."""
    bound = np.sqrt(square) - wrong
    return bound if bound > 0 else np.float32(0)


@compiled
def _room(point: Numbers) -> Numbers:
    """For the offset of a point: numbers beyond its own, which fill the head, are 0."""
    return np.zeros(max(len(point), HEAD), np.float32)


@compiled
def _offset(point: Numbers, centre: Numbers, offset: Numbers) -> None:
    for number in range(len(point)):
        offset[number] = point[number] - centre[number]


@compiled
def _square(point: Numbers, others: Numbers, one: int) -> Any:
    """Squared distance of a point (width,) to one of others (n, width)."""
    square = np.float32(0)
    for number in range(len(point)):
        apart = point[number] - others[one, number]
        square += apart * apart
    return square


@compiled
def _put(least: Numbers, whose: Numbers, value: Any, owner: int) -> None:
    """Among the least values so far (k,), in order, and whose they are (k,)."""
    place = len(least) - 1
    while place > 0 and least[place - 1] > value:
        least[place], whose[place] = least[place - 1], whose[place - 1]
        place -= 1
    least[place], whose[place] = value, owner


@compiled
def _ring(edges: Numbers, least: Any, most: Any, start: int, count: int) -> tuple[int, int]:
    """Where those of `count` members from `start` on begin and end that may be `least` to `most` from the centre."""
    first, last = 0, 0
    for one in range(SLICES):
        first += edges[one + 1] < least
        last += not edges[one] > most
    return start + first * count // SLICES, start + last * count // SLICES


@compiled
def merged(starts: Numbers, apart: Numbers, cells: Numbers, new: Numbers) -> Numbers:
    """(k,) where new members come to lie among those there are: in their cells (k,), so far from the centre (k,).

    Both are in order; of equally far ones the new come later.
    """
    places = np.empty(len(new), np.int64)
    for one in range(len(new)):
        first, last = starts[cells[one]], starts[cells[one] + 1]
        while first < last:
            middle = (first + last) // 2
            if apart[middle] > new[one] or np.isnan(apart[middle]):
                last = middle
            else:
                first = middle + 1
        places[one] = one + first
    return places


@compiled
def apart(point: Numbers, held: Plain) -> Numbers:
    """(cells,) distances from point (width,) to the centres by their first numbers alone: bounds of the distances."""
    there = Sorted(*held)
    distances, head = np.empty(len(there.outer), np.float32), point[:HEAD]
    for cell in range(len(distances)):
        distances[cell] = np.sqrt(_square(head, there.centres, cell))
    return distances


@compiled
def _rings(point: Numbers, bounds: Numbers, reach: Numbers, there: Sorted) -> tuple[Numbers, Numbers, Numbers]:
    """(k,) cells in which members may lie within reach, (k,) how far, and (k, 2) where those that may begin and end."""
    cells, slack, ends = np.empty_like(there.starts), np.empty_like(reach), np.empty((len(reach), 2), np.int64)
    count = 0
    for cell in range(len(reach)):
        outer, start = there.outer[cell], there.starts[cell]
        if bounds[cell] - outer > reach[cell] + np.float32(ROUNDING) * (bounds[cell] + outer):
            continue
        distance, edges = np.sqrt(_square(point, there.centres, cell)), there.edges[cell]
        far = reach[cell] + np.float32(ROUNDING) * (distance + outer)
        if distance - outer > far or edges[0] - distance > far:
            continue
        cells[count], slack[count] = cell, far
        ends[count] = _ring(edges, distance - far, distance + far, start, there.starts[cell + 1] - start)
        count += 1
    return cells[:count], slack[:count], ends[:count]


@compiled
def near(point: Numbers, bounds: Numbers, reach: Numbers, held: Plain) -> tuple[Numbers, Numbers]:
    """(places, bounds of the distances) of all members that may lie within the reach of their cell.

    Args:
        point: (width,) from where.
        bounds: (cells,) of the distances to the centres.
        reach: (cells,) of each.
        held: the members.
    """
    there = Sorted(*held)
    cells, slack, ends = _rings(point, bounds, reach, there)
    places, found, count = np.empty(1024, np.int64), np.empty(1024, np.float32), 0
    offset = _room(point)
    for ring in range(len(cells)):
        _offset(point, there.centres[cells[ring]], offset)
        for member in range(ends[ring, 0], ends[ring, 1]):
            scale = there.scales[member]
            wrong = np.float32(there.error) * scale
            far = (slack[ring] + wrong) * (slack[ring] + wrong)
            square = _head(offset, there.heads, member, scale)
            if square > far:
                continue
            square += _tail(offset, there.tails, member, scale)
            if square > far:
                continue
            if count == len(places):
                places, found = np.append(places, np.empty_like(places)), np.append(found, np.empty_like(found))
            places[count], found[count] = member, _bound(square, wrong)
            count += 1
    return places[:count], found[:count]


@compiled
def few(point: Numbers, bounds: Numbers, held: Plain, cells: int, count: int) -> tuple[Numbers, Numbers]:
    """(places, squared distances) of the nearest members, by their codes, of the nearest cells; in order.

    Args:
        point: (width,) from where.
        bounds: (cells,) of the distances to the centres.
        held: the members.
        cells: which are looked into.
        count: of members, at most.
    """
    there = Sorted(*held)
    reach, entered = np.full(cells, np.inf, np.float32), np.full(cells, -1)
    for cell in range(len(bounds)):
        if bounds[cell] < reach[-1]:
            _put(reach, entered, bounds[cell], cell)
    least, places = np.full(count, np.inf, np.float32), np.full(count, -1)
    offset = _room(point)
    for cell in entered[entered >= 0]:
        _offset(point, there.centres[cell], offset)
        for member in range(there.starts[cell], there.starts[cell + 1]):
            square = _head(offset, there.heads, member, there.scales[member])
            if square < least[-1]:
                square += _tail(offset, there.tails, member, there.scales[member])
                if square < least[-1]:
                    _put(least, places, square, member)
    found = places >= 0
    return places[found], least[found]


@compiled
def least(point: Numbers, places: Numbers, cells: Numbers, held: Plain) -> Numbers:
    """(k,) bounds of the distances from point (width,) to members at places (k,), which are in cells (k,)."""
    there = Sorted(*held)
    found, offset = np.empty(len(places), np.float32), _room(point)
    for one in range(len(places)):
        scale = there.scales[places[one]]
        _offset(point, there.centres[cells[one]], offset)
        square = _head(offset, there.heads, places[one], scale)
        square += _tail(offset, there.tails, places[one], scale)
        found[one] = _bound(square, np.float32(there.error) * scale)
    return found


@compiled
def squares(query: Numbers, keys: Numbers, places: Numbers, lowest: Numbers, stretch: float, shift: float) -> Numbers:
    """(m,) squared distances of query (features,) to those of keys (n, features) at places (m,).

    Where `lowest` (m,) bounds of the sketches' distances are known, in order: infinite from there on where they are
    beyond the least distance so far, stretched and shifted as `Slack` has it.
    """
    found, reach = np.full(len(places), np.inf, np.float32), math.inf
    for one in range(len(places)):
        if len(lowest) and lowest[one] > reach:
            break
        found[one] = _square(query, keys, places[one])
        reach = min(reach, _measured_at_most(np.float64(found[one]), len(query)) * stretch + shift)
    return found


@compiled
def _moved(rows: Numbers, moved: Numbers) -> Numbers:
    return moved[rows] if len(moved) else rows.astype(np.int64)


@compiled
def late(
    query: Numbers,
    point: Numbers,
    sketches: Numbers,
    keys: Numbers,
    moved: Numbers,
    start: int,
    stop: int,
    most: float,
    stretch: float,
    shift: float,
) -> tuple[Numbers, Numbers]:
    """(rows, squared distances) of all rows from `start` to `stop` whose squared distance is not above `most`.

    Args:
        query: (features,) from where.
        point: (width,) its sketch.
        sketches: (k, width) of the first of these rows; the others have none.
        keys: (n, features).
        moved: (all rows,) where each row's key is among them; empty where they are in order.
        start: the first row.
        stop: the row after the last.
        most: squared, and as of vectors that may be measured to be there.
        stretch: see `Slack`.
        shift: the same.
    """
    most_rows, count = max(stop - start, 0), 0
    rows, squared = np.empty(most_rows, np.int64), np.empty(most_rows, np.float32)
    far = (math.sqrt(most) * stretch + shift) ** 2
    for row in range(start, stop):
        if row - start < len(sketches) and _square(point, sketches, row - start) > far:
            continue
        square = _square(query, keys, moved[row] if len(moved) else row)
        if square > most:
            continue
        rows[count], squared[count] = row, square
        count += 1
    return rows[:count], squared[:count]


@compiled
def _at_most(squared: Numbers, features: int, within: float) -> float:
    """What the nearest of those at squared distances (m,) is measured to be away at most, or `within`."""
    for square in squared:
        within = min(within, _measured_at_most(np.float64(square), features))
    return within


@compiled
def nearest(
    query: Numbers,
    point: Numbers,
    stretch: float,
    shift: float,
    within: float,
    keys: Numbers,
    moved: Numbers,
    held: Plain,
    sketches: Numbers,
    start: int,
    stop: int,
    cells: int,
    count: int,
) -> Numbers:
    """Rows among which are all that may be measured to be nearest, if that is `within`; what seems the nearest, first.

    Args:
        query: (features,) from where.
        point: (width,) its sketch.
        stretch: see `Slack`.
        shift: the same.
        within: how far they may be.
        keys: (n, features).
        moved: see `late`.
        held: the members.
        sketches: of rows that are no members, see `late`.
        start: the first of these rows.
        stop: the row after the last.
        cells: which are looked into first.
        count: of keys measured there.
    """
    features, nothing, own = len(query), np.empty(0, np.float32), Sorted(*held).rows
    centres = apart(point, held)
    tried, _ = few(point, centres, held, cells, count)
    within = _at_most(squares(query, keys, _moved(own[tried], moved), nothing, 1.0, 0.0), features, within)
    members, lowest = near(point, centres, np.full(len(centres), within * stretch + shift, np.float32), held)
    order = np.argsort(lowest)
    rows = own[members[order]].astype(np.int64)
    squared = squares(query, keys, _moved(rows, moved), lowest[order], stretch, shift)
    most = _squared_at_most(_at_most(squared, features, within), features)
    last, measured = late(query, point, sketches, keys, moved, start, stop, most, stretch, shift)
    return _nearest_of(np.append(rows, last), np.append(squared, measured), features, within)


@compiled
def _nearest_of(rows: Numbers, squared: Numbers, features: int, within: float) -> Numbers:
    """Those of rows (m,) at these squared distances (m,) that may be measured to be the nearest, and within a distance.

    What seems the nearest is the first.
    """
    most = _squared_at_most(_at_most(squared, features, within), features)
    kept = ~(squared > most)
    rows, squared = rows[kept], squared[kept]
    if len(rows):
        first = np.argmin(squared)
        rows[0], rows[first] = rows[first], rows[0]
    return rows


@compiled
def sketched(vectors: Numbers, mean: Numbers, directions: Numbers) -> tuple[Numbers, Numbers]:
    """Sketches (m, directions + 1) of vectors (m, features), but for the last number; and squared lengths (m, 2).

    The first is that of a vector from the mean on, the second what the directions (directions, features) have of it.
    """
    centred, points = vectors - mean, np.empty((len(vectors), len(directions) + 1), np.float32)
    lengths = np.zeros((len(vectors), 2))
    for one in range(len(vectors)):
        for number in range(len(mean)):
            lengths[one, 0] += np.float64(centred[one, number]) ** 2
    for direction in range(len(directions)):  # each is read once for all vectors
        for one in range(len(vectors)):
            along = np.float32(0)
            for number in range(len(mean)):
                along += centred[one, number] * directions[direction, number]
            points[one, direction] = along
            lengths[one, 1] += np.float64(along) ** 2
    return points, lengths
