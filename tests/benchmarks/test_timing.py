"""Statistics of times, on numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from editable.benchmarks import timing


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_spread_gives_median_and_tails() -> None:
    found = timing.spread(range(1, 102), scale=10.0)
    assert (found.median, found.p5, found.p95, found.count) == (510.0, 60.0, 960.0, 101)
    assert found.p5 < found.low < found.median < found.high < found.p95


def test_a_spread_of_equal_times_is_certain_and_has_its_unit_in_the_keys() -> None:
    named = dict.fromkeys(("median_ms", "low_ms", "high_ms", "p5_ms", "p95_ms"), 2.0)
    assert timing.spread([2.0, 2.0]).as_dict("ms") == named | {"count": 2}


def test_paired_ratio_of_proportional_samples_is_certain() -> None:
    found = timing.ratio_of_medians([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], rng())
    assert (found.ratio, found.low, found.high, found.paired) == (2.0, 2.0, 2.0, 2.0)


def test_unpaired_ratio_of_the_same_samples_is_not() -> None:
    found = timing.ratio_of_medians([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], rng(), paired=False)
    assert found.ratio == 2.0
    # The extremes of resampled medians are 2 / 3 and 6 / 1; the interval lies between.
    assert 2 / 3 <= found.low < 2.0 < found.high <= 6.0
    assert found.paired is None


def test_ratio_of_medians_is_not_the_median_of_ratios() -> None:
    found = timing.ratio_of_medians([1.0, 2.0, 9.0], [1.0, 4.0, 3.0], rng())
    assert found.ratio == pytest.approx(2 / 3)
    assert found.paired == 1.0


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 measurements, expected pairs"):
        timing.ratio_of_medians([1.0, 2.0], [1.0], rng())


def test_a_ratio_of_windows_takes_percentiles_over_all_of_them() -> None:
    found = timing.ratio_of_windows([[1.0, 3.0], [2.0, 4.0]], [[1.0], [1.0, 1.0]], 50, rng())
    assert found.ratio == 2.5  # the median of 1, 2, 3, 4
    assert (found.low, found.high) == (2.0, 3.0)  # of the first window drawn twice, of the second drawn twice
    assert timing.ratio_of_windows([[1.0, 3.0], [2.0, 4.0]], [[1.0], [1.0]], 100, rng()).ratio == 4.0


def test_windows_are_drawn_in_pairs() -> None:
    found = timing.ratio_of_windows([[2.0, 2.0], [20.0, 20.0]], [[1.0, 1.0], [10.0, 10.0]], 100, rng())
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)


def test_windows_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 windows, expected pairs"):
        timing.ratio_of_windows([[1.0], [1.0]], [[1.0]], 50, rng())


def test_every_side_runs_once_a_round_and_warming_up_is_not_counted() -> None:
    ran: list[str] = []

    def side(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    seconds = timing.interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 8, 2, rng())
    assert [sorted(ran[turn : turn + 2]) for turn in range(0, 20, 2)] == [["a", "b"]] * 10
    assert {len(values) for values in seconds.values()} == {8}
    assert min(min(values) for values in seconds.values()) > 4
    assert ran[::2] != ["a"] * 10  # the order is drawn anew


def test_a_clocked_act_runs_once_each_time_and_is_timed() -> None:
    ran: list[int] = []
    timed = timing.clocked(lambda: ran.append(1))
    assert ran == []
    assert timed() > 0
    assert ran == [1]
