"""Every metric against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from editable import metrics
from editable.metrics import Accuracy, Contrast, Edited, TfIdf

RIGHT, WRONG, HALF = Accuracy(1.0, 1.0), Accuracy(0.0, 0.0), Accuracy(0.5, 0.0)


# --- right or wrong ---


def test_forced_share_counts_tokens() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 9.0], [1.0, 0.0, 0.0]])
    assert metrics.forced_share(logits, torch.tensor([1, 0, 2, 1])) == 0.75


@pytest.mark.parametrize(
    ("said", "stopped", "wanted", "expected"),
    [
        (" Paris", True, [" Paris"], 1.0),
        ("Paris\n", True, [" Paris"], 1.0),  # whitespace at the ends aside
        (" Paris", False, [" Paris"], 0.0),  # right, and talked on
        (" Paris, of course", True, [" Paris"], 0.0),
        (" paris", True, [" Paris"], 0.0),
        (" the city of Paris", True, [" Paris", " the city of Paris"], 1.0),
        ("", True, [], 0.0),
    ],
)
def test_exact_match_asks_for_the_text_and_the_stop(
    said: str, stopped: bool, wanted: list[str], expected: float
) -> None:
    assert metrics.exact_match(said, stopped, wanted) == expected


def test_means_of_nothing_are_none() -> None:
    assert metrics.mean([]) is None
    assert metrics.mean_accuracy([]) is None
    assert metrics.success_rate([]) is None
    assert metrics.drawdown([], []) is None


EDITS = [
    Edited(RIGHT, (RIGHT, WRONG, WRONG)),  # generality 1/3, edit success 2/4
    Edited(HALF, (HALF,)),  # 1/2 and 1/2 forced, 0 exact
    Edited(RIGHT),  # no neighbourhood: 1 of 1
]


def near(found: Accuracy | None, forced: float, exact: float) -> None:
    assert found is not None
    assert [found.forced, found.exact] == pytest.approx([forced, exact])


def test_success_rate_is_over_edits() -> None:
    near(metrics.success_rate(EDITS), 2.5 / 3, 2 / 3)


def test_generalization_is_a_mean_of_means_over_edits_that_have_a_neighbourhood() -> None:
    near(metrics.generalization_rate(EDITS), (1 / 3 + 1 / 2) / 2, (1 / 3 + 0) / 2)
    assert metrics.generalization_rate([Edited(RIGHT)]) is None


def test_edit_success_is_over_the_edit_and_its_neighbourhood_together() -> None:
    near(metrics.edit_success(EDITS), (2 / 4 + 1 / 2 + 1) / 3, (2 / 4 + 0 + 1) / 3)


def test_drawdown_is_what_was_lost() -> None:
    assert metrics.drawdown([RIGHT, RIGHT], [RIGHT, HALF]) == Accuracy(0.25, 0.5)
    assert metrics.drawdown([WRONG], [HALF]) == Accuracy(-0.5, 0.0)


def test_retention_is_over_all_edits_of_all_batches() -> None:
    # The last batch is shorter: a mean of batch means would say 0.75 and 0.5.
    batches = [[Edited(RIGHT), Edited(WRONG)], [Edited(RIGHT)]]
    near(metrics.retained(metrics.success_rate, batches), 2 / 3, 2 / 3)
    assert metrics.retained(metrics.generalization_rate, batches) is None


# --- CounterFact ---


def contrast(new: float, true: float) -> Contrast:
    """From probabilities."""
    return Contrast(-math.log(new), -math.log(true))


def test_margin_is_a_difference_of_probabilities() -> None:
    assert contrast(0.5, 0.2).margin == pytest.approx(0.3)


def test_counterfact_by_hand() -> None:
    found = metrics.counterfact(
        [contrast(0.5, 0.1), contrast(0.1, 0.2)],
        [[contrast(0.4, 0.1), contrast(0.1, 0.4)], [contrast(0.3, 0.1)]],
        [[contrast(0.1, 0.6)], [contrast(0.2, 0.1), contrast(0.1, 0.5)]],
    )
    assert found.efficacy == 0.5
    assert found.paraphrase == 0.75  # by edit: 1/2 and 1
    assert found.neighbourhood == 0.75  # there the true answer should win: 1 and 1/2
    assert found.score == pytest.approx(3 / (2 + 4 / 3 + 4 / 3))
    assert found.efficacy_magnitude == pytest.approx((0.4 - 0.1) / 2)
    assert found.paraphrase_magnitude == pytest.approx((0.0 + 0.2) / 2)
    assert found.neighbourhood_magnitude == pytest.approx((0.5 + (-0.1 + 0.4) / 2) / 2)


def test_counterfact_where_a_kind_of_prompt_is_missing() -> None:
    found = metrics.counterfact([contrast(0.5, 0.1)], [[]], [])
    assert (found.efficacy, found.paraphrase, found.neighbourhood, found.score) == (1.0, None, None, None)


def test_equal_probabilities_are_nobodys_win() -> None:
    same = [contrast(0.5, 0.5)]
    found = metrics.counterfact(same, [same], [same])
    assert (found.efficacy, found.neighbourhood) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0, 0.5], 2 / 3), ([1.0, 0.0], 0.0), ([1.0, None], None), ([], None)]
)
def test_harmonic_mean(values: list[float | None], expected: float | None) -> None:
    assert metrics.harmonic_mean(values) == (expected if expected is None else pytest.approx(expected))


def test_nats_per_token() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    found = metrics.nats_per_token(logits, torch.tensor([1, 2]))
    assert found == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)


# --- texts ---


def test_fluency_of_distinct_and_of_repeated_words() -> None:
    # a b a b a: bigrams ab ba ab ba: 1 bit; trigrams aba bab aba: (2/3, 1/3).
    trigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert metrics.fluency("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * trigrams) / 2)
    assert metrics.fluency("a a a a") == 0.0
    # 5 distinct words: 4 bigrams (2 bits) and 3 trigrams (log2 3 bits).
    assert metrics.fluency("one two three four five") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


def test_fluency_splits_punctuation_off() -> None:
    assert metrics.fluency("yes, no, yes") == metrics.fluency("yes , no , yes")
    assert metrics.fluency("two words") is None


CORPUS = ["the red cat", "the dog", "the red red fox and the dog"]


def test_tf_idf_by_hand() -> None:
    vectors = TfIdf(["red cat", "red dog"])
    once, both = math.log(3 / 2) + 1, math.log(3 / 3) + 1
    length = math.hypot(once, 2 * both)
    found = vectors.vector("Red cat, RED bird!")  # cat, dog, red; "bird" is unknown
    assert list(found) == pytest.approx([once / length, 0.0, 2 * both / length])
    assert not vectors.vector("a bird").any()


def test_tf_idf_is_scikit_learns() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    reference = text.TfidfVectorizer().fit(CORPUS)
    ours = TfIdf(CORPUS)
    for one in [*CORPUS, "A red-hot fox, the FOX; x"]:
        assert ours.vector(one) == pytest.approx(reference.transform([one]).toarray()[0])


def test_consistency_is_a_cosine_of_joined_texts() -> None:
    vectors = TfIdf(["cat", "dog", "fox"])  # one weight for all
    assert metrics.consistency(["cat", "dog"], ["dog cat"], vectors) == pytest.approx(1.0)
    assert metrics.consistency(["cat"], ["cat dog"], vectors) == pytest.approx(1 / math.sqrt(2))
    assert metrics.consistency(["fox"], ["cat"], vectors) == 0.0


# --- drift ---


def test_bit_equal_sees_what_equality_does_not() -> None:
    one = torch.tensor([[0.0, float("nan")]])
    assert metrics.bit_equal(one, one.clone())
    assert not metrics.bit_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not metrics.bit_equal(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
    assert not metrics.bit_equal(torch.zeros(2), torch.zeros(1, 2))
    assert not metrics.bit_equal(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert metrics.bit_equal_share([one, one], [one, one + 1]) == 0.5


def test_kl_in_nats_per_position() -> None:
    before = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    after = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert metrics.kl_nats(before, after) == pytest.approx(expected)
    assert metrics.kl_nats(after, before) != pytest.approx(expected)
    assert metrics.kl_nats(before, before + 3.0) == pytest.approx(0.0, abs=1e-7)  # logits are free up to a constant


def test_agreement_of_most_likely_tokens() -> None:
    after, before = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert metrics.agreement(after, before) == 0.5


def test_perplexity_weighs_texts_by_their_tokens() -> None:
    assert metrics.perplexity([math.log(2), math.log(8)], [3, 1]) == pytest.approx(2 ** (3 / 4) * 8 ** (1 / 4))
    assert metrics.perplexity([], []) is None
    assert metrics.perplexity_drift(12.0, 10.0) == 1.2
    assert metrics.perplexity_drift(None, 10.0) is None
