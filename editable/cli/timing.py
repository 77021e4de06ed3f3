"""What edits cost: forwards with them against the same forwards without, in pairs.

Knows how to time two forwards so that what disturbs one disturbs the other. Refuses to know what edits are.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from editable import EditableModel
from editable.cli import terminal
from editable.edit import ModelInput
from editable.latency import Report

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")

EDITS = 3  # edits whose prompts are timed
UNRELATED = "Water boils at a temperature of"  # and one prompt that no edit is about
DECODE_STEPS = 4  # after each prefill
ANSWER_TOKENS = 8  # of the answers that the model's own report is about

Milliseconds = tuple[float, float]
"""Of one forward with the edits, and of the same forward without."""


def prompts_of(em: EditableModel) -> Sequence[ModelInput]:
    """What to time: the prompts of the last edits and one that no edit is about; noise where they are pictures."""
    if not em.images:
        return [*(edit.prompt for edit in em.edits[-EDITS:]), UNRELATED]
    from PIL import Image

    return [Image.effect_noise((256, 256), 64)]


def measured(
    em: EditableModel, prompts: Sequence[ModelInput], count: int
) -> tuple[dict[str, dict[str, float]], Report]:
    """Time forwards with the edits against the same forwards without, one right after the other.

    Args:
        em: the model, with a tokenizer.
        prompts: what it is shown, in turn.
        count: how many prompts to show it.

    Returns:
        Per phase the median milliseconds of either side and the median of the pairs' ratios: prefill and decode of a
        decoder, whole answers of another model. And the model's own report over answering each prompt once.
    """
    shown = list(itertools.islice(itertools.cycle(prompts), count))
    pairs_of = _decoder_pairs if _is_decoder(em) else _answer_pairs
    with torch.no_grad():
        pairs_of(em, prompts[0], False)  # not counted: the first forward pays for what later ones find ready
        times = [pairs_of(em, prompt, bool(n % 2)) for n, prompt in enumerate(terminal.each(shown, "Timing"))]
    em.latency.reset()
    for prompt in prompts:
        em.ask(prompt, ANSWER_TOKENS)
    return {phase: _compared([pair for one in times for pair in one[phase]]) for phase in times[0]}, em.latency.report()


def shown(paired: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay out the first part of what `measured` gives."""
    rows = [
        (phase, r["pairs"], f"{r['edited_ms']:.2f}", f"{r['base_ms']:.2f}", f"{r['ratio']:.3f}")
        for phase, r in paired.items()
    ]
    return terminal.table(("edited against base", "pairs", "edited ms", "base ms", "ratio"), rows)


def _is_decoder(em: EditableModel) -> bool:
    config = getattr(em.model, "config", None)
    return hasattr(em.model, "generate") and not getattr(config, "is_encoder_decoder", False)


def _decoder_pairs(em: EditableModel, prompt: ModelInput, base_first: bool) -> dict[str, list[Milliseconds]]:
    tokens = em.tokenizer(prompt, return_tensors="pt")["input_ids"].to(next(em.model.parameters()).device)
    outputs, prefill = _pair(em, lambda _: em.model(input_ids=tokens, use_cache=True), base_first)
    caches = [output.past_key_values for output in outputs]
    decode = []
    for _ in range(DECODE_STEPS):
        following = outputs[0].logits[:, -1:].argmax(dim=-1)  # (1, 1)
        outputs, one = _pair(em, _step(em, following, caches), base_first)
        decode.append(one)
    return {"prefill": [prefill], "decode": decode}


def _step(em: EditableModel, tokens: torch.Tensor, caches: Sequence[object]) -> Callable[[int], Any]:
    return lambda side: em.model(input_ids=tokens, past_key_values=caches[side], use_cache=True)


def _answer_pairs(em: EditableModel, prompt: ModelInput, base_first: bool) -> dict[str, list[Milliseconds]]:
    return {"answer": [_pair(em, lambda _: em.ask(prompt, DECODE_STEPS), base_first)[1]]}


def _pair(em: EditableModel, forward: Callable[[int], T], base_first: bool) -> tuple[list[T], Milliseconds]:
    """Run `forward(0)` with the edits and `forward(1)` without."""
    outputs: dict[int, T] = {}
    times: dict[int, float] = {}
    for side in (1, 0) if base_first else (0, 1):
        with em.unedited() if side else nullcontext():
            start = time.perf_counter()
            outputs[side] = forward(side)
            times[side] = 1e3 * (time.perf_counter() - start)
    return [outputs[0], outputs[1]], (times[0], times[1])


def _compared(times: Sequence[Milliseconds]) -> dict[str, float]:
    return {
        "pairs": len(times),
        "edited_ms": statistics.median(edited for edited, _ in times),
        "base_ms": statistics.median(base for _, base in times),
        "ratio": statistics.median(edited / base for edited, base in times),
    }
