"""Forwards of which something is listened to, changed or left out, while a `with` block lasts.

For the shadow that edits are learned on; the served model has permanent hooks. Knows modules and sites, no editing
method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editable.hooks import InputHook
from editable.prompt import HEADED
from editable.site import Site


@contextmanager
def watching(model: nn.Module, site: Site, seen: dict[Site, Any]) -> Iterator[None]:
    """Keep the site's activation of every forward, as it is."""
    with _tapped(model, site, lambda activation: seen.update({site: activation})):
        yield


@contextmanager
def collecting(model: nn.Module, site: Site, found: list[Tensor]) -> Iterator[None]:
    """Append the site's rows of every forward."""
    with _tapped(model, site, lambda activation: found.append(site.read(activation).detach())):
        yield


@contextmanager
def only_at(head: nn.Module, columns: Tensor) -> Iterator[None]:
    """Give the vocabulary head only the columns (batch, k) of its input."""

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1])), *args[1:])

    token = HEADED.set(columns)
    try:
        with head.register_forward_pre_hook(before):
            yield
    finally:
        HEADED.reset(token)


@contextmanager
def putting(model: nn.Module, site: Site, values: Tensor, columns: Tensor | None) -> Iterator[None]:
    """Put one value per row (n, features) at the row's key token of the site, or everywhere where not tokens."""

    def put(rows: Tensor) -> Tensor:
        at = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        if columns is not None and rows.shape[1] > 1:
            at = torch.arange(rows.shape[1], device=rows.device) == columns[:, :1]
        return torch.where(at[..., None], values[:, None].to(rows.dtype), rows)

    with changing(model, site, put):
        yield


@contextmanager
def changing(model: nn.Module, site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let rows (batch, positions, features) at the site become what `change` makes of them."""

    def put(activation: Any) -> Any:
        rows = site.read(activation)
        changed = change(rows)
        return None if changed is rows else site.write(activation, changed)

    with _tapped(model, site, put):
        yield


@contextmanager
def _tapped(model: nn.Module, site: Site, act: Callable[[Any], Any]) -> Iterator[None]:
    """What `act` makes of the site's activation takes its place in every forward; None leaves it."""
    module = model.get_submodule(site.path)
    if site.side == "input":
        handle = module.register_forward_pre_hook(InputHook(act), with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda _module, _args, output: act(output))
    with handle:
        yield


@contextmanager
def skipping(model: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Blocks that give what they are told to instead of computing."""
    with ExitStack() as stack:
        for path, output in outputs.items():
            block = model.get_submodule(path)
            stack.callback(_put_back, block, vars(block).get("forward"))
            block.forward = _Give(output)
        yield


def _put_back(block: nn.Module, own: Any) -> None:
    del block.forward
    if own is not None:  # a forward that sat on the instance before (accelerate puts one there)
        block.forward = own


@dataclass(frozen=True, eq=False)
class _Give:
    """The forward of a block that is skipped."""

    output: Any

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output
