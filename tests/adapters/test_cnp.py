"""CNP: its formulas by hand; that order and removal leave no trace; what an insertion costs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editable import Edit, EditableModel
from editable.adapters import CNP
from editable.adapters.cnp import GRID, attention, directions, moved, raised
from editable.edit import Patch
from editable.editor import Call
from editable.entries import Entries
from editable.errors import InputError, VerificationError
from editable.metric import Course
from editable.snapshot import Snapshot
from tests.conftest import Attach
from tests.contract.harness import edits_of, everything, same_bits
from tests.families import FAMILIES, Loaded

CONDITIONS = ("logits", "additive", "film")


def family(name: str) -> Loaded:
    return next(one for one in FAMILIES if one.name == name).load()


# Three edits by hand: two labels; features are two wide, and every key reaches 2.
A, B, C = (0.0, 0.0), (3.0, 0.0), (0.0, 9.0)
RADIUS = 2.0


def patch(edit_id: str, key: tuple[float, float], label: int, *value: float) -> Patch:
    tensors = {"keys": torch.tensor([key]), "answer": torch.tensor([label]), "values": torch.tensor([value])}
    return Patch(edit_id, tensors, {"radius": RADIUS, "placed": []})


def serve(editor: CNP, state: Entries, features: Tensor, rows: Tensor) -> Tensor:
    """Both roles, as the runtime calls them in a classifier: features (batch, 2), rows (batch, width)."""
    call = Call(Snapshot(), editor="cnp", role="features")
    same = editor.apply(call, features[:, None], state)
    assert torch.equal(same, features[:, None])
    call.role = "label"
    return editor.apply(call, rows[:, None], state)[:, 0]


def state_of(editor: CNP, *patches: Patch) -> Entries:
    return editor.insert(patches, editor.empty())


# ----------------------------------------------------------------------------------------------------- formulas


def test_attention_by_hand() -> None:
    """The nearest weighs 1; one that is two widths further squared apart weighs exp(-(4 - 1) / 2)."""
    apart = torch.tensor([[1.0, 2.0, math.inf], [0.0, 20.0, 1.0]])
    weights = attention(apart, torch.tensor([1.0, 1.0, 2.0]))
    assert weights.dtype == torch.float64
    assert weights[0].tolist() == pytest.approx([1.0, math.exp(-1.5), 0.0], abs=GRID)
    assert weights[1].tolist() == pytest.approx([1.0, 0.0, math.exp(-0.125)], abs=GRID)
    assert torch.equal(weights, (weights / GRID).round() * GRID)


def test_raised_is_a_mixture_with_the_model() -> None:
    """With three quarters of what is said left to labels 0 and 2 in shares of .8 and .2."""
    logits, share = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.8, 0.0, 0.2])
    base = logits.softmax(0)
    found = raised(logits, share, logits.logsumexp(0, True), 0.75)
    torch.testing.assert_close(found.softmax(0), 0.25 * base + 0.75 * share)
    assert found[1] == logits[1], "a label without a share keeps its logit"


def test_moved_adds_or_scales_and_shifts() -> None:
    rows = torch.tensor([1.0, 2.0])
    assert moved(rows, torch.tensor([0.5, -1.0])).tolist() == [1.5, 1.0]
    assert moved(rows, torch.tensor([0.5, -1.0, 10.0, 20.0])).tolist() == [11.5, 20.0]


def test_directions_raise_one_logit_alone() -> None:
    head = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    gained = head @ directions(head, torch.arange(5)).T  # (labels, moves)
    gained = gained - (gained.sum(dim=0) - gained.diagonal()) / 4
    assert bool((gained.diagonal() > 0.1).all())
    others = gained[~torch.eye(5, dtype=torch.bool)]
    assert float(others.abs().max()) < 0.02 * float(gained.diagonal().min())


def test_logits_by_hand() -> None:
    """Halfway between A and B, and a bit: weights 1 and exp(-(d² - d'²) / 2w²)."""
    editor = CNP(bandwidth=1.0, probability=0.9)
    state = state_of(editor, *(Patch(p.edit_id, {**p.tensors, "values": torch.empty(1, 0)}, p.meta) for p in (
        patch("a", A, 1), patch("b", B, 2)
    )))  # fmt: skip
    features, logits = torch.tensor([(1.0, 0.0), (0.0, 2.1), (2.0, 0.0)]), torch.tensor([[3.0, 2.0, 1.0]]).expand(3, -1)
    out = serve(editor, state, features, logits)
    weight = math.exp(-(2.0**2 - 1.0**2) / (2 * RADIUS**2))
    share = torch.tensor([[0, 1, weight], [0, weight, 1]]) / (1 + weight)
    torch.testing.assert_close(out[[0, 2]].softmax(1), 0.1 * logits[:2].softmax(1) + 0.9 * share, atol=1e-5, rtol=0)
    assert torch.equal(out[1], logits[1]), "outside every key's reach"


def test_additive_and_film_by_hand() -> None:
    additive, film = CNP(condition="additive", bandwidth=1.0), CNP(condition="film", bandwidth=1.0)
    features = torch.tensor([(1.5, 0.0), (0.0, 9.5)])
    state = state_of(additive, patch("a", A, 1, 1.0, 2.0), patch("b", B, 2, 3.0, -4.0), patch("c", C, 0, 0.5, 0.25))
    wanted = torch.tensor([[1.5 + 2.0, -1.0], [0.5, 9.75]])
    torch.testing.assert_close(serve(additive, state, features, features), wanted, atol=1e-4, rtol=0)
    wide = state_of(film, patch("a", A, 1, 1, 0, 0, 2.0), patch("b", B, 2, 0, 0, 4.0, 0), patch("c", C, 0, 1, 1, 0, 0))
    wanted = torch.tensor([[1.5 * 1.5 + 2.0, 1.0], [0.0, 19.0]])
    torch.testing.assert_close(serve(film, wide, features, features), wanted, atol=1e-3, rtol=0)


def test_a_plain_mean_blurs() -> None:
    """All three representations weigh the same, wherever the row is; without a gate every row gets it."""
    editor = CNP(condition="additive", aggregate="mean", gate=False)
    assert not editor.routes
    state = state_of(editor, patch("a", A, 1, 3.0, 0.0), patch("b", B, 2, 0.0, 6.0), patch("c", C, 0, 3.0, 3.0))
    features = torch.tensor([(0.0, 0.0), (500.0, -7.0)])
    assert (serve(editor, state, features, features) - features).tolist() == [[2.0, 3.0]] * 2


def test_no_edit_gives_the_very_same_rows() -> None:
    rows = torch.randn(2, 1, 4)
    for condition in CONDITIONS:
        editor = CNP(condition=condition)  # type: ignore[arg-type]
        assert editor.apply(Call(Snapshot(), role="label"), rows, editor.empty()) is rows


# -------------------------------------------------------------------------------------- order and removal, exactly


def _patches(count: int, width: int) -> list[Patch]:
    """Keys near one another, so that many take part in every sum; representations as an editor rounds them."""
    draw = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        key = (torch.randn(1, 2, generator=draw)[0]).tolist()
        value = (torch.randn(width, generator=draw) / GRID).round() * GRID
        found.append(patch(f"edit {number}", (key[0], key[1]), number % 3, *value.tolist()))
    return found


@pytest.mark.parametrize(("condition", "width"), [("logits", 0), ("additive", 2), ("film", 4)])
@pytest.mark.parametrize("aggregate", ["attention", "mean"])
def test_any_order_and_any_removal_leave_the_same_bits(condition: Any, width: int, aggregate: Any) -> None:
    editor = CNP(condition=condition, aggregate=aggregate, bandwidth=1.0)
    patches, draw = _patches(9, width), torch.Generator().manual_seed(5)
    features = torch.randn(20, 2, generator=draw)
    rows = torch.randn(20, 3, generator=draw) if condition == "logits" else features
    wanted = serve(editor, state_of(editor, *patches[:4]), features, rows)
    assert not torch.equal(wanted, rows)
    for order in itertools.permutations(range(4)):
        assert torch.equal(serve(editor, state_of(editor, *(patches[i] for i in order)), features, rows), wanted)
    for turn in range(20):
        mixed = torch.randperm(9, generator=draw).tolist()
        state = state_of(editor, *(patches[i] for i in mixed))
        assert not torch.equal(serve(editor, state, features, rows), wanted), turn
        state = editor.forget(frozenset(f"edit {i}" for i in range(4, 9)), state)
        assert len(state) == 4
        assert torch.equal(serve(editor, state, features, rows), wanted), turn


@pytest.mark.parametrize("name", ["llama-gqa", "t5", "bert", "resnet"])
def test_edits_learned_in_any_order_are_one_model(name: str, attach: Attach) -> None:
    """Learned one by one, last first, with one in between that is taken back."""
    first, second = family(name), family(name)
    forward, backward = attach(first, CNP()), attach(second, CNP())
    for edit in edits_of(first, [0, 1, 2]):
        forward.edit(edit)
    for index in (2, 3, 1, 0):
        receipt = backward.edit(edits_of(second, [index])[0])
        if index == 3:
            gone = receipt.id
    backward.rollback(gone)
    assert same_bits(everything(first), everything(second))


# ------------------------------------------------------------------------------------------- what an insertion costs


class Forwards:
    """Counts forwards of a module, and whether gradients were asked for in one."""

    def __init__(self) -> None:
        self.count = 0
        self.gradients = False

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        self.count += 1
        self.gradients |= torch.is_grad_enabled()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", ["llama-gqa", "bert", "resnet"])
def test_an_insertion_is_at_most_two_forwards_without_gradients(name: str, condition: Any, attach: Attach) -> None:
    """One to encode, one to verify; what the first edit measures of the model (how far inputs lie apart) is done.

    What acts behind all blocks of a model that writes text is verified without running them again.
    """
    loaded, counted = family(name), Forwards()
    early = next(m for m in loaded.model.modules() if isinstance(m, nn.Linear | nn.Conv2d))  # in the first block
    early.register_forward_pre_hook(counted)  # the user's own hook goes along to the shadow
    em = attach(loaded, CNP(condition=condition))
    em.edit(edits_of(loaded, [0])[0], verify=False)
    counted.count = 0
    em.edit(edits_of(loaded, [1, 2]), verify=False)
    assert counted.count == (1 if name == "llama-gqa" and condition != "logits" else 2)
    assert not counted.gradients


# ------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("condition", ["additive", "film"])
@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_an_activation_is_moved_where_the_head_reads_the_label(name: str, condition: Any, attach: Attach) -> None:
    loaded = family(name)
    em = attach(loaded, CNP(condition=condition))
    before = loaded.logits(loaded.unrelated)
    em.edit(edits_of(loaded))
    assert loaded.answers(loaded.edited[:4]).argmax(-1).tolist() == list(loaded.targets[:4])
    assert torch.equal(loaded.logits(loaded.unrelated), before)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bart"])
def test_a_text_says_every_token_of_its_answer(name: str, attach: Attach) -> None:
    loaded = family(name)
    em = attach(loaded, CNP(condition="additive"))
    right = 0
    for index in range(4):
        try:
            em.edit(edits_of(loaded, [index])[0])
        except VerificationError:  # no move towards the token's row makes every one of these random heads say it
            continue
        assert loaded.is_answer(loaded.generate([loaded.edited[index]])[0], index)
        right += 1
    assert right > 0


def test_a_text_has_no_mean_answer(attach: Attach) -> None:
    with pytest.raises(InputError, match="aggregate is 'mean' and LlamaForCausalLM writes text, expected 'attention'"):
        attach(family("llama-gqa"), CNP(aggregate="mean"))


def test_edits_too_near_one_another_blur(attach: Attach) -> None:
    """Three pictures that differ by a hair: two outvote the third where the attention is as wide as the radius."""
    loaded = family("resnet")
    em, image = attach(loaded, CNP(bandwidth=50.0)), loaded.edited[0]
    draw = torch.Generator().manual_seed(0)
    near = [image + 0.3 * torch.randn(image.shape, generator=draw) for _ in range(2)]
    em.edit([Edit(one, 1) for one in near])
    with pytest.raises(VerificationError, match="1 of 1 edits failed"):
        em.edit(Edit(image, 2))
    assert len(em.edits) == 2


# ------------------------------------------------------------------------------------------------------- fitting


@pytest.fixture
def pictures() -> tuple[Loaded, list[Edit]]:
    """A tiny network, and images whose colour says to which of others they are alike."""
    loaded, draw = family("resnet"), torch.Generator().manual_seed(0)
    edits = []
    for number in range(32):
        colours = torch.randn(2, 3, 1, 1, generator=draw)
        image, same, other = (c + 0.3 * torch.randn(3, 32, 32, generator=draw) for c in colours[[0, 0, 1]])
        edits.append(Edit(image, number % 7, [same], [other]))
    return loaded, edits


def test_a_fitted_one_compares_in_its_own_space(
    pictures: tuple[Loaded, list[Edit]], attach: Attach, tmp_path: Path
) -> None:
    loaded, edits = pictures
    path = tmp_path / "metric.safetensors"
    fitted = CNP().fit(loaded.model, None, path, edits[:24], Course(steps=100, rate=3e-2))
    assert fitted.path == path and fitted.edits == 3
    before = loaded.answers([edit.prompt for edit in edits]).argmax(-1)
    em = attach(loaded, CNP(weights=str(path)))
    targets = [(int(label) + 1) % 7 for label in before[24:]]
    receipts = em.edit([Edit(edit.prompt, target) for edit, target in zip(edits[24:], targets, strict=True)])
    assert loaded.answers([edit.prompt for edit in edits[24:]]).argmax(-1).tolist() == targets
    found = em.explain(edits[24].prompt).found[0].considered
    assert found.edit_id == receipts[0].id and found.needed == 1.0
    assert found.score == pytest.approx(0, abs=1e-2)
    assert em.state("cnp").routes.book.keys.view.shape[1] == 64


def test_weights_of_another_base_are_refused(
    pictures: tuple[Loaded, list[Edit]], attach: Attach, tmp_path: Path
) -> None:
    loaded, edits = pictures
    path = tmp_path / "metric.safetensors"
    CNP().fit(loaded.model, None, path, edits[:24], Course(steps=1))
    other = family("resnet")
    next(other.model.parameters()).data.view(-1)[0] += 1
    em, before = attach(other, CNP(weights=str(path))), everything(other)
    with pytest.raises(InputError, match=r"fitted for base .*, expected .*; fit it again for this ResNet"):
        em.edit(edits_of(other, [0]))
    assert em.version == 0 and same_bits(everything(other), before)


def test_fitting_leaves_the_model_and_the_random_state_alone(
    pictures: tuple[Loaded, list[Edit]], tmp_path: Path
) -> None:
    loaded, edits = pictures
    before, state, grads = everything(loaded), torch.get_rng_state(), torch.is_grad_enabled()
    CNP().fit(loaded.model, None, tmp_path / "metric", edits[:16], Course(steps=2))
    assert same_bits(everything(loaded), before)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled() == grads
    assert not any(parameter.grad is not None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_inputs_are_compared_where_one_says(condition: Any) -> None:
    """At an earlier layer of a perceptron; what is conditioned stays the head."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    before = model(images)
    em = EditableModel(model, editor=CNP(condition=condition, site="1"))
    try:
        targets = (before.argmax(dim=1) + 1).remainder(5).tolist()
        em.edit([Edit(image, target) for image, target in zip(images[:4], targets, strict=False)])
        after = model(images)
        assert after.argmax(dim=1)[:4].tolist() == targets[:4]
        assert torch.equal(after[4:], before[4:])
        assert em.state("cnp").routes.book.keys.view.shape[1] == 12
    finally:
        em.close()
