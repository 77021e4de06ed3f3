"""EditableModel: a model that can be edited while it serves.

What happens when, and to whom it is visible: attaching, calling, editing, rolling back, versions, closing. Knows no
editing method by name.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from editable.asking import Asker
from editable.assess import Assessment, Fact, assess
from editable.configuration import stated
from editable.digest import base_digest, tokenizer_digest
from editable.edit import Edit, ModelInput, Patch, Receipt, Verification, check_prompt
from editable.editor import Editor
from editable.errors import InputError, StateError
from editable.explanation import Explained, Explanation
from editable.history import History
from editable.hooks import Hooks, Inert, refuse_compiled
from editable.inputs import Reader, Request
from editable.latency import Latency
from editable.listing import Edits, as_text, described
from editable.memory.log import Entry, Identity, Log
from editable.pack import Packed, read_pack, write_pack
from editable.snapshot import Snapshot
from editable.stream import Stream, batches, with_progress
from editable.workshop import Workshop

RECENT = 32  # versions kept ready for at(); older ones are rebuilt from the history


class EditableModel:
    """Wraps a model in place: the user's own object sees the edits, and `close` gives it back unchanged.

    Args:
        model: a Hugging Face or torchvision model, or any module whose structure has a place for the editor.
        tokenizer: what reads text for it; for a model of images, what makes its input of a picture: a Hugging Face
            image processor, torchvision's or timm's transform, any callable from a PIL image to a tensor, or a
            `Transform` that also names the labels. None where inputs are given as tensors, and for models of timm,
            which say it themselves.
        editor: the one editor; or `editors`, a mapping of name to editor, the first of which is the default.
        log: path of the durable history, created if absent, replayed if present; None keeps history in memory.
        source: how the model was loaded, noted in a new log so that tools can load it again.

    Raises:
        StateError: the model is compiled or has an EditableModel attached already.
        WrongBaseError: the log belongs to other weights, another tokenizer or other editors.
        CorruptLogError: the log does not add up.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        editor: Editor | None = None,
        *,
        editors: Mapping[str, Editor] | None = None,
        log: str | Path | None = None,
        source: str = "",
    ) -> None:
        self.editors = _named(editor, editors)
        if any(isinstance(hook, Inert) for hook in model._forward_pre_hooks.values()):
            raise StateError(
                f"This {type(model).__name__} has an EditableModel attached already, expected a model without one; "
                "give that one further editors with editors={...}, or close() it first."
            )
        refuse_compiled(model)
        self.model = model
        self.tokenizer = tokenizer
        self.latency = Latency()
        self._reader = Reader(model, tokenizer)
        self._source = source
        self._known_identity: Identity | None = None
        self._snapshot = Snapshot()
        self._recent: OrderedDict[int, Snapshot] = OrderedDict()
        self._pinned: ContextVar[Snapshot | None] = ContextVar("editable_pinned", default=None)
        self._writer = threading.RLock()
        self._closed = False
        self._workshop = Workshop(model, self._reader, self.editors)
        self._stream = Stream(self._edit)
        self._hooks = Hooks(model, self.editors, self._visible, self.latency, self._reader.reading)
        try:
            self._log = None if log is None else Log(log, self._identity)
            self._history = History(self.editors, self._log)
            self._publish(self._history.start)
        except BaseException:
            self._hooks.remove()
            raise

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        editor: Editor | None = None,
        *,
        editors: Mapping[str, Editor] | None = None,
        log: str | Path | None = None,
        **hf_kwargs: Any,
    ) -> EditableModel:
        """Load a model by name, path or hub id (`editable.models.load`) and attach to it."""
        from editable import models

        model, tokenizer = models.load(name, **hf_kwargs)
        return cls(model, tokenizer, editor, editors=editors, log=log, source=str(name))

    # Serving

    @property
    def images(self) -> bool:
        """Whether its inputs are pictures: PIL images, paths of image files, tensors."""
        return self._reader.images

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, edits included; the same as calling the model itself.

        `adapters=[...]` names, for each row, the adapter that serves it: the namespace of its edits, or `BASE`.
        """
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`, edits included; the same as calling the model's own. `adapters` as in a call."""
        return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    def ask(self, prompt: ModelInput, max_new_tokens: int = 64) -> str:
        """The model's greedy answer as text, up to its end token; a classifier's label, by name where it has one.

        Raises:
            InputError: an empty prompt, or no token to be generated.
        """
        check_prompt("prompt", prompt)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
        arguments = self._reader.arguments(prompt)
        if not self._reader.text:
            with torch.no_grad():
                output = self.model(**arguments)
            return self._reader.labels.name(int(getattr(output, "logits", output).argmax(dim=-1)))
        stacked = self._reader.stack([arguments])
        with torch.no_grad():
            tokens = self.generate(
                **stacked, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self._reader.pad
            )
        start = 0 if self._reader.seq2seq else stacked["input_ids"].shape[1]
        return str(self._reader.tokenizer.decode(tokens[0, start:], skip_special_tokens=True))

    def assess(self, facts: Sequence[Fact]) -> list[Assessment]:
        """Which facts the model lacks, by how likely it finds them against statements like them that are wrong.

        What this thread sees now is assessed, edits included; `em.edit([a.fact.edit for a in em.assess(facts) if
        a.lacking])` edits only what is needed.
        """
        return assess(Asker(self.model, self.tokenizer), facts)

    def explain(self, prompt: ModelInput) -> Explanation:
        """Which edits are considered for a prompt, how near each is, which fires, and why the others do not.

        Raises:
            InputError: an empty prompt.
        """
        check_prompt("prompt", prompt)
        with torch.no_grad(), self._hooks.explaining() as found:
            self.model(**self._reader.forward(prompt))
        considered = [Explained(self._history.known(one.edit_id), one) for some in found.values() for one in some]
        return Explanation(as_text(prompt), self._visible().version, considered)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Inside, calls of this thread see the base model."""
        with self._pin(Snapshot()):
            yield

    @contextmanager
    def at(self, version: int) -> Iterator[None]:
        """Inside, calls of this thread see the edits as they were at that version.

        Raises:
            InputError: there was no such version.
        """
        with self._pin(self._snapshot_at(version)):
            yield

    @contextmanager
    def _pin(self, snapshot: Snapshot) -> Iterator[None]:
        token = self._pinned.set(snapshot)
        try:
            yield
        finally:
            self._pinned.reset(token)

    def _visible(self) -> Snapshot:
        return self._pinned.get() or self._snapshot

    # The edit set

    @property
    def version(self) -> int:
        """The version that a call starting now sees; counts up by one with every change."""
        return self._snapshot.version

    @property
    def edits(self) -> Edits:
        """The live edits, in the order they came. Prints as a table, in a notebook too."""
        return self._history.edits(self.version)

    @property
    def history(self) -> Edits:
        """All edits, those rolled back included."""
        return self._history.edits(self.version, rolled_back=True)

    @overload
    def edit(self, edits: Edit, *, editor: str | None = None, verify: bool = True) -> Receipt: ...
    @overload
    def edit(self, edits: Sequence[Edit], *, editor: str | None = None, verify: bool = True) -> list[Receipt]: ...
    def edit(
        self, edits: Edit | Sequence[Edit], *, editor: str | None = None, verify: bool = True
    ) -> Receipt | list[Receipt]:
        """Learn, check, log and publish one edit, or several as one atomic version.

        Args:
            edits: one edit (gives a receipt) or a sequence (gives a receipt each).
            editor: name of the editor to use; the first by default.
            verify: whether an edit that is not right on its own prompt and rephrases is refused. With False it is
                published all the same, and the receipt says what was measured.

        Raises:
            InputError: an edit that cannot be understood.
            VerificationError: an edit failed its checks. Nothing has changed.
            StateError: the model is closed.
        """
        if isinstance(edits, Edit):
            return self._edit([edits], self._editor_name(editor), verify)[0]
        return self._edit(list(edits), self._editor_name(editor), verify)

    def _edit(self, edits: Sequence[Edit], name: str, refuse: bool) -> list[Receipt]:
        with self._writing():
            if not edits:
                raise InputError("The list of edits is empty, expected at least one Edit.")
            phases = Phases()
            requests = [self._reader.request(secrets.token_hex(6), edit) for edit in edits]
            phases.end("read")
            editor = self.editors[name]
            state, patches = editor.learn(requests, self._state_of(name), self._workshop.probe)
            candidate = self._snapshot.replace(self.version + 1, {name: state})
            phases.end("learn")
            conflicts = {r.id: editor.conflicts(r.id, state) for r in requests}
            checks = self._workshop.verify(requests, candidate, conflicts, refuse)
            phases.end("verify")
            entries = [
                _entry(name, request, patch, check, conflicts[request.id][0])
                for request, patch, check in zip(requests, patches, checks, strict=True)
            ]
            self._history.append(candidate.version, entries)
            phases.end("log")
            self._publish(candidate)
            phases.end("publish")
            return [
                Receipt(r.id, candidate.version, check, conflicts[r.id][0], phases.seconds)
                for r, check in zip(requests, checks, strict=True)
            ]

    def rollback(self, edit_id: str | Sequence[str], *, verify: bool = True) -> int:
        """Take one edit (or several, atomically) back: from the next version on, outputs are as if it had never been.

        Where an editor learned it as one with others that stay, those are learned again without it, in the same
        version and under their ids; `edits` shows since when.

        Args:
            edit_id: one id or several.
            verify: whether it is refused where an edit that had to be learned again is not right any more.

        Returns:
            The version without it.

        Raises:
            UnknownEditError: an id that was never given out, or is rolled back already.
            VerificationError: an edit that had to be learned again failed its checks. Nothing has changed.
            StateError: the model is closed.
        """
        ids = [edit_id] if isinstance(edit_id, str) else list(dict.fromkeys(edit_id))
        with self._writing():
            if not ids:
                raise InputError("The list of edit ids is empty, expected at least one.")
            editor_of = {one: self._history.live(one).editor for one in ids}
            entries = [Entry("rollback", one, editor_of[one]) for one in ids]
            changed: dict[str, Any] = {}
            for name in dict.fromkeys(editor_of.values()):
                own = frozenset(one for one in ids if editor_of[one] == name)
                changed[name], anew = self._without(own, name, verify)
                entries += anew
            snapshot = self._snapshot.replace(self.version + 1, changed)
            self._history.append(snapshot.version, entries)
            self._publish(snapshot)
            return snapshot.version

    def _without(self, ids: frozenset[str], name: str, refuse: bool) -> tuple[Any, list[Entry]]:
        """An editor's state without those edits, and what to log of edits that had to be learned again for that."""
        editor, state = self.editors[name], self._state_of(name)
        units = ids.union(*(editor.unit(one, state) for one in ids))
        state = editor.forget(units, state)
        if units == ids:
            return state, []
        left = self._history.packed(units - ids)
        requests = [self._reader.again(one.patch.edit_id, one.request, one.patch.tensors) for one in left]
        state, patches = editor.learn(requests, state, self._workshop.probe)
        conflicts = {one.id: editor.conflicts(one.id, state) for one in requests}
        candidate = self._snapshot.replace(self.version + 1, {name: state})
        checks = self._workshop.verify(requests, candidate, conflicts, refuse)
        return state, [
            Entry("relearn", patch.edit_id, name, patch.tensors, _about(one.request, patch, check))
            for one, patch, check in zip(left, patches, checks, strict=True)
        ]

    def submit(self, edit: Edit, *, editor: str | None = None, verify: bool = True) -> Future[Receipt]:
        """Queue an edit for the background writer; calls that start after the future is done see it.

        Blocks while the queue is full. The future can be cancelled until its edit is being learned.
        """
        self._check_open()
        return self._stream.submit(edit, self._editor_name(editor), verify)

    def edit_stream(
        self,
        edits: Iterable[Edit],
        batch_size: int = 8,
        *,
        editor: str | None = None,
        on_error: Callable[[Edit, Exception], None] | None = None,
        progress: bool = False,
        verify: bool = True,
    ) -> Iterator[Receipt]:
        """Insert a stream of edits, one version per batch; yields receipts as they are published.

        Args:
            edits: any iterable; read as it is needed.
            batch_size: edits learned and published together.
            editor: name of the editor to use; the first by default.
            on_error: called with each edit that fails, which is then left out; by default the first failure raises
                (what was yielded before stays published).
            progress: show a progress bar on stderr.
            verify: as in `edit`.
        """
        write = partial(self._edit, name=self._editor_name(editor), refuse=verify)
        receipts = batches(write, edits, batch_size, on_error)
        if not progress:
            return receipts
        return with_progress(receipts, "editing", len(edits) if isinstance(edits, Sized) else None)

    # Carrying edits elsewhere

    def export(self, path: str | Path) -> None:
        """Write the live edits to one file, for `load` in a process with the same base."""
        write_pack(path, self._history.packed(), self._identity)

    def load(self, path: str | Path) -> int:
        """Publish the edits of a pack as one version; those already live here are left alone.

        Returns:
            The version that shows them.

        Raises:
            WrongBaseError: the pack was made with other weights, another tokenizer or other editors.
            CorruptLogError: the file does not add up.
            InputError: no such file, or an edit in it was rolled back here.
        """
        return self.adopt(read_pack(path, self._identity))

    def adopt(self, packed: Sequence[Packed]) -> int:
        """Publish edits that were learned elsewhere as one version; those already live here are left alone.

        Nothing is verified. What they are is up to whoever made them: `load` for packs, `editable.folders` for peft's
        adapter folders.

        Returns:
            The version that shows them.

        Raises:
            InputError: an edit among them was rolled back here.
        """
        with self._writing():
            new = [one for one in packed if self._history.is_new(one.patch.edit_id)]
            if not new:
                return self.version
            states = dict(self._snapshot.states)
            entries = []
            for one in new:
                # Where a key was placed is true only for the history it was learned in.
                meta = {k: v for k, v in one.patch.meta.items() if k != "placed"}
                patch = replace(one.patch, meta=meta)
                state = states.get(one.editor, self.editors[one.editor].empty())
                states[one.editor] = self.editors[one.editor].insert([patch], state)
                superseded, _ = self.editors[one.editor].conflicts(patch.edit_id, states[one.editor])
                about = {"request": dict(one.request), "patch": meta, "superseded": list(superseded)}
                entries.append(Entry("edit", patch.edit_id, one.editor, patch.tensors, about))
            snapshot = self._snapshot.replace(self.version + 1, states)
            self._history.append(snapshot.version, entries)
            self._publish(snapshot)
            return snapshot.version

    def close(self) -> None:
        """Stop the background writer, take all hooks off, close the log. The model is what it was; idempotent."""
        self._stream.close()
        with self._writer:
            self._closed = True
            self._hooks.remove()
            self._workshop.close()
            if self._log is not None:
                self._log.close()

    def __enter__(self) -> EditableModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"version {self.version}, {len(self.edits)} live edits"
        return f"EditableModel({type(self.model).__name__}, {', '.join(self.editors)}, {state})"

    # Inside

    @property
    def _identity(self) -> Identity:
        if self._known_identity is None:
            config = {name: stated(editor) for name, editor in self.editors.items()}
            self._known_identity = Identity(
                base_digest(self.model),
                tokenizer_digest(None if self._reader.images else self.tokenizer),
                json.dumps(config, sort_keys=True),
                self._source,
            )
        return self._known_identity

    def _editor_name(self, name: str | None) -> str:
        if name is None:
            return next(iter(self.editors))
        if name not in self.editors:
            raise InputError(f"Editor {name!r} is not attached, expected one of {', '.join(self.editors)}.")
        return name

    def state(self, name: str) -> Any:
        """What an editor holds in the version that a call starting now sees; an immutable value of its own kind."""
        return self._visible().states.get(name, self.editors[name].empty())

    def _state_of(self, name: str) -> Any:
        return self._snapshot.states.get(name, self.editors[name].empty())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; and its tensors are ordinary ones even where the caller is in inference mode."""
        with self._writer, torch.inference_mode(False):
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("This EditableModel is closed, expected an open one; attach a new one to edit again.")

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot  # the one assignment that makes it visible
        self._recent[snapshot.version] = snapshot
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _snapshot_at(self, version: int) -> Snapshot:
        if not 0 <= version <= self.version:
            raise InputError(f"Version {version} does not exist, expected one from 0 to {self.version}.")
        return self._recent.get(version) or self._history.snapshot(version)


class Phases:
    """Seconds spent in each phase of one edit."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, phase: str) -> None:
        """The phase that began with the previous one's end (or with construction) is over."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._since
        self._since = now


def _named(editor: Editor | None, editors: Mapping[str, Editor] | None) -> dict[str, Editor]:
    if (editor is None) == (not editors):
        raise InputError(
            f"Got editor={editor!r} and editors={editors!r}, expected exactly one of them; "
            "for example EditableModel(model, tokenizer, editor=GRACE())."
        )
    return dict(editors) if editors else {type(editor).__name__.lower(): editor}  # type: ignore[dict-item]


def _entry(editor: str, request: Request, patch: Patch, check: Verification, superseded: tuple[str, ...]) -> Entry:
    about = _about(described(request.edit), patch, check, superseded)
    return Entry("edit", request.id, editor, patch.tensors, about)


def _about(
    described: Mapping[str, Any], patch: Patch, check: Verification, superseded: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "request": dict(described),
        "patch": dict(patch.meta),
        "verified": {**asdict(check), "collisions": list(check.collisions)},
        "superseded": list(superseded),
    }
