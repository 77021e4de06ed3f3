"""Pairs from cases, and a classifier fitted and calibrated on them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from editable import datasets
from editable.memory.scope import FEATURES, Classifier
from editable.scope_data import KINDS, Pair, invented, misspelt, pairs, relations, variant
from editable.scope_training import AGAINST, Compared, compare, held_out, save, train
from editable.scopes import SentenceScope
from editable.scopes.sentence import classifier_of
from tests.words import Words


def test_cases_of_one_template_are_one_relation() -> None:
    found = {one.templates[0]: one for one in relations(datasets.facts(40))}
    capital = found["The capital of {} is"]
    assert "What is the capital of {}?" in capital.templates
    assert {"France", "Spain", "Japan"} <= set(capital.subjects)
    assert {"Marseille", "Paris"} <= set(capital.answers)


def test_pairs_repeat_and_have_every_kind() -> None:
    cases, sentences = datasets.facts(40), datasets.unrelated(20)
    made = pairs(cases, sentences, seed=3)
    assert made == pairs(cases, sentences, seed=3) != pairs(cases, sentences, seed=4)
    assert {pair.kind for pair in made} == set(KINDS)
    assert all(pair.subject is None or pair.subject in pair.prompt for pair in made)


def test_a_typing_error_is_one() -> None:
    draw = random.Random(0)
    for _ in range(50):
        name = invented(draw, 2)
        wrong = misspelt(name, draw)
        assert abs(len(wrong) - len(name)) <= 1
        assert sum(a != b for a, b in zip(name, wrong, strict=False)) <= len(name)
    assert misspelt("Io", draw) == "Io"


def test_a_name_is_written_otherwise() -> None:
    draw = random.Random(0)
    two, three = ({variant(name, draw) for _ in range(40)} for name in ("Tahar Bajjou", "Oscar Fingal Wilde"))
    assert three == {"O. Fingal Wilde", "Fingal Wilde O", "Oscar F. Wilde", "Oscar Wilde"}
    assert {"T. Bajjou", "Bajjou T"} < two
    assert all(name.split()[0] == "Tahar" and name.split()[2] == "Bajjou" for name in two - {"T. Bajjou", "Bajjou T"})
    assert [variant(name, draw) for name in ("Lima", "Apollo 11", "the Sea")] == ["Lima", "Apollo 11", "the Sea"]


def toy() -> Compared:
    """Pairs that ask the same exactly where the first feature is large; every second group is held out or not."""
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 1, (800, len(FEATURES)))
    same = features[:, 0] > 0.5
    made = [Pair("", "", None, KINDS[0] if one else "sibling", index % 8) for index, one in enumerate(same)]
    return Compared(features, same, np.ones(800, np.bool_), made)


def test_training_separates_what_can_be_separated() -> None:
    data = toy()
    classifier = train(data)
    assert ((classifier(data.features) > 0) == data.same).mean() > 0.97
    assert held_out(classifier, data)["0.03"]["sibling"] == pytest.approx(0.03, abs=0.015)


def test_a_rate_is_kept_on_what_was_held_out() -> None:
    data = toy()
    classifier = train(data)
    kept = np.array([pair.group % 4 == 0 and pair.kind == "sibling" for pair in data.pairs])
    scores = classifier(data.features[kept])
    for rate in (0.0, 0.02, 0.1):
        assert (scores > classifier.threshold(rate)).mean() <= rate


def test_no_feature_ever_speaks_against_its_sign() -> None:
    shipped = classifier_of(None)
    signs = np.array([-1 if name in AGAINST else 1 for name in FEATURES])
    assert (shipped.weights["hidden"] * signs >= 0).all() and (shipped.weights["out"] >= 0).all()
    base = np.random.default_rng(0).uniform(0, 1, (200, len(FEATURES)))
    for column, sign in enumerate(signs):
        more = base.copy()
        more[:, column] += 0.3
        assert (sign * (shipped(more) - shipped(base)) >= -1e-6).all()


def test_the_shipped_weights_fit_what_is_compared() -> None:
    shipped = classifier_of(None)
    assert shipped.weights["mean"].shape == (len(FEATURES),)
    assert sum(weights.nbytes for weights in shipped.weights.values()) < 200_000
    assert shipped.threshold(SentenceScope().false_fire) < shipped.threshold(0.01)


def test_from_pairs_to_a_file(tmp_path: Path) -> None:
    data = compare(pairs(datasets.facts(12), datasets.unrelated(5)), Words())
    assert data.features.shape == (len(data.pairs), len(FEATURES))
    classifier = train(data)
    save(classifier, tmp_path / "weights.safetensors")
    again: Classifier = classifier_of(str(tmp_path / "weights.safetensors"))
    assert again(data.features) == pytest.approx(classifier(data.features), abs=1e-3)
