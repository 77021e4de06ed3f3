"""What is imported when it is first needed: it takes a while, and small books do without."""

from __future__ import annotations

from typing import Any


def faiss() -> Any:
    """The package."""
    import faiss

    return faiss


def loops() -> Any:
    """The compiled loops of a search, and with them numba."""
    from editable.memory import loops

    return loops
