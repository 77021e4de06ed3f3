"""NumPy archives with images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from editable.datasets import DataError, load

BYTES = numpy.array([[[0, 51]], [[102, 255]]], numpy.uint8)  # two images of one row and two columns


def write(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    numpy.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (BYTES, (1, 1, 2)),
        (numpy.zeros((2, 5, 4, 3), numpy.uint8), (3, 5, 4)),
        (numpy.zeros((2, 3, 5, 4), numpy.uint8), (3, 5, 4)),
        (numpy.zeros((2, 5, 4, 1), numpy.float64), (1, 5, 4)),
    ],
    ids=["grey", "channels last", "channels first", "floats"],
)
def test_axes(tmp_path: Path, images: Any, shape: tuple[int, ...]) -> None:
    first, second = load(write(tmp_path, images=images, labels=numpy.array([3, 8])))
    assert (first.edit.target, second.edit.target) == (3, 8)
    assert type(second.edit.target) is int
    assert isinstance(first.edit.prompt, torch.Tensor)
    assert first.edit.prompt.shape == shape
    assert first.edit.prompt.dtype == torch.float32


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    columns = numpy.arange(24, dtype=numpy.uint8).reshape(1, 2, 4, 3)
    (case,) = load(write(tmp_path, images=columns, labels=numpy.array([0])))
    assert isinstance(case.edit.prompt, torch.Tensor)
    assert case.edit.prompt[2, 1, 3].item() == pytest.approx(23 / 255)  # the last value of the last pixel
    assert case.edit.prompt[0, 0, 1].item() == pytest.approx(3 / 255)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": BYTES, "y": [1, 2]}, r"holds images, y, expected the arrays images and labels; rename them"),
        ({"images": BYTES, "labels": [1]}, r"labels are int64 of shape \(1,\), expected 2 integers, one for each"),
        ({"images": BYTES, "labels": [0.5, 1.0]}, r"labels are float64 of shape \(2,\), expected 2 integers"),
        (
            {"images": BYTES.astype(float), "labels": [1, 2]},
            r"image 1: values go from 0\.0 to 51\.0, expected bytes, or floats",
        ),
        (
            {"images": BYTES.astype(int), "labels": [1, 2]},
            r"image 1: values are int64, expected bytes, or floats in \[0, 1\]",
        ),
        ({"images": numpy.zeros((1, 2)), "labels": [1]}, r"images have the shape \(1, 2\), expected \(images, height"),
        ({"images": numpy.array([{}]), "labels": [1]}, r"cannot be read .*expected a NumPy archive without pickled"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, **arrays))


def test_broken_archives_and_splits(tmp_path: Path) -> None:
    path = write(tmp_path, images=BYTES, labels=[1, 2])
    with pytest.raises(DataError, match=r"has no splits, and split='test' was given; leave split out"):
        load(path, split="test")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cannot be read \(.*\), expected a NumPy archive"):
        load(path)
