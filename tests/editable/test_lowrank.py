"""Low-rank deltas: x downᵀ upᵀ beside a layer, and nothing in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from editable import lowrank
from editable.errors import InputError

DOWN = torch.tensor([[1.0, 0.0, 2.0]])  # (rank 1, 3 in)
UP = torch.tensor([[3.0], [-1.0]])  # (2 out, rank 1)


def layer() -> tuple[nn.Sequential, nn.Linear]:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
    return nn.Sequential(linear), linear


def test_the_delta_is_added_to_the_output() -> None:
    """x = (1, 2, 3): W x + b = (16, 22); down x = 7; up 7 = (21, -7)."""
    model, linear = layer()
    before = linear.weight.clone()
    handles = lowrank.put_beside(model, {"0": (DOWN, UP)})
    assert model(torch.tensor([1.0, 2.0, 3.0])).tolist() == [37.0, 15.0]
    assert torch.equal(linear.weight, before)
    handles[0].remove()
    assert model(torch.tensor([1.0, 2.0, 3.0])).tolist() == [16.0, 22.0]


def test_it_is_computed_in_the_layers_dtype() -> None:
    model = layer()[0].to(torch.bfloat16)
    lowrank.put_beside(model, {"0": (DOWN, UP)})
    out = model(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out.tolist() == [37.0, 15.0]


def test_fresh_ones_change_nothing() -> None:
    model, _ = layer()
    made = lowrank.fresh(model, ["0"], 4, torch.Generator().manual_seed(0))
    assert [tuple(tensor.shape) for tensor in made["0"]] == [(4, 3), (2, 4)]
    lowrank.put_beside(model, made)
    assert model(torch.tensor([1.0, 2.0, 3.0])).tolist() == [16.0, 22.0]


@pytest.mark.parametrize(
    ("path", "seen"), [("1", "no such layer"), ("0", r"\(3, 2\)")], ids=["missing", "of another shape"]
)
def test_a_layer_that_does_not_fit_is_named(path: str, seen: str) -> None:
    wide = (torch.zeros(1, 5), torch.zeros(2, 1))
    with pytest.raises(InputError, match=rf"{seen} at '{path}', expected a linear layer of shape \(5, 2\)"):
        lowrank.put_beside(layer()[0], {path: wide})


def test_written_and_read_again(tmp_path: Path) -> None:
    lowrank.write(tmp_path / "file", {"a.b": (DOWN, UP)}, {"base": "abc"})
    deltas, notes = lowrank.read(tmp_path / "file")
    assert list(deltas) == ["a.b"] and torch.equal(deltas["a.b"][0], DOWN) and torch.equal(deltas["a.b"][1], UP)
    assert notes == {"base": "abc"}
    shapes = {(3, 2): True, (4, 2): False, (3, 1): False}
    for (wide, narrow), fits in shapes.items():
        model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(wide, narrow)})})
        assert lowrank.made_for(model, tmp_path / "file") is fits
    assert not lowrank.made_for(nn.Linear(3, 2), tmp_path / "file")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="holds no fitted weights"):
        lowrank.read(tmp_path / "file")
