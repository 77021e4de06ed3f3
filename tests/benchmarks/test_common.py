"""What the benchmarks share: the command line, what is inserted and asked, the machine card, progress."""

from __future__ import annotations

import argparse
import json
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from editable import datasets, models
from editable.adapters import GRACE
from editable.benchmarks import common
from editable.errors import InputError
from tests.families import Loaded


def options(*argv: object) -> argparse.Namespace:
    parser = common.parser("What it measures.", "speed")
    common.add_editor(parser)
    return parser.parse_args([str(one) for one in argv])


# --- the command line ---


def test_help_names_the_command_and_says_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: editable bench speed ")
    assert "What it measures." in out


def test_what_is_noted_of_the_options_names_no_path(tmp_path: Path) -> None:
    chosen = options("--data", tmp_path / "facts.json", "--unrelated", tmp_path / "nq.txt", "--against", tmp_path)
    assert common.given(chosen) == {
        "model": "smollm2",
        "data": "facts.json",
        "layout": None,
        "unrelated": "nq.txt",
        "threads": 1,
        "seed": 0,
        "editor": "grace",
        "set": [],
    }


def test_counts_are_numbers_in_order() -> None:
    assert common.counts("100,0,10_000,100") == [0, 100, 10_000]
    for bad in ("", "1,x", "-1,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected numbers separated by commas"):
            common.counts(bad)


def test_the_editor_is_found_and_configured() -> None:
    assert common.editor(options("--set", "values=single", "--set", "steps=7")) == GRACE(values="single", steps=7)


def test_a_bad_earlier_run_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", lambda _name: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match="does not exist, expected the JSON file of an earlier run"):
        common.prepare(options("--against", tmp_path / "nowhere.json"))


def test_preparing_pins_threads_and_seeds(tiny_options: list[str]) -> None:
    drawn = []
    for seed in (5, 5, 6):
        model, tokenizer = common.prepare(options(*tiny_options, "--seed", seed))
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.get_num_threads() == 1
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer("alpha")["input_ids"]


# --- what is inserted and asked ---


def test_the_shipped_facts_and_questions_are_the_default() -> None:
    assert [case.edit.prompt for case in common.cases(options(), 3)] == [c.edit.prompt for c in datasets.facts(3)]
    assert common.unrelated(options(), 3) == datasets.unrelated(3)
    assert len(common.unrelated(options())) >= 200


def test_facts_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "zsre.json"
    records = [
        {"src": "Who?", "alt": "Ann", "rephrase": "Whom?"},
        {"src": "When?", "alt": "1997", "rephrase": "Since?"},
    ]
    path.write_text(json.dumps(records))
    found = common.cases(options("--data", path))
    assert [(case.edit.prompt, case.edit.target) for case in found] == [("Who?", " Ann"), ("When?", " 1997")]
    assert len(common.cases(options("--data", path, "--layout", "zsre"), 1)) == 1


@pytest.mark.parametrize("text", ['{"question": "who"}\n\n{"question": "what", "answer": ["x"]}\n', "who\n\n  what \n"])
def test_questions_are_read_from_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nq.txt"
    path.write_text(text)
    assert common.unrelated(options("--unrelated", path)) == ["who", "what"]
    assert common.unrelated(options("--unrelated", path), 1) == ["who"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"q": "who"}', "KeyError: 'question'"), ('{"question": ', "JSONDecodeError: "), (None, "FileNotFoundError: ")],
)
def test_questions_that_cannot_be_read_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "nq.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        common.unrelated(options("--unrelated", path))
    assert str(caught.value).startswith(
        f'--unrelated {path} cannot be read, expected a question a line, or lines of JSON with "question"; give '
        f"another file, or leave it out. Reason: {reason}"
    )


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nq.txt"
    path.write_text("\n \n")
    with pytest.raises(InputError, match=r"nq\.txt is empty, expected a question a line; leave it out for the shipped"):
        common.unrelated(options("--unrelated", path))


# --- the machine ---


def test_the_machine_card_says_what_a_figure_depends_on(tiny: Loaded) -> None:
    card = common.machine_card(tiny.model)
    assert (card["model"], card["dtype"], card["device"]) == ("LlamaForCausalLM", "float32", "cpu")
    assert card["torch_threads"] == torch.get_num_threads()
    assert card["parameters_millions"] == round(sum(p.numel() for p in tiny.model.parameters()) / 1e6, 1)
    assert json.loads(json.dumps(card)) == card


def test_resident_memory_counts_what_is_held() -> None:
    before = common.resident_bytes()
    if before is None:
        pytest.skip("this system does not say")
    with mmap.mmap(-1, 64_000_000) as held:  # pages of its own: an allocator may give out some it has still
        held.write(bytes(len(held)))
        after = common.resident_bytes()
        assert after is not None
        assert after - before > 0.8 * len(held)


# --- progress ---


def test_progress_is_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "QUIET_SECONDS", -1.0)
    assert list(common.each("abc", "reading", 3)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.partition("] ")[2] for line in captured.err.splitlines()] == [f"reading: {n} of 3" for n in range(3)]


def test_progress_is_silent_where_there_is_little_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(common.each("abc", "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def terminal() -> bool:
        return True

    monkeypatch.setattr(sys.stderr, "isatty", terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    taken: list[Any] = list(common.each("abc", "reading", 3))
    captured = capsys.readouterr()
    assert taken == ["a", "b", "c"]
    assert "reading" in captured.err
    assert "100%" in captured.err
    assert captured.out == ""
