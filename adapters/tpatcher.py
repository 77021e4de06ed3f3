"""T-Patcher: Transformer-Patcher, one neuron for one mistake (Huang et al., ICLR 2023).

The last feed-forward gets one more hidden unit for each wrong token of each edit. A unit has a key k and a bias b in
the first linear layer, a value v in the second, and the feed-forward's own activation:

    FFN'(q) = FFN(q) + act(q·k + b) v

Nothing attends after the last feed-forward, so cached keys and values stay the base model's, and a unit acts on each
token by itself. Its value joins the stream behind the block (see `units_place`). In a gated feed-forward (SwiGLU,
GeGLU) an extra unit has the up-value 1: act(q·k + b) is its gate. Classifiers without a feed-forward, convolutional
ones, get units beside their head, with ReLU.

With a gate (the default) a unit acts only near the token it was learned on, where it is the newest unit to do so; every
other token keeps every bit. `gate=None` is the published form, in which every unit acts on every token a little.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editable.edit import Patch
from editable.editor import Call
from editable.errors import InputError
from editable.inputs import Batch, Request
from editable.learn import Probe, Suffix
from editable.memory.rows import Rows
from editable.site import ACTIVATIONS, FeedForward, Site, find_module, units_place

HARDEST = 1000  # memory queries that a unit's losses are the mean of (paper, section 3.3)
PATCHED = ("keys", "biases", "values", "centres", "radii", "queries", "firsts")  # rows that a patch brings
ROWS = (*PATCHED, "squares")
NEAREST = 4096  # memory queries that a unit is learned against: further ones are never among the hardest


@dataclass(frozen=True)
class Span:
    """Where one edit's rows lie: units from `unit` on, queries from `query` on, and how many of each."""

    unit: int
    units: int
    query: int
    queries: int


@dataclass(frozen=True, eq=False)
class Units:
    """The state: the hidden units of all edits, in the order they came, one row each.

    Args:
        keys: (m, features in).
        biases: (m,).
        values: (m, features out).
        centres: (m, features in) the query that each unit was learned on.
        squares: (m,) their squared lengths.
        radii: (m,) how far from its centre a unit acts.
        queries: (q, features in) what each edit's answer tokens are read from: later edits keep their hands off.
        firsts: (q,) whether a query is that of an answer's first token.
        spans: edit id to its rows.
        activation: of every unit, by name.
    """

    keys: Rows
    biases: Rows
    values: Rows
    centres: Rows
    squares: Rows
    radii: Rows
    queries: Rows
    firsts: Rows
    spans: Mapping[str, Span]
    activation: str

    def __len__(self) -> int:
        return len(self.spans)


@dataclass(frozen=True)
class TPatcher:
    """T-Patcher as an editor; the instance is the configuration.

    Args:
        gate: how far from its own query a unit acts (Euclidean), as a share of the distance to the nearest query that
            it must not act on; None for the published form, without a gate.
        site: the block whose feed-forward gets the units, or a classifier's head: a module path or glob; None takes the
            last block, and the head where blocks have no feed-forward.
        corpus: path of a text file with one unrelated text a line, which units must leave alone; None takes text that
            the model says by itself (images: the edit's own with its tiles shuffled). The locality inputs of an edit
            are always among them.
        own_margin: m_a, what a unit's pre-activation on its own query must reach; it starts at exactly 1.
        memory_margin: β, what it must stay below on all others.
        gap: γ, by how much its own must be larger than any other.
        weight: μ, of both memory losses against the activation loss.
        key_steps: most steps of learning a key and its bias.
        key_rate: Adam's rate for them, with queries measured in lengths of the unit's own.
        probability: what each wrong token must reach.
        steps: most steps of learning what a unit adds.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "near the query of each wrong token",
            "effect": "a hidden unit of the last feed-forward per wrong token",
            "training": "none",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    gate: float | None = 0.5
    site: str | None = None
    corpus: str | None = None
    own_margin: float = 1.0
    memory_margin: float = -3.0
    gap: float = 3.0
    weight: float = 10.0
    key_steps: int = 100
    key_rate: float = 0.5
    probability: float = 0.98
    steps: int = 50

    @property
    def routes(self) -> bool:
        """Whether there is a gate: without one, every unit acts on every token."""
        return self.gate is not None

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Where queries are read, and where units add."""
        place = self._place(model)
        return {"query": place.input, "output": place.output}

    def _place(self, model: nn.Module) -> FeedForward:
        return units_place(model, find_module(model, self.site) if self.site else None)

    def empty(self) -> Units:
        """No unit yet; widths are taken from the first patch."""
        return _empty(0, 0, "relu", torch.device("cpu"))

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Units) -> Tensor:
        """Read activations at the query site, add values at the output site; rows (batch, positions, features)."""
        if not len(state.radii):
            return rows
        if call.role == "query":
            call.decide(_gated(rows, state) if self.routes else {"strength": _strengths(rows, state)})
            return rows
        decision = call.decision or {}
        if not self.routes:
            added = decision["strength"] @ state.values.on(rows.device)
            return (rows.float() + added).to(rows.dtype)
        unit, strength = decision["unit"], decision["strength"]
        added = strength[..., None] * state.values.on(rows.device)[unit.clamp_min(0)]
        return torch.where((unit >= 0)[..., None], (rows.float() + added).to(rows.dtype), rows)

    # Learning

    def learn(self, requests: Sequence[Request], state: Units, probe: Probe) -> tuple[Units, list[Patch]]:
        """One forward for all; then keys, what is to be added, and from both the values.

        The edit loss sees a key only through act(q·k + b), by which a value can be divided. So keys and biases are
        learned by the activation and memory losses alone, what a unit has to add by the edit loss alone, and the value
        is the one that adds just that.
        """
        place = self._place(probe.model)
        batch = probe.reader.batch(requests)
        seen = probe.capture(batch, [place.input, place.output])
        lesson = _Lesson(batch, probe.behind(batch, place.output, seen), seen.logits, seen.rows[place.input].float())
        wrong = self._mistakes(lesson, state, probe)
        memory = _Memory(*self._memory(requests, lesson, wrong, state, place.input, probe))
        keys, biases = self._keys(lesson.queries[wrong], memory, probe)
        added = self._added(lesson, wrong, probe)
        values = self._values(lesson.queries[wrong], keys, biases, added, state, place.activation)
        units = {"keys": keys, "biases": biases, "values": values, "radii": self._radii(lesson.queries[wrong], memory)}
        patches = [_patch(request, index, lesson, wrong, units, place) for index, request in enumerate(requests)]
        return _insert(state, patches, keys.device), patches

    def _mistakes(self, lesson: _Lesson, state: Units, probe: Probe) -> Tensor:
        """(n,) the answer tokens that the model gets wrong, and those at which an earlier edit speaks."""
        wrong = lesson.said != lesson.targets
        if self.routes:
            wrong = wrong | (_speaking(lesson.queries, state, len(state.radii)) >= 0)
            # Another edit of the batch asks for another token at the very same place.
            wrong = wrong | ((lesson.same(_same(probe.model)) & wrong).any(dim=1))
        return wrong.nonzero()[:, 0]

    def _memory(
        self, requests: Sequence[Request], lesson: _Lesson, wrong: Tensor, state: Units, site: Site, probe: Probe
    ) -> tuple[Tensor, Tensor]:
        """(N, features) queries that units must leave alone, and (n, N) which of them each unit has to."""
        own, excused = lesson.others(wrong)
        local = [probe.rows_of(r.edit.locality, site) for r in requests if r.edit.locality]
        corpus = [probe.rows_of(_lines(self.corpus), site)] if self.corpus else [probe.unrelated(site, lesson.batch)]
        other = torch.cat([x for x in (*local, *corpus, state.queries.on(own.device)) if len(x)] or [own[:0]])
        centres = lesson.queries[wrong]
        if len(other) > NEAREST:
            nearest = torch.cdist(centres, other).amin(dim=0) if len(centres) else other[:, 0]
            other = other[nearest.topk(NEAREST, largest=False).indices]
        counts = torch.cat([~excused, torch.ones(len(wrong), len(other), dtype=torch.bool, device=own.device)], dim=1)
        memory = torch.cat([own, other])
        same = torch.cdist(centres, memory) <= _same(probe.model) * centres.norm(dim=1, keepdim=True)
        return memory, counts & ~same

    def _keys(self, centres: Tensor, memory: _Memory, probe: Probe) -> tuple[Tensor, Tensor]:
        """(n, features) keys and (n,) biases, from q/|q|² and 0."""
        # Activations share a large mean, along which a step would move all queries alike: steps are taken from there.
        mean = memory.queries.mean(dim=0) if len(memory.queries) else torch.zeros_like(centres[0])
        length = (centres - mean).norm(dim=1, keepdim=True).clamp_min(1e-6)
        keys = first_keys(centres)
        start = torch.cat([keys * length, keys @ mean[:, None]], dim=1)

        def loss(values: Tensor) -> tuple[Tensor, Tensor]:
            keys, biases = values[:, :-1] / length, values[:, -1]
            own = (keys * (centres - mean)).sum(dim=1) + biases
            others = (keys @ (memory.queries - mean).T + biases[:, None]).masked_fill(~memory.counts, -torch.inf)
            away = memory_loss(others, self.memory_margin), gap_loss(own, others, self.gap)
            lifted = (self.own_margin - own).clamp_min(0).exp()  # what lifting the bias, below, will make of ℓ_m1
            enough = (away[0] * lifted <= 1) & (away[1] <= 1)  # on the mean, both margins hold
            return activation_loss(own, self.own_margin) + self.weight * (away[0] + away[1]), enough

        found, _ = probe.minimise(loss, start, self.key_steps, self.key_rate)
        keys = found[:, :-1] / length
        biases = found[:, -1] - keys @ mean
        # Where not all margins can be had, the edit comes first: its unit is active on it.
        return keys, biases + (self.own_margin - (keys * centres).sum(dim=1) - biases).clamp_min(0)

    def _added(self, lesson: _Lesson, wrong: Tensor, probe: Probe) -> Tensor:
        """(n, features) what has to be added to the feed-forward's output for each wrong token to be right."""
        targets, start = lesson.targets[wrong], lesson.suffix.start[wrong].float()
        enough = -torch.tensor(self.probability).log()

        def loss(outputs: Tensor, which: Tensor) -> Tensor:
            left = edit_loss(lesson.suffix.run(outputs, wrong[which]), targets[which])
            return (left - enough).clamp_min(0)

        return probe.descend(loss, start, self.steps, careful=True) - start

    def _values(
        self, centres: Tensor, keys: Tensor, biases: Tensor, added: Tensor, state: Units, activation: str
    ) -> Tensor:
        """(n, features) values with which units add just that at their own queries."""
        if self.routes:
            own = (centres * keys).sum(dim=1) + biases
            return added / ACTIVATIONS[activation](own)[:, None]
        # Every unit acts on every query: those there are already, and these on one another.
        if len(state.radii):
            added = added - _strengths(centres, state) @ state.values.on(added.device)
        values: Tensor = torch.linalg.solve(ACTIVATIONS[activation](centres @ keys.T + biases), added)
        return values

    def _radii(self, centres: Tensor, memory: _Memory) -> Tensor:
        """(n,) within which units act; without a gate, within which queries count as the same."""
        distance = torch.cdist(centres, memory.queries).masked_fill(~memory.counts, torch.inf)
        nearest = torch.cat([distance, centres.norm(dim=1, keepdim=True)], dim=1).amin(dim=1)
        return nearest * (0.5 if self.gate is None else self.gate)

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Units) -> Units:
        """The state with patches learned earlier."""
        return _insert(state, patches, state.keys.view.device)

    def forget(self, edit_ids: frozenset[str], state: Units) -> Units:
        """The state as if those edits had never been inserted: what stays is copied."""
        return _without(state, edit_ids) if edit_ids & state.spans.keys() else state

    def conflicts(self, edit_id: str, state: Units) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids of earlier edits whose first token is this edit's now, ids of those that this edit took ground from)."""
        own, ids = state.spans[edit_id], list(state.spans)
        end = own.query + own.queries
        now = _speaking(state.queries.view[: own.query], state, own.unit + own.units)
        lost = (state.firsts.view[: own.query] & (now >= own.unit)).nonzero()[:, 0]
        before = _speaking(state.queries.view[own.query : end], state, own.unit)
        superseded = _owners(lost, ids, [span.query for span in state.spans.values()])
        parted = _owners(before[before >= 0], ids, [span.unit for span in state.spans.values()]) - superseded
        return tuple(sorted(superseded)), tuple(sorted(parted))

    def unit(self, edit_id: str, state: Units) -> frozenset[str]:  # noqa: ARG002 - every edit by itself
        """The edit alone: each unit is learned on a mistake of its own."""
        return frozenset({edit_id})


# The formulas of section 3.3


def first_keys(queries: Tensor) -> Tensor:
    """q/|q|² for queries (n, features): the key with which a query activates its unit at exactly 1, with bias 0."""
    return queries / queries.square().sum(dim=1, keepdim=True)


def edit_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """ℓ_e, the cross-entropy of logits (n, vocabulary) and targets (n,): (n,)."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def activation_loss(own: Tensor, margin: float) -> Tensor:
    """ℓ_a = exp(m_a - a_e) of pre-activations (n,) on a unit's own query: (n,)."""
    return (margin - own).exp()


def memory_loss(others: Tensor, margin: float) -> Tensor:
    """ℓ_m1 = mean of exp(a - β) over the HARDEST of pre-activations (n, N) on other queries: (n,)."""
    return _mean_of_hardest((others - margin).exp())


def gap_loss(own: Tensor, others: Tensor, gap: float) -> Tensor:
    """ℓ_m2 = mean of exp(a - a_e + γ) over the HARDEST of (n, N), with a_e (n,): (n,)."""
    return _mean_of_hardest((others - own[:, None] + gap).exp())


def _mean_of_hardest(losses: Tensor) -> Tensor:
    if not losses.shape[1]:
        return losses.new_zeros(len(losses))
    if losses.shape[1] > HARDEST:
        losses = losses.topk(HARDEST, dim=1, sorted=False).values
    return losses.mean(dim=1)


# What is learned from, and what must be left alone


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A batch of edits as the last feed-forward sees it.

    Args:
        batch: the edits, teacher-forced.
        suffix: what follows the feed-forward at the positions that answers are read from.
        logits: (batch, longest answer, vocabulary) of the unedited model.
        seen: (batch, positions, features in) what goes into the feed-forward.
    """

    batch: Batch
    suffix: Suffix
    logits: Tensor
    seen: Tensor

    @property
    def said(self) -> Tensor:
        """(answers,) what the unedited model says in the place of each answer token."""
        return self.logits.argmax(dim=-1)[self.batch.answers != -100]

    @property
    def queries(self) -> Tensor:
        """(answers, features) what each answer token is read from."""
        return self.seen[self.suffix.rows, self.suffix.columns]

    @property
    def targets(self) -> Tensor:
        """(answers,) the tokens, or labels."""
        return self.batch.answers[self.batch.answers != -100]

    @property
    def owners(self) -> Tensor:
        """(answers,) the request of each answer token."""
        return self.batch.requests[self.suffix.rows]

    def same(self, tolerance: float) -> Tensor:
        """(answers, answers) which are read from one and the same query."""
        apart = torch.cdist(self.queries, self.queries)
        near: Tensor = apart <= tolerance * self.queries.norm(dim=1, keepdim=True)
        return near

    def others(self, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """(N, features) the queries at all real positions, and (n, N) at which of them a unit may act all the same.

        It may where its own edit is due the same token.
        """
        due = torch.full(self.seen.shape[:2], -1, device=self.seen.device)
        due[self.suffix.rows, self.suffix.columns] = self.targets
        owner = self.batch.requests[:, None].expand_as(due)
        mask = self.batch.arguments.get("attention_mask")
        causal = self.batch.columns is not None and "decoder_input_ids" not in self.batch.arguments
        real = mask.bool() if causal and mask is not None else due >= 0
        same = (due[real] == self.targets[wrong, None]) & (owner[real] == self.owners[wrong, None])
        return self.seen[real], same


@dataclass(frozen=True, eq=False)
class _Memory:
    """Queries (N, features) that units must leave alone, and (n, N) which of them each unit has to."""

    queries: Tensor
    counts: Tensor


def _lines(path: str) -> list[str]:
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"TPatcher.corpus is {path!r}, which cannot be read ({error}); give a text file.") from error
    if not lines:
        raise InputError(f"TPatcher.corpus is {path!r}, which holds no text, expected one unrelated text a line.")
    return lines


def _same(model: nn.Module) -> float:
    """How near two queries are, in lengths, that are one query computed in two batches."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return max(5e-3, 6 * torch.finfo(dtype).eps)


# The units


def _strengths(rows: Tensor, state: Units) -> Tensor:
    """(..., m) the activation of every unit for rows (..., features): act(q·k + b)."""
    keys, biases = state.keys.on(rows.device), state.biases.on(rows.device)
    return ACTIVATIONS[state.activation](rows.float() @ keys.T + biases)


def _gated(rows: Tensor, state: Units) -> dict[str, Tensor]:
    """The one unit that acts on each of rows (batch, positions, features), -1 for none, and its activation.

    That is computed unit by unit: a product with all keys would round differently with their number.
    """
    rows = rows.float()
    unit = _speaking(rows, state, len(state.radii))
    own = unit.clamp_min(0)
    before = (rows * state.keys.on(rows.device)[own]).sum(dim=-1) + state.biases.on(rows.device)[own]
    return {"unit": unit, "strength": ACTIVATIONS[state.activation](before), "hit": (unit >= 0).any(dim=1)}


def _speaking(rows: Tensor, state: Units, until: int) -> Tensor:
    """(...) the newest of the first `until` units that acts on each of rows (..., features); -1 for none."""
    if not until:
        return torch.full(rows.shape[:-1], -1, device=rows.device)
    centres, squares, radii = (one.on(rows.device)[:until] for one in (state.centres, state.squares, state.radii))
    apart = rows.square().sum(dim=-1, keepdim=True) + squares - 2 * (rows @ centres.T)
    numbers = torch.arange(until, device=rows.device)
    return torch.where(apart <= radii.square(), numbers, -1).amax(dim=-1)


def _empty(width: int, width_out: int, activation: str, device: torch.device) -> Units:
    def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Rows:
        return Rows.empty(*shape, dtype=dtype, device=device)

    firsts = rows(dtype=torch.bool)
    return Units(rows(width), rows(), rows(width_out), rows(width), rows(), rows(), rows(width), firsts, {}, activation)


def _patch(
    request: Request, index: int, lesson: _Lesson, wrong: Tensor, units: Mapping[str, Tensor], place: FeedForward
) -> Patch:
    """The units of one edit (`units` are those of all), and the queries its answer is read from."""
    answers = (lesson.owners == index).nonzero()[:, 0]
    own = (lesson.owners[wrong] == index).nonzero()[:, 0]
    rows = lesson.suffix.rows[answers]
    tensors = {name: rows_of_all[own] for name, rows_of_all in units.items()} | {
        "queries": lesson.queries[answers],
        "centres": lesson.queries[wrong[own]],
        "firsts": torch.cat([rows.new_ones(1, dtype=torch.bool), rows[1:] != rows[:-1]]),
    }
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return Patch(request.id, stored, {"activation": place.activation})


def _insert(state: Units, patches: Sequence[Patch], device: torch.device) -> Units:
    """All of them in one go: each costs its own rows."""
    if not patches:
        return state
    if not len(state.queries):
        first = patches[0]
        widths = first.tensors["keys"].shape[1], first.tensors["values"].shape[1]
        state = _empty(*widths, first.meta["activation"], device)
    unit, query, spans = len(state.radii), len(state.queries), dict(state.spans)
    for patch in patches:
        span = Span(unit, len(patch.tensors["radii"]), query, len(patch.tensors["queries"]))
        spans[patch.edit_id] = span
        unit, query = unit + span.units, query + span.queries
    grown = {name: getattr(state, name).append(_stacked(patches, name, device)) for name in PATCHED}
    # Edit by edit: a sum over the rows of several may round otherwise.
    squares = torch.cat([patch.tensors["centres"].square().sum(dim=1) for patch in patches]).to(device)
    return replace(state, spans=spans, squares=state.squares.append(squares), **grown)


def _stacked(patches: Sequence[Patch], name: str, device: torch.device) -> Tensor:
    return torch.cat([patch.tensors[name] for patch in patches]).to(device)


def _without(state: Units, edit_ids: frozenset[str]) -> Units:
    """Without the rows of those edits, which are copied away: nothing of them is left to round otherwise."""
    left = {edit_id: span for edit_id, span in state.spans.items() if edit_id not in edit_ids}
    units = _numbers([(span.unit, span.units) for span in left.values()])
    queries = _numbers([(span.query, span.queries) for span in left.values()])
    kept: dict[str, Any] = {
        name: _kept(getattr(state, name), queries if name in ("queries", "firsts") else units) for name in ROWS
    }
    unit = query = 0
    for edit_id, span in left.items():
        left[edit_id] = Span(unit, span.units, query, span.queries)
        unit, query = unit + span.units, query + span.queries
    return replace(state, spans=left, **kept)


def _numbers(stretches: Sequence[tuple[int, int]]) -> Tensor:
    parts = [torch.arange(start, start + count) for start, count in stretches]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _kept(rows: Rows, numbers: Tensor) -> Rows:
    return rows.like().append(rows.view[numbers.to(rows.view.device)])


def _owners(numbers: Tensor, ids: Sequence[str], starts: Sequence[int]) -> set[str]:
    """Which edits these rows (k,) belong to, edits' rows beginning at `starts`."""
    return {ids[bisect_right(starts, number) - 1] for number in numbers.tolist()}
