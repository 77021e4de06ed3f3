"""Where no edit applies, every bit is the base model's: none, no hit, rolled back, switched off, closed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.conftest import Attach
from tests.contract.harness import (
    BOTH_SIDES,
    LEARNED,
    Edited,
    both_dtypes,
    edits_of,
    everything,
    only,
    parameters,
    routing,
    same_bits,
)
from tests.families import Loaded


@both_dtypes
def test_attaching_changes_no_bit(loaded: Loaded, editor: Any, attach: Attach) -> None:
    before = everything(loaded)
    attach(loaded, editor)
    assert same_bits(everything(loaded), before)


@only("causal", "seq2seq")
@pytest.mark.parametrize("output", ["logits", "scores", "hidden_states", "attentions"])
def test_attaching_changes_no_bit_of_a_generation(loaded: Loaded, editor: Any, attach: Attach, output: str) -> None:
    before = _generation(loaded, output)
    attach(loaded, editor)
    assert same_bits(_generation(loaded, output), before)


def _generation(loaded: Loaded, output: str) -> list[torch.Tensor]:
    """Tokens of a generation, and one of the extra outputs it can return, flattened."""
    wanted = {f"output_{output}": True, "return_dict_in_generate": True}
    if output == "attentions":
        loaded.model.set_attn_implementation("eager")
    out = loaded.model.generate(**loaded.encode(loaded.edited), max_new_tokens=4, **wanted)
    values = out[output] if output in out else out[f"decoder_{output}"]
    return [out.sequences, *torch.utils._pytree.tree_leaves(values)]


@routing
@both_dtypes
def test_no_hit_changes_no_bit(edited: Edited) -> None:
    loaded, twin = edited.loaded, edited.twin
    rows = [*loaded.unrelated, *loaded.edited[LEARNED:]]
    for side in BOTH_SIDES if loaded.tokenizer is not None else (loaded.side,):
        assert torch.equal(loaded.logits(rows, side), twin.logits(rows, side))
    for row in rows:
        assert torch.equal(loaded.logits([row]), twin.logits([row]))


@routing
@both_dtypes
def test_rows_without_a_hit_keep_every_bit_beside_rows_with_one(edited: Edited) -> None:
    for side in edited.loaded.family.sides or (edited.loaded.side,):
        now = edited.loaded.logits(edited.mixed, side)
        base = edited.twin.logits(edited.mixed, side)
        for row in range(len(edited.mixed)):
            assert torch.equal(now[row], base[row]) == (edited.index(row) is None), f"row {row}, {side}"


@routing
@both_dtypes
def test_rolled_back_in_random_order(loaded: Loaded, editor: Any, attach: Attach) -> None:
    before = everything(loaded)
    base = [loaded.logits([row]) for row in loaded.edited]
    em = attach(loaded, editor)
    receipts = em.edit(edits_of(loaded))
    live = set(range(LEARNED))
    for index in random.Random(1).sample(range(LEARNED), LEARNED):
        em.rollback(receipts[index].id)
        live.remove(index)
        differs = {i for i, row in enumerate(loaded.edited) if not torch.equal(loaded.logits([row]), base[i])}
        assert differs == live
    assert same_bits(everything(loaded), before)


@both_dtypes
def test_switched_off_for_a_call_and_on_again(fresh: Edited) -> None:
    base, with_edits = everything(fresh.twin), everything(fresh.loaded)
    with fresh.em.unedited():
        assert same_bits(everything(fresh.loaded), base)
    assert same_bits(everything(fresh.loaded), with_edits)
    assert not same_bits(with_edits, base)


@both_dtypes
def test_closed(fresh: Edited) -> None:
    base = everything(fresh.twin)
    assert not same_bits(everything(fresh.loaded), base)
    fresh.em.close()
    assert same_bits(everything(fresh.loaded), base)


@both_dtypes
def test_base_parameters_stay_where_and_what_they_are(loaded: Loaded, editor: Any, attach: Attach) -> None:
    for position, parameter in enumerate(loaded.model.parameters()):
        parameter.requires_grad_(position % 2 == 0)
    before, names = parameters(loaded.model), list(loaded.model.state_dict())
    modes = [module.training for module in loaded.model.modules()]
    em = attach(loaded, editor)
    receipts = em.edit(edits_of(loaded))
    loaded.logits(loaded.edited)
    em.rollback(receipts[0].id)
    assert parameters(loaded.model) == before
    em.close()
    assert parameters(loaded.model) == before
    assert list(loaded.model.state_dict()) == names
    assert [module.training for module in loaded.model.modules()] == modes


def test_editing_leaves_the_global_random_state_alone(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    em.edit(edits_of(loaded, [0]))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@routing
def test_gradients_through_an_unedited_row_are_the_base_models(edited: Edited) -> None:
    row = edited.loaded.unrelated[:1]
    gradients = [_gradients(loaded, row) for loaded in (edited.loaded, edited.twin)]
    assert gradients[0] and same_bits(*gradients)


def _gradients(loaded: Loaded, rows: list[Any]) -> list[torch.Tensor]:
    output = loaded.model(**loaded.feed(rows))
    logits = output if isinstance(output, torch.Tensor) else output.logits
    wanted = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logits.square().mean(), wanted, allow_unused=True)
    return [gradient for gradient in gradients if gradient is not None]
