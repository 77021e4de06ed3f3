"""Which edit, if any, a row falls under: decided once, at prefill, carried by the KV cache, followed while decoding.

A *scope* (`editable/scopes`, one a file) says which edit an input falls under. What surrounds that is the same for
every scope and every effect, and is here: the key token, answer tokens that follow it already, which of several
readings of a row is meant, and how far a generation has followed its edit's answer. Any editor that routes shares it.

Edits are known by their slot: their number in order of arrival, which no other edit ever gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from editable.edit import Patch
from editable.editor import Call, Considered, Decision
from editable.inputs import Batch, Request
from editable.learn import Probe
from editable.memory.column import Column
from editable.memory.names import Names
from editable.memory.openings import Openings
from editable.memory.rows import Rows
from editable.site import Site

Part = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""What a scope adds to the patch of an edit: tensors, and plain JSON."""

Answers = Callable[[int], str]
"""What the edit of a slot answers, as text."""


@runtime_checkable
class Scope(Protocol):
    """Which inputs fall under which edit. Implemented by frozen dataclasses in `editable/scopes`, one file each.

    What it knows of the edits is its book, an immutable value of its own kind.
    """

    @property
    def reads_text(self) -> bool:
        """Whether rows are read as text; then activations do not matter to it."""
        ...

    @property
    def margin(self) -> float:
        """How much lower the share of a text without the answer tokens at its end must be for these to be an answer."""
        ...

    @property
    def asks(self) -> float:
        """Up to this share an input asks what its edit answers; above it, what only builds on that answer.

        So an effect that reads the edit may answer it from there. All others take the one for the other.
        """
        ...

    def site(self, model: nn.Module, effect: Site) -> Site:
        """Where rows are decided, for an effect whose first site is `effect`: there or before.

        Raises:
            SiteError: the model has no such place, or its inputs cannot be read.
        """
        ...

    def empty(self, on_disk: bool = False) -> Any:
        """A book without edits; `on_disk` asks for as little memory as it can do with."""
        ...

    def learn(
        self, requests: Sequence[Request], batch: Batch, site: Site, rows: Tensor | None, probe: Probe
    ) -> list[Part]:
        """What goes into each edit's patch, so that `insert` needs nothing else.

        Args:
            requests: the edits.
            batch: their prompts and rephrases, teacher-forced.
            site: the scope's own.
            rows: (rows of the batch, positions, features) unedited, at that site; may be None where it reads text.
            probe: may look further.
        """
        ...

    def insert(self, patches: Sequence[Patch], slot: int, book: Any, device: torch.device | None = None) -> Any:
        """The book with these edits, in order, in the slots from `slot` on.

        Patches hold the answer's tokens as "answer"; two edits answer alike exactly if these are equal. `device` is
        where rows are looked up, if that is known yet.

        Raises:
            InputError: a patch cannot have come from this scope.
        """
        ...

    def placed(self, edit_id: str, book: Any) -> Any:
        """How the edit just inserted was placed among the others, as JSON: "placed" in the patch that replays see."""
        ...

    def forget(self, edit_ids: frozenset[str], book: Any) -> Any:
        """The book as if those edits had never been inserted."""
        ...

    def conflicts(self, edit_id: str, book: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `Editor.conflicts`."""
        ...

    def find(
        self, call: Call, rows: Tensor, lags: Sequence[int], starts: NDArray[np.bool_] | None, book: Any
    ) -> list[tuple[Tensor, Tensor]]:
        """For each lag, which edit every row falls under if its last `lag` tokens are no part of it.

        Args:
            call: this forward; it has the key tokens, and the text of the prompts.
            rows: (batch, positions, features) at the scope's site.
            lags: 0 first.
            starts: (batch, lags) which rows are worth a look at which lag; None where that is not known.
            book: what it knows.

        Returns:
            slot (batch,) and share (batch,) for each lag: how far from certain, from 0 to 1; inf, where the row falls
            under no edit, and its slot is any.
        """
        ...

    def built_on(self, slot: int, text: str, answer: Answers, book: Any, memo: dict[Any, Any]) -> list[int]:
        """The slots of what an input above `asks` may build on, in the order in which to read them.

        Args:
            slot: of the edit it falls under.
            text: what it asks.
            answer: what the edit of a slot answers.
            book: what it knows.
            memo: that of the forward's `Prompts`.
        """
        ...

    def consider(self, call: Call, rows: Tensor, book: Any, count: int) -> list[tuple[int, float, float, str]]:
        """The edits nearest to the call's one row, nearest first: (slot, score, what it takes, what was looked at).

        Lower scores are nearer, and what it takes is the highest that fires.
        """
        ...


@dataclass(frozen=True, eq=False)
class Routes:
    """Every edit a row may fall under: a scope's book, and the answers that may follow a prompt.

    Args:
        book: the scope's own.
        owner: of each slot, the number of its edit's id.
        names: what these numbers stand for; shared by all versions.
        answers: (a,) all answer tokens, an edit's in a row.
        spans: (n, 2) of each slot: first answer token, number of answer tokens.
        openings: what answers begin with; those of forgotten edits may be among them.
        longest: most tokens in any answer.
        count: live edits.
    """

    book: Any
    owner: Column
    live: Column
    names: Names
    answers: Rows
    spans: Rows
    openings: Openings
    longest: int = 0
    count: int = 0

    @classmethod
    def empty(cls, scope: Scope, on_disk: bool = False) -> Routes:
        """No edit yet."""
        long = torch.long
        columns = Column.empty(np.int32), Column.empty(np.bool_), Names()
        tokens = Rows.empty(dtype=long), Rows.empty(2, dtype=long), Openings.empty()
        return cls(scope.empty(on_disk), *columns, *tokens)

    def __len__(self) -> int:
        return self.count

    def slot(self, edit_id: str) -> int | None:
        """The slot of a live edit; None for one that is not here."""
        slots = self.owner.where(self.names.find(edit_id)).tolist()
        return next((slot for slot in slots if self.live[slot]), None)

    def edit_id(self, slot: int) -> str:
        """Whose slot it is, or was."""
        return str(self.names.names[self.owner[slot]])

    def insert(self, scope: Scope, patches: Sequence[Patch], device: torch.device | None = None) -> Routes:
        """With these edits, whose patches hold what the scope learned and the answer's tokens as "answer"."""
        if not patches:
            return self
        first = len(self.owner)
        start = self if first or device is None else self._on(device)
        new = [patch.tensors["answer"] for patch in patches]
        answers, spans = start.answers.append(torch.cat(new)), start.spans.append(_spans(len(self.answers), new))
        numbers = [self.names.number(patch.edit_id) for patch in patches]
        return replace(
            start,
            book=scope.insert(patches, first, self.book, device),
            owner=self.owner.append(numbers),
            live=self.live.append([True] * len(patches)),
            answers=answers,
            spans=spans,
            openings=self.openings.following(answers.view, spans.view),
            longest=max(self.longest, *map(len, new)),
            count=self.count + len(patches),
        )

    def _on(self, device: torch.device) -> Routes:
        long = torch.long
        answers, spans = Rows.empty(dtype=long, device=device), Rows.empty(2, dtype=long, device=device)
        return replace(self, answers=answers, spans=spans)

    def enter(self, scope: Scope, patch: Patch, device: torch.device | None = None) -> tuple[Routes, Patch]:
        """With one newly learned edit, and its patch with what replays need to place it alike without looking."""
        routes = self.insert(scope, [patch], device)
        meta = {**patch.meta, "placed": scope.placed(patch.edit_id, routes.book)}
        return routes, replace(patch, meta=meta)

    def undecided(self, batch: int, device: torch.device) -> Decision:
        """That none of `batch` rows falls under an edit; for all to read."""
        known = self._undecided.get((batch, device))
        return self._undecided.setdefault((batch, device), self._nothing(batch, device)) if known is None else known

    @torch.inference_mode(False)  # what is kept has to do for later forwards with gradients, too
    def _nothing(self, batch: int, device: torch.device) -> Decision:
        nothing = torch.zeros(batch, dtype=torch.long, device=device)
        said = nothing.new_full((batch, self.longest + 1), -1)
        share = torch.full_like(nothing, torch.inf, dtype=torch.float32)
        return {"slot": nothing, "share": share, "hit": nothing.bool(), "origin": nothing, "said": said}

    @cached_property
    def _undecided(self) -> dict[tuple[int, torch.device], Decision]:
        return {}

    def forget(self, scope: Scope, edit_ids: frozenset[str]) -> Routes:
        """As if those edits had never been inserted."""
        gone = [slot for slot in map(self.slot, edit_ids) if slot is not None]
        live, book = self.live.put(gone, False), scope.forget(edit_ids, self.book)
        return replace(self, book=book, live=live, count=self.count - len(gone))


def part_of(request: Request, part: Part, effect: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> Patch:
    """The patch of one edit: what its scope learned, its answer, and what its effect learned."""
    tensors = {**part[0], "answer": torch.tensor(request.answer), **effect}
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return Patch(request.id, copies, {**part[1], **(meta or {})})


def decide(call: Call, rows: Tensor, scope: Scope, routes: Routes) -> None:
    """Which edit each row falls under; kept in the call, and for the decode steps that follow.

    rows (batch, positions, features) at the scope's site. Nothing happens in a decode step, or in an early chunk of the
    prompt. The decision holds slot, share, hit and origin (batch,), the ordinal of the key token, and said (batch,
    longest answer + 1), the tokens heard after it.
    """
    if call.ordinal is not None and call.key is None:
        return
    best: Decision | None = None
    lags, starts = _lags(call, rows, scope, routes)
    for lag, (slot, share) in zip(lags, scope.find(call, rows, lags, starts, routes.book), strict=True):
        nearest = {"slot": slot, "share": share, "hit": share <= 1}
        if nowhere(nearest["hit"]):
            continue
        found = _decision(call, rows, routes, nearest, lag)
        best = found if best is None else _prefer(best, found, found["share"] < best["share"] - scope.margin)
    best = routes.undecided(len(rows), rows.device) if best is None else best
    earlier = call.decision
    if earlier is not None:
        best = _prefer(earlier, best, best["hit"] & ~_fed_back(call, rows, routes, earlier))
    call.decide(best)


def looked_up(
    call: Call,
    rows: Tensor,
    lags: Sequence[int],
    starts: NDArray[np.bool_] | None,
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> list[tuple[Tensor, Tensor]]:
    """What `Scope.find` gives, of a scope that looks activations up: all that are worth it together.

    `look` finds slot and share (m,) of activations (m, features).
    """
    if len(lags) == 1:
        return [look(call.at_key(rows, lags[0]))]
    queries = torch.stack([call.at_key(rows, lag) for lag in lags])  # (lags, batch, features)
    if starts is None:
        slot, share = look(queries.flatten(0, 1))
        return list(zip(slot.view(len(lags), -1), share.view(len(lags), -1), strict=True))
    worth = torch.from_numpy(starts.T).to(rows.device)  # (lags, batch)
    slots, shares = torch.zeros_like(worth, dtype=torch.long), torch.full(worth.shape, torch.inf, device=rows.device)
    slots[worth], shares[worth] = look(queries[worth])
    return list(zip(slots, shares, strict=True))


def nowhere(hit: Tensor) -> bool:
    """Whether no row (batch,) hits, where that can be told without waiting for the device."""
    return hit.device.type == "cpu" and not hit.numpy().any()


def _fed_back(call: Call, rows: Tensor, routes: Routes, earlier: Decision) -> Tensor:
    """(batch,) rows in which nothing but the answer of the edit decided earlier has come since: no new prompt."""
    if call.key is None or not call.is_sequence(rows):
        return torch.zeros_like(earlier["hit"])
    offset = call.ordinals(rows) - earlier["origin"][:, None]
    since = offset.gather(1, call.key[:, None])[:, 0]
    same = agreed(_heard(call, earlier["said"], offset), earlier["slot"], routes)
    return earlier["hit"] & (since > 0) & (same >= since)


def due(call: Call, rows: Tensor, routes: Routes) -> tuple[Tensor, Tensor, Tensor] | None:
    """Where in rows (batch, positions, features) an edit is due, as long as the row has followed its answer.

    Returns:
        slot (batch,), offset (batch, positions) after the key token, and due (batch, positions); None where no row can
        be due any more.
    """
    decision = call.decision
    if decision is None or call.after_prompt > routes.longest or nowhere(decision["hit"]):
        return None
    offset, followed = follow(call, rows, routes, decision)
    there = decision["hit"][:, None] & (offset >= 0)
    if followed is not None:
        there &= offset <= followed[:, None]
    return decision["slot"], offset, there


def follow(call: Call, rows: Tensor, routes: Routes, decision: Decision) -> tuple[Tensor, Tensor | None]:
    """Listen to this forward's tokens, for the steps after it too; rows (batch, positions, features).

    Returns:
        How far (batch, positions) each position is behind the key token, and how many tokens (batch,) after it are the
        edit's answer's, one after another; None where tokens are not known.
    """
    offset = call.ordinals(rows) - decision["origin"][:, None]
    if call.tokens is None or not call.is_sequence(rows):
        return offset, None
    said = _heard(call, decision["said"], offset)
    call.decide({**decision, "said": said})
    return offset, agreed(said, decision["slot"], routes)


def explain(call: Call, rows: Tensor, scope: Scope, routes: Routes, count: int = 5) -> list[Considered]:
    """The edits that were considered for the one row of a call, nearest first, and whether each fires."""
    decide(call, rows, scope, routes)
    decision = call.decision
    fired = int(decision["slot"][0]) if decision is not None and bool(decision["hit"][0]) else None
    found = scope.consider(call, rows, routes.book, count)
    return [
        Considered(routes.edit_id(slot), score, needed, slot == fired, _reason(slot == fired, score, needed, why))
        for slot, score, needed, why in found
    ]


def _reason(fired: bool, score: float, needed: float, why: str) -> str:
    if fired:
        return why
    return f"{why}; another edit is nearer" if score <= needed else f"{why}; too far"


def _lags(call: Call, rows: Tensor, scope: Scope, routes: Routes) -> tuple[list[int], NDArray[np.bool_] | None]:
    """How many answer tokens may already follow the prompt at the end of a row, and in which rows (batch, lags).

    A text that ends in an edit's prompt and the first tokens of its answer (a teacher-forced pass, a generation that is
    recomputed without a cache) has its key token before those. On the CPU the lags at which no answer starts are left
    out; on an accelerator looking would mean waiting for it, so all are tried, unless the tokens are read anyway.
    """
    if call.tokens is None or call.key is None or not call.is_sequence(rows):
        return [0], None
    longest = min(routes.longest, call.tokens.shape[1] - 1)
    if call.tokens.device.type != "cpu" and not scope.reads_text:
        return list(range(longest + 1)), None
    tokens, key = call.tokens.cpu().numpy(), call.key.cpu().numpy()
    starts = routes.openings.ending(tokens, key, longest)
    lags = [0, *(np.flatnonzero(starts.any(axis=0)) + 1).tolist()]
    worth = np.concatenate([np.ones((len(key), 1), np.bool_), starts], axis=1)
    return lags, worth[:, lags]


def _decision(call: Call, rows: Tensor, routes: Routes, nearest: Decision, lag: int) -> Decision:
    """The edit (batch,), how deep in its scope, the key token's ordinal, and the answer tokens seen after it."""
    slot, share = nearest["slot"], nearest["share"]
    nothing = routes.undecided(len(slot), slot.device)
    if call.key is None or not call.is_sequence(rows):
        return {**nothing, **nearest}
    ordinal = call.ordinals(rows)
    origin = ordinal.gather(1, (call.key - lag).clamp_min(0)[:, None])[:, 0]
    said = _heard(call, nothing["said"], ordinal - origin[:, None])
    if lag and call.tokens is not None:
        share = torch.where(agreed(said, slot, routes) >= lag, share, torch.inf)
    share = torch.where((call.key >= lag) & (origin >= 0), share, torch.inf)
    return {"slot": slot, "share": share, "hit": share <= 1, "origin": origin, "said": said}


def _prefer(first: Decision, second: Decision, where: Tensor) -> Decision:
    """The second decision in the rows (batch,) where it is wanted, else the first."""
    return {
        name: torch.where(where.reshape(-1, *[1] * (old.ndim - 1)), second[name], old) for name, old in first.items()
    }


def _heard(call: Call, said: Tensor, offset: Tensor) -> Tensor:
    """`said` (batch, longest + 1) with this forward's tokens at their offsets (batch, positions) after the key token.

    The token at offset j goes to column j - 1; the last column takes what is no part of an answer.
    """
    if call.tokens is None:
        return said
    spare = said.shape[1] - 1
    part = (offset >= 1) & (offset <= spare)
    if offset.shape[1] > 1:  # padding on the right stays at the last real token's offset, and is not heard
        part[:, 1:] &= offset[:, 1:] != offset[:, :-1]
    column = torch.where(part, offset - 1, spare)
    return said.scatter(1, column, call.tokens)


def agreed(said: Tensor, slot: Tensor, routes: Routes) -> Tensor:
    """(batch,) how many tokens after the key token are, one after another, those of the edit's answer."""
    spans, answers = routes.spans.on(said.device)[slot], routes.answers.on(said.device)
    steps = torch.arange(said.shape[1] - 1, device=said.device)
    expected = answers[(spans[:, :1] + steps).clamp_max(len(answers) - 1)]
    same = (said[:, :-1] == expected) & (steps < spans[:, 1:])
    return same.long().cumprod(dim=1).sum(dim=1)


def _spans(start: int, answers: Sequence[Tensor]) -> Tensor:
    """(n, 2) where each of the answers lies behind those that end at `start`; see `Routes.spans`."""
    lengths = torch.tensor([len(answer) for answer in answers])
    return torch.stack([start + lengths.cumsum(0) - lengths, lengths], dim=1)
