"""Teaches a frozen model once to answer by the edits that it reads in its context (SERAC, section 4.2).

What is trained is a low-rank delta beside the attention projections of the later blocks, by the negative log-likelihood
of the answer given generated edits: of what an edit says, asked in any words, and of what follows from it together with
what the model knows. Knows models and lessons; knows no scope.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editable import datasets, lowrank
from editable.counterfactual import in_context
from editable.datasets.case import Case
from editable.datasets.hops import World, hops
from editable.datasets.lessons import Lesson, lessons
from editable.digest import base_digest
from editable.edit import Edit
from editable.errors import InputError
from editable.inputs import Batch, Reader, Request
from editable.learn import Probe, reference_prompts, shadow_of
from editable.lowrank import Deltas, fresh, put_beside
from editable.site import attention_projections, block_paths, context_length

HELD_OUT = 96  # lessons asked afterwards
TOGETHER = 4  # lessons in one forward, of about the same length
TRIED = 20  # lessons for each that must fit into the model's context
CLIP = 1.0  # most that a gradient may be long; the first steps of Adam on zeros are steep


@dataclass(frozen=True)
class Course:
    """How a model is taught.

    Args:
        steps: batches.
        batch: lessons in each.
        rank: of each delta.
        rate: of Adam at its highest; it rises over ten steps and falls along a cosine.
        from_block: share of the blocks below the first one with deltas: nothing is differentiated there.
        building: share of the lessons that ask for what follows from edits, and not for what one says.
        seed: of the deltas' first values, and of what is drawn.
    """

    steps: int = 200
    batch: int = 16
    rank: int = 8
    rate: float = 3e-3
    from_block: float = 1 / 3
    building: float = 0.6
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of one step."""
        return self.rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def teach(
    model: nn.Module,
    tokenizer: Any,
    given: Sequence[Lesson],
    course: Course,
    progress: Callable[[int, float], None] | None = None,
) -> Deltas:
    """Deltas beside the model's weights, with which it answers by the edits in its context; the model is not touched.

    Args:
        model: causal or encoder-decoder.
        tokenizer: its own.
        given: lessons, at least `course.steps * course.batch`, taken in order.
        course: how.
        progress: told each step and its loss in nats a token.
    """
    shadow = shadow_of(model)
    blocks = block_paths(shadow)
    later = blocks[int(course.from_block * len(blocks)) :]
    beside = [path for block in later for path in attention_projections(shadow, block)]
    deltas = fresh(shadow, beside, course.rank, torch.Generator().manual_seed(course.seed))
    deltas = {path: (down.to(_device(shadow)), up.to(_device(shadow))) for path, (down, up) in deltas.items()}
    weights = [tensor.requires_grad_() for pair in deltas.values() for tensor in pair]
    put_beside(shadow, deltas)
    probe = Probe(shadow, Reader(shadow, tokenizer))
    adam = torch.optim.Adam(weights)
    for step in range(course.steps):
        adam.param_groups[0]["lr"] = course.rate_at(step)
        adam.zero_grad()
        nats = _learned(probe, given[step * course.batch : (step + 1) * course.batch])
        nn.utils.clip_grad_norm_(weights, CLIP)
        adam.step()
        if progress is not None:
            progress(step, nats)
    return {path: (down.detach(), up.detach()) for path, (down, up) in deltas.items()}


@torch.no_grad()
def obeyed(model: nn.Module, tokenizer: Any, asked: Sequence[Lesson], deltas: Deltas, rows: int = 16) -> float:
    """Share of lessons whose whole answer, end token included, is the most likely one token by token."""
    shadow = shadow_of(model)
    put_beside(shadow, deltas)
    probe = Probe(shadow, Reader(shadow, tokenizer))
    right, left = 0, iter(asked)
    while some := list(islice(left, rows)):
        batch = probe.reader.batch([_asked(probe.reader, lesson) for lesson in some])
        same = (probe.logits(batch).argmax(dim=-1) == batch.answers) | (batch.answers == -100)
        right += int(same.all(dim=1).sum())
    return right / len(asked)


def _learned(probe: Probe, chosen: Sequence[Lesson]) -> float:
    """Add up the gradients of a step's lessons; the mean nats over all their answer tokens."""
    requests = sorted((_asked(probe.reader, lesson) for lesson in chosen), key=_length)
    tokens, total = sum(len(request.answer) for request in requests), 0.0
    for start in range(0, len(requests), TOGETHER):
        with torch.enable_grad():
            share = _nats(probe, probe.reader.batch(requests[start : start + TOGETHER])) / tokens
        share.backward()
        total += float(share.detach())
    return total


def _asked(reader: Reader, lesson: Lesson) -> Request:
    """The question, with the edits in front of it."""
    before = [reader.request("", edit) for edit in lesson.edits]
    return in_context(before, reader.request("", Edit(lesson.question, lesson.answer)), reader)


def _length(request: Request) -> int:
    return request.prompts[0]["input_ids"].shape[1]


def _nats(probe: Probe, batch: Batch) -> Tensor:
    """Sum over all answer tokens of the batch."""
    logits = probe.logits(batch)  # (rows, longest answer, vocabulary)
    wanted = batch.answers != -100
    return nn.functional.cross_entropy(logits[wanted].float(), batch.answers[wanted], reduction="sum")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@dataclass(frozen=True)
class Taught:
    """What came of a course.

    Args:
        path: the file of deltas.
        held_out: share of lessons from cases that were not taught whose whole answer came out, end token included.
        before: the same without the deltas.
        built_on: the same, of questions about what follows from edits that were not taught.
        built_on_before: and that without the deltas.
        lessons: how many each of these shares is of.
    """

    path: Path
    held_out: float
    before: float
    built_on: float
    built_on_before: float
    lessons: int = field(default=HELD_OUT, init=False)


def fit(
    model: nn.Module,
    tokenizer: Any,
    path: str | Path,
    cases: Sequence[Case],
    course: Course,
    progress: Callable[[int, float], None] | None = None,
) -> Taught:
    """Teach a model on lessons made of `cases` and of what follows from edits, and write its deltas to `path`.

    They are bound to its weights by their digest. An eighth of the cases is not taught, but asked afterwards.

    Raises:
        InputError: the model has room for hardly any lesson.
    """
    mixed = random.Random(course.seed).sample(list(cases), len(cases))
    apart, total = max(len(mixed) // 8, 1), course.steps * course.batch
    reader, building = Reader(model, tokenizer), round(course.building * total)
    obeying, built = _drawn(reader, mixed[apart:] or mixed, course.seed, total - building, building)
    given = random.Random(course.seed).sample([*obeying, *built], total)
    deltas = teach(model, tokenizer, given, course, progress)
    lowrank.write(path, deltas, {"base": base_digest(model), "course": json.dumps(asdict(course))})
    deltas, _ = lowrank.read(path)  # what is measured is what was written
    obeys, builds = (
        [obeyed(model, tokenizer, asked, beside) for beside in (deltas, {})]
        for asked in _drawn(reader, mixed[:apart], course.seed + 1, HELD_OUT, HELD_OUT)
    )
    return Taught(Path(path), *obeys, *builds)


def _drawn(
    reader: Reader, cases: Sequence[Case], seed: int, obeying: int, building: int
) -> tuple[list[Lesson], list[Lesson]]:
    """So many lessons on what an edit says, and so many on what follows from edits."""
    sentences = [*datasets.unrelated(), *reference_prompts()]
    says, follows = lessons(cases, sentences, seed), hops(World.shipped(), seed)
    return _fitting(reader, says, obeying), _fitting(reader, follows, building)


def _fitting(reader: Reader, endless: Iterator[Lesson], count: int) -> list[Lesson]:
    """The first lessons that the model has room for."""
    room, tried = context_length(reader.model), islice(endless, count * TRIED)
    found = list(islice((lesson for lesson in tried if _tokens(reader, lesson) <= room), count))
    if len(found) < count:
        raise InputError(
            f"{type(reader.model).__name__} reads {room} tokens, expected room for an edit and a question: "
            f"{len(found)} of {count * TRIED} lessons fit; use a model with a longer context."
        )
    return found


def _tokens(reader: Reader, lesson: Lesson) -> int:
    told = [f"{edit.prompt}{edit.target}" for edit in lesson.edits]
    text = "\n".join([*told, f"{lesson.question}{lesson.answer}"])
    return len(reader.tokenizer(text)["input_ids"]) + len(told) + 1  # and the token that ends each answer
