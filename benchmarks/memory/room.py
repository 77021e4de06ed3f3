"""Memory of a book of so many keys against the bare float32 numbers, and of a thousand versions of it kept alive."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from editable.benchmarks import growth
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.books import Filled
from editable.benchmarks.memory.setting import Setting
from editable.benchmarks.report import Plot, Table
from editable.memory.radius import Codebook, Placed

JUDGED = 1_000_000  # keys at which there is a bar
BARS = {"memory": 1.1, "disk": 0.4}  # where keys are held to what all may take, as a multiple of raw keys and values
VERSIONS = 1000
VERSIONS_BAR = 1.0  # what keeping them takes, as a multiple of the keys that came with them


@dataclass(frozen=True)
class Found:
    """Bytes, of one book.

    Args:
        raw: the keys alone, as float32.
        values: the values that would lie beside them, as float32.
        book: by how much the process grew for the book; None where the system does not say.
        versions: way of placing to what VERSIONS versions kept alive take beyond the last of them.
        inserted: the keys that came with those versions.
        store: where keys are held.
    """

    raw: int
    values: int
    book: int | None
    versions: Mapping[str, int]
    inserted: int
    store: str

    @property
    def share(self) -> float | None:
        """Of what raw keys and values take, how much keys with everything about them, and values, take."""
        return None if self.book is None else (self.book + self.values) / (self.raw + self.values)

    def version_share(self, way: str) -> float:
        """What keeping the versions takes, of what was inserted with them."""
        return self.versions[way] / self.inserted


def measure(setting: Setting, filled: Filled) -> Found:
    """The book as it was made; then versions of it."""
    ways = {"place looked for": None, "place known": Placed("add")}
    return Found(
        filled.raw_bytes,
        4 * filled.count * filled.values,
        filled.resident_bytes,
        {way: _taken_by_versions(filled, placed) for way, placed in ways.items()},
        4 * filled.width * VERSIONS,
        setting.options.store,
    )


def _taken_by_versions(filled: Filled, placed: Placed | None) -> int:
    """What VERSIONS versions, each with a key more, take beyond what the last of them takes by itself.

    Counted, not read off the process, which would reuse room that was given back before: Python's and numpy's memory as
    tracemalloc knows it, and the tensors' storage.
    """
    tracemalloc.start()
    try:
        book, kept = filled.book, list[Codebook]()
        for number in range(VERSIONS):
            key = filled.spare[number % len(filled.spare)]
            book = book.add(key, number, f"version {number}", filled.radius, placed)
            kept.append(book)
        whole = _counted(kept)
        kept.clear()
        return whole - _counted(book)
    finally:
        tracemalloc.stop()


def _counted(held: object) -> int:
    tensors = growth.tensor_bytes(held)  # first: looking makes Python lay out dictionaries, which are counted too
    gc.collect()
    return tensors + tracemalloc.get_traced_memory()[0]


# --- showing ---


def part(found: Mapping[int, Found]) -> Part:
    """By number of keys."""
    rows = [(f"{n} keys", one.raw / 1e6, one.values / 1e6, _mb(one.book), one.share) for n, one in found.items()]
    versions = [
        (f"{n} keys, {way}", one.versions[way] / 1e6, one.inserted / 1e6, one.version_share(way))
        for n, one in found.items()
        for way in one.versions
    ]
    held = ("", "keys raw", "values raw", "book", "book and values / raw")
    return Part(
        timing={f"{count} keys": _bytes(one) for count, one in found.items()},
        tables=[
            Table("memory of the process, MB", held, rows),
            Table(f"{VERSIONS} versions kept beside the last, MB", ("", "taken", "keys inserted", "ratio"), versions),
        ],
        bars=[bar for count, one in found.items() for bar in _bars(count, one)],
        plots=[Plot("memory", draw(found))],
    )


def _mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _bytes(one: Found) -> dict[str, Any]:
    versions = {way: {"bytes": size, "of_inserted": one.version_share(way)} for way, size in one.versions.items()}
    return {"raw_bytes": one.raw + one.values, "book_bytes": one.book, "share": one.share, "versions": versions}


def _bars(count: int, one: Found) -> list[Bar]:
    kept = [
        Bar(
            f"{count} keys, {VERSIONS} versions kept, {way}, of what was inserted",
            one.version_share(way),
            "<=",
            VERSIONS_BAR,
        )
        for way in one.versions
    ]
    held = Bar(f"{count} keys in {one.store}, book and values / raw", one.share, "<=", BARS[one.store])
    return kept if count < JUDGED else [*kept, held]


def draw(found: Mapping[int, Found]) -> Callable[[Any], None]:
    """Bytes against the number of keys."""

    def plot(axes: Any) -> None:
        axes.plot(list(found), [(one.raw + one.values) / 1e6 for one in found.values()], ls="--", label="raw float32")
        taken = [None if one.book is None else (one.book + one.values) / 1e6 for one in found.values()]
        axes.plot(list(found), taken, marker="o", label="book and values")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("keys")
        axes.set_ylabel("MB")
        axes.set_title("Memory")
        axes.legend(fontsize="small")

    return plot
