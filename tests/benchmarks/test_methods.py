"""Both tables, for every method there is, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import models
from editable.benchmarks import editors, methods
from editable.benchmarks.baselines.unedited import UneditedSystem
from editable.errors import InputError
from tests.families import FAMILIES, Loaded


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    tiny = FAMILIES[1].load()
    monkeypatch.setattr(models, "load", lambda *_args, **_options: (tiny.model, tiny.tokenizer))
    monkeypatch.setattr(methods, "ROUNDS", 3)
    return tiny


def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    methods.main(["--results", str(tmp_path), "--questions", "2", *more])
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


@pytest.mark.usefixtures("loaded")
def test_every_method_has_a_row_in_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = ",".join([*editors.editors(), "unedited", "prompting:encoder=words", "finetuning:steps=2"])
    found, printed = bench(tmp_path, capsys, "--edits", "2", "--methods", everything)
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    for name in everything.split(","):
        assert rows.count(name) == 2
    quality, timing = found["quality"], found["timing"]
    assert quality["finetuning:steps=2"]["weights_kept"] is False
    assert all(quality[name]["weights_kept"] for name in (*editors.editors(), "unedited", "prompting:encoder=words"))
    assert quality["unedited"]["final"]["bit_equal_share"] == 1.0
    assert quality["unedited"]["final"]["drawdown_forced"] == 0.0
    assert quality["unedited"]["numbers_per_edit"] == 0
    assert quality["finetuning:steps=2"]["final"]["bit_equal_share"] == 0.0
    assert quality["grace"]["final"]["success_rate_exact"] == 1.0
    assert quality["grace"]["together"] == {"forced": 1.0, "exact": 1.0}
    for name in everything.split(","):
        assert timing[name]["latency"]["ratio"] > 0


@pytest.mark.usefixtures("loaded")
def test_slow_methods_get_fewer_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--edits", "3", "--methods", "unedited,grace", "--fewer", "unedited=1"]
    found, _ = bench(tmp_path, capsys, *chosen)
    assert found["quality"]["unedited"]["final"]["edits"] == 1
    assert found["quality"]["grace"]["final"]["edits"] == 3


def test_all_methods_by_default() -> None:
    rows = methods.chosen_methods(methods.options().parse_args([]))
    assert [row.name for row in rows] == [*editors.baselines(), *editors.editors()]
    assert {row.name: row.edits for row in rows}["textbook_grace"] == 5
    assert all(set(row.words) == {"family", "scope", "effect", "training"} for row in rows)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="Editor or baseline 'finetunning' does not exist"):
        methods.chosen_methods(methods.options().parse_args(["--methods", "finetunning"]))


def test_weights_that_moved_are_seen(loaded: Loaded) -> None:
    system = UneditedSystem(loaded.family.load().model, loaded.tokenizer)
    assert methods.weights_kept(system, loaded.model)
    with torch.no_grad():
        next(system.model.parameters())[0, 0] += 1e-3
    assert not methods.weights_kept(system, loaded.model)
