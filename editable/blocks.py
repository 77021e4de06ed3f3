"""Low-rank blocks that rows are routed to: a scope says under which edit a row falls, and that edit's block serves it.

From the key token on and while the row follows the edit's answer; all that comes before keeps every bit. Blocks of all
edits lie in one stack for each layer, so a batch costs two products however many blocks it meets (MELO, Yu et al., AAAI
2024, section 3). Knows no editor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editable import routing
from editable.deltas import Delta, Stack, add_each, fed, packed, unpacked
from editable.edit import Patch
from editable.editor import Call, Considered
from editable.errors import InputError
from editable.inputs import Request
from editable.learn import Probe
from editable.memory.rows import Rows
from editable.routing import Part, Routes, Scope
from editable.site import Site, writes_text
from editable.tuning import Recipe, tune

SCOPE = "scope"
"""The role of the site where rows are decided."""

WHOLE = "whole:"
"""Begins the role of a layer, before its path, where a row is served at every position: that of a classifier."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The state.

    Args:
        scope: decides.
        routes: every edit a row may fall under.
        stacks: path to all blocks of the layer there.
        block: (slots,) the number of each edit's block.
    """

    scope: Scope
    routes: Routes
    stacks: Mapping[str, Stack] = field(default_factory=lambda: MappingProxyType({}))
    block: Rows = field(default_factory=lambda: Rows.empty(dtype=torch.long))

    @classmethod
    def empty(cls, scope: Scope) -> Blocks:
        """No edit yet."""
        return cls(scope, Routes.empty(scope))

    def __len__(self) -> int:
        return len(self.routes)

    # Serving

    def apply(self, call: Call, rows: Tensor) -> Tensor:
        """Decide at the scope's site; elsewhere rows (batch, positions, features) with their blocks where due."""
        if not len(self):
            return rows
        if call.role == SCOPE:
            routing.decide(call, rows, self.scope, self.routes)
            return rows
        key = (call.editor, rows.shape[1])
        if key not in call.memo:  # the same for every layer of this forward
            call.memo[key] = self._due(call, rows)
        if call.memo[key] is None:
            return rows
        number, due = call.memo[key]
        return add_each(rows, fed(call), self.stacks[path_of(call.role)], number, due)

    def _due(self, call: Call, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """The block of each row (batch,), and where it is due (batch, positions); None where it is nowhere."""
        found = routing.due(call, rows, self.routes)
        if found is None or call.decision is None:
            return None
        slot, _, due = found
        whole = call.role.startswith(WHOLE)
        return self.block.on(rows.device)[slot], call.decision["hit"][:, None] if whole else due

    def explain(self, call: Call, rows: Tensor) -> Sequence[Considered]:
        """The edits nearest to the one row; rows at the scope's site."""
        return routing.explain(call, rows, self.scope, self.routes)

    # Learning

    def learn(
        self, requests: Sequence[Request], probe: Probe, sites: Mapping[str, Site], recipe: Recipe, together: int
    ) -> tuple[Blocks, list[Patch]]:
        """Learn the edits; so many of them, one after another, share a block and are learned jointly."""
        batch = probe.reader.batch(requests)
        where = sites[SCOPE]
        rows = None if self.scope.reads_text else probe.capture(batch, [where]).rows[where]
        parts = self.scope.learn(requests, batch, where, rows, probe)
        paths = [path_of(role) for role in sites if role != SCOPE]
        found = tune(probe, batch, paths, recipe, batch.requests // together)
        state, patches = self, []
        for index, (request, part) in enumerate(zip(requests, parts, strict=True)):
            first = requests[index - index % together]
            own = found[index // together] if request is first else None
            state, patch = state._entered(_patch(request, part, own, first, together > 1), probe.reader.device)
            patches.append(patch)
        return state, patches

    def _entered(self, patch: Patch, device: torch.device) -> tuple[Blocks, Patch]:
        routes, placed = self.routes.enter(self.scope, patch, device)
        return self._with(routes, [placed], device), placed

    # The edit set

    def insert(self, patches: Sequence[Patch]) -> Blocks:
        """With patches learned earlier."""
        return self._with(self.routes.insert(self.scope, patches), patches) if patches else self

    def _with(self, routes: Routes, patches: Sequence[Patch], device: torch.device | None = None) -> Blocks:
        """With the blocks of edits that have just been given their slots."""
        deltas = [unpacked(patch, device) for patch in patches]
        new = [one for one in deltas if one]
        block = self.block if len(self.block) else Rows.empty(dtype=torch.long, device=device or "cpu")
        numbers = self._numbers(patches)
        stacks = self.stacks if not new else {path: self._stack(path, [one[path] for one in new]) for path in new[0]}
        return replace(self, routes=routes, stacks=MappingProxyType(dict(stacks)), block=block.append(numbers))

    def _stack(self, path: str, deltas: Sequence[Delta]) -> Stack:
        return self.stacks[path].append(deltas) if path in self.stacks else Stack.of(deltas)

    def _numbers(self, patches: Sequence[Patch]) -> Tensor:
        """(patches,) the block of each: a new one for a patch that brings one, else that of the edit it names."""
        count = len(next(iter(self.stacks.values())).down) if self.stacks else 0
        known: dict[str, int] = {}
        for patch in patches:
            holder = patch.meta["block"]
            if "scaling" in patch.meta:
                known[patch.edit_id], count = count, count + 1
            elif holder not in known:
                known[holder] = self._block_of(holder, patch)
        return torch.tensor([known[patch.meta["block"]] for patch in patches])

    def _block_of(self, holder: str, patch: Patch) -> int:
        slot = self.routes.slot(holder)
        if slot is None:
            raise InputError(
                f"The patch of edit {patch.edit_id!r} shares the block of edit {holder!r}, which is not here, expected "
                "that edit before it; insert the edits that were learned together together."
            )
        return int(self.block.view[slot])

    def forget(self, edit_ids: frozenset[str]) -> Blocks:
        """As if those edits had never been inserted; they come in whole units."""
        slots = [slot for slot in map(self.routes.slot, edit_ids) if slot is not None]
        gone = np.unique(self.block.view[slots].cpu().numpy())
        stacks = {path: stack.let_go(gone) for path, stack in self.stacks.items()}
        return replace(self, routes=self.routes.forget(self.scope, edit_ids), stacks=MappingProxyType(stacks))

    def conflicts(self, edit_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose scope was parted from its own)."""
        return self.scope.conflicts(edit_id, self.routes.book)

    def unit(self, edit_id: str) -> frozenset[str]:
        """The live edits of its block."""
        slot = self.routes.slot(edit_id)
        block = self.block.view.cpu().numpy()
        slots = np.flatnonzero(block == block[slot]).tolist()
        return frozenset(self.routes.edit_id(one) for one in slots if self.routes.live[one])


def sites(model: nn.Module, scope: Scope, paths: Sequence[str]) -> dict[str, Site]:
    """Role to site: where rows are decided, then the layers at `paths`."""
    prefix = "" if writes_text(model) else WHOLE
    layers = {f"{prefix}{path}": Site(path, axis=-1) for path in paths}
    return {SCOPE: scope.site(model, next(iter(layers.values()))), **layers}


def path_of(role: str) -> str:
    """The path of the layer that has this role."""
    return role.removeprefix(WHOLE)


def _patch(request: Request, part: Part, own: Mapping[str, Delta] | None, first: Request, shared: bool) -> Patch:
    """The patch of one edit; the first of a block brings the block."""
    tensors, about = packed(own) if own is not None else ({}, {})
    kept: dict[str, Any] = dict(request.kept) if shared else {}  # one of several may have to be learned again
    return routing.part_of(request, part, {**kept, **tensors}, {**about, "block": first.id})
