"""The nearest key, where it is near enough: balls that neither grow nor split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from editable.edit import Patch
from editable.editor import Call
from editable.inputs import Batch, Request
from editable.learn import Probe
from editable.memory.points import Points, closest
from editable.routing import Answers, Part, looked_up
from editable.scopes.ball import BallScope, keys_of
from editable.site import Site

LENGTHS = 0.1  # of an image's activation: how far its radius reaches


@dataclass(frozen=True)
class NearestScope:
    """An input falls under the edit that has the key nearest to its activation, if that is within the radius.

    The order in which edits came plays no part, except that of several with the same prompt the latest is meant.

    Args:
        radius: as in `BallScope`; of images that takes further forwards, so None is a share of the activation's length.
        gate: whether there is one: without, every input falls under the nearest edit, however far away.
    """

    radius: float | None = None
    gate: bool = True

    reads_text: ClassVar[bool] = False
    asks: ClassVar[float] = 1.0  # activations do not tell what is asked from what builds on it
    margin: ClassVar[float] = BallScope.margin

    def site(self, model: nn.Module, effect: Site) -> Site:
        """As a `BallScope` has it."""
        return BallScope().site(model, effect)

    def empty(self, on_disk: bool = False) -> Points:
        """No key yet; the width is taken from the first patch."""
        return Points.empty(on_disk=on_disk)

    def learn(
        self, requests: Sequence[Request], batch: Batch, site: Site, rows: Tensor | None, probe: Probe
    ) -> list[Part]:
        """The activation at every prompt's key token, and the radius."""
        assert rows is not None
        radius = self.radius
        if radius is None and not probe.spread(site):
            radius = LENGTHS * float(rows.float().mean(dim=1).norm(dim=1).mean())
        return BallScope(radius=radius).learn(requests, batch, site, rows, probe)

    def insert(self, patches: Sequence[Patch], slot: int, book: Points, device: torch.device | None = None) -> Points:
        """Each with the places that it is recorded to have taken or, where that is not, by looking."""
        for number, patch in enumerate(patches, start=slot):
            keys, placed = keys_of(patch), patch.meta.get("placed")
            if not len(book.keys):
                book = Points.empty(keys.shape[1], device or "cpu")
            label = tuple(patch.tensors["answer"].tolist())
            taken = None if placed is None else tuple((str(name), int(which)) for name, which in placed)
            book = book.add(keys, patch.edit_id, number, label, patch.meta["radius"], taken)
        return book

    def placed(self, edit_id: str, book: Points) -> list[list[object]]:
        """The keys whose place it took."""
        return [list(one) for one in book.owners[edit_id].taken]

    def forget(self, edit_ids: frozenset[str], book: Points) -> Points:
        """As if they had never been inserted."""
        return book.forget(edit_ids)

    def conflicts(self, edit_id: str, book: Points) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids of edits with one of its prompts, ids of edits that answer otherwise and reach into where it does)."""
        return book.conflicts(edit_id)

    def find(
        self, call: Call, rows: Tensor, lags: Sequence[int], starts: NDArray[np.bool_] | None, book: Points
    ) -> list[tuple[Tensor, Tensor]]:
        """The nearest key at the key token and at `lag` tokens before it; all are looked up together."""

        def look(queries: Tensor) -> tuple[Tensor, Tensor]:
            slot, share = book.nearest(queries)
            return slot, share if self.gate else share.clamp_max(1)

        return looked_up(call, rows, lags, starts, look)

    def built_on(self, slot: int, text: str, answer: Answers, book: Points, memo: dict[Any, Any]) -> list[int]:  # noqa: ARG002
        """The edit alone: activations do not tell what builds on it."""
        return [slot]

    def consider(self, call: Call, rows: Tensor, book: Points, count: int) -> list[tuple[int, float, float, str]]:
        """The keys nearest to the key token's activation: distance and radius."""
        near = closest(book, call.at_key(rows)[0], count)
        return [
            (slot, distance, radius if self.gate else math.inf, f"distance {distance:.3g}, radius {radius:.3g}")
            for slot, distance, radius in near
        ]
