"""Edits that rows are routed to, each with vectors of its own: one for each token of its answer, or one.

Knows routing and storage; knows nothing of what the vectors do at a site, or of how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from editable.edit import Patch
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows
from editable.routing import Routes, Scope


@dataclass(frozen=True)
class Entries:
    """A state: which edit a row falls under, and the values of each.

    Args:
        routes: the scope's book and the answers.
        values: (m, features) all values, an edit's in a row.
        spans: (n, 2) of each edit: first value, number of values.
        on_disk: whether keys and values lie in files.
    """

    routes: Routes
    values: SparseRows
    spans: Rows
    on_disk: bool = False

    def __len__(self) -> int:
        return len(self.routes)

    @classmethod
    def empty(
        cls, routes: Routes, width: int = 0, device: torch.device | str = "cpu", on_disk: bool = False
    ) -> Entries:
        """No value yet."""
        values = Rows.on_disk(width) if on_disk else Rows.empty(width, device=device)
        return cls(routes, SparseRows.of(values), Rows.empty(2, dtype=torch.long, device=device), on_disk)

    def enter(self, scope: Scope, patch: Patch, device: torch.device) -> tuple[Entries, Patch]:
        """With one newly learned edit, and its patch as replays need it; see `Routes.enter`."""
        routes, patch = self.routes.enter(scope, patch, device)
        return self._with(routes, [patch], device), patch

    def insert(self, scope: Scope, patches: Sequence[Patch]) -> Entries:
        """With edits learned earlier, whose patches hold (k, features) "values"."""
        return self._with(self.routes.insert(scope, patches), patches)

    def _with(self, routes: Routes, patches: Sequence[Patch], device: torch.device | None = None) -> Entries:
        """With the values of edits that have just been given their slots."""
        if not patches:
            return self
        values, state = [patch.tensors["values"] for patch in patches], self
        if len(self.spans) == 0:
            state = Entries.empty(routes, values[0].shape[1], device or "cpu", self.on_disk)
        counts = torch.tensor([len(own) for own in values])
        spans = torch.stack([len(state.values) + counts.cumsum(0) - counts, counts], dim=1)
        return replace(
            state, routes=routes, values=state.values.append(torch.cat(values)), spans=state.spans.append(spans)
        )

    def forget(self, scope: Scope, edit_ids: frozenset[str]) -> Entries:
        """As if those edits had never been inserted."""
        slots = [slot for slot in map(self.routes.slot, edit_ids) if slot is not None]
        values = [np.arange(start, start + count) for start, count in self.spans.view[slots].tolist()]
        gone = np.concatenate([np.empty(0, np.int64), *values])
        return replace(self, routes=self.routes.forget(scope, edit_ids), values=self.values.let_go(gone))

    def first(self, slot: Tensor) -> Tensor:
        """(batch, features) the first value of each row's edit, whose slots are (batch,)."""
        return self.values.at(self.spans.on(slot.device)[slot, 0])

    def at(self, slot: Tensor, offset: Tensor, due: Tensor) -> tuple[Tensor, Tensor]:
        """The value of each position that has one.

        Args:
            slot: (batch,) the edit of each row.
            offset: (batch, positions) how far behind the key token.
            due: (batch, positions) where the edit is due, as `routing.due` has it.

        Returns:
            (batch, positions, features), and (batch, positions) where there is a value.
        """
        spans = self.spans.on(slot.device)[slot]
        due = due & (offset < spans[:, 1:])
        return self.values.at(spans[:, :1] + offset * due), due
