"""Synthetic edits: how many, how far apart, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from editable import Edit, EditableModel, Patch
from editable.adapters import GRACE
from editable.benchmarks import growth
from editable.scopes import SentenceScope
from tests.families import PROMPTS, TARGETS, Loaded
from tests.words import Words


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def em(tiny: Loaded) -> Iterator[EditableModel]:
    """A model that has learned two edits."""
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=GRACE())) as em:
        em.edit([Edit(prompt, target) for prompt, target in zip(PROMPTS[:2], TARGETS[:2], strict=True)])
        yield em


def test_growing_reaches_the_count_and_changes_no_answer(em: EditableModel, tiny: Loaded) -> None:
    inputs = [*tiny.edited, *tiny.unrelated]
    before = [tiny.logits([one]) for one in inputs]
    growth.grow(em, 1500, rng())  # more than one version's
    assert len(em.edits) == 1500
    assert em.version == 3
    for one, logits in zip(inputs, before, strict=True):
        assert torch.equal(tiny.logits([one]), logits)
    assert [em.ask(prompt) for prompt in PROMPTS[:2]] == list(TARGETS[:2])


def test_growing_to_what_is_there_does_nothing(em: EditableModel) -> None:
    growth.grow(em, 2, rng())
    assert (em.version, len(em.edits)) == (1, 2)


def test_no_scope_of_a_synthetic_edit_meets_another(em: EditableModel) -> None:
    growth.grow(em, 300, rng())
    editor, state = em.editors["grace"], growth.state_of(em)
    for edit in em.edits[2:]:
        assert editor.conflicts(edit.id, state) == ((), ())


def test_synthetic_edits_can_be_rolled_back(em: EditableModel) -> None:
    growth.grow(em, 10, rng())
    em.rollback([edit.id for edit in em.edits[2:]])
    assert len(em.edits) == 2
    assert em.ask(PROMPTS[0]) == TARGETS[0]


def test_there_must_be_something_to_grow_from(tiny: Loaded) -> None:
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=GRACE())) as em:
        with pytest.raises(ValueError, match="no edit was learned, expected at least one to make others from"):
            growth.grow(em, 1, rng())
        growth.grow(em, 0, rng())


def test_a_moved_patch_is_far_away_and_else_the_same() -> None:
    keys = torch.arange(64.0).reshape(2, 32) + 1
    tensors = {"keys": keys, "answer": torch.tensor([3, 4]), "radius": torch.tensor([0.5])}
    patch = Patch("a", tensors, {"radius": 0.25, "placed": [["add", -1, "inf", []]]})
    moved = growth.moved(patch, "b", rng())
    assert (moved.edit_id, dict(moved.meta)) == ("b", {"radius": 0.25})
    distance = (moved.tensors["keys"] - keys).norm(dim=1)
    torch.testing.assert_close(distance, growth.FAR * keys.norm(dim=1))
    assert moved.tensors["answer"].tolist() == [3, 4]
    assert moved.tensors["radius"].tolist() == [0.5]  # too short to have directions
    assert not growth.moved(patch, "b", rng(1)).tensors["keys"].equal(moved.tensors["keys"])
    assert growth.moved(patch, "b", rng()).tensors["keys"].equal(moved.tensors["keys"])


def test_a_patch_as_it_would_come_from_elsewhere(em: EditableModel) -> None:
    patch = growth.placed_anew(em, em.edits[1].id)
    assert patch.edit_id == em.edits[1].id
    assert "radius" in patch.meta
    assert "placed" not in patch.meta
    state = em.editors["grace"].insert([patch], GRACE().empty())
    assert len(state) == 1


def test_the_learning_copy_stands_over_the_same_weights(em: EditableModel) -> None:
    copy = growth.learning_copy(em)
    assert copy is not em.model
    assert next(copy.parameters()).data_ptr() == next(em.model.parameters()).data_ptr()


@dataclass
class Slotted:
    __slots__ = ("inside",)
    inside: Any


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda t: t, 40),
        (lambda t: (t, t[:5], [t.view(2, 5)]), 40),  # one storage
        (lambda t: {"a": t, "b": torch.zeros(3)}, 52),
        (lambda t: t[:2], 40),  # the spare room is held too
        (lambda t: Slotted(Slotted(t)), 40),
        (lambda _: ("text", 3, None, float), 0),
    ],
)
def test_bytes_of_what_a_state_reaches(make: Any, size: int) -> None:
    assert growth.tensor_bytes(make(torch.zeros(10))) == size


def test_bytes_of_an_editors_state_grow_with_its_edits(em: EditableModel) -> None:
    few = growth.tensor_bytes(growth.state_of(em))
    assert few > 0
    growth.grow(em, 200, rng())
    assert growth.tensor_bytes(growth.state_of(em)) > 200 * 64 * 4
    assert growth.tensor_bytes(GRACE().empty()) == 0


def test_moved_sentences_stay_directions_and_are_about_the_new_edit() -> None:
    phrases = torch.nn.functional.normalize(torch.randn(2, 3, 384), dim=-1).half()
    meta = {"texts": ["a", "b"], "subjects": ["x", "x"], "space": "default", "placed": ["c"]}
    moved = growth.moved(Patch("a", {"phrases": phrases}, meta), "new", rng())
    assert moved.meta == {"texts": ["a new", "b new"], "subjects": ["new", "new"], "space": "default", "placed": []}
    found = moved.tensors["phrases"].float()
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3), atol=1e-2, rtol=0)
    assert float((found * phrases).sum(dim=-1).abs().max()) < 0.4  # an eighth, beside what is drawn


def test_growing_a_memory_of_sentences_changes_no_answer(tiny: Loaded) -> None:
    scope = SentenceScope(Words())
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=GRACE(scope=scope))) as em:
        em.edit([Edit(prompt, target) for prompt, target in zip(PROMPTS[:2], TARGETS[:2], strict=True)])
        growth.grow(em, 40, rng())
        assert [em.ask(prompt) for prompt in PROMPTS[:2]] == list(TARGETS[:2])
        assert len(em.edits) == 40
        assert growth.state_of(em).routes.book.lost.view.tolist() == []
