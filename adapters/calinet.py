"""CaliNet: calibrating factual knowledge in pretrained language models (Dong et al., Findings of EMNLP 2022).

A bank of calibration slots stands beside the feed-forward of a late layer, or of several:
y = FFN(x) + σ(x·K̃ᵀ - θ)·Ṽ, with x what the feed-forward reads. Slots are found by content, token by token: whatever
activates a slot's key gets its value, a template that was never shown included. One bank is learned for a whole set of
edits with their rephrases, and none of them can be taken out of it alone; later edits open a bank of their own.

Where the published form starts from a random side path, ours starts from values of zero, so that learning begins at the
base model; slots speak above a threshold θ and are held back where the model reads other text: reference prompts and
what the frozen model itself goes on to say after them. A token that meets no key keeps every bit of its row; that none
does cannot be promised, so `routes` is False. What slots give is added behind the block, to the residual stream, as in
the paper's formula: a norm behind the feed-forward (Gemma) does not squeeze it.

Image classifiers without linear feed-forwards (convolutional networks) get their slots beside the head: they read the
pooled features and add to the logits.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from editable.edit import ModelInput, Patch
from editable.editor import Call
from editable.errors import InputError, SiteError
from editable.inputs import Arguments, Batch, Reader, Request
from editable.learn import Probe, at_answers, at_columns, shortfall
from editable.memory.rows import Rows
from editable.site import Site, block_paths, classifier_head, feed_forward, writes_text

TOGETHER = 64  # siblings read in one forward
LATE = 3  # blocks with slots: wordings that were not shown find their facts there, which in the last alone fewer do
TINY = 1e-12  # under a root, which has no slope at 0
STILL = 0.02  # of what they are added to slots may add elsewhere, in the mean over tokens and summed over places
HELD_BACK = 512  # tokens of each kind of other text that every step looks at

Slots = tuple[Tensor, ...]
"""Of one place: keys (slots, features), gates likewise where the form has them, and last values (slots, features)."""


@dataclass(frozen=True, eq=False)
class Bank:
    """What was learned as one.

    Args:
        slots: place to slots.
        edits: the edits it was learned for, each with its patch.
        inputs: of each edit a digest of every input it was learned on.
    """

    slots: Mapping[str, Slots]
    edits: Mapping[str, Patch] = field(default_factory=dict)
    inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Banks:
    """The state: banks in the order they were learned, and the slots of all of them side by side.

    Args:
        banks: name (the first edit's id) to bank.
        slots: place to the slots of all banks, as rows; what these give is the sum over banks.
    """

    banks: Mapping[str, Bank] = field(default_factory=dict)
    slots: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(bank.edits) for bank in self.banks.values())

    def opened(self, name: str, slots: Mapping[str, Slots]) -> Banks:
        """With one bank more, which no edit belongs to yet."""
        beside = {place: _appended(self.slots.get(place), own) for place, own in slots.items()}
        return Banks({**self.banks, name: Bank(slots)}, {**self.slots, **beside})

    def joined(self, name: str, patch: Patch) -> Banks:
        """With one edit more in a bank that is open."""
        bank = self.banks[name]
        edits, inputs = {**bank.edits, patch.edit_id: patch}, {**bank.inputs, patch.edit_id: _digests(patch.tensors)}
        return replace(self, banks={**self.banks, name: replace(bank, edits=edits, inputs=inputs)})

    def at(self, place: str, device: torch.device) -> Slots:
        """The slots of one place."""
        return tuple(rows.on(device) for rows in self.slots.get(place, ()))


@dataclass(frozen=True)
class CaliNet:
    """CaliNet as an editor; the instance is the configuration.

    Args:
        layers: blocks whose feed-forwards get slots, counted from 0, from the end where negative; None takes the last
            three (the paper's script takes the last).
        slots: most of one bank, in each of its layers; it has no more than two for each of its edits' tokens (paper: 64
            for 100 facts, 256 for question answering, learned in 5,000 steps and more).
        form: how a slot is activated: "relu" as beside T5's feed-forward, so that slots that see nothing of theirs add
            exactly 0; or "gated" as beside T5.1.1's, GELU(x·K̃ᵀ - θ) times a second linear read. Either can stand beside
            any feed-forward, a gated one included.
        probability: what each answer token must reach at least.
        steps: most steps of learning a bank.
        rate: Adam's learning rate at first; it falls evenly to 0.
        threshold: θ, how far a key must be met before its slot says anything; its own token meets it at 1 at first. 0
            is the published form, under which half of all text is moved a little.
        hold: weight of what slots add elsewhere against the edits' own loss: where the model reads other text, the
            edits' prompts about each other's subjects and about mixed-up names, and the locality inputs of the edits.
    """

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "soft, per token, by the slots' keys",
            "effect": "calibration slots beside feed-forwards",
            "training": "none",
        }
    )
    """What the method is, in the columns of the survey's Table 3."""

    layers: tuple[int, ...] | None = None
    slots: int = 256
    form: Literal["relu", "gated"] = "relu"
    probability: float = 0.98
    steps: int = 400
    rate: float = 0.05
    threshold: float = 0.8
    hold: float = 1.25

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # a list, where it comes from JSON
        if self.slots < 1:
            raise InputError(f"CaliNet.slots is {self.slots}, expected at least 1 slot.")

    @property
    def routes(self) -> bool:
        """False: any token whose activation meets a key is changed, whatever row it is in."""
        return False

    def sites(self, model: nn.Module) -> Mapping[str, Site]:
        """Two roles for each place: "0.input" is read, "0.output" is added to."""
        roles: dict[str, Site] = {}
        for place, (read, added) in enumerate(self._pairs(model)):
            roles |= {f"{place}.input": read, f"{place}.output": added}
        return roles

    def _pairs(self, model: nn.Module) -> list[tuple[Site, Site]]:
        """At each place what is read, and what is added to: the residual stream behind the block."""
        try:
            return [(feed_forward(model, block).input, Site(block)) for block in self._blocks(model)]
        except SiteError:
            if self.layers is not None or writes_text(model):
                raise
            head = classifier_head(model)
            return [(Site(head, side="input"), Site(head))]

    def _blocks(self, model: nn.Module) -> list[str]:
        blocks = block_paths(model)
        if self.layers is None:
            return blocks[-LATE:]
        wrong = [layer for layer in self.layers if not -len(blocks) <= layer < len(blocks)]
        if wrong or not self.layers:
            raise SiteError(
                f"CaliNet.layers is {self.layers}, expected at least one, each from {-len(blocks)} to "
                f"{len(blocks) - 1}, since {type(model).__name__} has {len(blocks)} blocks."
            )
        return [blocks[layer] for layer in sorted({layer % len(blocks) for layer in self.layers})]

    def empty(self) -> Banks:
        """No bank yet."""
        return Banks()

    # Serving

    def apply(self, call: Call, rows: Tensor, state: Banks) -> Tensor:
        """Read at a place's input, add at its output; rows (batch, positions, features)."""
        if not len(state):
            return rows
        place, side = call.role.split(".")
        if side == "input":
            call.memo[call.editor, place] = rows
            return rows
        read = call.memo.pop((call.editor, place))
        return rows + beside(read, state.at(place, rows.device), self.threshold).to(rows.dtype)

    # Learning

    def learn(self, requests: Sequence[Request], state: Banks, probe: Probe) -> tuple[Banks, list[Patch]]:
        """Learn one bank for all of them, beside the banks there are, which stay as they are.

        The edits of those are asked for again all the while, so that they are still right beside the new bank.
        """
        wanted, sites = _last_said(requests), self.sites(probe.model)
        batch = probe.reader.batch([*wanted, *_earlier(requests, state, probe)])
        asked = [kind for kind in (_siblings(wanted, probe), _locality(wanted, probe)) if kind]
        places = self._places(probe, sites, state, probe.reader.batch(wanted), asked)
        rest = probe.resume(batch, next(iter(sites.values())))

        def loss(moving: Sequence[Tensor], rows: Tensor) -> Tensor:
            with self._acting(probe, sites, state, _slots(moving, places)):
                logits = rest(rows)
            return shortfall(logits, batch.answers[rows], self.probability).sum(dim=1)

        start = self._start(places, min(self.slots, 2 * len(places[0].own)))
        kinds = sum(len(place.elsewhere) for place in places)
        keep, still = (self._holding(places), self.hold * STILL * kinds) if self.hold and kinds else (None, math.inf)
        found = probe.descend_jointly(
            loss, start, len(batch), self.steps, self.rate, keep=keep, still=still, cooling=True
        )
        return _enter(state, requests, _slots(found, places))

    def _places(
        self,
        probe: Probe,
        sites: Mapping[str, Site],
        state: Banks,
        batch: Batch,
        asked: Sequence[Sequence[Batch]],
    ) -> list[Place]:
        """Where slots stand, and what is read there: in the edits, in reference text, where other things are asked."""
        rows, reference = self._capture(probe, sites, state, batch), probe.reference()
        said = [] if reference is None else [(reference, self._capture(probe, sites, state, reference))]
        others = [[(one, self._capture(probe, sites, state, one)) for one in kind] for kind in asked]
        places = []
        for name in (role.removesuffix(".input") for role in sites if role.endswith(".input")):
            role, given = f"{name}.input", rows[f"{name}.output"]
            pools = [torch.cat([_real_rows(one, read[role]) for one, read in kind]) for kind in (said, *others) if kind]
            pools += [torch.cat([_due_rows(one, read[role]) for one, read in kind]) for kind in others]
            own = _own(batch, rows[role])
            norm, size = own.norm(dim=1).mean().clamp_min(TINY), given.abs().median().clamp_min(TINY)
            places.append(Place(name, own, tuple(pools), norm, size, given.shape[-1]))
        return places

    @contextmanager
    def _acting(
        self, probe: Probe, sites: Mapping[str, Site], state: Banks, new: Mapping[str, Slots] | None = None
    ) -> Iterator[None]:
        """Inside, the probe's model has the state's slots beside it, and new ones."""
        held: dict[str, Tensor] = {}

        def act(role: str, rows: Tensor) -> Tensor:
            place, side = role.split(".")
            if side == "input":
                held[place] = rows
                return rows
            for slots in (state.at(place, rows.device), (new or {}).get(place)):
                rows = rows + beside(held[place], slots, self.threshold).to(rows.dtype) if slots else rows
            return rows

        with probe.acting(sites, act):
            yield

    def _capture(self, probe: Probe, sites: Mapping[str, Site], state: Banks, batch: Batch) -> dict[str, Tensor]:
        """Role to rows (batch, positions, features), the state's slots acting."""
        with self._acting(probe, sites, state):
            seen = probe.capture(batch, list(sites.values())).rows
        return {role: seen[site].float() for role, site in sites.items()}

    def _start(self, places: Sequence[Place], count: int) -> list[Tensor]:
        """Of each place keys that its own tokens activate at 1 and the usual one at 0, and values of zero."""
        draw, start = torch.Generator().manual_seed(count), list[Tensor]()
        for place in places:
            order = torch.randperm(len(place.own), generator=draw).repeat(-(-count // len(place.own)))[:count]
            keys = keys_for(place.own[order.to(place.own.device)], place.usual) * place.read_norm
            gates = [keys] if self.form == "gated" else []
            start += [keys, *gates, keys.new_zeros((count, place.width))]
        return start

    def _holding(self, places: Sequence[Place]) -> Callable[[Sequence[Tensor]], Tensor]:
        """Size of what slots add at a draw of tokens elsewhere, in units of what they are added to.

        Its root mean square over features, not the square: that would let many tokens be moved a little.
        """
        draw = torch.Generator().manual_seed(0)
        every = [(place, pool) for place in places for pool in place.elsewhere]

        def hold(moving: Sequence[Tensor]) -> Tensor:
            slots, added = _slots(moving, places), list[Tensor]()
            for place, pool in every:
                drawn = torch.randint(len(pool), (HELD_BACK,), generator=draw).to(pool.device)
                given = beside(pool[drawn], slots[place.name], self.threshold)
                added.append((given.square().mean(dim=1) + TINY).sqrt().mean() / place.given)
            return self.hold * torch.stack(added).sum()

        return hold

    # The edit set

    def insert(self, patches: Sequence[Patch], state: Banks) -> Banks:
        """The state with patches learned earlier; the first of a bank brings its slots."""
        for patch in patches:
            name = patch.meta["bank"]
            if name == patch.edit_id:
                state = state.opened(name, _slots_of(patch))
            if name not in state.banks:
                raise InputError(
                    f"Patch of edit {patch.edit_id!r} belongs to the bank of edit {name!r}, which is not there, "
                    "expected that edit's patch before it; insert all patches of a bank, in order."
                )
            state = state.joined(name, patch)
        return state

    def forget(self, edit_ids: frozenset[str], state: Banks) -> Banks:
        """The state without the banks of those edits, as if they had never been opened."""
        left = [bank for bank in state.banks.values() if not edit_ids.intersection(bank.edits)]
        if len(left) == len(state.banks):
            return state
        return self.insert([patch for bank in left for patch in bank.edits.values()], self.empty())

    def conflicts(self, edit_id: str, state: Banks) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids of earlier edits of one of its inputs, ())."""
        inputs = {one: found for bank in state.banks.values() for one, found in bank.inputs.items()}
        earlier = list(inputs)[: list(inputs).index(edit_id)]
        return tuple(sorted(one for one in earlier if inputs[one] & inputs[edit_id])), ()

    def unit(self, edit_id: str, state: Banks) -> frozenset[str]:
        """The edits of its bank."""
        return next(frozenset(bank.edits) for bank in state.banks.values() if edit_id in bank.edits)


def beside(reads: Tensor, slots: Slots, threshold: float = 0.0) -> Tensor:
    """σ(x·K̃ᵀ - θ)·Ṽ (..., features out) of what a feed-forward reads (..., features in), in float32.

    σ is ReLU; with gates G (three tensors) it is GELU(x·K̃ᵀ - θ) * (x·Gᵀ), as T5.1.1 has it (section 3.2).
    """
    keys, *gates, values = slots
    active = reads.float() @ keys.T - threshold
    active = functional.gelu(active, approximate="tanh") * (reads.float() @ gates[0].T) if gates else active.relu()
    return active @ values


def keys_for(reads: Tensor, usual: Tensor) -> Tensor:
    """Keys (n, features) with k·q = 1 for each of `reads` (n, features) and k·u = 0 for the usual one (features,)."""
    along = (reads @ usual) / usual.square().sum().clamp_min(TINY)
    apart = reads - along[:, None] * usual
    return apart / apart.square().sum(dim=1, keepdim=True).clamp_min(TINY)


# What is read while a bank is learned


@dataclass(frozen=True, eq=False)
class Place:
    """One feed-forward, and what it reads.

    Args:
        name: as in the roles of its sites.
        own: (n, features) of the edits' tokens at which something can be added: where keys start.
        elsewhere: (tokens, features) each, where no edit is meant: tokens of reference text, of siblings, and of what
            the edits were told to leave alone; and of the latter two those where answers would be due.
        read_norm: typical norm of what is read.
        given: typical size of one number of what is added to.
        width: of what is added to.
    """

    name: str
    own: Tensor
    elsewhere: tuple[Tensor, ...]
    read_norm: Tensor
    given: Tensor
    width: int

    @property
    def usual(self) -> Tensor:
        """(features,) the mean of what is read elsewhere."""
        return torch.cat(self.elsewhere).mean(dim=0) if self.elsewhere else torch.zeros_like(self.own[0])


def _own(batch: Batch, reads: Tensor) -> Tensor:
    """(n, features) of reads (rows, positions, features) where answer tokens are due.

    Classifiers read their answer from the first position or from the mean.
    """
    if batch.columns is None:
        return torch.cat([reads[:, 0], reads.mean(dim=1)])
    return at_answers(reads, batch)


def _real_rows(batch: Batch, rows: Tensor) -> Tensor:
    """(tokens, features) of rows (batch, positions, features), padding left out."""
    return rows[_real(batch, rows)]


def _due_rows(batch: Batch, rows: Tensor) -> Tensor:
    """(n, features) of rows (batch, positions, features) where an answer is due: the last token, or any real one."""
    return _real_rows(batch, rows) if batch.columns is None else at_columns(rows, batch.last_real)


def _real(batch: Batch, rows: Tensor) -> Tensor:
    """(batch, positions) which are no padding."""
    for name in ("decoder_attention_mask", "attention_mask"):
        mask = batch.arguments.get(name)
        if mask is not None and mask.shape == rows.shape[:2]:
            return mask.bool()
    return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)


def _siblings(requests: Sequence[Request], probe: Probe) -> list[Batch]:
    """The edits' own prompts about others: slots have to tell these apart, not know a template alone.

    Each prompt once about another edit's subject, and once about a name made of words of all of them. Only decoders'
    edits that say their subject have siblings.
    """
    reader = probe.reader
    subjects = list(dict.fromkeys(r.edit.subject for r in requests if r.edit.subject))
    if len(subjects) < 2 or not reader.text or reader.seq2seq or reader.tokenizer is None:
        return []
    said = [(text, str(r.edit.subject)) for r in requests if r.edit.subject for text in _texts(r, probe)]
    draw, words = random.Random(len(said)), [word for subject in subjects for word in subject.split()]
    found = dict[str, None]()
    for text, subject in said:
        mixed = " ".join(draw.choice(words) for _ in subject.split())
        for other in (draw.choice([one for one in subjects if one != subject]), mixed):
            found[text.replace(subject, other)] = None
    own = {text for text, _ in said}
    return _in_batches([text for text in found if text not in own], probe)


def _locality(requests: Sequence[Request], probe: Probe) -> list[Batch]:
    """What the edits were told to leave alone."""
    return _in_batches([one for request in requests for one in request.edit.locality], probe)


def _in_batches(inputs: Sequence[ModelInput], probe: Probe) -> list[Batch]:
    """Inputs to which no answer is due, those of a length together."""
    reader = probe.reader
    each = [reader.forward(one) for one in inputs]
    if each and "input_ids" in each[0]:
        each = sorted(each, key=lambda one: one["input_ids"].shape[1])
    return [_unanswered(reader, each[start : start + TOGETHER]) for start in range(0, len(each), TOGETHER)]


def _unanswered(reader: Reader, inputs: Sequence[Arguments]) -> Batch:
    nothing = torch.full((len(inputs), 1), -100, device=reader.device)
    columns = torch.zeros_like(nothing) if reader.text else None
    return Batch(reader.stack(inputs), columns, nothing, nothing[:, 0])


def _texts(request: Request, probe: Probe) -> list[str]:
    """Its prompts as text; those of an edit that is learned again are known by their tokens only."""
    return [
        str(probe.reader.tokenizer.decode(one["input_ids"][0], skip_special_tokens=True))
        for one in request.prompts
        if "input_ids" in one
    ]


def _earlier(requests: Sequence[Request], state: Banks, probe: Probe) -> list[Request]:
    """What was learned before, where it is not edited again."""
    anew = frozenset().union(*(_digests(request.kept) for request in requests))
    described = {"target": None, "subject": None, "namespace": "default"}
    live = {one: bank for bank in state.banks.values() for one in bank.edits}
    found, later = list[Request](), anew
    for edit_id, bank in reversed(live.items()):
        if not bank.inputs[edit_id] & later:
            found.append(probe.reader.again(edit_id, described, bank.edits[edit_id].tensors))
        later |= bank.inputs[edit_id]
    return found


def _slots(moving: Sequence[Tensor], places: Sequence[Place]) -> dict[str, Slots]:
    """Place to slots, of tensors that move in units of what is read and added to there, so many to each place."""
    size, found = len(moving) // len(places), dict[str, Slots]()
    for index, place in enumerate(places):
        *reading, values = moving[index * size : (index + 1) * size]
        found[place.name] = (*(one / place.read_norm for one in reading), values * place.given)
    return found


# The edit set


def _last_said(requests: Sequence[Request]) -> list[Request]:
    """Those whose inputs no later one has too."""
    later: frozenset[str] = frozenset()
    found: list[Request] = []
    for request in reversed(requests):
        inputs = _digests(request.kept)
        if not inputs & later:
            found.append(request)
        later |= inputs
    return found[::-1]


def _digests(kept: Mapping[str, Tensor]) -> frozenset[str]:
    """A digest of each input that a request or its patch carries."""
    inputs: dict[str, Any] = {}
    for name, tensor in sorted(kept.items()):
        if name.startswith("prompt."):
            number, argument = name.split(".", 2)[1:]
            found = inputs.setdefault(number, hashlib.sha256())
            found.update(f"{argument} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return frozenset(found.hexdigest() for found in inputs.values())


def _enter(state: Banks, requests: Sequence[Request], slots: Mapping[str, Slots]) -> tuple[Banks, list[Patch]]:
    """The state with a newly learned bank, and the patch of each edit; the first one brings the slots."""
    name = requests[0].id
    learned = {f"slots.{place}.{part}": one for place, own in slots.items() for part, one in enumerate(own)}
    patches = []
    for request in requests:
        tensors = {**request.kept, **(learned if request.id == name else {})}
        plain = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        patches.append(Patch(request.id, plain, {"bank": name}))
    state = state.opened(name, slots)
    for patch in patches:
        state = state.joined(name, patch)
    return state, patches


def _slots_of(patch: Patch) -> dict[str, Slots]:
    """Place to slots, as a bank's first patch carries them."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in patch.tensors.items():
        if name.startswith("slots."):
            place, part = name.split(".")[1:]
            found.setdefault(place, {})[int(part)] = tensor
    return {place: tuple(parts[i] for i in sorted(parts)) for place, parts in sorted(found.items())}


def _appended(rows: tuple[Rows, ...] | None, slots: Slots) -> tuple[Rows, ...]:
    rows = rows or tuple(Rows.empty(one.shape[1], device=one.device) for one in slots)
    return tuple(before.append(one.to(before.view.device)) for before, one in zip(rows, slots, strict=True))
