"""What a forward's prompts say, as text: read off the token ids, once per prefill, and only if somebody asks.

Knows tokenizers and their chat templates; knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

_MARKS = ("Xq1z", "Yq2z", "Zq3z")  # stand for what user, assistant and user again say in a rendered template


class Reading:
    """Turns the token ids of a prompt into what was asked: no padding, no special tokens, of a chat the last user turn.

    Args:
        tokenizer: a Hugging Face tokenizer; nothing is set on it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def text(self, ids: Sequence[int]) -> str:
        """One prompt; what follows the last user turn already (the beginning of an answer) is kept behind it."""
        opening, closing = self._turn
        if opening:
            raw = str(self.tokenizer.decode(ids))
            start = raw.rfind(opening)
            if start >= 0:
                said, _, answered = raw[start + len(opening) :].partition(closing)
                return self._plain(f"{said} {answered}")
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _plain(self, text: str) -> str:
        for special in self.tokenizer.all_special_tokens:
            text = text.replace(special, " ")
        return text.strip()

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What comes before and after a user's turn where the tokenizer's chat template is used; empty without one."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "", ""
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
        try:
            rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may refuse anything in words of its own; then prompts are read as plain text
            return "", ""
        before, _, rest = str(rendered).partition(_MARKS[0])
        between, _, closing = rest.partition(_MARKS[1])[2].partition(_MARKS[2])
        return _common_end(before, between), closing


def _common_end(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return one[len(one) - sum(1 for _ in same) :]


class Prompts:
    """The prompts of one forward's rows.

    Args:
        reading: reads them.
        ids: (batch, columns) the tokens so far, those of earlier chunks included; padding is negative.
        after: (batch,) columns behind each row's key token.
    """

    def __init__(self, reading: Reading, ids: Tensor, after: Tensor) -> None:
        self.reading = reading
        self.memo: dict[Any, Any] = {}
        """For whoever computes something from the texts: kept as long as the forward, shared by all editors."""
        self._ids = ids
        self._after = after

    @cached_property
    def _rows(self) -> list[list[int]]:
        """Up to the key token; on an accelerator this waits for the tokens, once per prefill."""
        width = self._ids.shape[1]
        return [row[: width - after] for row, after in zip(self._ids.tolist(), self._after.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def tokens(self) -> Tensor:
        """(batch, columns) all tokens so far, those behind the key token included; padding is negative."""
        return self._ids

    def text(self, row: int, lag: int = 0) -> str:
        """What one row asks, if its last `lag` tokens are no part of the prompt."""
        ids = self._rows[row]
        return self.reading.text([token for token in ids[: len(ids) - lag] if token >= 0])


def prompts_of(reading: Reading, read: Sequence[Tensor], key: Tensor | None, whole: bool) -> Prompts | None:
    """The prompts of a forward; None where it does not contain their end, or they are not tokens.

    Args:
        reading: reads them.
        read: (batch, columns) each: tokens of this prefill behind those of forwards that it continues.
        key: (batch,) column of the key token among the last part.
        whole: whether they are prompts to their end, whatever the key is (an encoder's).
    """
    if key is None or not read:
        return None
    parts = [part.to(key.device) for part in read if len(part) == len(key)]
    after = torch.zeros_like(key) if whole else parts[-1].shape[1] - 1 - key
    return Prompts(reading, torch.cat(parts, dim=1), after)


@torch.no_grad()
def tokens_of(embedded: Tensor, table: nn.Embedding) -> Tensor:
    """The token ids (batch, positions) that a model's input embeddings (batch, positions, features) were looked up for.

    Negative where they are no token's, as those of a soft prompt.
    """
    weight = table.weight.float()  # some tables scale what they give, so the direction finds it and the value confirms
    alike = embedded.float() @ weight.T / weight.norm(dim=1).clamp_min(1e-12)
    found = alike.argmax(dim=-1)
    return torch.where((table(found) == embedded).all(dim=-1), found, -1)
