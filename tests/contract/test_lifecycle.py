"""Attaching, using and closing leave the user's own model what it was, and copies of it plain."""

from __future__ import annotations

import copy
import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from editable import Edit
from editable.errors import EditableError, InputError, StateError, UnknownEditError
from tests.conftest import Attach
from tests.contract.harness import (
    LEARNED,
    Edited,
    edits_of,
    everything,
    hooks,
    named,
    once,
    only,
    routing,
    same_bits,
    surface,
)
from tests.families import FAMILIES, Loaded


class Counting:
    """A user's own forward hook."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1


def test_edits_add_no_hooks(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    before, outside = hooks(loaded.model), surface(loaded.model)
    assert before
    for _ in range(3):
        receipts = em.edit(edits_of(loaded))
        loaded.logits(loaded.edited)
        assert hooks(loaded.model) == before
        for receipt in receipts:
            em.rollback(receipt.id)
    assert hooks(loaded.model) == before
    assert surface(loaded.model) == outside


@once
@named("llama-gqa")
def test_a_hundred_edits_add_no_hooks(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    before = hooks(loaded.model)
    for _ in range(100):
        em.rollback(em.edit(edits_of(loaded, [1])[0]).id)
    assert hooks(loaded.model) == before


@once
def test_closing_takes_everything_off_and_leaves_the_users_hooks(loaded: Loaded, editor: Any, attach: Attach) -> None:
    early, late = Counting(), Counting()
    inner = list(loaded.model.children())[-1]
    inner.register_forward_hook(early)
    loaded.model.register_forward_pre_hook(early)
    before, outside = hooks(loaded.model), surface(loaded.model)
    em = attach(loaded, editor)
    handles = [inner.register_forward_hook(late), loaded.model.register_forward_hook(late)]
    em.edit(edits_of(loaded))
    early.calls = late.calls = 0
    loaded.logits(loaded.edited)
    assert (early.calls, late.calls) == (2, 2)
    em.close()
    loaded.logits(loaded.edited)
    assert (early.calls, late.calls) == (4, 4)
    for handle in handles:
        handle.remove()
    assert hooks(loaded.model) == before
    assert surface(loaded.model) == outside


@once
def test_closing_twice_is_closing_once(loaded: Loaded, editor: Any, attach: Attach) -> None:
    base = everything(loaded)
    em = attach(loaded, editor)
    em.edit(edits_of(loaded, [0]))
    em.close()
    em.close()
    assert same_bits(everything(loaded), base)


@once
@named("gpt2", "resnet")
def test_a_closed_model_refuses_changes(fresh: Edited) -> None:
    fresh.em.close()
    with pytest.raises(StateError, match="closed"):
        fresh.em.edit(edits_of(fresh.loaded, [LEARNED]))
    with pytest.raises(StateError, match="closed"):
        fresh.em.rollback(fresh.receipts[0].id)


@routing
def test_attaching_again_after_closing(loaded: Loaded, editor: Any, attach: Attach) -> None:
    base = everything(loaded)
    em = attach(loaded, editor)
    em.edit(edits_of(loaded, [0]))
    em.close()
    again = attach(loaded, editor)
    assert same_bits(everything(loaded), base)
    again.edit(edits_of(loaded, [1]))
    assert torch.equal(loaded.logits(loaded.edited[:1]), base[-len(loaded.edited) - len(loaded.unrelated)])
    assert not same_bits(everything(loaded), base)


@once
@named("llama-gqa", "vit")
def test_a_model_is_attached_to_once(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """Two runtimes over one model would each take the other's edits for the base."""
    em = attach(loaded, editor)
    before = hooks(loaded.model)
    with pytest.raises(StateError, match="attached"):
        attach(loaded, editor)
    assert hooks(loaded.model) == before
    em.edit(edits_of(loaded, [0]))
    assert not torch.equal(loaded.logits(loaded.edited)[0], loaded.family.load().logits(loaded.edited)[0])


@once
@named("gpt2", "vit")
def test_rolling_back_what_is_not_there(fresh: Edited) -> None:
    version, now = fresh.em.version, everything(fresh.loaded)
    with pytest.raises(UnknownEditError):
        fresh.em.rollback("never given out")
    fresh.em.rollback(fresh.receipts[0].id)
    with pytest.raises(UnknownEditError):
        fresh.em.rollback(fresh.receipts[0].id)
    assert fresh.em.version == version + 1
    assert not same_bits(everything(fresh.loaded), now)


@once
@named("gpt2", "llama-gqa", "bart", "bert")
def test_a_prompt_longer_than_the_context_is_refused(fresh: Edited) -> None:
    version, now = fresh.em.version, everything(fresh.loaded)
    with pytest.raises(InputError, match="128"):
        fresh.em.edit(Edit("kilo " * 200, fresh.loaded.targets[0]))
    assert fresh.em.version == version
    assert same_bits(everything(fresh.loaded), now)


def test_a_failing_edit_changes_nothing(fresh: Edited) -> None:
    """One impossible edit behind a good one: all or nothing."""
    version, now = fresh.em.version, everything(fresh.loaded)
    impossible = Edit(fresh.loaded.edited[LEARNED + 1], 3 if fresh.loaded.family.generates else "word")
    with pytest.raises(EditableError):
        fresh.em.edit([*edits_of(fresh.loaded, [LEARNED]), impossible])
    assert fresh.em.version == version
    assert same_bits(everything(fresh.loaded), now)


@once
def test_a_forward_that_raises_leaves_nothing_behind(edited: Edited) -> None:
    now = everything(edited.loaded)
    handle = list(edited.loaded.model.children())[-1].register_forward_hook(_fail)
    try:
        with pytest.raises(ZeroDivisionError):
            edited.loaded.logits(edited.mixed)
    finally:
        handle.remove()
    assert same_bits(everything(edited.loaded), now)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


@named("gpt2", "gemma3-sliding", "bart", "vit")
def test_a_part_called_on_its_own_is_the_base(edited: Edited) -> None:
    """Outside a call of the whole model no key token is known, so nothing is edited."""
    feed = edited.loaded.feed(edited.loaded.edited)
    with torch.no_grad():
        now, base = (loaded.model.base_model(**feed)[0] for loaded in (edited.loaded, edited.twin))
    assert torch.equal(now, base)


@once
def test_training_mode_changes_nothing(edited: Edited) -> None:
    """No mode flag decides over edits; these models have no dropout, and modules that compute otherwise stay."""
    now = everything(edited.loaded)
    try:
        edited.loaded.model.train()
        for module in edited.loaded.model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Dropout | nn.MultiheadAttention):
                module.eval()
        assert same_bits(everything(edited.loaded), now)
    finally:
        edited.loaded.model.eval()


# ------------------------------------------------------------------------------------------------- copies


def test_a_deep_copy_is_a_plain_base_model(fresh: Edited) -> None:
    base, now = everything(fresh.twin), everything(fresh.loaded)
    clone = replace(fresh.loaded, model=copy.deepcopy(fresh.loaded.model))
    assert same_bits(everything(clone), base)
    fresh.em.edit(edits_of(fresh.loaded, [LEARNED]))
    assert same_bits(everything(clone), base)
    fresh.em.close()
    assert same_bits(everything(clone), base)
    assert not same_bits(now, base)
    if clone.family.generates:
        assert clone.generate(clone.edited) == fresh.twin.generate(clone.edited)


@once
def test_a_pickled_model_is_a_plain_base_model(fresh: Edited) -> None:
    buffer = io.BytesIO()
    torch.save(fresh.loaded.model, buffer)
    buffer.seek(0)
    clone = replace(fresh.loaded, model=torch.load(buffer, weights_only=False))
    assert same_bits(everything(clone), everything(fresh.twin))
    if clone.family.generates:
        assert clone.generate(clone.edited) == fresh.twin.generate(clone.edited)
    assert not same_bits(everything(fresh.loaded), everything(fresh.twin))


@once
def test_copies_outlive_the_original(fresh: Edited, editor: Any, attach: Attach) -> None:
    """A copy can be attached to and edited like any other model."""
    clone = replace(fresh.loaded, model=copy.deepcopy(fresh.loaded.model))
    now = fresh.loaded.logits(fresh.loaded.edited)
    em = attach(clone, editor)
    em.edit(edits_of(clone, [LEARNED])[0])
    assert torch.equal(fresh.loaded.logits(fresh.loaded.edited), now)
    edited = clone.logits(clone.edited)[LEARNED]
    assert not torch.equal(edited, fresh.twin.logits(clone.edited)[LEARNED])


@once
def test_saving_the_model_writes_the_base(fresh: Edited, tmp_path: Path) -> None:
    if fresh.loaded.family.needs is not None:  # of a library whose models save no folder
        state = fresh.loaded.model.state_dict()
        assert list(state) == list(fresh.twin.model.state_dict())
        return
    for name, loaded in (("edited", fresh.loaded), ("base", fresh.twin)):
        loaded.model.save_pretrained(tmp_path / name)
    saved, base = (load_file(tmp_path / name / "model.safetensors") for name in ("edited", "base"))
    assert list(saved) == list(base)
    assert all(torch.equal(saved[name], base[name]) for name in base)
    assert {p.name for p in (tmp_path / "edited").iterdir()} == {p.name for p in (tmp_path / "base").iterdir()}
    config = "config.json"
    assert (tmp_path / "edited" / config).read_text() == (tmp_path / "base" / config).read_text()
    model, report = type(fresh.loaded.model).from_pretrained(tmp_path / "edited", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    for parameter in model.parameters():  # in the mapped file they may lie where kernels add up in another order
        parameter.data = parameter.data.clone()
    again = replace(fresh.loaded, model=model.eval())
    assert same_bits(everything(again), everything(fresh.twin))


# ------------------------------------------------------------------------------------------- several models


@routing
def test_two_models_at_once(fresh: Edited, editor: Any, attach: Attach) -> None:
    other = fresh.loaded.family.load(fresh.loaded.dtype)
    em = attach(other, editor)
    em.edit(edits_of(other, [LEARNED])[0])
    now, base = fresh.loaded.logits(fresh.loaded.edited), fresh.twin.logits(fresh.loaded.edited)
    mine = other.logits(other.edited)
    differs = [[not torch.equal(row, base[i]) for i, row in enumerate(logits)] for logits in (now, mine)]
    assert differs == [[True] * LEARNED + [False, False], [False] * LEARNED + [True, False]]
    with fresh.em.unedited():
        assert torch.equal(other.logits(other.edited), mine)
    fresh.em.close()
    assert torch.equal(other.logits(other.edited), mine)


@only("causal")
def test_an_edited_assistant_of_an_edited_model(edited: Edited, editor: Any, attach: Attach) -> None:
    """One model's forward inside another's generation, each with edits of its own on the same prompt."""
    first, second = FAMILIES[:2]
    assistant = (second if edited.loaded.family is first else first).load()
    em = attach(assistant, editor)
    prompt = edited.loaded.edited[0]
    em.edit(Edit(prompt, assistant.targets[2]))
    said = edited.loaded.generate([prompt], assistant_model=assistant.model)
    assert edited.loaded.is_answer(said[0], 0)
    other = assistant.generate([prompt], assistant_model=edited.loaded.model)
    assert assistant.is_answer(other[0], 2)


# -------------------------------------------------------------------------------------------------- refusals


@once
@only("causal")
@pytest.mark.timeout(120)
def test_continuous_batching_is_refused(edited: Edited) -> None:
    """It packs all requests into one row, where no row can be decided by itself."""
    prompts = [edited.loaded.tokenizer(text).input_ids for text in edited.loaded.edited]
    now = everything(edited.loaded)
    with pytest.raises(StateError, match="continuous batching"):
        edited.loaded.model.generate_batch(inputs=prompts, max_new_tokens=4)
    packed = torch.tensor([list(itertools.chain(*prompts))])
    lengths = torch.tensor([0, *map(len, prompts)]).cumsum(0).int()
    with pytest.raises(StateError, match="continuous batching"):
        edited.loaded.model(input_ids=packed, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
    assert same_bits(everything(edited.loaded), now)


@once
@named("gpt2")
def test_continuous_batching_is_the_models_own_again_after_closing(fresh: Edited) -> None:
    fresh.em.close()
    assert fresh.loaded.model.generate_batch.__func__ is type(fresh.loaded.model).generate_batch
