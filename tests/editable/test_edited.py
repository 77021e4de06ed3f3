"""An edited model as a System: what it holds, says and forgets; for every editor and every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editable import Edit, EditableModel
from editable.asking import Asker
from editable.edited import EditedSystem
from tests.conftest import Attach
from tests.contract.harness import LEARNED, edits_of, named
from tests.families import LONGEST, Loaded


@pytest.fixture
def system(loaded: Loaded, editor: Any, attach: Attach) -> EditedSystem:
    return EditedSystem(attach(loaded, editor), "tried", rows=3)


def test_what_was_inserted_is_said_and_the_rest_is_left_alone(system: EditedSystem, loaded: Loaded) -> None:
    twin = loaded.family.load(loaded.dtype)
    base = Asker(twin.model, twin.tokenizer)
    system.insert(edits_of(loaded))
    prompts, targets = loaded.edited[:LEARNED], loaded.targets[:LEARNED]
    logits, ids = system.forced(prompts, targets), system.target_ids(prompts, targets)
    assert all(torch.equal(one.argmax(-1), target) for one, target in zip(logits, ids, strict=True))
    said = system.free(prompts, [LONGEST] * LEARNED)
    assert [list(answer.tokens) for answer in said] == [target.tolist() for target in ids]
    assert all(answer.stopped for answer in said)
    if not all(editor.routes for editor in system.em.editors.values()):
        return
    unrelated = zip(system.logits(loaded.unrelated), base.logits(loaded.unrelated), strict=True)
    assert all(torch.equal(one, other) for one, other in unrelated)


def test_reset_gives_the_base_model_back(system: EditedSystem, loaded: Loaded) -> None:
    before = system.logits(loaded.edited)
    system.insert(edits_of(loaded, [0, 1]))
    system.insert(edits_of(loaded, [2]))
    assert system.held == 3
    assert system.numbers > 0
    system.reset()
    assert (system.held, system.numbers) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(system.logits(loaded.edited), before, strict=True))
    system.reset()  # nothing to forget is no error
    system.insert(edits_of(loaded, [0]))
    assert system.held == 1


@named("gpt2")
def test_edits_in_a_log_are_held_by_the_next_process(loaded: Loaded, editor: Any, tmp_path: Path) -> None:
    log = tmp_path / "edits.db"
    with EditableModel(loaded.model, loaded.tokenizer, editor=editor, log=log) as em:
        EditedSystem(em, "first").insert(edits_of(loaded))
        said = EditedSystem(em, "first").free(loaded.edited, [LONGEST] * len(loaded.edited))
    with EditableModel(loaded.model, loaded.tokenizer, editor=editor, log=log) as em:
        again = EditedSystem(em, "second")
        assert again.held == LEARNED
        assert again.free(loaded.edited, [LONGEST] * len(loaded.edited)) == said


@named("gpt2")
def test_an_edit_that_verification_would_refuse_is_taken_in(loaded: Loaded, editor: Any, attach: Attach) -> None:
    system = EditedSystem(attach(loaded, editor), "tried")
    contradiction = Edit(loaded.edited[0], loaded.targets[0], locality=[loaded.edited[0]])
    system.insert([contradiction])
    assert system.held == 1


@named("llama-gqa")
def test_numbers_are_those_of_the_patches(loaded: Loaded, attach: Attach) -> None:
    from editable.adapters import GRACE

    system = EditedSystem(attach(loaded, GRACE()), "grace")
    system.insert(edits_of(loaded, [0]))
    answer = len(loaded.wanted(0))
    assert system.numbers == 64 + answer * 64 + answer  # a key, a value per answer token, and those tokens
