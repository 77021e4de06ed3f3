"""Edits that were learned as one: taking one back learns the rest again, under their ids, in one version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.edit import Patch
from editable.editor import Editor
from editable.entries import Entries
from editable.errors import VerificationError
from editable.inputs import Reader, Request
from editable.learn import Probe
from editable.listing import described
from editable.memory.log import Log
from tests.conftest import Attach
from tests.contract.harness import edits_of, everything, same_bits
from tests.families import FAMILIES, Loaded


@dataclass(frozen=True)
class Sets:
    """GRACE's entries, and which of them came together."""

    entries: Entries
    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Together(GRACE):
    """GRACE as it would be if a batch could only be learned as one."""

    def empty(self) -> Any:
        return Sets(super().empty())

    def apply(self, call: Any, rows: Any, state: Any) -> Any:
        return super().apply(call, rows, state.entries)

    def learn(self, requests: Sequence[Request], state: Any, probe: Probe) -> tuple[Any, list[Patch]]:
        entries, learned = super().learn(requests, state.entries, probe)
        ids = [request.id for request in requests]
        patches = [
            replace(patch, tensors={**patch.tensors, **request.kept}, meta={**patch.meta, "set": ids})
            for patch, request in zip(learned, requests, strict=True)
        ]
        return Sets(entries, {**state.sets, **dict.fromkeys(ids, frozenset(ids))}), patches

    def insert(self, patches: Sequence[Patch], state: Any) -> Any:
        came = {patch.edit_id: frozenset(patch.meta["set"]) for patch in patches}
        return Sets(super().insert(patches, state.entries), {**state.sets, **came})

    def forget(self, edit_ids: frozenset[str], state: Any) -> Any:
        assert all(state.sets[one] <= edit_ids for one in edit_ids if one in state.sets), "only whole units"
        left = {one: ids for one, ids in state.sets.items() if one not in edit_ids}
        return Sets(super().forget(edit_ids, state.entries), left)

    def conflicts(self, edit_id: str, state: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return super().conflicts(edit_id, state.entries)

    def unit(self, edit_id: str, state: Any) -> frozenset[str]:
        return frozenset(state.sets[edit_id])


EDITOR = Together()


@pytest.fixture(params=["llama-gqa", "t5", "bert", "resnet"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return load(request.param)


def load(name: str) -> Loaded:
    return {family.name: family for family in FAMILIES}[name].load()


def given_twice(loaded: Loaded) -> tuple[list[Edit], list[Edit]]:
    """A set of three edits and a fourth edit."""
    edits = edits_of(loaded)
    return edits[:3], edits[3:]


def answers(loaded: Loaded) -> list[int]:
    return loaded.answers(loaded.edited).argmax(-1).tolist()


def test_the_test_editor_is_an_editor() -> None:
    assert isinstance(EDITOR, Editor)


def test_taking_back_one_learns_the_others_again(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    base = answers(loaded)
    em = attach(loaded, EDITOR, log=tmp_path / "edits.db")
    first, second = given_twice(loaded)
    receipts = [*em.edit(first), *em.edit(second)]
    then, now = em.version, answers(loaded)
    with_all = everything(loaded)
    assert em.rollback(receipts[1].id) == em.version == then + 1
    assert answers(loaded) == [base[1] if index == 1 else label for index, label in enumerate(now)]
    assert [edit.id for edit in em.edits] == [receipts[index].id for index in (0, 2, 3)]
    assert [edit.relearned for edit in em.edits] == [em.version, em.version, None]
    assert f"relearned v{em.version}" in repr(em.edits)
    with em.at(then):
        assert same_bits(everything(loaded), with_all)
    records = [(record.kind, record.edit_id) for record in Log(tmp_path / "edits.db").records()][4:]
    ids = [receipt.id for receipt in receipts]
    assert records == [("rollback", ids[1]), ("relearn", ids[0]), ("relearn", ids[2])]


def test_taking_back_a_whole_set_learns_nothing(loaded: Loaded, attach: Attach) -> None:
    before = everything(loaded)
    em = attach(loaded, EDITOR)
    receipts = em.edit(given_twice(loaded)[0])
    em.rollback([receipt.id for receipt in receipts])
    assert same_bits(everything(loaded), before)
    assert [edit.relearned for edit in em.history] == [None] * 3


def test_a_log_with_sets_that_were_learned_again_reopens(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """Also where a set lost one twice, and one that was learned again went in the end."""
    em = attach(loaded, EDITOR, log=tmp_path / "edits.db")
    first, second = given_twice(loaded)
    ids = [receipt.id for receipt in [*em.edit(first), *em.edit(second)]]
    bits = {em.version: everything(loaded)}
    for gone in ids[:3]:
        em.rollback(gone)
        bits[em.version] = everything(loaded)
    em.close()
    again = load(loaded.family.name)
    em = attach(again, EDITOR, log=tmp_path / "edits.db")
    assert [edit.id for edit in em.edits] == ids[3:]
    assert [edit.relearned for edit in em.history] == [None, 3, 4, None]
    for version, logits in bits.items():
        with em.at(version):
            assert same_bits(everything(again), logits), f"version {version}"


def test_a_pack_carries_what_was_learned_last(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    em = attach(loaded, EDITOR)
    first, second = given_twice(loaded)
    receipts = [*em.edit(first), *em.edit(second)]
    em.rollback(receipts[0].id)
    em.export(tmp_path / "pack.safetensors")
    other = load(loaded.family.name)
    attach(other, EDITOR).load(tmp_path / "pack.safetensors")
    assert same_bits(everything(other), everything(loaded))


def test_it_is_refused_where_the_others_cannot_be_learned_again(loaded: Loaded, attach: Attach) -> None:
    """Nothing has changed then; unless it is asked for all the same."""
    em = attach(loaded, Together(values="single", steps=0))
    receipts = em.edit(given_twice(loaded)[0], verify=False)
    version, now = em.version, everything(loaded)
    with pytest.raises(VerificationError, match="failed verification, and nothing has changed"):
        em.rollback(receipts[0].id)
    assert em.version == version
    assert same_bits(everything(loaded), now)
    assert len(em.edits) == 3
    em.rollback(receipts[0].id, verify=False)
    assert [edit.id for edit in em.edits] == [receipt.id for receipt in receipts[1:]]


def test_a_request_is_read_back_from_what_its_patch_keeps(loaded: Loaded) -> None:
    reader = Reader(loaded.model, loaded.tokenizer)
    edit = Edit(loaded.edited[0], loaded.targets[0], rephrases=[loaded.edited[1]], subject="oscar", namespace="mine")
    request = reader.request("a", edit)
    again = reader.again("a", described(edit), request.kept)
    assert (again.id, again.answer) == ("a", request.answer)
    assert (again.edit.target, again.edit.subject, again.edit.namespace) == (edit.target, "oscar", "mine")
    assert len(again.prompts) == 2
    for mine, theirs in zip(again.prompts, request.prompts, strict=True):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_without_joint_learning_nothing_is_learned_again(loaded: Loaded, attach: Attach) -> None:
    em: EditableModel = attach(loaded, GRACE())
    receipts = em.edit(edits_of(loaded))
    em.rollback(receipts[1].id)
    assert [edit.relearned for edit in em.history] == [None] * 4
