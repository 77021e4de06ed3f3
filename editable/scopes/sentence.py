"""What the prompt says, compared with a memory of sentences (SERAC, Mitchell et al., ICML 2022, section 3.2).

The memory is encoded once and indexed, and a small classifier tells a rephrase from a sibling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from torch import Tensor, nn

from editable import encoders
from editable.edit import Patch
from editable.editor import Call
from editable.encoders import Encoder
from editable.errors import InputError
from editable.inputs import Batch, Request
from editable.learn import Probe
from editable.memory.scope import Candidate, Classifier, Encoded, Phrase, SentenceBook
from editable.memory.wording import folded, readings, replaced
from editable.routing import Answers, Part
from editable.site import Site

ASKED = 0.999  # most that the share of a text is that asks what an edit answers, where others build on it
UNNAMED = 8  # edits that are read for a text that builds on one and does not name its subject
LONGEST = 4  # edits that one text may build on one after the other
SURE = 0.1  # the share of a text that is not the very prompt, but as like it as can be


@dataclass(frozen=True)
class SentenceScope:
    """An input falls under an edit if its text asks the same as one of the edit's prompts.

    Args:
        encoder: `"minilm"`, a directory or a hub id (see `editable.encoders.load`), or an `Encoder` of your own.
        false_fire: the share of near misses that may fall under an edit all the same, measured on prompts that the
            classifier was not trained on: the same question about another subject, about one that shares a word or a
            number with it, another question about the same subject, and unrelated texts, as many of each. Ordinary
            texts are much farther away. The less of it, the more rephrases are missed.
        classifier: path of weights made by `editable scope train`; None takes those that are shipped.
        reach: from where on a text falls under the edit nearest to it even if the classifier says no: the mean of the
            cosines of the sentences and of what they ask, which are the words around what each is about. So does a
            subject under another name, and what follows from an edit; and so do siblings, which is why it is for
            effects that read the edit (SERAC), on memories of subjects that have little in common. Then texts that ask
            for more than the edit says are told from those that ask just that (see `asks`), and may build on others too
            (see `built_on`): that takes one more forward of the encoder for each edit that leads on to another.
            None: never.
    """

    encoder: str | Encoder = "minilm"
    false_fire: float = 0.15
    classifier: str | None = None
    reach: float | None = None

    reads_text: ClassVar[bool] = True
    margin: ClassVar[
        float
    ] = -0.5  # a text that ends in an answer's tokens is a prompt and that answer, if it is a prompt

    def __post_init__(self) -> None:
        if not 0 <= self.false_fire < 1:
            raise InputError(
                f"SentenceScope.false_fire is {self.false_fire}, expected a share from 0 to 1, such as 0.15."
            )
        if self.reach is not None and not 0 < self.reach <= 1:
            raise InputError(
                f"SentenceScope.reach is {self.reach}, expected a mean of cosines above 0 and up to 1, such as 0.45, "
                "or None."
            )

    @property
    def asks(self) -> float:
        """Only in reach do texts fall under an edit for what they build on it."""
        return 1.0 if self.reach is None else ASKED

    def site(self, model: nn.Module, effect: Site) -> Site:  # noqa: ARG002
        """The effect's own: what is read is the text of the prompt."""
        return effect

    def empty(self, on_disk: bool = False) -> SentenceBook:  # noqa: ARG002
        """No sentence yet."""
        return SentenceBook.empty()

    def _reads(self) -> Encoder:
        return encoders.load(self.encoder) if isinstance(self.encoder, str) else self.encoder

    def learn(
        self,
        requests: Sequence[Request],
        batch: Batch,  # noqa: ARG002
        site: Site,  # noqa: ARG002
        rows: Tensor | None,  # noqa: ARG002
        probe: Probe,
    ) -> list[Part]:
        """The sentences of prompt and rephrases, encoded in one go."""
        texts = [[_text_of(prompt, probe) for prompt in request.prompts] for request in requests]
        encoder = self._reads()
        encoded = iter(encoder.encode([text for own in texts for text in own]))
        return [
            self._part(request, [next(encoded) for _ in own], encoder)
            for request, own in zip(requests, texts, strict=True)
        ]

    def _part(self, request: Request, read: Sequence[Encoded], encoder: Encoder) -> Part:
        phrases = [Phrase.of(one, request.edit.subject) for one in read]
        meta = {
            "texts": [phrase.text for phrase in phrases],
            "subjects": [phrase.subject for phrase in phrases],
            "space": request.edit.namespace,
            "encoder": encoder.digest,
        }
        return {"phrases": torch.from_numpy(np.stack([phrase.vectors for phrase in phrases]))}, meta

    def insert(
        self,
        patches: Sequence[Patch],
        slot: int,
        book: SentenceBook,
        device: torch.device | None = None,  # noqa: ARG002
    ) -> SentenceBook:
        """Sentences as they were read; an edit takes the place of earlier ones that ask the same."""
        for number, patch in enumerate(patches, start=slot):
            book = self._with(patch, number, book)
        return book

    def _with(self, patch: Patch, slot: int, book: SentenceBook) -> SentenceBook:
        phrases, label = self._phrases(patch, book), tuple(patch.tensors["answer"].tolist())
        same = patch.meta.get("placed")
        if same is None:
            same = self._rivals(phrases, label, patch.meta["space"], book)
        lost = [book.slot_of(one) for one in same]
        book = book.add(phrases, patch.edit_id, slot, label, patch.meta["space"], patch.meta["encoder"])
        return book.with_lost([(old, slot) for old in lost if old is not None])

    def _phrases(self, patch: Patch, book: SentenceBook) -> list[Phrase]:
        if "phrases" not in patch.tensors:
            raise InputError(
                f"The patch of edit {patch.edit_id!r} has no sentences, expected those of a SentenceScope; use the "
                "scope that the edit was learned with."
            )
        read, expected = patch.meta["encoder"], book.encoder or self._reads().digest
        if read != expected:
            raise InputError(
                f"The patch of edit {patch.edit_id!r} was read by encoder {read[:12]}, expected {expected[:12]}, since "
                f"texts read by different encoders cannot be compared; attach with the encoder that the edits were "
                f"learned with (this is {self.encoder!r}), or learn them again."
            )
        vectors = patch.tensors["phrases"].numpy()
        return [Phrase(*one) for one in zip(patch.meta["texts"], patch.meta["subjects"], vectors, strict=True)]

    def _rivals(self, phrases: Sequence[Phrase], label: tuple[int, ...], space: str, book: SentenceBook) -> list[str]:
        if not len(book):
            return []
        judge, read = classifier_of(self.classifier), self._reads().encode([phrase.text for phrase in phrases])
        needed = judge.threshold(self.false_fire)
        found = [
            book.rivals(one, phrase.subject, judge, space, label, needed)
            for one, phrase in zip(read, phrases, strict=True)
        ]
        return sorted({edit_id for rivals in found for edit_id in rivals})

    def placed(self, edit_id: str, book: SentenceBook) -> list[str]:
        """The edits whose place it took."""
        return list(self.conflicts(edit_id, book)[0])

    def forget(self, edit_ids: frozenset[str], book: SentenceBook) -> SentenceBook:
        """As if they had never been inserted."""
        return book.forget(edit_ids)

    def conflicts(self, edit_id: str, book: SentenceBook) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids of edits that ask the same and lost their place to it, none)."""
        slot = book.slot_of(edit_id)
        return (tuple(book.superseded_by(slot)) if slot is not None else ()), ()

    def find(
        self,
        call: Call,
        rows: Tensor,
        lags: Sequence[int],
        starts: NDArray[np.bool_] | None,
        book: SentenceBook,
    ) -> list[tuple[Tensor, Tensor]]:
        """The surest phrase of the book for each row's text, and for what is left of it without `lag` tokens."""
        slots = np.zeros((len(lags), len(rows)), np.int64)
        shares = np.full(slots.shape, np.inf, np.float32)
        prompts = call.prompts
        if prompts is not None and len(prompts) == len(rows):
            asked = {
                (place, row): prompts.text(row, lag)
                for place, lag in enumerate(lags)
                for row in range(len(rows))
                if starts is None or starts[row, place]
            }
            found = self._surest(list(asked.values()), book, prompts.memo)
            for at, text in asked.items():
                slots[at], shares[at] = found[text]
        made = torch.from_numpy(slots).to(rows.device), torch.from_numpy(shares).to(rows.device)
        return list(zip(*made, strict=True))

    def _surest(self, texts: Sequence[str], book: SentenceBook, memo: dict[Any, Any]) -> dict[str, tuple[int, float]]:
        needed = classifier_of(self.classifier).threshold(self.false_fire)
        read = self._candidates(texts, book, memo)
        return {text: self._decided(text, candidates, needed) for text, candidates in read.items()}

    def _decided(self, text: str, candidates: Sequence[Candidate], needed: float) -> tuple[int, float]:
        """Slot and share of the surest candidate that is sure enough, else of the nearest in reach.

        What is in reach alone does not name the subject: mostly it asks the same of what has another name.
        """
        if not candidates:
            return 0, math.inf
        found, share = candidates[0], _share(candidates[0].score, needed)
        if self.reach is None:
            return found.slot, share
        if share > 1:
            found = max(candidates, key=lambda one: (one.near, one.slot))
        if share > 1 and found.near < self.reach:
            return found.slot, math.inf
        return found.slot, 1.0 if found.more_in(text, named=share <= 1) else min(share, ASKED)

    def _candidates(self, texts: Sequence[str], book: SentenceBook, memo: dict[Any, Any]) -> dict[str, list[Candidate]]:
        """Of each text, surest first; everything that is not in the memo yet is encoded in one go."""
        encoder, judge = self._reads(), classifier_of(self.classifier)
        read: dict[str, Encoded] = memo.setdefault(encoder.digest, {})
        asked = {text: readings(text) for text in dict.fromkeys(texts)}
        new = [one for one in dict.fromkeys(one for own in asked.values() for one in own if one) if one not in read]
        read.update(zip(new, encoder.encode(new), strict=True) if new else ())
        found = {}
        for text, own in asked.items():
            candidates = [one for part in own if part in read for one in book.candidates(read[part], judge)]
            found[text] = sorted(candidates, key=lambda one: (-one.score, -one.slot))
        return found

    def built_on(self, slot: int, text: str, answer: Answers, book: SentenceBook, memo: dict[Any, Any]) -> list[int]:
        """Where a text names no subject the nearest edits, the nearest last; else the edit, and those it leads on to.

        Which of the nearest is meant, only a model can tell that knows what the text is about. An edit leads on to one
        about its answer, if the text with the answer in its subject's place is in reach of that.
        """
        read = self._candidates([text], book, memo)[text]
        found = next((one for one in read if one.slot == slot), None)
        if found is not None and found.named:
            return self._led_on(text, found, answer, book, memo)
        near = sorted(read, key=lambda one: (-one.near, -one.slot))
        return list(dict.fromkeys([slot, *(one.slot for one in near)]))[:UNNAMED][::-1]

    def _led_on(
        self, text: str, found: Candidate, answer: Answers, book: SentenceBook, memo: dict[Any, Any]
    ) -> list[int]:
        slots, subject = [found.slot], found.subject
        while len(slots) < LONGEST:
            said = answer(slots[-1])
            text, subject = replaced(text, subject, said), said
            about = [one for one in self._candidates([text], book, memo)[text] if folded(one.subject) == folded(said)]
            near = max(about, key=lambda one: (one.near, one.slot), default=None)
            if near is None or near.slot in slots or near.near < (self.reach or 0):
                break
            slots.append(near.slot)
        return slots

    def consider(self, call: Call, rows: Tensor, book: SentenceBook, count: int) -> list[tuple[int, float, float, str]]:  # noqa: ARG002
        """The surest phrases: the classifier's chance that the text asks something else, and how large it may be.

        Of one that is only in reach, how far the mean of its cosines is from 1, and how far it may be.
        """
        if call.prompts is None:
            return []
        needed = classifier_of(self.classifier).threshold(self.false_fire)
        text = call.prompts.text(0)
        best: dict[int, Candidate] = {}
        for one in self._candidates([text], book, call.prompts.memo)[text]:
            best.setdefault(one.slot, one)
        return [(one.slot, *self._measured(text, one, needed)) for one in list(best.values())[:count]]

    def _measured(self, text: str, one: Candidate, needed: float) -> tuple[float, float, str]:
        if self.reach is None:
            return _doubt(one.score), _doubt(needed), _why(one, needed)
        more = ", asks for more" if one.more_in(text, named=one.score >= needed) else ""
        if one.score < needed and one.near >= self.reach:
            why = f"cosine {one.cosine:.3f}, of what is asked {one.asked:.3f}"
            return 1 - one.near, 1 - self.reach, f"{why}, in reach from a mean of {self.reach:g} on{more}"
        return _doubt(one.score), _doubt(needed), _why(one, needed) + more


def _share(score: float, needed: float) -> float:
    """0 for the very prompt; from SURE to 1 while the score falls to what is needed; inf below."""
    if score < needed:
        return math.inf
    return 0.0 if score == math.inf else 1 - (1 - SURE) * (1 - math.exp(needed - score))


def _doubt(score: float) -> float:
    return 0.0 if score > 700 else 1 / (1 + math.exp(max(score, -700.0)))


def _why(one: Candidate, needed: float) -> str:
    if one.score == math.inf:
        return "the very same text"
    if one.score == -math.inf:
        return f"cosine {one.cosine:.3f}, its subject is not in the text"
    return f"cosine {one.cosine:.3f}, score {one.score:.2f}, needs {needed:.2f}"


def _text_of(prompt: Mapping[str, Tensor], probe: Probe) -> str:
    reading, ids = probe.reader.reading, prompt.get("input_ids")
    if reading is None or ids is None:
        raise InputError(
            "The prompt is no text, or no tokenizer was given, expected text, since a SentenceScope reads it; use a "
            "BallScope for other inputs."
        )
    return reading.text(ids[0].tolist())


@cache
def classifier_of(path: str | None) -> Classifier:
    """The weights at a path; None stands for those that are shipped."""
    if path is None:
        data = resources.files("editable.scopes").joinpath("classifier.safetensors").read_bytes()
    else:
        data = Path(path).read_bytes()
    return Classifier(load_tensors(data))
