"""Low-rank deltas beside frozen linear layers: plain tensors, applied by hooks, never written into a weight.

Knows linear layers and files of tensors; knows nothing of what the deltas are for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from editable.errors import InputError
from editable.site import linear_shape

Deltas = Mapping[str, tuple[Tensor, Tensor]]
"""Path of a linear layer to down (rank, features in) and up (features out, rank)."""


def fresh(model: nn.Module, paths: Iterable[str], rank: int, generator: torch.Generator) -> Deltas:
    """Deltas that change nothing yet: down drawn from a normal distribution, up zero (Hu et al., LoRA, section 4.1)."""
    deltas = {}
    for path in paths:
        shape = linear_shape(model.get_submodule(path))
        assert shape is not None
        wide, narrow = shape
        down = torch.randn(rank, wide, generator=generator) / math.sqrt(wide)
        deltas[path] = (down, torch.zeros(narrow, rank))
    return deltas


def put_beside(model: nn.Module, deltas: Deltas) -> list[RemovableHandle]:
    """Add each layer's delta to its output, x downᵀ upᵀ, in its own dtype and place.

    Raises:
        InputError: the model has no such layer, or one of another shape.
    """
    return [_hooked(model, path, down, up) for path, (down, up) in deltas.items()]


def _hooked(model: nn.Module, path: str, down: Tensor, up: Tensor) -> RemovableHandle:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    shape = linear_shape(modules[path]) if path in modules else None
    if shape != (down.shape[1], up.shape[0]):
        raise InputError(
            f"{type(model).__name__} has {'no such layer' if shape is None else shape} at {path!r}, expected a linear "
            f"layer of shape {(down.shape[1], up.shape[0])}: these weights were fitted beside another model."
        )
    return modules[path].register_forward_hook(partial(_add, down, up))


def _add(down: Tensor, up: Tensor, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    rows = args[0]
    low = rows @ down.to(device=rows.device, dtype=rows.dtype).T
    return output + low @ up.to(device=rows.device, dtype=rows.dtype).T


def made_for(model: nn.Module, path: str | Path) -> bool:
    """Whether the model has every layer that the deltas of this file stand beside; only names and shapes are read."""
    from safetensors import safe_open

    modules = dict(model.named_modules())
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        own = linear_shape(modules[layer]) if layer in modules else None
        if own is None or (shape[1] if part == "down" else shape[0]) != own[part == "up"]:
            return False
    return True


def write(path: str | Path, deltas: Deltas, notes: Mapping[str, str]) -> None:
    """Write deltas to a safetensors file, in half precision."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (down, up) in deltas.items():
        tensors[f"{name}.down"], tensors[f"{name}.up"] = down.detach().half(), up.detach().half()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(notes))


def read(path: str | Path) -> tuple[Deltas, Mapping[str, str]]:
    """Deltas of a file, in float32, and its notes.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            notes = file.metadata() or {}
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return {name: (tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in names}, notes
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{str(path)!r} holds no fitted weights, expected a file that fit wrote ({error}).") from error
