"""A System without a model: it says what it was told to, letter by letter, and everything else wrong.

One token a letter; its logits for a known prompt are ten for what it says and zero for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from editable.edit import Edit, ModelInput
from editable.system import Answer

LETTERS = 128


class Parrot:
    """See the module docstring.

    Args:
        knows: prompt to what it says without any edit.
        room: how many edits it keeps; the oldest are forgotten first.
        spoils: unrelated prompts whose logits every edit moves.
        before_insert: called with how many edits it holds, before it takes more in.
    """

    name = "parrot"

    def __init__(
        self,
        knows: dict[str, str] | None = None,
        room: int = 1000,
        spoils: Sequence[str] = (),
        before_insert: Callable[[int], object] = bool,
    ) -> None:
        self.knows = knows or {}
        self.room = room
        self.spoils = spoils
        self.before_insert = before_insert
        self.edits: list[Edit] = []
        self.batches: list[int] = []

    @property
    def held(self) -> int:
        return len(self.edits)

    @property
    def numbers(self) -> int:
        return 10 * len(self.edits)

    def insert(self, edits: Sequence[Edit]) -> None:
        self.before_insert(self.held)
        self.edits += edits
        self.batches.append(len(edits))

    def reset(self) -> None:
        self.edits.clear()
        self.batches.append(0)

    def says(self, prompt: ModelInput) -> str:
        kept = {str(edit.prompt): str(edit.target) for edit in self.edits[-self.room :]}
        return {**self.knows, **kept}.get(str(prompt), "")

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        return [self._scores(self.says(p), len(str(t))) for p, t in zip(prompts, targets, strict=True)]

    def _scores(self, said: str, length: int) -> Tensor:
        tokens = torch.tensor([ord(letter) for letter in said[:length].ljust(length, "\0")])
        return 10.0 * torch.nn.functional.one_hot(tokens, LETTERS)

    def target_ids(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        del prompts
        return [torch.tensor([ord(letter) for letter in str(target)]) for target in targets]

    def prompt_ids(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        return self.target_ids(prompts, [str(prompt) for prompt in prompts])

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        answers = []
        for prompt, most in zip(prompts, most_tokens, strict=True):
            said = self.says(prompt)
            answers.append(Answer(said[:most], tuple(map(ord, said[:most])), len(said) < most))
        return answers

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        found = []
        for prompt in prompts:
            moved = self.held if prompt in self.spoils else 0
            scores = self._scores(str(prompt)[1:], len(str(prompt)))  # it guesses each next letter of a text right
            found.append(scores / (1 + moved))
        return found
