"""From how many keys on an index is faster than measuring the distance to every key: where a book should get one."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import torch

from editable.benchmarks import timing
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.setting import Setting
from editable.benchmarks.report import Table
from editable.memory.index import Index, first
from editable.memory.placing import Placed
from editable.memory.radius import Codebook

SHARES = (0.25, 0.5, 1, 2, 4, 8)  # of the number of keys from which the book has one


def run(setting: Setting) -> Part:
    """Both ways in turn, below and above the switch."""
    features = setting.real.keys.shape[1]
    counts = [max(1, round(share * first(features))) for share in SHARES]
    found = {count: _both(setting, count) for count in counts}
    rows = [(f"{count} keys", one.ratio, one.low, one.high) for count, one in found.items()]
    title = f"one lookup by index over one by measuring all distances; an index comes with {first(features)} keys"
    return Part(
        timing={f"{count} keys": one.as_dict() for count, one in found.items()},
        tables=[Table(title, ("", "ratio", "low", "high"), rows)],
    )


def _both(setting: Setting, count: int) -> timing.Ratio:
    plain = _book(setting, count)
    indexed = replace(plain, index=Index.of(plain.keys, plain.column.array("radius")))
    near = torch.cat(list(setting.real.made(count, torch.Generator().manual_seed(1))))
    asked = cycle(torch.cat([near[:64], setting.real.unrelated[:64]]).split(1))
    sides = {
        name: timing.clocked(lambda b=book: b.find(next(asked)))  # type: ignore[misc]
        for name, book in (("indexed", indexed), ("plain", plain))
    }
    seconds = timing.interleaved(sides, 4 * setting.options.forwards, 8, setting.rng)
    return timing.ratio_of_medians(seconds["indexed"], seconds["plain"], setting.rng)


def _book(setting: Setting, count: int) -> Codebook:
    """A ball of its own for every key, and no index."""
    keys = torch.cat(list(setting.real.made(count, torch.Generator().manual_seed(0))))
    book, names = Codebook.empty(keys.shape[1]), [str(row) for row in range(count)]
    held = book.add_all(keys, names, names, [setting.real.radius] * count, [Placed("add")] * count)
    return replace(held, index=None, job=None)
