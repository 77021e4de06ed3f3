"""What editing costs: one record per forward of a served model, percentiles on request.

Knows clocks, spans and percentiles. Refuses to know editors, sites, models and snapshots: an editor and a
site are names here, and a forward is what its caller says it is. Nothing on the way of a forward takes a
lock, waits for a device or reads a tensor; waiting and reading are left to `report()`.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.errors import InputError

PHASES = ("prefill", "decode")
NOTHING_YET = "no forward recorded yet"

Mark = int | torch.cuda.Event
"""A point in time: nanoseconds of the host's clock, or an event on a CUDA stream."""


class _Forward(NamedTuple):
    """One finished forward, times unread."""

    start: Mark
    stop: Mark
    spans: tuple[tuple[str, str, Mark, Mark], ...]  # editor, site, enter, leave
    rows: int
    positions: int
    hits: tuple[Tensor, ...]


class Timer:
    """The times of one forward; made by `Latency.begin` and used by one thread.

    Spans must not overlap: each is taken off the total on its own. A span that is entered and never left (the
    editor raised) is not recorded.
    """

    __slots__ = ("_now", "_spans", "_start")

    def __init__(self, now: Callable[[], Mark]) -> None:
        self._now = now
        self._spans: list[tuple[str, str, Mark, Mark]] = []
        self._start = now()

    def enter(self) -> Mark:
        """Mark the moment before an editor acts at a site."""
        return self._now()

    def leave(self, mark: Mark, editor: str, site: str) -> None:
        """Close the span that `mark` opened, under the editor's and the site's name."""
        self._spans.append((editor, site, mark, self._now()))


class Latency:
    """Always-on record of the most recent forwards; any number of threads may record at once.

    On CUDA, times are those of the device: events on the stream that is current for the forward's device when
    it begins, so work that a sharded model does on other devices shows only as far as that stream waits for
    it. On every other device they are the host's; where such a device runs asynchronously, that is the time
    to queue the work.

    Args:
        capacity: how many of the most recent forwards are kept, per phase.
        clock_ns: the host's clock, in nanoseconds, never running backwards.

    Raises:
        InputError: the capacity is not positive.
    """

    def __init__(self, capacity: int = 4096, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        if capacity < 1:
            raise InputError(f"Latency capacity is {capacity}, expected at least 1; leave it out for 4096.")
        self._capacity = capacity
        self._clock_ns = clock_ns
        # Appending to a bounded deque is atomic, and so is copying one: no lock on either side.
        self._forwards: dict[str, deque[_Forward]] = {phase: deque(maxlen=capacity) for phase in PHASES}

    def begin(self, device: torch.device) -> Timer:
        """Start the timer of one forward whose input is on `device`."""
        return Timer(_stream_clock(device) if device.type == "cuda" else self._clock_ns)

    def end(self, timer: Timer, phase: str, rows: int, positions: int, hits: Mapping[str, Tensor] | None) -> None:
        """Close the timer and keep its forward; a forward that is never ended (it raised) leaves no trace.

        Args:
            timer: what `begin` returned for this forward.
            phase: "prefill" or "decode".
            rows: rows of the batch.
            positions: positions per row that this forward computed, padding included.
            hits: editor name to a bool tensor `(rows,)`, true where an edit of that editor applied; None
                where no editor decides by row. The tensors are held until the forward drops out, and read in
                `report()`: they must not be written to afterwards.

        Raises:
            InputError: the phase is neither of the two.
        """
        stop = timer._now()
        kept = tuple(hits.values()) if hits else ()
        forward = _Forward(timer._start, stop, tuple(timer._spans), rows, positions, kept)
        try:
            self._forwards[phase].append(forward)
        except KeyError:
            raise InputError(f"Phase is {phase!r}, expected one of {PHASES}; pass one of these.") from None

    def report(self) -> Report:
        """Read the forwards kept; on CUDA this waits until the device has finished them, and no longer."""
        phases: list[PhaseCost] = []
        spans: list[SpanCost] = []
        for phase, kept in self._forwards.items():
            if forwards := kept.copy():
                times = [_Times.read(forward) for forward in forwards]
                phases.append(_phase_cost(phase, forwards, times))
                spans.extend(_span_costs(phase, times))
        return Report(self._capacity, tuple(phases), tuple(spans))

    def reset(self) -> None:
        """Forget every forward kept; those under way now are recorded when they end."""
        for forwards in self._forwards.values():
            forwards.clear()


@dataclass(frozen=True)
class Percentiles:
    """The 50th, 95th and 99th percentile of one quantity, interpolated; the holder names its unit."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Percentiles:
        """Take the percentiles of at least one value."""
        return cls(*(float(value) for value in np.percentile(values, (50, 95, 99))))


@dataclass(frozen=True)
class Cost:
    """What a set of forwards cost, with and without the editors.

    Args:
        forwards: how many there are.
        total_ms: milliseconds from begin to end.
        base_ms: milliseconds of the total outside every span. The fixed time of the hooks lies between begin
            and end and in no span, so it counts as base.
        overhead_ratio: median total over median base; 1.0 is free, None where the base is too short to tell.
    """

    forwards: int
    total_ms: Percentiles
    base_ms: Percentiles
    overhead_ratio: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, units in the keys."""
        total = {f"total_{name}_ms": value for name, value in vars(self.total_ms).items()}
        base = {f"base_{name}_ms": value for name, value in vars(self.base_ms).items()}
        return {"forwards": self.forwards, **total, **base, "overhead_ratio": self.overhead_ratio}


@dataclass(frozen=True)
class PhaseCost:
    """What the forwards of one phase cost.

    Args:
        phase: "prefill" or "decode".
        rows: rows of all its forwards together.
        tokens: rows times positions of all its forwards together, padding included.
        every: all of them.
        hit: those where an edit applied to at least one row; None where there are none.
        miss: the others, those without hits tensors among them; None where there are none.
    """

    phase: str
    rows: int
    tokens: int
    every: Cost
    hit: Cost | None
    miss: Cost | None

    def splits(self) -> dict[str, Cost | None]:
        """Return the costs by the name of the set of forwards: every, hit, miss."""
        return {"every": self.every, "hit": self.hit, "miss": self.miss}

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, units in the keys."""
        splits = {name: cost and cost.as_dict() for name, cost in self.splits().items()}
        return {"rows": self.rows, "tokens": self.tokens, **splits}


@dataclass(frozen=True)
class SpanCost:
    """What one editor cost at one site in one phase: how many spans, and microseconds per span."""

    editor: str
    site: str
    phase: str
    spans: int
    span_us: Percentiles

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, units in the keys."""
        times = {f"{name}_us": value for name, value in vars(self.span_us).items()}
        return {"editor": self.editor, "site": self.site, "phase": self.phase, "spans": self.spans, **times}


@dataclass(frozen=True)
class Report:
    """What editing cost over the most recent forwards; prints as a table, also in a notebook.

    Args:
        capacity: how many forwards are kept per phase; older ones are not in here.
        phases: one entry per phase with forwards, prefill first.
        spans: one entry per editor, site and phase, in order of first appearance.
    """

    capacity: int
    phases: tuple[PhaseCost, ...] = ()
    spans: tuple[SpanCost, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, units in the keys."""
        return {
            "capacity_forwards": self.capacity,
            "phases": {cost.phase: cost.as_dict() for cost in self.phases},
            "spans": [cost.as_dict() for cost in self.spans],
        }

    def __str__(self) -> str:
        if not self.phases:
            return NOTHING_YET
        return "\n\n".join([_legend(self.capacity), *(_as_text(table) for table in _tables(self))])

    def _repr_html_(self) -> str:
        if not self.phases:
            return f"<p>{NOTHING_YET}</p>"
        return "".join([f"<p>{escape(_legend(self.capacity))}</p>", *(_as_html(table) for table in _tables(self))])


# --- times: from marks to numbers ---


def _stream_clock(device: torch.device) -> Callable[[], torch.cuda.Event]:
    # One stream for the whole forward: events of two devices have no time between them.
    stream = torch.cuda.current_stream(device)

    def now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    return now


def _elapsed_ms(start: Mark, stop: Mark) -> float:
    # Both marks of a pair come from one timer, hence from one clock.
    if isinstance(start, int):
        return (cast(int, stop) - start) / 1e6
    return float(start.elapsed_time(cast(torch.cuda.Event, stop)))


class _Times(NamedTuple):
    """One forward with its times read."""

    total_ms: float
    spans: tuple[tuple[str, str, float], ...]  # editor, site, milliseconds
    hit: bool

    @classmethod
    def read(cls, forward: _Forward) -> _Times:
        if not isinstance(forward.stop, int):
            forward.stop.synchronize()  # the last event on its stream: once it is done, all before it are
        spans = tuple((editor, site, _elapsed_ms(start, stop)) for editor, site, start, stop in forward.spans)
        hit = any(bool(rows.any()) for rows in forward.hits)
        return cls(_elapsed_ms(forward.start, forward.stop), spans, hit)


def _phase_cost(phase: str, forwards: Iterable[_Forward], times: Sequence[_Times]) -> PhaseCost:
    total_ms = np.array([one.total_ms for one in times])
    base_ms = total_ms - np.array([sum(ms for _, _, ms in one.spans) for one in times])
    hit = np.array([one.hit for one in times])
    return PhaseCost(
        phase,
        rows=sum(forward.rows for forward in forwards),
        tokens=sum(forward.rows * forward.positions for forward in forwards),
        every=_cost(total_ms, base_ms),
        hit=_cost(total_ms[hit], base_ms[hit]) if hit.any() else None,
        miss=_cost(total_ms[~hit], base_ms[~hit]) if not hit.all() else None,
    )


def _cost(total_ms: NDArray[np.float64], base_ms: NDArray[np.float64]) -> Cost:
    total, base = Percentiles.of(total_ms), Percentiles.of(base_ms)
    return Cost(len(total_ms), total, base, total.p50 / base.p50 if base.p50 > 0 else None)


def _span_costs(phase: str, times: Iterable[_Times]) -> list[SpanCost]:
    span_us: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for one in times:
        for editor, site, ms in one.spans:
            span_us[editor, site].append(ms * 1e3)
    return [
        SpanCost(editor, site, phase, len(values), Percentiles.of(np.array(values)))
        for (editor, site), values in span_us.items()
    ]


# --- tables: from numbers to text ---


class _Table(NamedTuple):
    """Header and rows of cells; the first `names` columns are words, the others numbers."""

    names: int
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def _legend(capacity: int) -> str:
    return (
        f"Most recent forwards, at most {capacity} per phase. "
        "base = total minus every editor's span; the fixed time of the hooks counts as base."
    )


def _tables(report: Report) -> list[_Table]:
    tables = [_phase_table(report.phases)]
    return [*tables, _span_table(report.spans)] if report.spans else tables


def _phase_table(phases: Iterable[PhaseCost]) -> _Table:
    header = ("phase", "forwards", "count", "p50 ms", "p95 ms", "p99 ms", "base p50 ms", "total/base")
    rows = [
        (phase.phase, name, *_cost_cells(cost))
        for phase in phases
        for name, cost in phase.splits().items()
        if cost is not None
    ]
    return _Table(2, header, rows)


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    times_ms = (cost.total_ms.p50, cost.total_ms.p95, cost.total_ms.p99, cost.base_ms.p50)
    ratio = "-" if cost.overhead_ratio is None else f"{cost.overhead_ratio:.3f}"
    return (str(cost.forwards), *(f"{value:.3f}" for value in times_ms), ratio)


def _span_table(spans: Iterable[SpanCost]) -> _Table:
    header = ("editor", "site", "phase", "spans", "p50 µs", "p95 µs", "p99 µs")
    rows = [
        (
            one.editor,
            one.site,
            one.phase,
            str(one.spans),
            *(f"{value:.1f}" for value in vars(one.span_us).values()),
        )
        for one in spans
    ]
    return _Table(3, header, rows)


def _as_text(table: _Table) -> str:
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_text_line(line, widths, table.names) for line in lines)


def _text_line(cells: tuple[str, ...], widths: list[int], names: int) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:names], widths, strict=False)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[names:], widths[names:], strict=True)]
    return "  ".join(words + numbers).rstrip()


def _as_html(table: _Table) -> str:
    head = _html_line("th", table.header, table.names)
    body = "".join(_html_line("td", row, table.names) for row in table.rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _html_line(tag: str, cells: tuple[str, ...], names: int) -> str:
    sides = ("left" if index < names else "right" for index in range(len(cells)))
    inner = (
        f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(inner)}</tr>"
