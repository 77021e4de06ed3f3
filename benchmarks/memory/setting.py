"""What every part of the memory benchmark is given, and how times with tails are summed up."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from editable.benchmarks.memory.keys import Real
from editable.benchmarks.prompts import Prompts


@dataclass(frozen=True)
class Setting:
    """The model, prompts of one length for its forwards, what keys are made from, and the options."""

    model: Any
    tokenizer: Any
    prompts: Prompts
    real: Real
    options: argparse.Namespace
    rng: np.random.Generator

    @property
    def values(self) -> int:
        """Features of a value that an edit would hold beside its key."""
        return int(self.model.config.hidden_size)


@dataclass(frozen=True)
class Tail:
    """Times in ms: mean, median and 99th percentile."""

    mean: float
    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Tail:
        """Of at least one time."""
        taken = np.array(list(seconds)) * 1e3
        p50, p99 = np.percentile(taken, (50, 99))
        return cls(float(taken.mean()), float(p50), float(p99), len(taken))

    def as_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        times = {name: round(value, 6) for name, value in vars(self).items() if name != "count"}
        return {f"{name}_ms": value for name, value in times.items()} | {"count": self.count}

    @property
    def cells(self) -> tuple[float, float, float]:
        """For a table."""
        return self.mean, self.p50, self.p99


TAIL = ("mean", "p50", "p99")
