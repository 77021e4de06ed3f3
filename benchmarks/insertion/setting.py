"""What every part of the insertion benchmark is given, and what it gives back."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editable import EditableModel, Receipt
from editable.benchmarks.bars import Bar
from editable.benchmarks.report import Plot, Table
from editable.datasets import Case
from editable.editor import Editor


@dataclass(frozen=True)
class Setting:
    """The model, what is inserted into it, and the options."""

    model: Any
    tokenizer: Any
    editor: Editor
    cases: Sequence[Case]
    questions: Sequence[str]
    options: argparse.Namespace
    rng: np.random.Generator

    @contextmanager
    def edited(self, log: Path | None = None) -> Iterator[EditableModel]:
        """The model with the editor attached, and given back afterwards."""
        with closing(EditableModel(self.model, self.tokenizer, editor=self.editor, log=log)) as em:
            yield em

    def ids(self, text: str) -> Tensor:
        """(1, tokens)."""
        return self.tokenizer(text, return_tensors="pt")["input_ids"]  # type: ignore[no-any-return]

    @torch.no_grad()
    def logits(self, text: str) -> Tensor:
        """(1, tokens, vocabulary) of the model as it is at the moment."""
        return self.model(input_ids=self.ids(text)).logits  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Part:
    """What one part found.

    Args:
        quality: what must repeat exactly.
        timing: what does not.
        tables: what a person reads.
        bars: figures with a bar.
        plots: pictures.
    """

    quality: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    bars: Sequence[Bar] = ()
    plots: Sequence[Plot] = ()


def insert(em: EditableModel, cases: Sequence[Case]) -> list[Receipt]:
    """Insert all cases as one version. Nothing is refused: what is measured here is not whether edits are right."""
    return em.edit([case.edit for case in cases], verify=False)
