"""A book with so many keys, and queries for it.

Up to some number every key is placed by searching for its neighbours, as edits are. Above it, where that would take
hours in sum, keys come with a known placement, as from the log: a ball of its own for each, of half the distance that
neighbours typically have. That is about what splitting leaves of the balls of neighbours with other answers. But no key
of such a book was placed by looking at another, so that forgetting an old one is easy there; where every key was placed
by searching, it shows what it costs that others looked at it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from editable.benchmarks import common
from editable.benchmarks.memory.keys import CHUNK, Real
from editable.benchmarks.timing import clocked
from editable.memory.radius import Codebook, Placed

PROBED = 64  # queries of each kind
LOOKED_AT = 100_000  # keys among which the distance of neighbours is found
TOGETHER = 256  # keys added at a time; the index is renewed between two such times
KINDS = ("hit", "near miss", "unrelated")
REPEATED = 1e-4  # of a radius: how far an activation is from itself, asked again in another batch


@dataclass(frozen=True, eq=False)
class Filled:
    """One book.

    Args:
        book: settled: nothing goes on in the background.
        queries: kind to (PROBED, features): keys of the book, give or take a rounding; keys made like those of the
            book and not in it; activations of unrelated questions.
        spare: (k, features) keys to insert, made like those of the book.
        radius: with which keys are inserted.
        values: features of the value that an edit would hold beside its key.
        resident_bytes: by how much the process grew for it; None where the system does not say.
        built_seconds: how long it took.
    """

    book: Codebook
    queries: dict[str, Tensor]
    spare: Tensor
    radius: float
    values: int
    resident_bytes: int | None
    built_seconds: float

    @property
    def count(self) -> int:
        """Keys."""
        return len(self.book)

    @property
    def asked(self) -> int:
        """Queries of all kinds."""
        return sum(map(len, self.queries.values()))

    @property
    def width(self) -> int:
        """Features of a key."""
        return self.spare.shape[1]

    @property
    def raw_bytes(self) -> int:
        """Of the keys alone, as float32."""
        return 4 * self.count * self.width


def filled(real: Real, count: int, values: int, options: argparse.Namespace) -> Filled:
    """Make keys, and a book of them.

    Args:
        real: what they are made from.
        count: keys.
        values: features of a value.
        options: of the benchmark: up to how many keys each is `searched` for, how many are held back for `writes`, the
            `store` and the `seed`.
    """
    generator = torch.Generator().manual_seed(options.seed)
    near, spare = (torch.cat(list(real.made(number, generator))) for number in (PROBED, options.writes))
    searched = count <= options.searched
    radius = real.radius if searched else _half_apart(real, count, options.seed)
    before, books = resident_bytes(), list[Codebook]()
    empty = Codebook.empty(real.keys.shape[1], on_disk=options.store == "disk")
    seconds = clocked(lambda: books.append(_built(empty, real, count, radius, searched, generator)))()
    book, grown = books.pop(), grown_since(before)
    queries = dict(zip(KINDS, (_asked_again(book, radius, generator), near, _some(real.unrelated)), strict=True))
    return Filled(book, queries, spare, real.radius, values, grown, seconds)


def _built(
    book: Codebook, real: Real, count: int, radius: float, searched: bool, generator: torch.Generator
) -> Codebook:
    placed, row = None if searched else Placed("add"), 0
    parts = real.made(count, generator)
    for part in common.each(parts, f"making a book of {count} keys", -(-count // CHUNK)):
        for some in part.split(TOGETHER):
            rows = range(row, row + len(some))
            book = book.add_all(some, rows, [str(one) for one in rows], [radius] * len(rows), [placed] * len(rows))
            row += len(rows)
    return book.settled()


def _half_apart(real: Real, count: int, seed: int) -> float:
    """Half the typical distance to the nearest of `count` keys, at most LOOKED_AT of them, without holding them."""
    generator = torch.Generator().manual_seed(seed + 1)
    some = torch.cat(list(real.made(PROBED, generator)))
    nearest = torch.full((PROBED,), torch.inf)
    for part in real.made(min(count, LOOKED_AT), generator):
        nearest = torch.minimum(nearest, torch.cdist(some, part).amin(dim=1))
    return float(nearest.median()) / 2


def _asked_again(book: Codebook, radius: float, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(book), (PROBED,), generator=generator)
    keys = book.keys.at(rows)
    noise = torch.randn(keys.shape, generator=generator)
    moved: Tensor = keys + REPEATED * radius * noise / noise.norm(dim=1, keepdim=True)
    return moved


def _some(keys: Tensor) -> Tensor:
    """(PROBED, features), repeated where there are fewer."""
    return keys[torch.arange(PROBED) % len(keys)]


def resident_bytes() -> int | None:
    """Physical memory of the process, garbage apart, and what the C library keeps of what was given back to it."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc has it, others have nothing to give back
        ctypes.CDLL(None).malloc_trim(0)
    return common.resident_bytes()


def grown_since(before: int | None) -> int | None:
    """How much more it is now."""
    now = resident_bytes()
    return None if before is None or now is None else now - before
