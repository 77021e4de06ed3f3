"""`editable bench`: benchmarks are found, listed, and given what comes behind their name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import editable.benchmarks
from editable.cli import app, bench

SIZE = '''"""How large things are.

More about it.
"""

import argparse


def main(argv=None):
    parser = argparse.ArgumentParser(prog="editable bench size", description=__doc__)
    parser.add_argument("--edits", type=int)
    print("edits", parser.parse_args(argv).edits)
'''
REFUSES = '''"""What cannot be measured."""

from editable.errors import InputError


def main(argv=None):
    raise InputError(f"Options are {argv}, expected none.")
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three more modules in the folder of benchmarks, one of which is none."""
    (tmp_path / "sizes_of_things.py").write_text(SIZE)
    (tmp_path / "refuses_all.py").write_text(REFUSES)
    (tmp_path / "house_helper.py").write_text('"""No benchmark."""\n\nraise RuntimeError("imported")\n')
    monkeypatch.setattr(editable.benchmarks, "__path__", [*editable.benchmarks.__path__, str(tmp_path)])


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_alone_it_lists_the_benchmarks_with_what_they_measure(arguments: tuple[str, ...]) -> None:
    lines = run(*arguments).stdout.splitlines()
    assert lines[0] == "Usage: editable bench NAME [OPTIONS]...; editable bench NAME --help shows its options."
    assert [line.split()[0] for line in lines if line.startswith("sizes_of_things")] == ["sizes_of_things"]
    assert next(line for line in lines if line.startswith("sizes")).rstrip().endswith("How large things are.")
    assert {line.split()[0] for line in lines if line} >= {"insertion", "interference", "latency", "refuses_all"}
    assert not any(line.startswith(("house_helper", "common", "report", "timing")) for line in lines)


def test_every_benchmark_says_what_it_measures() -> None:
    assert all(line.endswith(".") for _, line in bench.benchmarks())


def test_options_are_the_benchmarks_own() -> None:
    assert run("sizes_of_things", "--edits", "3").stdout == "edits 3\n"
    assert "invalid int value: 'x'" in run("sizes_of_things", "--edits", "x", code=2).stderr


def test_help_behind_a_name_is_that_benchmarks() -> None:
    out = run("sizes_of_things", "--help").stdout
    assert out.startswith("usage: editable bench size [-h] [--edits EDITS]")
    assert "How large things are." in out


def test_a_wrong_name_says_which_exist_and_the_closest() -> None:
    err = run("size_of_thing", code=1).stderr
    assert err.startswith("error: There is no benchmark 'size_of_thing', expected one of ")
    assert err.rstrip().endswith("; the closest is 'sizes_of_things'. `editable bench` says what each measures.")
    assert "insertion, interference, latency" in err


def test_a_module_without_main_is_no_benchmark() -> None:
    assert "There is no benchmark 'house_helper'" in run("house_helper", code=1).stderr


def test_errors_of_the_package_are_one_message() -> None:
    result = run("refuses_all", "--x", code=1)
    assert result.stdout == ""
    assert result.stderr == "error: Options are ['--x'], expected none.\n"
