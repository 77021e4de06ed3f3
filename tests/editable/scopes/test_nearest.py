"""The nearest scope: no ball grows or splits, whichever editor takes it."""

from __future__ import annotations

import pytest
import torch

from editable.adapters import GRACE
from editable.benchmarks.editors import find
from editable.edit import Patch
from editable.errors import InputError
from editable.routing import Scope
from editable.scopes import BallScope, NearestScope
from tests.conftest import Attach
from tests.contract.harness import edits_of
from tests.families import FAMILIES, Loaded


@pytest.fixture(params=["llama-gqa", "bert", "resnet"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return next(family for family in FAMILIES if family.name == request.param).load()


def test_another_editor_routes_by_it(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, GRACE(scope=NearestScope()))
    before = loaded.logits(loaded.unrelated)
    receipts = em.edit(edits_of(loaded, range(6)))
    assert torch.equal(loaded.logits(loaded.unrelated), before)
    assert em.explain(loaded.edited[1]).fired == [receipts[1].id]
    assert len(em.explain(loaded.edited[1]).found) == 5


def test_a_wide_radius_parts_by_the_nearest_key(loaded: Loaded, attach: Attach) -> None:
    """Each prompt lies within reach of another one's edit; a `BallScope` would have split."""
    em = attach(loaded, GRACE(scope=NearestScope(gate=False)))
    receipts = [em.edit(edit) for edit in edits_of(loaded, range(6))]
    considered = [em.explain(x) for x in loaded.edited]
    assert [one.fired for one in considered] == [[receipt.id] for receipt in receipts]
    assert {one.considered.needed for each in considered for one in each.found} == {float("inf")}
    assert len(em.explain(loaded.unrelated[0]).fired) == 1, "without a gate the nearest is always meant"


def test_a_patch_without_keys_is_refused() -> None:
    scope = NearestScope()
    with pytest.raises(InputError, match="no activation keys"):
        scope.insert([Patch("a", {"answer": torch.tensor([1])})], 0, scope.empty())


def test_the_command_line_names_it() -> None:
    assert find("grace", {"scope": "nearest(radius=2.5)"}) == GRACE(scope=NearestScope(2.5))


@pytest.mark.parametrize("scope", [NearestScope(), BallScope()])
def test_activations_do_not_tell_what_builds_on_an_edit(scope: Scope) -> None:
    assert scope.built_on(3, "who is that", str, scope.empty(), {}) == [3]
    assert scope.asks == 1.0
