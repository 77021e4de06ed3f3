"""What a lookup costs a forward: a prefill and decode steps of the model with the book and without it, in pairs.

Twice: with a bare hook that does one lookup of what goes into its site at the key token, and with the library's own
GRACE holding the book, which adds the runtime's bookkeeping. In decode steps nothing is looked up, by design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from editable import EditableModel
from editable.adapters.grace import GRACE
from editable.benchmarks import timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.latency import WARMUP, Pair
from editable.benchmarks.memory.books import Filled
from editable.benchmarks.memory.setting import Setting
from editable.benchmarks.report import Plot, Table
from editable.entries import Entries
from editable.learn import shadow_of
from editable.memory.rows import Rows
from editable.scopes.ball import Balls

STEPS = 8  # decode steps behind a prefill
BARS = {1_000: 1.01, 100_000: 1.02, 1_000_000: 1.05}  # keys to what a prefill may cost, as a multiple of the base's
DECODE_BAR = 1.01


@dataclass(frozen=True)
class Timed:
    """One kind of forward.

    Args:
        seconds: of each side, pair by pair.
        recorded: the ratio from what is spent inside the lookup, or inside the editor, alone: small differences between
            two forwards drown in the noise of a busy machine, this one does not.
    """

    seconds: Mapping[str, list[float]]
    recorded: float


Found = Mapping[str, Timed]


@torch.no_grad()
def measure(setting: Setting, filled: Filled) -> Found:
    """Prefills and decode steps at batch 1."""
    base, ids = shadow_of(setting.model), setting.prompts.miss[:1]
    found = {
        f"prefill with one lookup, {kind}": _looking_up(setting, base, filled, given)
        for kind, given in (("own activation", None), ("hit", filled.queries["hit"]))
    }
    with _holding(setting, filled) as em:
        pair = Pair(em.model, base, setting.tokenizer.pad_token_id, setting.rng)
        acts: dict[str, Callable[[], dict[str, list[float]]]] = {
            "prefill": lambda: pair.prefill(ids, setting.options.forwards),
            "decode": lambda: pair.decode(ids, setting.options.forwards, STEPS),
        }
        for phase, act in acts.items():
            em.latency.reset()
            seconds = act()
            recorded = em.latency.report().as_dict()["phases"][phase]["every"]["overhead_ratio"]
            found[f"{phase} with GRACE"] = Timed(seconds, recorded)
    return found


def _looking_up(setting: Setting, base: Any, filled: Filled, given: Tensor | None) -> Timed:
    """With one lookup in each prefill: of the site's activation at the last position, or of what is given, in turn."""
    looking, site, inside = shadow_of(setting.model), setting.real.editor.sites(setting.model)["key"], list[float]()
    turn = None if given is None else cycle(given)

    def look(activation: Any) -> None:
        query = site.read(activation)[:, -1] if turn is None else next(turn)[None]
        inside.append(timing.clocked(lambda: filled.book.find(query))())

    pair = Pair(looking, base, setting.tokenizer.pad_token_id, setting.rng)
    with _watched(looking.get_submodule(site.path), site.side, look):
        seconds = pair.prefill(setting.prompts.miss[:1], setting.options.forwards)
    return Timed(seconds, 1 + timing.spread(inside[WARMUP:]).median / timing.spread(seconds["base"]).median)


def _watched(module: torch.nn.Module, side: str, look: Callable[[Any], None]) -> RemovableHandle:
    if side == "input":
        return module.register_forward_pre_hook(lambda _module, inputs: look(inputs))
    return module.register_forward_hook(lambda _module, _inputs, output: look(output))


@contextmanager
def _holding(setting: Setting, filled: Filled) -> Iterator[EditableModel]:
    """The model with GRACE, whose state is the book; every key stands for the same value, which has no effect."""
    with closing(EditableModel(setting.model, setting.tokenizer, editor=setting.real.editor)) as em:
        name = next(iter(em.editors))
        # Behind the public methods: an edit for each key would take hours, and a log nobody reads.
        em._publish(em._snapshot.replace(em.version + 1, {name: entries(filled, token=1)}))
        yield em


def entries(filled: Filled, token: int) -> Entries:
    """A state of GRACE with this book: one value and one answer token for all keys."""
    editor, count, answer = GRACE(), filled.count, torch.tensor([token])
    balls = replace(Balls.empty(), codebook=filled.book, slots=Rows.empty(dtype=torch.long).append(torch.arange(count)))
    blank, spans = editor.empty().routes, torch.tensor([[0, 1]]).expand(count, 2)
    routes = replace(
        blank,
        book=balls,
        answers=blank.answers.append(answer),
        spans=blank.spans.append(spans),
        openings=blank.openings.following(answer, spans[:1]),
        longest=1,
        count=count,
    )
    empty = Entries.empty(routes, filled.values)
    values = empty.values.append(torch.zeros(1, filled.values))
    return replace(empty, values=values, spans=empty.spans.append(spans))


# --- showing ---


def part(found: Mapping[int, Found]) -> Part:
    """By number of keys."""
    rng = np.random.default_rng(0)
    ratios = {
        (count, what): timing.ratio_of_medians(timed.seconds["edited"], timed.seconds["base"], rng)
        for count, one in found.items()
        for what, timed in one.items()
    }
    rows = [
        (f"{count} keys, {what}", *_medians(timed), *_cells(ratios[count, what]), timed.recorded)
        for count, one in found.items()
        for what, timed in one.items()
    ]
    header = ("", "base ms", "edited ms", "ratio", "low", "high", "by pair", "recorded")
    return Part(
        timing={f"{count} keys": _times(count, one, ratios) for count, one in found.items()},
        tables=[Table("a forward of batch 1 with the book against without, medians", header, rows)],
        bars=[bar for (count, what), ratio in ratios.items() for bar in _bars(count, what, ratio)],
        plots=[Plot("forward", draw(ratios))],
    )


def _medians(timed: Timed) -> tuple[float, float]:
    base, edited = (timing.spread(timed.seconds[side], 1e3).median for side in ("base", "edited"))
    return base, edited


def _cells(ratio: timing.Ratio) -> tuple[float | None, ...]:
    return ratio.ratio, ratio.low, ratio.high, ratio.paired


def _times(count: int, one: Found, ratios: Mapping[tuple[int, str], timing.Ratio]) -> dict[str, Any]:
    return {
        what: {
            "ratio": ratios[count, what].as_dict(),
            "recorded_ratio": round(timed.recorded, 5),
            **{side: timing.spread(seconds, 1e3).as_dict("ms") for side, seconds in timed.seconds.items()},
        }
        for what, timed in one.items()
    }


def _bars(count: int, what: str, ratio: timing.Ratio) -> Iterator[Bar]:
    limit = DECODE_BAR if what.startswith("decode") else BARS.get(count)
    if limit is not None:
        yield Bar(f"{count} keys, {what}", ratio.ratio, "<=", limit, (ratio.low, ratio.high))


def draw(ratios: Mapping[tuple[int, str], timing.Ratio]) -> Callable[[Any], None]:
    """The ratio against the number of keys, a line for each forward."""

    def plot(axes: Any) -> None:
        for what in dict.fromkeys(what for _, what in ratios):
            line = {count: ratio for (count, own), ratio in ratios.items() if own == what}
            error = (
                [max(0.0, r.ratio - r.low) for r in line.values()],
                [max(0.0, r.high - r.ratio) for r in line.values()],
            )
            axes.errorbar(list(line), [r.ratio for r in line.values()], yerr=error, marker="o", capsize=2, label=what)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("keys")
        axes.set_ylabel("with the book / without (median, 95 % interval)")
        axes.set_title("What a book costs a forward")
        axes.legend(fontsize="small")

    return plot
