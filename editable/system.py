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
        text: the answer as text, without its end token; a label's name where it has one.
        tokens: its token ids, the end token left out; the label alone for classifiers.
        stopped: whether the model ended it by itself.
    """

    text: str
    tokens: tuple[int, ...] = ()
    stopped: bool = True


class Asked(Protocol):
    """Something that can be asked.

    All tensors are on the CPU and in float32 or int64. What is asked in one call may be computed in batches; the
    order is kept, and the same call gives the same bits.
    """

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """(target tokens, vocabulary) logits of each target under teacher forcing; (1, classes) for classifiers."""
        ...

    def target_ids(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """(target tokens,) ids of each target as it follows its prompt, no end token; (1,) label for classifiers."""
        ...

    def prompt_ids(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """(positions,) token ids that `logits` has positions for; (0,) where the positions are not the prompt's."""
        ...

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        """Greedy answers, each cut off after so many tokens if the model does not stop before."""
        ...

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """(positions, vocabulary) of each prompt, computed by itself and unpadded: equal bits mean an equal model.

        (1, classes) for classifiers; (1, vocabulary), the decoder's start, for encoder-decoder models.
        """
        ...


class System(Asked, Protocol):
    """Something that can be given edits and asked."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def held(self) -> int:
        """How many edits it holds, in the order they came; more than 0 at the start where they outlived a process."""
        ...

    @property
    def numbers(self) -> int:
        """How many numbers it holds for those edits beside the model: what they cost in memory."""
        ...

    def insert(self, edits: Sequence[Edit]) -> None:
        """Take in a batch of edits, all or none; those before stay."""
        ...

    def reset(self) -> None:
        """Forget all edits: the model is what it was."""
        ...
