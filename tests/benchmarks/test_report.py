"""What a benchmark hands out: the text, the page, the document, and that no earlier one is lost."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editable.benchmarks import report
from editable.benchmarks.report import Plot, Report, Table
from tests.benchmarks.conftest import printed

PNG = b"\x89PNG\r\n\x1a\n"
MACHINE = {"cpu": "A & B", "cores": 2}


def made(quality: Mapping[str, Any], timing: Mapping[str, Any], *tables: Table, plots: tuple[Plot, ...] = ()) -> Report:
    return Report("speed", MACHINE, {"edits": 3}, quality, timing, tables, plots)


def line(axes: Any) -> None:
    axes.plot([1, 2], [3, 4])


class Page(HTMLParser):
    """The text and the sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):  # these have no end
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# --- tables ---


def test_a_table_is_aligned_and_short_rows_are_filled() -> None:
    table = Table("times", ("", "ms", "note"), [("first", 1.23456, "x"), ("second one", None), ("n", 12345)])
    assert str(table).splitlines() == [
        "times",
        "                 ms  note",
        "  first       1.235     x",
        "  second one      -",
        "  n           12345",
    ]


def test_a_table_without_headings_has_no_line_for_them() -> None:
    assert str(Table("facts", ("", ""), [("a", 1)])).splitlines() == ["facts", "  a  1"]


# --- what is printed ---


def test_card_tables_and_the_document_as_one_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.publish(made({"hits": 3}, {"s": 0.5}, Table("times", ("", "s"), [("a", 0.5)])), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == ["cpu    A & B", "cores  2", "", "times", "       s", "  a  0.5"]
    document = json.loads(lines[-1])
    assert document.pop("made").endswith("Z")
    whole = {"benchmark": "speed", "machine": MACHINE, "options": {"edits": 3}, "quality": {"hits": 3}}
    assert document == {**whole, "timing": {"s": 0.5}, "plots": {}}


def test_the_document_is_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd: dict[Any, Any] = {
        "a": float("inf"),
        "b": [float("nan"), 1.0],
        3: (True,),
        "n": np.float32(0.5),
        "i": np.int64(7),
    }
    report.publish(made(odd, {"path": tmp_path / "file.json"}), tmp_path)
    found = printed(capsys)
    assert found["quality"] == {"a": None, "b": [None, 1.0], "3": [True], "n": 0.5, "i": 7}
    assert found["timing"] == {"path": "file.json"}


def test_the_file_holds_what_was_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.publish(made({"hits": 3}, {}), tmp_path / "new" / "folder")
    (file,) = (tmp_path / "new" / "folder").glob("*.json")
    assert json.loads(file.read_text()) == printed(capsys)
    assert file.name == f"speed-{json.loads(file.read_text())['made'].translate({45: '', 58: ''})}.json"


def test_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.gmtime", lambda: time.struct_time((2031, 5, 6, 7, 8, 9, 1, 126, 0)))
    for hits in (1, 2, 3):
        report.publish(made({"hits": hits}, {}, plots=(Plot("line", line),)), tmp_path)
    capsys.readouterr()
    stems = [f"speed-20310506T070809Z{attempt}" for attempt in ("", "-2", "-3")]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{s}{e}" for s in stems for e in (".json", ".html", "-line.png")
    }
    documents = [json.loads((tmp_path / f"{stem}.json").read_text()) for stem in stems]
    assert [one["quality"]["hits"] for one in documents] == [1, 2, 3]
    assert [one["plots"] for one in documents] == [{"line": f"{stem}-line.png"} for stem in stems]


# --- against an earlier run ---


def test_a_run_is_compared_with_the_newest_in_its_own_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.publish(made({"hits": 3}, {"s": {"ratio": 2.0, "low": 1.9, "high": 2.1}}), tmp_path)
    (first,) = tmp_path.glob("*.json")
    capsys.readouterr()
    report.publish(made({"hits": 4}, {"s": {"ratio": 3.0, "low": 2.9, "high": 3.1}}), tmp_path, tmp_path)
    out = capsys.readouterr().out
    assert f"against {first.name}: what must repeat exactly (1 numbers, 1 marked)" in out
    assert "hits       3    4      +1  differs" in out
    assert "s / ratio       2    3  x 1.500  beyond the interval" in out
    assert "The same machine and the same options." in out
    document = json.loads(out.splitlines()[-1])
    assert document["against"] == {
        "file": first.name,
        "marked": {"hits": "differs", "s / ratio": "beyond the interval"},
    }


# --- the page ---


def test_the_page_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a <table>", ("", "s"), [("x & y", 0.5)])
    report.publish(made({"hits": 3}, {}, table, plots=(Plot("line", line),)), tmp_path)
    capsys.readouterr()
    (path,) = tmp_path.glob("*.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert {"a <table>", "x & y", "A & B", "edits"} <= set(page.text)
    (source,) = page.sources
    kind, _, image = source.partition(",")
    assert kind == "data:image/png;base64"
    (file,) = tmp_path.glob("*.png")
    assert base64.b64decode(image) == file.read_bytes()
    assert file.read_bytes().startswith(PNG)
    assert "http" not in text
    assert "color-scheme: light dark" in text


def test_without_matplotlib_all_but_the_plots_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.publish(made({"hits": 3}, {}, plots=(Plot("line", line),)), tmp_path)
    captured = capsys.readouterr()
    assert "no plots: matplotlib is not installed (pip install 'editable[plots]')" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["plots"] == {}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json"]
