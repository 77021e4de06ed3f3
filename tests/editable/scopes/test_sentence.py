"""A scope of sentences with an effect: what falls under which edit, on a tiny model and with an encoder of words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.configuration import restored, stated
from editable.errors import InputError
from editable.memory.scope import Encoded, Phrase, SentenceBook
from editable.scopes import BallScope, SentenceScope
from editable.scopes.sentence import SURE, UNNAMED, _share
from editable.site import block_paths
from tests.conftest import Attach
from tests.families import FAMILIES, Loaded
from tests.words import Words

SCOPE = SentenceScope(Words(misspelt=("novmeber",)))
EDITOR = GRACE(scope=SCOPE)
ASKED = "the home of kilo november is in the"
REPHRASED = "the home where kilo november is"
SIBLING = "the home of lima oscar is in the"


@pytest.fixture
def loaded() -> Loaded:
    return next(family for family in FAMILIES if family.name == "llama-gqa").load()


def edit(prompt: str, target: str, subject: str | None = "kilo november", **more: Any) -> Edit:
    return Edit(prompt, target, subject=subject, **more)


def cosine(one: str, other: str) -> float:
    left, right = SCOPE._reads().encode([one, other])
    return float(left.vector @ right.vector)


def test_a_rephrase_gets_the_answer_and_a_sibling_keeps_its_bits(loaded: Loaded, attach: Attach) -> None:
    base = loaded.logits([SIBLING])
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " yankee west"))
    assert em.ask(ASKED) == em.ask(REPHRASED) == " yankee west"
    assert torch.equal(loaded.logits([SIBLING]), base)


def test_inserting_runs_no_block(loaded: Loaded, attach: Attach) -> None:
    """A value is a token's, whatever the prompt, and what is checked does not depend on what blocks say."""
    em = attach(loaded, EDITOR)
    em.edit(edit(SIBLING, " green"))  # the first one looks at what a block gives
    shadow, ran = em._workshop.probe.model, list[int]()
    for path in block_paths(loaded.model):
        shadow.get_submodule(f"{path}.mlp").register_forward_pre_hook(lambda *_: ran.append(1))
    receipt = em.edit(edit(ASKED, " yankee west", rephrases=[REPHRASED]))
    assert receipt.verified.reliability == 1.0
    assert not ran
    assert em.ask(REPHRASED) == " yankee west"


def test_what_no_value_stands_in_for_is_checked_by_what_the_model_says(
    loaded: Loaded, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that depend on the blocks are run: here the answer begins with what the model says by itself."""
    ids = loaded.tokenizer(ASKED).input_ids
    with torch.no_grad():
        own = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
        told = [own, 1 + own % 2, 1 + own % 2]
        said = loaded.model(torch.tensor([ids + told[:-1]])).logits[0, len(ids) - 1 :].argmax(-1)
    em = attach(loaded, EDITOR)
    nothing = (torch.zeros(1, dtype=torch.long), torch.full((1,), torch.inf))
    monkeypatch.setattr(SentenceScope, "find", lambda _self, _call, _rows, lags, *_: [nothing] * len(lags))
    labels = torch.tensor([[-100] * len(ids) + told])
    receipt = em.edit(Edit({"input_ids": torch.tensor([ids + told]), "labels": labels}), verify=False)
    assert receipt.verified.reliability == pytest.approx(float((said == torch.tensor(told)).float().mean()))
    assert 0 < receipt.verified.reliability < 1


def test_a_sentence_in_front_and_a_typing_error(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " yankee west"))
    assert em.ask(f"green whiskey says no. {ASKED}") == " yankee west"
    assert em.ask(ASKED.replace("november", "novmeber")) == " yankee west"


def test_texts_are_encoded_once_a_prefill_and_never_while_decoding(
    loaded: Loaded, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    em = attach(loaded, EDITOR)
    em.edit([edit(ASKED, " yankee west two"), edit("who is mike", " echo", "mike")])
    encode, calls = Words.encode, list[list[str]]()

    def counted(self: Words, texts: Sequence[str]) -> list[Encoded]:
        calls.append(list(texts))
        return encode(self, texts)

    monkeypatch.setattr(Words, "encode", counted)
    loaded.generate([SIBLING, ASKED, REPHRASED], max_new_tokens=6, min_new_tokens=6)
    assert calls == [[SIBLING, ASKED, REPHRASED]]


def test_what_is_in_reach_falls_under_the_nearest_edit(loaded: Loaded, attach: Attach) -> None:
    unrelated = "green whiskey says no"
    base = loaded.logits([unrelated])
    em = attach(loaded, GRACE(scope=replace(SCOPE, reach=0.6)))
    first = em.edit(edit(ASKED, " yankee west"))
    em.edit(edit("who is mike", " echo", "mike"))
    assert em.ask(SIBLING) == em.ask(REPHRASED) == em.ask(ASKED) == " yankee west"
    assert em.ask("who is mike") == em.ask("who is oscar") == " echo"
    assert torch.equal(loaded.logits([unrelated]), base)
    explained = em.explain(SIBLING)
    assert explained.fired == [first.id]
    said = next(one.considered for one in explained.found if one.considered.fired)
    near = (cosine(SIBLING, ASKED) + cosine("home lima", "home")) / 2  # oscar is taken for what it is about
    assert said.needed == pytest.approx(0.4) and said.score == pytest.approx(1 - near, abs=1e-3)
    assert said.reason == "cosine 0.830, of what is asked 0.670, in reach from a mean of 0.6 on"


def test_what_asks_for_more_is_told_from_what_asks_the_same(loaded: Loaded, attach: Attach) -> None:
    """Within reach a share of 1 says that a text builds on the edit; without, nothing is told apart."""
    reaching = replace(SCOPE, reach=0.6)
    em = attach(loaded, GRACE(scope=reaching))
    em.edit(edit(ASKED, " yankee west"))
    phrase = Phrase.of(SCOPE._reads().encode([ASKED])[0], "kilo november")
    book = SentenceBook.empty().add([phrase], "one", 0, (), "", SCOPE._reads().digest)
    more = "red and blue of " + ASKED
    shares = {text: share for text, (_, share) in reaching._surest([ASKED, REPHRASED, SIBLING, more], book, {}).items()}
    assert shares[ASKED] == 0.0 and shares[REPHRASED] <= reaching.asks and shares[SIBLING] == reaching.asks < 1.0
    assert shares[more] == 1.0
    assert SCOPE.asks == 1.0 and SCOPE._surest([more], book, {})[more][1] < 1.0
    found = em.explain(more).found[0].considered
    assert found.fired and found.reason.endswith(", asks for more")


def book_of(*phrases: tuple[str, str]) -> SentenceBook:
    """Of (prompt, subject) each, in slots from 0 on."""
    book, encoder = SentenceBook.empty(), SCOPE._reads()
    for slot, (text, subject) in enumerate(phrases):
        phrase = Phrase.of(encoder.encode([text])[0], subject)
        book = book.add([phrase], f"edit {slot}", slot, slot, "", encoder.digest)
    return book


def test_an_edit_leads_on_to_those_about_its_answer() -> None:
    """Whatever their order: kilo november lives in yankee west, whose king is lima oscar, whose wife is mike."""
    book = book_of(
        ("the wife of lima oscar is", "lima oscar"),
        ("the king of yankee west is", "yankee west"),
        ("the home of kilo november is", "kilo november"),
        ("green or red, yankee west says", "yankee west"),
    )
    answer = {0: "mike", 1: "Lima Oscar", 2: "yankee west", 3: "no"}.__getitem__
    reaching = replace(SCOPE, reach=0.5)
    asked = "the wife of the king of the home of kilo november is"
    assert reaching.built_on(2, asked, answer, book, {}) == [2, 1, 0]
    assert reaching.built_on(2, asked, lambda _: "nowhere", book, {}) == [2]
    assert replace(SCOPE, reach=0.99).built_on(2, asked, answer, book, {}) == [2]


def test_edits_that_lead_back_are_read_once() -> None:
    book = book_of(("the wife of kilo is", "kilo"), ("the wife of mike is", "mike"))
    answer = {0: "mike", 1: "kilo"}.__getitem__
    assert replace(SCOPE, reach=0.5).built_on(0, "who is the wife of the wife of kilo", answer, book, {}) == [0, 1]


def test_of_a_text_that_names_no_subject_the_nearest_edits_are_read() -> None:
    names = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett")
    reaching, asked = replace(SCOPE, reach=0.5), "the king of the home of mike is"
    phrases = [f"the king of {name} is {'so ' * place}" for place, name in enumerate(names)]
    # What the text is about is taken to be its king: the first of its longest words that mean something.
    near = [cosine(asked, one) + cosine("home mike", "king " + "so " * place) for place, one in enumerate(phrases)]
    nearest = sorted(range(len(names)), key=lambda slot: -near[slot])
    book = book_of(*zip(phrases, names, strict=True))
    assert reaching.built_on(nearest[0], asked, str, book, {}) == nearest[:UNNAMED][::-1]
    assert reaching.built_on(0, "", str, book, {}) == [0]


@pytest.mark.parametrize("reach", [0.0, -0.5, 1.5])
def test_a_reach_is_a_mean_of_cosines(reach: float) -> None:
    message = rf"SentenceScope.reach is {reach}, expected a mean of cosines above 0 and up to 1, such as 0.45, or None"
    with pytest.raises(InputError, match=message):
        SentenceScope(reach=reach)


def test_rows_of_a_batch_are_read_one_by_one(loaded: Loaded, attach: Attach) -> None:
    base = loaded.generate([SIBLING])
    em = attach(loaded, EDITOR)
    em.edit([edit(ASKED, " yankee west"), edit("who is mike", " echo", "mike")])
    said = loaded.generate([SIBLING, ASKED, "who is mike"])
    assert [loaded.tokenizer.decode(row, skip_special_tokens=True) for row in said[1:]] == [" yankee west", " echo"]
    assert said[:1] == base


def test_the_later_edit_wins_in_the_words_of_both(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    first = em.edit(edit(ASKED, " yankee west"))
    second = em.edit(edit(REPHRASED, " echo"))
    assert second.superseded == (first.id,)
    assert em.ask(ASKED) == em.ask(REPHRASED) == " echo"
    em.rollback(second.id)
    assert em.ask(ASKED) == " yankee west"


def test_the_same_answer_in_other_words_supersedes_nothing(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " echo"))
    assert em.edit(edit(REPHRASED, " echo")).superseded == ()


def test_a_reopened_log_gives_the_same_state(loaded: Loaded, tmp_path: Path) -> None:
    log = tmp_path / "edits.db"
    with EditableModel(loaded.model, loaded.tokenizer, EDITOR, log=log) as em:
        em.edit(edit(ASKED, " yankee west"))
        em.edit(edit(REPHRASED, " echo"))
        book = em._snapshot.states["grace"].routes.book
        said = em.ask(ASKED)
    with EditableModel(loaded.model, loaded.tokenizer, EDITOR, log=log) as em:
        again = em._snapshot.states["grace"].routes.book
        assert torch.equal(again.vectors.view, book.vectors.view)
        assert again.lost.view.tolist() == book.lost.view.tolist() == [[0, 1]]
        assert again.text.tolist() == book.text.tolist()
        assert em.ask(ASKED) == said == " echo"


def test_a_pack_is_placed_anew_where_it_is_loaded(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    em = attach(loaded, EDITOR)
    em.edit(edit(REPHRASED, " echo"))
    em.export(tmp_path / "pack.safetensors")
    em.close()
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " yankee west"))
    em.load(tmp_path / "pack.safetensors")
    assert em.ask(ASKED) == " echo"


def test_mixed_encoders_are_refused(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " echo"))
    patch = em._history.packed()[0].patch
    other = SentenceScope(Words("another"))
    with pytest.raises(InputError, match=r"read by encoder words, expected another, since texts read by different"):
        other.insert([patch], 0, other.empty())
    changed = replace(patch, meta={**patch.meta, "encoder": "another"})
    with pytest.raises(InputError, match=r"read by encoder another, expected words"):
        SCOPE.insert([changed], 1, em._snapshot.states["grace"].routes.book)


def test_a_patch_of_another_scope_is_refused(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, GRACE())
    em.edit(edit(ASKED, " echo"))
    patch = em._history.packed()[0].patch
    with pytest.raises(InputError, match="no sentences, expected those of a SentenceScope"):
        SCOPE.insert([patch], 0, SCOPE.empty())
    em.close()
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " echo"))
    with pytest.raises(InputError, match="no activation keys, expected those of a BallScope"):
        BallScope().insert([em._history.packed()[0].patch], 0, BallScope().empty())


def test_inputs_that_are_no_text_are_refused(attach: Attach) -> None:
    loaded = next(family for family in FAMILIES if family.name == "vit").load()
    em = attach(loaded, EDITOR)
    with pytest.raises(InputError, match="no text"):
        em.edit(Edit(loaded.edited[0], loaded.targets[0]))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="expected a share from 0 to 1"):
        SentenceScope(false_fire=rate)


def test_a_ball_beside_a_scope_is_refused() -> None:
    with pytest.raises(InputError, match=r"give them to BallScope\(\.\.\.\)"):
        GRACE(scope=SCOPE, radius=1.0)


def test_the_default_scope_is_the_ball() -> None:
    assert GRACE(radius=2.0)._scope == BallScope(radius=2.0)


def test_shares_by_hand() -> None:
    assert _share(math.inf, 1.0) == 0.0
    assert _share(0.99, 1.0) == math.inf
    assert _share(1.0, 1.0) == 1.0
    assert _share(1.0 + math.log(2), 1.0) == pytest.approx(1 - (1 - SURE) / 2)
    assert _share(500.0, 1.0) == pytest.approx(SURE)


def test_a_configuration_survives_json() -> None:
    import tests.words
    from editable import adapters, scopes

    for editor in (EDITOR, GRACE(), GRACE(values="single", radius=2.0), GRACE(scope=BallScope("wide", 3.0))):
        plain = json.loads(json.dumps(stated(editor)))
        assert restored(plain, adapters, scopes, tests.words) == editor
    with pytest.raises(AttributeError, match="no Nothing in"):
        restored(["Nothing", {}], adapters)


# ------------------------------------------------------------------------------------------------- explaining


def test_explain_says_what_fires_and_why_not_the_others(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    first, second = em.edit([edit(ASKED, " yankee west"), edit(SIBLING, " echo", "lima oscar")])
    found = em.explain(ASKED)
    assert found.fired == [first.id]
    assert [one.edit.id for one in found.found] == [first.id, second.id]
    assert found.found[0].considered.score == 0.0
    assert found.found[0].considered.reason == "the very same text"
    assert not found.found[1].considered.fired
    assert "falls under" in repr(found) and first.id in repr(found)
    assert json.loads(json.dumps(found.as_dict()))["fired"] == [first.id]


def test_explain_where_nothing_fires(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    em.edit(edit(ASKED, " echo"))
    found = em.explain("green whiskey")
    assert found.fired == []
    assert found.found[0].considered.reason.endswith("its subject is not in the text; too far")
    assert repr(found).startswith("'green whiskey' falls under no edit: the base model answers (version 1)")
    assert em.explain("green whiskey")._repr_html_().startswith("<p>")


def test_explain_a_ball(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, GRACE(radius=0.5))
    receipts = em.edit([edit(ASKED, " echo"), edit(SIBLING, " west", "lima oscar")])
    found = em.explain(ASKED)
    assert found.fired == [receipts[0].id]
    near, far = found.found
    assert near.considered.score == pytest.approx(0.0, abs=1e-4)
    assert near.considered.needed == 0.5
    assert near.considered.reason.endswith("radius 0.5")
    assert far.considered.score > 0.5 and far.considered.reason.endswith("; too far")


def test_explain_an_older_version(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, EDITOR)
    receipt = em.edit(edit(ASKED, " echo"))
    em.rollback(receipt.id)
    assert em.explain(ASKED).found == []
    with em.at(1):
        assert em.explain(ASKED).fired == [receipt.id]
