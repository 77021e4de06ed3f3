"""`load`: from a path or a hub id to cases, with one wrong record refusing the whole, in words that help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from editable.datasets import Case, ConflictError, DataError, Policy, layouts, load, with_rephrases
from editable.errors import EditableError, MissingPackageError
from tests.editable.datasets.samples import COUNTERFACT, FACTS, KNOWEDIT, ZSRE, without, written


def prompts(cases: list[Case]) -> list[object]:
    return [case.edit.prompt for case in cases]


def fact(prompt: str, target: str) -> dict[str, Any]:
    return {"prompt": prompt, "target": target}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "DATA.JSONL"])
def test_lists_and_lines_give_the_same(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, fact("A", "x"), fact("B", "y"), name=name)
    assert prompts(load(path)) == prompts(load(str(path))) == ["A", "B"]
    assert prompts(load(path, limit=1)) == ["A"]


def test_json_values_one_after_another_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('\ufeff{"prompt": "A", "target": "x"}\n\n{"prompt": "B", "target": "y"}\n')
    assert prompts(load(tmp_path / "data.json")) == ["A", "B"]
    (tmp_path / "data.jsonl").write_text('\n{"prompt": "A", "target": "x"}\n\n')
    assert [case.where for case in load(tmp_path / "data.jsonl")] == [f"{tmp_path / 'data.jsonl'}, line 2"]


def test_a_folder_gives_all_its_files_or_those_of_a_split(tmp_path: Path) -> None:
    written(tmp_path, fact("B", "y"), name="x_test.json")
    written(tmp_path, ZSRE, name="a-train.jsonl")
    (tmp_path / "notes.md").write_text("no data")
    assert prompts(load(tmp_path)) == [ZSRE["src"], "B"]
    assert prompts(load(tmp_path, split="train")) == [ZSRE["src"]]
    with pytest.raises(
        DataError, match=r"holds a-train\.jsonl, notes\.md, x_test\.json; expected files of the split 'va"
    ):
        load(tmp_path, split="val")


def test_a_named_layout_is_used_and_its_fields_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, without(ZSRE, "src"))
    with pytest.raises(
        DataError, match=r"data\.json, record 1: field 'src' is missing, expected some text; correct the "
    ):
        load(path, "zsre")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without(FACTS, "prompt"), r"record 2: field 'prompt' is missing, expected some text; correct the record, or "),
        ({**FACTS, "prompt": "  "}, r"record 2: field 'prompt' is '  ' \(str\), expected some text"),
        ({**FACTS, "target": 3, "id": 12}, r"record 2 \(id 12\): field 'target' is 3 \(int\), expected some text"),
        ({**FACTS, "target": None}, r"record 2: field 'target' is None \(NoneType\), expected some text"),
        ({**FACTS, "rephrases": ["a", 4]}, r"field 'rephrases' is \['a', 4\] \(list\), expected text, or a list of "),
        ({**FACTS, "siblings": {}}, r"field 'siblings' is \{\} \(dict\), expected a list of objects"),
        ({**FACTS, "siblings": ["a"]}, r"field 'siblings\[0\]' is 'a' \(str\), expected an object with fields"),
        ({**FACTS, "siblings": [{"answer": "a"}]}, r"field 'siblings\[0\]\.prompt' is missing, expected some text"),
        ([1], r"data\.json, record 2 is list '\[1\]', expected an object with fields; correct the record"),
    ],
)
def test_one_wrong_record_refuses_the_file(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(written(tmp_path, FACTS, record))
    assert str(tmp_path / "data.json") in str(caught.value)
    assert isinstance(caught.value, EditableError)


def test_a_field_inside_a_part_is_named_with_its_path(tmp_path: Path) -> None:
    rewrite = {**cast(dict[str, Any], COUNTERFACT["requested_rewrite"]), "target_new": {"id": "Q1"}}
    with pytest.raises(DataError, match=r"\(case_id 7\): field 'requested_rewrite\.target_new\.str' is missing"):
        load(written(tmp_path, {**COUNTERFACT, "requested_rewrite": rewrite}))
    wrong = {**KNOWEDIT, "locality": {"Group": [{"prompt": "p", "ground_truth": [[3]]}]}}
    with pytest.raises(
        DataError, match=r"field 'locality\.Group\[0\]\.ground_truth' is \[\[3\]\] \(list\), expected text, "
    ):
        load(written(tmp_path, wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"prompt": "A", "target": "x"}, {"prompt": "B", "tar',
            r"is truncated: it breaks off in record 2, line 1; exp",
        ),
        ('[{"prompt": "A", "target": "x"},\n{"prompt": "B",', r"is truncated: it breaks off in record 2, line 2"),
        ('[{"prompt": "A", "target": "x"},\n', r"is truncated: it breaks off in record 2, line 2"),
        ('[{"prompt": "A", "target": "x"}', r"is truncated: it breaks off in record 1, line 1"),
        ('[{"prompt": "A", "target": "x"}\n{}]', r"record 1, line 2: no JSON from '\{\}\]' on \(a comma or the end"),
        ('[{"prompt": "A", "target": "x"}] more', r"record 2, line 1: no JSON from 'more' on \(text behind the list\)"),
        ('[{"prompt": "A", "target": oops}]', r"record 1, line 1: no JSON from 'oops\}\]' on \(Expecting value\)"),
    ],
)
def test_json_that_breaks_off_or_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_wherever_a_list_is_cut_it_is_called_truncated(tmp_path: Path) -> None:
    text = r'[{"prompt": "A\u00e9\n", "target": "x", "id": -12, "a": [true, false, null, 1.5, 2e-3]}]'
    path = tmp_path / "data.json"
    path.write_text(text)
    assert prompts(load(path)) == ["Aé"]
    for length in range(1, len(text)):
        path.write_text(text[:length])
        with pytest.raises(DataError, match="is truncated: it breaks off in record 1, line 1"):
            load(path)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(FACTS) + "\n{'prompt': 1}\n" + json.dumps(FACTS) + "\n")
    with pytest.raises(
        DataError, match=r"data\.jsonl, line 2: \"\{'prompt': 1\}\" is no JSON \(.*correct or remove that"
    ):
        load(path)
    path.write_text(json.dumps(FACTS) + '\n{"prompt": "The')
    with pytest.raises(DataError, match=r"line 2: '\{\"prompt\": \"The' is truncated, the file breaks off in it"):
        load(path)
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl, line 1: byte 12 is no UTF-8, expected a text file in UTF-8"):
        load(path)


def test_what_no_layout_recognises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layout recognises") as caught:
        load(written(tmp_path, {"sentence": "A", "idx": 4}))
    assert "record 1 (idx 4)" in str(caught.value)
    assert "the fields sentence, idx;" in str(caught.value)
    known = [name for name in layouts.names() if hasattr(layouts.named(name), "cases")]
    assert ", ".join(known) in str(caught.value)


def test_names_of_layouts(tmp_path: Path) -> None:
    path = written(tmp_path, ZSRE)
    with pytest.raises(DataError, match=r"layout 'zsree' does not exist, expected one of arrays, .* mean 'zsre'\?"):
        load(path, "zsree")
    with pytest.raises(DataError, match=r"layout 'Q#' does not exist, expected one of [^?]*; check the name"):
        load(path, "Q#")


@pytest.mark.parametrize("name", ["missing.json", "a/b/c", "./ost/data", "ost", "owner/data.jsonl"])
def test_no_such_file(name: str) -> None:
    with pytest.raises(
        DataError, match=r"does not exist \(looked in .*\), expected a file, a folder, or a hub id"
    ) as caught:
        load(name)
    assert repr(name) in str(caught.value)


def test_unusable_sources(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(
        DataError, match=r"data\.csv' has the extension '\.csv', expected one of \.json, \.jsonl, an image"
    ):
        load(tmp_path / "data.csv")
    with pytest.raises(
        DataError, match=r"holds data\.csv; expected files of records \(\.json, \.jsonl\), or the layout of"
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"data\.json' holds no record, expected at least one; check the path"):
        load(written(tmp_path))
    with pytest.raises(DataError, match=r"data\.json' has no splits, and split='train' was given; leave split out"):
        load(written(tmp_path, FACTS), split="train")
    with pytest.raises(DataError, match=r"limit is 0, expected a positive number of cases; leave it out"):
        load(written(tmp_path, FACTS), limit=0)


def test_conflicts_are_settled_among_what_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, fact("A", "x"), fact("B", "y"), fact("a?", "z"))
    assert [case.edit.target for case in load(path)] == [" x", " y", " z"]
    assert [case.edit.target for case in load(path, conflicts="last")] == [" y", " z"]
    assert len(load(path, conflicts="refuse", limit=2)) == 2
    with pytest.raises(ConflictError, match=r"data\.json, record 1 answers ' x' and .*record 3 answers ' z' to 'a\?'"):
        load(path, conflicts="refuse")
    with pytest.raises(DataError, match=r"conflicts='lats', expected one of keep, first, last, drop, refuse"):
        load(path, conflicts=cast(Policy, "lats"))


def test_rephrases_to_learn_from(tmp_path: Path) -> None:
    (case,) = load(written(tmp_path, FACTS))
    shown = with_rephrases(case)
    assert shown.edit.rephrases == ("Who is the mayor of Ost?", "Ost elected")
    assert (shown.edit.prompt, shown.edit.target, shown.rephrases) == (
        case.edit.prompt,
        case.edit.target,
        case.rephrases,
    )
    assert case.edit.rephrases == ()


# --- the hub ---


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[str, str | None]]:
    """A `datasets` package that answers so, and what it was asked."""
    asked = []

    def load_dataset(name: str, split: str | None = None) -> object:
        asked.append((name, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "datasets", cast(ModuleType, SimpleNamespace(load_dataset=load_dataset)))
    return asked


def test_a_hub_id_goes_through_the_same_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"train": [KNOWEDIT], "test": [KNOWEDIT, KNOWEDIT]})
    cases = load("owner/KnowEdit")
    assert asked == [("owner/KnowEdit", None)]
    assert [case.where for case in cases] == [
        "owner/KnowEdit, split train, record 1",
        "owner/KnowEdit, split test, record 1",
        "owner/KnowEdit, split test, record 2",
    ]
    assert cases[0].edit.target == " Halden"


def test_a_hub_split_and_a_wrong_record(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, [ZSRE, without(ZSRE, "src")])
    assert prompts(load("owner/data", split="train", limit=1)) == [ZSRE["src"]]
    assert asked == [("owner/data", "train")]
    with pytest.raises(DataError, match=r"owner/data, split train, record 2: field 'src' is missing"):
        load("owner/data", split="train")


def test_a_hub_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(
        DataError, match=r"loading owner/data, split 'x' from the hub failed \(ConnectionError: no route\)"
    ):
        load("owner/data", split="x")


def test_without_the_package_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingPackageError, match=r"'owner/data' is no file .*; run `pip install \"datasets>=3\.0\"`, or"
    ):
        load("owner/data")


def test_importing_and_loading_text_bring_no_optional_package(tmp_path: Path) -> None:
    path = written(tmp_path, FACTS)
    code = (
        f"import sys; from editable.datasets import load, layouts; load({str(path)!r})\n"
        "[layouts.named(name) for name in layouts.names()]\n"
        "print(sorted({'PIL', 'datasets', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
