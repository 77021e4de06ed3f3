"""What changing a book of so many keys costs: keys whose places are looked for or known, forgetting one, publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
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

JUDGED = 10_000  # keys from which there is a bar: it is set for a million, and fewer should cost no more
MEAN_MS, P99_MS = 1.0, 10.0
TOGETHER = 32  # keys of a batch, as an edit of several or a stream brings them
LONGEST_S = 30.0  # of a chain: what is slow is measured on fewer changes

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

    def _change(self, act: Callable[[Codebook], Codebook]) -> None:
        self.book = act(self.book)

    def go_on(self, acts: Iterable[Callable[[Codebook], Codebook]]) -> Writer:
        """With what these make of the book, one after another; after LONGEST_S with no more of them."""
        for act in acts:
            self.seconds.append(clocked(partial(self._change, act))())
            if sum(self.seconds) > LONGEST_S:
                break
        return self


def measure(setting: Setting, filled: Filled) -> Found:
    """Chains of changes, each of the same book; what the background does meanwhile is in the times.

    Forgotten are keys that were there already, and keys that were just placed by looking for their neighbours. A chain
    is dropped before the next begins: two futures of one book would each need room for all its keys.
    """
    count, rng = setting.options.writes, setting.rng
    rows = rng.choice(filled.count, min(filled.count, count), replace=False)
    old = Writer(filled.book).go_on(_forgetting(str(row)) for row in rows)
    return {
        **_searched(filled, count, rng),
        f"insert {TOGETHER} at once, places looked for, each": _together(filled, count),
        "insert, place known": _inserted(filled, count, Placed("add")).tail,
        "forget an old key": old.tail,
        "publish": Tail.of(_publish(filled, count)),
    }


def _searched(filled: Filled, count: int, rng: np.random.Generator) -> Found:
    inserting = _inserted(filled, count, None)
    there = rng.permutation(len(inserting.seconds))
    forgetting = Writer(inserting.book).go_on(_forgetting(f"new {number}") for number in there)
    return {"insert, place looked for": inserting.tail, "forget a key just inserted": forgetting.tail}


def _inserted(filled: Filled, count: int, placed: Placed | None) -> Writer:
    return Writer(filled.book).go_on(_adding(filled, number, placed) for number in range(count))


def _adding(filled: Filled, number: int, placed: Placed | None) -> Callable[[Codebook], Codebook]:
    key, owner = filled.spare[number % len(filled.spare)], f"new {number}"
    return lambda book: book.add(key, owner, owner, filled.radius, placed)


def _together(filled: Filled, count: int) -> Tail:
    """A share of the time of its batch for every key, of so many keys at least."""
    batches = Writer(filled.book).go_on(_adding_all(filled, start) for start in range(0, count, TOGETHER))
    return Tail.of(seconds / TOGETHER for seconds in batches.seconds for _ in range(TOGETHER))


def _adding_all(filled: Filled, start: int) -> Callable[[Codebook], Codebook]:
    numbers = np.arange(start, start + TOGETHER)
    keys, owners = filled.spare[numbers % len(filled.spare)], [f"new {number}" for number in numbers]
    return lambda book: book.add_all(keys, owners, owners, [filled.radius] * TOGETHER, [None] * TOGETHER)


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
