"""What every test may ask for: a family, an editor, a model with edits that is closed afterwards."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch

from editable import EditableModel, own_words
from editable.adapters import GRACE
from editable.scopes import SentenceScope
from tests.contract.harness import Edited, reads_text, with_edits
from tests.families import FAMILIES, Family, Loaded
from tests.words import Words

Attach = Callable[..., EditableModel]

FURTHER = (GRACE(scope=SentenceScope(Words(), false_fire=0)),)
"""Configurations that the contract is held to beside each editor's defaults."""

TURNS = 3
"""One in so many families is met by an editor in each test; see `pytest_collection_modifyitems`."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two OpenMP threads on a busy machine wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_words_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tiny models say is not left in the user's cache."""
    folder = tmp_path_factory.mktemp("own_words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_words, "folder", lambda: folder)
        yield


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    """One architecture; all of them, unless a test narrows them (`tests/contract/harness.py`)."""
    if not request.param.available:
        pytest.skip(f"{request.param.needs} is not installed")
    wanted: Family = request.param
    return wanted


@pytest.fixture(scope="session", params=[torch.float32], ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the model's parameters; float32, unless a test asks for more."""
    wanted: torch.dtype = request.param
    return wanted


@pytest.fixture(scope="session")
def editor(request: pytest.FixtureRequest) -> Any:
    """One editor: each that the folder of editors holds, with its defaults, and the further configurations."""
    return request.param() if inspect.isclass(request.param) else request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "editor" in metafunc.fixturenames:
        marks = {mark.name for mark in metafunc.definition.iter_markers()}
        wanted = [cls for cls in editors() if not marks & {"routing", "once"} or cls().routes]
        chosen = wanted[:1] if "once" in marks else [*wanted, *FURTHER]
        metafunc.parametrize("editor", chosen, ids=_editor_id, indirect=True, scope="session")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-pair", action="store_true", help="run each test on every editor with every family")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One editor meets every test on every family; each other one every test and every family, but not every pair.

    They take turns: what one of them meets on a third of the families, the next meets on another third. A scope that
    reads text meets no images.
    """
    items[:] = [item for item in items if not _is_blind(item)]
    if config.getoption("--every-pair"):
        return
    pairs = {id(item): pair for item in items if (pair := _pair(item)) is not None}
    families: dict[str, list[str]] = {}
    for test, family, _ in pairs.values():
        if family not in families.setdefault(test, []):
            families[test].append(family)
    order = {test: number for number, test in enumerate(families)}
    kept, left_out = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        pair = pairs.get(id(item))
        met = pair is None or _meets(pair, order[pair[0]], families[pair[0]])
        (kept if met else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _is_blind(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    family, editor = given.get("family"), given.get("editor")
    images = isinstance(family, Family) and family.kind == "image_classifier"
    return images and not inspect.isclass(editor) and reads_text(editor)


def _pair(item: pytest.Item) -> tuple[str, str, int] | None:
    """The test, its family, and the number of its editor; None for tests of no pair."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    if "editor" not in given or "family" not in given:
        return None
    known = [GRACE, *(cls for cls in editors() if cls is not GRACE), *FURTHER]
    return item.nodeid.partition("[")[0], given["family"].name, known.index(given["editor"])


def _meets(pair: tuple[str, str, int], test: int, families: list[str]) -> bool:
    _, family, editor = pair
    turns = min(TURNS, len(families))
    return editor == 0 or families.index(family) % turns == (editor + test) % turns


def _editor_id(editor: Any) -> str:
    if inspect.isclass(editor):
        return editor.__name__
    return f"{type(editor).__name__}-{type(editor.scope).__name__}"


def editors() -> list[type]:
    """Every editor class, found by listing the folder: a new file joins by being there."""
    import editable.adapters as folder

    modules = [importlib.import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)]
    return [cls for module in modules for cls in vars(module).values() if _is_editor_of(module.__name__, cls)]


def _is_editor_of(module: str, value: object) -> bool:
    return (
        inspect.isclass(value)
        and is_dataclass(value)
        and value.__module__ == module
        and not value.__name__.startswith("_")
        and hasattr(value, "apply")
        and hasattr(value, "learn")
    )


@pytest.fixture
def loaded(family: Family, dtype: torch.dtype) -> Loaded:
    """A fresh model of the family, nothing attached."""
    return family.load(dtype)


@pytest.fixture
def attach() -> Iterator[Attach]:
    """Attach an editor to a loaded model; whatever was attached is closed when the test ends."""
    with ExitStack() as stack:

        def attach_one(loaded: Loaded, editor: Any, **options: Any) -> EditableModel:
            em = EditableModel(loaded.model, loaded.tokenizer, editor=editor, **options)
            stack.enter_context(closing(em))
            return em

        yield attach_one


@contextmanager
def _edited(family: Family, dtype: torch.dtype, editor: Any) -> Iterator[Edited]:
    loaded = family.load(dtype)
    with closing(EditableModel(loaded.model, loaded.tokenizer, editor=editor)) as em:
        yield with_edits(loaded, em)


@pytest.fixture(scope="module")
def edited(family: Family, dtype: torch.dtype, editor: Any) -> Iterator[Edited]:
    """A model that has learned four edits, for tests that only read it: built once for a file."""
    with _edited(family, dtype, editor) as made:
        yield made


@pytest.fixture
def fresh(family: Family, dtype: torch.dtype, editor: Any) -> Iterator[Edited]:
    """The same, for one test that changes it."""
    with _edited(family, dtype, editor) as made:
        yield made
