"""In which order edits go in, and when they are scored: the survey's figure 1 (arXiv 2310.19704).

- single: each edit by itself, on a clean model
- batch: all at once
- sequential: one after another, or `batch_size` at a time; scored right after their insertion and with later models

Knows systems, cases and scores by their interfaces; what kind of model or edit it is, text or images, it does not know.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch

from editable import metrics
from editable.datasets.case import Case
from editable.edit import ModelInput
from editable.errors import InputError, StateError
from editable.journal import Journal
from editable.scoring import (
    CHUNK,
    Base,
    CaseScore,
    Drift,
    Scores,
    drift_from,
    drift_summary,
    drifts,
    fingerprint,
    score_chunk,
)
from editable.system import System

Order = Literal["single", "batch", "sequential"]
CHECKPOINTS = (1, 10, 100, 1000)


@dataclass(frozen=True)
class Protocol:
    """One way of inserting and scoring.

    Args:
        order: see the module docstring.
        batch_size: edits inserted together; for sequential orders only.
        immediate: how many edits, evenly chosen, are scored right after their insertion too; None scores all of them.
        checkpoints: after so many edits all edits so far are scored; and after the last one, always.
        seed: what an editor draws from.
    """

    order: Order = "sequential"
    batch_size: int = 1
    immediate: int | None = None
    checkpoints: tuple[int, ...] = CHECKPOINTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InputError(f"Protocol.order is {self.order!r}, expected one of {', '.join(get_args(Order))}.")
        if self.batch_size < 1:
            raise InputError(f"Protocol.batch_size is {self.batch_size}, expected at least 1 edit.")
        if self.batch_size > 1 and self.order != "sequential":
            raise InputError(
                f"Protocol.batch_size is {self.batch_size} with order {self.order!r}, expected 1; only sequential "
                "edits come in batches of a chosen size."
            )

    def batches(self, count: int) -> list[range]:
        """Which of `count` edits go in together, in order."""
        size = max(count, 1) if self.order == "batch" else self.batch_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def scored_after(self, count: int) -> list[int]:
        """After how many edits all so far are scored: at the end of the batch that reaches each checkpoint."""
        if self.order == "single" or not count:
            return []
        ends = [batch.stop for batch in self.batches(count)]
        reached = {next(end for end in ends if end >= wanted) for wanted in self.checkpoints if wanted <= count}
        return sorted(reached | {count})

    def scored_at_once(self, count: int) -> list[range]:
        """Batches that are scored right after their insertion."""
        batches = self.batches(count)
        if self.order == "batch":
            return []  # the last checkpoint is that very model
        if self.order == "single" or self.immediate is None:
            return batches
        wanted = min(len(batches), -(-self.immediate // self.batch_size))
        return [batches[index * len(batches) // wanted] for index in range(wanted)]


@dataclass(frozen=True)
class Checkpoint:
    """All edits so far under one model, and what it made of unrelated inputs.

    Args:
        edits: how many had gone in.
        scores: of all of them.
        unrelated: of the unrelated inputs.
    """

    edits: int
    scores: Scores
    unrelated: tuple[Drift, ...]

    def summary(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"cases": self.scores.summary(), "unrelated": drift_summary(self.unrelated)}


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Args:
        immediate: of edits right after their insertion, every one (or those sampled).
        checkpoints: retention; the last is the final model's. Empty for single edits.
        batches: how many edits went in together, batch by batch.
        insert_seconds: of each batch.
        numbers: that the system held in the end.
    """

    immediate: Scores
    checkpoints: tuple[Checkpoint, ...]
    batches: tuple[int, ...]
    insert_seconds: tuple[float, ...]
    numbers: int

    @property
    def final(self) -> Scores:
        """All edits with the final model; each with its own for single edits."""
        return self.checkpoints[-1].scores if self.checkpoints else self.immediate

    def summary(self) -> dict[str, Any]:
        """Plain JSON values that repeat exactly; SRR, GRR and ESR are over the survey's N batches of B."""
        found: dict[str, Any] = {"final": self.final.summary()}
        if self.immediate.cases:
            found["immediate"] = self.immediate.summary()
        if not self.checkpoints:
            return found
        edited = iter([case.edited for case in self.final.cases])
        batches = [[next(edited) for _ in range(size)] for size in self.batches]
        rates = (metrics.success_rate, metrics.generalization_rate, metrics.edit_success)
        kept = {rate.__name__: metrics.retained(rate, batches) for rate in rates}
        found["retention"] = {name: None if one is None else asdict(one) for name, one in kept.items()}
        return found | {"checkpoints": {str(checkpoint.edits): checkpoint.summary() for checkpoint in self.checkpoints}}


def key_of(cases: Sequence[Case], unrelated: Sequence[ModelInput], **what: Any) -> str:
    """SHA-256, in hex, of everything that a measurement's numbers depend on: data, and `what` else as plain JSON."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for case in cases:
        digest.update(json.dumps(_told(case)).encode())
    digest.update(json.dumps([fingerprint(one) for one in unrelated]).encode())
    return digest.hexdigest()


def _told(case: Case) -> list[Any]:
    """Everything in a case that scores depend on, as plain JSON."""
    edit, groups = case.edit, (case.rephrases, case.locality, case.portability)
    questions = [[(fingerprint(one.prompt), one.answers) for one in group] for group in groups]
    inputs = [[fingerprint(one) for one in group] for group in ((edit.prompt,), edit.rephrases, edit.locality)]
    about = [edit.target, edit.subject, edit.namespace, case.before]
    return [inputs, questions, about, case.generate, case.reference]


def _nothing(_text: str) -> None:
    return None


@dataclass(eq=False)
class Run:
    """One measurement: a system, its cases, and what is finished already.

    Args:
        system: what is measured. Its edits may have outlived a killed process, where the journal did too.
        cases: in the order in which they go in.
        base: the unedited model.
        protocol: how they go in.
        unrelated: inputs that no edit is about.
        journal: keeps finished parts.
        progress: told, in words, how far it is.
    """

    system: System
    cases: Sequence[Case]
    base: Base
    protocol: Protocol
    unrelated: Sequence[ModelInput] = ()
    journal: Journal = field(default_factory=Journal)
    progress: Callable[[str], None] = _nothing

    def outcome(self) -> Outcome:
        """Insert and score everything that is not finished yet.

        Raises:
            StateError: the system holds edits though nothing was kept of an earlier run.
        """
        if self.system.held and self.journal.path is None:
            raise StateError(
                f"System {self.system.name!r} holds {self.system.held} edits, expected none at the start; reset() it, "
                "or give the journal of the run that they belong to."
            )
        batches = self.protocol.batches(len(self.cases))
        immediate = self._single() if self.protocol.order == "single" else None
        checkpoints: list[Checkpoint] = []
        if immediate is None:
            immediate, checkpoints = self._sequence(batches)
        numbers = int(self.journal.part("numbers", self._numbers))
        seconds = [float(self.journal.part(_inserted(batch), lambda: 0.0)) for batch in batches]
        return Outcome(Scores(tuple(immediate)), tuple(checkpoints), tuple(map(len, batches)), tuple(seconds), numbers)

    def _numbers(self) -> int:
        if self.protocol.order != "single":
            self._hold(len(self.cases))
        return self.system.numbers

    def _single(self) -> list[CaseScore]:
        found = []
        for index in range(len(self.cases)):
            batch = range(index, index + 1)
            if f"single {index}" not in self.journal:
                self.system.reset()
                self._insert(batch, batch)
            found += self._scored(f"single {index}", batch)
            self.progress(f"{index + 1} of {len(self.cases)} edits, each by itself")
        return found

    def _sequence(self, batches: Sequence[range]) -> tuple[list[CaseScore], list[Checkpoint]]:
        count = len(self.cases)
        at_once, ends = set(self.protocol.scored_at_once(count)), self.protocol.scored_after(count)
        immediate, checkpoints = [], []
        for batch in batches:
            if batch in at_once:
                immediate += self._all_scored("right after", batch, batch.stop)
                self.progress(f"{batch.stop} of {len(self.cases)} edits inserted")
            if batch.stop in ends:
                scores = self._all_scored("all", range(batch.stop), batch.stop)
                checkpoints.append(Checkpoint(batch.stop, Scores(tuple(scores)), self._drifted(batch.stop)))
                self.progress(f"checkpoint: {batch.stop} edits scored")
        return immediate, checkpoints

    def _all_scored(self, when: str, cases: range, held: int) -> list[CaseScore]:
        """The cases of these indices, scored in chunks with the model that holds `held` edits."""
        found = []
        for start in range(cases.start, cases.stop, CHUNK):
            chunk = range(start, min(start + CHUNK, cases.stop))
            name = f"{when}, {held} held: cases {start}"
            if name not in self.journal:
                self._hold(held)
            found += self._scored(name, chunk)
        return found

    def _scored(self, name: str, chunk: range) -> list[CaseScore]:
        cases = [self.cases[index] for index in chunk]
        kept = self.journal.part(name, lambda: [s.as_dict() for s in score_chunk(self.system, cases, self.base)])
        return [CaseScore.from_dict(one) for one in kept]

    def _drifted(self, held: int) -> tuple[Drift, ...]:
        found: list[Drift] = []
        for start in range(0, len(self.unrelated), CHUNK):
            chunk = self.unrelated[start : start + CHUNK]
            name = f"all, {held} held: unrelated {start}"
            if name not in self.journal:
                self._hold(held)
            kept: list[Mapping[str, Any]] = self.journal.part(name, lambda c=chunk: self._looked_at(c))  # type: ignore[misc]
            found += [drift_from(one) for one in kept]
        return tuple(found)

    def _looked_at(self, inputs: Sequence[ModelInput]) -> list[dict[str, Any]]:
        return [asdict(drift) for drift in drifts(self.system, inputs, self.base)]

    def _hold(self, count: int) -> None:
        """See to it that the system holds the first `count` edits, inserted batch by batch."""
        if self.system.held > count:
            self.system.reset()
        for batch in self.protocol.batches(len(self.cases)):
            if self.system.held < batch.stop <= count:
                self._insert(range(self.system.held, batch.stop), batch)

    def _insert(self, missing: range, batch: range) -> None:
        with _seeded(self.protocol.seed + batch.start):
            start = time.perf_counter()
            self.system.insert([self.cases[index].edit for index in missing])
            seconds = time.perf_counter() - start
        self.journal.part(_inserted(batch), lambda: seconds)


def _inserted(batch: range) -> str:
    return f"inserted {batch.start} to {batch.stop}, seconds"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a known random state inside: a run that is continued draws what it would have drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def run(
    system: System,
    cases: Sequence[Case],
    base: Base,
    protocol: Protocol,
    unrelated: Sequence[ModelInput] = (),
    journal: Journal | None = None,
    progress: Callable[[str], None] = _nothing,
) -> Outcome:
    """Insert `cases` into `system` as `protocol` says, and score them; see `Run`."""
    return Run(system, cases, base, protocol, unrelated, Journal() if journal is None else journal, progress).outcome()
