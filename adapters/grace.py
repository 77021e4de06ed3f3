"""GRACE: General Retrieval Adapters for Continual Editing (Hartvigsen et al., NeurIPS 2023).

A codebook of balls in activation space decides, at the key token of each row, which edit applies; a learned value then
stands in for the model's own activation. Two forms:

- `values="per_token"` (default): one value per answer token, end token included, behind the last block. The value of
  the j-th token is written where that token is due: at the j-th position after the key token, as long as the tokens in
  between are the answer's own. Nothing before the final norm changes, so cached keys and values are the base model's,
  and a value is found through the final norm and the unembedding alone.
- `values="single"`: the published form, one value at the key token of a feed-forward's down projection in a late block;
  later blocks carry its effect on through attention.

Classifiers have one answer and no tokens to come: key and value are the input of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from editable.edit import Patch
from editable.editor import Call, Decision
from editable.inputs import Batch, Request
from editable.learn import Capture, Probe, at_columns, shortfall
from editable.memory.radius import Codebook, Placed
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows
from editable.site import Site, block_paths, classifier_head, down_projection, find_module, writes_text

RADIUS_SHARE = 0.5  # of the spread: no false fire on 800 unrelated questions, see benchmarks/radius
CLEARLY = 0.05  # of a radius: less does not tell two balls apart, and the longer prompt is meant
PUBLISHED_DEPTH = 0.93  # layer 27 of 30; the published configurations use 27 of 28 to 35 of 48


@dataclass(frozen=True)
class Entries:
    """The state: an immutable codebook and what each of its keys stands for.

    Args:
        book: keys and radii; one row per key.
        values: (m, features) all values, an edit's in a row.
        answers: (a,) all answer tokens, an edit's in a row.
        spans: (n, 4) of each key: first value, number of values, first answer token, number of answer tokens.
        firsts: (f,) the tokens that answers begin with, sorted; those of forgotten edits may be among them.
        longest: most tokens in any answer.
        count: live edits.
        on_disk: whether keys and values lie in files.
    """

    book: Codebook
    values: SparseRows
    answers: Rows
    spans: Rows
    firsts: NDArray[np.int64]
    longest: int = 0
    count: int = 0
    on_disk: bool = False

    def __len__(self) -> int:
        return self.count

    @classmethod
    def empty(
        cls, key_width: int = 0, value_width: int = 0, device: torch.device | str = "cpu", on_disk: bool = False
    ) -> Entries:
        """No entry yet."""
        return cls(
            Codebook.empty(key_width, device=device, on_disk=on_disk),
            SparseRows.of(Rows.on_disk(value_width) if on_disk else Rows.empty(value_width, device=device)),
            Rows.empty(dtype=torch.long, device=device),
            Rows.empty(4, dtype=torch.long, device=device),
            np.empty(0, np.int64),
            on_disk=on_disk,
        )


@dataclass(frozen=True)
class GRACE:
    """GRACE as an editor; the instance is the configuration.

    Args:
        values: one value per answer token behind the last block, or the published single value.
        keys: what is compared with the radius: the residual stream, or the wide input of a feed-forward's down
            projection, as published. None takes what goes best with `values`: the residual stream after the last block
            for values per token, the wide input for a single one.
        site: where the single value is written: a module path or glob; None chooses the down projection of a late
            block. For classifiers and per-token values the place is given by the model.
        radius: initial radius of a ball (Euclidean, in the key's space); None measures it: half the typical distance
            between unrelated inputs at the site.
        probability: what each answer token must reach at least when its value is learned.
        steps: most steps of learning per value.
        store: where keys and values are held while serving. On "disk" memory takes only short sketches of the keys, and
            the few keys that these leave in doubt are read from a temporary file: the same decisions, for models on
            the CPU and very many edits.
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

    @property
    def routes(self) -> bool:
        """Always: a row outside every ball is left alone."""
        return True

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Role to site; see the module docstring."""
        if self.values == "single" and (writes_text(model) or self.site):
            path = self._published_path(model)
            before = Site(_block_of(model, path), side="input") if self.keys == "residual" else Site(path, side="input")
            return {"key": before, "value": Site(path)}
        if not writes_text(model):
            head = Site(find_module(model, self.site) if self.site else classifier_head(model), side="input")
            return {"key": head, "value": head}
        last = find_module(model, self.site) if self.site else block_paths(model)[-1]
        wide = Site(down_projection(model, last), side="input") if self.keys == "wide" else Site(last)
        return {"key": wide, "value": Site(last)}

    def _published_path(self, model: nn.Module) -> str:
        if self.site:
            return find_module(model, self.site)
        blocks = block_paths(model)
        # Never in the last block: attention behind it is what carries the value to the answer's later tokens.
        depth = min(round(PUBLISHED_DEPTH * (len(blocks) - 1)), len(blocks) - 2)
        return down_projection(model, blocks[max(depth, 0)])

    def empty(self) -> Entries:
        """No entry yet; widths are taken from the first patch."""
        return Entries.empty(on_disk=self.store == "disk")

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Entries) -> Tensor:
        """Decide at the key site, write at the value site; rows (batch, positions, features)."""
        if not len(state):
            return rows
        if call.role == "key":
            _decide(call, rows, state)
            return rows
        return _write(call, rows, state)

    # Learning

    def learn(self, requests: Sequence[Request], state: Entries, probe: Probe) -> tuple[Entries, list[Patch]]:
        """One forward for all keys and warm starts, then every value by itself."""
        sites = self.sites(probe.model)
        batch = probe.reader.batch(requests)
        seen = probe.capture(batch, list(sites.values()))
        keys = at_columns(seen.rows[sites["key"]], _key_columns(batch)).float()
        values = self._learn_values(batch, seen, sites["value"], probe)
        radius = self._initial_radius(keys, sites["key"], probe)
        patches = []
        for index, request in enumerate(requests):
            own = (batch.requests == index).nonzero()[:, 0]
            state, patch = _enter(state, request, keys[own], values[index], radius)
            patches.append(patch)
        return state, patches

    def _initial_radius(self, keys: Tensor, site: Site, probe: Probe) -> float:
        if self.radius is not None:
            return self.radius
        # Without reference inputs (images) the scale of the activation itself has to do.
        return RADIUS_SHARE * (probe.spread(site) or 0.2 * float(keys.norm(dim=1).mean()))

    def _learn_values(self, batch: Batch, seen: Capture, site: Site, probe: Probe) -> list[Tensor]:
        """Values (k, features) of each request, learned on its prompt; rephrases share them."""
        first = torch.tensor([int((batch.requests == r).nonzero()[0]) for r in range(int(batch.requests.max()) + 1)])
        first = first.to(batch.requests.device)
        prompts, rows = batch.select(first), seen.rows[site][first]
        if self.values == "single" and prompts.columns is not None:
            return list(self._single(prompts, rows, site, probe)[:, None])
        return self._per_token(prompts, rows, site, probe)

    def _single(self, prompts: Batch, rows: Tensor, site: Site, probe: Probe) -> Tensor:
        replay = probe.replay(prompts, site)

        def loss(values: Tensor, which: Tensor) -> Tensor:
            return shortfall(replay(values, which), prompts.answers[which], self.probability).sum(dim=1)

        return probe.descend(loss, at_columns(rows, _key_columns(prompts)), self.steps, chunk=32)

    def _per_token(self, prompts: Batch, rows: Tensor, site: Site, probe: Probe) -> list[Tensor]:
        due = prompts.answers != -100  # (requests, longest answer)
        if prompts.columns is None:
            start = at_columns(rows, prompts.last_real)
        else:
            start = rows.gather(1, prompts.columns[..., None].expand(-1, -1, rows.shape[-1]))[due]
        targets, tail = prompts.answers[due], probe.tail(site)

        def loss(values: Tensor, which: Tensor) -> Tensor:
            return shortfall(tail(values), targets[which], self.probability)

        found = probe.descend(loss, start, self.steps)
        return list(found.split(due.sum(dim=1).tolist()))

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Entries) -> Entries:
        """The state with patches learned earlier."""
        return _insert(state, patches)

    def forget(self, edit_ids: frozenset[str], state: Entries) -> Entries:
        """The state as if those edits had never been inserted."""
        firsts = [rows[0] for rows in map(state.book.rows_of, edit_ids) if rows]
        values = [np.arange(start, start + count) for start, count in state.spans.view[firsts, :2].tolist()]
        return replace(
            state,
            book=state.book.forget(edit_ids),
            values=state.values.let_go(np.concatenate([np.empty(0, np.int64), *values])),
            count=state.count - len(firsts),
        )

    def conflicts(self, edit_id: str, state: Entries) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, ids of edits that answer otherwise and whose ball was split from its own)."""
        book = state.book
        placed = [book.placement(row) for row in book.rows_of(edit_id)]
        lost = {book.owner(row) for p in placed for row in p.superseded} - {None, edit_id}
        split = {book.owner(p.nearest) for p in placed if p.kind == "split"} - {None, edit_id}
        return tuple(sorted(str(o) for o in lost)), tuple(sorted(str(o) for o in split))

    def unit(self, edit_id: str, state: Entries) -> frozenset[str]:  # noqa: ARG002 - every edit by itself
        """The edit alone: values are learned independently of one another."""
        return frozenset({edit_id})


def _block_of(model: nn.Module, path: str) -> str:
    """The block that holds the module; the module itself where none does."""
    return next((block for block in block_paths(model) if path.startswith(f"{block}.")), path)


def _key_columns(batch: Batch) -> Tensor | None:
    return batch.last_real if batch.columns is None else batch.columns[:, 0]


def _decide(call: Call, rows: Tensor, state: Entries) -> None:
    """Which entry each row falls under, looked up at its key token; kept for the decode steps that follow."""
    if call.ordinal is not None and call.key is None:
        return  # a decode step, or an early chunk of the prompt
    best: Decision | None = None
    for lag in _lags(call, rows, state):
        row, share = state.book.find(call.at_key(rows, lag))
        found = _decision(call, rows, state, row, share, lag)
        best = found if best is None else _prefer(best, found, found["share"] < best["share"] - CLEARLY)
    assert best is not None
    call.decide(best if call.decision is None else _prefer(call.decision, best, best["hit"]))


def _lags(call: Call, rows: Tensor, state: Entries) -> list[int]:
    """How many answer tokens may already follow the prompt at the end of a row.

    A text that ends in an edit's prompt and the first tokens of its answer (a teacher-forced pass, a generation that is
    recomputed without a cache) has its key token before those. On the CPU the lags at which no answer starts are left
    out; on an accelerator looking would mean waiting for it, so all are tried.
    """
    if call.tokens is None or call.key is None or not call.is_sequence(rows):
        return [0]
    longest = min(state.longest, call.tokens.shape[1] - 1)
    if call.tokens.device.type != "cpu":
        return list(range(longest + 1))
    tokens, key, firsts = call.tokens.numpy(), call.key.numpy(), state.firsts
    columns = key[:, None] - np.arange(longest)  # (batch, longest): where an answer of 1, 2 ... tokens would start
    there = np.take_along_axis(tokens, columns.clip(0), axis=1)
    starts = firsts[np.searchsorted(firsts, there).clip(max=len(firsts) - 1)] == there
    return [0, *(np.flatnonzero((starts & (columns > 0)).any(axis=0)) + 1)]


def _decision(call: Call, rows: Tensor, state: Entries, row: Tensor, share: Tensor, lag: int) -> Decision:
    """The entry (batch,), how deep in its ball, the key token's ordinal, and the answer tokens seen after it."""
    origin = torch.zeros_like(row)
    said = row.new_full((len(row), state.longest + 1), -1)
    if call.key is not None and call.is_sequence(rows):
        ordinal = call.ordinals(rows)
        origin = ordinal.gather(1, (call.key - lag).clamp_min(0)[:, None])[:, 0]
        said = _heard(call, said, ordinal - origin[:, None])
        follows = (_agreed(said, row, state) >= lag) | (call.tokens is None)
        share = torch.where((call.key >= lag) & (origin >= 0) & follows, share, torch.inf)
    return {"row": row, "share": share, "hit": share <= 1, "origin": origin, "said": said}


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


def _agreed(said: Tensor, row: Tensor, state: Entries) -> Tensor:
    """(batch,) how many tokens after the key token are, one after another, those of the entry's answer."""
    spans, answers = state.spans.on(said.device)[row], state.answers.on(said.device)
    steps = torch.arange(said.shape[1] - 1, device=said.device)
    expected = answers[(spans[:, 2:3] + steps).clamp_max(len(answers) - 1)]
    same = (said[:, :-1] == expected) & (steps < spans[:, 3:4])
    return same.long().cumprod(dim=1).sum(dim=1)


def _write(call: Call, rows: Tensor, state: Entries) -> Tensor:
    """Put each row's value where it is due."""
    decision = call.decision
    if decision is None or call.after_prompt > state.longest:
        return rows
    row, hit, said = decision["row"], decision["hit"], decision["said"]
    offset = call.ordinals(rows) - decision["origin"][:, None]  # (batch, positions)
    spans = state.spans.on(rows.device)[row]
    due = hit[:, None] & (offset >= 0) & (offset < spans[:, 1:2])
    if call.tokens is not None and call.is_sequence(rows):
        said = _heard(call, said, offset)
        call.decide({**decision, "said": said})
        due &= offset <= _agreed(said, row, state)[:, None]
    values = state.values.at(spans[:, :1] + offset * due)  # (batch, positions, features)
    return torch.where(due[..., None], values.to(rows.dtype), rows)


def _enter(state: Entries, request: Request, keys: Tensor, values: Tensor, radius: float) -> tuple[Entries, Patch]:
    """The state with one newly learned edit, and its patch, which says how each key was placed."""
    tensors = {"keys": keys, "values": values, "answer": torch.tensor(request.answer)}
    meta = {"radius": radius}
    patch = Patch(request.id, {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}, meta)
    state = _insert(state, [patch], keys.device)
    first = len(state.book) - len(keys)
    placed = [_plain(state.book.placement(row)) for row in range(first, len(state.book))]
    return state, replace(patch, meta={**meta, "placed": placed})


def _insert(state: Entries, patches: Sequence[Patch], device: torch.device | str | None = None) -> Entries:
    """All of them in one go, which costs each of many a fraction of what it costs one."""
    if not patches:
        return state
    keys, values, answers = ([p.tensors[name] for p in patches] for name in ("keys", "values", "answer"))
    if len(state.spans) == 0:
        state = Entries.empty(keys[0].shape[1], values[0].shape[1], device or "cpu", state.on_disk)
    return replace(
        state,
        book=_with_keys(state.book, patches),
        values=state.values.append(torch.cat(values)),
        answers=state.answers.append(torch.cat(answers)),
        spans=state.spans.append(_spans(state, patches)),
        firsts=_with_firsts(state.firsts, {int(answer[0]) for answer in answers}),
        longest=max(state.longest, *(answer.shape[0] for answer in answers)),
        count=state.count + len(patches),
    )


def _spans(state: Entries, patches: Sequence[Patch]) -> Tensor:
    """(keys, 4) of the keys of all patches; see `Entries.spans`."""
    value, answer, spans = len(state.values), len(state.answers), []
    for keys, values, tokens in ([p.tensors[n].shape[0] for n in ("keys", "values", "answer")] for p in patches):
        spans += [(value, values, answer, tokens)] * keys
        value, answer = value + values, answer + tokens
    return torch.tensor(spans)


def _with_keys(book: Codebook, patches: Sequence[Patch]) -> Codebook:
    """The book with every key of every patch, placed as it is recorded or, where it is not, by looking."""
    labels: list[tuple[int, ...]] = []
    owners: list[str] = []
    radii: list[float] = []
    placed: list[Placed | None] = []
    for patch in patches:
        count = patch.tensors["keys"].shape[0]
        labels += [tuple(patch.tensors["answer"].tolist())] * count
        owners += [patch.edit_id] * count
        radii += [patch.meta["radius"]] * count
        placed += [_placed(plain) for plain in patch.meta.get("placed", ())] or [None] * count
    keys = torch.cat([patch.tensors["keys"] for patch in patches])
    return book.add_all(keys.to(book.keys.device), labels, owners, radii, placed)


def _with_firsts(firsts: NDArray[np.int64], tokens: set[int]) -> NDArray[np.int64]:
    new = tokens.difference(firsts.tolist()) if len(tokens) > 1 or next(iter(tokens)) not in firsts else ()
    return np.union1d(firsts, np.fromiter(new, np.int64)) if new else firsts


def _plain(placed: Placed) -> list[object]:
    """As JSON; the distance as a hexadecimal float, which is exact."""
    return [placed.kind, placed.nearest, placed.distance.hex(), list(placed.superseded)]


def _placed(plain: Sequence[object]) -> Placed:
    kind, nearest, distance, superseded = plain
    return Placed(kind, nearest, float.fromhex(str(distance)), tuple(superseded))  # type: ignore[arg-type]
