"""Prompts of one size, so that every forward that is timed does the same work: some that edits are about, some not.

Knows text, tokenizers and pictures. Refuses to know what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editable import Edit
from editable.datasets import Case
from editable.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

TOKENS = 16  # of every prompt, those included that the tokenizer puts around a text
ROWS = 8  # prompts of each kind


@dataclass(frozen=True, eq=False)
class Prompts:
    """ROWS prompts of TOKENS tokens each, or ROWS images.

    Args:
        miss: (ROWS, TOKENS) ids of prompts that no edit is about, or images (ROWS, channels, height, width).
        hit: the same of the prompts of `edits`.
        edits: requests to be learned.
        answer_tokens: tokens of the shortest target: so long do all rows of a batch of hits follow their answers; 0 for
            images.
    """

    miss: Tensor
    hit: Tensor
    edits: Sequence[Edit]
    answer_tokens: int

    def hits(self, edits: int) -> Tensor:
        """(ROWS, ...) hits on the first so many edits, repeated where there are fewer than ROWS."""
        return self.hit[torch.arange(ROWS) % min(edits, ROWS)]


def refuse_without_text(model: Any, tokenizer: Any, benchmark: str) -> None:
    """Refuse what cannot be measured in prefills and decode steps.

    Raises:
        InputError: the model has no tokenizer, does not generate, or has an encoder.
    """
    able = tokenizer is not None and getattr(model, "can_generate", bool)()
    if not able or model.config.is_encoder_decoder:
        raise InputError(
            f"--model is a {type(model).__name__}, expected a decoder that generates text: {benchmark} times its "
            "prefill and its decode steps; choose another model, such as smollm2."
        )


def prompts(tokenizer: Any, cases: Iterable[Case], questions: Sequence[str]) -> Prompts:
    """Texts run together and cut to length at a word; an edit's prompt ends as its fact's does.

    Raises:
        InputError: there are too few texts.
    """
    hit = list(islice(_edits(tokenizer, cases, questions), ROWS))
    beginnings, ends = questions[::2], questions[1::2]
    cut = (_cut(tokenizer, beginnings, end) for end in ends)
    miss = list(islice((text for text in cut if text is not None), ROWS))
    if len(hit) < ROWS or len(miss) < ROWS:
        raise InputError(
            f"Of {len(hit)} facts and {len(miss)} unrelated questions a prompt of {TOKENS} tokens can be made, "
            f"expected {ROWS} of each; give more of them with --data or --unrelated."
        )
    targets = [tokenizer(str(edit.target), add_special_tokens=False)["input_ids"] for edit in hit]
    ids = _ids(tokenizer, miss), _ids(tokenizer, [str(edit.prompt) for edit in hit])
    return Prompts(*ids, hit, max(1, min(map(len, targets))))


def images(transform: Callable[[Image], Tensor], seed: int) -> Prompts:
    """Pictures of blurred spots, of the size that the transform makes, and edits of half of them to some label."""
    from PIL import Image

    channels, height, width = transform(Image.new("RGB", (256, 256))).shape
    spots = torch.randn(2 * ROWS, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    made = nn.functional.interpolate(spots, (height, width), mode="bicubic")
    edits = [Edit(image, label) for label, image in enumerate(made[ROWS:])]
    return Prompts(made[:ROWS], made[ROWS:], edits, 0)


def _edits(tokenizer: Any, cases: Iterable[Case], questions: Sequence[str]) -> Iterator[Edit]:
    for edit in (case.edit for case in cases):
        if isinstance(edit.prompt, str) and (text := _cut(tokenizer, questions, edit.prompt)) is not None:
            subject = edit.subject if edit.subject and edit.subject in text else None
            yield replace(edit, prompt=text, rephrases=(), locality=(), subject=subject)


def _cut(tokenizer: Any, beginnings: Iterable[str], end: str) -> str | None:
    """A text of exactly TOKENS tokens that ends in `end`, or in its last words; None where no beginning fits."""
    for beginning in beginnings:
        words = [*beginning.split(), *end.split()]
        for first in range(len(words)):
            text = " ".join(words[first:])
            length = len(tokenizer(text)["input_ids"])
            if length <= TOKENS:
                break
        if length == TOKENS:
            return text
    return None


def _ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    return torch.tensor([tokenizer(text)["input_ids"] for text in texts])
