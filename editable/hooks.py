"""The permanent hooks: put on a model once, decided anew in every call, taken off by `close`.

A root pre-hook pins the version a forward sees and reads its arguments; a hook at each site lets the editors act; a
root post-hook ties decisions to the KV cache. Edits never add or remove a hook. Knows no editing method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from editable.carry import Carried, carried_by, carry
from editable.editor import BASE, Call, Considered, Editor, Explains, Named
from editable.errors import InputError, StateError
from editable.latency import Latency
from editable.prompt import Generation, prompt_width, read_call
from editable.reading import Reading, tokens_of
from editable.resident import Residents
from editable.site import Site, is_seq2seq
from editable.snapshot import Snapshot

ADAPTERS = "adapters"
"""The argument of a call that names, for each row, the adapter that serves it."""

ENCODING = "encode"
"""The phase of a call that is an encoder's by itself."""

PACKING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass(frozen=True)
class Placement:
    """One editor at one site, in one of the roles it gave the site."""

    editor: str
    role: str
    site: Site


class Hooks:
    """All hooks of one attachment.

    Args:
        model: the user's own model object, or a shadow of it.
        editors: name to editor, in the order in which they act at a shared site.
        published: gives the version that a call starting now sees.
        latency: where spans are recorded; None records nothing.
        reading: reads prompts as text; None where there is no tokenizer.
    """

    def __init__(
        self,
        model: nn.Module,
        editors: Mapping[str, Editor],
        published: Callable[[], Snapshot],
        latency: Latency | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.model = model
        self.editors = editors
        self.published = published
        self.latency = latency
        self.reading = reading
        self.residents = Residents(model)
        self.placements = [
            Placement(name, role, site)
            for name, editor in editors.items()
            for role, site in editor.sites(model).items()
        ]
        self.call: ContextVar[Call | None] = ContextVar("editable_call", default=None)
        self.generation: ContextVar[Generation | None] = ContextVar("editable_generation", default=None)
        self._explained: ContextVar[dict[str, Sequence[Considered]] | None] = ContextVar(
            "editable_explained", default=None
        )
        self.adapters: ContextVar[Sequence[str] | None] = ContextVar("editable_adapters", default=None)
        self._seq2seq = is_seq2seq(model)
        self._parameters = [
            p.name
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        self._handles: list[RemovableHandle] = []
        try:
            self._put_on()
        except BaseException:
            self.remove()
            raise

    def _put_on(self) -> None:
        # Graphs are shared by blocks of one class. Unless they are told apart by their hooks, too, the graph of a block
        # without ours stands in for one with them (encoders, whose blocks have nothing else that differs).
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        self._handles.append(
            self.model.register_forward_pre_hook(
                _BeforeHook(torch.compiler.disable(self.open)), with_kwargs=True, prepend=True
            )
        )
        # always_call: a forward that raises must not leave its call behind for a module called on its own later.
        self._handles.append(
            self.model.register_forward_hook(_AfterHook(torch.compiler.disable(self.close)), always_call=True)
        )
        if self._seq2seq:
            self._put_on_encoder(self.model.get_encoder())  # type: ignore[operator]
        for placements in _by_place(self.placements):
            self._handles.append(self._put_on_place(placements))
        if hasattr(self.model, "generate"):
            self.model.generate = GenerateInPlace(self)  # type: ignore[assignment]
        for packed in PACKING:
            if hasattr(self.model, packed):
                setattr(self.model, packed, RefuseInPlace(self.model, packed))

    def _put_on_encoder(self, encoder: nn.Module) -> None:
        """`generate` calls the encoder by itself, before the forwards of the whole model."""
        enter = _BeforeHook(torch.compiler.disable(self.open_encoder))
        leave = _AfterHook(torch.compiler.disable(self.close_encoder))
        self._handles.append(encoder.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        self._handles.append(encoder.register_forward_hook(leave, always_call=True))

    def _put_on_place(self, placements: Sequence[Placement]) -> RemovableHandle:
        """One hook for all that happens at one side of one module."""
        module = self.model.get_submodule(placements[0].site.path)
        act = torch.compiler.disable(functools.partial(self.act, placements))
        if placements[0].site.side == "input":
            return module.register_forward_pre_hook(InputHook(act), with_kwargs=True)
        # prepend: captured hidden states and the user's own hooks get to see the edited value.
        return module.register_forward_hook(_OutputHook(act), prepend=True, with_kwargs=True)

    def remove(self) -> None:
        """Take everything off; the model is what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name in ("generate", *PACKING):
            if isinstance(vars(self.model).get(name), InPlace):
                delattr(self.model, name)

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pin the version this forward sees and work out its key tokens.

        Gives the arguments without the names of adapters, which are not the model's; None where there were none.
        """
        own = {name: value for name, value in kwargs.items() if name != ADAPTERS}
        arguments = {**dict(zip(self._parameters, args, strict=False)), **own}
        if self._seq2seq and arguments.get("decoder_input_ids") is None:
            arguments["decoder_input_ids"] = self._shifted_labels(arguments)
        generation = self.generation.get()
        carried = carried_by(arguments.get("past_key_values"))
        snapshot = carried.snapshot if carried else generation.snapshot if generation else self.published()
        reading = self.reading if snapshot.states else None  # without edits nobody asks what a prompt says
        embedded = arguments.get("inputs_embeds")
        if reading is not None and embedded is not None and not self._seq2seq:
            arguments["input_ids"] = tokens_of(embedded, self.model.get_input_embeddings())  # type: ignore[operator]
        call = read_call(arguments, snapshot, self._seq2seq, generation, carried, reading)
        call.residents = self.residents
        call.adapters = self._asked_for(kwargs.get(ADAPTERS), generation, snapshot)
        if self.latency is not None:
            call.timer = self.latency.begin(_device(arguments))
        call.token = self.call.set(call)
        return (args, own) if ADAPTERS in kwargs else None

    def open_encoder(self, *_: Any) -> None:
        """Let a generation's encoder see what its forwards will see; inside a forward it sees that already."""
        generation = self.generation.get()
        if generation is not None and self.call.get() is None:
            call = Call(generation.snapshot, adapters=generation.adapters, phase=ENCODING)
            call.token = self.call.set(call)

    def close_encoder(self, _output: Any) -> None:
        """Undo what `open_encoder` did, if it did anything."""
        call = self.call.get()
        if call is not None and call.phase == ENCODING:
            self.call.reset(call.token)

    def _asked_for(
        self, given: str | Sequence[str] | None, generation: Generation | None, snapshot: Snapshot
    ) -> Sequence[str] | None:
        """The names of adapters that hold for a forward, known to an editor.

        Raises:
            InputError: a name is unknown, or no editor has named adapters.
        """
        if given is not None:
            return self.known(given, snapshot)
        if generation is not None and generation.adapters is not None:
            return generation.adapters
        return self.adapters.get()

    def known(self, given: str | Sequence[str], snapshot: Snapshot) -> Sequence[str]:
        """Names of adapters as a sequence, one for each row.

        Raises:
            InputError: a name is unknown, or no editor has named adapters.
        """
        asked = [given] if isinstance(given, str) else list(given)
        naming = {name: editor for name, editor in self.editors.items() if isinstance(editor, Named)}
        states = snapshot.states
        there = {BASE}.union(*(editor.names(states[name]) for name, editor in naming.items() if name in states))
        unknown = [name for name in asked if name not in there]
        if not asked or unknown or not naming:
            raise InputError(
                f"adapters names {unknown or asked!r}, expected for each row one of {', '.join(sorted(there))}; "
                "an edit's namespace is the name of its adapter, with the editor LoRA()."
            )
        return asked

    @contextmanager
    def naming(self, adapters: Sequence[str]) -> Iterator[None]:
        """Forwards inside that name no adapters ask for these."""
        token = self.adapters.set(adapters)
        try:
            yield
        finally:
            self.adapters.reset(token)

    def _shifted_labels(self, arguments: Mapping[str, Any]) -> Any:
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        labels = arguments.get("labels")
        return shift(labels=labels) if shift is not None and labels is not None else None

    def act(self, placements: Sequence[Placement], activation: Any, fed: Any = None) -> Any:
        """Let editors act one after another, where a module was `fed` something; None where nothing changes."""
        call = self.call.get()
        if call is None:
            return None
        call.fed, edited = fed, activation
        for placement in placements:
            state = call.snapshot.states.get(placement.editor)
            if state is not None:
                edited = self._timed(call, placement, state, edited)
        return None if edited is activation else edited

    def _timed(self, call: Call, placement: Placement, state: Any, activation: Any) -> Any:
        if call.timer is None:
            return self._edited(call, placement, state, activation)
        mark = call.timer.enter()
        edited = self._edited(call, placement, state, activation)
        call.timer.leave(mark, placement.editor, placement.site.path)
        return edited

    def _edited(self, call: Call, placement: Placement, state: Any, activation: Any) -> Any:
        rows = placement.site.read(activation)
        call.editor, call.role = placement.editor, placement.role
        self._explain(call, rows, state)
        edited = self.editors[placement.editor].apply(call, rows, state)
        return activation if edited is rows else placement.site.write(activation, edited)

    def _explain(self, call: Call, rows: torch.Tensor, state: Any) -> None:
        explained, editor = self._explained.get(), self.editors[call.editor]
        if explained is not None and call.editor not in explained and isinstance(editor, Explains):
            explained[call.editor] = editor.explain(call, rows, state)

    @contextmanager
    def explaining(self) -> Iterator[Mapping[str, Sequence[Considered]]]:
        """Inside, a forward over one row fills what is given: editor name to the edits that editor considered."""
        explained: dict[str, Sequence[Considered]] = {}
        token = self._explained.set(explained)
        try:
            yield explained
        finally:
            self._explained.reset(token)

    def close(self, output: Any) -> None:
        """Tie decisions to the cache, record the latency, unpin."""
        call = self.call.get()
        if call is None:
            return
        self.call.reset(call.token)
        cache = _cache_of(output) if output is not None else None
        if cache is not None and call.ordinal is not None:
            seen = call.past + call.ordinal.shape[1]
            carry(cache, Carried(call.snapshot, seen, call.prompt, call.pads, call.decisions, call.read))
        if self.latency is not None and call.timer is not None and output is not None:
            hits = {name: d["hit"] for name, d in call.decisions.items() if "hit" in d}
            batch, positions = call.ordinal.shape if call.ordinal is not None else (1, 1)
            self.latency.end(call.timer, call.phase, batch, positions, hits or None)

    @contextmanager
    def generating(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], adapters: str | Sequence[str] | None = None
    ) -> Iterator[None]:
        """Every forward inside sees one version and knows where the prompt ended, and which adapters were asked for."""
        arguments = {**({"inputs": args[0]} if args else {}), **kwargs}
        carried = carried_by(arguments.get("past_key_values"))
        outer = self.generation.get()
        snapshot = carried.snapshot if carried else outer.snapshot if outer else self.published()
        width = prompt_width(arguments, self._seq2seq)
        tokens = arguments.get("input_ids", arguments.get("inputs"))
        asked = None if adapters is None else self.known(adapters, snapshot)
        token = self.generation.set(Generation(snapshot, width, arguments.get("attention_mask"), tokens, asked))
        try:
            yield
        finally:
            self.generation.reset(token)


def refuse_compiled(model: nn.Module) -> None:
    """A graph compiled without the hooks would go on without them, silently.

    Raises:
        StateError: the model, one of its modules, or its class's forward is compiled already.
    """
    compiled = type(model).__name__ == "OptimizedModule" or getattr(model, "_compiled_call", None) is not None
    compiled = compiled or any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
    if compiled or _has_compiled_forward(model):
        raise StateError(
            f"{type(model).__name__} is compiled already, expected an uncompiled model, since its graph would not see "
            "the edits; attach first and compile afterwards (torch._dynamo.reset() drops graphs compiled earlier)."
        )


def _has_compiled_forward(model: nn.Module) -> bool:
    code = getattr(type(model).forward, "__code__", None)
    code = getattr(inspect.unwrap(type(model).forward), "__code__", code)
    if code is None:
        return False
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    return bool(_debug_get_cache_entry_list(code))


def _by_place(placements: Sequence[Placement]) -> list[list[Placement]]:
    """Those at the same side of the same module together, in order."""
    places: dict[tuple[str, str], list[Placement]] = {}
    for placement in placements:
        places.setdefault((placement.site.path, placement.site.side), []).append(placement)
    return list(places.values())


def _device(arguments: Mapping[str, Any]) -> torch.device:
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.device("cpu")


def _cache_of(output: Any) -> Any:
    cache = getattr(output, "past_key_values", None)
    if cache is None and isinstance(output, tuple):
        cache = next((part for part in output if hasattr(part, "get_seq_length")), None)
    return cache if hasattr(cache, "get_seq_length") else None


class Inert:
    """A hook on the user's model. A copy or a pickle of it does nothing: copied models are plain base models."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _give_nothing, ()


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """What our hooks become in a copied model."""


def _give_nothing() -> Callable[..., None]:
    return nothing


@dataclass(eq=False)
class _BeforeHook(Inert):
    act: Callable[[tuple[Any, ...], dict[str, Any]], Any]

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.act(args, kwargs)


@dataclass(eq=False)
class _AfterHook(Inert):
    act: Callable[[Any], None]

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.act(output)


@dataclass(eq=False)
class _OutputHook(Inert):
    act: Callable[[Any, Any], Any]

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        return self.act(output, args[0] if args else next(iter(kwargs.values()), None))


@dataclass(eq=False)
class InputHook(Inert):
    """Lets `act` make another first argument of a module's, by place or by name; None leaves it."""

    act: Callable[[Any], Any]

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `register_forward_pre_hook` calls it, with keyword arguments."""
        if args:
            changed = self.act(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        name = next(iter(kwargs))
        changed = self.act(kwargs[name])
        return None if changed is None else (args, {**kwargs, name: changed})


class InPlace:
    """An attribute on the user's model object that stands in for a method of its class; a copy has the method again."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name
        functools.update_wrapper(self, getattr(type(model), name))  # type: ignore[arg-type]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return own_method(memo[id(self.model)], self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return own_method, (self.model, self.name)


def own_method(model: nn.Module, name: str) -> Any:
    """The method as the model's class defines it."""
    return MethodType(getattr(type(model), name), model)


class GenerateInPlace(InPlace):
    """Stands in for the model's own `generate`, which it calls, so that a whole generation sees one version."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__(hooks.model, "generate")
        self.hooks = hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`."""
        adapters = kwargs.pop(ADAPTERS, None)
        with self.hooks.generating(args, kwargs, adapters):
            return own_method(self.model, self.name)(*args, **kwargs)


class RefuseInPlace(InPlace):
    """Stands in for a method that packs several requests into one row, where edits cannot be decided."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise StateError."""
        raise StateError(
            f"{type(self.model).__name__}.{self.name} packs several requests into one row (continuous batching), "
            "expected one request a row, since edits are decided row by row; use generate() with a padded batch, or "
            "close the EditableModel first."
        )
