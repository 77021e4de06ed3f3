"""The study of the radius, on a tiny model; and its shares by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from editable import Edit, models
from editable.benchmarks import radius
from editable.datasets.case import Case, Question
from tests.families import FAMILIES

CASES = [Case(Edit("p", " a"), (Question("r"),)), Case(Edit("q", " b"), (Question("s"),))]


def test_shares_by_hand() -> None:
    prompts = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    rephrases = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # the second lies in the first one's ball
    unrelated = {"questions": torch.tensor([[0.0, 2.5], [5.0, 0.0]])}
    found = radius.Activations(prompts, rephrases, unrelated, spread=2.0)
    narrow, wide = radius.row(found, CASES, 1.0), radius.row(found, CASES, 1.5)
    assert narrow["questions_fire_share"] == 0.0
    assert wide["questions_fire_share"] == 0.5  # 2.5 < 3
    assert (narrow["prompt_hit_share"], narrow["rephrase_hit_share"], narrow["rephrase_wrong_share"]) == (1.0, 0.5, 0.5)
    assert radius.row(found, CASES, 0.2)["rephrase_hit_share"] == 0.0
    assert narrow["split_balls"] == 0
    assert radius.row(found, CASES, 3.0)["split_balls"] == 1  # 6 + 6 > 10


def test_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = FAMILIES[0].load()
    monkeypatch.setattr(models, "load", lambda *_args, **_options: (tiny.model, tiny.tokenizer))
    records = [
        {"subject": text, "src": text, "pred": "x", "rephrase": f"say {text}", "alt": "west", "answers": ["x"]}
        | {"loc": "nq question: who", "loc_ans": "me", "cond": ""}
        for text in [*tiny.edited, *tiny.unrelated]
    ]
    data = tmp_path / "zsre.json"
    data.write_text(json.dumps(records))
    radius.main(["--data", str(data), "--questions", "3", "--edits", "4", "--results", str(tmp_path)])
    quality = json.loads(capsys.readouterr().out.splitlines()[-1])["quality"]
    assert (quality["edits"], quality["questions"], quality["other_facts"]) == (4, 3, 6)
    assert set(quality["forms"]) == {"per_token", "single"}
    assert all(form["rows"]["0.5"]["prompt_hit_share"] == 1.0 for form in quality["forms"].values())
