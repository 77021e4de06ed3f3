"""One lookup among so many keys, beside a matrix product over all and `torch.cdist`; and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from editable.benchmarks import timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.books import Filled
from editable.benchmarks.memory.scan import Cdist, Product, differing, scanned
from editable.benchmarks.memory.setting import TAIL, Setting, Tail
from editable.benchmarks.report import Plot, Table

SCANS = ("matrix product", "torch.cdist")
CHECKED = 16  # queries of each kind that are compared with a plain loop


@dataclass(frozen=True)
class Found:
    """Of one book.

    Args:
        ours: kind of query to its times.
        scans: seconds of each way to scan, and of ours in between.
        hit_share: kind of query to the share that fell into a ball.
        differing: decisions that a plain loop takes otherwise.
        checked: decisions that were compared.
    """

    ours: Mapping[str, Tail]
    scans: Mapping[str, list[float]]
    hit_share: Mapping[str, float]
    differing: int
    checked: int


def measure(setting: Setting, filled: Filled) -> Found:
    """Each kind of query by itself; then ours and the scans in turn."""
    book, rounds = filled.book, setting.options.repeats
    shares = {kind: book.find(queries)[1] for kind, queries in filled.queries.items()}
    some = torch.cat([queries[:CHECKED] for queries in filled.queries.values()])
    return Found(
        {kind: _tail(book.find, queries, rounds) for kind, queries in filled.queries.items()},
        _scans(setting, filled),
        {kind: float((share <= 1).float().mean()) for kind, share in shares.items()},
        differing(book.find(some), scanned(book, some)),
        len(some),
    )


def _tail(find: Callable[[Tensor], object], queries: Tensor, rounds: int) -> Tail:
    """One query at a time, each several times over; the first turn warms up."""
    seconds = [timing.clocked(lambda q=query: find(q[None]))() for _ in range(rounds + 1) for query in queries]  # type: ignore[misc]
    return Tail.of(seconds[len(queries) :])


def _scans(setting: Setting, filled: Filled) -> dict[str, list[float]]:
    asked = cycle(torch.cat(list(filled.queries.values()))[torch.from_numpy(setting.rng.permutation(filled.asked))])
    finders = dict(zip((*SCANS, "ours"), (Product(filled.book), Cdist(filled.book), filled.book), strict=True))
    sides = {
        name: timing.clocked(lambda f=finder: f.find(next(asked)[None]))  # type: ignore[misc]
        for name, finder in finders.items()
    }
    return timing.interleaved(sides, setting.options.scans, 1, setting.rng)


# --- showing ---


def part(found: Mapping[int, Found]) -> Part:
    """By number of keys."""
    rows = [
        (f"{count} keys, {kind}", *tail.cells, one.hit_share[kind])
        for count, one in found.items()
        for kind, tail in one.ours.items()
    ]
    beside = [
        (f"{count} keys", *(timing.spread(one.scans[name], 1e3).median for name in ("ours", *SCANS)))
        for count, one in found.items()
    ]
    differ, checked = sum(one.differing for one in found.values()), sum(one.checked for one in found.values())
    return Part(
        {f"{n} keys": {"hit_share": o.hit_share, "decisions_differing": o.differing} for n, o in found.items()},
        {f"{count} keys": _times(one) for count, one in found.items()},
        [
            Table("one lookup, ms", ("", *TAIL, "hits"), rows),
            Table("all kinds of queries in turn, median ms", ("", "ours", *SCANS), beside),
        ],
        [Bar(f"decisions of {checked} that differ from a plain loop's", differ, "<=", 0)],
        [Plot("lookup", draw(found))],
    )


def _times(one: Found) -> dict[str, Any]:
    scans = {name: timing.spread(seconds, 1e3).as_dict("ms") for name, seconds in one.scans.items()}
    return {"lookup": {kind: tail.as_dict() for kind, tail in one.ours.items()}, "in_turn": scans}


def draw(found: Mapping[int, Found]) -> Callable[[Any], None]:
    """Time against the number of keys, ours and the scans."""

    def plot(axes: Any) -> None:
        for name in ("ours", *SCANS):
            spreads = [timing.spread(one.scans[name], 1e3) for one in found.values()]
            error = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
            axes.errorbar(list(found), [s.median for s in spreads], yerr=error, marker="o", capsize=2, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("keys")
        axes.set_ylabel("ms per lookup (median, 95 % interval)")
        axes.set_title("One lookup")
        axes.legend(fontsize="small")

    return plot
