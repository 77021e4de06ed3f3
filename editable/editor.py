"""The small interface every editing method implements, and what a method gets to see.

An editor is a frozen dataclass: the instance is its configuration. All that it learns lives in a state, an immutable
value that the runtime versions, logs and hands back. Knows no method by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from editable.edit import Patch
from editable.site import Site
from editable.snapshot import Snapshot

if TYPE_CHECKING:
    from editable.inputs import Request
    from editable.latency import Timer
    from editable.learn import Probe
    from editable.reading import Prompts
    from editable.resident import Residents

Decision = Mapping[str, Tensor]
"""What an editor decided for each row of a batch: named tensors whose first axis is the rows. It travels with the KV
cache, so that decode steps act on what prefill decided; beams reorder it, copies copy it. A bool tensor named `hit`
(rows,) is counted in the latency report."""

BASE = "__base__"
"""The name of an adapter that asks for none; peft's."""


@dataclass(slots=True)
class Call:
    """One forward pass as an editor sees it. Lives as long as the forward.

    Args:
        snapshot: the version this forward sees.
        tokens: (batch, positions) token ids going into this forward; None where the input is not tokens.
        ordinal: (batch, positions) how many real tokens of the row precede each position, cached ones included; None
            where the input is not a sequence.
        key: (batch,) the column of each row's key token, its last real prompt token; None where this forward does not
            contain it: a decode step, or an early chunk of a chunked prefill.
        decisions: editor name to what it decided; filled by prefill, carried by the KV cache.
        editor: name of the editor being applied now.
        role: the role, in that editor's `sites`, of the site being applied now.
        fed: what went into the module whose output is being edited now.
        adapters: for each row, or so many equal runs of rows, the name of the adapter asked for; None where none was.
        prompts: what the rows ask, as text; None where this forward has no key token, or no tokenizer is known.
    """

    snapshot: Snapshot
    tokens: Tensor | None = None
    ordinal: Tensor | None = None
    key: Tensor | None = None
    decisions: dict[str, Decision] = field(default_factory=dict)
    editor: str = ""
    role: str = ""
    fed: Any = None
    adapters: Sequence[str] | None = None
    prompts: Prompts | None = None
    phase: str = "prefill"
    past: int = 0  # tokens in the KV cache before this forward
    prompt: int = 0  # columns up to the end of the prompt; 0 while that has not been seen
    pads: Tensor | None = None  # (batch,) padding columns of each row's prompt; None where there are none
    read: tuple[Tensor, ...] = ()  # (batch, columns) each: tokens of the prompt so far, padding as -1
    headed: Tensor | None = None  # (batch, k) columns that the vocabulary head is given; None: the last ones, or all
    residents: Residents | None = None  # what editors keep beside the model
    memo: dict[Any, Any] = field(default_factory=dict)  # what editors keep for their later sites, by keys of their own
    timer: Timer | None = None
    token: Any = None  # what resets the context variable when the forward ends

    @property
    def decision(self) -> Decision | None:
        """What the current editor decided earlier in this generation, if it did."""
        return self.decisions.get(self.editor)

    @property
    def after_prompt(self) -> int:
        """At least so many tokens lead from the key token to the first position here; known without a wait."""
        return self.past - self.prompt + 1 if self.key is None and self.prompt else 0

    def decide(self, decision: Decision) -> None:
        """Keep the current editor's decision for this forward and for those that continue its KV cache."""
        self.decisions[self.editor] = decision

    def is_sequence(self, rows: Tensor) -> bool:
        """Whether the positions of `rows` (batch, positions, features) are this forward's tokens."""
        return self.ordinal is not None and self.ordinal.shape[1] == rows.shape[1]

    def ordinals(self, rows: Tensor) -> Tensor:
        """(batch, positions) real tokens before each position of `rows`; zeros where they are not tokens."""
        if self.ordinal is not None and self.is_sequence(rows):
            return self.ordinal
        return torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)

    def head_columns(self, rows: Tensor) -> Tensor:
        """(batch, k): of `rows` (batch, k, features) at the vocabulary head, the column of the forward it is."""
        if self.headed is not None:
            return self.headed
        columns = rows.shape[1] if self.ordinal is None else self.ordinal.shape[1]
        return torch.arange(columns - rows.shape[1], columns, device=rows.device).expand(rows.shape[:2])

    def at_key(self, rows: Tensor, lag: int = 0) -> Tensor:
        """(batch, features) of `rows` at the key token, or `lag` tokens before it; the mean where not tokens."""
        if self.key is None or not self.is_sequence(rows):
            return rows[:, 0] if rows.shape[1] == 1 else rows.mean(dim=1)
        return rows[torch.arange(len(rows), device=rows.device), (self.key - lag).clamp_min(0)]


@runtime_checkable
class Editor(Protocol):
    """A method. Implemented by frozen dataclasses in `adapters/`, one file each.

    `apply` runs in every forward: it never writes into a tensor it was given, never waits for the device, and returns
    the very same `rows` object where it has nothing to do.
    """

    @property
    def routes(self) -> bool:
        """Whether every row falls under one edit or under none, and those under none keep every bit."""
        ...

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Role to site, in the order of acting. Chosen from the module tree, or from what the user configured."""
        ...

    def empty(self) -> Any:
        """The state that holds no edit; `len(state)` counts edits."""
        ...

    def apply(self, call: Call, rows: Tensor, state: Any) -> Tensor:
        """What the site's rows (batch, positions, features) become."""
        ...

    def learn(self, requests: Sequence[Request], state: Any, probe: Probe) -> tuple[Any, list[Patch]]:
        """Learn a batch of edits: the state that holds them all, and one patch each, in order."""
        ...

    def insert(self, patches: Sequence[Patch], state: Any) -> Any:
        """The state with patches learned earlier, in order; the same in the same order give the same state."""
        ...

    def forget(self, edit_ids: frozenset[str], state: Any) -> Any:
        """The state as if those edits had never been inserted, to the bit. They come in whole units, see `unit`."""
        ...

    def conflicts(self, edit_id: str, state: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose scope was parted from its own)."""
        ...

    def unit(self, edit_id: str, state: Any) -> frozenset[str]:
        """The live edits that were learned as one with it, itself included: none can be forgotten without the rest.

        To take back one of several, the runtime forgets them all and learns the others again.
        """
        ...


@dataclass(frozen=True)
class Considered:
    """One edit that an editor considered for a prompt.

    Args:
        edit_id: the edit.
        score: how far the prompt is from it, as its scope measures that; less is nearer.
        needed: the highest score at which it fires.
        fired: whether it is the one that the prompt falls under.
        reason: why, or why not.
    """

    edit_id: str
    score: float
    needed: float
    fired: bool
    reason: str


@runtime_checkable
class Explains(Protocol):
    """An editor that can say which edits it considers for an input, and why one fires."""

    def explain(self, call: Call, rows: Tensor, state: Any) -> Sequence[Considered]:
        """The edits nearest to the call's one row, nearest first; rows (1, positions, features) at its first site."""
        ...


@runtime_checkable
class Named(Protocol):
    """An editor of which every row of a call may name the adapter that serves it."""

    def names(self, state: Any) -> Collection[str]:
        """The names that rows may give."""
        ...
