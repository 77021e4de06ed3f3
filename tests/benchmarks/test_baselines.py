"""The baselines do what they say, on tiny models; the textbook's rule and book by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from editable import Edit
from editable.asking import Asker
from editable.benchmarks.baselines import Baseline, prompting
from editable.benchmarks.baselines.finetuning import FineTuning, TunedSystem
from editable.benchmarks.baselines.prompting import PromptedSystem, Prompting, sentence_encoder
from editable.benchmarks.baselines.textbook_grace import Textbook, TextbookGRACE, TextbookSystem, Wrapped, rule
from editable.benchmarks.baselines.unedited import Unedited
from editable.errors import InputError
from editable.system import System
from tests.contract.harness import digest, edits_of
from tests.families import FAMILIES, LONGEST, Loaded

WORDS = Prompting(encoder="words")


def load(name: str = "gpt2") -> Loaded:
    return {family.name: family for family in FAMILIES}[name].load()


@pytest.fixture
def loaded() -> Loaded:
    return load()


def base_of(loaded: Loaded) -> Asker:
    twin = loaded.family.load()
    return Asker(twin.model, twin.tokenizer)


def weights(loaded: Loaded) -> list[str]:
    return [digest(parameter) for parameter in loaded.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def right(system: System, edits: list[Edit]) -> list[float]:
    prompts, targets = [e.prompt for e in edits], [e.target or "" for e in edits]
    pairs = zip(system.forced(prompts, targets), system.target_ids(prompts, targets), strict=True)
    return [float((logits.argmax(-1) == ids).float().mean()) for logits, ids in pairs]


@pytest.mark.parametrize(
    "baseline", [Unedited(), WORDS, FineTuning(steps=3), Textbook()], ids=lambda b: type(b).__name__
)
def test_every_baseline_counts_forgets_and_leaves_the_model_alone(loaded: Loaded, baseline: Baseline) -> None:
    assert isinstance(baseline, Baseline)
    assert {"family", "scope", "effect", "training"} == set(baseline.properties)
    before, kept = weights(loaded), loaded.logits(loaded.edited)
    system = baseline.on(loaded.model, loaded.tokenizer)
    fresh = system.logits(loaded.edited)
    assert same(fresh, base_of(loaded).logits(loaded.edited))
    torch.manual_seed(0)
    system.insert(edits_of(loaded, [0, 1]))
    system.insert(edits_of(loaded, [2]))
    assert system.held == 3
    assert (system.numbers > 0) == (system.name != "unedited")
    system.reset()
    assert (system.held, system.numbers) == (0, 0)
    assert same(system.logits(loaded.edited), fresh)
    assert weights(loaded) == before
    assert torch.equal(loaded.logits(loaded.edited), kept)


# --- unedited ---


def test_unedited_says_what_the_base_says(loaded: Loaded) -> None:
    system = Unedited().on(loaded.model, loaded.tokenizer)
    system.insert(edits_of(loaded))
    base = base_of(loaded)
    assert system.free(loaded.edited, [LONGEST] * 6) == base.free(loaded.edited, [LONGEST] * 6)
    assert same(system.forced(loaded.edited, loaded.targets), base.forced(loaded.edited, loaded.targets))


# --- prompting ---


def prompted(loaded: Loaded, **options: Any) -> PromptedSystem:
    return Prompting(**{"encoder": "words", **options}).on(loaded.model, loaded.tokenizer)


EDITS = [Edit("red fox", " one"), Edit("green whiskey", " two"), Edit("red green blue", " three")]


def test_the_nearest_lines_stand_before_the_prompt_and_the_nearest_is_last(loaded: Loaded) -> None:
    one, two = prompted(loaded, lines=1), prompted(loaded, lines=2)
    for system in (one, two):
        system.insert(EDITS[:2])
        system.insert(EDITS[2:])
    assert one.prompted("say green whiskey") == "green whiskey two\nsay green whiskey"
    assert two.prompted("say green whiskey") == "red green blue three\ngreen whiskey two\nsay green whiskey"


def test_without_edits_a_prompt_stands_alone(loaded: Loaded) -> None:
    assert prompted(loaded).prompted("red fox") == "red fox"


def test_unrelated_prompts_get_lines_too_unless_told_otherwise(loaded: Loaded) -> None:
    system, choosy = prompted(loaded), prompted(loaded, least_cosine=0.1)
    for one in (system, choosy):
        one.insert(EDITS)
    assert system.prompted("india golf") == "red fox one\nindia golf"
    assert choosy.prompted("india golf") == "india golf"
    assert choosy.prompted("the fox") == "red fox one\nthe fox"


def test_prompting_is_asking_the_base_with_the_lines(loaded: Loaded) -> None:
    system, base = prompted(loaded), base_of(loaded)
    system.insert(EDITS)
    long = [system.prompted(text) for text in ("red fox", "green whiskey")]
    assert same(system.forced(["red fox", "green whiskey"], [" one", " two"]), base.forced(long, [" one", " two"]))
    assert system.free(["red fox", "green whiskey"], [4, 4]) == base.free(long, [4, 4])
    (logits,), (whole,) = system.logits(["red fox"]), base.logits(long[:1])
    assert len(logits) == len(loaded.tokenizer("red fox").input_ids) < len(whole)
    assert torch.equal(logits, whole[-len(logits) :])


def test_prompting_needs_text() -> None:
    vit = load("vit")
    system = WORDS.on(vit.model, None)
    with pytest.raises(InputError, match="Prompting was given a Tensor, expected text: lines cannot stand in front"):
        system.insert([Edit(vit.edited[0], 1)])


def test_words_serve_where_no_encoder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence_encoder("words") is None
    monkeypatch.setattr(prompting, "PACKAGED_ENCODER", "no_such_package")
    assert sentence_encoder("auto") is None


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(prompting.PACKAGED_ENCODER) is None, reason="no packaged encoder")
def test_sentences_are_encoded_as_unit_vectors_by_meaning(loaded: Loaded) -> None:
    encode = sentence_encoder("auto")
    assert encode is not None
    vectors = encode(["Who wrote Hamlet?", "Hamlet's author is", "How do I boil an egg?"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert Prompting().on(loaded.model, loaded.tokenizer).name == "prompting (sentences)"


# --- fine-tuning ---


@pytest.mark.parametrize("blocks", [1, 0])
def test_fine_tuning_learns_and_touches_what_it_says(loaded: Loaded, blocks: int) -> None:
    system = FineTuning(blocks=blocks, rate=2e-3, steps=200).on(loaded.model, loaded.tokenizer)
    edits = edits_of(loaded, [0, 1])
    system.insert(edits)
    assert right(system, edits) == [1.0, 1.0]
    assert [answer.stopped for answer in system.free([e.prompt for e in edits], [LONGEST] * 2)] == [True, True]
    moved = [
        name
        for (name, tuned), base in zip(system.model.named_parameters(), loaded.model.parameters(), strict=True)
        if not torch.equal(tuned, base)
    ]
    assert (len(moved) > 20) == (blocks == 0)
    assert all(name.startswith("transformer.h.2.") for name in moved) == (blocks == 1)
    assert not same(system.logits(loaded.unrelated), base_of(loaded).logits(loaded.unrelated))
    assert not any(parameter.requires_grad for parameter in system.model.parameters())


def test_training_stops_early_and_not_late(loaded: Loaded) -> None:
    done, cut = FineTuning(loss_nats=1e9), FineTuning(steps=1)
    for options, moves in ((done, False), (cut, True)):
        system = options.on(loaded.model, loaded.tokenizer)
        system.insert(edits_of(loaded, [0]))
        assert same(system.logits(loaded.edited), base_of(loaded).logits(loaded.edited)) is not moves


def test_one_step_is_adamw_on_the_mean_loss_per_answer_token(loaded: Loaded) -> None:
    options = FineTuning(steps=1, rate=1e-3, rows=1)  # the gradients of two forwards add up
    system = options.on(loaded.model, loaded.tokenizer)
    system.insert(edits_of(loaded, [0, 1]))
    twin = loaded.family.load()
    block = list(twin.model.transformer.h[-1].parameters())
    nats = []
    for index in (0, 1):
        prompt, answer = loaded.tokenizer(loaded.edited[index]).input_ids, loaded.wanted(index)
        logits = twin.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        nats.append(nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
    optimiser = torch.optim.AdamW(block, lr=1e-3)
    (sum(nats) / sum(len(loaded.wanted(index)) for index in (0, 1))).backward()  # type: ignore[union-attr]
    optimiser.step()
    tuned = list(system.model.get_submodule("transformer.h.2").parameters())
    for ours, plain in zip(tuned, block, strict=True):
        assert plain.grad is not None
        clear = plain.grad.abs() > 1e-4  # AdamW's first step is the sign of a gradient, and some are only noise
        torch.testing.assert_close(ours[clear], plain[clear], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "vit"])
def test_fine_tuning_of_other_families(name: str) -> None:
    loaded = load(name)
    system: TunedSystem = FineTuning(blocks=0, rate=2e-3, steps=200).on(loaded.model, loaded.tokenizer)
    edits = edits_of(loaded, [0, 1])
    system.insert(edits)
    assert right(system, edits) == [1.0, 1.0]


# --- the textbook loop ---


@pytest.mark.parametrize(
    ("distance", "reach", "same_answer", "kind", "own", "nearest"),
    [
        (float("inf"), 0.0, False, "add", 1.0, None),  # an empty book
        (3.0, 1.5, True, "add", 1.0, None),  # 3 > 1 + 1.5, whatever the label
        (2.0, 1.5, False, "split", 1.0, 1.0 - 1e-5),  # half the distance each
        (2.0, 1.5, True, "expand", None, 2.0),
        (1.0, 1.5, True, "keep", None, None),
        (1.0, 1.5, False, "split", 0.5, 0.5 - 1e-5),
        (0.0, 1.0, False, "split", 0.0, -1e-5),  # the published rule loses the older entry here
    ],
)
def test_the_insertion_rule(
    distance: float, reach: float, same_answer: bool, kind: str, own: float | None, nearest: float | None
) -> None:
    found = rule(distance, reach, same_answer)
    assert (found.kind, found.own, found.nearest) == (kind, own, nearest)


@pytest.fixture
def book() -> Wrapped:
    torch.manual_seed(0)
    return Wrapped(nn.Linear(2, 3), 3)


def test_the_book_after_hand_made_insertions(book: Wrapped) -> None:
    assert book.insert(torch.tensor([0.0, 0.0]), (7,)) == 0
    assert book.insert(torch.tensor([0.0, 5.0]), (8,)) == 1  # 5 > 1 + 1: added
    assert book.insert(torch.tensor([0.0, 1.5]), (7,)) == 0  # 1.5 <= 1 + 1, same answer: the first one grows
    assert book.insert(torch.tensor([0.0, 4.0]), (9,)) == 2  # 1 from the second, another answer: split at half
    assert book.radii == pytest.approx([1.5, 0.5 - 1e-5, 0.5])
    assert book.labels == [(7,), (8,), (9,)]


def test_the_value_is_written_at_the_key_token_only(book: Wrapped) -> None:
    rows = torch.tensor([[[0.0, 9.0], [0.0, 0.5], [3.0, 3.0]]])
    plain = book(rows)
    book.insert(torch.tensor([0.0, 0.0]), (7,))
    assert torch.equal(book(rows), plain)  # nobody said where the prompt ends
    book.position = 1
    edited = book(rows)
    assert torch.equal(edited[0, 1], book.values[0])
    assert torch.equal(edited[0, [0, 2]], plain[0, [0, 2]])
    book.position = 2
    assert torch.equal(book(rows), plain)  # too far from the key


def test_a_pending_edit_takes_its_key_from_the_next_forward(book: Wrapped) -> None:
    book.position, book.pending = 0, (7,)
    rows = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]])
    out = book(rows)
    assert book.chosen == 0
    assert vars(book)["pending"] is None
    assert torch.equal(book.keys[0], rows[0, 0])
    out[0, 0].sum().backward()
    assert torch.equal(book.values[0].grad, torch.ones(3))


def test_a_textbook_edit_lowers_the_loss_and_leaves_the_weights(loaded: Loaded) -> None:
    before = weights(loaded)
    system: TextbookSystem = Textbook(site="transformer.h.1.mlp.c_fc").on(loaded.model, loaded.tokenizer)
    loop: TextbookGRACE = system._textbook
    prompt, answer = system._pair(loaded.edited[0], loaded.targets[0])
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.cat([prompt, answer], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
        first = float(nn.functional.cross_entropy(logits, answer[0]))
    torch.manual_seed(0)
    assert loop.edit(prompt, answer) < first
    (taught,) = system.forced([loaded.edited[0]], [loaded.targets[0]])
    assert not torch.equal(taught, logits)
    assert same(system.logits(loaded.unrelated[:1]), base_of(loaded).logits(loaded.unrelated[:1]))
    assert weights(loaded) == before
    assert system.numbers == 64 + 256  # the layer's input and its output


def test_the_textbook_edits_decoders_only() -> None:
    t5 = load("t5")
    with pytest.raises(InputError, match="was given a T5ForConditionalGeneration, expected a decoder; choose"):
        Textbook().on(t5.model, t5.tokenizer)
