"""IDX files: two headers, packed or not, pairs found by name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from editable.datasets import DataError, load

IMAGES = struct.pack(">IIII", 0x803, 2, 1, 2) + bytes([0, 255, 51, 102])
LABELS = struct.pack(">II", 0x801, 2) + bytes([7, 3])


def write(folder: Path, prefix: str, images: bytes = IMAGES, labels: bytes = LABELS, *, packed: bool = False) -> Path:
    ending = ".gz" if packed else ""
    for kind, axes, data in (("images", 3, images), ("labels", 1, labels)):
        name = f"{prefix}-{kind}-idx{axes}-ubyte{ending}"
        (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder / f"{prefix}-images-idx3-ubyte{ending}"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_pixels_and_labels(tmp_path: Path, packed: bool, whole: bool) -> None:
    file = write(tmp_path, "t10k", packed=packed)
    first, second = load(tmp_path if whole else file)
    assert (first.edit.target, second.edit.target) == (7, 3)
    assert isinstance(second.edit.prompt, torch.Tensor)
    assert torch.equal(second.edit.prompt, torch.tensor([[[0.2, 0.4]]]))
    assert second.where == f"{file}, image 2"


def test_splits_by_name(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "t10k", labels=struct.pack(">II", 0x801, 2) + bytes([1, 1]))
    assert [case.edit.target for case in load(tmp_path, split="test")] == [1, 1]
    assert [case.edit.target for case in load(tmp_path, split="train")] == [7, 3]
    assert len(load(tmp_path)) == 4
    with pytest.raises(DataError, match=r"has no IDX file of images of the split 'val', expected names such as train-"):
        load(tmp_path, split="val")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:-1], LABELS, r"image 2: the file is truncated, 1 of 2 bytes are there; fetch it again"),
        (IMAGES, LABELS[:-1], r"label 2: the file is truncated, 0 of 1 bytes"),
        (IMAGES[:9], LABELS, r"the file is truncated, 5 of 12 bytes"),
        (LABELS, LABELS, r"begins with 0x00000801, expected 0x00000803, an IDX file of images"),
        (IMAGES, struct.pack(">II", 0x801, 1) + bytes([7]), r"has 2 images and .* has 1 labels; fetch the pair again"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    write(tmp_path, "train", images, labels)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_broken_archive_and_missing_labels(tmp_path: Path) -> None:
    file = write(tmp_path, "train", packed=True)
    whole = file.read_bytes()
    file.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot be unpacked \(.*\), expected an IDX file; fetch the file again"):
        load(tmp_path)
    file.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"has no labels beside it, expected the file train-labels-idx1-ubyte or "):
        load(tmp_path)
