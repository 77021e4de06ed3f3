"""Opening a log of so many edits: records read, verified and inserted again, as at the start of a process.

The base model is not loaded. What is measured is `editable.history.History`, which a model makes of its log.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from editable import Patch
from editable.benchmarks import timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.common import each
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.setting import Setting
from editable.benchmarks.report import Table
from editable.history import History
from editable.memory.log import Entry, Identity, Log

TOGETHER = 1000  # edits in one version
ANSWER = (1, 2)  # tokens of every answer
BARS = {10_000: 2.0, 100_000: 15.0}  # edits to seconds
NAME = "grace"


def run(setting: Setting) -> Part:
    """With each of `--reopen` edits, `--reopen-rounds` times."""
    seconds = {count: _seconds(setting, count) for count in setting.options.reopen}
    spreads = {count: timing.spread(values) for count, values in seconds.items()}
    rows = [
        (f"{count} edits", one.median, one.low, one.high, 1e6 * one.median / count) for count, one in spreads.items()
    ]
    return Part(
        timing={f"{count} edits": one.as_dict("s") for count, one in spreads.items()},
        tables=[Table("opening a log, s", ("", "median", "low", "high", "us per edit"), rows)],
        bars=[
            Bar(f"opening {count} edits, s", one.median, "<=", BARS[count], (one.low, one.high))
            for count, one in spreads.items()
            if count in BARS
        ],
    )


def _seconds(setting: Setting, count: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edits.db"
        write(path, setting, count)
        return [timing.clocked(lambda: opened(path, setting, count))() for _ in range(setting.options.reopen_rounds)]


def write(path: Path, setting: Setting, count: int) -> None:
    """A log of `count` edits with realistic keys, each placed as one far from all others is."""
    generator = torch.Generator().manual_seed(setting.options.seed)
    keys = (key for part in setting.real.made(count, generator) for key in part)
    entries: list[Entry] = []
    with Log(path, Identity(base="0" * 64, tokenizer="", editors="{}")) as log:
        for number, key in enumerate(each(keys, f"writing a log of {count} edits", count), 1):
            entries.append(_entry(setting, number, key))
            if len(entries) == TOGETHER or number == count:
                log.append(-(-number // TOGETHER), entries)
                entries = []


def _entry(setting: Setting, number: int, key: torch.Tensor) -> Entry:
    edit_id, answer = f"edit {number}", torch.tensor(ANSWER)
    request: dict[str, object] = {
        "prompt": edit_id,
        "target": "",
        "rephrases": [],
        "subject": None,
        "namespace": "default",
    }
    meta = {"radius": setting.real.radius / 4, "placed": [["add", -1, float("inf").hex(), []]]}
    values = torch.zeros(1, setting.values)
    patch = Patch(edit_id, {"keys": key[None], "values": values, "answer": answer}, meta)
    return Entry("edit", edit_id, NAME, patch.tensors, {"request": request, "patch": meta, "superseded": []})


def opened(path: Path, setting: Setting, count: int) -> History:
    """The history that a model would make of the log.

    Raises:
        ValueError: it does not hold all edits.
    """
    with Log(path) as log:
        history = History({NAME: setting.real.editor}, log)
    if len(history.start.states[NAME]) != count:
        raise ValueError(f"{len(history.start.states[NAME])} edits in the log, expected {count}")
    return history
