"""Image arrays of any dataset as the tensors a vision model takes, and the case each of them is.

Knows value ranges; knows no file format and guesses no order of axes.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch

from editable.datasets.case import Case
from editable.edit import Edit
from editable.errors import DataError


def case(array: Any, label: int, where: str) -> Case:
    """The edit of one image to its label; nobody says what is near it.

    Args:
        array: (channels, height, width) bytes, or floats in [0, 1]; the edit's prompt is a float tensor in [0, 1].
        label: the class.
        where: file and image, for messages.

    Raises:
        DataError: the array has another type or range.
    """
    if array.dtype == numpy.uint8:
        return Case(Edit(torch.from_numpy(array.astype(numpy.float32) / numpy.float32(255)), label), where=where)
    if array.dtype.kind != "f":
        raise DataError(f"{where}: values are {array.dtype}, expected bytes, or floats in [0, 1]; convert the array.")
    image = torch.from_numpy(array.astype(numpy.float32))
    if not bool(((image >= 0) & (image <= 1)).all()):
        raise DataError(
            f"{where}: values go from {array.min()} to {array.max()}, expected bytes, or floats in [0, 1]; scale them."
        )
    return Case(Edit(image, label), where=where)
