"""Append-only tensor rows with immutable views.

A `Rows` is a shared growing buffer and a length. Appending returns a longer `Rows` over the same buffer; every older
one keeps seeing exactly its own rows. The buffer lies in memory, or in a file that the system pages in as it is read.
Knows nothing of what the rows mean.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np
import torch
from torch import Tensor

RELEASED_BYTES = 64 << 20  # so much may be written to a file before its pages are given back to the system


class _Ledger:
    """Who sees what of one storage: how many rows are written, and every view there is of them."""

    def __init__(self, used: int = 0) -> None:
        self.used = used
        self.views: weakref.WeakSet[Rows] = weakref.WeakSet()

    def fits(self, length: int) -> bool:
        """Whether a view of that length may be appended to in place: nobody sees anything behind it."""
        if self.used != length and all(view.length <= length for view in self.views):
            self.used = length  # what was appended to an abandoned sibling is seen by nobody any more
        return self.used == length


class _Buffer:
    """The shared storage behind many views. Only its owner, the one writer, appends."""

    def __init__(self, data: Tensor, ledger: _Ledger) -> None:
        self.data = data
        self.ledger = ledger
        self.copies: dict[torch.device, tuple[int, Tensor]] = {}

    def grown(self, rows: int, used: int) -> _Buffer:
        """A larger one that begins with the same `used` rows; older views keep this one."""
        larger = _Buffer(self.data.new_empty((rows, *self.data.shape[1:])), _Ledger(used))
        larger.data[:used] = self.data[:used]
        return larger

    def write(self, rows: Tensor, at: int) -> None:
        """Put rows behind everybody's view."""
        # Through .data: views share one autograd version counter, and a reader may hold one inside a graph.
        end = at + rows.shape[0]
        self.data.data[at:end] = rows.to(self.data.dtype)
        self.ledger.used = end
        for device, (length, copy) in list(self.copies.items()) if self.copies else ():
            self.copies[device] = (min(length, at), copy)

    def release(self) -> None:
        """Give the system back what can be read again."""


class _FileBuffer(_Buffer):
    """The same in a temporary file, as float32; a larger one maps the same file."""

    def __init__(self, shape: tuple[int, ...], file: IO[bytes], ledger: _Ledger) -> None:
        size = 4 * math.prod(shape)
        self.file = file
        self.mapping = None
        self.held_bytes = 0
        data = torch.empty(shape)
        if size:
            file.truncate(max(size, file.seek(0, os.SEEK_END)))
            self.mapping = mmap.mmap(file.fileno(), size)
            data = torch.from_numpy(np.frombuffer(self.mapping, np.float32).reshape(shape))
        super().__init__(data, ledger)

    def grown(self, rows: int, used: int) -> _Buffer:
        shape = (rows, *self.data.shape[1:])
        if self.ledger.fits(used):
            return _FileBuffer(shape, self.file, self.ledger)
        ledger = _Ledger(used)
        larger = _FileBuffer(shape, _temporary(ledger), ledger)
        larger.data[:used] = self.data[:used]
        return larger

    def write(self, rows: Tensor, at: int) -> None:
        super().write(rows, at)
        self.held_bytes += rows.nbytes
        if self.held_bytes > RELEASED_BYTES:
            self.release()

    def release(self) -> None:
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)  # the file has them; what is read is paged in again
        self.held_bytes = 0


def _temporary(ledger: _Ledger) -> IO[bytes]:
    """A file that has no name, and goes with the last buffer that maps it."""
    file = tempfile.TemporaryFile(prefix="editable-rows-")  # noqa: SIM115 - it lives as long as the ledger
    weakref.finalize(ledger, file.close)
    return file


@dataclass(frozen=True, eq=False)
class Rows:
    """An immutable view of the first `length` rows of a shared buffer. One writer, any number of readers."""

    buffer: _Buffer
    length: int

    def __post_init__(self) -> None:
        self.buffer.ledger.views.add(self)

    @classmethod
    def empty(cls, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Rows:
        """No rows yet; each row will have `shape`."""
        return cls(_Buffer(torch.empty((0, *shape), dtype=dtype, device=device), _Ledger()), 0)

    @classmethod
    def on_disk(cls, *shape: int) -> Rows:
        """No rows yet; they will lie, as float32, in a temporary file that goes when the last view does."""
        ledger = _Ledger()
        return cls(_FileBuffer((0, *shape), _temporary(ledger), ledger), 0)

    def like(self) -> Rows:
        """No rows yet, of the same kind and in the same kind of place."""
        shape = self.buffer.data.shape[1:]
        if isinstance(self.buffer, _FileBuffer):
            return Rows.on_disk(*shape)
        return Rows.empty(*shape, dtype=self.buffer.data.dtype, device=self.buffer.data.device)

    def __len__(self) -> int:
        return self.length

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.buffer.data.device

    @cached_property
    def view(self) -> Tensor:
        """(length, *row shape), sharing the buffer; do not write into it."""
        return self.buffer.data[: self.length]

    def release(self) -> None:
        """Hold in memory nothing of what lies in a file: for whoever has read much of it."""
        self.buffer.release()

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
        buffer, end = self.buffer, self.length + rows.shape[0]
        if not buffer.ledger.fits(self.length) or end > buffer.data.shape[0]:
            buffer = buffer.grown(max(8, 2 * end), self.length)
        buffer.write(rows, self.length)
        return Rows(buffer, end)
