"""A folder with one sub-folder of images for each class, as torchvision's ImageFolder takes it.

Knows that labels count the sub-folders in the order of their names, and that images of any kind become RGB.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from editable.datasets import pixels
from editable.datasets.case import Case
from editable.errors import DataError, MissingPackageError

SUFFIXES = (".png", ".jpg", ".jpeg")
INSTALL = 'pip install "pillow>=10"'


def recognises_path(path: Path) -> bool:
    """Whether a sub-folder has an image, or one of its own sub-folders does, as with splits."""
    return path.is_dir() and any(_images(folder) or any(map(_images, _folders(folder))) for folder in _folders(path))


def read(path: Path, split: str | None) -> Iterator[Case]:
    """Yield one case for each image, class by class; of the sub-folder `split` if it is given.

    Raises:
        DataError: no classes are there, or an image cannot be read.
        MissingPackageError: Pillow is not installed.
    """
    root = path if split is None else path / split
    classes = _folders(root) if root.is_dir() else []
    if not any(map(_images, classes)):
        inside = ", ".join(folder.name for folder in (classes or _folders(path))[:8]) or "no folder"
        raise DataError(
            f"folder {str(root)!r} holds no folders with images; there is {inside}; expected one folder a class with "
            f"{', '.join(SUFFIXES)} files; check the path, or name one of these with split=..."
        )
    pillow = _pillow()
    for label, folder in enumerate(classes):
        for file in _images(folder):
            yield pixels.case(_channels(pillow, file), label, str(file))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingPackageError(
            f"reading image files needs the package 'pillow', which is not installed; run `{INSTALL}`."
        ) from error


def _channels(pillow: Any, file: Path) -> Any:
    """(3, height, width) bytes."""
    try:
        with pillow.open(file) as image:
            return numpy.array(image.convert("RGB")).transpose(2, 0, 1)
    except OSError as error:
        raise DataError(
            f"image {str(file)!r} cannot be read ({error}), expected PNG or JPEG; replace the file."
        ) from error
