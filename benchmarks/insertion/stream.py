"""Threads generate while edits come in: every output must be that of one published version."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from editable import EditableModel
from editable.benchmarks import common
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part, Setting
from editable.benchmarks.report import Table
from editable.datasets import Case

NEW_TOKENS = 8
QUESTIONS = 10  # unrelated ones that each thread asks beside its share of the facts
EXAMPLES = 3


@dataclass(frozen=True)
class Heard:
    """One generation while edits came in: the prompt, its new tokens, and the versions just before and after."""

    prompt: str
    tokens: tuple[int, ...]
    first: int
    last: int


@dataclass
class Log:
    """What the generating threads heard, and what went wrong."""

    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run(setting: Setting) -> Part:
    """Edits are submitted one after another, evenly over the time, while threads ask about them and about others."""
    options, log, done = setting.options, Log(), threading.Event()
    cases = setting.cases[: options.stream_edits]
    with setting.edited() as em:
        threads = [
            threading.Thread(target=_generate_on, args=(setting, em, _prompts(setting, cases, index), index, done, log))
            for index in range(options.stream_threads)
        ]
        for thread in threads:
            thread.start()
        published = _submit_all(em, cases, options.stream_seconds, log)
        done.set()
        for thread in threads:
            thread.join()
        wrong = impossible(setting, em, log.heard)
    return _part(options.stream_seconds, published, log, len(wrong))


def _prompts(setting: Setting, cases: Sequence[Case], index: int) -> list[str]:
    """Each thread asks about its own share of the facts, and some of the unrelated questions."""
    step = setting.options.stream_threads
    return [
        *(str(case.edit.prompt) for case in cases[index::step]),
        *setting.questions[index : QUESTIONS * step : step],
    ]


def _generate_on(
    setting: Setting, em: EditableModel, prompts: Sequence[str], seed: int, done: threading.Event, log: Log
) -> None:
    order = random.Random(seed)
    while not done.is_set():
        prompt = order.choice(prompts)
        try:
            first = em.version
            tokens = _answer(setting, prompt)
            log.heard.append(Heard(prompt, tokens, first, em.version))
        except Exception as error:  # counted and reported: that there are none is what is shown
            log.errors.append(f"{type(error).__name__}: {error}")


@torch.no_grad()
def _answer(setting: Setting, prompt: str) -> tuple[int, ...]:
    ids = setting.ids(prompt)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": setting.tokenizer.pad_token_id}
    tokens = setting.model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    return tuple(tokens[0, ids.shape[1] :].tolist())


def _submit_all(em: EditableModel, cases: Sequence[Case], seconds: float, log: Log) -> int:
    """Evenly over the time; gives how many were published."""
    start, futures = time.perf_counter(), []
    for index, case in enumerate(common.each(cases, "stream, edits", len(cases))):
        time.sleep(max(0.0, start + index * seconds / len(cases) - time.perf_counter()))
        futures.append(em.submit(case.edit, verify=False))
    published = 0
    for future in futures:
        try:
            published += future.result().version <= em.version
        except Exception as error:
            log.errors.append(f"{type(error).__name__}: {error}")
    time.sleep(max(0.0, start + seconds - time.perf_counter()))
    return published


def impossible(setting: Setting, em: EditableModel, heard: Sequence[Heard]) -> list[Heard]:
    """Generations that no version published between their beginning and their end gives."""
    known: dict[tuple[str, int], tuple[int, ...]] = {}

    def at(prompt: str, version: int) -> tuple[int, ...]:
        if (prompt, version) not in known:
            with em.at(version):
                known[prompt, version] = _answer(setting, prompt)
        return known[prompt, version]

    def fits(one: Heard) -> bool:
        return any(one.tokens == at(one.prompt, version) for version in range(one.first, one.last + 1))

    return [one for one in common.each(heard, "stream, generations checked", len(heard)) if not fits(one)]


def _part(seconds: float, published: int, log: Log, wrong: int) -> Part:
    exact: dict[str, Any] = {
        "edits_published": published,
        "outputs_of_no_version": wrong,
        "errors": len(log.errors),
        "error_examples": log.errors[:EXAMPLES],
    }
    across = sum(one.first != one.last for one in log.heard)
    counted = {"generations": len(log.heard), "generations_during_a_publication": across, "seconds": seconds}
    rows = [(name.replace("_", " "), value) for name, value in {**exact, **counted}.items()]
    bars = [
        Bar("streaming: outputs of no published version", wrong, "<=", 0),
        Bar("streaming: errors", len(log.errors), "<=", 0),
    ]
    return Part(exact, counted, [Table("generating while edits come in", ("", ""), rows)], bars)
