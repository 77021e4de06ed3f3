"""Latency against numbers worked out by hand, under a clock that the test moves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from editable.errors import InputError
from editable.latency import Latency, Report

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def pass_us(self, us: int) -> None:
        self.ns += us * 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def latency(clock: Clock) -> Latency:
    return Latency(clock_ns=clock)


def forward(
    latency: Latency,
    clock: Clock,
    base_us: int,
    spans: tuple[tuple[str, str, int], ...] = (),
    phase: str = "decode",
    rows: int = 1,
    positions: int = 1,
    hits: Mapping[str, Any] | None = None,
) -> None:
    timer = latency.begin(CPU)
    clock.pass_us(base_us)
    for editor, site, us in spans:
        mark = timer.enter()
        clock.pass_us(us)
        timer.leave(mark, editor, site)
    latency.end(timer, phase, rows, positions, hits)


def hit(*rows: bool) -> dict[str, Tensor]:
    return {"grace": torch.tensor(rows)}


def by_name(report: Report) -> dict[str, Any]:
    return {cost.phase: cost for cost in report.phases}


def test_percentiles_are_interpolated_linearly(latency: Latency, clock: Clock) -> None:
    for ms in (5, 3, 1, 4, 2):  # sorted ranks 0..4: p95 is rank 3.8, p99 is rank 3.96
        forward(latency, clock, ms * 1000)
    every = latency.report().phases[0].every
    assert every.forwards == 5
    assert (every.total_ms.p50, every.total_ms.p95, every.total_ms.p99) == pytest.approx((3.0, 4.8, 4.96))


def test_base_is_total_minus_all_spans_and_ratio_is_of_medians(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000, (("grace", "h.5", 100), ("melo", "h.7", 150)))  # total 1.25
    forward(latency, clock, 2000, (("grace", "h.5", 300), ("melo", "h.7", 200)))  # total 2.50
    forward(latency, clock, 4000, (("grace", "h.5", 500), ("melo", "h.7", 0)))  # total 4.50
    every = latency.report().phases[0].every
    assert every.total_ms.p50 == pytest.approx(2.5)
    assert every.base_ms.p50 == pytest.approx(2.0)
    assert every.base_ms.p95 == pytest.approx(3.8)  # rank 1.9 of 1, 2, 4
    assert every.overhead_ratio == pytest.approx(1.25)


def test_without_spans_the_base_is_the_total(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 700)
    report = latency.report()
    assert report.phases[0].every.base_ms == report.phases[0].every.total_ms
    assert report.phases[0].every.overhead_ratio == 1.0
    assert report.spans == ()


def test_no_ratio_where_the_base_is_below_the_clock(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 0, (("grace", "h.5", 10),))
    report = latency.report()
    assert report.phases[0].every.overhead_ratio is None
    assert " -" in str(report)


def test_spans_by_editor_site_and_phase(latency: Latency, clock: Clock) -> None:
    for us in (10, 20, 30):
        forward(latency, clock, 1000, (("grace", "h.5", us), ("grace", "h.6", 2 * us)))
    forward(latency, clock, 1000, (("grace", "h.5", 500),), phase="prefill")
    spans = {(one.editor, one.site, one.phase): one for one in latency.report().spans}
    assert set(spans) == {("grace", "h.5", "prefill"), ("grace", "h.5", "decode"), ("grace", "h.6", "decode")}
    first = spans["grace", "h.5", "decode"]
    assert first.spans == 3
    assert (first.span_us.p50, first.span_us.p95, first.span_us.p99) == pytest.approx((20.0, 29.0, 29.8))
    assert spans["grace", "h.6", "decode"].span_us.p50 == pytest.approx(40.0)
    assert spans["grace", "h.5", "prefill"].span_us.p99 == pytest.approx(500.0)


def test_one_editor_twice_at_one_site_counts_both(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000, (("grace", "h.5", 10), ("grace", "h.5", 30)))
    report = latency.report()
    assert report.spans[0].spans == 2
    assert report.phases[0].every.base_ms.p50 == pytest.approx(1.0)


def test_a_span_never_left_is_not_recorded(latency: Latency, clock: Clock) -> None:
    timer = latency.begin(CPU)
    timer.enter()
    clock.pass_us(50)
    latency.end(timer, "decode", 1, 1, None)
    report = latency.report()
    assert report.spans == ()
    assert report.phases[0].every.base_ms.p50 == pytest.approx(0.05)


def test_hit_and_miss_are_split(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000, (("grace", "h.5", 500),), hits=hit(False, True))  # hit: any row
    forward(latency, clock, 2000, (("grace", "h.5", 100),), hits=hit(False, False))
    forward(latency, clock, 3000, hits=None)  # no tensors: miss
    forward(latency, clock, 4000, hits={})
    forward(latency, clock, 3000, hits={"melo": torch.tensor([False]), "grace": torch.tensor([True])})  # any editor
    phase = latency.report().phases[0]
    assert phase.every.forwards == 5
    assert phase.hit is not None and phase.miss is not None
    assert (phase.hit.forwards, phase.miss.forwards) == (2, 3)
    assert phase.hit.total_ms.p50 == pytest.approx(2.25)  # 1.5 and 3.0
    assert phase.hit.base_ms.p50 == pytest.approx(2.0)
    assert phase.hit.overhead_ratio == pytest.approx(1.125)
    assert phase.miss.total_ms.p50 == pytest.approx(3.0)  # 2.1, 3.0, 4.0


def test_a_side_of_the_split_without_forwards_is_none(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000)
    forward(latency, clock, 1000, phase="prefill", hits=hit(True))
    phases = by_name(latency.report())
    assert phases["decode"].hit is None and phases["decode"].miss == phases["decode"].every
    assert phases["prefill"].miss is None and phases["prefill"].hit == phases["prefill"].every


def test_phases_are_kept_apart(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000, rows=2)
    forward(latency, clock, 9000, phase="prefill", rows=2, positions=7)
    forward(latency, clock, 3000, rows=4)
    phases = by_name(latency.report())
    assert list(phases) == ["prefill", "decode"]
    assert phases["prefill"].every.total_ms.p50 == pytest.approx(9.0)
    assert phases["decode"].every.total_ms.p50 == pytest.approx(2.0)
    assert (phases["prefill"].rows, phases["prefill"].tokens) == (2, 14)
    assert (phases["decode"].rows, phases["decode"].tokens) == (6, 6)


def test_an_unknown_phase_is_refused(latency: Latency) -> None:
    with pytest.raises(InputError, match=r"'training'.*prefill.*decode"):
        latency.end(latency.begin(CPU), "training", 1, 1, None)
    assert latency.report().phases == ()


def test_capacity_drops_the_oldest_of_its_phase(clock: Clock) -> None:
    latency = Latency(3, clock_ns=clock)
    forward(latency, clock, 50_000, phase="prefill")
    for ms in (100, 200, 1, 2, 3):
        forward(latency, clock, ms * 1000)
    phases = by_name(latency.report())
    assert phases["decode"].every.forwards == 3
    assert phases["decode"].every.total_ms.p50 == pytest.approx(2.0)
    assert phases["prefill"].every.forwards == 1


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Latency(capacity)


def test_reset_forgets_but_keeps_what_is_under_way(latency: Latency, clock: Clock) -> None:
    forward(latency, clock, 1000)
    under_way = latency.begin(CPU)
    latency.reset()
    assert latency.report().phases == ()
    latency.end(under_way, "decode", 1, 1, None)
    assert latency.report().phases[0].every.forwards == 1


def test_many_threads_lose_nothing_while_reports_are_taken() -> None:
    latency, threads, each = Latency(8000), 8, 1000
    done = threading.Event()
    failures: list[BaseException] = []

    def serve(name: str) -> None:
        for _ in range(each):
            timer = latency.begin(CPU)
            timer.leave(timer.enter(), name, "h.5")
            latency.end(timer, "decode", 1, 1, None)

    def watch() -> None:
        try:
            while not done.wait(0.01):
                latency.report()
        except BaseException as failure:
            failures.append(failure)

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=serve, args=(f"e{index}",)) for index in range(threads)]
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    watcher.join()
    report = latency.report()
    assert failures == []
    assert report.phases[0].every.forwards == threads * each
    assert {one.editor: one.spans for one in report.spans} == {f"e{index}": each for index in range(threads)}


class Sealed:
    """Stands for a hits tensor: reading it before the seal is broken is an error."""

    def __init__(self) -> None:
        self.open = False

    def any(self) -> Sealed:
        return self

    def __bool__(self) -> bool:
        assert self.open, "hits were read before the report"
        return True


def test_hits_are_not_read_before_the_report(latency: Latency, clock: Clock) -> None:
    sealed = Sealed()
    forward(latency, clock, 1000, hits={"grace": sealed})
    with pytest.raises(AssertionError, match="before the report"):
        latency.report()
    sealed.open = True
    phase = latency.report().phases[0]
    assert phase.hit is not None and phase.hit.forwards == 1


class FakeEvent:
    """Stands for torch.cuda.Event: its time is known only once it, or a later one, was waited for."""

    clock: Clock
    waited_ns: int
    waits: int

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.stream: object = None
        self.ns = -1

    def record(self, stream: object) -> None:
        self.stream, self.ns = stream, self.clock.ns

    def synchronize(self) -> None:
        FakeEvent.waits += 1
        FakeEvent.waited_ns = max(FakeEvent.waited_ns, self.ns)

    def elapsed_time(self, other: FakeEvent) -> float:
        assert self.stream == other.stream, "events of two streams"
        assert max(self.ns, other.ns) <= FakeEvent.waited_ns, "read before the device was waited for"
        return (other.ns - self.ns) / 1e6


@pytest.fixture
def fake_cuda(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeEvent]]:
    FakeEvent.clock, FakeEvent.waited_ns, FakeEvent.waits = clock, -1, 0
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    yield FakeEvent


def test_cuda_times_come_from_events_read_in_the_report(clock: Clock, fake_cuda: type[FakeEvent]) -> None:
    def host_clock() -> int:
        raise AssertionError("the host's clock was asked about the device")

    latency = Latency(clock_ns=host_clock)
    for device, us in (("cuda:0", 100), ("cuda:1", 300)):
        timer = latency.begin(torch.device(device))
        clock.pass_us(1000)
        mark = timer.enter()
        clock.pass_us(us)
        timer.leave(mark, "grace", "h.5")
        latency.end(timer, "decode", 1, 1, hit(True))
    assert fake_cuda.waits == 0
    report = latency.report()
    assert fake_cuda.waits > 0
    assert report.phases[0].every.total_ms.p50 == pytest.approx(1.2)
    assert report.phases[0].every.base_ms.p50 == pytest.approx(1.0)
    assert report.spans[0].span_us.p50 == pytest.approx(200.0)
    assert report.phases[0].hit == report.phases[0].every


def test_host_and_cuda_forwards_mix(latency: Latency, clock: Clock, fake_cuda: type[FakeEvent]) -> None:
    forward(latency, clock, 1000)
    timer = latency.begin(torch.device("cuda"))
    clock.pass_us(3000)
    latency.end(timer, "decode", 1, 1, None)
    assert latency.report().phases[0].every.total_ms.p50 == pytest.approx(2.0)
    assert fake_cuda.waits == 1


def full_report(latency: Latency, clock: Clock, site: str = "h.5") -> Report:
    forward(latency, clock, 2000, (("grace", site, 500),), hits=hit(True))
    forward(latency, clock, 1000, phase="prefill", positions=3)
    return latency.report()


def test_dict_is_plain_json_with_units(latency: Latency, clock: Clock) -> None:
    plain = full_report(latency, clock).as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["capacity_forwards"] == 4096
    assert list(plain["phases"]) == ["prefill", "decode"]
    decode = plain["phases"]["decode"]
    assert decode["every"] == decode["hit"] and decode["miss"] is None
    assert decode["every"]["total_p50_ms"] == pytest.approx(2.5)
    assert decode["every"]["base_p99_ms"] == pytest.approx(2.0)
    assert decode["every"]["overhead_ratio"] == pytest.approx(1.25)
    assert plain["phases"]["prefill"]["tokens"] == 3
    (span,) = plain["spans"]
    assert span.pop("p50_us") == span.pop("p95_us") == span.pop("p99_us") == pytest.approx(500.0)
    assert span == {"editor": "grace", "site": "h.5", "phase": "decode", "spans": 1}


def test_empty_report_reads_sensibly() -> None:
    report = Latency().report()
    assert str(report) == "no forward recorded yet"
    assert report._repr_html_() == "<p>no forward recorded yet</p>"
    assert json.loads(json.dumps(report.as_dict())) == {"capacity_forwards": 4096, "phases": {}, "spans": []}


def test_text_is_an_aligned_table(latency: Latency, clock: Clock) -> None:
    legend, phases, spans = str(full_report(latency, clock, "model.layers.5.mlp")).split("\n\n")
    assert "base = total minus" in legend
    assert phases.splitlines() == [
        "phase    forwards  count  p50 ms  p95 ms  p99 ms  base p50 ms  total/base",
        "prefill  every         1   1.000   1.000   1.000        1.000       1.000",
        "prefill  miss          1   1.000   1.000   1.000        1.000       1.000",
        "decode   every         1   2.500   2.500   2.500        2.000       1.250",
        "decode   hit           1   2.500   2.500   2.500        2.000       1.250",
    ]
    assert spans.splitlines() == [
        "editor  site                phase   spans  p50 µs  p95 µs  p99 µs",
        "grace   model.layers.5.mlp  decode      1   500.0   500.0   500.0",
    ]


def test_html_is_escaped_tables(latency: Latency, clock: Clock) -> None:
    html = full_report(latency, clock, "<script>&")._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    assert "&lt;script&gt;&amp;" in html and "<script>" not in html
    assert ">2.500<" in html and ">500.0<" in html
