"""Short images of a long vector that never exaggerate a distance.

A vector is moved to the sample's mean and projected onto orthonormal directions, those that tell most vectors of the
sample apart; what is left over counts by its norm alone. So the distance of two sketches is at most the distance of the
two vectors, and in activation space, where few directions carry most of the variance, it is not much less. Knows
nothing of balls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.distance import UNIT
from editable.memory.package import loops

DIRECTIONS = 127  # in a sketch; one more number is the norm of the rest
TOGETHER = 64  # vectors sketched at a time: what is worked out on the way stays in the caches
SAMPLE = 4096  # vectors the directions are taken from
NEIGHBOURS = 1024  # of these, at least, that are held against their nearest neighbour

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sketch:
    """The map.

    Args:
        mean: (features,) float32.
        directions: (features, directions) float64, orthonormal columns; those that tell most first.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def of_sample(cls, vectors: Tensor, seed: int = 0) -> Sketch:
        """Fit to vectors (n, features): the leading directions of what `_told_apart` has, by subspace iteration."""
        mean = vectors.double().mean(dim=0).float()
        apart = _told_apart(vectors, mean)
        width = min(DIRECTIONS, *vectors.shape)
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(vectors.shape[1], width + 8, generator=generator, dtype=torch.float64)
        for _ in range(3):
            basis = torch.linalg.qr(apart.T @ (apart @ basis)).Q
        _, _, turned = torch.linalg.svd(apart @ basis, full_matrices=False)
        return cls(mean, torch.linalg.qr(basis @ turned.T).Q[:, :width].contiguous())

    @property
    def width(self) -> int:
        """Numbers of a sketch."""
        return self.directions.shape[1] + 1

    def of(self, vectors: Tensor) -> Tensor:
        """(n, width) float32, of vectors (n, features)."""
        return torch.cat([self._of(some) for some in vectors.split(TOGETHER)])

    def _of(self, vectors: Tensor) -> Tensor:
        centred = vectors.double() - self.mean
        along = centred @ self.directions
        rest = centred.square().sum(dim=1) - along.square().sum(dim=1)
        return torch.cat([along, rest.clamp_min(0).sqrt()[:, None]], dim=1).float()

    def of_queries(self, vectors: Tensor) -> Sketched:
        """The sketches of vectors (m, features) in float32 arithmetic, which reads half as much."""
        points, lengths = loops().sketched(vectors.numpy(), self._mean, self._across)
        left = [_leftover(*both, *self._across.shape) for both in lengths.tolist()]
        points[:, -1] = [rest for rest, _ in left]
        return Sketched(points, lengths.max(axis=1).tolist(), [error for _, error in left])

    @cached_property
    def _across(self) -> Numbers:
        """(directions, features) float32: the directions as rows."""
        return self.directions.T.float().contiguous().numpy()

    @cached_property
    def _mean(self) -> Numbers:
        return self.mean.numpy()


def _told_apart(vectors: Tensor, mean: Tensor) -> Tensor:
    """(m, features) float64: from where to where the sketches of vectors (n, features) have to tell.

    From the mean to a vector, and from a vector to its nearest neighbour: the farther two are from each other, the
    fewer directions it takes. Each counts alike, or the loosest of several clusters would decide for all.
    """
    some = vectors[:: max(1, len(vectors) // NEIGHBOURS)]
    nearest = torch.cdist(some, vectors).topk(min(2, len(vectors)), largest=False).indices[:, -1]  # itself is the first
    apart = torch.cat([some.double() - mean, some.double() - vectors[nearest]])
    apart /= apart.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return apart


@dataclass(frozen=True)
class Sketched:
    """Some vectors that an index is asked about, sketched.

    Args:
        points: (m, width) float32, the sketches.
        lengths: (m,) squares of their lengths, but for a few roundings.
        errors: (m,) how far each may lie from the exact one, for any order of summation.
    """

    points: Numbers
    lengths: list[float]
    errors: list[float]


def _leftover(square: float, kept: float, directions: int, features: int) -> tuple[float, float]:
    """The length of what is left of a vector of this squared length once directions have taken `kept` of it.

    The second is how far the sketch may lie from the exact one, computed in float32.
    """
    size, rest = math.sqrt(square), math.sqrt(max(square - kept, 0.0))
    error = math.sqrt(directions) * (features + 4) * UNIT * size
    # A leftover norm is the root of a difference, so its error grows where little is left over.
    change = 2 * error * size + error**2 + 8 * features * UNIT * square
    return rest, error + change / max(rest, math.sqrt(change), 1e-300)


@dataclass(frozen=True)
class Slack:
    """How far apart two sketches may be measured to be, where their vectors are measured to lie within a radius.

    Both measurements are float32. The one of the vectors may fall short by (features + 2) roundings, the one of the
    sketches exceed by as many as they are wide; and the numbers of a sketch are rounded themselves.

    Args:
        stretch: the factor to the radius.
        shift: what is added.
    """

    stretch: float
    shift: float

    @classmethod
    def of(cls, features: int, size: float, error: float = 0.0) -> Slack:
        """For vectors (features,) whose sketches have norms of at most `size`, one of them with a further error."""
        return cls(1 + (features + 2 * DIRECTIONS + 8) * UNIT, 64 * UNIT * size + error)

    def __call__(self, radius: Any) -> Any:
        """The bound for one radius, or for an array of them."""
        return radius * self.stretch + self.shift
