"""Datasets of the Hugging Face hub, through the optional package `datasets`.

Knows how to get their records; what their fields mean is for the layouts, as with files.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from editable.datasets import files
from editable.datasets.record import Record
from editable.errors import DataError, MissingPackageError

INSTALL = 'pip install "datasets>=3.0"'


def read(name: str, split: str | None) -> Iterator[Record]:
    """The records of a dataset on the hub; of all its splits, one after another, where none is named.

    Raises:
        MissingPackageError: the package `datasets` is not installed.
        DataError: no such dataset or split, or no network.
    """
    loaded = _load(name, split)
    for part, records in loaded.items() if isinstance(loaded, Mapping) else [(split, loaded)]:
        for number, value in enumerate(records, start=1):
            yield files.record(f"{name}, split {part}, record {number}", value)


def _load(name: str, split: str | None) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingPackageError(
            f"{name!r} is no file or folder here; a dataset of the hub needs the package 'datasets', which is not "
            f"installed; run `{INSTALL}`, or check the path."
        ) from error
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the package raises errors of its own, of its dependencies and of the network
        wanted = name if split is None else f"{name}, split {split!r}"
        raise DataError(
            f"{name!r} is no file or folder here, and loading {wanted} from the hub failed ({type(error).__name__}: "
            f"{error}); expected a dataset id such as 'zjunlp/KnowEdit' and a network; check both."
        ) from error
