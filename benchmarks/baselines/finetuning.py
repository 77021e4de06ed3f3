"""Plain fine-tuning on the edits, one batch after another, on a copy of the model.

AdamW on the cross-entropy of each answer with its end token, until every edit of the batch is likely enough. It is the
naive form: no constraint, no regularisation, no replay, so what earlier edits and unrelated inputs lose is what editing
methods are there to avoid. It is not LoRA: whole weights move, those of the last blocks or all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from editable.asking import Asker
from editable.edit import Edit
from editable.inputs import Request
from editable.site import block_paths


@dataclass(frozen=True)
class FineTuning:
    """See the module docstring.

    Args:
        blocks: how many of the last blocks are trained; 0 trains every parameter.
        steps: most steps for a batch of edits.
        rate: AdamW's learning rate.
        loss_nats: training stops where the mean loss per answer token is below this.
        rows: most edits in one forward.
    """

    blocks: int = 1
    steps: int = 50
    rate: float = 5e-4
    loss_nats: float = 0.05
    rows: int = 16

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"family": "fine-tuning", "scope": "everything", "effect": "new weights", "training": "none"}
    )

    def on(self, model: nn.Module, tokenizer: Any) -> TunedSystem:
        """A copy of the model, to be trained."""
        return TunedSystem(self, copy.deepcopy(model).eval(), tokenizer)


class TunedSystem(Asker):
    """Asks a model whose weights move with every batch of edits."""

    def __init__(self, options: FineTuning, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(model.requires_grad_(False), tokenizer)
        self.name = f"finetuning ({f'last {options.blocks}' if options.blocks else 'all'})"
        self.options = options
        self.held = 0
        self._weights = [weight for part in self._parts() for weight in part.parameters()]
        self._before = [weight.detach().clone() for weight in self._weights]

    def _parts(self) -> list[nn.Module]:
        if not self.options.blocks:
            return [self.model]
        return [self.model.get_submodule(path) for path in block_paths(self.model)[-self.options.blocks :]]

    @property
    def numbers(self) -> int:
        """See `System`; all weights that moved."""
        return sum(weight.numel() for weight in self._weights) if self.held else 0

    def insert(self, edits: Sequence[Edit]) -> None:
        """See `System`."""
        requests = [self.reader.request("", edit) for edit in edits]
        for weight in self._weights:
            weight.requires_grad_(True)
        optimiser = torch.optim.AdamW(self._weights, lr=self.options.rate)
        for _ in range(self.options.steps):
            optimiser.zero_grad()
            if self._backward(requests) < self.options.loss_nats:
                break
            optimiser.step()
        for weight in self._weights:
            weight.grad = None
            weight.requires_grad_(False)
        self.held += len(edits)

    def _backward(self, requests: Sequence[Request]) -> float:
        """Add the gradients of the mean loss per answer token; gives that loss, in nats."""
        total, count = 0.0, sum(len(request.answer) for request in requests)
        for start in range(0, len(requests), self.options.rows):
            batch = self.reader.batch(requests[start : start + self.options.rows], rephrases=False)
            loss = _summed_loss(self._probe.logits(batch), batch.answers) / count
            loss.backward()
            total += float(loss.detach())
        return total

    def reset(self) -> None:
        """See `System`."""
        with torch.no_grad():
            for weight, before in zip(self._weights, self._before, strict=True):
                weight.copy_(before)
        self.held = 0


def _summed_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Of logits (rows, longest answer, vocabulary) against answers (rows, longest answer), -100 for none."""
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), reduction="sum")
