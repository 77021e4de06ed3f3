"""What a KV cache carries from prefill to decode: the version it was filled under and the decisions taken there.

It is an attribute of the cache object itself, so that it lives as long, is deep-copied along, and is found by a user's
own decoding loop. Beams and batch selections reorder it together with the keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from editable.snapshot import Snapshot

_ATTRIBUTE = "_editable_carried"


@dataclass(slots=True)
class Carried:
    """What travels with a cache.

    Args:
        snapshot: the version whose edits shaped the cached keys and values.
        seen: tokens the cache holds, known without asking the device.
        prompt: columns up to the end of the prompt; 0 while that has not been seen.
        pads: (batch,) padding columns of each row's prompt; None where there are none.
        decisions: editor name to its per-row tensors.
        read: (batch, columns) each, the tokens of its prompts, padding as -1; not those decoded since.
    """

    snapshot: Snapshot
    seen: int = 0
    prompt: int = 0
    pads: Tensor | None = None
    decisions: dict[str, Any] = field(default_factory=dict)
    read: tuple[Tensor, ...] = ()

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order."""
        if self.pads is not None:
            self.pads = self.pads[rows.to(self.pads.device)]
        self.read = tuple(tokens[rows.to(tokens.device)] for tokens in self.read)
        self.decisions = {
            editor: {name: tensor[rows.to(tensor.device)] for name, tensor in decision.items()}
            for editor, decision in self.decisions.items()
        }


def carried_by(cache: Any) -> Carried | None:
    """What a cache carries; None for no cache, a cache from elsewhere, or an emptied one."""
    return getattr(cache, _ATTRIBUTE, None)


def carry(cache: Any, carried: Carried) -> None:
    """Tie `carried` to a cache, and make it follow what is done to the cache's rows."""
    if not hasattr(cache, _ATTRIBUTE):
        for follow in (reorder_cache, batch_repeat_interleave, batch_select_indices, crop, reset):
            if hasattr(type(cache), follow.__name__):
                setattr(cache, follow.__name__, MethodType(follow, cache))
    setattr(cache, _ATTRIBUTE, carried)


# Bound to single cache objects, never to their class. A deep copy rebinds them to the copy by itself.


def reorder_cache(self: Any, beam_idx: Tensor) -> None:
    """Follow a beam search's choice of rows."""
    type(self).reorder_cache(self, beam_idx)
    _select(self, beam_idx)


def batch_repeat_interleave(self: Any, repeats: int) -> None:
    """Follow a repetition of every row."""
    type(self).batch_repeat_interleave(self, repeats)
    carried = carried_by(self)
    rows = next((len(t) for d in carried.decisions.values() for t in d.values()), None) if carried else None
    if rows is None and carried is not None and carried.pads is not None:
        rows = len(carried.pads)
    if rows is None and carried is not None and carried.read:
        rows = len(carried.read[0])
    if rows is not None:
        _select(self, torch.arange(rows).repeat_interleave(repeats))


def batch_select_indices(self: Any, indices: Tensor) -> None:
    """Follow a choice of rows."""
    type(self).batch_select_indices(self, indices)
    _select(self, indices)


def crop(self: Any, tokens_to_remove: int) -> None:
    """Follow the removal of the latest tokens (assisted decoding rejects some)."""
    type(self).crop(self, tokens_to_remove)
    carried = carried_by(self)
    if carried is not None:
        carried.seen = int(self.get_seq_length())


def reset(self: Any) -> None:
    """An emptied cache starts anew."""
    type(self).reset(self)
    if hasattr(self, _ATTRIBUTE):
        delattr(self, _ATTRIBUTE)


def _select(cache: Any, rows: Tensor) -> None:
    carried = carried_by(cache)
    if carried is not None:
        carried.select(rows)
