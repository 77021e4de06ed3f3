"""How well a system answers what its edits are about, and how far it has left everything else alone.

Every number comes from `metrics`; this file says what is asked, asks it in chunks, and sums it up. The unedited model's
answers to what should not change are taken once (`Base`). Knows no editor and no protocol.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from editable import metrics
from editable.datasets.case import Case, Question
from editable.edit import ModelInput
from editable.errors import InputError
from editable.metrics import Accuracy, Contrast, Edited, TfIdf
from editable.pictures import is_picture
from editable.system import Answer, Asked

CHUNK = 32  # cases asked together
MARGIN = 4  # tokens a free answer may run over the longest right answer, end token included, before it is cut off
TEXT_TOKENS = 100  # of each text generated for fluency and consistency, as in ROME's code


@dataclass(frozen=True)
class Drift:
    """What became of the answer to one input that no edit is about.

    Args:
        bit_equal: whether all logits have the unedited model's bits.
        kl_nats: KL(unedited || edited), mean over positions.
        agreement: share of positions with the unedited model's most likely token.
        nats: negative log-likelihood per token of the input's own text, (unedited, edited); None where not text.
        tokens: how many tokens that is a mean over.
        before: how the unedited model answered, where the right answer is known.
        after: how the edited one did.
        kind: what the dataset calls such inputs.
    """

    bit_equal: bool
    kl_nats: float
    agreement: float
    nats: tuple[float, float] | None = None
    tokens: int = 0
    before: Accuracy | None = None
    after: Accuracy | None = None
    kind: str = ""


@dataclass(frozen=True)
class CaseScore:
    """All scores of one case.

    Args:
        where: the case's file and record.
        own: on the edit's own input; reliability.
        rephrases: on its neighbourhood; generality.
        portability: on what follows from it.
        locality: what became of its locality inputs.
        efficacy: the new answer against the one it replaces, on the edit's input; None where that one is unknown.
        paraphrases: the same on the rephrases.
        neighbours: the same on locality inputs whose right answer is the replaced one.
        fluency_bits: mean over texts generated from the case's beginnings; None where there are none.
        consistency: of those texts with the case's reference texts.
    """

    where: str
    own: Accuracy
    rephrases: tuple[Accuracy, ...] = ()
    portability: tuple[Accuracy, ...] = ()
    locality: tuple[Drift, ...] = ()
    efficacy: Contrast | None = None
    paraphrases: tuple[Contrast, ...] = ()
    neighbours: tuple[Contrast, ...] = ()
    fluency_bits: float | None = None
    consistency: float | None = None

    @property
    def edited(self) -> Edited:
        """The part that the survey's rates are over."""
        return Edited(self.own, self.rephrases)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; floats survive the way there and back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaseScore:
        """What `as_dict` was made from."""
        accuracies = {name: tuple(Accuracy(**one) for one in values[name]) for name in ("rephrases", "portability")}
        contrasts = {name: tuple(Contrast(**one) for one in values[name]) for name in ("paraphrases", "neighbours")}
        efficacy = None if values["efficacy"] is None else Contrast(**values["efficacy"])
        built: dict[str, Any] = {**accuracies, **contrasts, "own": Accuracy(**values["own"]), "efficacy": efficacy}
        return cls(**{**values, **built, "locality": tuple(drift_from(one) for one in values["locality"])})


def drift_from(values: Mapping[str, Any]) -> Drift:
    """The Drift that `dataclasses.asdict` gave these values of."""
    answered = {name: Accuracy(**values[name]) for name in ("before", "after") if values[name] is not None}
    nats = None if values["nats"] is None else tuple(values["nats"])
    return Drift(**{**values, **answered, "nats": nats})


# --- the unedited model ---


@dataclass(frozen=True)
class Looked:
    """What the unedited model's logits for one input were, as far as it is worth keeping."""

    digest: str
    nats: float | None


@dataclass(eq=False)
class Base:
    """The unedited model's answers, each computed when it is first needed and kept for all systems and checkpoints.

    Args:
        asked: the unedited model.
        references: reference texts of all cases, which say how common a word is; for consistency.
    """

    asked: Asked
    references: Sequence[str] = ()
    _looked: dict[str, Looked] = field(default_factory=dict)
    _answered: dict[tuple[str, ...], list[Accuracy]] = field(default_factory=dict)

    @cached_property
    def vectors(self) -> TfIdf | None:
        """TF-IDF over the reference texts; None without any."""
        return TfIdf(self.references) if self.references else None

    def looked(self, prompt: ModelInput) -> Looked:
        """The digest of its logits, and the likelihood of its own text."""
        key = fingerprint(prompt)
        if key not in self._looked:
            logits, ids = self.asked.logits([prompt])[0], self.asked.prompt_ids([prompt])[0]
            self._looked[key] = Looked(_digest(logits), _own_nats(logits, ids))
        return self._looked[key]

    def answered(self, questions: Sequence[Question]) -> list[Accuracy]:
        """How it answers questions; those asked together are kept together, since a batch's last bits depend on it."""
        key = tuple(f"{fingerprint(q.prompt)} {q.answers!r}" for q in questions)
        if key not in self._answered:
            self._answered[key] = [reply.accuracy for reply in replies(self.asked, questions)]
        return self._answered[key]


def fingerprint(value: ModelInput) -> str:
    """SHA-256, in hex, of one input."""
    digest = hashlib.sha256()
    if isinstance(value, str | os.PathLike):
        digest.update(os.fspath(value).encode())
    elif is_picture(value):
        digest.update(f"{value.mode} {value.size} ".encode() + value.tobytes())
    else:
        named = {"": value} if isinstance(value, Tensor) else value
        for name, part in sorted(named.items()):
            digest.update(f"{name} {_digest(part) if isinstance(part, Tensor) else part!r}\n".encode())
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + raw).hexdigest()


def _own_nats(logits: Tensor, ids: Tensor) -> float | None:
    """Of the text that logits (positions, vocabulary) belong to; its first token is given."""
    return metrics.nats_per_token(logits[:-1], ids[1:]) if len(ids) > 1 else None


# --- asking ---


@dataclass(frozen=True)
class Reply:
    """How one question was answered, and how likely its first answer was."""

    accuracy: Accuracy
    nats: float


def replies(asked: Asked, questions: Sequence[Question]) -> list[Reply]:
    """Ask questions that have answers: the first is forced, any of them is right where it comes freely.

    Raises:
        InputError: a question has no answer.
    """
    if not questions:
        return []
    for question in questions:
        if not question.answers:
            raise InputError(
                f"Question {str(question.prompt)[:60]!r} has no answers, expected at least one that it can be scored "
                "against; give Question(answers=...)."
            )
    prompts = [question.prompt for question in questions]
    logits = asked.forced(prompts, [question.answers[0] for question in questions])
    pairs = [(question, answer) for question in questions for answer in question.answers]
    ids = iter(asked.target_ids([q.prompt for q, _ in pairs], [answer for _, answer in pairs]))
    targets = [[next(ids) for _ in question.answers] for question in questions]
    said = asked.free(prompts, [max(map(len, group)) + MARGIN for group in targets])
    return [_reply(*one) for one in zip(questions, logits, targets, said, strict=True)]


def _reply(question: Question, logits: Tensor, targets: Sequence[Tensor], said: Answer) -> Reply:
    accuracy = Accuracy(metrics.forced_share(logits, targets[0]), _exact(question, targets, said))
    return Reply(accuracy, metrics.nats_per_token(logits, targets[0]))


def _exact(question: Question, targets: Sequence[Tensor], said: Answer) -> float:
    texts = [answer for answer in question.answers if isinstance(answer, str)]
    if texts:
        return metrics.exact_match(said.text, said.stopped, texts)
    return float(list(said.tokens) in [target.tolist() for target in targets])


def likelihoods(asked: Asked, pairs: Sequence[tuple[ModelInput, str | int]]) -> list[float]:
    """Negative log-likelihood per token, in nats, of each answer after its prompt."""
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    targets = zip(asked.forced(prompts, answers), asked.target_ids(prompts, answers), strict=True)
    return [metrics.nats_per_token(logits, target) for logits, target in targets]


def drifts(system: Asked, prompts: Sequence[ModelInput], base: Base) -> list[Drift]:
    """What became of the answers to inputs that no edit is about."""
    return [_drift(system, prompt, base) for prompt in prompts]


def _drift(system: Asked, prompt: ModelInput, base: Base) -> Drift:
    after, ids, known = system.logits([prompt])[0], base.asked.prompt_ids([prompt])[0], base.looked(prompt)
    nats = _own_nats(after, ids)
    both = None if nats is None or known.nats is None else (known.nats, nats)
    tokens = max(len(ids) - 1, 0)
    if _digest(after) == known.digest:
        return Drift(True, 0.0, 1.0, both, tokens)
    before = base.asked.logits([prompt])[0]  # kept as a digest only: all of them would fill the memory
    return Drift(False, metrics.kl_nats(before, after), metrics.agreement(after, before), both, tokens)


# --- scoring ---


@dataclass(frozen=True)
class Scores:
    """The scores of several cases, under one model."""

    cases: tuple[CaseScore, ...]

    def summary(self) -> dict[str, float | None]:
        """The survey's metrics, CounterFact's where they apply, and portability, by name."""
        edited = [case.edited for case in self.cases]
        ported = (metrics.mean_accuracy(case.portability) for case in self.cases)
        found = {
            **_both("success_rate", metrics.success_rate(edited)),
            **_both("generalization_rate", metrics.generalization_rate(edited)),
            **_both("edit_success", metrics.edit_success(edited)),
            **_both("portability", metrics.mean_accuracy(one for one in ported if one is not None)),
            **drift_summary([drift for case in self.cases for drift in case.locality]),
            **self._counterfact(),
            "fluency_bits": metrics.mean(c.fluency_bits for c in self.cases if c.fluency_bits is not None),
            "consistency": metrics.mean(c.consistency for c in self.cases if c.consistency is not None),
        }
        return {"edits": float(len(self.cases)), **found}

    def _counterfact(self) -> dict[str, float | None]:
        known = [case for case in self.cases if case.efficacy is not None]
        own = [case.efficacy for case in known if case.efficacy is not None]
        found = metrics.counterfact(own, [c.paraphrases for c in known], [c.neighbours for c in known])
        return {f"counterfact_{name}": value for name, value in asdict(found).items()}


def drift_summary(found: Sequence[Drift]) -> dict[str, float | None]:
    """Locality over inputs: DD, bit-equal share, KL, agreement, and perplexity against the unedited model's."""
    answered = [(d.before, d.after) for d in found if d.before is not None and d.after is not None]
    lost = metrics.drawdown([before for before, _ in answered], [after for _, after in answered])
    texts = [(d.nats, d.tokens) for d in found if d.nats is not None]
    was, now = (metrics.perplexity([nats[i] for nats, _ in texts], [count for _, count in texts]) for i in (0, 1))
    return {
        **_both("drawdown", lost),
        "bit_equal_share": metrics.mean(float(drift.bit_equal) for drift in found),
        "kl_nats": metrics.mean(drift.kl_nats for drift in found),
        "agreement": metrics.mean(drift.agreement for drift in found),
        "perplexity_before": was,
        "perplexity_after": now,
        "perplexity_drift": metrics.perplexity_drift(now, was),
    }


def _both(name: str, accuracy: Accuracy | None) -> dict[str, float | None]:
    if accuracy is None:
        return {f"{name}_forced": None, f"{name}_exact": None}
    return {f"{name}_forced": accuracy.forced, f"{name}_exact": accuracy.exact}


def score(system: Asked, cases: Sequence[Case], base: Base) -> Scores:
    """Score cases under the system as it is now, `CHUNK` at a time; the same call gives the same numbers."""
    chunks = (cases[start : start + CHUNK] for start in range(0, len(cases), CHUNK))
    return Scores(tuple(one for chunk in chunks for one in score_chunk(system, chunk, base)))


def score_chunk(system: Asked, cases: Sequence[Case], base: Base) -> list[CaseScore]:
    """Score a few cases, whose questions are asked together."""
    sheets = [_sheet(case) for case in cases]
    answered = iter(replies(system, [question for sheet in sheets for question in sheet.questions]))
    known = iter(base.answered([question for sheet in sheets for question in sheet.known]))
    rivals = iter(likelihoods(system, [pair for sheet in sheets for pair in sheet.rivals]))
    return [
        _case_score(
            system,
            base,
            sheet,
            list(islice(answered, len(sheet.questions))),
            list(islice(known, len(sheet.known))),
            list(islice(rivals, len(sheet.rivals))),
        )
        for sheet in sheets
    ]


@dataclass(frozen=True, eq=False)
class Sheet:
    """What is asked about one case.

    Args:
        case: the case.
        target: what its edit asks for.
        own: the edit's own input and its rephrases.
        portability: those whose answer is known.
        known: locality inputs whose answer is known.
    """

    case: Case
    target: str | int
    own: Sequence[Question]
    portability: Sequence[Question]
    known: Sequence[Question]

    @property
    def questions(self) -> list[Question]:
        """Everything that can be right or wrong."""
        return [*self.own, *self.portability, *self.known]

    @property
    def neighbours(self) -> list[Question]:
        """Locality inputs whose answer is the one that the edit replaces for its own subject."""
        return [q for q in self.known if self.case.before is not None and q.answers[0] == self.case.before]

    @property
    def rivals(self) -> list[tuple[ModelInput, str | int]]:
        """Answers that should be less likely than the right one: the old one in scope, the new one out of it."""
        if self.case.before is None:
            return []
        inside = [(question.prompt, self.case.before) for question in self.own]
        return [*inside, *((question.prompt, self.target) for question in self.neighbours)]


def _sheet(case: Case) -> Sheet:
    target = case.edit.target
    if target is None:
        raise InputError(
            f"Case {case.where!r} has an edit without a target, expected text or a label that can be scored against; "
            "give Edit(target=...)."
        )
    own = [Question(prompt, (target,)) for prompt in (case.edit.prompt, *(r.prompt for r in case.rephrases))]
    known = [[question for question in group if question.answers] for group in (case.portability, case.locality)]
    return Sheet(case, target, own, *known)


def _case_score(
    system: Asked, base: Base, sheet: Sheet, found: Sequence[Reply], before: Sequence[Accuracy], rivals: Sequence[float]
) -> CaseScore:
    own, rest = found[: len(sheet.own)], found[len(sheet.own) :]
    portability, known = rest[: len(sheet.portability)], rest[len(sheet.portability) :]
    # With no rival there is no contrast either, and `zip` ends at once.
    inside = [Contrast(reply.nats, true) for reply, true in zip(own, rivals, strict=False)]
    right = [reply for reply, question in zip(known, sheet.known, strict=True) if question in sheet.neighbours]
    outside = [Contrast(new, reply.nats) for reply, new in zip(right, rivals[len(own) :], strict=True)]
    return CaseScore(
        sheet.case.where,
        own[0].accuracy,
        tuple(reply.accuracy for reply in own[1:]),
        tuple(reply.accuracy for reply in portability),
        tuple(_answered_drifts(system, base, sheet, before, known)),
        inside[0] if inside else None,
        tuple(inside[1:]),
        tuple(outside),
        *_texts(system, sheet.case, base),
    )


def _answered_drifts(
    system: Asked, base: Base, sheet: Sheet, before: Sequence[Accuracy], after: Sequence[Reply]
) -> list[Drift]:
    answered = {id(q): (was, now.accuracy) for q, was, now in zip(sheet.known, before, after, strict=True)}
    questions = sheet.case.locality
    found = drifts(system, [question.prompt for question in questions], base)
    pairs = [answered.get(id(question), (None, None)) for question in questions]
    return [
        replace(drift, before=was, after=now, kind=question.kind)
        for drift, (was, now), question in zip(found, pairs, questions, strict=True)
    ]


def _texts(system: Asked, case: Case, base: Base) -> tuple[float | None, float | None]:
    """Fluency and consistency of texts that the system writes, greedily, from the case's beginnings."""
    if not case.generate:
        return None, None
    said = system.free(case.generate, [TEXT_TOKENS] * len(case.generate))
    texts = [beginning + answer.text for beginning, answer in zip(case.generate, said, strict=True)]
    fluent = metrics.mean(bits for text in texts if (bits := metrics.fluency(text)) is not None)
    if not case.reference:
        return fluent, None
    return fluent, metrics.consistency(texts, case.reference, base.vectors or TfIdf(case.reference))
