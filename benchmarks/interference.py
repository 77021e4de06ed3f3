"""Serving while edits stream in: prefills and decode steps of one thread, with and without a stream of edits.

The physics. A reader never waits for the writer: publishing is one assignment. What they share is the machine. Learning
an edit is forwards and backwards on the same cores and the same memory bus, and both threads need Python's lock between
two operations. So serving slows down while an edit is learned, most where the cores are few; the median says by how
much, p99 whether a request is ever held up for longer than that.

One thread serves: a prefill of 16 tokens, then some decode steps, each timed, over and over. Another submits edits,
each as soon as the one before it is published, or `--rate` a second. Windows of some seconds with a stream and without
one take turns, in random order within each pair, so that what else the machine does falls on both alike; after a window
with a stream its edits are rolled back. Ratios are of percentiles over all windows, with a 95 % bootstrap interval over
pairs of windows.

    editable bench interference
    editable bench interference --rate 1 --windows 20 --seconds 5
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editable import Edit, EditableModel, Receipt
from editable.benchmarks import common, report, timing
from editable.benchmarks.prompts import prompts, refuse_without_text

STEPS = 8  # decode steps after each prefill
PERCENTILES = (50, 99)
SIDES = ("quiet", "edits")


@dataclass
class Window:
    """Seconds of each prefill and each decode step of one window, and the edits published in it."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    seconds: float = 0.0


Windows = dict[str, list[Window]]
"""Of each of SIDES, in the order of the pairs."""


# --- measuring ---


def measure(
    em: EditableModel, ids: Tensor, edits: Sequence[Edit], chosen: argparse.Namespace, rng: np.random.Generator
) -> Windows:
    """All windows, after one of each kind to warm up; ids (prompts, positions)."""
    windows: Windows = {side: [] for side in SIDES}
    coming = itertools.cycle(edits)
    for turn in common.each(range(chosen.windows + 1), "pairs of windows", chosen.windows + 1):
        for index in rng.permutation(len(SIDES)):
            feed = coming if SIDES[index] == "edits" else None
            window = _window(em, ids, feed, chosen.seconds, chosen.rate)
            if turn:
                windows[SIDES[index]].append(window)
    return windows


def _window(em: EditableModel, ids: Tensor, feed: Iterator[Edit] | None, seconds: float, rate: float) -> Window:
    """Serve for so long; what was edited meanwhile is rolled back behind the clock."""
    window = Window()
    start = time.perf_counter()
    with _streaming(em, feed, rate, window.receipts):
        while time.perf_counter() < start + seconds or not window.decode:
            _serve(em.model, ids[len(window.prefill) % len(ids)][None], window)
    window.seconds = time.perf_counter() - start
    if live := [receipt.id for receipt in window.receipts]:
        em.rollback(live)
    return window


@torch.no_grad()
def _serve(model: Any, ids: Tensor, window: Window) -> None:
    """One prefill (1, positions) and its decode steps."""
    outputs: list[Any] = []

    def step(tokens: Tensor, cache: Any) -> None:
        outputs[:] = [model(input_ids=tokens, past_key_values=cache, use_cache=True)]

    window.prefill.append(timing.clocked(lambda: step(ids, None))())
    for _ in range(STEPS):
        token, cache = outputs[0].logits[:, -1:].argmax(dim=-1), outputs[0].past_key_values
        window.decode.append(timing.clocked(lambda t=token, c=cache: step(t, c))())  # type: ignore[misc]


@contextmanager
def _streaming(em: EditableModel, feed: Iterator[Edit] | None, rate: float, receipts: list[Receipt]) -> Iterator[None]:
    """Inside, edits are submitted, one at a time; the last one is waited for.

    Raises:
        Exception: what an edit failed with.
    """
    done, failed = threading.Event(), list[Exception]()

    def submit() -> None:
        try:
            for edit in feed or ():
                due = time.perf_counter() + (1 / rate if rate else 0.0)
                receipts.append(em.submit(edit, verify=False).result())
                if done.wait(max(0.0, due - time.perf_counter())):
                    return
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=submit, name="edits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failed:
        raise failed[0]


# --- summing up ---


def times(windows: Windows, rng: np.random.Generator) -> dict[str, Any]:
    """Percentiles of each side, their ratios, and how many edits a second were published."""
    found: dict[str, Any] = {act: _act(windows, act, rng) for act in ("prefill", "decode")}
    busy = windows["edits"]
    published, seconds = sum(len(w.receipts) for w in busy), sum(w.seconds for w in busy)
    return {**found, "edits_published": published, "edits_per_second": round(published / seconds, 3)}


def _act(windows: Windows, act: str, rng: np.random.Generator) -> dict[str, Any]:
    taken = {side: [getattr(window, act) for window in windows[side]] for side in SIDES}
    ratios = {
        f"p{p}_ratio": timing.ratio_of_windows(taken["edits"], taken["quiet"], p, rng).as_dict() for p in PERCENTILES
    }
    return {**{side: _percentiles(np.concatenate(taken[side]) * 1e3) for side in SIDES}, **ratios}


def _percentiles(times_ms: timing.Samples) -> dict[str, float]:
    found = {f"p{p}_ms": round(float(np.percentile(times_ms, p)), 4) for p in PERCENTILES}
    return {**found, "count": len(times_ms)}


def tables(found: dict[str, Any]) -> list[report.Table]:
    """Times side by side, and the stream."""
    header = ("", "", "without ms", "with edits ms", "ratio", "low", "high")
    rows = [
        (act, f"p{p}", *(found[act][side][f"p{p}_ms"] for side in SIDES), *_interval(found[act][f"p{p}_ratio"]))
        for act in ("prefill", "decode")
        for p in PERCENTILES
    ]
    stream = [(name.replace("_", " "), found[name]) for name in ("edits_published", "edits_per_second")]
    return [report.Table("serving while edits stream in", header, rows), report.Table("the stream", ("", ""), stream)]


def _interval(ratio: dict[str, float]) -> tuple[float, float, float]:
    return ratio["ratio"], ratio["low"], ratio["high"]


def draw(windows: Windows) -> Callable[[Any], None]:
    """The share of prefills and decode steps that took at least so long, a line for each side."""

    def plot(axes: Any) -> None:
        for act, style in (("prefill", "-"), ("decode", "--")):
            for side, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
                every = np.sort(np.concatenate([getattr(window, act) for window in windows[side]])) * 1e3
                left = 1 - np.arange(len(every)) / len(every)
                axes.step(every, left, ls=style, color=colour, label=f"{act}, {side}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("milliseconds")
        axes.set_ylabel("share that took at least so long")
        axes.set_title("Serving while edits stream in")
        axes.legend()

    return plot


# --- the command ---


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__, "interference")
    common.add_editor(parser)
    parser.add_argument("--windows", type=int, default=12, help="pairs of windows (default 12), one more to warm up")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window (default 5)")
    parser.add_argument("--rate", type=float, default=0.0, help="edits a second at most (default 0: no limit)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and show."""
    chosen = options(argv)
    editor = common.editor(chosen)
    model, tokenizer = common.prepare(chosen)
    refuse_without_text(model, tokenizer, "interference")
    cases = common.cases(chosen, 200)
    given = prompts(tokenizer, cases, common.unrelated(chosen, 200))
    machine, rng = common.machine_card(model), np.random.default_rng(chosen.seed)
    with EditableModel(model, tokenizer, editor=editor) as em:
        windows = measure(em, given.miss, [case.edit for case in cases], chosen, rng)
    found = times(windows, rng)
    said = report.Report(
        "interference", machine, common.given(chosen), {}, found, tables(found), [report.Plot("times", draw(windows))]
    )
    report.publish(said, chosen.results, chosen.against)


if __name__ == "__main__":
    main()
