"""GRACE: General Retrieval Adapters for Continual Editing (Hartvigsen et al., NeurIPS 2023).

A scope decides, at the key token of each row, which edit applies; a learned value then stands in for the model's own
activation. The published scope is a codebook of balls in activation space; any other takes its place. Two forms:

- `values="per_token"` (default): one value per answer token, end token included, behind the last block. The value of
  the j-th token is written where that token is due: at the j-th position after the key token, as long as the tokens in
  between are the answer's own. Nothing before the final norm changes, so cached keys and values are the base model's,
  a value is found through the final norm and the unembedding alone, and it holds for any input that falls under it.
- `values="single"`: the published form, one value at the key token of a feed-forward's down projection in a late block;
  later blocks carry its effect on through attention.

Classifiers have one answer and no tokens to come: key and value are the input of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from editable import routing
from editable.edit import Patch
from editable.editor import Call, Considered
from editable.entries import Entries
from editable.errors import InputError
from editable.inputs import Batch, Request
from editable.learn import Probe, at_answers, at_columns, shortfall
from editable.routing import Routes, Scope
from editable.scopes.ball import BallScope
from editable.site import Site, block_paths, classifier_head, down_projection, find_module, writes_text

PUBLISHED_DEPTH = 0.93  # layer 27 of 30; the published configurations use 27 of 28 to 35 of 48


@dataclass(frozen=True)
class GRACE:
    """GRACE as an editor; the instance is the configuration.

    Args:
        values: one value per answer token behind the last block, or the published single value.
        keys: of the ball scope, see `BallScope.keys`.
        site: where the single value is written: a module path or glob; None chooses the down projection of a late
            block. For classifiers and per-token values the place is given by the model.
        radius: of the ball scope, see `BallScope.radius`.
        probability: what each answer token must reach at least when its value is learned.
        steps: most steps of learning per value.
        store: where keys and values are held while serving. On "disk" memory takes only short sketches of the keys, and
            the few keys that these leave in doubt are read from a temporary file: the same decisions, for models on
            the CPU and very many edits.
        scope: which inputs fall under an edit; None is the published ball, with `keys` and `radius`.

    Raises:
        InputError: `keys` or `radius` beside a scope that is not made of them.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "ball around the key activation",
            "effect": "a value at the site, per answer token or one",
            "training": "none",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    values: Literal["per_token", "single"] = "per_token"
    keys: Literal["residual", "wide"] | None = None
    site: str | None = None
    radius: float | None = None
    probability: float = 0.98
    steps: int = 50
    store: Literal["memory", "disk"] = "memory"
    scope: Scope | None = None

    def __post_init__(self) -> None:
        if self.scope is not None and not (self.keys is None and self.radius is None):
            raise InputError(
                f"GRACE got keys={self.keys!r} and radius={self.radius!r} beside scope={self.scope!r}, expected them "
                "without a scope, since they describe a ball; give them to BallScope(...)."
            )

    @property
    def _scope(self) -> Scope:
        return self.scope or BallScope(self.keys, self.radius)

    @property
    def routes(self) -> bool:
        """Always: a row outside every scope is left alone."""
        return True

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Role to site; see the module docstring."""
        value = self._value_site(model)
        return {"key": self._scope.site(model, value), "value": value}

    def _value_site(self, model: nn.Module) -> Site:
        if self.values == "single" and (writes_text(model) or self.site):
            return Site(self._published_path(model))
        if not writes_text(model):
            return Site(find_module(model, self.site) if self.site else classifier_head(model), side="input")
        return Site(find_module(model, self.site) if self.site else block_paths(model)[-1])

    def _published_path(self, model: nn.Module) -> str:
        if self.site:
            return find_module(model, self.site)
        blocks = block_paths(model)
        # Never in the last block: attention behind it is what carries the value to the answer's later tokens.
        depth = min(round(PUBLISHED_DEPTH * (len(blocks) - 1)), len(blocks) - 2)
        return down_projection(model, blocks[max(depth, 0)])

    def empty(self) -> Entries:
        """No entry yet; widths are taken from the first patch."""
        on_disk = self.store == "disk"
        return Entries.empty(Routes.empty(self._scope, on_disk), on_disk=on_disk)

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Entries) -> Tensor:
        """Decide at the key site, write at the value site; rows (batch, positions, features)."""
        if not len(state):
            return rows
        if call.role == "key":
            routing.decide(call, rows, self._scope, state.routes)
            return rows
        return _write(call, rows, state)

    def explain(self, call: Call, rows: Tensor, state: Entries) -> Sequence[Considered]:
        """The edits nearest to the one row; rows at the key site."""
        return routing.explain(call, rows, self._scope, state.routes)

    # Learning

    def learn(self, requests: Sequence[Request], state: Entries, probe: Probe) -> tuple[Entries, list[Patch]]:
        """One forward for all keys, or none where the scope reads text; then every value by itself."""
        sites, batch = self.sites(probe.model), probe.reader.batch(requests)
        prompts = batch.select(batch.firsts)  # values are learned on these; rephrases share them
        values = self._of_tokens(prompts, sites["value"], probe)
        looks = values is None or not self._scope.reads_text
        seen = probe.capture(batch, list(sites.values())).rows if looks else {}
        parts = self._scope.learn(requests, batch, sites["key"], seen.get(sites["key"]), probe)
        if values is None:
            values = self._from_there(prompts, seen[sites["value"]][batch.firsts], sites["value"], probe)
        patches = []
        for request, part, own in zip(requests, parts, values, strict=True):
            state, patch = state.enter(self._scope, routing.part_of(request, part, {"values": own}), own.device)
            patches.append(patch)
        return state, patches

    def _of_tokens(self, prompts: Batch, site: Site, probe: Probe) -> list[Tensor] | None:
        """Values (k, features) of each request, a token's being the same after any prompt.

        None where values have to begin at the model's own activations.
        """
        due = prompts.answers != -100  # (requests, longest answer)
        tokens, which = prompts.answers[due].unique(return_inverse=True)
        start = None if self.values == "single" else probe.towards(tokens, site)
        if start is None:
            return None
        if probe.reader.end is not None:
            ends = tokens == probe.reader.end
            start = torch.where(ends[:, None], self._ending(probe.reader.end, site, probe), start)
        found = self._saying(tokens, start, site, probe)
        return list(found[which].split(due.sum(dim=1).tolist()))

    def _ending(self, token: int, site: Site, probe: Probe) -> Tensor:
        """(1, features) the value of the token that ends every answer; learned once."""

        def learned(_model: nn.Module) -> Tensor:
            end = torch.tensor([token], device=probe.reader.device)
            start = probe.towards(end, site)
            assert start is not None
            return self._saying(end, start, site, probe)

        return probe.residents.get(f"{self!r} {token}", learned, lambda _: True)

    def _from_there(self, prompts: Batch, rows: Tensor, site: Site, probe: Probe) -> list[Tensor]:
        """Values that begin at the activations rows (requests, positions, features)."""
        if self.values == "single" and prompts.columns is not None:
            return list(self._single(prompts, rows, site, probe)[:, None])
        due = prompts.answers != -100
        found = self._saying(prompts.answers[due], at_answers(rows, prompts), site, probe)
        return list(found.split(due.sum(dim=1).tolist()))

    def _saying(self, tokens: Tensor, start: Tensor, site: Site, probe: Probe) -> Tensor:
        """(n, features) from which tokens (n,) are said, or labels, each as near to its start as they are found."""
        tail = probe.tail(site)

        def loss(values: Tensor, which: Tensor) -> Tensor:
            return shortfall(tail(values), tokens[which], self.probability)

        return probe.descend(loss, start, self.steps)

    def _single(self, prompts: Batch, rows: Tensor, site: Site, probe: Probe) -> Tensor:
        assert prompts.columns is not None
        replay = probe.replay(prompts, site)

        def loss(values: Tensor, which: Tensor) -> Tensor:
            return shortfall(replay(values, which), prompts.answers[which], self.probability).sum(dim=1)

        return probe.descend(loss, at_columns(rows, prompts.columns[:, 0]), self.steps, chunk=32)

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Entries) -> Entries:
        """The state with patches learned earlier."""
        return state.insert(self._scope, patches)

    def forget(self, edit_ids: frozenset[str], state: Entries) -> Entries:
        """The state as if those edits had never been inserted."""
        return state.forget(self._scope, edit_ids)

    def conflicts(self, edit_id: str, state: Entries) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose scope was parted from its own)."""
        return self._scope.conflicts(edit_id, state.routes.book)

    def unit(self, edit_id: str, state: Entries) -> frozenset[str]:  # noqa: ARG002 - every edit by itself
        """The edit alone: values are learned independently of one another."""
        return frozenset({edit_id})


def _write(call: Call, rows: Tensor, state: Entries) -> Tensor:
    """Put each row's value where it is due."""
    if call.ordinal is None:
        return _answered(call, rows, state)
    found = routing.due(call, rows, state.routes)
    if found is None:
        return rows
    values, due = state.at(*found)  # (batch, positions, features)
    return torch.where(due[..., None], values.to(rows.dtype), rows)


def _answered(call: Call, rows: Tensor, state: Entries) -> Tensor:
    """The same where inputs are no tokens: an edit has one value, and it is due wherever its row is read."""
    decision = call.decision
    if decision is None or routing.nowhere(decision["hit"]):
        return rows
    values = state.first(decision["slot"])[:, None]  # (batch, 1, features)
    return torch.where(decision["hit"][:, None, None], values.to(rows.dtype), rows)
