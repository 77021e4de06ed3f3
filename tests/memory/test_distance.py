"""Squared distances: which keys they leave out, and that these are none that are measured to be near."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory.distance import below, may_be_within, squares
from tests.memory.kinds import KINDS, distances, drawn


def near(query: Tensor, keys: Tensor, distance: float) -> list[int]:
    with np.errstate(all="ignore"):  # as books do, for what float32 cannot hold
        found: list[int] = may_be_within(squares(query.numpy(), keys.numpy()), distance, len(query)).tolist()
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 300),
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 2**31),
    st.sampled_from([1e-25, 1e-19, 1e-12, 1e-3, 1.0, 1e3]),
)
def test_what_is_measured_to_be_near_is_never_left_out(features: int, kind: str, seed: int, scale: float) -> None:
    keys = KINDS[kind](40, features, seed) * scale
    for query in torch.cat([keys[:3], drawn(2, features, seed + 1) * scale]):
        apart = distances(query, keys)
        for distance in (0.0, *apart.sort().values[[0, 1, 20]].tolist()):
            assert set(near(query, keys, distance)) >= set((apart <= distance).nonzero()[:, 0].tolist())


def test_little_more_is_let_in() -> None:
    query, keys = drawn(1, 500, 1)[0], drawn(50, 500, 2)
    apart = distances(query, keys).sort().values
    for count in range(1, 50):
        assert len(near(query, keys, float(apart[count - 1]))) == count


def test_by_hand() -> None:
    """(3, 4) is 5 from the origin and sqrt(8) from (1, 2)."""
    keys = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert squares(np.array([3.0, 4.0], np.float32), keys.numpy()).tolist() == [25.0, 8.0]
    assert near(torch.tensor([3.0, 4.0]), keys, 8**0.5) == [1]
    assert near(torch.tensor([3.0, 4.0]), keys, 5.0) == [0, 1]
    assert near(torch.tensor([3.0, 4.0]), keys, 2.8) == []


def test_a_query_that_is_every_other_number_of_a_longer_one() -> None:
    keys = torch.tensor([[1.0, 2.0]])
    assert squares(np.array([4.0, 9.0, 6.0, 9.0], np.float32)[::2], keys.numpy()).tolist() == [25.0]


@pytest.mark.parametrize("odd", [torch.nan, 1e25])
def test_where_float32_ends_a_key_may_be_anywhere_that_is_as_far(odd: float) -> None:
    keys = torch.tensor([[1.0, 0.0], [odd, 0.0]])
    assert near(torch.tensor([1.0, 0.0]), keys, 1e20) == [0, 1]


def test_nothing_is_below_where_there_is_nothing() -> None:
    assert below(np.empty(0, np.float32), 1.0).tolist() == []
    assert below(np.array([2.0, 1.0, 3.0, np.nan], np.float32), 2.0).tolist() == [0, 1, 3]
