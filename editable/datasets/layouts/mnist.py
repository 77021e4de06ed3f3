"""MNIST's IDX files, packed or not: one file of images and one of labels for each split.

Knows both headers. The label file is found by the image file's name.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy

from editable.datasets import pixels
from editable.datasets.case import Case
from editable.errors import DataError

_IMAGES, _LABELS = 0x0803, 0x0801  # unsigned bytes with three axes, with one
_PREFIX = {"train": "train", "test": "t10k"}


def recognises_path(path: Path) -> bool:
    """Whether it is an IDX file of images, or a folder that has one."""
    return bool(_found(path, None))


def read(path: Path, split: str | None) -> Iterator[Case]:
    """Yield one case for each image; of one split ("train", "test", or a file name's beginning) if it is given.

    Raises:
        DataError: a file is missing, broken off, or no IDX file.
    """
    found = _found(path, split)
    if not found:
        what = "images" if split is None else f"images of the split {split!r}"
        raise DataError(
            f"{str(path)!r} has no IDX file of {what}, expected names such as train-images-idx3-ubyte.gz and "
            "t10k-images-idx3-ubyte.gz; check the path and the split."
        )
    for images in found:
        yield from _pairs(images, _labels_of(images))


def _found(path: Path, split: str | None) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    prefix = "" if split is None else _PREFIX.get(split, split)
    return [file for file in files if "images" in file.name and "ubyte" in file.name and file.name.startswith(prefix)]


def _labels_of(images: Path) -> Path:
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    found = [file for file in (images.with_name(stem), images.with_name(f"{stem}.gz")) if file.is_file()]
    if not found:
        raise DataError(
            f"{str(images)!r} has no labels beside it, expected the file {stem} or {stem}.gz; put it into the folder."
        )
    return found[0]


def _pairs(images: Path, labels: Path) -> Iterator[Case]:
    with _opened(images) as pixel_file, _opened(labels) as label_file:
        count, height, width = _header(pixel_file, images, _IMAGES, "images")
        (labelled,) = _header(label_file, labels, _LABELS, "labels")
        if labelled != count:
            raise DataError(f"{images} has {count} images and {labels} has {labelled} labels; fetch the pair again.")
        for number in range(1, count + 1):
            where = f"{images}, image {number}"
            flat = numpy.frombuffer(_bytes(pixel_file, height * width, where), numpy.uint8)
            label = _bytes(label_file, 1, f"{labels}, label {number}")[0]
            yield pixels.case(flat.reshape(1, height, width), label, where)


def _opened(file: Path) -> BufferedIOBase:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _header(file: BufferedIOBase, path: Path, magic: int, what: str) -> tuple[int, ...]:
    """The lengths of the axes."""
    (seen,) = struct.unpack(">I", _bytes(file, 4, str(path)))
    if seen != magic:
        raise DataError(
            f"{path} begins with {seen:#010x}, expected {magic:#010x}, an IDX file of {what}; fetch the file again."
        )
    axes = magic & 0xFF
    return struct.unpack(f">{axes}I", _bytes(file, 4 * axes, str(path)))


def _bytes(file: BufferedIOBase, size: int, where: str) -> bytes:
    try:
        data = file.read(size)
    except (EOFError, OSError) as error:  # a packed file that breaks off, or is none
        raise DataError(
            f"{where}: cannot be unpacked ({error}), expected an IDX file; fetch the file again."
        ) from error
    if len(data) != size:
        raise DataError(f"{where}: the file is truncated, {len(data)} of {size} bytes are there; fetch it again.")
    return data
