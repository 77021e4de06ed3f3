"""From edits to model inputs: tokens, pictures, answers with their end, and padded teacher-forced batches.

Knows tokenizers and forward signatures; knows nothing of editors.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from editable import pictures
from editable.edit import Edit, ModelInput
from editable.errors import InputError
from editable.labels import Labels
from editable.pictures import Transform
from editable.reading import Reading
from editable.site import context_length, is_seq2seq, writes_text

Arguments = Mapping[str, Tensor]
"""Forward kwargs of batch size 1."""


@dataclass(frozen=True, eq=False)
class Request:
    """One edit, ready to be learned.

    Args:
        id: the edit's id.
        edit: as the caller gave it.
        prompts: forward kwargs of the prompt, then of each rephrase.
        answer: token ids of the target with the end token, or the one class label.
    """

    id: str
    edit: Edit
    prompts: tuple[Arguments, ...]
    answer: tuple[int, ...]

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a patch has to carry besides its own for the edit to be learned again, by `Reader.again`."""
        prompts = {f"prompt.{i}.{name}": value for i, one in enumerate(self.prompts) for name, value in one.items()}
        return {**prompts, "answer": torch.tensor(self.answer)}


@dataclass(frozen=True, eq=False)
class Batch:
    """Teacher-forced rows: each prompt followed by its answer, padded on the right.

    Args:
        arguments: forward kwargs.
        columns: (rows, longest answer) the position whose logits must yield each answer token; None for classifiers.
        answers: (rows, longest answer) token ids or (rows, 1) labels; -100 where the row's answer is shorter.
        requests: (rows,) which request each row belongs to.
    """

    arguments: dict[str, Tensor]
    columns: Tensor | None
    answers: Tensor
    requests: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def last_real(self) -> Tensor | None:
        """(rows,) column of each row's last real token; None where the input is not tokens."""
        mask = self.arguments.get("attention_mask")
        return None if mask is None or "input_ids" not in self.arguments else mask.sum(dim=1) - 1

    @property
    def firsts(self) -> Tensor:
        """(requests,) the row of each request's prompt, which its rephrases follow."""
        later = self.requests[1:] == self.requests[:-1]
        return torch.cat([later.new_zeros(min(1, len(self))), later]).logical_not().nonzero()[:, 0]

    def alike(self, other: Batch) -> bool:
        """Whether a model is asked the same by both."""
        same = self.arguments.keys() == other.arguments.keys()
        return same and all(torch.equal(value, other.arguments[name]) for name, value in self.arguments.items())

    def select(self, rows: Tensor) -> Batch:
        """Only those rows, in that order."""
        return Batch(
            {name: value[rows] for name, value in self.arguments.items()},
            None if self.columns is None else self.columns[rows],
            self.answers[rows],
            self.requests[rows],
        )


class Reader:
    """Reads edits for one model.

    Args:
        model: any.
        tokenizer: of a model of text; of one of images its transform (see `Transform.of`), or another Reader's.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        self.model = model
        self.images = pictures.takes_pictures(model, tokenizer)
        self.transform = Transform.of(model, tokenizer) if self.images else Transform()
        # A copy: encoding sets padding and truncation on the tokenizer, under the hands of threads that use the user's.
        self.tokenizer: Any = None if self.images else copy.deepcopy(tokenizer)
        self.seq2seq = is_seq2seq(model)
        self.text = writes_text(model)

    @cached_property
    def reading(self) -> Reading | None:
        """Reads token ids as text; None without a tokenizer."""
        return None if self.tokenizer is None else Reading(self.tokenizer)

    @property
    def labels(self) -> Labels:
        """What a classifier's labels are called."""
        return Labels.of(self.model, self.transform.labels)

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return next((p.device for p in self.model.parameters() if p.device.type != "meta"), torch.device("cpu"))

    @property
    def end(self) -> int | None:
        """The token that ends an answer, None where the model has none."""
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        own = getattr(self.tokenizer, "eos_token_id", None)
        if isinstance(ends, list):
            return own if own in ends else ends[0]
        return own if ends is None else int(ends)

    @property
    def pad(self) -> int:
        """What fills short rows; masked, so any token does."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return self.end or 0 if pad is None else int(pad)

    def request(self, edit_id: str, edit: Edit) -> Request:
        """An edit made ready.

        Raises:
            InputError: text without a tokenizer, a prompt longer than the context, a target that does not fit.
        """
        prompts = tuple(self.arguments(p) for p in (edit.prompt, *edit.rephrases))
        answer = self._answer(edit)
        self._check_length(edit, prompts, answer)
        return Request(edit_id, edit, prompts, answer)

    def again(self, edit_id: str, described: Mapping[str, Any], kept: Mapping[str, Tensor]) -> Request:
        """A request from what the log says of its edit (`listing.described`) and what its patch has `kept`."""
        prompts: dict[int, dict[str, Tensor]] = {}
        for name, value in kept.items():
            if name.startswith("prompt."):
                _, number, argument = name.split(".", 2)
                prompts.setdefault(int(number), {})[argument] = value.to(self.device)
        own = tuple(prompts[number] for number in sorted(prompts))
        first = {**own[0], "labels": kept["answer"][None]}
        edit = Edit(first, described["target"], own[1:], (), described["subject"], described["namespace"])
        return Request(edit_id, edit, own, tuple(kept["answer"].tolist()))

    def arguments(self, prompt: ModelInput) -> Arguments:
        """Forward kwargs of batch size 1 for one input, without labels."""
        if self.images and not isinstance(prompt, Mapping):
            return {self._main_input(): pictures.read(prompt, self.model, self.transform)[None].to(self.device)}
        if pictures.is_picture(prompt) or isinstance(prompt, os.PathLike):
            raise InputError(
                f"The input is {prompt!r}, a picture, expected text, since {type(self.model).__name__} takes no images."
            )
        if isinstance(prompt, str):
            return {"input_ids": self._tokens(prompt)}
        if isinstance(prompt, Tensor):
            return {self._main_input(): prompt[None].to(self.device)}
        given = {k: v.to(self.device) for k, v in prompt.items() if isinstance(v, Tensor) and k != "labels"}
        labels = prompt.get("labels")
        if self.text and not self.seq2seq and isinstance(labels, Tensor):
            return {name: value[:, : _prompt_length(labels)] for name, value in given.items()}
        return given

    def forward(self, prompt: ModelInput) -> Arguments:
        """What one forward over one input takes: an encoder-decoder model also gets the start of its answer."""
        arguments = self.arguments(prompt)
        if not (self.seq2seq and self.text):
            return arguments
        return {**arguments, "decoder_input_ids": torch.full((1, 1), self.decoder_start, device=self.device)}

    def _tokens(self, text: str) -> Tensor:
        if self.tokenizer is None:
            raise InputError(
                f"The input {text[:40]!r} is text, but no tokenizer was given, expected one to read it with; "
                "pass EditableModel(model, tokenizer, ...)."
            )
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        return ids.to(self.device)  # type: ignore[no-any-return]

    def _main_input(self) -> str:
        name = getattr(self.model, "main_input_name", None)
        return name or next(iter(inspect.signature(self.model.forward).parameters))

    def _answer(self, edit: Edit) -> tuple[int, ...]:
        if isinstance(edit.prompt, Mapping) and edit.target is None:
            return self._given_labels(edit.prompt["labels"])
        if self.text:
            return self._answer_tokens(edit)
        return (self.labels.number(edit.target),)

    def _given_labels(self, labels: Any) -> tuple[int, ...]:
        flat = torch.as_tensor(labels).flatten()
        answer = tuple(int(label) for label in flat if label != -100)
        if not answer or (not self.text and len(answer) != 1):
            raise InputError(
                f"Edit.prompt['labels'] holds {len(answer)} labels, expected "
                f"{'at least one answer token' if self.text else 'one class label'}; use batch size 1."
            )
        return answer

    def _answer_tokens(self, edit: Edit) -> tuple[int, ...]:
        if not isinstance(edit.target, str):
            raise InputError(
                f"Edit.target is {edit.target!r}, expected text, since {type(self.model).__name__} writes text."
            )
        if self.seq2seq:
            ids = list(self.tokenizer(text_target=edit.target)["input_ids"])
        else:
            ids = self._continuation(edit.prompt, edit.target)
        if not ids:
            raise InputError(f"Edit.target {edit.target!r} has no tokens, expected some text that the tokenizer knows.")
        return tuple(ids if self.end is None or ids[-1] == self.end else [*ids, self.end])

    def _continuation(self, prompt: ModelInput, target: str) -> list[int]:
        """The target's tokens as they follow the prompt's; sentencepiece would give the target alone a space more."""
        if isinstance(prompt, str):
            before = self.tokenizer(prompt)["input_ids"]
            both = self.tokenizer(prompt + target)["input_ids"]
            if both[: len(before)] == before:
                return list(both[len(before) :])
        return list(self.tokenizer(target, add_special_tokens=False)["input_ids"])

    def _check_length(self, edit: Edit, prompts: Sequence[Arguments], answer: tuple[int, ...]) -> None:
        limit, extra = context_length(self.model), len(answer) if self.text and not self.seq2seq else 0
        for prompt in prompts:
            ids = prompt.get("input_ids")
            if ids is not None and ids.shape[1] + extra > limit:
                raise InputError(
                    f"The prompt {str(edit.prompt)[:40]!r} has {ids.shape[1]} tokens and its answer {extra}, expected "
                    f"at most {limit} together, the context of {type(self.model).__name__}; shorten the prompt."
                )

    def batch(self, requests: Sequence[Request], rephrases: bool = True) -> Batch:
        """Every prompt (and rephrase) of every request, teacher-forced with its answer."""
        rows = [
            (index, prompt, request.answer)
            for index, request in enumerate(requests)
            for prompt in (request.prompts if rephrases else request.prompts[:1])
        ]
        owners = torch.tensor([index for index, _, _ in rows], device=self.device)
        prompts = [prompt for _, prompt, _ in rows]
        answers = self._padded([torch.tensor(answer) for _, _, answer in rows], -100)
        if not self.text:
            return Batch(self.stack(prompts), None, answers, owners)
        steps = torch.arange(answers.shape[1], device=self.device)
        if self.seq2seq:
            start = torch.full((len(rows), 1), self.decoder_start, device=self.device)
            decoder = torch.cat([start, answers[:, :-1].clamp_min(0)], dim=1)
            return Batch(
                {**self.stack(prompts), "decoder_input_ids": decoder}, steps.expand_as(answers), answers, owners
            )
        lengths = torch.tensor([p["input_ids"].shape[1] for p in prompts], device=self.device)
        forced = [
            {**p, "input_ids": torch.cat([p["input_ids"], torch.tensor([a[:-1]], device=self.device)], dim=1)}
            if len(a) > 1
            else p
            for _, p, a in rows
        ]
        columns = lengths[:, None] - 1 + steps
        return Batch(self.stack(forced), columns * (answers != -100), answers, owners)

    def stack(self, prompts: Sequence[Arguments]) -> dict[str, Tensor]:
        """One batch of several single inputs; token sequences are padded on the right and masked."""
        stacked = {
            name: torch.cat([p[name] for p in prompts])
            for name in prompts[0]
            if name not in ("input_ids", "attention_mask")
        }
        if "input_ids" in prompts[0]:
            ids = [p["input_ids"][0] for p in prompts]
            stacked["input_ids"] = self._padded(ids, self.pad)
            stacked["attention_mask"] = self._padded([torch.ones_like(row) for row in ids], 0)
        return stacked

    def _padded(self, rows: Sequence[Tensor], fill: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill).to(self.device)

    @property
    def decoder_start(self) -> int:
        """The token an encoder-decoder model starts its answer with."""
        for holder in (getattr(self.model, "generation_config", None), getattr(self.model, "config", None)):
            start = getattr(holder, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        return self.pad


def _prompt_length(labels: Tensor) -> int:
    """Tokens before the first label of a batch of one."""
    given = labels[0] != -100
    if bool(given[0]):
        raise InputError(
            "Edit.prompt['labels'] start at the first token, expected -100 over the prompt, which is not the answer."
        )
    return int(given.long().argmax())
