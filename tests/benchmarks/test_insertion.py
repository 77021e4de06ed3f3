"""The insertion benchmark on a tiny model: what is inserted, counted and compared; never how long anything took."""

from __future__ import annotations

import argparse
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editable import Edit
from editable.adapters import GRACE
from editable.benchmarks import insertion
from editable.benchmarks.insertion import memory, publish, rollback, speed, stream
from editable.benchmarks.insertion.setting import Setting
from editable.benchmarks.insertion.stream import Heard
from editable.datasets import Case, Question
from tests.benchmarks.conftest import printed
from tests.families import PROMPTS, TARGETS, UNRELATED, Loaded

CASES = [
    Case(Edit(prompt, target), rephrases=(Question(f"{prompt} {prompt}"), Question("not looked at")))
    for prompt, target in zip(PROMPTS, TARGETS, strict=True)
]

Make = Callable[..., Setting]


@pytest.fixture
def make(tiny: Loaded) -> Make:
    """A setting with six cases, and some options."""

    def made(**options: Any) -> Setting:
        rng, chosen = np.random.default_rng(0), argparse.Namespace(**options)
        return Setting(tiny.model, tiny.tokenizer, GRACE(), CASES, UNRELATED, chosen, rng)

    return made


# --- speed ---

TIMES = {"textbook": [8.0, 10.0, 12.0], "one edit": [1.0, 1.0, 1.0], "batch": [0.5]}


def test_seconds_and_ratios_by_hand(make: Make) -> None:
    part = speed._part(TIMES, make(batch=32))
    assert {name: one["median_s"] for name, one in part.timing["seconds_per_edit"].items()} == {
        "textbook": 10.0,
        "one edit": 1.0,
        "batch": 0.5,
    }
    faster = part.timing["times_faster_than_textbook"]
    assert (faster["one edit"]["ratio"], faster["one edit"]["paired"]) == (10.0, 10.0)
    assert faster["batch"]["ratio"] == 20.0
    assert part.timing["edits_in_a_batch"] == 6
    assert [bar.met for bar in part.bars] == [True, False]


def test_batches_begin_at_other_cases_and_wrap_around(make: Make) -> None:
    batches = [[CASES.index(case) for case in speed._batch(make(batch=4), turn)] for turn in (0, 3, 6)]
    assert batches == [[0, 1, 2, 3], [3, 4, 5, 0], [0, 1, 2, 3]]


def test_every_round_times_both_and_some_a_batch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, list[float]]] = []
    monkeypatch.setattr(speed, "_part", lambda times, _setting: seen.append(times))
    monkeypatch.setattr("editable.benchmarks.baselines.textbook_grace.STEPS", 1)
    speed.run(make(batch=2, speed_rounds=4))
    assert {name: len(values) for name, values in seen[0].items()} == {"textbook": 4, "one edit": 4, "batch": 2}


# --- publish ---


def test_publishing_among_many_leaves_as_many(make: Make) -> None:
    part = publish.run(make(present=50, publish_rounds=2))
    assert part.quality == {"edits_present": 50}
    assert {name: one["count"] for name, one in part.timing.items()} == {
        "insert": 2,
        "publish": 2,
        "insert and publish": 2,
        "rollback": 2,
        "rollback of a superseding edit": 1,
        "flush of the log": 6,
    }


# --- memory ---


def test_what_is_kept_counts_into_the_peak() -> None:
    held = mmap.mmap(-1, 64_000_000)  # pages of its own: an allocator may give out some it has still
    peak, kept = memory.grown_mb(lambda: held.write(bytes(len(held))))
    held.close()
    if peak is None or kept is None:
        pytest.skip("this system does not say")
    assert peak >= kept > 0.8 * 64


def test_the_learning_copy_takes_no_weights_of_its_own(make: Make) -> None:
    part = memory.run(make(batch=2))
    assert part.quality["learning_copy_shares_all_storage"] is True
    assert set(part.timing) == {"1 edits", "2 edits", "6 edits"}
    assert [bar.met for bar in part.bars] == [True]


# --- rollback ---


def test_all_prompts_a_rephrase_of_each_and_questions_are_looked_at(make: Make) -> None:
    texts = rollback.texts_of(make())
    assert texts == [*(t for p in PROMPTS for t in (p, f"{p} {p}")), *UNRELATED]


def test_share_of_equal_fingerprints() -> None:
    assert rollback.same_share(["a", "b", "c", "d"], ["a", "x", "c", "d"]) == 0.75


def test_fingerprints_tell_an_edit(make: Make) -> None:
    setting = make()
    base = rollback.fingerprints(setting, [PROMPTS[0], UNRELATED[0]], "")
    with setting.edited() as em:
        em.edit(CASES[0].edit)
        after = rollback.fingerprints(setting, [PROMPTS[0], UNRELATED[0]], "")
    assert base[0] != after[0]
    assert base[1] == after[1]


def test_everything_is_taken_back_to_the_bit(make: Make) -> None:
    part = rollback.run(make())
    assert part.quality["edits"] == 6
    assert part.quality["changed_by_the_edits_share"] >= 6 / len(rollback.texts_of(make()))
    exact = [value for name, value in part.quality.items() if "equal" in name]
    assert exact == [1.0, 1.0, True, 1.0]
    assert [bar.met for bar in part.bars] == [True, True]


# --- stream ---


def test_an_output_of_another_version_is_found_out(make: Make) -> None:
    setting = make()
    with setting.edited() as em:
        before = stream._answer(setting, PROMPTS[0])
        em.edit(CASES[0].edit)
        after = stream._answer(setting, PROMPTS[0])
        heard = [
            Heard(PROMPTS[0], before, 0, 0),
            Heard(PROMPTS[0], before, 0, 1),  # it may have begun before the edit
            Heard(PROMPTS[0], after, 0, 1),
            Heard(PROMPTS[0], before, 1, 1),
            Heard(PROMPTS[0], after, 0, 0),
        ]
        assert before != after
        assert stream.impossible(setting, em, heard) == heard[3:]


def test_each_thread_asks_about_its_share(make: Make) -> None:
    setting = make(stream_threads=2)
    assert stream._prompts(setting, CASES[:5], 0) == [PROMPTS[0], PROMPTS[2], PROMPTS[4], UNRELATED[0], UNRELATED[2]]
    assert stream._prompts(setting, CASES[:5], 1) == [PROMPTS[1], PROMPTS[3], UNRELATED[1], UNRELATED[3]]


def test_all_edits_of_the_stream_are_published_without_error(make: Make) -> None:
    part = stream.run(make(stream_threads=2, stream_edits=4, stream_seconds=0.5))
    assert part.quality == {"edits_published": 4, "outputs_of_no_version": 0, "errors": 0, "error_examples": []}
    assert part.timing["generations"] > 0


# --- the whole ---


def test_parts_run_in_their_own_order() -> None:
    assert insertion.parts("stream,memory") == ["memory", "stream"]
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        insertion.parts("memory,steam,x")
    assert str(caught.value) == "unknown parts steam, x, expected some of memory, rollback, speed, publish, stream"


def test_the_whole(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--edits", "10", "--questions", "4", "--present", "20", "--publish-rounds", "1", "--batch", "2"]
    stream_options = ["--stream-seconds", "0.2", "--stream-edits", "2", "--speed-rounds", "1"]
    insertion.main([*tiny_options, *options, *stream_options, "--results", str(tmp_path)])
    found = printed(capsys)
    assert set(found["quality"]) == {"memory", "rollback", "publish", "stream"}
    assert set(found["timing"]) == {"memory", "speed", "publish", "stream", "bars_met"}
    assert found["quality"]["rollback"]["bit_equal_to_base_share"] == 1.0
    assert found["options"]["parts"] == ["memory", "rollback", "speed", "publish", "stream"]
    assert len(found["timing"]["bars_met"]) == 9
