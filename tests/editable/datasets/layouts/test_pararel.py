"""ParaRel folders: patterns that end with the object become prompts, relation by relation."""

from __future__ import annotations

from pathlib import Path

import pytest

from editable.datasets import DataError, load
from tests.editable.datasets.samples import written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("patterns", "trex_lms_vocab"):
        (tmp_path / name).mkdir()
    patterns = ("[Y] is the home of [X] .", "[X] comes from [Y] .", "[X] is a [Y] citizen .", "The home of [X] is [Y]")
    written(tmp_path / "patterns", *({"pattern": text} for text in patterns), name="P1.jsonl")
    written(tmp_path / "patterns", {"pattern": "[Y] made [X]"}, name="P2.jsonl")
    pairs = ({"sub_label": "Iva", "obj_label": "Ost"}, {"sub_label": "Kai", "obj_label": "Tolm"})
    for name in ("P1.jsonl", "P2.jsonl", "P3.jsonl"):
        written(tmp_path / "trex_lms_vocab", *pairs, name=name)
    return tmp_path


def test_templates_that_end_with_the_object(folder: Path) -> None:
    iva, kai = load(folder)
    assert (iva.edit.prompt, iva.edit.target, iva.edit.subject) == ("Iva comes from", " Ost", "Iva")
    assert [(q.prompt, q.answers) for q in iva.rephrases] == [("The home of Iva is", (" Ost",))]
    assert (kai.edit.prompt, kai.edit.target) == ("Kai comes from", " Tolm")


def test_a_limit_reads_no_further(folder: Path) -> None:
    with (folder / "trex_lms_vocab" / "P1.jsonl").open("a") as file:
        file.write("{broken\n")
    assert len(load(folder, limit=2)) == 2
    with pytest.raises(DataError, match=r"P1\.jsonl, line 3: '\{broken' is no JSON"):
        load(folder)


def test_splits_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(ParaRel\) has no splits, and split='train' was given; leave it out"):
        load(folder, split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no patterns/ and trex_lms_vocab/, expected ParaRel's two folders"):
        load(tmp_path / "empty", "pararel")
