"""Teaching: the loss falls, the model stays, and what is written is what was measured."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import datasets, lowrank
from editable.adapters import SERAC
from editable.datasets.lessons import Lesson, lessons
from editable.digest import base_digest
from editable.errors import InputError
from editable.teaching import Course, obeyed, teach
from tests.families import FAMILIES

SHORT = Course(steps=12, batch=4, rate=5e-2)


@pytest.mark.parametrize("name", ["llama-gqa", "t5"])
def test_the_loss_falls_and_the_model_stays(name: str) -> None:
    loaded = next(family for family in FAMILIES if family.name == name).load()
    before, state = base_digest(loaded.model), torch.get_rng_state()
    one = list(islice(lessons(datasets.facts(5), datasets.unrelated(3)), SHORT.batch)) * SHORT.steps
    seen: list[float] = []
    deltas = teach(loaded.model, loaded.tokenizer, one, SHORT, lambda _, nats: seen.append(nats))
    assert len(seen) == SHORT.steps and seen[-1] < 0.9 * seen[0]
    assert base_digest(loaded.model) == before and torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.requires_grad for pair in deltas.values() for tensor in pair)
    assert lowrank.put_beside(loaded.model, deltas)


def test_the_first_loss_is_the_nats_of_the_answers_given_the_edits() -> None:
    """By hand: context, question and answer in one row, the mean of minus log p over the answer tokens."""
    loaded = FAMILIES[0].load()
    given = list(islice(lessons(datasets.facts(5), datasets.unrelated(3)), 2))
    losses: list[float] = []
    teach(loaded.model, loaded.tokenizer, given, Course(steps=1, batch=2), lambda _, nats: losses.append(nats))
    nats: list[float] = []
    for lesson in given:
        (edit,) = lesson.edits
        prompt, asked = (loaded.tokenizer(str(text)).input_ids for text in (edit.prompt, lesson.question))
        both = loaded.tokenizer(f"{edit.prompt}{edit.target}").input_ids
        answer = [*both[len(prompt) :], 2]
        ids = [*prompt, *answer, *loaded.tokenizer("\n").input_ids, *asked, *answer]
        with torch.no_grad():
            log_p = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats += [-float(log_p[len(ids) - len(answer) - 1 + place, token]) for place, token in enumerate(answer)]
    assert losses[0] == pytest.approx(math.fsum(nats) / len(nats), rel=1e-4)


def test_only_the_later_blocks_get_deltas() -> None:
    loaded = FAMILIES[1].load()
    given = list(islice(lessons(datasets.facts(5), datasets.unrelated(3)), 2))
    deltas = teach(loaded.model, loaded.tokenizer, given, Course(steps=1, batch=2, from_block=0.5))
    names = {path.removeprefix("model.layers.") for path in deltas}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert names == {f"{block}.self_attn.{linear}" for block in (1, 2) for linear in linears}


def test_the_rate_rises_and_falls() -> None:
    course = Course(steps=100, rate=1.0)
    assert course.rate_at(0) == pytest.approx(0.1)
    assert course.rate_at(50) == pytest.approx(0.5)
    assert course.rate_at(99) < 0.001


def test_fit_writes_weights_bound_to_the_base(tmp_path: Path) -> None:
    loaded = FAMILIES[1].load()
    taught = SERAC().fit(loaded.model, loaded.tokenizer, tmp_path / "weights", course=Course(steps=2, batch=2))
    deltas, notes = lowrank.read(taught.path)
    assert notes["base"] == base_digest(loaded.model)
    assert json.loads(notes["course"])["steps"] == 2
    assert all(0 <= share <= 1 for share in (taught.held_out, taught.before, taught.built_on, taught.built_on_before))
    assert taught.lessons == 96
    asked = list(islice(lessons(datasets.facts(20), datasets.unrelated(3)), 4))
    assert obeyed(loaded.model, loaded.tokenizer, asked, deltas) in (0, 0.25, 0.5, 0.75, 1)


def test_what_is_taught_is_mixed_as_the_course_says(tmp_path: Path, monkeypatch: Any) -> None:
    loaded, taught = FAMILIES[1].load(), list[Lesson]()

    def keep(_model: Any, _tokenizer: Any, given: list[Lesson], *_: Any) -> lowrank.Deltas:
        taught.extend(given)
        return {"layer": (torch.zeros(1, 1), torch.zeros(1, 1))}

    monkeypatch.setattr("editable.teaching.teach", keep)
    monkeypatch.setattr("editable.teaching.obeyed", lambda *_: 0.0)
    SERAC().fit(loaded.model, loaded.tokenizer, tmp_path / "weights", course=Course(steps=50, batch=4, building=0.3))
    assert len(taught) == 200
    building = [place for place, lesson in enumerate(taught) if all(edit.subject for edit in lesson.edits)]
    assert len(building) == 60 and min(building) < 20 and max(building) > 180


def test_a_model_without_room_for_lessons_is_refused(tmp_path: Path) -> None:
    loaded = FAMILIES[1].load()
    loaded.model.config.max_position_embeddings = 8
    with pytest.raises(InputError, match=r"ForCausalLM reads 8 tokens, expected room .* 0 of 40 lessons fit; use"):
        SERAC().fit(loaded.model, loaded.tokenizer, tmp_path / "weights", course=Course(steps=2, batch=2))
    assert not (tmp_path / "weights").exists()


def test_the_command(tmp_path: Path, monkeypatch: Any) -> None:
    from typer.testing import CliRunner

    from editable import models
    from editable.cli import app

    loaded = FAMILIES[1].load()
    monkeypatch.setattr(models, "load", lambda _name: (loaded.model, loaded.tokenizer))
    arguments = ["serac", "fit", str(tmp_path / "weights"), "--steps", "1", "--batch", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["path"] == str(tmp_path / "weights") and found["lessons"] == 96
    assert lowrank.made_for(loaded.model, found["path"])
