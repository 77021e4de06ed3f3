"""CIFAR-10's binary batches; its pickles are never opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from editable.datasets import DataError, load

RED_THEN_BLACK = bytes([4]) + bytes([255]) * 1024 + bytes(2048)


def test_pixels_and_labels(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(RED_THEN_BLACK)
    (tmp_path / "test_batch.bin").write_bytes(bytes([9]) + bytes(3072))
    red, black = load(tmp_path)
    assert (red.edit.target, black.edit.target) == (4, 9)
    assert isinstance(red.edit.prompt, torch.Tensor)
    assert torch.equal(red.edit.prompt, torch.stack([torch.ones(32, 32), torch.zeros(32, 32), torch.zeros(32, 32)]))
    assert [case.edit.target for case in load(tmp_path, split="train")] == [4]
    assert [case.edit.target for case in load(tmp_path / "test_batch.bin")] == [9]


def test_a_batch_that_breaks_off(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(RED_THEN_BLACK + bytes(10))
    with pytest.raises(DataError, match=r"image 2: the file is truncated, 10 of 3073 bytes are there; fetch it again"):
        load(tmp_path)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("the pickle was opened",)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        DataError, match=r"has only pickles \(data_batch_1 \.\.\.\), expected .*fetch the binary version"
    ):
        load(tmp_path)
