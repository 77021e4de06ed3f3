"""One run of a benchmark against an earlier one: every number, what it was, and whether the change is more than noise.

Knows the documents that `report` writes. Refuses to know what a figure means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editable.errors import InputError

PARTS = ("benchmark", "machine", "options", "quality", "timing")
HEADER = ("", "before", "now", "change", "")
PASSING = frozenset({"load_average_1min", "memory_free_gb"})  # of the machine: differs from one minute to the next
DIFFERS, BEYOND = "differs", "beyond the interval"

TITLES = {"quality": "what must repeat exactly", "timing": "what was measured"}

Document = Mapping[str, Any]


def earlier(path: Path, benchmark: str) -> dict[str, Any]:
    """The document of an earlier run, under its file's name (`file`).

    Args:
        path: the document, or a folder, of which the newest document of this benchmark is taken.
        benchmark: which benchmark it has to be of.

    Raises:
        InputError: there is none, it cannot be read, or it is of another benchmark.
    """
    if not path.exists():
        raise InputError(
            f"--against {path} does not exist, expected the JSON file of an earlier run or a folder of results; "
            "run the benchmark without --against first."
        )
    file = _newest(path, benchmark) if path.is_dir() else path
    document = _read(file)
    if document["benchmark"] != benchmark:
        raise InputError(
            f"--against {file.name} is a run of {document['benchmark']!r}, expected one of {benchmark!r}; give a file "
            f"named {benchmark}-<time>.json."
        )
    return {**document, "file": file.name}


def _newest(folder: Path, benchmark: str) -> Path:
    # Stems are compared, since "…Z.json" would come after "…Z-2.json".
    found = sorted(folder.glob(f"{benchmark}-[0-9]*T[0-9]*Z*.json"), key=lambda path: path.stem)
    if found:
        return found[-1]
    others = sorted({path.name.rpartition("-")[0] for path in folder.glob("*-[0-9]*T[0-9]*Z.json")})
    raise InputError(
        f"--against {folder} holds no run of {benchmark!r}, expected a file named {benchmark}-<time>.json; it holds "
        f"{'runs of ' + ', '.join(others) if others else 'no runs at all'}."
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--against {file} cannot be read, expected the JSON document of an earlier run; give another file. "
            f"Reason: {error}"
        ) from error
    missing = [part for part in PARTS if not isinstance(document, dict) or part not in document]
    if missing:
        raise InputError(
            f"--against {file} has no {', '.join(missing)}, expected the JSON document of an earlier run; give a file "
            "that a benchmark wrote."
        )
    return dict(document)


# --- what is compared ---


@dataclass(frozen=True)
class Figure:
    """A number, and the interval it was given, if any."""

    value: float
    low: float | None = None
    high: float | None = None

    def holds(self, other: float) -> bool:
        """Whether another value lies in the interval; without one, whether it is the same."""
        if self.low is None or self.high is None:
            return other == self.value
        return self.low <= other <= self.high


def figures(tree: Any, path: str = "") -> dict[str, Figure]:
    """Every number of a document's part, by where it lies; an interval's ends go with the number they belong to."""
    if isinstance(tree, int | float):
        return {path: Figure(float(tree))}
    branches = {f"{path} / {name}" if path else name: branch for name, branch in _branches(tree).items()}
    ends = _interval(branches)
    found: dict[str, Figure] = {}
    for where, branch in branches.items():
        found |= {} if where in ends else figures(branch, where)
    for where in [where for where in branches if where in found][: 1 if ends else 0]:
        found[where] = Figure(found[where].value, *(float(branches[end]) for end in ends))
    return found


def _branches(tree: Any) -> Mapping[str, Any]:
    if isinstance(tree, Mapping):
        return tree
    return {str(index + 1): one for index, one in enumerate(tree)} if isinstance(tree, list) else {}


def _interval(branches: Mapping[str, Any]) -> list[str]:
    """Where the lower and the upper end lie, if both are there: `low` and `high`, or `low_ms` and `high_ms`."""
    numbers = {where.rpartition(" / ")[2].partition("_")[0]: where for where, b in branches.items() if _is_number(b)}
    return [numbers["low"], numbers["high"]] if {"low", "high"} <= set(numbers) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Change:
    """A number of this run beside that of the earlier one; None where a run does not have it."""

    where: str
    before: Figure | None
    now: Figure | None
    exact: bool

    @property
    def mark(self) -> str:
        """What is remarkable about it.

        A number that repeats exactly must not change at all. Of others a change is marked only where neither value lies
        in the other's interval, and where they have none it is not known what is noise.
        """
        if self.before is None or self.now is None:
            return "only before" if self.now is None else "only now"
        if self.exact:
            return "" if self.before.value == self.now.value else DIFFERS
        certain = self.before.low is not None or self.now.low is not None
        within = self.before.holds(self.now.value) or self.now.holds(self.before.value)
        return BEYOND if certain and not within else ""

    @property
    def row(self) -> tuple[str, float | None, float | None, str | None, str]:
        """As a table shows it."""
        before, now = (None if one is None else one.value for one in (self.before, self.now))
        return self.where, before, now, _moved(before, now, self.exact), self.mark


def _moved(before: float | None, now: float | None, exact: bool) -> str | None:
    """The ratio of two measurements, the difference of two numbers that should be equal or have no ratio."""
    if before is None or now is None:
        return None
    if exact or before * now <= 0:
        return "same" if now == before else f"{now - before:+.4g}"
    return f"x {now / before:.3f}"


def changes(before: Document, now: Document, part: str) -> Iterator[Change]:
    """Every number of one part of two documents, in this run's order."""
    old, new = figures(before[part]), figures(now[part])
    for where in dict.fromkeys([*new, *old]):
        yield Change(where, old.get(where), new.get(where), exact=part == "quality")


# --- what is said about it ---


def tables(before: Document, now: Document) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Title and rows, under HEADER, of the numbers that must repeat and of those that need not."""
    made = []
    for part, what in TITLES.items():
        found = list(changes(before, now, part))
        remarkable = sum(bool(change.mark) for change in found)
        if found:
            title = f"against {before['file']}: {what} ({len(found)} numbers, {remarkable} marked)"
            made.append((title, [change.row for change in found]))
    return made


def marked(before: Document, now: Document) -> dict[str, str]:
    """What is remarkable, by where it lies."""
    found = [change for part in TITLES for change in changes(before, now, part)]
    return {change.where: change.mark for change in found if change.mark}


def remarks(before: Document, now: Document) -> list[str]:
    """What a reader of the comparison has to know: whether machine and options are the same, and what is marked."""
    said = [f"Compared with {before['file']}, of {before.get('made', 'an unknown time')}."]
    if machine := _different(before["machine"], now["machine"], PASSING):
        said.append(f"ANOTHER MACHINE, so times cannot be compared: {'; '.join(machine)}.")
    if options := _different(before["options"], now["options"], frozenset()):
        said.append(f"OTHER OPTIONS, so neither times nor results need agree: {'; '.join(options)}.")
    if not machine and not options:
        said.append("The same machine and the same options.")
    differing = sum(change.mark == DIFFERS for change in changes(before, now, "quality"))
    beyond = sum(change.mark == BEYOND for change in changes(before, now, "timing"))
    said.append(
        f"Numbers that must repeat and differ: {differing}. Measurements changed beyond their interval: {beyond}."
    )
    return said


def _different(before: Mapping[str, Any], now: Mapping[str, Any], passing: Sequence[str] | frozenset[str]) -> list[str]:
    names = [name for name in dict.fromkeys([*before, *now]) if name not in passing]
    return [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names if before.get(name) != now.get(name)
    ]
