"""A ball around the activation at the key token (GRACE, Hartvigsen et al., NeurIPS 2023, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from editable.edit import Patch
from editable.editor import Call
from editable.errors import InputError, SiteError
from editable.inputs import Batch, Request
from editable.learn import Probe, at_columns
from editable.memory.radius import Codebook, Placed
from editable.memory.rows import Rows
from editable.routing import Answers, Part, looked_up
from editable.site import Site, block_paths, down_projection

ROUNDING = 0.01  # of an activation's length: inputs that are nearer are one
RADIUS_SHARE = 0.5  # of the spread: no false fire on 800 unrelated questions, see benchmarks/radius


@dataclass(frozen=True)
class Balls:
    """The book of a `BallScope`: balls, and the slot of the edit that each belongs to.

    Args:
        codebook: keys and radii; one row per key.
        slots: (n,) of each key.
        on_disk: whether keys lie in a file.
    """

    codebook: Codebook
    slots: Rows
    on_disk: bool = False

    @classmethod
    def empty(cls, width: int = 0, device: torch.device | str = "cpu", on_disk: bool = False) -> Balls:
        """No ball yet."""
        codebook = Codebook.empty(width, device=device, on_disk=on_disk)
        return cls(codebook, Rows.empty(dtype=torch.long, device=device), on_disk)


@dataclass(frozen=True)
class BallScope:
    """An input falls under an edit if its activation lies in the ball of one of the edit's prompts.

    Args:
        keys: what is compared with the radius: the residual stream, or the wide input of a feed-forward's down
            projection. None takes the residual stream for an effect behind a block, the wide input for one within.
        radius: initial radius of a ball (Euclidean, in the key's space); None measures it: half the typical distance
            between unrelated inputs at the site; of an image, how far it moves when it is shifted, turned or cropped a
            little.
    """

    keys: Literal["residual", "wide"] | None = None
    radius: float | None = None

    reads_text: ClassVar[bool] = False
    asks: ClassVar[float] = 1.0  # activations do not tell what is asked from what builds on it
    margin: ClassVar[float] = 0.05  # of a radius: less does not tell two balls apart, and the longer prompt is meant

    def site(self, model: nn.Module, effect: Site) -> Site:
        """The effect's own site or the block it is in; see `Scope`."""
        if effect.side == "input":
            return effect
        behind = effect.path in _blocks(model)
        if (self.keys or ("residual" if behind else "wide")) == "wide":
            return Site(down_projection(model, effect.path), side="input") if behind else replace(effect, side="input")
        return effect if behind else Site(_block_of(model, effect.path), side="input")

    def empty(self, on_disk: bool = False) -> Balls:
        """No ball yet; the width is taken from the first patch."""
        return Balls.empty(on_disk=on_disk)

    def learn(
        self, requests: Sequence[Request], batch: Batch, site: Site, rows: Tensor | None, probe: Probe
    ) -> list[Part]:
        """The activation at every prompt's key token, and the radius."""
        assert rows is not None
        keys = at_columns(rows, batch.last_real if batch.columns is None else batch.columns[:, 0]).float()
        own = [keys[batch.requests == i] for i in range(len(requests))]
        radii = self._initial_radii(torch.stack([some[0] for some in own]), batch, site, probe)
        return [({"keys": some}, {"radius": radius}) for some, radius in zip(own, radii, strict=True)]

    def _initial_radii(self, keys: Tensor, batch: Batch, site: Site, probe: Probe) -> list[float]:
        """Of each request, whose prompts have the keys (requests, features)."""
        if self.radius is not None:
            return [self.radius] * len(keys)
        if spread := probe.spread(site):
            return [RADIUS_SHARE * spread] * len(keys)
        reach = probe.reach(batch.select(batch.firsts), keys, site)
        lengths = keys.norm(dim=1)
        # Without any other input, the scale of the activation itself has to do.
        found: list[float] = (0.1 * lengths if reach is None else torch.maximum(reach, ROUNDING * lengths)).tolist()
        return found

    def insert(self, patches: Sequence[Patch], slot: int, book: Balls, device: torch.device | None = None) -> Balls:
        """Each key placed as it is recorded or, where it is not, by looking."""
        keys = [keys_of(patch) for patch in patches]
        if len(book.slots) == 0:
            book = Balls.empty(keys[0].shape[1], device or "cpu", book.on_disk)
        slots = torch.arange(slot, slot + len(patches)).repeat_interleave(torch.tensor([len(k) for k in keys]))
        return replace(book, codebook=_with_keys(book.codebook, patches), slots=book.slots.append(slots))

    def placed(self, edit_id: str, book: Balls) -> list[list[object]]:
        """What happened to each key of the edit."""
        return [_plain(book.codebook.placement(row)) for row in book.codebook.rows_of(edit_id)]

    def forget(self, edit_ids: frozenset[str], book: Balls) -> Balls:
        """As if they had never been inserted."""
        return replace(book, codebook=book.codebook.forget(edit_ids))

    def conflicts(self, edit_id: str, book: Balls) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose ball was split from its own)."""
        codebook = book.codebook
        placed = [codebook.placement(row) for row in codebook.rows_of(edit_id)]
        lost = {codebook.owner(row) for p in placed for row in p.superseded} - {None, edit_id}
        split = {codebook.owner(p.nearest) for p in placed if p.kind == "split"} - {None, edit_id}
        return tuple(sorted(str(o) for o in lost)), tuple(sorted(str(o) for o in split))

    def find(
        self, call: Call, rows: Tensor, lags: Sequence[int], starts: NDArray[np.bool_] | None, book: Balls
    ) -> list[tuple[Tensor, Tensor]]:
        """The nearest ball at the key token and at `lag` tokens before it; all are looked up together."""
        slots = book.slots.on(rows.device)

        def look(queries: Tensor) -> tuple[Tensor, Tensor]:
            row, share = book.codebook.find(queries)
            return slots[row], share

        return looked_up(call, rows, lags, starts, look)

    def built_on(self, slot: int, text: str, answer: Answers, book: Balls, memo: dict[Any, Any]) -> list[int]:  # noqa: ARG002
        """The edit alone: activations do not tell what builds on it."""
        return [slot]

    def consider(self, call: Call, rows: Tensor, book: Balls, count: int) -> list[tuple[int, float, float, str]]:
        """The balls nearest to the key token's activation: distance and radius."""
        query, codebook, seen = call.at_key(rows)[0], book.codebook, list[int]()
        found: list[tuple[int, float, float, str]] = []
        while len(found) < count:
            row, distance = codebook.nearest(query, without=seen)
            if row < 0:
                break
            seen.append(row)
            slot, radius = int(book.slots.view[row]), codebook.life(row).radius
            found.append((slot, distance, radius, f"distance {distance:.3g}, radius {radius:.3g}"))
        return found


def keys_of(patch: Patch) -> Tensor:
    """(k, features) the keys of an edit that was learned with activations.

    Raises:
        InputError: it was not.
    """
    if "keys" not in patch.tensors:
        raise InputError(
            f"The patch of edit {patch.edit_id!r} has no activation keys, expected those of a BallScope; use the scope "
            "that the edit was learned with."
        )
    return patch.tensors["keys"]


def _blocks(model: nn.Module) -> list[str]:
    try:
        return block_paths(model)
    except SiteError:
        return []


def _block_of(model: nn.Module, path: str) -> str:
    """The block that holds the module; the module itself where none does."""
    return next((block for block in block_paths(model) if path.startswith(f"{block}.")), path)


def _with_keys(book: Codebook, patches: Sequence[Patch]) -> Codebook:
    """The book with every key of every patch."""
    labels: list[bytes] = []  # a third of the room that tuples of numbers would take
    owners: list[str] = []
    radii: list[float] = []
    placed: list[Placed | None] = []
    for patch in patches:
        count = patch.tensors["keys"].shape[0]
        labels += [patch.tensors["answer"].numpy().tobytes()] * count
        owners += [patch.edit_id] * count
        radii += [patch.meta["radius"]] * count
        placed += [_placed(plain) for plain in patch.meta.get("placed", ())] or [None] * count
    keys = torch.cat([patch.tensors["keys"] for patch in patches])
    return book.add_all(keys.to(book.keys.device), labels, owners, radii, placed)


def _plain(placed: Placed) -> list[object]:
    """As JSON; the distance as a hexadecimal float, which is exact."""
    return [placed.kind, placed.nearest, placed.distance.hex(), list(placed.superseded)]


def _placed(plain: Sequence[Any]) -> Placed:
    kind, nearest, distance, superseded = plain
    return Placed(kind, nearest, float.fromhex(distance), tuple(superseded))
