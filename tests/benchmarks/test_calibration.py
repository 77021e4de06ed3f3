"""The benchmark on an invented ParaRel and a tiny model: which facts it takes, how it splits them, what it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from editable import EditableModel, models
from editable.adapters import CaliNet
from editable.benchmarks import calibration
from editable.errors import DataError, InputError
from tests.families import FAMILIES

PATTERNS = ("[X] alpha [Y] .", "[X] bravo charlie [Y]", "[Y] is golf of [X]", "north [X] hotel [Y].", "[X] india [Y] .")
PAIRS = (("oscar", "delta"), ("papa", "yankee"), ("romeo", "west"), ("tango", "echo"), ("zulu", "lima"))


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One relation with four wordings that end in the object, and one with a single wording, which is left out."""
    for name, patterns in (("P1", PATTERNS), ("P2", PATTERNS[:1])):
        _lines(tmp_path / "patterns" / f"{name}.jsonl", [{"pattern": one} for one in patterns])
        _lines(tmp_path / "trex_lms_vocab" / f"{name}.jsonl", [{"sub_label": s, "obj_label": o} for s, o in PAIRS])
    wrong = ["[X] south [Y] .", "[Y] east [X]"]
    _lines(tmp_path / "calinet_relations.jsonl", [{"relation": name, "wrong": wrong} for name in ("P1", "P2", "P9")])
    return tmp_path


def test_wordings_are_split_and_contrasted(folder: Path) -> None:
    """Every other wording is learned from; of the wrong ones only those that end in the object can be prompts."""
    found = list(calibration.statements(folder, 9, seed=0))
    assert {one.fact.edit.subject for one in found} == {subject for subject, _ in PAIRS}
    one = next(one for one in found if one.fact.edit.subject == "oscar")
    assert (one.fact.edit.prompt, one.fact.edit.target) == ("oscar alpha", " delta")
    assert one.fact.edit.rephrases == ("north oscar hotel",)
    assert one.asked == ("oscar bravo charlie", "oscar india")
    assert one.fact.prompts == ("oscar south",)


def test_at_most_so_many_of_a_relation_are_drawn_and_the_draw_repeats(folder: Path) -> None:
    once, again = ([s.fact.edit.subject for s in calibration.statements(folder, 2, seed=3)] for _ in range(2))
    assert len(once) == 2
    assert once == again


def test_contrasts_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no calinet_relations.jsonl, expected it beside ParaRel's folders"):
        list(calibration.statements(tmp_path, 2, seed=0))


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs it on a tiny model; gives the document."""
    tiny = FAMILIES[1].load()
    monkeypatch.setattr(models, "load", lambda *_args, **_options: (tiny.model, tiny.tokenizer))
    unrelated = folder / "unrelated.txt"
    unrelated.write_text("november uniform mike\nindia golf\n")

    def run(*more: str) -> Any:
        capsys.readouterr()
        given = ["--data", str(folder), "--unrelated", str(unrelated), "--results", str(folder / "results")]
        calibration.main([*given, *more])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_facts_that_are_lacking_are_learned(bench: Callable[..., Any]) -> None:
    found = bench()["quality"]
    assert 0 < found["facts"] <= len(PAIRS)
    assert found["shown"] == 2 * found["facts"] == found["asked"]
    assert found["reliability_on_all_shown"] == found["success_rate_forced"] == found["success_rate_exact"] == 1
    assert found["before_own_forced"] < 1
    assert found["unrelated"] == 2
    assert 0 <= found["unrelated_bit_equal"] <= 1


def test_an_editor_that_routes_leaves_the_rest_alone(bench: Callable[..., Any]) -> None:
    found = bench("--editor", "grace", "--facts", "2")["quality"]
    assert found["facts"] <= 2
    assert found["success_rate_exact"] == 1
    assert (found["unrelated_bit_equal"], found["drawdown_unrelated"], found["unrelated_kl_nats"]) == (1, 0, 0)


def test_known_facts_are_asked_in_every_wording_that_the_model_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those known in their own wording the wordings that are known; every other fact is given with the edits."""
    found = sorted(calibration.statements(folder, 9, seed=0), key=lambda one: str(one.fact.edit.subject))
    right = ("oscar alpha", "north oscar hotel", "papa india", "romeo alpha", "romeo india", "zulu alpha")

    def forced(_asker: object, questions: list[calibration.Question]) -> list[float]:
        return [float(prompt in right) for prompt, _ in questions]

    monkeypatch.setattr(calibration, "forced", forced)
    tiny = FAMILIES[1].load()
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=CaliNet())) as em:
        parts = calibration.split(em, found, 0, 3, seed=0)
    assert parts.lacking == []
    assert parts.kept == [("oscar alpha", " delta"), ("north oscar hotel", " delta"), ("zulu alpha", " lima")]
    assert parts.known == [("romeo alpha", " west"), ("romeo india", " west")]
    edits = calibration.Split(found[:2], parts.kept, parts.known).edits
    assert [edit.locality for edit in edits] == [("oscar alpha", "zulu alpha"), ("north oscar hotel",)]


def test_bars() -> None:
    found = {"success_rate_forced": 0.95, "generalization_rate_forced": 0.7, "drawdown_unrelated": 0.06}
    assert [bar.met for bar in calibration.judged(found)] == [True, False, False]


def test_it_needs_data(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = FAMILIES[1].load()
    monkeypatch.setattr(models, "load", lambda *_args, **_options: (tiny.model, tiny.tokenizer))
    with pytest.raises(InputError, match=r"--data is missing, expected a folder with ParaRel"):
        calibration.main([])
