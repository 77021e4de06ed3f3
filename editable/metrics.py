"""What is measured of an edited model, as formulas over numbers, tensors and texts.

Knows no model, no dataset and no file. The survey is Mazzia et al., "A Survey on Knowledge Editing of Neural Networks"
(arXiv 2310.19704), section 2.5, equations 10 to 13 with their retention forms: an edit (x_e, y_e) has a neighbourhood
N(x_e) that must follow it, and everything else, O, must not change. Over nothing a metric is None, never 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# --- right or wrong ---


@dataclass(frozen=True)
class Accuracy:
    """How one input was answered, or the mean over several. Both numbers, always: the first alone flatters.

    Args:
        forced: share of the target's tokens that are most likely where they are due, the tokens before them given
            (teacher forcing: content and length leak from the target).
        exact: share of free greedy answers that are the target and end by themselves, as users would get them; the
            protocol that "The Mirage of Model Editing" (WILD, ACL 2025) asks for, matched as text.
    """

    forced: float
    exact: float

    def __sub__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.forced - other.forced, self.exact - other.exact)


@dataclass(frozen=True)
class Edited:
    """How one edit's own input x_e was answered, and each input of its neighbourhood N(x_e)."""

    own: Accuracy
    neighbourhood: tuple[Accuracy, ...] = ()


def forced_share(logits: Tensor, target: Tensor) -> float:
    """Share of target tokens (n,) that are the most likely ones in logits (n, vocabulary)."""
    return float((logits.argmax(dim=-1) == target).double().mean())


def exact_match(said: str, stopped: bool, wanted: Iterable[str]) -> float:
    """1.0 where the model stopped by itself and said one of the wanted texts, whitespace at the ends aside."""
    return float(stopped and said.strip() in {text.strip() for text in wanted})


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    taken = list(values)
    return math.fsum(taken) / len(taken) if taken else None


def mean_accuracy(accuracies: Iterable[Accuracy]) -> Accuracy | None:
    """Both means; None of nothing."""
    taken = list(accuracies)
    if not taken:
        return None
    count = len(taken)
    return Accuracy(math.fsum(a.forced for a in taken) / count, math.fsum(a.exact for a in taken) / count)


def success_rate(edits: Iterable[Edited]) -> Accuracy | None:
    """SR, reliability: 1/n Σ_e 1[f_e(x_e) = y_e] (survey, section 2.5)."""
    return mean_accuracy(edit.own for edit in edits)


def generalization_rate(edits: Iterable[Edited]) -> Accuracy | None:
    """GR, generality: 1/n Σ_e E_{x ~ N(x_e)} 1[f_e(x) = y_e], over edits that have a neighbourhood (section 2.5)."""
    means = (mean_accuracy(edit.neighbourhood) for edit in edits)
    return mean_accuracy(one for one in means if one is not None)


def edit_success(edits: Iterable[Edited]) -> Accuracy | None:
    """ES: 1/n Σ_e E_{x ~ N(x_e) ∪ {x_e}} 1[f_e(x) = y_e] (section 2.5; MEND and SERAC call it so too)."""
    means = (mean_accuracy((edit.own, *edit.neighbourhood)) for edit in edits)
    return mean_accuracy(one for one in means if one is not None)


def drawdown(before: Iterable[Accuracy], after: Iterable[Accuracy]) -> Accuracy | None:
    """DD: E_{x ~ O} 1[f(x) = y] - E_{x ~ O} 1[f_e(x) = y], what was lost outside of the scope (section 2.5).

    0 is best; a negative drawdown is a gain.
    """
    was, now = mean_accuracy(before), mean_accuracy(after)
    return None if was is None or now is None else was - now


def retained(
    rate: Callable[[Iterable[Edited]], Accuracy | None], batches: Iterable[Iterable[Edited]]
) -> Accuracy | None:
    """SRR, GRR and ESR: a rate over all edits of N successive batches of B, all answered by the final model f_N.

    SRR = 1/(N B) Σ_{i=1..N} Σ_{b=1..B} 1[f_N(x_{i,b}) = y_{i,b}], which is `retained(success_rate, batches)`; GRR and
    ESR put f_N into `generalization_rate` and `edit_success` in the same way (section 2.5).
    """
    return rate([edit for batch in batches for edit in batch])


# --- the new answer against the true one (CounterFact) ---


@dataclass(frozen=True)
class Contrast:
    """Negative log-likelihood per token, in nats, of the edit's new answer and of the one it replaces."""

    new_nats: float
    true_nats: float

    @property
    def margin(self) -> float:
        """P(new) - P(true), each the geometric mean of its tokens' probabilities."""
        return math.exp(-self.new_nats) - math.exp(-self.true_nats)


@dataclass(frozen=True)
class CounterFact:
    """ROME's metrics (Meng et al. 2022, section 3.3); None where there were no such prompts.

    Args:
        efficacy: ES, share of edits with P(new) > P(true) on the edit's prompt.
        paraphrase: PS, the same on its paraphrases.
        neighbourhood: NS, share of prompts about other subjects on which P(true) > P(new) still.
        score: S, the harmonic mean of the three.
        efficacy_magnitude: EM, mean of P(new) - P(true).
        paraphrase_magnitude: PM, the same on paraphrases.
        neighbourhood_magnitude: NM, mean of P(true) - P(new) on the neighbourhood.
    """

    efficacy: float | None
    paraphrase: float | None
    neighbourhood: float | None
    score: float | None
    efficacy_magnitude: float | None
    paraphrase_magnitude: float | None
    neighbourhood_magnitude: float | None


def counterfact(
    prompts: Sequence[Contrast], paraphrases: Sequence[Sequence[Contrast]], neighbours: Sequence[Sequence[Contrast]]
) -> CounterFact:
    """All of ROME's metrics; paraphrases and neighbours come by edit, and each edit counts once."""
    own = [(contrast,) for contrast in prompts]
    shares = (_by_edit(own, _prefers_new), _by_edit(paraphrases, _prefers_new), _by_edit(neighbours, _prefers_true))
    sizes = (
        _by_edit(own, lambda c: c.margin),
        _by_edit(paraphrases, lambda c: c.margin),
        _by_edit(neighbours, lambda c: -c.margin),
    )
    return CounterFact(*shares, harmonic_mean(shares), *sizes)


def _prefers_new(contrast: Contrast) -> float:
    return float(contrast.new_nats < contrast.true_nats)


def _prefers_true(contrast: Contrast) -> float:
    return float(contrast.true_nats < contrast.new_nats)


def _by_edit(groups: Sequence[Sequence[Contrast]], value: Callable[[Contrast], float]) -> float | None:
    means = (mean(value(contrast) for contrast in group) for group in groups)
    return mean(one for one in means if one is not None)


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """N / Σ 1/v; 0 where a value is 0, None where one is missing."""
    taken = list(values)
    if not taken or any(value is None for value in taken):
        return None
    known = [value for value in taken if value is not None]
    return 0.0 if min(known) <= 0 else len(known) / math.fsum(1 / value for value in known)


def nats_per_token(logits: Tensor, target: Tensor) -> float:
    """Mean negative log-likelihood of target tokens (n,) under logits (n, vocabulary)."""
    picked = logits.double().log_softmax(dim=-1).gather(-1, target[:, None])
    return -float(picked.mean())


# --- texts ---

WORD = re.compile(r"\w+|[^\w\s]")
TERM = re.compile(r"\b\w\w+\b")  # scikit-learn's: words of two letters or more
WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def fluency(text: str) -> float | None:
    """Weighted mean entropy, in bits, of the text's bigrams (weight 2/3) and trigrams (4/3); less is more repetitive.

    1/2 Σ_{n=2,3} w_n H_n with H_n = -Σ_k p_n(k) log2 p_n(k) (GE of ROME, section 3.3, as its code computes it). Words
    are split by a pattern of ours, where that code uses NLTK's tokenizer; None for texts of fewer than three words.
    """
    words = WORD.findall(text)
    if len(words) < max(WEIGHTS):
        return None
    return mean(weight * _entropy_bits(_grams(words, size)) for size, weight in WEIGHTS.items())


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def _entropy_bits(items: Sequence[tuple[str, ...]]) -> float:
    total = len(items)
    return -math.fsum(count / total * math.log2(count / total) for count in Counter(items).values())


class TfIdf:
    """Unigram TF-IDF over a corpus, as scikit-learn's `TfidfVectorizer` defines it by default, without needing it.

    Lower case; tf is the count; idf = ln((1 + documents) / (1 + documents with the term)) + 1; Euclidean norm 1. Terms
    outside of the corpus are left out.

    Args:
        corpus: the texts that say how common a term is; at least one.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        found = Counter(term for text in corpus for term in set(_terms(text)))
        self._index = {term: place for place, term in enumerate(sorted(found))}
        documents = np.array([found[term] for term in self._index], dtype=np.float64)
        self._idf = np.log((1 + len(corpus)) / (1 + documents)) + 1

    def vector(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(terms,) of one text; zeros where it has no term of the corpus."""
        counts = np.zeros(len(self._index))
        for term in _terms(text):
            if term in self._index:
                counts[self._index[term]] += 1
        counts *= self._idf
        counts /= np.linalg.norm(counts) or 1.0
        return counts


def _terms(text: str) -> list[str]:
    return TERM.findall(text.lower())


def consistency(said: Sequence[str], reference: Sequence[str], vectors: TfIdf) -> float:
    """Cosine of the TF-IDF vectors of the generated texts and the reference texts, each joined (RS of ROME, 3.3)."""
    return float(vectors.vector(" ".join(said)) @ vectors.vector(" ".join(reference)))


# --- what changed where nothing should ---


def bit_equal(after: Tensor, before: Tensor) -> bool:
    """Whether two tensors have one shape and dtype and the very same bits, NaN and the sign of zero included."""
    if after.shape != before.shape or after.dtype != before.dtype:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (after, before)]
    return bool(torch.equal(*raw))


def bit_equal_share(after: Sequence[Tensor], before: Sequence[Tensor]) -> float | None:
    """Share of inputs whose logits are bit-equal."""
    return mean(float(bit_equal(a, b)) for a, b in zip(after, before, strict=True))


def kl_nats(before: Tensor, after: Tensor) -> float:
    """KL(before || after) of two distributions by logits (positions, vocabulary): its mean over positions, in nats."""
    p, q = before.double().log_softmax(dim=-1), after.double().log_softmax(dim=-1)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def agreement(after: Tensor, before: Tensor) -> float:
    """Share of positions of logits (positions, vocabulary) whose most likely token is the same."""
    return float((after.argmax(dim=-1) == before.argmax(dim=-1)).double().mean())


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Exp of the mean negative log-likelihood per token, over texts with so many `nats` per token and `tokens`."""
    total = sum(tokens)
    if not total:
        return None
    return math.exp(math.fsum(n * t for n, t in zip(nats, tokens, strict=True)) / total)


def perplexity_drift(after: float | None, before: float | None) -> float | None:
    """Perplexity of the edited model over that of the base; 1 is no drift."""
    return None if after is None or before is None else after / before
