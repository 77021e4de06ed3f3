"""Training and calibrating the classifier of sentence scopes: seconds on one core, weights of a few kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from editable.encoders import Encoder
from editable.memory.scope import FEATURES, Classifier, Encoded, Phrase, comparable, compared
from editable.memory.wording import Words, readings
from editable.scope_data import KINDS, Pair

HIDDEN = 24
STEPS = 1500
RATE = 0.01
DECAY = 0.1
HELD_OUT = 4  # every fourth relation is held out, to calibrate on
CALIBRATED = ("sibling", "namesake", "other relation", "unrelated")  # what the user's rate of false fires is about
AGAINST = ("other names", "numbers differ", "words beyond", "goes on", "longer name")  # features; the others speak for
RATES = (0.15, 0.1, 0.03, 0.01, 0.003)  # of false fires, that are reported
NEVER = -30.0  # log-odds that stand for pairs which are never classified
QUANTILES = 2000  # of the scores of held-out negatives, the highest ones
WEIGHTS = {
    "rephrase": 1.0,
    "sibling": 1.0,
    "namesake": 1.0,
    "other relation": 5.0,
    "unrelated": 0.3,
    "answered": 0.3,
}
TOGETHER = 256  # texts encoded at a time


@dataclass(frozen=True, eq=False)
class Compared:
    """Pairs as a classifier sees them.

    Args:
        features: (n, features).
        same: (n,) whether both ask the same.
        able: (n,) whether they may at all, see `memory.scope.comparable`; others are never classified.
        pairs: n of them.
    """

    features: NDArray[np.float64]
    same: NDArray[np.bool_]
    able: NDArray[np.bool_]
    pairs: Sequence[Pair]

    def select(self, kept: NDArray[np.bool_]) -> Compared:
        """Only those."""
        pairs = [pair for pair, keep in zip(self.pairs, kept, strict=True) if keep]
        return Compared(self.features[kept], self.same[kept], self.able[kept], pairs)


def compare(pairs: Sequence[Pair], encoder: Encoder) -> Compared:
    """What can be said of every pair; a text of several sentences is seen as a whole and by its last one."""
    shown = [(part, pair) for pair in pairs for part in readings(pair.text)]
    texts = list(dict.fromkeys([text for text, _ in shown] + [pair.prompt for pair in pairs]))
    read: dict[str, Encoded] = {}
    for start in range(0, len(texts), TOGETHER):
        some = sorted(texts, key=len)[start : start + TOGETHER]
        read.update(zip(some, encoder.encode(some), strict=True))
    words = {text: Words(text) for text, _ in shown}
    phrases = [Phrase.of(read[pair.prompt], pair.subject) for _, pair in shown]
    triples = [(read[text], words[text], phrase) for (text, _), phrase in zip(shown, phrases, strict=True)]
    features, able = np.array([compared(*one) for one in triples]), np.array([comparable(*one) for one in triples])
    same = np.array([pair.kind == KINDS[0] for _, pair in shown])
    return Compared(features, same, able, [pair for _, pair in shown])


def train(data: Compared, seed: int = 0) -> Classifier:
    """Fit on most relations, calibrate on those held out."""
    fitted = _fitted(data.select(~_held_out(data)), seed)
    kept = data.select(_held_out(data))
    near_misses = np.array([pair.kind in CALIBRATED for pair in kept.pairs])
    scores = np.where(kept.able, Classifier(fitted)(kept.features), NEVER)[near_misses]
    highest = np.sort(scores)[::-1][:QUANTILES]
    calibration = {"negatives": highest.copy(), "count": np.array([float(len(scores))])}
    return Classifier({**fitted, **calibration})


def held_out(classifier: Classifier, data: Compared) -> dict[str, dict[str, float]]:
    """For some rates of false fires, the share of held-out pairs of each kind that fire."""
    kept = data.select(_held_out(data))
    scores = np.where(kept.able, classifier(kept.features), NEVER)
    kinds = np.array([pair.kind for pair in kept.pairs])
    there = [kind for kind in KINDS if (kinds == kind).any()]
    return {
        str(rate): {kind: float((scores[kinds == kind] >= classifier.threshold(rate)).mean()) for kind in there}
        for rate in RATES
    }


def _held_out(data: Compared) -> NDArray[np.bool_]:
    return np.array([pair.group % HELD_OUT == 0 for pair in data.pairs])


def _fitted(data: Compared, seed: int) -> dict[str, NDArray[np.float64]]:
    # Each feature speaks for the same or against it, whatever the others say: so far from all that was seen, too.
    mean, scale = data.features.mean(axis=0), data.features.std(axis=0) + 1e-6
    inputs = torch.from_numpy((data.features - mean) / scale)
    wanted = torch.from_numpy(data.same).double()
    weight = torch.tensor([WEIGHTS[pair.kind] for pair in data.pairs], dtype=torch.double)
    weight = torch.where(wanted > 0, weight * (weight * (1 - wanted)).sum() / (weight * wanted).sum(), weight)
    raw, bias, raw_out, shift = _start(inputs.shape[1], seed)
    speaks_for = torch.tensor([-1.0 if name in AGAINST else 1.0 for name in FEATURES], dtype=torch.double)
    optimiser = torch.optim.AdamW([raw, bias, raw_out, shift], lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        hidden, out = raw.abs() * speaks_for, raw_out.abs()
        scores = torch.tanh(inputs @ hidden.T + bias) @ out + shift
        loss = nn.functional.binary_cross_entropy_with_logits(scores, wanted, weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layers = {"hidden": raw.abs() * speaks_for, "hidden_bias": bias, "out": raw_out.abs(), "out_bias": shift}
    return {"mean": mean, "scale": scale, **{name: layer.detach().numpy() for name, layer in layers.items()}}


def _start(features: int, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((HIDDEN, features), 0.05), ((HIDDEN,), 1.0), ((HIDDEN,), 0.3), ((1,), 0.3)
    tensors = [torch.randn(*shape, generator=draw, dtype=torch.double) * scale for shape, scale in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def save(classifier: Classifier, path: str | Path) -> None:
    """Write the weights, for `SentenceScope(classifier=path)`."""
    save_file({name: np.ascontiguousarray(w, np.float32) for name, w in classifier.weights.items()}, str(path))
