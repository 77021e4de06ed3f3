"""MELO: model editing with neuron-indexed dynamic LoRA (Yu et al., AAAI 2024).

Clusters in activation space decide, at the key token of each row, which edit applies, if any; that edit's block of a
low-rank adapter then acts in deeper linear layers, from the key token on. What the paper lays out as one adapter of a
fixed rank, cut into blocks (section 3.2), is a stack of blocks here, to which every edit adds one: capacity grows.
The clusters are GRACE's balls with labels compared exactly: points that lose their cluster get one of their own, and a
prompt that is edited again is superseded instead of lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from editable import blocks
from editable.blocks import Blocks
from editable.edit import Patch
from editable.editor import Call, Considered
from editable.errors import InputError
from editable.inputs import Request
from editable.learn import Probe
from editable.routing import Scope
from editable.scopes import BallScope
from editable.site import Site, late_linears, linear_paths
from editable.tuning import Recipe

LATE = 0.07  # of the blocks: the others need not be run while learning


@dataclass(frozen=True)
class MELO:
    """MELO as an editor; the instance is the configuration.

    Args:
        targets: linear layers with blocks: whole paths, their ends (`down_proj`), or globs. None takes all
            in the last blocks, and of a classifier its head. Those of the last block's feed-forward alone do for most
            models, cost a fraction, and leave keys and values of the cache the base model's.
        scope: which inputs fall under an edit; None is the published clusters, with `radius`, around what goes into the
            first of the targets.
        radius: of a new cluster; None measures it, see `BallScope.radius`.
        rank: of a block.
        gain: a block's delta is scaled by so much; the published R / rank of the block is 20 to 350.
        together: how many edits learned at once share a block; the published number is 4 to 100. One by one they can be
            rolled back by themselves.
        probability: what each answer token must reach at least.
        steps: most steps of Adam for edits learned at once.
        rate: of Adam.

    Raises:
        InputError: `radius` beside a scope that has none; `together` below 1.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "ball around the key activation",
            "effect": "a block of a low-rank adapter",
            "training": "none",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    targets: tuple[str, ...] | None = None
    scope: Scope | None = None
    radius: float | None = None
    rank: int = 2
    gain: float = 2.0
    together: int = 1
    probability: float = 0.98
    steps: int = 200
    rate: float = 1e-2

    def __post_init__(self) -> None:
        if self.scope is not None and self.radius is not None:
            raise InputError(
                f"MELO got radius={self.radius!r} beside scope={self.scope!r}, expected it without a scope, since it "
                "describes a cluster; give it to BallScope(...)."
            )
        if self.together < 1:
            raise InputError(f"MELO got together={self.together!r}, expected at least 1 edit to a block.")

    @property
    def routes(self) -> bool:
        """Always: a row outside every cluster is left alone."""
        return True

    @property
    def _scope(self) -> Scope:
        return self.scope or BallScope(radius=self.radius)

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Where rows are decided, then the targets."""
        paths = linear_paths(model, self.targets) if self.targets is not None else late_linears(model, LATE)
        return blocks.sites(model, self._scope, paths)

    def empty(self) -> Blocks:
        """No edit yet."""
        return Blocks.empty(self._scope)

    def apply(self, call: Call, rows: Tensor, state: Blocks) -> Tensor:
        """Decide, then add each row's block; rows (batch, positions, features)."""
        return state.apply(call, rows)

    def explain(self, call: Call, rows: Tensor, state: Blocks) -> Sequence[Considered]:
        """The edits nearest to the one row; rows where it is decided."""
        return state.explain(call, rows)

    def learn(self, requests: Sequence[Request], state: Blocks, probe: Probe) -> tuple[Blocks, list[Patch]]:
        """All blocks at once, independent of one another."""
        recipe = Recipe({"r": self.rank, "lora_alpha": self.gain * self.rank}, self.steps, self.rate, self.probability)
        return state.learn(requests, probe, self.sites(probe.model), recipe, self.together)

    def insert(self, patches: Sequence[Patch], state: Blocks) -> Blocks:
        """The state with patches learned earlier."""
        return state.insert(patches)

    def forget(self, edit_ids: frozenset[str], state: Blocks) -> Blocks:
        """The state as if those edits had never been inserted."""
        return state.forget(edit_ids)

    def conflicts(self, edit_id: str, state: Blocks) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose cluster was parted from its own)."""
        return state.conflicts(edit_id)

    def unit(self, edit_id: str, state: Blocks) -> frozenset[str]:
        """The edits of its block."""
        return state.unit(edit_id)
