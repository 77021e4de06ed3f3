"""CIFAR-10's binary version: files of records of one label byte and 3 x 32 x 32 pixels.

Knows nothing of the Python version, whose pickles can run any code when they are opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy

from editable.datasets import pixels
from editable.datasets.case import Case
from editable.errors import DataError

_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
_PREFIX = {"train": "data_batch", "test": "test_batch"}


def recognises_path(path: Path) -> bool:
    """Whether it is a batch, or a folder of them, in either version."""
    return bool(_batches(path, ""))


def read(path: Path, split: str | None) -> Iterator[Case]:
    """Yield one case for each image; of one split, "train" or "test", if it is given.

    Raises:
        DataError: there is no batch, only the Python version, or a batch breaks off.
    """
    found = _batches(path, "" if split is None else _PREFIX.get(split, split))
    batches = [file for file in found if file.suffix == ".bin"]
    if not batches:
        seen = f"only pickles ({found[0].name} ...)" if found else "no batch"
        raise DataError(
            f"{str(path)!r} has {seen}, expected data_batch_1.bin ... (split 'train') or test_batch.bin "
            f"(split 'test'), and split is {split!r}; pickles can run code and are not opened: fetch the binary "
            "version of CIFAR-10."
        )
    for batch in batches:
        yield from _cases(batch)


def _batches(path: Path, prefix: str) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = [file for file in files if file.name.startswith(tuple(_PREFIX.values())) and file.name.startswith(prefix)]
    return [file for file in named if file.suffix in (".bin", "")]


def _cases(batch: Path) -> Iterator[Case]:
    number = 0
    with batch.open("rb") as file:
        while data := file.read(_RECORD_BYTES):
            number += 1
            where = f"{batch}, image {number}"
            if len(data) != _RECORD_BYTES:
                raise DataError(
                    f"{where}: the file is truncated, {len(data)} of {_RECORD_BYTES} bytes are there; fetch it again."
                )
            array = numpy.frombuffer(data, numpy.uint8, offset=1).reshape(_SHAPE)
            yield pixels.case(array, data[0], where)
