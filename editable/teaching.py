"""Teaches a frozen model once to obey an edit that it reads in its context (SERAC, section 4.2).

What is trained is a low-rank delta beside the attention projections of the later blocks, on generated edits, by the
negative log-likelihood of the target given the edit. Knows models and lessons; knows no scope.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editable import datasets, lowrank
from editable.counterfactual import in_context
from editable.datasets.case import Case
from editable.datasets.lessons import Lesson, lessons
from editable.digest import base_digest
from editable.inputs import Batch, Reader
from editable.learn import Probe, reference_prompts, shadow_of
from editable.lowrank import Deltas, fresh, put_beside
from editable.site import attention_projections, block_paths

HELD_OUT = 96  # lessons asked afterwards
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
        seed: of the deltas' first values.
    """

    steps: int = 150
    batch: int = 16
    rank: int = 4
    rate: float = 3e-3
    from_block: float = 1 / 3
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
    """Deltas beside the model's weights, with which it obeys an edit in its context; the model is not touched.

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
        chosen = given[step * course.batch : (step + 1) * course.batch]
        adam.param_groups[0]["lr"] = course.rate_at(step)
        with torch.enable_grad():
            loss = _nats(probe, _batch(probe.reader, chosen))
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        adam.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    return {path: (down.detach(), up.detach()) for path, (down, up) in deltas.items()}


@torch.no_grad()
def obeyed(model: nn.Module, tokenizer: Any, asked: Sequence[Lesson], deltas: Deltas, rows: int = 16) -> float:
    """Share of lessons whose whole answer, end token included, is the most likely one token by token."""
    shadow = shadow_of(model)
    put_beside(shadow, deltas)
    probe = Probe(shadow, Reader(shadow, tokenizer))
    right, left = 0, iter(asked)
    while some := list(islice(left, rows)):
        batch = _batch(probe.reader, some)
        same = (probe.logits(batch).argmax(dim=-1) == batch.answers) | (batch.answers == -100)
        right += int(same.all(dim=1).sum())
    return right / len(asked)


def _batch(reader: Reader, some: Sequence[Lesson]) -> Batch:
    requests = [reader.request("", lesson.edit) for lesson in some]
    asked = [reader.arguments(lesson.question) for lesson in some]
    return reader.batch([in_context(request, one, reader) for request, one in zip(requests, asked, strict=True)])


def _nats(probe: Probe, batch: Batch) -> Tensor:
    """Mean over all answer tokens of the batch."""
    logits = probe.logits(batch)  # (rows, longest answer, vocabulary)
    wanted = batch.answers != -100
    return nn.functional.cross_entropy(logits[wanted].float(), batch.answers[wanted])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@dataclass(frozen=True)
class Taught:
    """What came of a course.

    Args:
        path: the file of deltas.
        held_out: share of lessons from cases that were not taught whose whole answer came out, end token included.
        before: the same without the deltas.
        lessons: how many these shares are of.
    """

    path: Path
    held_out: float
    before: float
    lessons: int


def fit(
    model: nn.Module,
    tokenizer: Any,
    path: str | Path,
    cases: Sequence[Case],
    course: Course,
    progress: Callable[[int, float], None] | None = None,
) -> Taught:
    """Teach a model on lessons made of `cases`, and write its deltas to `path`, bound to its weights by their digest.

    An eighth of the cases is not taught, but asked afterwards.
    """
    mixed = random.Random(course.seed).sample(list(cases), len(cases))
    apart = max(len(mixed) // 8, 1)
    sentences = [*datasets.unrelated(), *reference_prompts()]
    given = list(islice(lessons(mixed[apart:] or mixed, sentences, course.seed), course.steps * course.batch))
    asked = list(islice(lessons(mixed[:apart], sentences, course.seed + 1), HELD_OUT))
    deltas = teach(model, tokenizer, given, course, progress)
    lowrank.write(path, deltas, {"base": base_digest(model), "course": json.dumps(asdict(course))})
    deltas, _ = lowrank.read(path)  # what is measured is what was written
    taught, untaught = (obeyed(model, tokenizer, asked, some) for some in (deltas, {}))
    return Taught(Path(path), taught, untaught, len(asked))
