"""Placing a learned edit among many, publishing it, and taking it back; the log's flush apart."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from editable import EditableModel
from editable.benchmarks import growth, timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part, Setting, insert
from editable.benchmarks.report import Table

LEARNED = 8  # edits that the synthetic ones are made from
WARMUP = 2
FLUSHED = 8  # edits whose flush is timed


def run(setting: Setting) -> Part:
    """With `--present` edits live, and no log; learning is apart everywhere."""
    with setting.edited() as em:
        insert(em, setting.cases[:LEARNED])
        growth.grow(em, setting.options.present, setting.rng)
        present = len(em.edits)
        times = _times(setting, em)
        superseding = [_superseding_seconds(em, setting)]
    spreads = {name: timing.spread(values, 1e3) for name, values in times.items()}
    spreads["rollback of a superseding edit"] = timing.spread(superseding, 1e3)
    spreads["flush of the log"] = timing.spread(_flush_seconds(setting), 1e3)
    return _part(present, spreads)


def _times(setting: Setting, em: EditableModel) -> dict[str, list[float]]:
    """Seconds of each act, edit by edit."""
    editor = next(iter(em.editors.values()))
    spare = setting.cases[LEARNED:] or setting.cases
    times: dict[str, list[float]] = {"insert": [], "publish": [], "insert and publish": [], "rollback": []}
    for turn in range(setting.options.publish_rounds + WARMUP):
        receipt = em.edit(spare[turn % len(spare)].edit, verify=False)
        patch = growth.placed_anew(em, receipt.id)
        rolled_back = timing.clocked(lambda edit_id=receipt.id: em.rollback(edit_id))()  # type: ignore[misc]
        state = growth.state_of(em)
        inserted = timing.clocked(lambda p=patch, s=state: editor.insert([p], s))()  # type: ignore[misc]
        published = receipt.seconds["publish"]
        for values, one in zip(times.values(), (inserted, published, inserted + published, rolled_back), strict=True):
            values.append(one)
    return {name: values[WARMUP:] for name, values in times.items()}


def _superseding_seconds(em: EditableModel, setting: Setting) -> float:
    """Rolling back an edit that took another one's place: the other's scope has to be made again."""
    edit = setting.cases[0].edit
    receipt = em.edit(replace(edit, target=f"{edit.target} or not"), verify=False)
    return timing.clocked(lambda: em.rollback(receipt.id))()


def _flush_seconds(setting: Setting) -> list[float]:
    with tempfile.TemporaryDirectory() as folder, setting.edited(Path(folder) / "edits.db") as em:
        return [em.edit(case.edit, verify=False).seconds["log"] for case in setting.cases[:FLUSHED]]


def _part(present: int, spreads: Mapping[str, timing.Spread]) -> Part:
    rows = [(name, *vars(one).values()) for name, one in spreads.items()]
    table = Table(f"with {present} edits, ms", ("", "median", "low", "high", "p5", "p95", "count"), rows)
    bars = [
        Bar("insert and publish, ms", spreads["insert and publish"].median, "<=", 2.0),
        Bar("rollback, ms", spreads["rollback"].median, "<=", 2.0),
    ]
    return Part({"edits_present": present}, {n: one.as_dict("ms") for n, one in spreads.items()}, [table], bars)
