"""Where edits are learned and tried out before anyone sees them: a shadow of the model with hooks of its own.

The served modules are never touched here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from editable import verify
from editable.edit import Verification
from editable.editor import Editor
from editable.hooks import Hooks
from editable.inputs import Reader, Request
from editable.learn import Probe, reference_prompts, shadow_of, shares_storage
from editable.site import Site, block_paths
from editable.snapshot import Snapshot

Conflicts = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Edit id to (ids it superseded, ids it was parted from)."""


class Workshop:
    """One writer's place. Makes its shadow when it is first needed, and again when the model has moved."""

    def __init__(self, model: nn.Module, reader: Reader, editors: Mapping[str, Editor]) -> None:
        self.model = model
        self.reader = reader
        self.editors = editors
        self._probe: Probe | None = None
        self._hooks: Hooks | None = None
        self._shown = Snapshot()

    @property
    def probe(self) -> Probe:
        """What editors learn with."""
        if self._probe is None or not shares_storage(self._probe.model, self.model):
            shadow = shadow_of(self.model)
            self._hooks = Hooks(shadow, self.editors, lambda: self._shown, reading=self.reader.reading)
            reader = Reader(shadow, self.reader.transform if self.reader.images else self.reader.tokenizer)
            self._probe = Probe(shadow, reader, reference_prompts(), self._hooks.residents)
        return self._probe

    def close(self) -> None:
        """Let go of the shadow."""
        self._probe = self._hooks = None

    @contextmanager
    def _showing(self, snapshot: Snapshot) -> Iterator[None]:
        before, self._shown = self._shown, snapshot
        try:
            yield
        finally:
            self._shown = before

    def verify(
        self, requests: Sequence[Request], candidate: Snapshot, conflicts: Conflicts, refuse: bool
    ) -> list[Verification]:
        """What the candidate version does with each edit.

        Raises:
            VerificationError: `refuse` is set and an edit is not right, or changed what it was told to leave alone.
        """
        with self._showing(candidate):
            with self._naming(requests):
                found = self._reliability(requests, candidate)
            checks = [
                Verification(right, self._locality(request), conflicts[request.id][1])
                for request, (right, _) in zip(requests, found, strict=True)
            ]
        if refuse:
            # An edit that a later one of the same batch took the place of cannot be right, and need not be.
            lost = {edit_id for superseded, _ in conflicts.values() for edit_id in superseded}
            kept = [i for i, request in enumerate(requests) if request.id not in lost]
            verify.refuse_failed(
                [requests[i] for i in kept], [checks[i] for i in kept], [found[i][1] for i in kept], self._decode
            )
        return checks

    def _reliability(self, requests: Sequence[Request], candidate: Snapshot) -> list[tuple[float, Tensor]]:
        batch = self.probe.reader.batch(requests)
        logits = self.probe.logits_behind if self._acts_behind_blocks(candidate) else self.probe.logits
        with torch.no_grad():
            found = verify.reliability(requests, batch, logits(batch))
        self.probe.let_go()
        return found

    def _acts_behind_blocks(self, candidate: Snapshot) -> bool:
        """Whether no editor that has edits looks or acts at another place than behind the last block."""
        assert self._hooks is not None
        sites = {one.site for one in self._hooks.placements if one.editor in candidate.states}
        return self.reader.text and sites == {Site(block_paths(self.model)[-1])}

    @contextmanager
    def _naming(self, requests: Sequence[Request]) -> Iterator[None]:
        """Every row of the requests' batch asks for the adapter of its edit's namespace."""
        probe = self.probe  # makes the hooks
        assert self._hooks is not None and probe is not None
        with self._hooks.naming([request.edit.namespace for request in requests for _ in request.prompts]):
            yield

    def _locality(self, request: Request) -> float:
        return verify.locality(request.edit.locality, self.probe, lambda: self._showing(Snapshot()))

    def _decode(self, tokens: Tensor) -> str:
        if not self.reader.text:
            return ", ".join(self.reader.labels.name(label) for label in tokens.tolist())
        return str(tokens.tolist() if self.reader.tokenizer is None else self.reader.tokenizer.decode(tokens))
