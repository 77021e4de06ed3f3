"""The model without any edit: the floor of reliability, and the ceiling of locality.

It takes edits in and does nothing with them. What it scores is what the model knew, or guessed from the target's own
tokens, beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from editable.asking import Asker
from editable.edit import Edit
from editable.learn import shadow_of


@dataclass(frozen=True)
class Unedited:
    """See the module docstring."""

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"family": "none", "scope": "nothing", "effect": "none", "training": "none"}
    )

    def on(self, model: nn.Module, tokenizer: Any) -> UneditedSystem:
        """The model as it is."""
        return UneditedSystem(shadow_of(model), tokenizer)


class UneditedSystem(Asker):
    """Asks a model and counts the edits it ignores."""

    name = "unedited"
    held = 0
    numbers = 0

    def insert(self, edits: Sequence[Edit]) -> None:
        """See `System`."""
        self.held += len(edits)

    def reset(self) -> None:
        """See `System`."""
        self.held = 0
