"""What one forward or one generation sees: an immutable version of every editor's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A version number and the state of every editor that holds at least one edit.

    Args:
        version: counts up by one with every published change; 0 is the unedited model.
        states: editor name to that editor's immutable state; editors without edits are absent, which is what makes
            an unedited forward free.
    """

    version: int = 0
    states: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Snapshot:
        return self  # immutable, and a copied KV cache must go on seeing the very same version

    def replace(self, version: int, changed: Mapping[str, Any]) -> Snapshot:
        """The next version: `changed` editors have new states, the others are shared."""
        states = {name: state for name, state in {**self.states, **changed}.items() if len(state)}
        return Snapshot(version, MappingProxyType(states))
