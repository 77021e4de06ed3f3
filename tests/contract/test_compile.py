"""torch.compile: attached first, compiled afterwards, later edits are seen; compiled first is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from editable.errors import StateError
from tests.conftest import Attach
from tests.contract.harness import edits_of, hooks, named, once
from tests.families import Loaded, logits_of

COMPILED = named("llama-gqa", "bert", "resnet")

pytestmark = [pytest.mark.timeout(300), once]  # editors act outside the graph


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Graphs of one test are not the next one's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(loaded: Loaded, way: str) -> Loaded:
    if way == "in place":
        loaded.model.compile(backend="eager")
        return loaded
    return replace(loaded, model=torch.compile(loaded.model, backend="eager"))


@torch.no_grad()
def _logits(loaded: Loaded) -> torch.Tensor:
    return logits_of(loaded.model(**_feed(loaded)))


def _feed(loaded: Loaded) -> dict[str, torch.Tensor]:
    plain = replace(loaded, model=getattr(loaded.model, "_orig_mod", loaded.model))
    return plain.feed(plain.edited)


@COMPILED
@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_compiled_after_attaching_sees_later_edits(loaded: Loaded, editor: Any, attach: Attach, way: str) -> None:
    base = loaded.logits(loaded.edited)
    em = attach(loaded, editor)
    compiled = _compiled(loaded, way)
    torch.testing.assert_close(_logits(compiled), base)
    receipts = em.edit(edits_of(loaded, [0, 1]))
    _check_rows(_logits(compiled), base, {0, 1})
    em.rollback(receipts[0].id)
    _check_rows(_logits(compiled), base, {1})
    with em.unedited():
        torch.testing.assert_close(_logits(compiled), base)
    em.rollback(receipts[1].id)
    torch.testing.assert_close(_logits(compiled), base)


def _check_rows(now: torch.Tensor, base: torch.Tensor, edited: set[int]) -> None:
    for row in range(len(base)):
        assert torch.allclose(now[row], base[row], atol=1e-4, rtol=1e-4) == (row not in edited), f"row {row}"


@named("gpt2")
def test_compiled_says_what_eager_says(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    em.edit(edits_of(loaded, [0, 1, 2]))
    eager = loaded.generate(loaded.edited)
    assert all(loaded.is_answer(eager[index], index) for index in range(3))
    _compiled(loaded, "in place")
    assert loaded.generate(loaded.edited) == eager


@COMPILED
@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_compiled_before_attaching_is_refused(loaded: Loaded, editor: Any, attach: Attach, way: str) -> None:
    before = hooks(loaded.model)
    with pytest.raises(StateError, match="compile"):
        attach(_compiled(loaded, way), editor)
    assert hooks(loaded.model) == before


@named("llama-gqa", "vit")
def test_a_compiled_part_is_refused(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """A graph inside the model that was compiled without the hooks would go on without them."""
    base = loaded.logits(loaded.edited)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.ModuleList):
            module[-1].compile(backend="eager")
    with pytest.raises(StateError, match="compile"):
        attach(loaded, editor)
    torch.testing.assert_close(loaded.logits(loaded.edited), base)
