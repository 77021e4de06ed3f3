"""Low-rank deltas of linear layers, W x + B A x s (LoRA, Hu et al., ICLR 2022, section 4.1), as they are served.

One delta for all rows is added exactly as peft adds it, to the last bit; deltas that differ from row to row are
gathered and added by two batched products, however many different ones there are. Knows no editor, and not how deltas
are learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from editable.edit import Patch
from editable.editor import Call
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows
from editable.site import Site


@dataclass(frozen=True, eq=False)
class Delta:
    """One delta of one linear layer.

    Args:
        down: (rank, features in), A of the paper.
        up: (features out, rank), B.
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    """

    down: Tensor
    up: Tensor
    scaling: float
    copies: dict[torch.device, Delta] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Of A and B."""
        return self.down.shape[0]

    def on(self, device: torch.device) -> Delta:
        """On a device; a copy made there is kept, so that a model that moved pays once."""
        if self.down.device == device:
            return self
        if device not in self.copies:
            self.copies[device] = Delta(self.down.to(device), self.up.to(device), self.scaling)
        return self.copies[device]

    def padded(self, rank: int) -> Delta:
        """The same delta with a higher rank, filled up with zeros."""
        more = rank - self.rank
        pad = functional.pad
        return Delta(pad(self.down, (0, 0, 0, more)), pad(self.up, (0, more)), self.scaling)


@dataclass(frozen=True, eq=False)
class Stack:
    """Deltas of one linear layer, all of one rank.

    Args:
        down: (n, rank, features in).
        up: (n, features out, rank).
        scaling: (n,).
    """

    down: SparseRows
    up: SparseRows
    scaling: Rows

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> Stack:
        """At least one delta; those of lower rank are filled up."""
        rank = max(delta.rank for delta in deltas)
        first, dtype, device = deltas[0], deltas[0].down.dtype, deltas[0].down.device
        down = Rows.empty(rank, first.down.shape[1], dtype=dtype, device=device)
        up = Rows.empty(first.up.shape[0], rank, dtype=dtype, device=device)
        scaling = Rows.empty(device=device)
        return cls(SparseRows.of(down), SparseRows.of(up), scaling).append([delta.padded(rank) for delta in deltas])

    def append(self, deltas: Sequence[Delta]) -> Stack:
        """With further ones, of the same rank."""
        return Stack(
            self.down.append(torch.stack([delta.down for delta in deltas])),
            self.up.append(torch.stack([delta.up for delta in deltas])),
            self.scaling.append(torch.tensor([delta.scaling for delta in deltas])),
        )

    def let_go(self, numbers: NDArray[np.int64]) -> Stack:
        """Without these: nobody will ask for them."""
        return replace(self, down=self.down.let_go(numbers), up=self.up.let_go(numbers))


def packed(deltas: Mapping[str, Delta]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a patch holds of deltas by path: tensors, and plain JSON."""
    tensors = {f"down.{path}": delta.down for path, delta in deltas.items()}
    tensors |= {f"up.{path}": delta.up for path, delta in deltas.items()}
    return tensors, {"scaling": {path: delta.scaling for path, delta in deltas.items()}}


def unpacked(patch: Patch, device: torch.device | None = None) -> dict[str, Delta]:
    """Path to delta, of a patch; nothing where it holds none."""
    scaling = patch.meta.get("scaling", {})
    return {path: _unpacked(patch.tensors, path, value, device) for path, value in scaling.items()}


def _unpacked(tensors: Mapping[str, Tensor], path: str, scaling: float, device: torch.device | None) -> Delta:
    # Copies: in a mapped file they may lie where kernels add up in another order.
    down, up = (tensors[f"{name}.{path}"].clone().to(device or "cpu") for name in ("down", "up"))
    return Delta(down, up, scaling)


def fed(call: Call) -> Tensor:
    """(batch, positions, features) what went into the linear layer whose output is being changed."""
    return Site("", side="input", axis=-1).read(call.fed)


def add(rows: Tensor, given: Tensor, delta: Delta) -> Tensor:
    """Rows (batch, positions, features out) with one delta of what was `given` (batch, positions, features in).

    In peft's own order of operations and in its dtype, so that the bits are peft's.
    """
    delta = delta.on(rows.device)
    inner = functional.linear(given.to(delta.down.dtype), delta.down)
    return (rows + functional.linear(inner, delta.up) * delta.scaling).to(rows.dtype)


def add_each(rows: Tensor, given: Tensor, stack: Stack, number: Tensor, due: Tensor) -> Tensor:
    """Rows (batch, positions, features out) with a delta of its own for each row, where it is due.

    Args:
        rows: what the layers gave.
        given: (batch, positions, features in) what they were given.
        stack: the deltas.
        number: (batch,) which delta is each row's; any where none is due.
        due: (batch, positions) or (batch, 1); elsewhere every bit stays.
    """
    down, up = stack.down.at(number), stack.up.at(number)
    scaling = stack.scaling.on(number.device)[number]
    inner = torch.bmm(given.to(down.dtype), down.mT)  # (batch, positions, rank)
    delta = torch.bmm(inner, up.mT) * scaling[:, None, None]
    return torch.where(due[..., None], (rows + delta).to(rows.dtype), rows)
