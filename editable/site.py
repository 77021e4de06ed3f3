"""Where an editor acts, and how the activation there reads as (batch, positions, features) rows.

The only file that knows activation layouts, and the only one that chooses modules from a model's tree. It asks
structure and shapes, never model names.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editable.errors import SiteError

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu2": lambda x: F.relu(x).square(),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
)
"""The activation functions that feed-forwards have, by name."""


@dataclass(frozen=True)
class Site:
    """One side of one module, read and written as rows of shape (batch, positions, features).

    Args:
        path: dotted module path, as in `model.named_modules()`.
        side: act on what goes into the module (its first tensor argument) or on what comes out of it.
        axis: the feature axis; None means the last one, or axis 1 of a (batch, channels, height, width) map. Linear
            layers take maps with the features last, so their sites say -1.
    """

    path: str
    side: Literal["input", "output"] = "output"
    axis: int | None = None

    def read(self, activation: Any) -> Tensor:
        """Rows of an activation: a tensor, a tuple whose first tensor counts, or a model output."""
        tensor = activation if isinstance(activation, Tensor) else _first_tensor(activation, self.path)
        if tensor.ndim == 2:
            return tensor.unsqueeze(1)
        if tensor.ndim == 3:
            return tensor if self.axis in (None, -1, 2) else tensor.transpose(1, 2)
        if tensor.ndim == 4:
            channels_first = tensor if self.axis in (None, 1) else tensor.movedim(self.axis or 1, 1)
            return channels_first.flatten(2).transpose(1, 2)
        raise SiteError(
            f"Site {self.path!r} has an activation of shape {tuple(tensor.shape)}, expected (batch, features), "
            "(batch, positions, features) or (batch, channels, height, width); choose another module."
        )

    def write(self, activation: Any, rows: Tensor) -> Any:
        """The same kind of activation with `rows` in place of its own; the given one is not touched."""
        if isinstance(activation, Tensor):
            return self._unread(activation, rows)
        old = _first_tensor(activation, self.path)
        new = self._unread(old, rows)
        if isinstance(activation, tuple):
            parts = [new if part is old else part for part in activation]
            return type(activation)(*parts) if hasattr(activation, "_fields") else tuple(parts)
        if isinstance(activation, list):
            return [new if part is old else part for part in activation]
        return type(activation)(**{k: new if v is old else v for k, v in activation.items()})

    def _unread(self, tensor: Tensor, rows: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return rows.squeeze(1)
        if tensor.ndim == 3:
            return rows if self.axis in (None, -1, 2) else rows.transpose(1, 2)
        shape = tensor.shape if self.axis in (None, 1) else tensor.movedim(self.axis or 1, 1).shape
        maps = rows.transpose(1, 2).reshape(shape)
        return maps if self.axis in (None, 1) else maps.movedim(1, self.axis or 1)


def _first_tensor(activation: Any, path: str) -> Tensor:
    parts = activation.values() if isinstance(activation, Mapping) else activation
    if isinstance(parts, tuple | list) or isinstance(activation, Mapping):
        for part in parts:
            if isinstance(part, Tensor):
                return part
    raise SiteError(
        f"Site {path!r} produces {type(activation).__name__}, expected a tensor, or a tuple or model output that "
        "holds one; choose another module."
    )


def find_module(model: nn.Module, pattern: str) -> str:
    """The one module path that equals or (as a glob) matches `pattern`.

    Raises:
        SiteError: none or several match; the nearest names are listed.
    """
    names: list[str] = [name for name, _ in model.named_modules() if name]
    if pattern in names:
        return pattern
    matches = fnmatch.filter(names, pattern)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise SiteError(
            f"Site {pattern!r} matches {len(matches)} modules ({', '.join(matches[:3])} ...), expected exactly one; "
            "make the pattern narrower."
        )
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    raise SiteError(
        f"Site {pattern!r} does not exist in {type(model).__name__}, expected a module path; "
        f"the nearest are: {', '.join(near) or ', '.join(names[:3])}."
    )


def is_seq2seq(model: nn.Module) -> bool:
    """Whether the model reads with an encoder and writes with a decoder of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def writes_text(model: nn.Module) -> bool:
    """Whether the model produces tokens one after another (it has a head over the vocabulary and generates)."""
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and model.get_output_embeddings() is not None)  # type: ignore[operator]


def context_length(model: nn.Module) -> int:
    """Most tokens that the model can read; without a limit of its own, more than there will be."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1 << 30


def block_paths(model: nn.Module) -> list[str]:
    """Dotted paths of the repeated block stack in order: the decoder's, where there are two.

    The stack is the longest ModuleList whose members share one class, or where there is none the longest Sequential
    (as in torchvision and timm); the last such list wins a tie, which is the decoder in encoder-decoder models.

    Raises:
        SiteError: there is no repeated stack.
    """
    stacks = _stacks(model, nn.ModuleList) or _stacks(model, nn.Sequential)
    if is_seq2seq(model):
        stacks = [paths for paths in stacks if "decoder" in paths[0].split(".")] or stacks
    if not stacks:
        raise SiteError(
            f"{type(model).__name__} has no repeated block stack, expected a list of equal blocks; "
            "name the module to edit with site='...'."
        )
    longest = max(len(paths) for paths in stacks)
    return [paths for paths in stacks if len(paths) == longest][-1]


def _stacks(model: nn.Module, kind: type[nn.Module]) -> list[list[str]]:
    """The paths of the members of each stack, in the order of the tree."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, kind) and _is_stack(module)]
    return [[f"{name}.{child}".removeprefix(".") for child, _ in module.named_children()] for name, module in lists]


def _is_stack(module: nn.Module) -> bool:
    blocks = list(module.children())
    has_children = any(True for block in blocks[:1] for _ in block.children())
    return has_children and all(type(block) is type(blocks[0]) for block in blocks)


def down_projection(model: nn.Module, block: str) -> str:
    """Path of the feed-forward's last linear inside `block`: the last one that narrows; else the last of all."""
    inside = model.get_submodule(block)
    linears = [(name, linear_shape(module)) for name, module in inside.named_modules()]
    shaped = [(name, shape) for name, shape in linears if shape is not None]
    narrowing = [name for name, (wide, narrow) in shaped if wide > narrow]
    if not shaped:
        raise SiteError(
            f"Block {block!r} has no linear layer, expected a feed-forward; name the module with site='...'."
        )
    return f"{block}.{(narrowing or [name for name, _ in shaped])[-1]}"


@dataclass(frozen=True)
class FeedForward:
    """Where units can stand beside a feed-forward: they read what it reads, and add to what it gives.

    Args:
        input: what goes into its first linear layer, rows (batch, positions, features).
        output: what comes out of its last one.
        activation: of its hidden units, a name in `ACTIVATIONS`: what was learned beside it is stored by name.
        gated: whether each hidden unit is the product of an activated and of a plain linear one (SwiGLU, GeGLU).
    """

    input: Site
    output: Site
    activation: str
    gated: bool = False


def feed_forward(model: nn.Module, block: str) -> FeedForward:
    """The feed-forward of a block: its down projection, the linear layers of the opposite shape, what lies between.

    Raises:
        SiteError: the block has none, or several side by side (a mixture of experts).
    """
    down = down_projection(model, block)
    wide, narrow = linear_shape(model.get_submodule(down)) or (0, 0)
    shapes = {name: linear_shape(module) for name, module in model.get_submodule(block).named_modules()}
    up = [name for name, shape in shapes.items() if shape in ((narrow, wide), (narrow, 2 * wide))]
    if len(up) not in (1, 2) or wide == narrow:
        raise SiteError(
            f"Block {block!r} has {len(up)} linear layers that lead to {down!r}, expected the one of a feed-forward or "
            "the two of a gated one; name another module with site='...'."
        )
    gated = len(up) == 2 or shapes[up[0]] == (narrow, 2 * wide)
    read, added = Site(f"{block}.{up[0]}", side="input", axis=-1), Site(down, axis=-1)
    return FeedForward(read, added, _activation(model, block), gated)


def units_place(model: nn.Module, path: str | None = None) -> FeedForward:
    """Where hidden units can be added that act on each position by itself, after all attention.

    They read what the last block's feed-forward reads, and add to the stream that leaves the block. That is the same as
    adding to the feed-forward's output, unless the block normalises that: then a unit's part is not normalised with it,
    which would bound what it can do. In classifiers without a feed-forward (convolutional networks), or whose longest
    stack of blocks is not the last (networks in stages), units stand beside the head: they read the pooled features and
    add to the logits.

    Args:
        model: any.
        path: take this block, or this linear layer as a head, instead.

    Raises:
        SiteError: there is no such place.
    """
    if path is not None:
        linear = linear_shape(model.get_submodule(path)) is not None
        return _beside(path) if linear else _across(model, path)
    try:
        last = block_paths(model)[-1]
        return _across(model, last) if writes_text(model) or _ends(model, last) else _beside(classifier_head(model))
    except SiteError:
        if writes_text(model):
            raise
        return _beside(classifier_head(model))


def _ends(model: nn.Module, block: str) -> bool:
    """Whether no other stack of blocks comes after this block."""
    names: list[str] = [name for name, _ in model.named_modules()]
    firsts = [paths[0] for kind in (nn.ModuleList, nn.Sequential) for paths in _stacks(model, kind)]
    return not any(names.index(f) > names.index(block) and not f.startswith(f"{block}.") for f in firsts)


def _across(model: nn.Module, block: str) -> FeedForward:
    return replace(feed_forward(model, block), output=Site(block))


def _beside(linear: str) -> FeedForward:
    return FeedForward(Site(linear, side="input"), Site(linear), "relu")


def _activation(model: nn.Module, block: str) -> str:
    for module in model.get_submodule(block).modules():
        name = _activation_name(module)
        if name is not None:
            return name
    raise SiteError(
        f"Block {block!r} has no activation function among its modules, expected one of {', '.join(ACTIVATIONS)}; "
        "name another module with site='...'."
    )


def _activation_name(module: nn.Module) -> str | None:
    """Which of the known activations a module computes, told by its values; None for any other module."""
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return None
    resting = copy.copy(module)
    resting.training = False  # of the copy: dropout that drops would draw random numbers
    numbers = torch.linspace(-3, 3, 13)
    try:
        values = resting.forward(numbers)
        far = {name: float((known(numbers) - values).abs().max()) for name, known in ACTIVATIONS.items()}
    except Exception:  # whatever it takes, it is not numbers
        return None
    nearest = min(far, key=lambda name: far[name])
    return nearest if far[nearest] < 1e-3 else None


def vocabulary_head(model: nn.Module) -> str:
    """Path of the layer that makes a text model's logits."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return next(str(name) for name, module in model.named_modules() if module is head)


def label_rows(model: nn.Module) -> Tensor:
    """(labels, features) the weights of the layer that makes the logits: of the vocabulary, or of a classifier.

    Raises:
        SiteError: the layer keeps no plain weights (it is quantised).
    """
    path = vocabulary_head(model) if writes_text(model) else classifier_head(model)
    head = model.get_submodule(path)
    weight, shape = getattr(head, "weight", None), linear_shape(head)
    if shape is None or not isinstance(weight, Tensor) or sorted(weight.shape) != sorted(shape):
        raise SiteError(f"Module {path!r} is a {type(head).__name__}, expected a linear layer with plain weights.")
    return weight.T if is_transposed(head) else weight


def attention_projections(model: nn.Module, block: str) -> list[str]:
    """Paths of the linears inside `block` that do not stand beside its feed-forward's down projection."""
    beside = down_projection(model, block).rpartition(".")[0]
    names = [f"{block}.{name}" for name, m in model.get_submodule(block).named_modules() if linear_shape(m) is not None]
    return [name for name in names if name.rpartition(".")[0] != beside]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(features in, features out) of anything shaped like a linear layer; quantised ones keep these attributes."""
    own = vars(module)
    for wide, narrow in (("in_features", "out_features"), ("nx", "nf")):  # the second is transformers' Conv1D
        if wide in own and narrow in own:
            return int(own[wide]), int(own[narrow])
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer holds its weight as (features in, features out), as transformers' Conv1D does."""
    return "nf" in vars(module)


def classifier_head(model: nn.Module) -> str:
    """Path of the linear layer that makes a classifier's logits: the last linear of the tree.

    Raises:
        SiteError: there is no linear layer.
    """
    linears: list[str] = [name for name, module in model.named_modules() if name and linear_shape(module) is not None]
    if not linears:
        raise SiteError(
            f"{type(model).__name__} has no linear layer, expected one that makes the logits; "
            "name the module to edit with site='...'."
        )
    return linears[-1]


def linear_paths(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Paths of the linear layers that one of `patterns` names, in the order of the tree.

    A pattern is a whole path, the end of one (`q_proj`, as peft's `target_modules` have it), or a glob.

    Raises:
        SiteError: a pattern names no module, or one that is no linear layer.
    """
    named: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    wanted: set[str] = set()
    for pattern in patterns:
        found = [n for n in named if n == pattern or n.endswith(f".{pattern}") or fnmatch.fnmatchcase(n, pattern)]
        linear = [n for n in found if linear_shape(named[n]) is not None]
        if not linear:
            find_module(model, found[0] if found else pattern)  # a name that is not there is told with its neighbours
            kind = type(named[found[0]]).__name__
            raise SiteError(f"Module {found[0]!r} is a {kind}, expected a linear layer; name another one in targets.")
        _refuse_uncalled(named, linear)
        wanted.update(linear)
    return [name for name in named if name in wanted]


def _refuse_uncalled(named: Mapping[str, nn.Module], paths: Sequence[str]) -> None:
    """Refuse layers that a hook at them would never see."""
    for path in paths:
        if isinstance(named.get(path.rpartition(".")[0]), nn.MultiheadAttention):
            raise SiteError(
                f"Module {path!r} is part of a MultiheadAttention, which uses its weight and never calls it, expected "
                "a layer that is called; name another one in targets."
            )


def late_linears(model: nn.Module, share: float) -> list[str]:
    """All linear layers of the last `share` of a text model's blocks, at least of two; of a classifier its head.

    Of a decoder that reads an encoder only the feed-forward: some of its attention sees the encoder's positions.
    """
    if not writes_text(model):
        return [classifier_head(model)]
    blocks = block_paths(model)
    late = blocks[-max(round(share * len(blocks)), 2) :]
    if is_seq2seq(model):
        return [path for block in late for path in beside_down_projection(model, block)]
    inside = tuple(f"{block}." for block in late)
    return [n for n, module in model.named_modules() if n.startswith(inside) and linear_shape(module) is not None]


def beside_down_projection(model: nn.Module, block: str) -> list[str]:
    """The linear layers of a block's feed-forward: its down projection's and those that lie beside it."""
    beside = down_projection(model, block).rpartition(".")[0]
    children = model.get_submodule(beside).named_children()
    return [f"{beside}.{name}" for name, module in children if linear_shape(module) is not None]
