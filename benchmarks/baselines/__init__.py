"""What editors are compared with. One baseline per file; the list of baselines is this folder.

A baseline is a frozen dataclass: the instance is its configuration, and `on` gives a `System` with no edits yet.
`properties` says in words what the table of methods shows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from editable.system import System


@runtime_checkable
class Baseline(Protocol):
    """One thing to compare editors with."""

    properties: ClassVar[Mapping[str, str]]

    def on(self, model: nn.Module, tokenizer: Any) -> System:
        """The baseline over a model, which it does not change."""
        ...
