"""What is measured: anything that can be given edits and asked, an edited model or a baseline.

Protocols and scores know systems by these few methods alone, so that every editor, and every baseline in
`benchmarks/baselines`, is measured by the very same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from editable.edit import Edit, ModelInput


@dataclass(frozen=True)
class Answer:
    """What came out of free greedy generation; for classifiers, a label.

    Args:
        text: the answer as text, without its end token.
        tokens: its token ids, the end token left out.
        stopped: whether the model ended it by itself.
    """

    text: str
    tokens: tuple[int, ...] = ()
    stopped: bool = True


class System(Protocol):
    """Something that can be given edits and asked.

    All tensors are on the CPU and in float32. What is asked in one call may be computed in batches; the order is kept.
    """

    name: str

    def insert(self, edits: Sequence[Edit]) -> None:
        """Take in a batch of edits; those before stay."""
        ...

    def reset(self) -> None:
        """Forget all edits."""
        ...

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """(target tokens, vocabulary) logits of each target under teacher forcing; (1, classes) for classifiers."""
        ...

    def target_ids(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """(target tokens,) ids of each target where it follows its prompt, without an end token; the label alone for classifiers."""
        ...

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        """Greedy answers, each cut off after so many tokens if the model does not stop before."""
        ...

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """(positions, vocabulary) of each prompt by itself, unpadded, so that equal bits mean an equal model;
        (1, classes) for classifiers."""
        ...
