"""CNP: conditioning on the set of edits, as a conditional neural process (Garnelo et al., ICML 2018).

The process has a context, pairs of an input and its label; an encoder turns each pair into a representation, and an
aggregate that does not depend on their order conditions what is said about another input (section 2.2). Here the pairs
are the edits, inputs are what the frozen model makes of them, and what is conditioned is the model's own activation:

    r_i = h(z_i, y_i)      one forward for z_i, no gradient
    r   = Σ a_i r_i        a_i by how near z_i is to the row's own z (attention, Kim et al., ICLR 2019), or 1/n

`condition` says how. "logits": the context's labels take `probability` of what is said. "additive": r is added to what
the head reads. "film": it scales and shifts that (Perez et al., AAAI 2018). Without edits nothing is conditioned.

This adaptation to editing is ours; no published one was found. So is the encoder that needs no training: it takes z_i
as it is, and moves an activation where the head reads y_i. `CNP.fit` meta-trains, once per base model, in which space
inputs are near. And rows that are near no edit are left alone, by default: a mean over edits would reach them too.

A text has several tokens to answer with, and a mixture of two answers token by token is none: a text attends to the
nearest edit alone, whose answer tokens have a representation each, due one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from editable import metric, routing
from editable.edit import Edit, Patch
from editable.editor import Call, Considered
from editable.entries import Entries
from editable.errors import InputError
from editable.inputs import Batch, Request
from editable.learn import Capture, Probe, at_answers, shortfall
from editable.memory.points import Points
from editable.metric import Course, Fitted
from editable.resident import Residents
from editable.routing import Routes
from editable.scopes.nearest import NearestScope
from editable.site import Site, block_paths, classifier_head, find_module, label_rows, vocabulary_head, writes_text

GRID = 2.0**-16
"""What weights and representations are multiples of. Products and sums of such numbers are exact in float64 (up to
2^21), so an aggregate is the same to the bit in whatever order edits came, and with one taken back as if it had never
been there; running sums of rounded numbers would be neither."""

STRENGTHS = tuple(2.0 ** (step / 2) for step in range(-10, 11))  # of a move, in lengths of what is moved
SMOOTH = 1e-3  # ridge, as a share of the mean variance of a label row


@dataclass(frozen=True)
class CNP:
    """CNP conditioning as an editor; the instance is the configuration.

    Args:
        condition: what is conditioned: the logits, or the activation that the head reads, by a vector that is added
            ("additive") or by scale and shift ("film").
        site: where inputs are compared: what goes into the module of this path or glob. None takes what leaves the last
            block, and of a classifier what its head reads.
        weights: a file that `fit` wrote; inputs are compared in its space, where the radius is 1.
        aggregate: representations weighted by nearness, or their plain mean; texts know only the first.
        gate: whether rows that are near no edit are left alone.
        radius: how near that is, see `BallScope.radius`.
        bandwidth: standard deviation of the attention's weights, as a share of the radius.
        probability: what the context's labels get together; what a row near a single edit reaches at least.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "near the key activation of an edit",
            "effect": "an aggregate of all edits conditions an activation",
            "training": "none, or once per base model",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    condition: Literal["logits", "additive", "film"] = "logits"
    site: str | None = None
    weights: str | None = None
    aggregate: Literal["attention", "mean"] = "attention"
    gate: bool = True
    radius: float | None = None
    bandwidth: float = 0.25
    probability: float = 0.98

    @property
    def routes(self) -> bool:
        """Whether there is a gate: without one, every row is conditioned."""
        return self.gate

    @property
    def _scope(self) -> NearestScope:
        near = 1.0 if self.weights is not None and self.radius is None else self.radius
        return NearestScope(near, self.gate)

    def fit(
        self,
        model: nn.Module,
        tokenizer: Any,
        path: str | Path,
        edits: Sequence[Edit],
        course: Course | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Fitted:
        """Meta-train the space in which this model's inputs are compared; see `editable.metric` for the losses.

        Args:
            model: the base model, which is not touched.
            tokenizer: its own; None for images.
            path: where the weights go.
            edits: of the kind that will come. Their rephrases are what shall follow them, their locality what shall
                not; images of the same label may follow one another.
            course: how long and how fast.
            progress: told each episode and its loss.

        Returns:
            What came of it. Edit with these weights by `CNP(weights=path)`, with the same `site`.

        Raises:
            InputError: too few edits, or edits without rephrases or unrelated inputs.
        """
        site = next(iter(self.sites(model).values()))
        return metric.fit(model, tokenizer, site, path, edits, course or Course(bandwidth=self.bandwidth), progress)

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Where inputs are compared, and what is conditioned.

        Raises:
            InputError: a plain mean for a model that writes text.
        """
        own = Site(find_module(model, self.site), "input") if self.site else None
        if not writes_text(model):
            head = classifier_head(model)
            conditioned = Site(head, "output" if self.condition == "logits" else "input")
            return {"features": own or Site(head, "input"), "label": conditioned}
        if self.aggregate == "mean":
            raise InputError(
                f"CNP.aggregate is 'mean' and {type(model).__name__} writes text, expected 'attention', since the mean "
                "of answers of several tokens is no answer."
            )
        last = Site(block_paths(model)[-1])
        return {"prompt": own or last, "token": Site(vocabulary_head(model)) if self.condition == "logits" else last}

    def empty(self) -> Entries:
        """No edit yet; widths are taken from the first patch."""
        return Entries.empty(Routes.empty(self._scope))

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Entries) -> Tensor:
        """Compare at the first site, condition at the second; rows (batch, positions, features or logits)."""
        if not len(state):
            return rows
        if call.role in ("features", "prompt"):
            compared = self._compared(rows, call.residents)
            routing.decide(call, compared, self._scope, state.routes)
            call.memo[call.editor] = self._attended(call, compared, state)
            return rows
        found = call.memo[call.editor]
        if found is None:
            return rows
        return self._token(call, rows, state, found) if call.role == "token" else self._label(call, rows, state, found)

    def _compared(self, rows: Tensor, residents: Residents | None) -> Tensor:
        """Rows (batch, positions, features) in the space in which inputs are compared."""
        if self.weights is None:
            return rows
        assert residents is not None
        found = residents.get(f"cnp {self.weights}", self._metric, lambda one: one.device == rows.device)
        return rows.float() @ found.T

    def _metric(self, base: nn.Module) -> Tensor:
        assert self.weights is not None
        return metric.read(self.weights, base, next(iter(self.sites(base).values())))

    def _attended(self, call: Call, rows: Tensor, state: Entries) -> tuple[Tensor, ...] | None:
        """The weight of each key (batch, n); of a text the edit it attends to, offset and where due."""
        if call.role == "prompt":
            return routing.due(call, rows, state.routes)
        return (self._weights(call.at_key(rows).detach(), state.routes.book),)

    def _weights(self, queries: Tensor, book: Points) -> Tensor:
        """(m, n) multiples of GRID, as float64: how much each of queries (m, features) attends to each key."""
        apart, reach = book.distances(queries)
        if self.aggregate == "mean":
            return apart.isfinite().double()
        return attention(apart, self.bandwidth * reach)

    def _label(self, call: Call, rows: Tensor, state: Entries, attended: tuple[Tensor, ...]) -> Tensor:
        """A classifier's rows (batch, 1, features or labels), conditioned on what they attend to."""
        decision, (weights,) = call.decision, attended
        assert decision is not None
        slots = state.routes.book.slots.on(rows.device)
        whole = weights.sum(dim=1, keepdim=True)
        values = state.values.at(state.spans.on(rows.device)[slots, 0])  # (n, width)
        mean = ((weights @ values.double()) / whole).float()[:, None]  # (batch, 1, width)
        if self.condition == "logits":
            labels = state.routes.answers.on(rows.device)[state.routes.spans.on(rows.device)[slots, 0]]
            share = weights.new_zeros(len(rows), rows.shape[-1]).index_add(1, labels, weights) / whole
            conditioned = raised(rows, share.float()[:, None], rows.float().logsumexp(-1, True), self.probability)
        else:
            conditioned = moved(rows, mean)
        return torch.where(decision["hit"][:, None, None], conditioned.to(rows.dtype), rows)

    def _token(self, call: Call, rows: Tensor, state: Entries, attended: tuple[Tensor, ...]) -> Tensor:
        """A text's rows (batch, positions, features or vocabulary), where tokens of its edit's answer are due."""
        slot, offset, due = attended
        if self.condition != "logits":
            values, due = state.at(slot, offset, due)
            return torch.where(due[..., None], moved(rows, values).to(rows.dtype), rows)
        columns = call.head_columns(rows)
        offset, due = offset.gather(1, columns), due.gather(1, columns)
        spans, answers = state.routes.spans.on(rows.device)[slot], state.routes.answers.on(rows.device)
        due = due & (offset < spans[:, 1:])
        token = answers[spans[:, :1] + offset * due][..., None]  # (batch, positions, 1)
        wide = rows.float()
        lifted = raised(wide.gather(-1, token), torch.ones_like(token), wide.logsumexp(-1, True), self.probability)
        return torch.where(due[..., None], wide.scatter(-1, token, lifted).to(rows.dtype), rows)

    def explain(self, call: Call, rows: Tensor, state: Entries) -> Sequence[Considered]:
        """The edits nearest to the one row; rows at the first site."""
        return routing.explain(call, self._compared(rows, call.residents), self._scope, state.routes)

    # Learning

    def learn(self, requests: Sequence[Request], state: Entries, probe: Probe) -> tuple[Entries, list[Patch]]:
        """Encode each edit, from one forward over all. No gradients."""
        key, place = self.sites(probe.model).values()
        batch = probe.reader.batch(requests)
        seen = probe.capture(batch, [key, place])
        compared = self._compared(seen.rows[key], probe.residents)
        parts = self._scope.learn(requests, batch, key, compared, probe)
        found = self._encoded(batch, seen, key if self.condition == "logits" else place, probe)
        patches = []
        for request, part, own in zip(requests, parts, found, strict=True):
            state, patch = state.enter(self._scope, routing.part_of(request, part, {"values": own}), own.device)
            patches.append(patch)
        return state, patches

    def _encoded(self, batch: Batch, seen: Capture, site: Site, probe: Probe) -> list[Tensor]:
        """(k, width) representations of each request's answer tokens, multiples of GRID."""
        pairs = _Pairs.of_batch(batch, seen.rows[site])
        if self.condition == "logits":  # the label alone is what there is to know
            found = pairs.inputs.new_zeros(pairs.count, 0)
        else:
            found = self._moves(pairs, site, probe)
            if self.condition == "film":
                found = torch.cat([torch.zeros_like(found), found], dim=1)
        return list(((found / GRID).round() * GRID).split(pairs.sizes))

    @torch.no_grad()
    def _moves(self, pairs: _Pairs, site: Site, probe: Probe) -> Tensor:
        """(answer tokens, features) what, added to each of a token's inputs, has the head read that token.

        Of moves in the direction of its label the shortest that does, for all of them.
        """
        toward, read = directions(label_rows(probe.model), pairs.labels), probe.tail(site)
        lengths = pairs.inputs.norm(dim=1).mean() * pairs.inputs.new_tensor(STRENGTHS)
        short = torch.stack(
            [shortfall(read(pairs.inputs + by * toward), pairs.labels, self.probability) for by in lengths]
        )
        short = short.new_zeros(len(lengths), pairs.count).index_add(1, pairs.of, short)
        enough = (short <= short.amin(dim=0)).long().argmax(dim=0)  # where none is, the one that comes nearest
        moves: Tensor = toward[pairs.first] * lengths[enough][:, None]
        return moves

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Entries) -> Entries:
        """The state with patches learned earlier; their order does not matter."""
        return state.insert(self._scope, patches)

    def forget(self, edit_ids: frozenset[str], state: Entries) -> Entries:
        """The state as if those edits had never been inserted."""
        return state.forget(self._scope, edit_ids)

    def conflicts(self, edit_id: str, state: Entries) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and within whose reach it lies)."""
        return self._scope.conflicts(edit_id, state.routes.book)

    def unit(self, edit_id: str, state: Entries) -> frozenset[str]:  # noqa: ARG002 - every edit by itself
        """The edit alone: representations are encoded independently of one another."""
        return frozenset({edit_id})


# The formulas


def attention(apart: Tensor, width: Tensor) -> Tensor:
    """exp(-(d² - min d²) / 2w²) for distances (m, n) and widths (n,): the nearest key in widths weighs 1.

    float64, multiples of GRID.
    """
    far = (apart.double() / width).square()
    weights = (-(far - far.amin(dim=1, keepdim=True)) / 2).exp()
    return (weights / GRID).round() * GRID


def raised(logits: Tensor, share: Tensor, whole: Tensor, probability: float) -> Tensor:
    """Logits of p ∝ (1 - probability) softmax(logits) + probability · share: labels without a share keep theirs.

    logits and share (..., labels), or some of the labels; whole (..., 1) the logsumexp of all logits.
    """
    odds = math.log(probability / (1 - probability))
    return torch.logaddexp(logits.float(), share.log() + whole + odds)


def moved(rows: Tensor, representation: Tensor) -> Tensor:
    """Rows (..., features) with a vector of as many features added.

    Or scaled by 1 + the first half of twice as many, and shifted by the second (FiLM, Perez et al., section 2).
    """
    rows = rows.float()
    if representation.shape[-1] == rows.shape[-1]:
        return rows + representation
    scale, shift = representation.tensor_split(2, dim=-1)
    found: Tensor = rows * (1 + scale) + shift
    return found


def directions(rows: Tensor, labels: Tensor) -> Tensor:
    """(n, features) unit moves that raise the logits of labels (n,) and others as little as can be, by least squares.

    rows (classes, features) are the head's weights.
    """
    centred = rows.float() - rows.float().mean(dim=0)
    square = centred.T @ centred
    ridge = SMOOTH * square.diagonal().mean() * torch.eye(len(square), device=rows.device)
    return nn.functional.normalize(torch.linalg.solve(square + ridge, centred[labels].T).T, dim=1)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The context pairs of a batch of requests.

    Args:
        inputs: (n, features) what the model makes of each prompt and rephrase, at each position of the answer.
        labels: (n,) the answer token or label there.
        of: (n,) which answer token it is, all requests' counted through.
        first: (answer tokens,) the pair of each request's own prompt.
        sizes: answer tokens of each request.
    """

    inputs: Tensor
    labels: Tensor
    of: Tensor
    first: Tensor
    sizes: list[int]

    @property
    def count(self) -> int:
        """Answer tokens."""
        return len(self.first)

    @classmethod
    def of_batch(cls, batch: Batch, rows: Tensor) -> _Pairs:
        """Those of a teacher-forced batch, whose rows (batch, positions, features) the model gave."""
        due = batch.answers != -100  # (batch, longest answer)
        own = batch.requests.diff(prepend=batch.requests[:1] - 1) != 0  # (batch,) the first row of each request
        sizes = due[own].sum(dim=1)
        starts = (sizes.cumsum(0) - sizes)[batch.requests]
        row, offset = due.nonzero(as_tuple=True)
        return cls(
            at_answers(rows, batch).float(),
            batch.answers[due],
            starts[row] + offset,
            own[row].nonzero()[:, 0],
            sizes.tolist(),
        )
