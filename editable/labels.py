"""What a classifier calls its labels: names to numbers and back.

Knows where a config keeps them, and what a person may have meant. Knows nothing of edits or images.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from editable.errors import InputError, SiteError
from editable.site import classifier_head, linear_shape

NEAREST = 4  # names that an error lists


@dataclass(frozen=True)
class Labels:
    """The labels of one classifier.

    Args:
        names: in the order of the labels; empty where they have none.
        count: how many labels there are; None where that cannot be told.
        owner: what an error calls the model.
        aliases: further names, and their labels.
    """

    names: Sequence[str] = ()
    count: int | None = None
    owner: str = "the model"
    aliases: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str] = ()) -> Labels:
        """Those of a model: with the names given, else with those of its config."""
        config = getattr(model, "config", None)
        count = getattr(config, "num_labels", None)
        aliases = getattr(config, "label2id", None) or {}
        return cls(names or _configured(config), count or _outputs(model), type(model).__name__, aliases)

    def name(self, label: int) -> str:
        """What a label is called; its number where it has no name."""
        return self.names[label] if label < len(self.names) else str(label)

    def number(self, target: str | int | None) -> int:
        """The label that a name or a number means. One of several names between commas will do, and so will its case.

        Raises:
            InputError: none, or several; the nearest names are listed.
        """
        label = self._named(target) if isinstance(target, str) else target
        if not isinstance(label, int) or not 0 <= label < (self.count or label + 1):
            known = f"a label from 0 to {self.count - 1}" if self.count else "an integer label"
            raise InputError(f"Edit.target is {target!r}, expected {known} of {self.owner}.{self._nearest(target)}")
        return label

    def _named(self, target: str) -> int | None:
        if target in self.names:
            return self.names.index(target)
        if target in self.aliases:
            return self.aliases[target]
        wanted = target.casefold().strip()
        meant = [n for n, name in enumerate(self.names) if wanted in (name.casefold(), *name.casefold().split(", "))]
        if len(meant) > 1:
            listed = ", ".join(f"{self.names[label]!r} ({label})" for label in meant[:NEAREST])
            raise InputError(
                f"Edit.target is {target!r}, which {len(meant)} labels of {self.owner} are called, expected one of "
                f"{listed}; give its full name or its number."
            )
        return meant[0] if meant else int(wanted) if wanted.isdecimal() else None

    def _nearest(self, target: str | int | None) -> str:
        """A sentence about the names that may have been meant."""
        if not isinstance(target, str) or not self.names:
            return ""
        wanted = target.casefold().strip()
        within = [name for name in self.names if wanted in name.casefold()]
        within.sort(key=lambda name: wanted not in name.casefold().replace(",", " ").split())  # as a word first
        near = difflib.get_close_matches(wanted, [name.casefold() for name in self.names], NEAREST, cutoff=0.4)
        alike = [name for name in self.names if name.casefold() in near]
        found = list(dict.fromkeys([*within, *alike]))[:NEAREST] or self.names[:NEAREST]
        return f" The nearest of its names are: {', '.join(found)}."


def _configured(config: Any) -> tuple[str, ...]:
    """The names that a Hugging Face config has."""
    names = getattr(config, "id2label", None) or {}
    whole = set(names) == set(range(len(names)))
    return tuple(str(names[label]) for label in range(len(names))) if whole else ()


def _outputs(model: nn.Module) -> int | None:
    """How many logits the model's head makes."""
    try:
        shape = linear_shape(model.get_submodule(classifier_head(model)))
    except SiteError:
        return None
    return shape[1] if shape else None
