"""The benchmarks' own arithmetic, on numbers that can be worked out by hand, and the data they ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.textbook_grace import Wrapped, rule


def test_spread_gives_median_and_tails() -> None:
    found = common.spread(range(1, 102), scale=10.0)
    assert (found.median, found.p5, found.p95, found.count) == (510.0, 60.0, 960.0, 101)


def test_spread_has_its_unit_in_the_keys() -> None:
    assert common.spread([2.0]).as_dict("ms") == {"median_ms": 2.0, "p5_ms": 2.0, "p95_ms": 2.0, "count": 1}


def test_paired_ratio_of_proportional_samples_is_certain() -> None:
    found = common.ratio_of_medians([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], np.random.default_rng(0))
    assert (found.ratio, found.low, found.high, found.paired) == (2.0, 2.0, 2.0, 2.0)


def test_unpaired_ratio_of_the_same_samples_is_not() -> None:
    found = common.ratio_of_medians([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], np.random.default_rng(0), paired=False)
    assert found.ratio == 2.0
    # The extremes of resampled medians are 2 / 3 and 6 / 1; the interval lies between.
    assert 2 / 3 <= found.low < 2.0 < found.high <= 6.0
    assert found.paired is None


def test_ratio_of_medians_is_not_the_median_of_ratios() -> None:
    found = common.ratio_of_medians([1.0, 2.0, 9.0], [1.0, 4.0, 3.0], np.random.default_rng(0))
    assert found.ratio == pytest.approx(2 / 3)
    assert found.paired == 1.0


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 measurements"):
        common.ratio_of_medians([1.0, 2.0], [1.0], np.random.default_rng(0))


def test_every_side_runs_once_a_round_and_warming_up_is_not_counted() -> None:
    ran: list[str] = []

    def side(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    seconds = common.interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 8, 2, np.random.default_rng(0))
    assert [sorted(ran[turn : turn + 2]) for turn in range(0, 20, 2)] == [["a", "b"]] * 10
    assert {len(values) for values in seconds.values()} == {8}
    assert min(min(values) for values in seconds.values()) > 4
    assert ran[::2] != ["a"] * 10  # the order is drawn anew


def test_share_counts_parts() -> None:
    assert common.share([True, False, 0.5]) == 0.5
    assert common.share([]) is None


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_json({"a": float("inf"), "b": [float("nan"), 1.0], 3: (True,)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0], "3": [True]}


# --- the shipped data ---


def test_shipped_facts_are_well_formed() -> None:
    records = [json.loads(line) for line in common.FACTS.read_text(encoding="utf-8").splitlines()]
    assert len(records) >= 100
    for record in records:
        assert set(record) == {"prompt", "target", "rephrase", "subject", "known"}
        assert all(record[name].strip() for name in ("prompt", "target", "rephrase", "subject"))
        assert record["target"].startswith(" ") and record["target"][1:] == record["target"].strip()
        assert record["prompt"] != record["rephrase"]
        assert record["prompt"] == record["prompt"].strip()
        assert isinstance(record["known"], bool)
    for name in ("prompt", "rephrase", "subject", "target"):
        assert len({record[name].lower() for record in records}) == len(records), name
    assert sum(record["known"] for record in records) == len(records) // 2


def test_shipped_questions_are_about_no_fact() -> None:
    questions = common.load_questions(None)
    assert len(set(questions)) == len(questions) == 200
    asked = {text for fact in common.load_facts(None) for text in (fact.prompt, fact.rephrase)}
    assert asked.isdisjoint(questions)


def test_one_record_per_subject_is_read_from_mend_files(tmp_path: Path) -> None:
    records = [
        {"src": "Who?", "alt": "Ann ", "rephrase": "Whom?", "subject": "It"},
        {"src": "Who again?", "alt": "Ben", "rephrase": "Whom again?", "subject": "it "},
        {"src": "Where?", "alt": " ", "rephrase": "Whence?", "subject": "There"},
        {"src": "When?", "alt": "1997", "rephrase": "What year?", "subject": "Then"},
    ]
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps(records))
    facts = common.load_facts(path)
    assert [(fact.prompt, fact.target) for fact in facts] == [("Who?", " Ann"), ("When?", " 1997")]
    assert common.load_facts(path, 1) == facts[:1]


def test_questions_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl"
    path.write_text('{"question": "who"}\n\n{"question": "what"}\n')
    assert common.load_questions(path) == ["who", "what"]


# --- scoring ---


class Letters:
    """A tokenizer with one token per character; 0 ends."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, tokens: Tensor, **_: Any) -> str:
        return "".join(chr(token) for token in tokens.tolist() if token)


class Parrot:
    """Says `free` freely, and at the answer's positions `forced`."""

    def __init__(self, forced: str, free: str) -> None:
        self._forced, self._free = forced, free

    def forced(self, prompt: Tensor, answer: Tensor) -> Tensor:
        said = [0] * (prompt.shape[1] - 1) + [ord(letter) % 128 for letter in self._forced]
        assert len(said) == prompt.shape[1] + answer.shape[1]
        return nn.functional.one_hot(torch.tensor([said]), 128).float()

    def free(self, prompt: Tensor, limit: int, hopeless: common.Hopeless | None = None) -> Tensor:
        del prompt
        said: list[int] = []
        for letter in self._free[:limit]:
            said.append(ord(letter))
            if hopeless is not None and hopeless(torch.tensor(said)):
                break
        return torch.tensor(said)


@pytest.mark.parametrize(
    ("forced", "free", "expected"),
    [
        (" ab\0", " ab\0", common.Score(1.0, True, True, True)),
        (" ax\0", " ax\0", common.Score(2 / 3, True, False, False)),
        (" ab.", " ab, and more", common.Score(1.0, False, False, False)),
        (" ab.", " ab" + " " * 99, common.Score(1.0, False, True, False)),
        (" ab\0", "ab\0", common.Score(1.0, True, True, True)),
    ],
)
def test_an_answer_is_right_when_it_is_exact_and_ends(forced: str, free: str, expected: common.Score) -> None:
    found = common.score(Parrot(forced, free), Letters(), "who?", " ab")
    assert found.tokens == pytest.approx(expected.tokens)
    assert (found.end, found.text, found.stop) == (expected.end, expected.text, expected.stop)


def test_shares_over_scores() -> None:
    scores = [common.Score(1.0, True, True, True), common.Score(0.5, True, True, False)]
    assert common.summed_up(scores) == {
        "teacher_forced": 0.75,
        "all_tokens": 0.5,
        "end_token": 1.0,
        "exact_with_stop": 0.5,
    }


# --- the textbook loop ---


@pytest.mark.parametrize(
    ("distance", "reach", "same", "kind", "own", "nearest"),
    [
        (float("inf"), 0.0, False, "add", 1.0, None),  # an empty book
        (3.0, 1.5, True, "add", 1.0, None),  # 3 > 1 + 1.5, whatever the label
        (2.0, 1.5, False, "split", 1.0, 1.0 - 1e-5),  # half the distance each
        (2.0, 1.5, True, "expand", None, 2.0),
        (1.0, 1.5, True, "keep", None, None),
        (1.0, 1.5, False, "split", 0.5, 0.5 - 1e-5),
        (0.0, 1.0, False, "split", 0.0, -1e-5),  # the published rule loses the older entry here
    ],
)
def test_the_insertion_rule(
    distance: float, reach: float, same: bool, kind: str, own: float | None, nearest: float | None
) -> None:
    found = rule(distance, reach, same)
    assert (found.kind, found.own, found.nearest) == (kind, own, nearest)


@pytest.fixture
def book() -> Wrapped:
    torch.manual_seed(0)
    return Wrapped(nn.Linear(2, 3), 3)


def test_the_book_after_hand_made_insertions(book: Wrapped) -> None:
    assert book.insert(torch.tensor([0.0, 0.0]), (7,)) == 0
    assert book.insert(torch.tensor([0.0, 5.0]), (8,)) == 1  # 5 > 1 + 1: added
    assert book.insert(torch.tensor([0.0, 1.5]), (7,)) == 0  # 1.5 <= 1 + 1, same answer: the first one grows
    assert book.insert(torch.tensor([0.0, 4.0]), (9,)) == 2  # 1 from the second, another answer: split at half
    assert book.radii == pytest.approx([1.5, 0.5 - 1e-5, 0.5])
    assert book.labels == [(7,), (8,), (9,)]


def test_the_value_is_written_at_the_key_token_only(book: Wrapped) -> None:
    rows = torch.tensor([[[0.0, 9.0], [0.0, 0.5], [3.0, 3.0]]])
    plain = book(rows)
    book.insert(torch.tensor([0.0, 0.0]), (7,))
    assert torch.equal(book(rows), plain)  # nobody said where the prompt ends
    book.position = 1
    edited = book(rows)
    assert torch.equal(edited[0, 1], book.values[0])
    assert torch.equal(edited[0, [0, 2]], plain[0, [0, 2]])
    book.position = 2
    assert torch.equal(book(rows), plain)  # too far from the key


def test_a_pending_edit_takes_its_key_from_the_next_forward(book: Wrapped) -> None:
    book.position, book.pending = 0, (7,)
    rows = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]])
    out = book(rows)
    assert book.chosen == 0
    assert vars(book)["pending"] is None
    assert torch.equal(book.keys[0], rows[0, 0])
    out[0, 0].sum().backward()
    assert torch.equal(book.values[0].grad, torch.ones(3))
