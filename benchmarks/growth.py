"""Many edits in little time: patches that were learned, moved far apart, and published without learning.

Knows how EditableModel takes in a patch; this is the one place of the benchmarks that reaches behind its public
methods. Refuses to know what an editor's tensors mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editable import Edit, EditableModel, Patch
from editable.benchmarks.common import each
from editable.listing import described
from editable.memory.log import Entry

FAR = 8.0  # lengths of a row by which it is moved
UNIT = 1e-2  # how near to 1 the length of a direction is, in float16
DIRECTIONS = 16  # numbers a row needs at least to have room for directions that are nearly at right angles
TOGETHER = 1000  # edits in one version


def grow(em: EditableModel, count: int, rng: np.random.Generator) -> None:
    """Publish synthetic edits until `count` are live, through the editor's own `insert`; some must have been learned.

    Each is a learned patch under a new id, its float tensors moved in random directions, so far that no two scopes
    overlap. What the history notes of it has no tensors: a log would hold those on disk.

    Raises:
        ValueError: no edit was learned yet.
    """
    missing = max(0, count - len(em.edits))
    if not missing:
        return
    learned = itertools.cycle(_learned(em))
    entries: list[Entry] = []
    name = next(iter(em.editors))
    state = em._state_of(name)
    for turn in each(range(1, missing + 1), f"growing to {count} edits", missing):
        patch = moved(next(learned), f"synthetic-{count}-{turn}", rng)
        state = em.editors[name].insert([patch], state)
        entries.append(Entry("edit", patch.edit_id, name, {}, _about(patch)))
        if turn % TOGETHER == 0 or turn == missing:
            snapshot = em._snapshot.replace(em.version + 1, {name: state})
            em._history.append(snapshot.version, entries)
            em._publish(snapshot)
            entries = []


def placed_anew(em: EditableModel, edit_id: str) -> Patch:
    """The patch of a live edit, as it would come from elsewhere: where its scope was placed is not known."""
    patch = next(packed.patch for packed in em._history.packed() if packed.patch.edit_id == edit_id)
    return Patch(patch.edit_id, patch.tensors, _unplaced(patch.meta))


def state_of(em: EditableModel) -> Any:
    """What the first editor holds."""
    return em._state_of(next(iter(em.editors)))


def learning_copy(em: EditableModel) -> nn.Module:
    """The module tree on which edits are learned."""
    return em._workshop.probe.model


def _learned(em: EditableModel) -> list[Patch]:
    found = [packed.patch for packed in em._history.packed() if packed.patch.tensors]
    if not found:
        raise ValueError("no edit was learned, expected at least one to make others from")
    return found


def moved(patch: Patch, edit_id: str, rng: np.random.Generator) -> Patch:
    """The patch under another id, every row of its float tensors moved by FAR times its length.

    Rows of length 1 are directions, and keep that length. Sentences are about the new id, and take nobody's place.
    """
    tensors = {name: _far(tensor, rng) for name, tensor in patch.tensors.items()}
    meta = _unplaced(patch.meta)
    if "texts" in meta:
        texts = [f"{text} {edit_id}" for text in meta["texts"]]
        meta |= {"texts": texts, "subjects": [edit_id] * len(texts), "placed": []}
    return Patch(edit_id, tensors, meta)


def _unplaced(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name != "placed"}


def _far(tensor: Tensor, rng: np.random.Generator) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim == 0 or tensor.shape[-1] < DIRECTIONS:
        return tensor
    drawn = torch.from_numpy(rng.standard_normal(tensor.shape, dtype=np.float32))
    lengths = tensor.float().norm(dim=-1, keepdim=True)
    far = tensor + nn.functional.normalize(drawn, dim=-1) * lengths * FAR
    directions = bool(((lengths - 1).abs() < UNIT).all())
    return (nn.functional.normalize(far, dim=-1) if directions else far).to(tensor.dtype)


def _about(patch: Patch) -> dict[str, Any]:
    request = described(Edit(patch.edit_id, patch.edit_id))
    return {"request": request, "patch": dict(patch.meta), "superseded": []}


# --- what a state holds ---


def tensor_bytes(state: Any) -> int:
    """Bytes of all storage that tensors in a state reach, each counted once, spare room for growth included."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state, set())}
    return sum(storages.values())


def tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor reached through dataclasses, mappings, sequences and plain objects of this package."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, str | bytes | int | float | type | None) or id(value) in seen:
        return
    seen.add(id(value))
    for part in _parts(value):
        yield from tensors_in(part, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    named = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else []
    return [*named, *getattr(value, "__dict__", {}).values()]
