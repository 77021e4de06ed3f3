"""SERAC: semi-parametric editing with a retrieval-augmented counterfactual model (Mitchell et al., ICML 2022).

Edits are text in a memory. A scope says which of them a prompt falls under, if any; then a counterfactual model, which
reads that edit in front of the prompt, answers in the base model's stead until the answer ends (section 4.1). Rows are
routed one by one at prefill, and what the counterfactual has read goes along with the base model's cache.

The counterfactual is the frozen base model itself, taught once to answer by what edits in its context say and by what
follows from them (`SERAC.fit`), or another model with the same tokenizer. Three things here are ours. An edit that is
published has to be right on its own prompts: where the counterfactual does not give its answer by itself, the answer's
tokens are lifted, each where it is due, as long as the tokens before it are the answer's own. A classifier's label is
the answer already: it is lifted. And what builds on edits instead of asking for one (`Scope.asks`) is read behind all
edits that it may build on (`Scope.built_on`), and nothing is lifted there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from editable import counterfactual, datasets, models, routing, teaching
from editable.counterfactual import Counterfactual
from editable.datasets.case import Case
from editable.digest import tokenizer_digest
from editable.edit import Patch
from editable.editor import Call, Considered
from editable.errors import InputError
from editable.inputs import Request
from editable.learn import Probe, shortfall
from editable.memory.rows import Rows
from editable.reading import Reading
from editable.resident import Residents
from editable.routing import Routes, Scope
from editable.scopes.ball import BallScope
from editable.scopes.sentence import SentenceScope
from editable.site import Site, block_paths, classifier_head, vocabulary_head, writes_text
from editable.teaching import Course, Taught

ALONE = 0.5  # likelier than everything else together: an answer token that the counterfactual gives by itself


@dataclass(frozen=True)
class Memory:
    """The state: which edit a row falls under, and each edit as it stands in front of a prompt.

    Args:
        scope: which inputs fall under an edit.
        routes: the scope's book and the answers.
        contexts: (c,) tokens of all edits, an edit's in a row; on the CPU, where texts are put together.
        spans: (n, 2) of each edit: first token, number of tokens.
        lifted: (n,) of each edit, whether its answer is lifted.
        any_lifted: whether one is.
    """

    scope: Scope
    routes: Routes
    contexts: Rows
    spans: Rows
    lifted: Rows
    any_lifted: bool = False

    def __len__(self) -> int:
        return len(self.routes)

    @classmethod
    def empty(cls, scope: Scope) -> Memory:
        """No edit yet."""
        long, routes = torch.long, Routes.empty(scope)
        return cls(scope, routes, Rows.empty(dtype=long), Rows.empty(2, dtype=long), Rows.empty(dtype=torch.bool))

    def context(self, slot: int) -> list[int]:
        """The tokens of one edit."""
        start, count = self.spans.view.numpy()[slot]
        return [int(token) for token in self.contexts.view.numpy()[start : start + count]]


@dataclass(frozen=True)
class SERAC:
    """SERAC as an editor; the instance is the configuration.

    Args:
        scope: which inputs fall under an edit; None takes sentences for text, and a ball around the activation for
            anything else.
        counterfactual: what answers in their stead: a name or path for `models.load`, of a model with the base model's
            tokenizer; None is the base model itself.
        weights: a file that `fit` wrote, which the base model reads edits with; None takes the weights that this
            package holds for these very base weights, if it does.
        probability: what each token of a lifted answer gets at least.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "memory",
            "scope": "sentence memory",
            "effect": "a counterfactual model answers",
            "training": "once per base model",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    scope: Scope | None = None
    counterfactual: str | None = None
    weights: str | None = None
    probability: float = 0.98

    @property
    def routes(self) -> bool:
        """Every row falls under one edit or under none."""
        return True

    def fit(
        self,
        model: nn.Module,
        tokenizer: Any,
        path: str | Path,
        cases: Sequence[Case] = (),
        course: Course | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Taught:
        """Teach a base model to answer by the edits in its context: the paper's objective for the counterfactual model.

        That is the negative log-likelihood of the answer given the edit (section 4.2), in scope and for what the edit
        entails. The scope's part of the objective is the scope's own. The model is not touched: what is learned is a
        low-rank delta beside its weights.

        Args:
            model: the base model.
            tokenizer: its own.
            path: where the weights go.
            cases: what lessons are made of, beside the facts and the small world that this package ships.
            course: how long and how fast; None is what the shipped weights were made with.
            progress: told each step and its loss in nats a token.

        Returns:
            What came of it. Read edits with these weights by `SERAC(weights=path)`.
        """
        return teaching.fit(model, tokenizer, path, [*datasets.facts(), *cases], course or Course(), progress)

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Where the scope decides, where the counterfactual stands in for the base, and the logits."""
        if not writes_text(model):
            head = classifier_head(model)
            before = Site(head, side="input")
            return {"key": before if self.scope is None else self.scope.site(model, before), "label": Site(head)}
        last = Site(block_paths(model)[-1])
        key = last if self.scope is None else self.scope.site(model, last)
        return {"key": key, "reading": last, "logits": Site(vocabulary_head(model))}

    def empty(self) -> Memory:
        """No edit yet; without a scope of the user's, the first edit says what is read."""
        return Memory.empty(self.scope or SentenceScope())

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Memory) -> Tensor:
        """Decide, read and answer; rows (batch, positions, features or vocabulary)."""
        if not len(state):
            return rows
        if call.role == "key":
            routing.decide(call, rows, state.scope, state.routes)
            return rows
        act = {"reading": self._read, "logits": self._answer, "label": self._label}[call.role]
        return act(call, rows, state)

    def explain(self, call: Call, rows: Tensor, state: Memory) -> Sequence[Considered]:
        """The edits nearest to the one row; rows at the key site."""
        return routing.explain(call, rows, state.scope, state.routes)

    def _read(self, call: Call, rows: Tensor, state: Memory) -> Tensor:
        """The counterfactual reads this forward's tokens; what its last block gives stands in for the base's rows."""
        if call.key is not None:
            _open(call)
        if _name(call) not in call.decisions:
            return rows
        routing.follow(call, rows, state.routes, call.decisions[call.editor])
        if self.counterfactual is not None:
            return rows  # another model's rows mean nothing here: its logits count
        features = self._features(call, state)
        if features is None:
            return rows
        return torch.where(_answered(call, state)[..., None], features.to(rows.dtype), rows)

    def _answer(self, call: Call, rows: Tensor, state: Memory) -> Tensor:
        """Another model's logits in the base's place, then what is to be lifted; rows (batch, k, vocabulary)."""
        if _name(call) not in call.decisions:
            return rows
        columns = call.head_columns(rows)
        features = None if self.counterfactual is None else self._features(call, state)
        if features is not None:
            there = _answered(call, state).gather(1, columns)
            logits = features.gather(1, columns[..., None].expand(-1, -1, features.shape[-1]))
            # Heads of one tokenizer may be padded to different sizes, with rows that stand for no token.
            logits = nn.functional.pad(logits, (0, rows.shape[-1] - logits.shape[-1]), value=-math.inf)
            rows = torch.where(there[..., None], logits.to(rows.dtype), rows)
        if not state.any_lifted:
            return rows
        return self._lift(call, rows, _offsets(call).gather(1, columns), _followed(call, state), state)

    def _label(self, call: Call, rows: Tensor, state: Memory) -> Tensor:
        """The edit's label lifted in rows under one; rows (batch, 1, labels)."""
        if call.decision is None:
            return rows
        first = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        return self._lift(call, rows, first[:, None], first, state)

    def _lift(self, call: Call, rows: Tensor, offset: Tensor, followed: Tensor, state: Memory) -> Tensor:
        """Lift the answer token due at `offset` (batch, k) behind the key token, after `followed` (batch,) of them."""
        decision, routes = call.decisions[call.editor], state.routes
        slot, answers = decision["slot"], routes.answers.on(rows.device)
        spans = routes.spans.on(rows.device)[slot]
        own = decision["hit"] & _asked(call, state)
        due = (own & state.lifted.on(rows.device)[slot])[:, None] & (offset >= 0)
        due &= (offset <= followed[:, None]) & (offset < spans[:, 1:])
        token = answers[(spans[:, :1] + offset.clamp_min(0)).clamp_max(len(answers) - 1)]  # (batch, k)
        return torch.where(due[..., None], lifted(rows, token, self.probability), rows)

    def _features(self, call: Call, state: Memory) -> Tensor | None:
        """(batch, positions, features) of the counterfactual, or its logits; zeros in rows under no edit.

        None where tokens are not known. What it has read is kept for the steps that follow.
        """
        read, decision = call.decisions[_name(call)], call.decisions[call.editor]
        if call.tokens is None or (call.prompts is None if call.key is not None else "mask" not in read):
            return None
        assert call.residents is not None
        model, batch = self._model(call.residents), len(call.tokens)
        if call.key is None:
            some = _rows_of(decision["hit"])
            index = torch.as_tensor(some, device=call.tokens.device)
            before = {name: tensor[index] for name, tensor in read.items() if name != "open"}
            features, now = model.go_on(call.tokens[index].clamp_min(0), call.past, before)
        else:
            assert call.prompts is not None
            some = _rows_of(decision["hit"].to("cpu"))  # reading the text has waited for the device already
            index = torch.as_tensor(some, device=call.tokens.device)
            contexts = _contexts(call, state, _asked(call, state), some)
            texts = counterfactual.texts(contexts, call.prompts.tokens, some)
            features, now = model.begin(texts, _columns(call)[index], call.tokens.shape[1])
            features = _aligned(features, call.ordinals(call.tokens[..., None])[index])
        call.decisions[_name(call)] = {"open": read["open"], **{n: _spread(t, index, batch) for n, t in now.items()}}
        return _spread(features, index, batch)

    def _model(self, residents: Residents) -> Counterfactual:
        name = f"serac {self.counterfactual} {self.weights}"
        return residents.get(name, self._build, lambda built: built.usable)

    def _build(self, base: nn.Module) -> Counterfactual:
        if self.counterfactual is not None:
            return Counterfactual.of_other(base, models.load(self.counterfactual)[0])
        fitted = counterfactual.shipped(base) if self.weights is None else counterfactual.fitted(self.weights, base)
        return Counterfactual.of_base(base, fitted)

    # Learning

    def learn(self, requests: Sequence[Request], state: Memory, probe: Probe) -> tuple[Memory, list[Patch]]:
        """Keep each edit as text, and see whether the counterfactual gives its answer by itself. No gradients."""
        self._check_tokenizer(probe)
        state = self._begun(state, all("input_ids" in prompt for request in requests for prompt in request.prompts))
        site, batch = self.sites(probe.model)["key"], probe.reader.batch(requests)
        rows = None if state.scope.reads_text else probe.capture(batch, [site]).rows[site]
        parts = state.scope.learn(requests, batch, site, rows, probe)
        alone = self._answered_alone(requests, probe)
        patches = []
        for request, part, by_itself in zip(requests, parts, alone, strict=True):
            tokens = counterfactual.context(request, probe.reader) if probe.reader.text else ()
            effect = {"context": torch.tensor(tokens, dtype=torch.long)}
            patch = routing.part_of(request, part, effect, {"lifted": not by_itself})
            routes, patch = state.routes.enter(state.scope, patch, probe.reader.device)
            state = _with_edits(state, routes, [patch])
            patches.append(patch)
        return state, patches

    def _check_tokenizer(self, probe: Probe) -> None:
        if self.counterfactual is None or not probe.reader.text:
            return
        name = self.counterfactual
        known = probe.residents.get(
            f"serac {name} tokenizer", lambda _: tokenizer_digest(models.load(name)[1]), lambda _: True
        )
        if known != tokenizer_digest(probe.reader.tokenizer):
            raise InputError(
                f"SERAC.counterfactual {self.counterfactual!r} has a tokenizer of its own, expected that of the base "
                f"{type(probe.model).__name__}, since its logits stand in for the base's; choose another model."
            )

    def _answered_alone(self, requests: Sequence[Request], probe: Probe) -> list[bool]:
        """Of each edit, whether the counterfactual answers its prompts and rephrases without help."""
        if not probe.reader.text:
            return [False] * len(requests)
        model = self._model(probe.residents)
        in_context = probe.reader.batch([counterfactual.in_context([r], r, probe.reader) for r in requests])
        with torch.no_grad():
            logits = Probe(model.model, probe.reader).logits(in_context)  # (rows, longest answer, vocabulary)
        short = shortfall(logits, in_context.answers, ALONE).sum(dim=1)
        return [bool((short[in_context.requests == place] == 0).all()) for place in range(len(requests))]

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Memory) -> Memory:
        """The state with patches learned earlier."""
        if not patches:
            return state
        state = self._begun(state, "phrases" in patches[0].tensors)
        return _with_edits(state, state.routes.insert(state.scope, patches), patches)

    def _begun(self, state: Memory, text: bool) -> Memory:
        """With the scope for what the first edit is."""
        if len(state.spans) or self.scope is not None:
            return state
        return Memory.empty(SentenceScope() if text else BallScope())

    def forget(self, edit_ids: frozenset[str], state: Memory) -> Memory:
        """The state as if those edits had never been inserted."""
        return replace(state, routes=state.routes.forget(state.scope, edit_ids))

    def conflicts(self, edit_id: str, state: Memory) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose scope was parted from its own)."""
        return state.scope.conflicts(edit_id, state.routes.book)

    def unit(self, edit_id: str, state: Memory) -> frozenset[str]:  # noqa: ARG002 - every edit by itself
        """The edit alone: each is a text of its own."""
        return frozenset({edit_id})


def lifted(logits: Tensor, token: Tensor, probability: float) -> Tensor:
    """Logits (..., vocabulary) where `token` (...) has at least that probability; the others keep theirs."""
    wide, index = logits.float(), token[..., None]
    others = wide.scatter(-1, index, -math.inf).logsumexp(dim=-1, keepdim=True)
    enough = others + math.log(probability / (1 - probability))
    return wide.scatter(-1, index, torch.maximum(wide.gather(-1, index), enough)).to(logits.dtype)


def _with_edits(state: Memory, routes: Routes, patches: Sequence[Patch]) -> Memory:
    contexts = [patch.tensors["context"] for patch in patches]
    lengths = torch.tensor([len(context) for context in contexts])
    lifts = [bool(patch.meta["lifted"]) for patch in patches]
    return replace(
        state,
        routes=routes,
        contexts=state.contexts.append(torch.cat(contexts)),
        spans=state.spans.append(torch.stack([len(state.contexts) + lengths.cumsum(0) - lengths, lengths], dim=1)),
        lifted=state.lifted.append(torch.tensor(lifts)),
        any_lifted=state.any_lifted or any(lifts),
    )


def _name(call: Call) -> str:
    """What the counterfactual has read is carried beside the editor's decision, as another one."""
    return f"{call.editor}, read"


def _open(call: Call) -> None:
    """Where a prompt ends: which rows the counterfactual answers from now on, to the end of the generation.

    A row whose edit was decided in an earlier forward is another matter: its answer may just have been fed back in one
    piece, or something new may have been said. There it answers only as long as its own answer is followed.
    """
    decision = call.decision
    call.decisions.pop(_name(call), None)
    if decision is None or call.ordinal is None or not len(_rows_of(decision["hit"].to("cpu"))):
        return
    now = decision["hit"] & (decision["origin"] >= call.ordinal[:, 0])
    call.decisions[_name(call)] = {"open": now}


def _offsets(call: Call) -> Tensor:
    """(batch, positions) how far each position is behind its row's key token."""
    assert call.ordinal is not None
    return call.ordinal - call.decisions[call.editor]["origin"][:, None]


def _followed(call: Call, state: Memory) -> Tensor:
    """(batch,) tokens after the key token that are the answer's, one after another."""
    decision = call.decisions[call.editor]
    return routing.agreed(decision["said"], decision["slot"], state.routes)


def _answered(call: Call, state: Memory) -> Tensor:
    """(batch, positions) where the counterfactual answers."""
    decision, offset = call.decisions[call.editor], _offsets(call)
    within = call.decisions[_name(call)]["open"][:, None] | (offset <= _followed(call, state)[:, None])
    return decision["hit"][:, None] & (offset >= 0) & within


def _rows_of(hit: Tensor) -> NDArray[np.int64]:
    """Rows under an edit; all of them where telling would mean waiting for an accelerator."""
    return np.flatnonzero(hit.numpy()) if hit.device.type == "cpu" else np.arange(len(hit))


def _asked(call: Call, state: Memory) -> Tensor:
    """(batch,) rows that ask what their edit answers, and not what builds on that."""
    return call.decisions[call.editor]["share"] <= state.scope.asks


def _contexts(call: Call, state: Memory, asked: Tensor, some: NDArray[np.int64]) -> list[list[int]]:
    """What stands in front of some rows: the edit; where it is not what is asked (batch,), what that builds on."""
    own, slots = asked.to("cpu").numpy(), call.decisions[call.editor]["slot"].to("cpu").numpy()
    rows = ((int(row), int(slots[row])) for row in some)
    return [state.context(slot) if own[row] else _built_on(call, state, row, slot) for row, slot in rows]


def _built_on(call: Call, state: Memory, row: int, slot: int) -> list[int]:
    """The edits that a row may build on, one after the other."""
    assert call.prompts is not None
    reading, memo = call.prompts.reading, call.prompts.memo
    text, answer = call.prompts.text(row, _behind(call, row)), partial(_answer_of, state.routes, reading)
    slots = state.scope.built_on(slot, text, answer, state.routes.book, memo)
    return [token for one in slots for token in state.context(one)]


def _answer_of(routes: Routes, reading: Reading, slot: int) -> str:
    start, count = routes.spans.view[slot].to("cpu").numpy()
    return reading.text([int(token) for token in routes.answers.view[start : start + count].to("cpu").numpy()])


def _behind(call: Call, row: int) -> int:
    """How many tokens of a row's prompt stand behind its edit's key token: an answer that it has already."""
    assert call.ordinal is not None and call.key is not None
    return int(call.ordinal[row, call.key[row]] - call.decisions[call.editor]["origin"][row])


def _columns(call: Call) -> Tensor:
    """(batch, columns) what the base has read after this forward; where it had read before, only the number counts."""
    assert call.tokens is not None
    return (
        call.tokens if call.past == 0 else call.tokens.new_zeros((len(call.tokens), call.past + call.tokens.shape[1]))
    )


def _aligned(features: Tensor, ordinal: Tensor) -> Tensor:
    """Features (rows, m, features), the last real token in the last column, at this forward's positions.

    ordinal (rows, positions); returns (rows, positions, features).
    """
    behind = ordinal.amax(dim=1, keepdim=True) - ordinal
    column = (features.shape[1] - 1 - behind).clamp_min(0)
    return features.gather(1, column[..., None].expand(-1, -1, features.shape[-1]))


def _spread(tensor: Tensor, index: Tensor, batch: int) -> Tensor:
    """(rows, ...) at their places in the batch, zeros in between."""
    if len(index) == batch:
        return tensor
    return tensor.new_zeros((batch, *tensor.shape[1:])).index_copy(0, index, tensor)
