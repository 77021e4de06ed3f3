"""What the log acknowledged is there again after any end of the process; what it did not is never visible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from editable.errors import LogError, WrongBaseError
from editable.memory.log import Log
from tests.conftest import Attach
from tests.contract.harness import Edited, both_dtypes, edits_of, everything, named, once, same_bits
from tests.families import Loaded

ROOT = Path(__file__).parents[2]


@both_dtypes
def test_reopened(loaded: Loaded, editor: Any, attach: Attach, tmp_path: Path) -> None:
    """A new process with the same base: every bit as it was, history included."""
    em = attach(loaded, editor, log=tmp_path / "edits.db")
    receipts = em.edit(edits_of(loaded))
    then = {em.version: everything(loaded)}
    em.rollback(receipts[1].id)
    then[em.version] = everything(loaded)
    em.close()
    again = loaded.family.load(loaded.dtype)
    base = everything(again)
    em = attach(again, editor, log=tmp_path / "edits.db")
    assert [edit.id for edit in em.edits] == [receipts[i].id for i in (0, 2, 3)]
    assert em.version == max(then)
    for version, logits in then.items():
        with em.at(version):
            assert same_bits(everything(again), logits)
    for index in (3, 0, 2):
        em.rollback(receipts[index].id)
    assert same_bits(everything(again), base)


@named("gpt2", "t5", "bert", "resnet")
def test_editing_goes_on_after_reopening(loaded: Loaded, editor: Any, attach: Attach, tmp_path: Path) -> None:
    """Learned before and after a restart is the same, bit for bit, as learned in one go."""
    whole = loaded.family.load(loaded.dtype)
    straight = attach(whole, editor)
    for index in range(3):
        if index == 2:
            attach(loaded, editor, log=tmp_path / "edits.db").close()
        em = attach(loaded, editor, log=tmp_path / "edits.db")
        em.edit(edits_of(loaded, [index]))
        em.close()
        straight.edit(edits_of(whole, [index]))
    attach(loaded, editor, log=tmp_path / "edits.db")
    assert same_bits(everything(loaded), everything(whole))


@named("gpt2", "vit")
def test_a_log_of_another_base_is_refused(loaded: Loaded, editor: Any, attach: Attach, tmp_path: Path) -> None:
    """One weight differs in one bit; the model is left alone."""
    attach(loaded, editor, log=tmp_path / "edits.db").close()
    other = loaded.family.load(loaded.dtype)
    parameter = next(other.model.parameters())
    parameter.data.view(-1)[0] += 1
    before = everything(other)
    with pytest.raises(WrongBaseError):
        attach(other, editor, log=tmp_path / "edits.db")
    assert same_bits(everything(other), before)


@named("gpt2", "resnet")
def test_what_the_log_refuses_is_never_visible(
    loaded: Loaded, editor: Any, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    em = attach(loaded, editor, log=tmp_path / "edits.db")
    receipt = em.edit(edits_of(loaded, [0]))[0]
    version, now = em.version, everything(loaded)

    def full(*_: Any) -> None:
        raise LogError("no space left")

    monkeypatch.setattr(Log, "append", full)
    with pytest.raises(LogError, match="no space left"):
        em.edit(edits_of(loaded, [1]))
    with pytest.raises(LogError, match="no space left"):
        em.rollback(receipt.id)
    assert em.version == version
    assert same_bits(everything(loaded), now)
    monkeypatch.undo()
    em.edit(edits_of(loaded, [1]))
    assert em.version == version + 1


WRITER = """
import sys
sys.path.append(sys.argv[3])
from editable import EditableModel
from tests.conftest import editors
from tests.contract.harness import edits_of
from tests.families import FAMILIES

loaded = next(family for family in FAMILIES if family.name == "llama-gqa").load()
editor = next(cls for cls in editors() if cls.__name__ == sys.argv[2])()
em = EditableModel(loaded.model, loaded.tokenizer, editor=editor, log=sys.argv[1])
while True:
    for index in range(6):
        receipt = em.edit(edits_of(loaded, [index]))[0]
        print("edited", receipt.id, index, flush=True)
        if index % 2:
            em.rollback(receipt.id)
            print("rolled back", receipt.id, index, flush=True)
"""


@once
@named("llama-gqa")
def test_what_was_acknowledged_survives_a_kill(loaded: Loaded, editor: Any, attach: Attach, tmp_path: Path) -> None:
    told = _killed_after(12, tmp_path / "edits.db", type(editor).__name__)
    em = attach(loaded, editor, log=tmp_path / "edits.db")
    live = {edit.id for edit in em.edits}
    gone = {parts[-2] for parts in told if parts[0] == "rolled"}
    latest = {int(parts[-1]): parts[-2] for parts in told if parts[0] == "edited"}
    assert gone.isdisjoint(live)
    last = told[-1][-2]  # what came after it may be on disk without having been acknowledged
    assert {latest[index] for index in (0, 2, 4)} - {last} <= live
    said = loaded.generate(loaded.edited)
    assert all(loaded.is_answer(said[index], index) for index in (0, 2, 4))


def _killed_after(lines: int, log: Path, editor: str) -> list[list[str]]:
    """Start a writer, kill it without warning after so many acknowledgements, and return them."""
    command = [sys.executable, "-c", WRITER, str(log), editor, str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=log.parent)
    assert writer.stdout is not None
    try:
        told = [writer.stdout.readline().split() for _ in range(lines)]
    finally:
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0]
    told += [line.split() for line in rest.splitlines() if line.count(" ") >= 2]
    assert all(told), "the writer ended before it was killed"
    return told


@both_dtypes
def test_carried_to_another_process(fresh: Edited, editor: Any, attach: Attach, tmp_path: Path) -> None:
    fresh.em.export(tmp_path / "pack.safetensors")
    em = attach(fresh.twin, editor)
    em.load(tmp_path / "pack.safetensors")
    assert same_bits(everything(fresh.twin), everything(fresh.loaded))
    assert [edit.prompt for edit in em.edits] == [edit.prompt for edit in fresh.em.edits]
