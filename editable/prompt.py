"""Where the prompt of each row ends: reads the arguments of one forward into a `Call`.

Knows what tokenised batches look like (masks, padding sides, caches, labels); knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from editable.carry import Carried
from editable.editor import Call
from editable.errors import StateError
from editable.reading import Reading, prompts_of
from editable.snapshot import Snapshot

HEADED: ContextVar[Tensor | None] = ContextVar("editable_headed", default=None)
"""(batch, k) the columns that the vocabulary head is given in this thread's forwards; None: see `Call.headed`."""


_ENDS: ContextVar[Tensor | None] = ContextVar("editable_ends", default=None)


@contextmanager
def ending_at(columns: Tensor) -> Iterator[None]:
    """Forwards of this thread hold prompts that end at `columns` (batch,), and behind them what is forced upon a model.

    A mask does not tell the one from the other, and a prompt with an answer behind it may be another prompt.
    """
    token = _ENDS.set(columns)
    try:
        yield
    finally:
        _ENDS.reset(token)


@dataclass(slots=True)
class Generation:
    """One running `generate`: the version it sees, and how many columns its prompt has (None: not known yet)."""

    snapshot: Snapshot
    width: int | None
    mask: Tensor | None = None  # (batch, width) as given; static caches pass only a prepared 4-D one to forward
    tokens: Tensor | None = None  # (batch, width) of the prompt, which an encoder-decoder's forwards do not show
    adapters: Sequence[str] | None = None  # the adapter that each row asked for


def prompt_width(arguments: Mapping[str, Any], seq2seq: bool) -> int | None:
    """Columns of the prompt that `generate` was called with, tokens already in a cache included."""
    if seq2seq:
        return 1 if arguments.get("decoder_input_ids") is None else None
    widths = [
        arguments[name].shape[1]
        for name in ("inputs", "input_ids", "inputs_embeds", "attention_mask")
        if isinstance(arguments.get(name), Tensor) and arguments[name].ndim >= 2
    ]
    return max(widths) if widths else 1


def read_call(
    arguments: Mapping[str, Any],
    snapshot: Snapshot,
    seq2seq: bool = False,
    generation: Generation | None = None,
    carried: Carried | None = None,
    reading: Reading | None = None,
) -> Call:
    """The call of one forward: its tokens, their ordinals, and each row's key token where it is among them.

    With a `reading`, also what the prompts say.

    Raises:
        StateError: requests are packed into one row (continuous batching).
    """
    if arguments.get("cu_seq_lens_q") is not None:
        raise StateError(
            "This forward packs several requests into one row (cu_seq_lens_q is set: continuous batching), expected "
            "one request a row, since edits are decided row by row; use generate() with a padded batch instead."
        )
    tokens = arguments.get("decoder_input_ids" if seq2seq else "input_ids")
    shaped = tokens if tokens is not None else arguments.get("decoder_inputs_embeds" if seq2seq else "inputs_embeds")
    if shaped is None or shaped.ndim < 2:
        return Call(snapshot, decisions=dict(carried.decisions) if carried else {})
    past = carried.seen if carried else cached_length(arguments.get("past_key_values"))
    call = Call(snapshot, tokens=tokens, past=past, decisions=dict(carried.decisions) if carried else {})
    real = _real_tokens(arguments, shaped, past, seq2seq, generation)
    call.pads = (~real).sum(dim=1) if real is not None else carried.pads if carried else None
    call.ordinal = _ordinals(shaped, past, real, call.pads)
    call.key = _key_column(arguments, call.ordinal, past, real, seq2seq, generation)
    call.prompt = _prompt_end(call, past + shaped.shape[1], generation, carried)
    call.phase = "decode" if past and call.key is None else "prefill"
    kept = arguments.get("logits_to_keep")
    call.headed = kept.expand(len(shaped), -1) if isinstance(kept, Tensor) else HEADED.get()
    if reading is not None:
        call.read = _read(call, arguments, real, seq2seq, generation, carried)
        call.prompts = prompts_of(reading, call.read, call.key, seq2seq)
    return call


def _read(
    call: Call,
    arguments: Mapping[str, Any],
    real: Tensor | None,
    seq2seq: bool,
    generation: Generation | None,
    carried: Carried | None,
) -> tuple[Tensor, ...]:
    """The tokens of the prompt so far, padding as -1; an encoder-decoder model is asked through its encoder."""
    earlier = carried.read if carried else ()
    if call.prompt and call.key is None:
        return earlier  # decoding
    tokens = call.tokens
    if not seq2seq and call.past and generation is not None and _is_tokens(generation.tokens):
        earlier = _given(generation.tokens, generation.mask, call) or earlier
    if seq2seq:
        tokens, real = arguments.get("input_ids"), arguments.get("attention_mask")
        if tokens is None and generation is not None:
            tokens, real = generation.tokens, generation.mask
    if not _is_tokens(tokens):
        return earlier
    if isinstance(real, Tensor) and real.ndim == 2:
        tokens = torch.where(real[:, -tokens.shape[1] :].to(tokens.device).bool(), tokens, -1)
    # Beams of a prompt that was encoded once.
    copies = len(call.ordinal) // len(tokens) if call.ordinal is not None else 1
    return (*earlier, tokens if copies == 1 else tokens.repeat_interleave(copies, dim=0))


def _is_tokens(given: object) -> TypeGuard[Tensor]:
    return isinstance(given, Tensor) and given.ndim == 2 and not given.is_floating_point()


def _given(tokens: Tensor, mask: Tensor | None, call: Call) -> tuple[Tensor, ...]:
    """What `generate` was given and the cache holds: of a conversation everything that was said, not only prompts."""
    batch = 0 if call.ordinal is None else len(call.ordinal)
    if tokens.shape[1] < call.past or batch % len(tokens):
        return ()
    if _is_tokens(mask) and mask.shape == tokens.shape:
        tokens = torch.where(mask.to(tokens.device).bool(), tokens, -1)
    return (tokens[:, : call.past].repeat_interleave(batch // len(tokens), dim=0),)


def _prompt_end(call: Call, end: int, generation: Generation | None, carried: Carried | None) -> int:
    if call.key is None:
        return carried.prompt if carried else 0
    return end if generation is None or generation.width is None else generation.width


def cached_length(cache: Any) -> int:
    """Tokens already in a KV cache."""
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if length is not None else 0


def _real_tokens(
    arguments: Mapping[str, Any], shaped: Tensor, past: int, seq2seq: bool, generation: Generation | None
) -> Tensor | None:
    """(batch, past + positions) which columns are real tokens; None where all are, or after the prompt."""
    end = past + shaped.shape[1]
    mask = arguments.get("decoder_attention_mask" if seq2seq else "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        mask = generation.mask if generation is not None and not seq2seq else None
    if mask is None or mask.shape[1] < end or (past and shaped.shape[1] == 1):
        return None
    real = mask[:, :end].to(device=shaped.device, dtype=torch.bool)
    return real if len(real) == len(shaped) else real.repeat_interleave(len(shaped) // len(real), dim=0)


def _ordinals(shaped: Tensor, past: int, real: Tensor | None, pads: Tensor | None) -> Tensor:
    batch, positions = shaped.shape[:2]
    if real is not None:
        return real.long().cumsum(dim=1)[:, past:] - 1
    ordinal = torch.arange(past, past + positions, device=shaped.device).expand(batch, positions)
    return ordinal if pads is None else ordinal - pads[:, None]


def _key_column(
    arguments: Mapping[str, Any],
    ordinal: Tensor,
    past: int,
    real: Tensor | None,
    seq2seq: bool,
    generation: Generation | None,
) -> Tensor | None:
    """(batch,) the key token's column among this forward's positions, or None where it is not there."""
    batch, positions = ordinal.shape
    last = torch.full((batch,), positions - 1, dtype=torch.long, device=ordinal.device)
    if generation is not None:
        if generation.width is None:
            generation.width = past + positions
        column = generation.width - 1 - past
        if not 0 <= column < positions:
            return None
        return _last_real(last - (positions - 1 - column), real, past)
    if seq2seq:
        return None if past else torch.zeros_like(last)  # the decoder's start token ends its prompt
    if past and positions == 1:
        return None
    ends = _ENDS.get()
    if ends is not None and ends.shape == last.shape:
        return ends
    key = _last_real(last, real, past)
    labels = arguments.get("labels")
    if isinstance(labels, Tensor) and labels.shape == ordinal.shape:
        before_answer = (labels != -100).long().argmax(dim=1) - 1
        masked = before_answer >= 0  # else the labels cover the prompt too, and do not tell where it ends
        if real is not None:
            masked &= real[:, past:].gather(1, before_answer.clamp_min(0)[:, None])[:, 0]
        key = torch.where(masked, before_answer, key)
    return key


def _last_real(column: Tensor, real: Tensor | None, past: int) -> Tensor:
    """The last real token at or before `column` (batch,)."""
    if real is None:
        return column
    window = real[:, past:]
    index = torch.arange(window.shape[1], device=window.device)
    return torch.where(window & (index <= column[:, None]), index, 0).amax(dim=1)
