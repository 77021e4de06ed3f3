"""A NumPy archive (.npz) with `images` and `labels`.

Knows the two names, and that the axis of 1, 3 or 4 entries is the channels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from editable.datasets import pixels
from editable.datasets.case import Case
from editable.errors import DataError

_CHANNELS = (1, 3, 4)


def recognises_path(path: Path) -> bool:
    """Whether it is a NumPy archive."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read(path: Path, split: str | None) -> Iterator[Case]:
    """Yield one case for each image.

    Raises:
        DataError: it is broken, an array is missing, lengths differ, or a split is asked for.
    """
    if split is not None:
        raise DataError(f"file {str(path)!r} has no splits, and split={split!r} was given; leave split out.")
    images, labels = _arrays(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise DataError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected {len(images)} integers, one for each "
            "image; correct the array."
        )
    for number, (image, label) in enumerate(zip(_channels_first(images, path), labels, strict=True), start=1):
        yield pixels.case(image, int(label), f"{path}, image {number}")


def _channels_first(images: Any, path: Path) -> Any:
    """(images, channels, height, width)."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in _CHANNELS:
        return images
    if images.ndim == 4 and images.shape[3] in _CHANNELS:
        return images.transpose(0, 3, 1, 2)
    raise DataError(
        f"{path}: images have the shape {tuple(images.shape)}, expected (images, height, width), or with 1, 3 or 4 "
        "channels behind the images or at the end; reshape the array."
    )


def _arrays(path: Path) -> tuple[Any, Any]:
    try:
        # Opened here: where the archive is broken, numpy leaves the file it opened to the garbage collector.
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as archive:
            if not {"images", "labels"} <= set(archive.files):
                seen = ", ".join(archive.files) or "nothing"
                raise DataError(f"{path} holds {seen}, expected the arrays images and labels; rename them.")
            return archive["images"], archive["labels"]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read ({error}), expected a NumPy archive without pickled objects; fetch it again."
        ) from error
