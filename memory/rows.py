"""Append-only tensor rows with immutable views.

A `Rows` is a shared growing buffer and a length. Appending returns a longer `Rows` over the same buffer; every older
one keeps seeing exactly its own rows. Knows nothing of what the rows mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class _Buffer:
    """The shared storage behind many views. Only its owner, the one writer, appends."""

    def __init__(self, data: Tensor, used: int) -> None:
        self.data = data
        self.used = used
        self.copies: dict[torch.device, tuple[int, Tensor]] = {}


@dataclass(frozen=True, eq=False)
class Rows:
    """An immutable view of the first `length` rows of a shared buffer. One writer, any number of readers."""

    buffer: _Buffer
    length: int

    @classmethod
    def empty(cls, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Rows:
        """No rows yet; each row will have `shape`."""
        return cls(_Buffer(torch.empty((0, *shape), dtype=dtype, device=device), 0), 0)

    def __len__(self) -> int:
        return self.length

    @property
    def view(self) -> Tensor:
        """(length, *row shape), sharing the buffer; do not write into it."""
        return self.buffer.data[: self.length]

    def on(self, device: torch.device) -> Tensor:
        """The view on `device`; a copy made there is kept, so that a model that moved pays once."""
        if self.buffer.data.device == device:
            return self.view
        length, copy = self.buffer.copies.get(device, (0, self.view))
        if length < self.length:
            copy = self.view.to(device)
            self.buffer.copies[device] = (self.length, copy)
        return copy[: self.length]

    def append(self, rows: Tensor) -> Rows:
        """A longer view; `rows` is (count, *row shape). Amortised cost: the rows themselves."""
        buffer, end = self.buffer, self.length + len(rows)
        if buffer.used != self.length or end > len(buffer.data):
            # Someone appended to an abandoned sibling of this view, or the buffer is full: move to a larger one.
            # Older views keep the old buffer, so nothing they see can change.
            data = buffer.data.new_empty((max(8, 2 * end), *buffer.data.shape[1:]))
            data[: self.length] = self.view
            buffer = _Buffer(data, self.length)
        # Through .data: views share one autograd version counter, and a reader may hold one inside a graph.
        buffer.data.data[self.length : end] = rows.to(buffer.data.dtype)
        buffer.used = end
        return Rows(buffer, end)
