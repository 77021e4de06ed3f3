"""LoRA: groups learned jointly, rows served by name, and what happens when edits join, leave and contradict."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editable import Edit, EditableModel
from editable.adapters import GRACE, LoRA
from editable.editor import BASE
from editable.errors import InputError, MissingPackageError, SiteError, VerificationError
from editable.scopes import BallScope
from editable.site import block_paths
from tests.conftest import Attach
from tests.contract.harness import ByHand, edits_of, named
from tests.families import LONGEST, Loaded

LLAMA = named("llama-gqa")
GENERATING = named("llama-gqa", "gpt2", "t5", "bart")


def tenants(loaded: Loaded, count: int = 3) -> list[Edit]:
    """The same prompt with another answer for each namespace."""
    return [Edit(loaded.edited[0], loaded.targets[i], namespace=f"tenant{i}") for i in range(count)]


def said(loaded: Loaded, rows: list[Any], adapters: Any, **options: Any) -> list[str]:
    tokens = loaded.generate(rows, adapters=adapters, **options)
    return [loaded.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]


@torch.no_grad()
def logits(loaded: Loaded, rows: list[Any], adapters: Any = None) -> Tensor:
    feed = loaded.feed(rows)
    output: Tensor = loaded.model(**feed, **({} if adapters is None else {"adapters": adapters})).logits
    return output


# ------------------------------------------------------------------------------------------------------- by name


@GENERATING
def test_each_row_is_served_by_the_adapter_it_names(loaded: Loaded, attach: Attach) -> None:
    base = loaded.generate(loaded.edited[:1])[0]
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded))
    names = ["tenant1", BASE, "tenant0", "tenant2"]
    wanted = [loaded.targets[1], loaded.tokenizer.decode(base, skip_special_tokens=True), *loaded.targets[0:3:2]]
    rows = loaded.edited[:1] * 4
    for options in ({}, {"use_cache": False}, {"num_beams": 2}):
        found = said(loaded, rows, names, **options)
        assert [found[i] for i in (0, 2, 3)] == [wanted[i] for i in (0, 2, 3)], options
    assert said(loaded, rows, names)[1] == wanted[1]
    assert loaded.generate(rows[:1])[0] == base, "no edit is in the namespace of rows that ask for none"


@LLAMA
def test_base_rows_keep_every_bit_beside_others(loaded: Loaded, attach: Attach) -> None:
    rows = loaded.edited[:3]
    base = logits(loaded, rows)
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded, 2))
    found = logits(loaded, rows, ["tenant0", BASE, "tenant1"])
    assert [torch.equal(now, before) for now, before in zip(found, base, strict=True)] == [False, True, False]
    assert torch.equal(logits(loaded, rows, [BASE] * 3), base)
    assert torch.equal(logits(loaded, rows, BASE), base)


@LLAMA
def test_a_mixed_batch_is_each_row_alone(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded))
    rows, names = loaded.edited[:1] * 3, ["tenant2", "tenant0", "tenant1"]
    together = logits(loaded, rows, names)
    alone = torch.cat([logits(loaded, rows[:1], [name]) for name in names])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@LLAMA
def test_a_cache_carries_the_names(loaded: Loaded, attach: Attach) -> None:
    """In a loop of the caller's own, which names them once, at prefill; rows that move take theirs along."""
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded, 2))
    hand = ByHand.__new__(ByHand)
    rows = loaded.edited[:1] * 2
    feed = loaded.feed(rows)
    out = loaded.model(**feed, use_cache=True, adapters=["tenant1", "tenant0"])
    hand.loaded, hand.mask, hand.cache, hand.encoded = loaded, feed["attention_mask"], out.past_key_values, None
    hand.tokens = out.logits[:, -1:].argmax(-1)
    hand.cache.batch_select_indices(torch.tensor([1, 0]))
    found = hand.select(torch.tensor([1, 0])).step(LONGEST - 1).said
    assert [loaded.tokenizer.decode(row, skip_special_tokens=True) for row in found] == list(loaded.targets[:2])


@LLAMA
def test_names_that_do_not_fit_are_refused(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded, 2))
    with pytest.raises(InputError, match=r"names \['legal'\], expected for each row one of __base__, tenant0, tenant1"):
        loaded.generate(loaded.edited[:1], adapters=["legal"])
    with pytest.raises(InputError, match=r"names \['legal'\]"):
        logits(loaded, loaded.edited[:1], ["legal"])
    with pytest.raises(InputError, match="2 names for 3 rows"):
        logits(loaded, loaded.edited[:3], ["tenant0", "tenant1"])
    em.close()
    attach(loaded, GRACE())
    with pytest.raises(InputError, match=r"one of __base__; .* with the editor LoRA\(\)"):
        logits(loaded, loaded.edited[:1], ["tenant0"])


@LLAMA
def test_threads_with_adapters_of_their_own_say_what_one_thread_says(loaded: Loaded, attach: Attach) -> None:
    """A thousand forwards in three threads, each with other names, to the bit."""
    em = attach(loaded, LoRA())
    em.edit(tenants(loaded))
    feed = loaded.feed(loaded.edited[:1] * 2)
    mixes = [["tenant0", "tenant1"], ["tenant2", BASE], ["tenant1", "tenant1"]]

    @torch.no_grad()
    def call(number: int) -> Tensor:
        output: Tensor = loaded.model(**feed, adapters=mixes[number % 3]).logits
        return output

    alone = [call(number) for number in range(3)]
    assert not torch.equal(alone[0], alone[1])
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(call, range(1000)))
    assert all(torch.equal(output, alone[number % 3]) for number, output in enumerate(together))


# -------------------------------------------------------------------------------------------- learned as a group


@LLAMA
def test_an_edit_that_joins_leaves_the_earlier_ones_right(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    receipts = [em.edit(edit) for edit in edits_of(loaded)]
    assert [em.ask(prompt) for prompt in loaded.edited[:4]] == list(loaded.targets[:4])
    editor, state = LoRA(), em.state("lora")
    assert editor.unit(receipts[0].id, state) == {receipt.id for receipt in receipts}
    assert len(state.adapters) == 1, "what was learned again from all of them takes the place of what it began with"


@LLAMA
def test_rolling_back_one_learns_the_others_again(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    em = attach(loaded, LoRA(), log=tmp_path / "log.db")
    receipts = em.edit(edits_of(loaded))
    em.rollback(receipts[1].id)
    assert [em.ask(loaded.edited[i]) for i in (0, 2, 3)] == [loaded.targets[i] for i in (0, 2, 3)]
    now = loaded.logits(loaded.edited)
    em.close()
    em = attach(loaded, LoRA(), log=tmp_path / "log.db")
    assert torch.equal(loaded.logits(loaded.edited), now)
    em.rollback([receipts[i].id for i in (0, 2, 3)])
    assert len(em.edits) == 0


@LLAMA
def test_namespaces_are_rolled_back_by_themselves(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    first, second = em.edit(tenants(loaded, 2))
    now = logits(loaded, loaded.edited, "tenant1")
    em.rollback(first.id)
    assert torch.equal(logits(loaded, loaded.edited, "tenant1"), now)
    assert em.state("lora").names() == {"tenant1"} and [edit.id for edit in em.edits] == [second.id]


@LLAMA
def test_of_two_answers_to_one_prompt_in_a_list_the_later_counts(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    first, second = em.edit([Edit(loaded.edited[0], loaded.targets[i]) for i in range(2)])
    assert second.superseded == (first.id,) and em.ask(loaded.edited[0]) == loaded.targets[1]
    em.rollback(second.id)
    assert em.ask(loaded.edited[0]) == loaded.targets[0]


@LLAMA
def test_a_pack_that_does_not_know_the_edits_here_says_whose_place_it_takes(
    loaded: Loaded, attach: Attach, tmp_path: Path
) -> None:
    em = attach(loaded, LoRA())
    em.edit(edits_of(loaded, [0]))
    em.export(tmp_path / "pack")
    em.close()
    em = attach(loaded, LoRA())
    mine = em.edit(edits_of(loaded, [1])[0])
    before = loaded.logits(loaded.edited)
    em.load(tmp_path / "pack")
    assert em.ask(loaded.edited[0]) == loaded.targets[0]
    loaded_id = next(edit.id for edit in em.edits if edit.id != mine.id)
    assert em.edits[mine.id].superseded_by == loaded_id
    em.rollback(loaded_id)
    assert torch.equal(loaded.logits(loaded.edited), before)


@LLAMA
def test_locality_inputs_cannot_be_kept_by_an_adapter_that_is_always_on(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, LoRA())
    edit = Edit(loaded.edited[0], loaded.targets[0], locality=loaded.unrelated[:1])
    with pytest.raises(VerificationError, match=r"locality 0\.00"):
        em.edit(edit)
    named_edit = Edit(loaded.edited[0], loaded.targets[0], locality=loaded.unrelated[:1], namespace="legal")
    assert em.edit(named_edit).verified.locality == 1


# ------------------------------------------------------------------------------------------------------- a scope


@LLAMA
def test_with_a_scope_rows_outside_keep_every_bit(loaded: Loaded, attach: Attach) -> None:
    base = loaded.logits([*loaded.unrelated, *loaded.edited[2:]])
    editor = LoRA(scope=BallScope())
    assert editor.routes and not LoRA().routes
    em = attach(loaded, editor)
    receipts = em.edit(edits_of(loaded, [0, 1]))
    assert [em.ask(prompt) for prompt in loaded.edited[:2]] == list(loaded.targets[:2])
    assert torch.equal(loaded.logits([*loaded.unrelated, *loaded.edited[2:]]), base)
    assert editor.unit(receipts[0].id, em.state("lora")) == {receipt.id for receipt in receipts}
    em.rollback(receipts[0].id)
    assert em.ask(loaded.edited[1]) == loaded.targets[1]
    assert em.edits[receipts[1].id].relearned == em.version


# ------------------------------------------------------------------------------------------------- configuration


@LLAMA
def test_settings_of_peft_are_taken(loaded: Loaded, attach: Attach) -> None:
    """rsLoRA divides alpha by the square root of the rank."""
    for settings, scaling in (({}, 16 / 4), ({"use_rslora": True}, 16 / 4**0.5)):
        em = attach(loaded, LoRA(rank=4, settings=settings))
        em.edit(edits_of(loaded, [0]))
        (adapter,) = em.state("lora").adapters
        assert {delta.scaling for delta in adapter.deltas.values()} == {scaling}
        assert {delta.rank for delta in adapter.deltas.values()} == {4}
        em.close()


@LLAMA
def test_the_default_targets_are_all_layers_of_the_last_blocks(loaded: Loaded) -> None:
    late = block_paths(loaded.model)[-2:]
    paths = list(LoRA().sites(loaded.model))
    assert len(paths) == 14 and all(path.startswith(tuple(late)) for path in paths)


def test_settings_that_cannot_be_served_exactly_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"use_dora=True cannot be served exactly: its magnitude rescales W \+ B A"):
        LoRA(settings={"use_dora": True})
    with pytest.raises(InputError, match="init_lora_weights='pissa' cannot be served exactly: it rewrites the base"):
        LoRA(settings={"init_lora_weights": "pissa"})


@LLAMA
def test_targets_that_are_not_there_are_refused(loaded: Loaded, attach: Attach) -> None:
    with pytest.raises(SiteError, match=r"down_prj.*nearest are.*down_proj"):
        attach(loaded, LoRA(targets=("down_prj",)))
    with pytest.raises(SiteError, match=r"mlp' is a LlamaMLP, expected a linear layer"):
        attach(loaded, LoRA(targets=("mlp",)))


@named("torchvision-vit")
def test_layers_that_are_never_called_are_refused(loaded: Loaded, attach: Attach) -> None:
    with pytest.raises(SiteError, match=r"self_attention.out_proj' is part of a MultiheadAttention, which uses its"):
        attach(loaded, LoRA(targets=("out_proj",)))


@named("torchvision-resnet18")
def test_convolutions_are_refused(loaded: Loaded, attach: Attach) -> None:
    with pytest.raises(SiteError, match=r"Module 'layer4.1.conv2' is a Conv2d, expected a linear layer; name another"):
        attach(loaded, LoRA(targets=("layer4.1.conv2",)))


@named("timm-convnext", "timm-vit", "torchvision-vit")
@pytest.mark.parametrize("scope", [None, BallScope()], ids=["always", "ball"])
def test_linear_layers_inside_an_image_model(loaded: Loaded, attach: Attach, scope: BallScope | None) -> None:
    """A delta of maps with the features last, and of tokens: what is added is x A^T B^T s, computed here."""
    layer = [n for n, m in loaded.model.named_modules() if isinstance(m, torch.nn.Linear) and "mlp" in n][-1]
    seen: list[tuple[Tensor, Tensor]] = []
    em = attach(loaded, LoRA(targets=(layer,), scope=scope))
    em.edit(edits_of(loaded))
    assert loaded.answers(loaded.edited[:4]).argmax(-1).tolist() == list(loaded.targets[:4])
    module = loaded.model.get_submodule(layer)
    module.register_forward_hook(lambda _m, args, output: seen.append((args[0], output)))
    loaded.logits(loaded.edited[:1])
    ((given, found),) = seen
    state = em.state("lora")
    stacks = state.stacks[layer] if scope else None
    if stacks is not None:
        down, up, scaling = (
            stacks.down.at(torch.tensor([0]))[0],
            stacks.up.at(torch.tensor([0]))[0],
            stacks.scaling.view[0],
        )
    else:
        delta = state.serving["default"].deltas[layer]
        down, up, scaling = delta.down, delta.up, delta.scaling
    wanted = torch.nn.functional.linear(given, module.weight, module.bias) + given @ down.T @ up.T * scaling
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, torch.nn.functional.linear(given, module.weight, module.bias))


@LLAMA
def test_without_peft_the_error_says_what_to_install(
    loaded: Loaded, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    em: EditableModel = attach(loaded, LoRA())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'editable\[peft\]'"):
        em.edit(edits_of(loaded, [0]))
    assert em.version == 0
