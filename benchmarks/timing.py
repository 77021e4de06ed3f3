"""How times are taken and summed up: pairs in random order after a warm-up, medians, bootstrap intervals.

Knows clocks and statistics. Refuses to know what is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

DRAWS = 2000  # bootstrap samples
LEVEL = (2.5, 97.5)  # percentiles of the bootstrap that bound an interval
SEED = 0  # of the bootstrap of a spread: the same times always give the same interval

Samples = NDArray[np.float64]


def clocked(act: Callable[[], object]) -> Callable[[], float]:
    """A function that runs `act` and gives the seconds it took, device included."""

    def timed() -> float:
        wait_for_device()
        start = time.perf_counter()
        act()
        wait_for_device()
        return time.perf_counter() - start

    return timed


def wait_for_device() -> None:
    """CUDA runs behind the host; elsewhere there is nothing to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    sides: Mapping[str, Callable[[], float]], rounds: int, warmup: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Seconds of each side, round by round; in a round every side runs once, in random order.

    What else the machine does falls on all sides alike, and neither always finds the caches warmed by the other.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for index in rng.permutation(len(names)):
            elapsed = sides[names[index]]()
            if turn >= warmup:
                seconds[names[index]].append(elapsed)
    return seconds


# --- statistics ---


@dataclass(frozen=True)
class Spread:
    """Median with its 95 % bootstrap interval, 5th and 95th percentile; the holder names the unit."""

    median: float
    low: float
    high: float
    p5: float
    p95: float
    count: int

    def as_dict(self, unit: str) -> dict[str, float]:
        """Plain JSON values, the unit in the keys."""
        named = {name: value for name, value in vars(self).items() if name != "count"}
        return {f"{name}_{unit}": round(value, 6) for name, value in named.items()} | {"count": self.count}


def spread(values: Iterable[float], scale: float = 1.0) -> Spread:
    """The spread of at least one value, each multiplied by `scale`."""
    taken = np.array(list(values), dtype=np.float64) * scale
    p5, median, p95 = np.percentile(taken, (5, 50, 95))
    chosen = np.random.default_rng(SEED).integers(len(taken), size=(DRAWS, len(taken)))
    low, high = np.percentile(np.median(taken[chosen], axis=1), LEVEL)
    return Spread(float(median), float(low), float(high), float(p5), float(p95), len(taken))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % bootstrap interval; of medians also the median of the ratios pair by pair."""

    ratio: float
    low: float
    high: float
    paired: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Plain JSON values."""
        return {name: None if value is None else round(value, 5) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_of_medians(
    above: Sequence[float], below: Sequence[float], rng: np.random.Generator, paired: bool = True, draws: int = DRAWS
) -> Ratio:
    """Median of `above` over median of `below`; paired samples are drawn together, others each by themselves.

    Raises:
        ValueError: paired samples of different length.
    """
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if paired and len(top) != len(bottom):
        raise ValueError(f"{len(top)} and {len(bottom)} measurements, expected pairs")
    chosen = rng.integers(len(top), size=(draws, len(top)))
    other = chosen if paired else rng.integers(len(bottom), size=(draws, len(bottom)))
    drawn = np.median(top[chosen], axis=1) / np.median(bottom[other], axis=1)
    low, high = np.percentile(drawn, LEVEL)
    by_pair = float(np.median(top / bottom)) if paired else None
    return Ratio(float(np.median(top) / np.median(bottom)), float(low), float(high), by_pair)


def ratio_of_windows(
    above: Sequence[Sequence[float]],
    below: Sequence[Sequence[float]],
    percentile: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Ratio:
    """A percentile of all measurements of some windows over that of the windows they are paired with.

    What is drawn for the interval are pairs of windows, whole: measurements of one window are alike, so drawing them
    one by one would promise more than is known.

    Raises:
        ValueError: numbers of windows that differ.
    """
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} windows, expected pairs")
    top, bottom = ([np.asarray(window, dtype=np.float64) for window in side] for side in (above, below))

    def ratio(chosen: Iterable[int]) -> float:
        kept = list(chosen)
        over, under = (np.concatenate([side[i] for i in kept]) for side in (top, bottom))
        return float(np.percentile(over, percentile) / np.percentile(under, percentile))

    drawn = [ratio(row) for row in rng.integers(len(top), size=(draws, len(top)))]
    low, high = np.percentile(drawn, LEVEL)
    return Ratio(ratio(range(len(top))), float(low), float(high))
