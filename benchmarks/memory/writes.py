"""What changing a book of so many keys costs: a key whose place is looked for or known, forgetting one, publishing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.books import Filled
from editable.benchmarks.memory.forward import entries
from editable.benchmarks.memory.setting import TAIL, Setting, Tail
from editable.benchmarks.report import Plot, Table
from editable.benchmarks.timing import clocked
from editable.memory.radius import Codebook, Placed
from editable.snapshot import Snapshot

JUDGED = 1_000_000  # keys at which there is a bar
MEAN_MS, P99_MS = 1.0, 10.0

Found = Mapping[str, Tail]


@dataclass
class Writer:
    """One book after another, and how long each change took."""

    book: Codebook
    seconds: list[float] = field(default_factory=list)

    @property
    def tail(self) -> Tail:
        """Of the changes so far."""
        return Tail.of(self.seconds)

    def change(self, act: Callable[[Codebook], Codebook]) -> None:
        """Go on with what `act` makes of the book."""
        made: list[Codebook] = []
        self.seconds.append(clocked(lambda: made.append(act(self.book)))())
        self.book = made[0]


def measure(setting: Setting, filled: Filled) -> Found:
    """Chains of changes, each of the same book; what the background does meanwhile is in the times.

    Forgotten are keys that were there already, and keys that were just placed by looking for their neighbours. A chain
    is dropped before the next begins: two futures of one book would each need room for all its keys.
    """
    count, rng = setting.options.writes, setting.rng
    old = Writer(filled.book)
    for row in rng.choice(filled.count, min(filled.count, count), replace=False):
        old.change(_forgetting(str(row)))
    return {
        **_searched(filled, count, rng),
        "insert, place known": _inserted(filled, count, Placed("add")).tail,
        "forget an old key": old.tail,
        "publish": Tail.of(_publish(filled, count)),
    }


def _searched(filled: Filled, count: int, rng: np.random.Generator) -> Found:
    inserting = _inserted(filled, count, None)
    forgetting = Writer(inserting.book)
    for number in rng.permutation(count):
        forgetting.change(_forgetting(f"new {number}"))
    return {"insert, place looked for": inserting.tail, "forget a key just inserted": forgetting.tail}


def _inserted(filled: Filled, count: int, placed: Placed | None) -> Writer:
    writer = Writer(filled.book)
    for number in range(count):
        writer.change(_adding(filled, number, placed))
    return writer


def _adding(filled: Filled, number: int, placed: Placed | None) -> Callable[[Codebook], Codebook]:
    key, owner = filled.spare[number % len(filled.spare)], f"new {number}"
    return lambda book: book.add(key, owner, owner, filled.radius, placed)


def _forgetting(owner: str) -> Callable[[Codebook], Codebook]:
    return lambda book: book.forget(frozenset({owner}))


def _publish(filled: Filled, times: int) -> list[float]:
    """A new snapshot of all editors' states, and the assignment that readers see."""
    state, served = entries(filled, token=1), SimpleNamespace(snapshot=Snapshot())

    def publish() -> None:
        served.snapshot = served.snapshot.replace(served.snapshot.version + 1, {"grace": state})

    return [clocked(publish)() for _ in range(times)]


# --- showing ---


def part(found: Mapping[int, Found]) -> Part:
    """By number of keys."""
    rows = [(f"{count} keys, {what}", *tail.cells) for count, one in found.items() for what, tail in one.items()]
    judged = [(count, what, tail) for count, one in found.items() if count >= JUDGED for what, tail in one.items()]
    return Part(
        timing={f"{n} keys": {what: tail.as_dict() for what, tail in one.items()} for n, one in found.items()},
        tables=[Table("one change, ms", ("", *TAIL), rows)],
        bars=[
            bar
            for count, what, tail in judged
            for bar in (
                Bar(f"{count} keys, {what}, mean ms", tail.mean, "<=", MEAN_MS),
                Bar(f"{count} keys, {what}, p99 ms", tail.p99, "<=", P99_MS),
            )
        ],
        plots=[Plot("writes", draw(found))],
    )


def draw(found: Mapping[int, Found]) -> Callable[[Any], None]:
    """Mean and 99th percentile against the number of keys, a line for each change."""

    def plot(axes: Any) -> None:
        for what in next(iter(found.values())):
            (line,) = axes.plot(list(found), [one[what].mean for one in found.values()], marker="o", label=what)
            axes.plot(list(found), [one[what].p99 for one in found.values()], ls="--", color=line.get_color())
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("keys")
        axes.set_ylabel("ms (mean; dashed: 99th percentile)")
        axes.set_title("One change of the book")
        axes.legend(fontsize="small")

    return plot
