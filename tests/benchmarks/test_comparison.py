"""One run against an earlier one: what is compared, what is marked, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editable.benchmarks import comparison
from editable.benchmarks.comparison import BEYOND, DIFFERS, Figure
from editable.errors import InputError


def document(**parts: Any) -> dict[str, Any]:
    """A run of `speed`."""
    machine = {"cpu": "A", "load_average_1min": 0.5}
    whole = {"benchmark": "speed", "machine": machine, "options": {"edits": 3}, "quality": {}, "timing": {}}
    return {**whole, "made": "2031-05-06T07:08:09Z", "file": "speed-20310506T070809Z.json", **parts}


def kept(folder: Path, name: str, **parts: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(document(**parts)))
    return path


# --- numbers ---


def test_every_number_is_found_where_it_lies_and_intervals_go_with_their_number() -> None:
    tree = {
        "share": 0.5,
        "same": True,
        "name": "no number",
        "nothing": None,
        "deep": {"er": {"ratio": 2.0, "low": 1.5, "high": 2.5, "paired": 2.1}},
        "time": {"median_ms": 3, "low_ms": 2, "high_ms": 4, "p95_ms": 9},
        "listed": [1, {"x": 2}],
    }
    assert comparison.figures(tree) == {
        "share": Figure(0.5),
        "same": Figure(1.0),
        "deep / er / ratio": Figure(2.0, 1.5, 2.5),
        "deep / er / paired": Figure(2.1),
        "time / median_ms": Figure(3.0, 2, 4),
        "time / p95_ms": Figure(9.0),
        "listed / 1": Figure(1.0),
        "listed / 2 / x": Figure(2.0),
    }


def test_a_number_called_low_that_bounds_nothing_is_a_number() -> None:
    assert comparison.figures({"value": 1, "low": 2}) == {"value": Figure(1.0), "low": Figure(2.0)}


def test_what_must_repeat_is_marked_at_the_slightest_change() -> None:
    before, now = document(quality={"a": 1.0, "b": 1.0, "gone": 3}), document(quality={"a": 1.0, "b": 1.25, "new": 4})
    found = {change.where: change.row[1:] for change in comparison.changes(before, now, "quality")}
    assert found == {
        "a": (1.0, 1.0, "same", ""),
        "b": (1.0, 1.25, "+0.25", DIFFERS),
        "new": (None, 4.0, None, "only now"),
        "gone": (3.0, None, None, "only before"),
    }


@pytest.mark.parametrize(
    ("before", "now", "mark"),
    [
        ((2.0, 1.5, 2.5), (2.4, 2.3, 2.5), ""),  # now lies in the earlier interval
        ((2.0, 1.9, 2.1), (2.2, 1.9, 2.6), ""),  # before lies in the present one
        ((2.0, 1.9, 2.1), (2.2, 2.1, 2.3), BEYOND),
        ((2.0, 1.9, 2.1), (1.8, 1.7, 1.9), BEYOND),
    ],
)
def test_a_measurement_is_marked_where_neither_lies_in_the_others_interval(
    before: tuple[float, ...], now: tuple[float, ...], mark: str
) -> None:
    one, other = ({"x": dict(zip(("ratio", "low", "high"), values, strict=True))} for values in (before, now))
    (change,) = comparison.changes(document(timing=one), document(timing=other), "timing")
    assert change.mark == mark
    assert change.row[3] == f"x {now[0] / before[0]:.3f}"


def test_a_measurement_without_interval_is_shown_but_not_marked() -> None:
    (change,) = comparison.changes(document(timing={"s": 1.0}), document(timing={"s": 9.0}), "timing")
    assert change.row == ("s", 1.0, 9.0, "x 9.000", "")


def test_what_has_no_ratio_is_given_as_a_difference() -> None:
    (change,) = comparison.changes(document(timing={"s": 0.0}), document(timing={"s": 2.0}), "timing")
    assert change.row[3] == "+2"


def test_tables_say_how_many_are_marked() -> None:
    before = document(quality={"a": 1, "b": 2}, timing={"s": 1.0})
    now = document(quality={"a": 1, "b": 3}, timing={"s": 1.0})
    titles = [title for title, _ in comparison.tables(before, now)]
    assert titles == [
        "against speed-20310506T070809Z.json: what must repeat exactly (2 numbers, 1 marked)",
        "against speed-20310506T070809Z.json: what was measured (1 numbers, 0 marked)",
    ]
    assert comparison.marked(before, now) == {"b": DIFFERS}


# --- remarks ---


def test_the_same_machine_and_options_are_said() -> None:
    now = document(machine={"cpu": "A", "load_average_1min": 7.5})  # the load of the minute makes no other machine
    assert comparison.remarks(document(), now) == [
        "Compared with speed-20310506T070809Z.json, of 2031-05-06T07:08:09Z.",
        "The same machine and the same options.",
        "Numbers that must repeat and differ: 0. Measurements changed beyond their interval: 0.",
    ]


def test_another_machine_and_other_options_are_said_plainly() -> None:
    now = document(machine={"cpu": "B"}, options={"edits": 4, "seed": 1}, quality={"a": 1})
    said = comparison.remarks(document(quality={"a": 2}), now)
    assert said[1:3] == [
        "ANOTHER MACHINE, so times cannot be compared: cpu was 'A', is 'B'.",
        "OTHER OPTIONS, so neither times nor results need agree: edits was 3, is 4; seed was None, is 1.",
    ]
    assert said[3].startswith("Numbers that must repeat and differ: 1.")


# --- files ---


def test_the_newest_run_of_the_benchmark_is_taken_from_a_folder(tmp_path: Path) -> None:
    for second in (8, 9):
        kept(tmp_path, f"speed-20310506T07080{second}Z.json", quality={"second": second})
    kept(tmp_path, "speed-20310506T070809Z-2.json", quality={"second": 9.5})  # two in one second
    kept(tmp_path, "speedy-20310507T070809Z.json", benchmark="speedy")
    found = comparison.earlier(tmp_path, "speed")
    assert (found["quality"], found["file"]) == ({"second": 9.5}, "speed-20310506T070809Z-2.json")


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.json"
    with pytest.raises(InputError) as caught:
        comparison.earlier(path, "speed")
    assert str(caught.value) == (
        f"--against {path} does not exist, expected the JSON file of an earlier run or a folder of results; run the "
        "benchmark without --against first."
    )


def test_a_folder_without_a_run_is_refused_and_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run of 'speed', expected .*; it holds no runs at all\.$"):
        comparison.earlier(tmp_path, "speed")
    kept(tmp_path, "size-20310506T070809Z.json", benchmark="size")
    with pytest.raises(InputError, match=r"a file named speed-<time>\.json; it holds runs of size\.$"):
        comparison.earlier(tmp_path, "speed")


def test_another_benchmarks_run_is_refused(tmp_path: Path) -> None:
    path = kept(tmp_path, "x.json", benchmark="size")
    with pytest.raises(InputError, match=r"x\.json is a run of 'size', expected one of 'speed'; give a file named sp"):
        comparison.earlier(path, "speed")


@pytest.mark.parametrize("text", ["", '{"benchmark": "spe', "\x00"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json cannot be read, expected the JSON document .* Reason: .+"):
        comparison.earlier(path, "speed")


@pytest.mark.parametrize(
    ("text", "missing"),
    [('{"benchmark": "speed", "machine": {}}', "options, quality, timing"), ("[]", "benchmark")],
)
def test_a_file_that_no_benchmark_wrote_is_refused(tmp_path: Path, text: str, missing: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"has no {missing}.*, expected .* give a file that a benchmark wrote\.$"):
        comparison.earlier(path, "speed")
