"""What a benchmark hands out: tables, a comparison, pictures, one HTML page, one JSON document.

Knows how results are shown and kept. Refuses to know how they were measured, and what any figure means.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editable.benchmarks import comparison, page
from editable.benchmarks.common import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (9.0, 5.5)  # of a picture


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column is words, the others are mostly numbers.

    Args:
        title: what it shows, with units.
        header: a heading per column.
        rows: cells; a short row is filled up with nothing. None is shown as a dash, a float with four digits.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text, all of the header's length."""
        return [[*map(_cell, row), *[""] * (len(self.header) - len(row))] for row in self.rows]

    def __str__(self) -> str:
        lines = [list(self.header)] * any(self.header) + self.cells
        widths = [max(map(len, column)) for column in zip(self.header, *self.cells, strict=True)]
        return "\n".join([self.title, *(_aligned(line, widths) for line in lines)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(width) if column else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]
    return ("  " + "  ".join(cells)).rstrip()


@dataclass(frozen=True)
class Plot:
    """A picture: its name in file names, and what puts it on matplotlib axes."""

    name: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Report:
    """What one run of a benchmark found.

    Numbers may lie as deep in `quality` and `timing` as they like; a run is compared with another by where they lie, so
    name things rather than list them. A mapping that has `low` and `high` (`low_ms` and `high_ms`) says by them how
    certain its first number is.

    Args:
        benchmark: its name.
        machine: where it ran, as `common.machine_card` says it.
        options: as they were chosen, as `common.given` says them.
        quality: what must be the same, to the last digit, in every run with these options.
        timing: what differs from run to run: times, and memory as the system counts it.
        tables: what a person reads.
        plots: pictures; left out where matplotlib is not installed.
    """

    benchmark: str
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    quality: Mapping[str, Any]
    timing: Mapping[str, Any]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def publish(report: Report, results: Path, against: Path | None = None) -> None:
    """Print the report, keep it in the folder `results`, and print its JSON document as the last line of stdout.

    Args:
        report: what was found.
        results: a folder, made if need be. Nothing in it is ever overwritten.
        against: the JSON document of an earlier run, or a folder in which the newest one of this benchmark is taken.

    Raises:
        InputError: there is no such earlier run, or it is not one of this benchmark.
    """
    before = None if against is None else comparison.earlier(against, report.benchmark)
    document = _document(report)
    tables, remarks = list(report.tables), []
    if before is not None:
        remarks = comparison.remarks(before, document)
        document["against"] = {"file": before["file"], "marked": comparison.marked(before, document)}
        tables += [Table(title, comparison.HEADER, rows) for title, rows in comparison.tables(before, document)]
    images = dict(_drawn(report.plots))
    stem = _save(results, document, images)
    _show(report.machine, remarks, tables)
    inline = {name: base64.b64encode(image).decode() for name, image in images.items()}
    shown = [(table.title, table.header, table.cells) for table in tables]
    (results / f"{stem}.html").write_text(page.html(document, remarks, shown, inline), encoding="utf-8")
    note(f"kept as {stem}.json and .html in {results}")
    print(_line(document), flush=True)


def _document(report: Report) -> dict[str, Any]:
    whole = {name: getattr(report, name) for name in ("benchmark", "machine", "options", "quality", "timing")}
    plain: dict[str, Any] = _plain({"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **whole})
    return plain


def _plain(value: Any) -> Any:
    """As strict JSON has it: keys are text, and what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return value.name
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _drawn(plots: Sequence[Plot]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each plot; nothing where matplotlib is not installed."""
    if not plots:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        note("no plots: matplotlib is not installed (pip install 'editable[plots]')")
        return
    for plot in plots:
        figure = Figure(figsize=INCHES, layout="constrained")
        plot.draw(figure.subplots())
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        yield plot.name, image.getvalue()


def _save(results: Path, document: dict[str, Any], images: Mapping[str, bytes]) -> str:
    """Write the document, under a name that is not taken, and the pictures beside it; gives the name without endings.

    The names of the pictures are put into the document.
    """
    results.mkdir(parents=True, exist_ok=True)
    stamp = str(document["made"]).replace("-", "").replace(":", "")
    attempt = 1
    while True:
        stem = f"{document['benchmark']}-{stamp}" + (f"-{attempt}" if attempt > 1 else "")
        document["plots"] = {name: f"{stem}-{name}.png" for name in images}
        try:
            with (results / f"{stem}.json").open("x", encoding="utf-8") as file:
                file.write(_line(document) + "\n")
            break
        except FileExistsError:
            attempt += 1
    for name, image in images.items():
        (results / f"{stem}-{name}.png").write_bytes(image)
    return stem


def _show(machine: Mapping[str, Any], remarks: Sequence[str], tables: Sequence[Table]) -> None:
    width = max(map(len, machine), default=0)
    for name, value in machine.items():
        print(f"{name.ljust(width)}  {value}")
    for table in tables:
        print(f"\n{table}")
    for remark in remarks:
        print(f"\n{remark}")
    print()
