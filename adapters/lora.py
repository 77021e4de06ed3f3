"""LoRA: low-rank deltas of linear layers (Hu et al., ICLR 2022), one for each group of edits, learned jointly.

Deltas that were trained apart and are then summed undo one another, so edits that act together are trained together:

- always on and by name: an adapter is all live edits of one namespace, learned again with each edit that joins them.
  The adapter "default" serves every row that asks for none; `generate(..., adapters=["legal", "__base__"])` says for
  each row which namespace serves it, if any. It acts at every position, as peft has it.
- by a scope: `LoRA(scope=BallScope())` keeps what was learned at once as a block of its own, and a row is served by the
  block of the edit it falls under, from its key token on.

peft trains them (`editable.tuning`), loads and saves them (`editable.folders`); what serves is our hooks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from editable import blocks
from editable.blocks import Blocks
from editable.edit import Patch
from editable.editor import Call
from editable.inputs import Request
from editable.learn import Probe
from editable.named import Adapters
from editable.routing import Scope
from editable.site import Site, late_linears, linear_paths
from editable.tuning import Recipe, refuse_unserved

LATE = 0.1  # of the blocks: the others need not be run while learning


@dataclass(frozen=True)
class LoRA:
    """LoRA as an editor; the instance is the configuration.

    Args:
        targets: linear layers that get a delta: whole paths, their ends (`q_proj`, as in peft's target_modules), or
            globs. None takes all in the last blocks, and of a classifier its head.
        scope: which inputs fall under an edit; None has adapters always on, or by name.
        rank: of a delta.
        alpha: a delta is scaled by alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        settings: further ones of peft's LoraConfig, such as {"use_rslora": True}.
        probability: what each answer token must reach at least.
        steps: most steps of Adam for a group.
        rate: of Adam.

    Raises:
        InputError: settings that cannot be served exactly, such as DoRA.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "always on, by name per row, or any scope",
            "effect": "a low-rank delta of linear layers",
            "training": "none",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    targets: tuple[str, ...] | None = None
    scope: Scope | None = None
    rank: int = 8
    alpha: float = 16.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    probability: float = 0.98
    steps: int = 200
    rate: float = 5e-3

    def __post_init__(self) -> None:
        refuse_unserved(self.settings)

    @property
    def routes(self) -> bool:
        """With a scope; an adapter that is always on changes every row."""
        return self.scope is not None

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Path to site; before them, where there is a scope, the site where rows are decided."""
        paths = self._paths(model)
        return blocks.sites(model, self.scope, paths) if self.scope else {path: Site(path, axis=-1) for path in paths}

    def _paths(self, model: nn.Module) -> list[str]:
        return linear_paths(model, self.targets) if self.targets is not None else late_linears(model, LATE)

    def empty(self) -> Adapters | Blocks:
        """No edit yet."""
        return Blocks.empty(self.scope) if self.scope else Adapters()

    def apply(self, call: Call, rows: Tensor, state: Adapters | Blocks) -> Tensor:
        """Add each row's delta; rows (batch, positions, features)."""
        return state.apply(call, rows)

    def learn(
        self, requests: Sequence[Request], state: Adapters | Blocks, probe: Probe
    ) -> tuple[Adapters | Blocks, list[Patch]]:
        """The requests, and all edits that act together with them, learned jointly."""
        settings = {**self.settings, "r": self.rank, "lora_alpha": self.alpha}
        recipe = Recipe(settings, self.steps, self.rate, self.probability)
        if isinstance(state, Blocks):
            return state.learn(requests, probe, self.sites(probe.model), recipe, together=len(requests))
        return state.learn(requests, probe, self._paths(probe.model), recipe)

    def insert(self, patches: Sequence[Patch], state: Adapters | Blocks) -> Adapters | Blocks:
        """The state with patches learned earlier."""
        return state.insert(patches)

    def forget(self, edit_ids: frozenset[str], state: Adapters | Blocks) -> Adapters | Blocks:
        """The state as if those edits had never been inserted."""
        return state.forget(edit_ids)

    def conflicts(self, edit_id: str, state: Adapters | Blocks) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose scope was parted from its own)."""
        return state.conflicts(edit_id)

    def unit(self, edit_id: str, state: Adapters | Blocks) -> frozenset[str]:
        """All edits that were learned jointly with it."""
        return state.unit(edit_id)

    def names(self, state: Adapters | Blocks) -> Collection[str]:
        """The adapters that rows may name; with a scope there are none."""
        return () if isinstance(state, Blocks) else state.names()
