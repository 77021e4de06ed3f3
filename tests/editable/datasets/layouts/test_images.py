"""Folders of images by class."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

from editable.datasets import DataError, load
from editable.errors import MissingPackageError


def paint(path: Path, pixels: object, mode: str = "RGB") -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(numpy.array(pixels, numpy.uint8)).convert(mode).save(path)


def test_labels_follow_the_folder_names_and_pixels_the_file(tmp_path: Path) -> None:
    paint(tmp_path / "dog" / "a.png", [[[255, 0, 51], [0, 102, 0]]])
    paint(tmp_path / "cat" / "b.PNG", [[[0, 0, 0]], [[51, 51, 51]]])
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    cat, dog = load(tmp_path)
    assert (cat.edit.target, dog.edit.target) == (0, 1)
    expected = torch.tensor([[[1.0, 0.0]], [[0.0, 0.4]], [[0.2, 0.0]]])
    assert isinstance(dog.edit.prompt, torch.Tensor)
    assert torch.equal(dog.edit.prompt, expected)
    assert isinstance(cat.edit.prompt, torch.Tensor)
    assert cat.edit.prompt.shape == (3, 2, 1)
    assert cat.where == str(tmp_path / "cat" / "b.PNG")
    assert (cat.rephrases, cat.locality) == ((), ())


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    paint(tmp_path / "one" / "a.png", [[51]], "L")
    (case,) = load(tmp_path)
    assert isinstance(case.edit.prompt, torch.Tensor)
    assert torch.equal(case.edit.prompt, torch.full((3, 1, 1), 0.2))


def test_a_split_is_a_sub_folder(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "cat" / "a.png", [[[0, 0, 0]]])
    paint(tmp_path / "val" / "dog" / "a.png", [[[0, 0, 0]]])
    paint(tmp_path / "val" / "cat" / "a.png", [[[0, 0, 0]]])
    assert [case.edit.target for case in load(tmp_path, split="val")] == [0, 1]
    with pytest.raises(DataError, match=r"holds no folders with images; there is train, val; .*name one of these with"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"test' holds no folders with images; there is train, val"):
        load(tmp_path, split="test")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"image '.*a\.png' cannot be read .*, expected PNG or JPEG; replace the file"):
        load(tmp_path)


def test_without_pillow_the_install_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingPackageError, match=r"not installed; run `pip install \"pillow>=10\"`"):
        load(tmp_path)
