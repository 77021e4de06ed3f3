"""One model asked in batches: teacher-forced, freely, and by its logits.

Knows tokens, padding and where an answer ends, through `Reader`; whether the model is edited it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from editable.edit import Edit, ModelInput
from editable.inputs import Arguments, Reader, Request
from editable.learn import Probe
from editable.prompt import ending_at
from editable.system import Answer

ROWS = 32  # rows in one forward

Given = TypeVar("Given")
Found = TypeVar("Found")


class Asker:
    """Asks one model, called as its users call it. Implements `editable.system.Asked`.

    Args:
        model: a Hugging Face or torchvision model, edited or not.
        tokenizer: what reads text or pictures for it, as `EditableModel` takes it.
        rows: most rows in one forward.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, rows: int = ROWS) -> None:
        self.model = model
        self.reader = Reader(model, tokenizer)
        self.rows = rows
        self._probe = Probe(model, self.reader)

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """See `Asked`."""
        requests = self._requests(prompts, targets)
        return self._in_batches([_length(r.prompts[0]) + len(r.answer) for r in requests], requests, self._forced)

    def _forced(self, requests: Sequence[Request]) -> list[Tensor]:
        batch = self.reader.batch(requests)
        with torch.no_grad(), nullcontext() if batch.columns is None else ending_at(batch.columns[:, 0]):
            logits = self._probe.logits(batch)  # (rows, longest answer, vocabulary)
        lengths = [len(self._without_end(request)) for request in requests]
        return [row[:length].float().cpu() for row, length in zip(logits, lengths, strict=True)]

    def target_ids(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """See `Asked`."""
        return [torch.tensor(self._without_end(request)) for request in self._requests(prompts, targets)]

    def _requests(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Request]:
        return [self.reader.request("", Edit(p, t)) for p, t in zip(prompts, targets, strict=True)]

    def _without_end(self, request: Request) -> tuple[int, ...]:
        ended = self.reader.text and len(request.answer) > 1 and request.answer[-1] == self.reader.end
        return request.answer[:-1] if ended else request.answer

    def prompt_ids(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """See `Asked`."""
        if not self.reader.text or self.reader.seq2seq:
            return [torch.empty(0, dtype=torch.long) for _ in prompts]
        return [self.reader.arguments(prompt)["input_ids"][0].cpu() for prompt in prompts]

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """See `Asked`."""
        return [self._logits(self.reader.arguments(prompt)) for prompt in prompts]

    def _logits(self, arguments: Arguments) -> Tensor:
        if self.reader.seq2seq and self.reader.text:
            start = torch.full((1, 1), self.reader.decoder_start, device=self.reader.device)
            arguments = {**arguments, "decoder_input_ids": start}
        with torch.no_grad():
            output = self.model(**arguments)
        logits = getattr(output, "logits", None)
        if logits is None:
            logits = output[0] if isinstance(output, tuple) else output
        return (logits[0] if logits.ndim == 3 else logits).float().cpu()  # type: ignore[no-any-return]

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        """See `Asked`."""
        wanted = [Wanted(self.reader.arguments(p), most) for p, most in zip(prompts, most_tokens, strict=True)]
        ask = self._continued if self.reader.text else self._labelled
        return self._in_batches([_length(one.arguments) + 1000 * one.most for one in wanted], wanted, ask)

    def _labelled(self, wanted: Sequence[Wanted]) -> list[Answer]:
        with torch.no_grad():
            output = self.model(**self.reader.stack([one.arguments for one in wanted]))
        labels = getattr(output, "logits", output).argmax(dim=-1).tolist()
        known = self.reader.labels
        return [Answer(known.name(label), (label,)) for label in labels]

    def _continued(self, wanted: Sequence[Wanted]) -> list[Answer]:
        prompts = [one.arguments for one in wanted]
        batch = self.reader.stack(prompts) if self.reader.seq2seq else self._left_padded(prompts)
        start = 1 if self.reader.seq2seq else batch["input_ids"].shape[1]
        most = torch.tensor([one.most for one in wanted], device=self.reader.device)
        options: dict[str, Any] = {"max_new_tokens": int(most.max()), "do_sample": False, "num_beams": 1}
        options["stopping_criteria"] = [lambda tokens, _scores: tokens.shape[1] - start >= most]
        with torch.no_grad():
            tokens = self.model.generate(**batch, **options, pad_token_id=self.reader.pad)  # type: ignore[operator]
        rows = tokens[:, start:].tolist()
        return [self._answer(row[: one.most]) for row, one in zip(rows, wanted, strict=True)]

    def _left_padded(self, prompts: Sequence[Arguments]) -> dict[str, Tensor]:
        """The same batch as `Reader.stack`, padded on the left, where a decoder's answer follows its prompt."""
        batch = self.reader.stack(prompts)
        pads = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(dim=1)
        return batch | {
            name: torch.stack([row.roll(int(shift)) for row, shift in zip(batch[name], pads, strict=True)])
            for name in ("input_ids", "attention_mask")
        }

    def _answer(self, tokens: list[int]) -> Answer:
        ends = self._ends
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        kept = tokens[:stop]
        text = str(self.reader.tokenizer.decode(kept, skip_special_tokens=True))
        return Answer(text, tuple(kept), stop is not None)

    @property
    def _ends(self) -> set[int | None]:
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return {*(ends if isinstance(ends, list) else [ends]), self.reader.end} - {None}

    def _in_batches(
        self, lengths: Sequence[int], given: Sequence[Given], ask: Callable[[Sequence[Given]], list[Found]]
    ) -> list[Found]:
        """What `ask` finds, in order; rows of like length go together, so that little is padded."""
        order = sorted(range(len(given)), key=lambda index: (lengths[index], index))
        found: dict[int, Found] = {}
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            found.update(zip(chosen, ask([given[index] for index in chosen]), strict=True))
        return [found[index] for index in range(len(given))]


@dataclass(frozen=True, eq=False)
class Wanted:
    """One prompt, and after how many tokens its answer is cut off."""

    arguments: Arguments
    most: int


def _length(arguments: Arguments) -> int:
    ids = arguments.get("input_ids")
    return 0 if ids is None else int(ids.shape[1])
