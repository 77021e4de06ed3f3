"""Seconds per edit: one by one and in a batch, against the textbook loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from editable import EditableModel, Receipt
from editable.benchmarks import common, timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.baselines.textbook_grace import Textbook
from editable.benchmarks.insertion.setting import Part, Setting, insert
from editable.benchmarks.report import Plot, Table
from editable.datasets import Case
from editable.system import System

BATCH_EVERY = 3  # rounds to one batch, which takes as long as some edits
STEP = 7  # cases by which each batch begins later than the one before

LOOKED_UP = {"one edit": 8.0, "batch": 25.0}  # at least so many times faster than the textbook loop
ROUTED = {"one edit": 20.0, "batch": 100.0}  # by what the prompt says: no block of the model is run

Times = dict[str, list[float]]
"""Seconds per edit, of the textbook loop, of one edit and in a batch."""


def run(setting: Setting) -> Part:
    """Rounds of all three in random order in one process. An edit is read, learned, verified, flushed and published."""
    textbook: System = Textbook().on(setting.model, setting.tokenizer)
    times: Times = {"textbook": [], "one edit": [], "batch": []}
    rounds = setting.options.speed_rounds
    with tempfile.TemporaryDirectory() as folder, setting.edited(Path(folder) / "edits.db") as em:
        _warm_up(setting, em)
        for turn in common.each(range(rounds), "speed, rounds", rounds):
            _round(setting, em, textbook, turn, times)
    return _part(times, setting)


def _warm_up(setting: Setting, em: EditableModel) -> None:
    """The first edit makes the learning copy and measures the spread; the first batch grows the buffers."""
    _edit_seconds(em, setting.cases[-1])
    _batch_seconds(em, _batch(setting, 0))


def _round(setting: Setting, em: EditableModel, textbook: System, turn: int, times: Times) -> None:
    case = setting.cases[turn % len(setting.cases)]
    acts: dict[str, Callable[[], float]] = {
        "textbook": lambda: _textbook_seconds(textbook, case),
        "one edit": lambda: _edit_seconds(em, case),
    }
    if turn % BATCH_EVERY == 0:
        acts["batch"] = lambda: _batch_seconds(em, _batch(setting, turn))
    for index in setting.rng.permutation(len(acts)):
        name = list(acts)[index]
        times[name].append(acts[name]())


def _textbook_seconds(textbook: System, case: Case) -> float:
    textbook.reset()
    return timing.clocked(lambda: textbook.insert([case.edit]))()


def _edit_seconds(em: EditableModel, case: Case) -> float:
    receipts: list[Receipt] = []
    seconds = timing.clocked(lambda: receipts.append(em.edit(case.edit, verify=False)))()
    em.rollback(receipts[0].id)
    return seconds


def _batch_seconds(em: EditableModel, cases: Sequence[Case]) -> float:
    receipts: list[Receipt] = []
    seconds = timing.clocked(lambda: receipts.extend(insert(em, cases)))()
    em.rollback([receipt.id for receipt in receipts])
    return seconds / len(cases)


def _batch(setting: Setting, turn: int) -> Sequence[Case]:
    start = (turn * STEP) % len(setting.cases)
    return [*setting.cases[start:], *setting.cases[:start]][: setting.options.batch]


def _part(times: Times, setting: Setting) -> Part:
    ratios = {
        "one edit": timing.ratio_of_medians(times["textbook"], times["one edit"], setting.rng),
        "batch": timing.ratio_of_medians(times["textbook"], times["batch"], setting.rng, paired=False),
    }
    spreads = {name: timing.spread(values) for name, values in times.items()}
    found = {
        "seconds_per_edit": {name: one.as_dict("s") for name, one in spreads.items()},
        "times_faster_than_textbook": {name: one.as_dict() for name, one in ratios.items()},
        "edits_in_a_batch": min(setting.options.batch, len(setting.cases)),
    }
    reads_text = getattr(getattr(setting.editor, "scope", None), "reads_text", False)
    bars = [
        Bar(f"{name}, times faster than the textbook loop", ratios[name].ratio, ">=", bar, _ends(ratios[name]))
        for name, bar in (ROUTED if reads_text else LOOKED_UP).items()
    ]
    return Part(timing=found, tables=_tables(spreads, ratios), bars=bars, plots=[Plot("speed", draw(spreads))])


def _ends(ratio: timing.Ratio) -> tuple[float, float]:
    return ratio.low, ratio.high


def _tables(spreads: Mapping[str, timing.Spread], ratios: Mapping[str, timing.Ratio]) -> list[Table]:
    times = [(name, *vars(one).values()) for name, one in spreads.items()]
    faster = [(name, *vars(one).values()) for name, one in ratios.items()]
    return [
        Table("seconds per edit", ("", "median", "low", "high", "p5", "p95", "count"), times),
        Table("times faster than the textbook loop", ("", "medians", "low", "high", "by pair"), faster),
    ]


def draw(spreads: Mapping[str, timing.Spread]) -> Callable[[Any], None]:
    """Seconds per edit as bars."""

    def plot(axes: Any) -> None:
        medians = [one.median for one in spreads.values()]
        below = [max(0.0, one.median - one.p5) for one in spreads.values()]
        above = [max(0.0, one.p95 - one.median) for one in spreads.values()]
        axes.barh(list(spreads), medians, xerr=(below, above), color="tab:blue", ecolor="black", capsize=3)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_xlabel("seconds per edit (median, 5th to 95th percentile)")
        axes.set_title("Inserting an edit")

    return plot
