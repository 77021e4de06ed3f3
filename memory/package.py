"""FAISS, imported when it is first needed."""

from __future__ import annotations

from typing import Any


def faiss() -> Any:
    """The package."""
    import faiss

    return faiss
