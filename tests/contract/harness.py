"""What the contract tests share: a model with edits beside an untouched twin, decoding by hand, measuring."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editable import Edit, EditableModel, Receipt
from tests.families import EOS, FAMILIES, LONGEST, Kind, Loaded, Side, positions, until_end

LEARNED = 4
"""How many of a model's `edited` inputs have been learned where a test starts with edits."""

BOTH_SIDES: tuple[Side, ...] = ("left", "right")


def only(*kinds: Kind) -> pytest.MarkDecorator:
    """Narrow the `family` fixture to these kinds."""
    return _families([family for family in FAMILIES if family.kind in kinds])


def named(*names: str) -> pytest.MarkDecorator:
    """Narrow the `family` fixture to these families."""
    return _families([family for family in FAMILIES if family.name in names])


def _families(families: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", families, ids=lambda f: f.name, indirect=True, scope="session")


once = pytest.mark.once
"""What editors have no part in: one stands for all."""

routing = pytest.mark.routing
"""Only for editors that leave rows without an edit alone; what others do there is theirs to measure."""

both_dtypes = pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16],
    ids=["float32", "bfloat16"],
    indirect=True,
    scope="session",
)


def edits_of(loaded: Loaded, indices: Sequence[int] = range(LEARNED)) -> list[Edit]:
    """The edits of these `edited` inputs."""
    return [Edit(loaded.edited[index], loaded.targets[index]) for index in indices]


@dataclass(frozen=True, eq=False)
class Edited:
    """A model that has learned its first four edits, beside a twin that nothing was ever attached to."""

    loaded: Loaded
    twin: Loaded
    em: EditableModel
    receipts: list[Receipt]

    @property
    def routes(self) -> bool:
        """Whether rows without an edit keep every bit."""
        return all(editor.routes for editor in self.em.editors.values())

    @property
    def mixed(self) -> list[Any]:
        """Edited rows and unrelated rows in turn, then the rows that could be edited but are not."""
        edited, unrelated = self.loaded.edited, self.loaded.unrelated
        turns = [row for pair in zip(edited[:LEARNED], unrelated, strict=True) for row in pair]
        return [*turns, *edited[LEARNED:]]

    def index(self, row: int) -> int | None:
        """Which edit row `row` of `mixed` falls under, if any."""
        return row // 2 if row % 2 == 0 and row < 2 * LEARNED else None

    def check(self, said: list[list[int]], base: list[list[int]], copies: int = 1) -> None:
        """Edited rows of `mixed` hold their answer, others what the twin says if the editor routes.

        `copies` sequences a row.
        """
        assert len(said) == len(base) == len(self.mixed) * copies
        for place, (tokens, unedited) in enumerate(zip(said, base, strict=True)):
            index = self.index(place // copies)
            if index is None:
                assert tokens == unedited or not self.routes, f"row {place}"
            else:
                assert self.loaded.is_answer(tokens, index), f"row {place} says {tokens}"
                assert not self.loaded.is_answer(unedited, index)


def reads_text(editor: Any) -> bool:
    """Whether its scope decides by the text of the prompt."""
    return bool(getattr(getattr(editor, "scope", None), "reads_text", False))


# ---------------------------------------------------------------------------------------------------- by hand


class ByHand:
    """Greedy decoding with a bare forward loop over a cache that the caller holds."""

    def __init__(self, loaded: Loaded, inputs: Sequence[Any], side: Side | None = None, cache: Any = None) -> None:
        self.loaded = loaded
        self.mask = loaded.encode(inputs, side)["attention_mask"]  # (batch, positions)
        feed = loaded.feed(inputs, side)
        out = self._forward(feed | ({} if cache is None else {"past_key_values": cache}))
        self.cache = out.past_key_values
        self.encoded = getattr(out, "encoder_last_hidden_state", None)
        last = self.mask.shape[1] - 1 - self.mask.flip(1).argmax(1)  # (batch,)
        logits = out.logits[:, -1] if self.encoded is not None else out.logits[torch.arange(len(inputs)), last]
        self.tokens = logits.argmax(-1, keepdim=True)  # (batch, new tokens)

    @torch.no_grad()
    def _forward(self, feed: dict[str, Any]) -> Any:
        return self.loaded.model(**feed, use_cache=True)

    def step(self, times: int = 1) -> ByHand:
        """Decode so many more tokens."""
        for _ in range(times):
            out = self._forward(self._feed() | {"past_key_values": self.cache})
            self.cache = out.past_key_values
            self.tokens = torch.cat([self.tokens, out.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return self

    def _feed(self) -> dict[str, Any]:
        newest = self.tokens[:, -1:]
        if self.encoded is not None:
            return {
                "encoder_outputs": (self.encoded,),
                "attention_mask": self.mask,
                "decoder_input_ids": newest,
            }
        self.mask = torch.cat([self.mask, torch.ones_like(newest)], dim=1)
        position_ids = positions(self.mask)[:, -1:]
        return {"input_ids": newest, "attention_mask": self.mask, "position_ids": position_ids}

    def select(self, rows: Tensor) -> ByHand:
        """The caller has moved rows about in the cache; move the rest in the same way."""
        self.mask, self.tokens = self.mask[rows], self.tokens[rows]
        self.encoded = None if self.encoded is None else self.encoded[rows]
        return self

    @property
    def said(self) -> list[list[int]]:
        """New tokens of each row, up to its end token."""
        return [until_end(row) for row in self.tokens.tolist()]


@torch.no_grad()
def recompute(
    loaded: Loaded,
    row: Any,
    pick: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
    steps: int = LONGEST,
) -> list[int]:
    """What one row alone says when every token is one bare forward over everything before it."""
    feed = loaded.encode([row])
    name = "input_ids" if loaded.family.kind == "causal" else "decoder_input_ids"
    tokens = feed.get(name, loaded.feed([row]).get(name))
    assert tokens is not None
    start = tokens.shape[1]
    while tokens.shape[1] < start + steps and (tokens.shape[1] == start or int(tokens[0, -1]) != EOS):
        feed[name] = tokens
        if name == "input_ids":
            feed["attention_mask"] = torch.ones_like(tokens)
        logits = loaded.model(**feed, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, pick(logits)[:, None]], dim=1)
    return list(tokens[0, start:].tolist())


# -------------------------------------------------------------------------------------------------- measuring


def everything(loaded: Loaded) -> list[Tensor]:
    """What a model says to every input: in one batch on either padding side, and each alone."""
    rows = [*loaded.edited, *loaded.unrelated]
    sides = BOTH_SIDES if loaded.tokenizer is not None else (loaded.side,)
    return [*(loaded.logits(rows, side) for side in sides), *(loaded.logits([row]) for row in rows)]


def same_bits(now: list[Tensor], before: list[Tensor]) -> bool:
    """Whether all these tensors are equal, bit for bit."""
    return len(now) == len(before) and all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def digest(tensor: Tensor) -> str:
    """A digest of a tensor's bytes."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.tobytes()).hexdigest()


def hooks(model: nn.Module) -> Counter[tuple[str, int]]:
    """Every hook on every module, as (module and kind, id of the hook)."""
    return Counter((f"{name} {kind}", id(hook)) for name, kind, hook in _hooks(model))


def _hooks(model: nn.Module) -> Iterator[tuple[str, str, object]]:
    for name, module in model.named_modules():
        for kind, value in vars(module).items():
            if kind.endswith("_hooks") and isinstance(value, dict):
                yield from ((name, kind, hook) for hook in value.values())


def surface(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Class, submodules, buffers and instance attributes of every module, without their values."""
    return {
        name: (type(module).__name__, *sorted(vars(module)), *module._modules, *module._buffers)
        for name, module in model.named_modules()
    }


def parameters(model: nn.Module) -> dict[str, tuple[int, str, bool, bool]]:
    """Of every tensor of the state: where it lies, what it holds, whether it asks for or has a gradient."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: (tensor.data_ptr(), digest(tensor), tensor.requires_grad, tensor.grad is not None)
        for name, tensor in tensors.items()
    }


def with_edits(loaded: Loaded, em: EditableModel) -> Edited:
    """Learn the first four edits: three at once, then one more."""
    receipts = [*em.edit(edits_of(loaded, range(LEARNED - 1))), em.edit(edits_of(loaded, [LEARNED - 1])[0])]
    return Edited(loaded, loaded.family.load(loaded.dtype), em, receipts)
