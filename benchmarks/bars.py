"""Figures that should stay on one side of a bar, and whether they do.

Knows numbers. Refuses to know what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from editable.benchmarks.report import Table


@dataclass(frozen=True)
class Bar:
    """One figure and its bar.

    Args:
        figure: what it is, with its unit.
        value: what was measured; None where it could not be, which does not meet the bar.
        sign: on which side of the bar it should be.
        bar: the bar itself is met.
        interval: lower and upper end, where it has one; what counts is the value.
    """

    figure: str
    value: float | None
    sign: Literal["<=", ">="]
    bar: float
    interval: tuple[float, float] | tuple[()] = ()

    @property
    def met(self) -> bool:
        """Whether the value is on the right side."""
        if self.value is None:
            return False
        return self.value <= self.bar if self.sign == "<=" else self.value >= self.bar


def table(bars: Iterable[Bar]) -> Table:
    """A line for each."""
    rows = [
        (b.figure, b.value, *(b.interval or (None, None)), f"{b.sign} {b.bar:g}", "yes" if b.met else "NO")
        for b in bars
    ]
    return Table("figures with a bar", ("", "value", "low", "high", "bar", "met"), rows)


def met(bars: Iterable[Bar]) -> dict[str, bool]:
    """Which are, as plain JSON."""
    return {bar.figure: bar.met for bar in bars}
