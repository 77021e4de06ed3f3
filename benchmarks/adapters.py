"""What low-rank adapters cost while serving: mixed batches, and a thousand blocks that a row may be routed to.

The physics. A delta of rank r adds r (features in + features out) multiplications to a position where the layer itself
has features in times features out: a percent or less. What can cost is the way to it. Adapters that differ from row to
row are gathered and added by two batched products, so eight different ones should cost what one costs. Of a thousand
blocks only those of the batch's rows are touched, so what is left is the lookup, once a prefill, and a few small
operations at each layer.

Deltas are random, small, and never trained: their cost does not depend on what they do. Forwards are timed in pairs, in
random order, after a warm-up: a batch whose rows name one adapter each against the same batch with one name for all;
and a row that falls under one of the blocks, or under none, against the base model without hooks.

    editable bench adapters
    editable bench adapters --rows 8 --blocks 1000 --rounds 60
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editable import Edit, EditableModel
from editable.adapters import MELO, LoRA
from editable.benchmarks import bars, common, timing
from editable.benchmarks.report import Report, Table, publish
from editable.deltas import Delta, packed
from editable.edit import Patch
from editable.learn import shadow_of
from editable.pack import Packed

SIZE = 1e-3  # of the random deltas
WARMUP = 5


def random_deltas(model: nn.Module, paths: Sequence[str], rank: int, generator: torch.Generator) -> dict[str, Delta]:
    """Path to a small random delta of the layer there."""
    deltas = {}
    for path in paths:
        weight: Any = model.get_submodule(path).weight
        wide, narrow = weight.shape[1], weight.shape[0]
        down, up = torch.randn(rank, wide, generator=generator), torch.randn(narrow, rank, generator=generator)
        deltas[path] = Delta(down * SIZE, up * SIZE, 1.0)
    return deltas


def _packed(edit_id: str, editor: str, deltas: Mapping[str, Delta], tensors: Any, about: Any) -> Packed:
    own, meta = packed(deltas)
    request: dict[str, Any] = {
        "prompt": edit_id,
        "target": None,
        "rephrases": [],
        "subject": None,
        "namespace": "default",
    }
    return Packed(Patch(edit_id, {**own, **tensors}, {**meta, **about}), editor, request)


def with_adapters(model: nn.Module, tokenizer: Any, count: int, seed: int) -> EditableModel:
    """LoRA with so many adapters, named by their numbers."""
    em, generator = EditableModel(model, tokenizer, LoRA()), torch.Generator().manual_seed(seed)
    paths, rank = list(LoRA().sites(model)), LoRA().rank
    em.adopt(
        [
            _packed(
                f"a{i}",
                "lora",
                random_deltas(model, paths, rank, generator),
                {},
                {"adapter": f"{i}", "edits": [f"a{i}"]},
            )
            for i in range(count)
        ]
    )
    return em


def with_blocks(model: nn.Module, tokenizer: Any, edit: Edit, count: int, seed: int) -> EditableModel:
    """MELO with so many blocks whose clusters are somewhere else, and that of one edit."""
    em, generator = EditableModel(model, tokenizer, MELO()), torch.Generator().manual_seed(seed)
    em.edit(edit)
    (own,) = em._history.packed()
    key, radius = own.patch.tensors["keys"], own.patch.meta["radius"]
    paths = list(own.patch.meta["scaling"])
    adopted = []
    for number in range(count - 1):
        away = torch.randn(key.shape, generator=generator)
        keys = key + (10 + number) * radius * away / away.norm()
        tensors = {"keys": keys, "answer": torch.tensor([number])}
        about = {"radius": radius, "block": f"b{number}"}
        adopted.append(
            _packed(f"b{number}", "melo", random_deltas(model, paths, MELO().rank, generator), tensors, about)
        )
    em.adopt(adopted)
    return em


def mixed(model: nn.Module, tokenizer: Any, prompts: Sequence[str], rounds: int, seed: int) -> timing.Ratio:
    """A forward over rows that name an adapter each, over one whose rows all name the same."""
    feed = tokenizer(list(prompts), return_tensors="pt", padding=True)
    names = [str(number) for number in range(len(prompts))]
    with closing(with_adapters(model, tokenizer, len(prompts), seed)):
        sides = {
            "different": timing.clocked(lambda: model(**feed, adapters=names)),
            "same": timing.clocked(lambda: model(**feed, adapters=names[:1] * len(names))),
        }
        return _ratio(sides, rounds, seed)


def overhead(
    model: nn.Module, tokenizer: Any, edit: Edit, miss: str, blocks: int, rounds: int, seed: int
) -> dict[str, timing.Ratio]:
    """A forward over one row that hits a block, or none, over the base model's."""
    base, found = shadow_of(model), {}
    with closing(with_blocks(model, tokenizer, edit, blocks, seed)):
        for name, prompt in (("hit", edit.prompt), ("miss", miss)):
            feed = tokenizer(prompt, return_tensors="pt")
            _check(model, base, feed, hit=name == "hit")
            sides = {"edited": _forward(model, feed), "base": _forward(base, feed)}
            found[name] = _ratio(sides, rounds, seed)
    return found


def _forward(model: nn.Module, feed: Any) -> Callable[[], float]:
    return timing.clocked(lambda: model(**feed))


def _check(model: nn.Module, base: nn.Module, feed: Mapping[str, Tensor], hit: bool) -> None:
    same = torch.equal(model(**feed).logits, base(**feed).logits)
    assert same != hit, "what is timed as a hit is none, or the other way round"


def _ratio(sides: Mapping[str, Callable[[], float]], rounds: int, seed: int) -> timing.Ratio:
    seconds = timing.interleaved(sides, rounds, WARMUP, np.random.default_rng(seed))
    above, below = seconds.values()
    return timing.ratio_of_medians(above, below, np.random.default_rng(seed))


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and show."""
    parser = common.parser(__doc__, "adapters")
    parser.add_argument("--rows", type=int, default=8, help="rows of the mixed batch")
    parser.add_argument("--blocks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=60, help="pairs of forwards")
    chosen = parser.parse_args(argv)
    model, tokenizer = common.prepare(chosen)
    questions = common.unrelated(chosen, chosen.rows)
    edit = common.cases(chosen, 1)[0].edit
    found = {"mixed": mixed(model, tokenizer, questions, chosen.rounds, chosen.seed)}
    found |= overhead(model, tokenizer, edit, questions[0], chosen.blocks, chosen.rounds, chosen.seed)
    what = {
        "mixed": (f"{chosen.rows} rows, an adapter each / one for all", 1.15),
        "hit": (f"{chosen.blocks} blocks, a row that hits / base", 1.10),
        "miss": (f"{chosen.blocks} blocks, a row that misses / base", 1.02),
    }
    held = [bars.Bar(what[n][0], r.ratio, "<=", what[n][1], (r.low, r.high)) for n, r in found.items()]
    speed = {name: ratio.as_dict() for name, ratio in found.items()}
    card, quality = common.machine_card(model), {"met": bars.met(held)}
    tables: list[Table] = [bars.table(held)]
    publish(Report("adapters", card, common.given(chosen), quality, speed, tables, []), chosen.results, chosen.against)


if __name__ == "__main__":
    main()
