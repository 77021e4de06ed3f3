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

from editable.memory.distance import measured_at_most

Loop = TypeVar("Loop", bound=Callable[..., Any])
Numbers = NDArray[Any]

HEAD = 64  # numbers of a sketch that are read first, filled up with 0: as bytes, one cache line
ROUNDING = 1e-5  # relative error of a bound computed in float32, generously


class Sorted(NamedTuple):
    """Members in cells.

    Args:
        centres: (cells, width), outer and inner (cells,): see `Cells`.
        outer: the same.
        inner: the same.
        starts: (cells + 1,), and the others (members,) or (members, some): see `Ordered`.
        apart: the same.
        scales: the same.
        heads: the same.
        tails: the same.
        error: of a member's code, in units of its scale.
    """

    centres: Numbers
    outer: Numbers
    inner: Numbers
    starts: Numbers
    apart: Numbers
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
def _put(least: Numbers, whose: Numbers, value: Any, owner: int) -> None:
    """Among the least values so far (k,), in order, and whose they are (k,)."""
    place = len(least) - 1
    while place > 0 and least[place - 1] > value:
        least[place], whose[place] = least[place - 1], whose[place - 1]
        place -= 1
    least[place], whose[place] = value, owner


@compiled
def _first(apart: Numbers, start: int, stop: int, edge: Any, beyond: bool) -> int:
    """The first place from start to stop where rising numbers reach an edge, or are beyond it."""
    while start < stop:
        middle = (start + stop) // 2
        if apart[middle] < edge or (beyond and not apart[middle] > edge):
            start = middle + 1
        else:
            stop = middle
    return start


@compiled
def merged(starts: Numbers, apart: Numbers, cells: Numbers, new: Numbers) -> Numbers:
    """(k,) where new members come to lie among those there are: in their cells (k,), so far from the centre (k,).

    Both are in order; of equally far ones the new come later.
    """
    places = np.empty(len(new), np.int64)
    for one in range(len(new)):
        places[one] = one + _first(apart, starts[cells[one]], starts[cells[one] + 1], new[one], True)
    return places


@compiled
def near(point: Numbers, distances: Numbers, reach: Numbers, there: Sorted) -> tuple[Numbers, Numbers]:
    """(places, bounds of the distances) of all members that may lie within the reach of their cell.

    Args:
        point: (width,) from where.
        distances: (cells,) to the centres.
        reach: (cells,) of each.
        there: the members.
    """
    places, found, count = np.empty(1024, np.int64), np.empty(1024, np.float32), 0
    offset = _room(point)
    for cell in range(len(distances)):
        slack = reach[cell] + np.float32(ROUNDING) * (distances[cell] + there.outer[cell])
        if distances[cell] - there.outer[cell] > slack or there.inner[cell] - distances[cell] > slack:
            continue
        end = there.starts[cell + 1]
        first = _first(there.apart, there.starts[cell], end, distances[cell] - slack, False)
        last = _first(there.apart, first, end, distances[cell] + slack, True)
        _offset(point, there.centres[cell], offset)
        for member in range(first, last):
            scale = there.scales[member]
            wrong = np.float32(there.error) * scale
            far = (slack + wrong) * (slack + wrong)
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
def few(point: Numbers, distances: Numbers, there: Sorted, cells: int, count: int) -> tuple[Numbers, Numbers]:
    """(places, squared distances) of the nearest members, by their codes, of the nearest cells; in order.

    Args:
        point: (width,) from where.
        distances: (cells,) to the centres.
        there: the members.
        cells: which are looked into.
        count: of members, at most.
    """
    reach, entered = np.full(cells, np.inf, np.float32), np.full(cells, -1)
    for cell in range(len(distances)):
        if distances[cell] < reach[-1]:
            _put(reach, entered, distances[cell], cell)
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
def bounds(point: Numbers, places: Numbers, cells: Numbers, there: Sorted) -> Numbers:
    """(k,) bounds of the distances from point (width,) to members at places (k,), which are in cells (k,)."""
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
        square = np.float32(0)
        for number in range(len(query)):
            apart = query[number] - keys[places[one], number]
            square += apart * apart
        found[one] = square
        reach = min(reach, _measured_at_most(float(square), len(query)) * stretch + shift)
    return found
