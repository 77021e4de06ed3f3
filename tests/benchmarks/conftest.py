"""A tiny model, facts and questions in its words, as options of a benchmark."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from tests.families import FAMILIES, WORDS, Loaded

FACTS, QUESTIONS = 12, 40


@pytest.fixture(scope="session")
def tiny_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name the model, FACTS facts with a rephrase each, and QUESTIONS unrelated questions."""
    folder = tmp_path_factory.mktemp("tiny")
    loaded = tiny_loaded()
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    words = WORDS.split()
    said = [" ".join(draw.sample(words, 9)) for _ in range(2 * FACTS + QUESTIONS)]
    answers = draw.sample(words, FACTS)
    facts = [
        {"prompt": prompt, "target": target, "subject": prompt.split()[0], "rephrases": [rephrase]}
        for prompt, rephrase, target in zip(said, said[FACTS:], answers, strict=False)
    ]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "questions.txt").write_text("\n".join(said[2 * FACTS :]) + "\n")
    named = {"model": "model", "data": "facts.json", "unrelated": "questions.txt"}
    return [part for option, name in named.items() for part in (f"--{option}", str(folder / name))]


def tiny_loaded() -> Loaded:
    """The model that `tiny_options` names, here."""
    return next(family for family in FAMILIES if family.name == "llama-gqa").load()


@pytest.fixture
def tiny() -> Loaded:
    """The same, fresh."""
    return tiny_loaded()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A benchmark owns its process: it seeds, and keeps transformers quiet. Here it is not alone."""
    logging, shown = transformers.logging, transformers.utils.logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    with torch.random.fork_rng(devices=[]):
        yield
    logging.set_verbosity(verbosity)
    if shown:
        logging.enable_progress_bar()


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """The document that a benchmark printed last."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])
