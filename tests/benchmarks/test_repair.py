"""Repairs on tiny models: what is counted, by hand; and a classifier that learns its task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editable import Edit, EditableModel
from editable.adapters.tpatcher import TPatcher
from editable.benchmarks import repair
from editable.datasets.case import Case, Question
from tests.benchmarks.conftest import printed
from tests.conftest import Attach
from tests.families import Loaded


def test_facts_by_hand(tiny: Loaded, attach: Attach) -> None:
    """Both edits are right at once; the second takes the first one's place; one locality question is its own."""
    own, other = tiny.edited[0], tiny.unrelated[0]
    locality = (Question(own, (" west",)), Question(other, (" west",)))
    cases = [Case(Edit(own, " delta echo"), locality=locality[1:]), Case(Edit(own, " yankee"), locality=locality[:1])]
    em: EditableModel = attach(tiny, TPatcher())
    found = repair.facts(em, cases)
    assert found.success == 1.0
    assert found.retained < 1.0
    assert (found.locality, found.bit_equal) == (0.5, 0.5)
    assert len(found.seconds) == 2 and min(found.seconds) > 0


def test_the_parts_share_no_fact() -> None:
    names, parts = repair.texts(seed=0)
    said = [{text for text, _ in part} for part in parts]
    assert len(names) == 37 and [len(part) > 300 for part in parts] == [True] * 3
    assert not said[0] & said[1] and not said[0] & said[2] and not said[1] & said[2]
    assert any(("The capital of France is", names.index("capital")) in part for part in parts)


def test_a_classifier_is_trained_and_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "LAYERS", 1)
    monkeypatch.setattr(repair, "WIDTH", 64)
    monkeypatch.setattr(repair, "RATE", 2e-3)
    state = torch.get_rng_state()
    found = repair.repaired_classifier(TPatcher(), repairs=3, epochs=20, seed=0)
    torch.set_rng_state(state)
    assert found.accuracy_before > 3 / 37  # it has learned something
    assert (found.repairs, found.repaired, found.retained) == (3, 1.0, 1.0)
    assert found.moved < 0.05


def test_bars() -> None:
    first = repair.Facts(success=0.98, retained=0.9, locality=1.0, bit_equal=1.0, seconds=[1.0, 2.0, 9.0])
    second = repair.Classified(1.0, 1.0, accuracy_before=0.8, accuracy_after=0.79, repairs=5, texts=100, seconds=[1.0])
    met = {bar.figure.split(":")[1].split(",")[0].strip(): bar.met for bar in repair.judged(first, second)}
    assert list(met.values()) == [True, False, True, True, True, False]


def test_what_comes_out(
    tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repair, "LAYERS", 1)
    monkeypatch.setattr(repair, "WIDTH", 32)
    options = ["--edits", "3", "--repairs", "2", "--epochs", "1", "--results", str(tmp_path)]
    repair.main([*tiny_options, *options])
    quality = printed(capsys)["quality"]
    assert quality["facts"]["success"] == 1.0
    assert (quality["classifier"]["repairs"], quality["classifier"]["retained"]) == (2, 1.0)
