"""The benchmark of low-rank adapters on a tiny model: what is timed is what it says. Never how long anything took."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from editable import Edit
from editable.adapters import LoRA
from editable.benchmarks import adapters
from tests.benchmarks.conftest import printed
from tests.families import Loaded


@torch.no_grad()
def test_each_name_is_another_adapter(tiny: Loaded) -> None:
    """Rows that name different adapters differ from one another; each is what it is alone."""
    (prompt,) = tiny.edited[:1]
    feed = tiny.encode([prompt] * 3)
    with closing(adapters.with_adapters(tiny.model, tiny.tokenizer, 3, seed=0)):
        mixed = tiny.model(**feed, adapters=["0", "1", "2"]).logits
        alone = tiny.model(**feed, adapters=["1"] * 3).logits
    assert not torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[1], mixed[2])
    assert torch.equal(mixed[1], alone[1])


@torch.no_grad()
def test_of_all_blocks_one_is_hit(tiny: Loaded) -> None:
    """The edited prompt falls under its own block, and one that is not edited under none of them."""
    prompt, other = tiny.edited[0], tiny.unrelated[0]
    base = tiny.logits([prompt]), tiny.logits([other])
    with closing(adapters.with_blocks(tiny.model, tiny.tokenizer, Edit(prompt, tiny.targets[0]), 20, seed=0)) as em:
        assert len(em.edits) == 20
        assert not torch.equal(tiny.logits([prompt]), base[0])
        assert torch.equal(tiny.logits([other]), base[1])


def test_a_miss_that_hits_is_refused(tiny: Loaded) -> None:
    edit = Edit(tiny.edited[0], tiny.targets[0])
    with pytest.raises(AssertionError, match="what is timed as a hit is none, or the other way round"):
        adapters.overhead(tiny.model, tiny.tokenizer, edit, str(edit.prompt), 3, 2, seed=0)


@torch.no_grad()
def test_random_deltas_fit_their_layers_and_repeat(tiny: Loaded) -> None:
    paths = list(LoRA().sites(tiny.model))
    once, again = (adapters.random_deltas(tiny.model, paths, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert list(once) == paths
    for path, delta in once.items():
        out, into = tiny.model.get_submodule(path).weight.shape
        assert (delta.down.shape, delta.up.shape) == ((3, into), (out, 3))
        assert torch.equal(delta.down, again[path].down)


def test_all_of_it(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rows", "3", "--blocks", "5", "--rounds", "3", "--results", str(tmp_path)]
    adapters.main([*tiny_options, *options])
    found = printed(capsys)
    assert set(found["timing"]) == {"mixed", "hit", "miss"}
    assert all(0 < one["low"] <= one["ratio"] <= one["high"] for one in found["timing"].values())
