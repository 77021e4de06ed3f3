"""What every editor's code must be: a frozen value whose `apply` writes nowhere and waits for nothing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

from tests.contract.harness import Edited
from tests.families import Loaded, logits_of

WAITING = {"item", "tolist", "cpu", "nonzero", "synchronize", "is_nonzero", "__bool__", "argwhere"}
MODELS_OWN = {masking_utils.__file__}
CONSTRUCTION = {"__init__", "__post_init__", "__setstate__"}


def _module(editor: Any) -> ModuleType:
    return sys.modules[type(editor).__module__]


def _tree(editor: Any) -> ast.Module:
    return ast.parse(inspect.getsource(_module(editor)))


def _attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def _functions(tree: ast.AST) -> dict[str, list[ast.FunctionDef]]:
    found: dict[str, list[ast.FunctionDef]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def _reachable(tree: ast.AST, start: str) -> list[ast.FunctionDef]:
    """The functions of a module that `start` may call, matched by name."""
    functions, seen, todo = _functions(tree), set[str](), [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        todo += [called for function in functions[name] for called in _called(function)]
    return [function for name in sorted(seen) for function in functions[name]]


def _called(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_the_instance_is_the_configuration(editor: Any) -> None:
    cls = type(editor)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    again = dataclasses.replace(editor)
    assert again == editor and repr(again) == repr(editor)
    assert cls() == cls()
    assert pickle.loads(pickle.dumps(editor)) == editor
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "it says what it does"


def test_nothing_is_assigned_after_construction(editor: Any) -> None:
    """No `self.x =` and no `object.__setattr__` outside construction: what is learned lives in states."""
    outside = [
        f"{name} line {node.lineno}"
        for name, functions in _functions(_tree(editor)).items()
        if name not in CONSTRUCTION
        for function in functions
        for node in _attributes(function)
        if _assigns_to_self(node)
    ]
    assert outside == []


def _assigns_to_self(node: ast.Attribute) -> bool:
    stored = isinstance(node.ctx, ast.Store | ast.Del)
    return node.attr == "__setattr__" or (stored and isinstance(node.value, ast.Name) and node.value.id == "self")


def test_no_state_in_the_module(editor: Any) -> None:
    """Module globals are constants: no `global`, no empty container waiting to be filled."""
    tree = _tree(editor)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    mutable = [
        name
        for name, value in vars(_module(editor)).items()
        if isinstance(value, list | dict | set | Tensor | nn.Module) and not name.startswith("__")
    ]
    assert mutable == []


def test_every_setting_is_read(editor: Any) -> None:
    read = {node.attr for node in _attributes(_tree(editor)) if isinstance(node.ctx, ast.Load)}
    assert {field.name for field in dataclasses.fields(editor)} <= read


def test_nothing_reachable_from_apply_waits_for_the_device(editor: Any) -> None:
    waits = [
        f"{function.name} line {node.lineno}: {node.attr}"
        for function in _reachable(_tree(editor), "apply")
        for node in _attributes(function)
        if node.attr in WAITING
    ]
    assert waits == []


class Waits(TorchDispatchMode):
    """Notes each operation that waits for the device while `apply` of an editor is running."""

    def __init__(self, file: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.file = Path(file).resolve()
        self.found: list[str] = []
        self.applied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = self._inside_apply()
        self.applied += inside
        if inside and str(func) in {
            "aten._local_scalar_dense.default",
            "aten.nonzero.default",
            "aten.equal.default",
        }:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))

    def _inside_apply(self) -> bool:
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_code.co_filename in MODELS_OWN:
                return False  # an editor that runs a model waits where that model's own forward does
            if frame.f_code.co_name == "apply" and Path(frame.f_code.co_filename).resolve() == self.file:
                return True
        return False


@torch.no_grad()
def test_apply_never_waits_for_the_device(edited: Edited, editor: Any) -> None:
    """Watched from below: no operation under `apply` reads a value back, whether rows hit or not."""
    feed = edited.loaded.feed(edited.mixed)
    file = inspect.getsourcefile(type(editor))
    assert file is not None
    with Waits(file) as waits:
        edited.loaded.model(**feed)
    assert waits.applied > 0
    assert waits.found == []


class Unwritten:
    """Hooks that see each module's raw output first, and tell later whether it was written into."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor, int, str]] = []

    def watch(self, model: nn.Module) -> list[Any]:
        """In front of every hook that is on the model now."""
        return [module.register_forward_hook(self._keep(name), prepend=True) for name, module in model.named_modules()]

    def _keep(self, name: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor):
                    self.kept.append((tensor, tensor.clone(), tensor._version, name))

        return keep

    @property
    def written(self) -> set[str]:
        """Modules whose output changed after they returned it."""
        return {
            name
            for tensor, copied, version, name in self.kept
            if tensor._version != version or not torch.equal(tensor, copied)
        }


@torch.no_grad()
def _written(loaded: Loaded, rows: list[Any]) -> set[str]:
    watch = Unwritten()
    handles = watch.watch(loaded.model)
    try:
        logits_of(loaded.model(**loaded.feed(rows)))
    finally:
        for handle in handles:
            handle.remove()
    return watch.written


def test_apply_writes_into_nobodys_tensor(edited: Edited) -> None:
    """What a module returned stays what it was, unless the architecture writes there (in-place ReLU)."""
    assert _written(edited.loaded, edited.mixed) == _written(edited.twin, edited.mixed)


def test_apply_does_not_write_into_inputs(edited: Edited) -> None:
    feed = edited.loaded.feed(edited.mixed)
    before = {name: tensor.clone() for name, tensor in feed.items()}
    with torch.no_grad():
        edited.loaded.model(**feed)
    assert all(torch.equal(feed[name], before[name]) for name in feed)


@pytest.mark.parametrize("method", ["sites", "empty", "apply", "learn", "insert", "forget", "conflicts", "unit"])
def test_it_implements_the_protocol(editor: Any, method: str) -> None:
    from editable.editor import Editor

    ours, protocol = (
        inspect.signature(getattr(type(editor), method)),
        inspect.signature(getattr(Editor, method)),
    )
    assert list(ours.parameters) == list(protocol.parameters)
    assert inspect.getdoc(getattr(type(editor), method))


def test_no_state_is_left_on_modules(edited: Edited) -> None:
    """Learned tensors live in states: no module gained a parameter, a buffer or a child."""
    for kind in ("named_parameters", "named_buffers", "named_modules"):
        now, base = (dict(getattr(loaded.model, kind)()) for loaded in (edited.loaded, edited.twin))
        assert list(now) == list(base)
