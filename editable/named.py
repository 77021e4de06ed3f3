"""Low-rank adapters that are on for every row, or for the rows that ask for them by name.

An adapter is what was learned jointly from all edits of one namespace; the namespace is its name. Each edit that joins
has it learned again, so the latest one learned serves. Knows no editor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.deltas import Delta, Stack, add, add_each, fed, packed, unpacked
from editable.edit import Patch
from editable.editor import BASE, Call, Decision
from editable.errors import InputError
from editable.inputs import Request
from editable.learn import Probe
from editable.tuning import Recipe, tune

DEFAULT = "default"
"""The adapter of rows that ask for none: that of edits which name no namespace."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One live edit.

    Args:
        name: of its adapter.
        kept: what it takes to learn it again; nothing where the adapter came from elsewhere.
        prints: digests of its prompts.
        answer: its tokens, or one label.
        superseded: the edits whose place it took.
    """

    name: str
    kept: Mapping[str, Tensor]
    prints: frozenset[bytes]
    answer: tuple[int, ...]
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was learned as one.

    Args:
        name: its namespace.
        edits: ids of the edits it was learned from.
        deltas: path to delta.
    """

    name: str
    edits: frozenset[str]
    deltas: Mapping[str, Delta]


@dataclass(frozen=True, eq=False)
class Adapters:
    """The state: edits, and adapters in the order in which they were learned.

    An adapter that a later one of its name has taken the place of is kept where it was learned from edits that the
    later one was not: it serves again when the later one is forgotten.
    """

    edits: Mapping[str, Asked] = field(default_factory=lambda: MappingProxyType({}))
    adapters: tuple[Adapter, ...] = ()

    def __len__(self) -> int:
        return len(self.edits)

    @cached_property
    def serving(self) -> Mapping[str, Adapter]:
        """Name to the adapter that serves it."""
        return {adapter.name: adapter for adapter in self.adapters}

    # Serving

    def apply(self, call: Call, rows: Tensor) -> Tensor:
        """Rows (batch, positions, features) of the layer at `call.role`, with each row's delta."""
        if call.adapters is not None and call.decision is None:
            call.decide(self._decision(call.adapters, len(rows)))
        if call.decision is None:
            return self._with_one(call, rows, self.serving.get(DEFAULT))
        numbers = call.decision["number"].numpy()
        if (numbers == numbers[0]).all():
            one = None if numbers[0] < 0 else list(self.serving.values())[numbers[0]]
            return self._with_one(call, rows, one)
        if call.role not in self._stacks:
            return rows
        stack, place = self._stacks[call.role]
        where = torch.from_numpy(np.where(numbers < 0, -1, place[numbers])).to(rows.device, non_blocking=True)
        return add_each(rows, fed(call), stack, where.clamp_min(0), where[:, None] >= 0)

    def _decision(self, asked: Sequence[str], batch: int) -> Decision:
        """The number of each row's adapter, -1 for none. On the CPU: where all are the same, one product will do."""
        if batch % len(asked):
            raise InputError(
                f"adapters has {len(asked)} names for {batch} rows, expected one name a row; name them in their order."
            )
        order = {name: number for number, name in enumerate(self.serving)} | {BASE: -1}
        numbers = torch.tensor([order.get(name, -1) for name in asked]).repeat_interleave(batch // len(asked))
        return {"number": numbers, "hit": numbers >= 0}

    @staticmethod
    def _with_one(call: Call, rows: Tensor, adapter: Adapter | None) -> Tensor:
        delta = None if adapter is None else adapter.deltas.get(call.role)
        return rows if delta is None else add(rows, fed(call), delta)

    @cached_property
    def _stacks(self) -> Mapping[str, tuple[Stack, NDArray[np.int64]]]:
        """Path to the deltas there, and where among them each adapter's is; -1 for one that has none there."""
        serving = list(self.serving.values())
        paths = dict.fromkeys(path for adapter in serving for path in adapter.deltas)
        return {path: self._stacked([adapter.deltas.get(path) for adapter in serving]) for path in paths}

    @staticmethod
    def _stacked(deltas: Sequence[Delta | None]) -> tuple[Stack, NDArray[np.int64]]:
        there = np.array([delta is not None for delta in deltas])
        return Stack.of([delta for delta in deltas if delta is not None]), np.where(there, there.cumsum() - 1, -1)

    # Learning

    def learn(
        self, requests: Sequence[Request], probe: Probe, paths: Sequence[str], recipe: Recipe
    ) -> tuple[Adapters, list[Patch]]:
        """Learn the adapter of every namespace among the requests again, with them."""
        state, patches = self, dict[str, Patch]()
        for name in dict.fromkeys(request.edit.namespace for request in requests):
            own = [request for request in requests if request.edit.namespace == name]
            state, found = state._joined(name, own, probe, paths, recipe)
            patches.update({patch.edit_id: patch for patch in found})
        return state, [patches[request.id] for request in requests]

    def _joined(
        self, name: str, requests: Sequence[Request], probe: Probe, paths: Sequence[str], recipe: Recipe
    ) -> tuple[Adapters, list[Patch]]:
        self._refuse_foreign(name)
        patches = [_patch(name, request) for request in requests]
        asked = self.insert(patches)._asked(name)  # tells which edits lose their place, before anything is learned
        lost = {edit_id for one in asked.values() for edit_id in one.superseded}
        about = {"target": None, "subject": None, "namespace": name}
        learned = [probe.reader.again(i, about, one.kept) for i, one in asked.items() if i not in lost]
        before = self.serving.get(name)
        start = before.deltas if before is not None and list(before.deltas) == list(paths) else None
        (deltas,) = tune(probe, probe.reader.batch(learned), paths, recipe, start=start)
        tensors, meta = packed(deltas)
        first = patches[0]
        carried = {**first.tensors, **_copied(tensors)}
        patches[0] = Patch(first.edit_id, carried, {**first.meta, **meta, "edits": sorted(asked)})
        return self.insert(patches), patches

    def _asked(self, name: str) -> dict[str, Asked]:
        return {edit_id: one for edit_id, one in self.edits.items() if one.name == name}

    def _refuse_foreign(self, name: str) -> None:
        foreign = [edit_id for edit_id, one in self._asked(name).items() if not one.kept]
        if foreign:
            raise InputError(
                f"The adapter {name!r} was loaded from a folder (as edit {foreign[0]!r}), expected one that was "
                "learned here, since what it was trained on is not known; give the edit another namespace."
            )

    # The edit set

    def insert(self, patches: Sequence[Patch]) -> Adapters:
        """With patches learned earlier."""
        state = self
        for patch in patches:
            state = state._inserted(patch)
        return state

    def _inserted(self, patch: Patch) -> Adapters:
        name, deltas, members = patch.meta["adapter"], unpacked(patch), frozenset(patch.meta.get("edits", ()))
        adapters = self.adapters
        if deltas:
            kept = (one for one in adapters if one.name != name or not one.edits <= members)
            adapters = (*kept, Adapter(name, members, MappingProxyType(deltas)))
        own = {n: tensor for n, tensor in patch.tensors.items() if n == "answer" or n.startswith("prompt.")}
        answer, prints = tuple(own["answer"].tolist()) if own else (), _prints(own)
        asked = Asked(name, own, prints, answer, self._superseded(name, prints, answer, members))
        return Adapters(MappingProxyType({**self.edits, patch.edit_id: asked}), adapters)

    def _superseded(
        self, name: str, prints: frozenset[bytes], answer: tuple[int, ...], members: frozenset[str]
    ) -> tuple[str, ...]:
        """Edits of that name with one of these prompts and another answer, and those that a new adapter leaves out."""
        there = self._asked(name)
        lost = {edit_id for one in there.values() for edit_id in one.superseded}
        return tuple(
            edit_id
            for edit_id, one in there.items()
            if edit_id not in lost
            and ((one.prints & prints and one.answer != answer) or (members and edit_id not in members))
        )

    def forget(self, edit_ids: frozenset[str]) -> Adapters:
        """As if those edits had never been inserted; they come in whole units."""
        left = {edit_id: one for edit_id, one in self.edits.items() if edit_id not in edit_ids}
        return Adapters(MappingProxyType(left), tuple(one for one in self.adapters if not one.edits & edit_ids))

    def conflicts(self, edit_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(ids the edit superseded, none: nothing has a scope to be parted)."""
        return tuple(sorted(one for one in self.edits[edit_id].superseded if one in self.edits)), ()

    def unit(self, edit_id: str) -> frozenset[str]:
        """All that was learned with the edit, directly or through others."""
        unit, before = frozenset({edit_id}), frozenset[str]()
        while unit != before:
            before = unit
            unit = unit.union(*(adapter.edits for adapter in self.adapters if adapter.edits & unit))
        return unit & self.edits.keys()

    def names(self) -> Collection[str]:
        """Of the adapters."""
        return self.serving.keys()


def _patch(name: str, request: Request) -> Patch:
    return Patch(request.id, _copied(request.kept), {"adapter": name})


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _prints(kept: Mapping[str, Tensor]) -> frozenset[bytes]:
    """One digest for each prompt; of its tokens alone where it has such."""
    prompts: dict[str, list[bytes]] = {}
    for name in sorted(kept):
        _, _, rest = name.partition("prompt.")
        number, _, argument = rest.partition(".")
        tokens = f"prompt.{number}.input_ids"
        if rest and (argument == "input_ids" or tokens not in kept):
            raw = kept[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            prompts.setdefault(number, []).append(f"{argument}{tuple(kept[name].shape)}".encode() + raw)
    return frozenset(hashlib.sha256(b"".join(parts)).digest() for parts in prompts.values())
