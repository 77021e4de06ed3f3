"""What edits cost at inference: prefill, decode steps, generation and memory, from no edit to 100,000.

The physics. A prefill is bound by arithmetic, a decode step by reading the weights once; both take tens of milliseconds
on a small model and a CPU. What editing adds is a few Python calls in each forward, the search for the edits that
apply, and, on a hit, what the edit does. For an editor that keeps keys, the search reads edits x features numbers
(1,000 x 576: 2 MB, against half a gigabyte of weights; 100,000: 230 MB) unless its index spares it. An editor that
decides at prefill looks nothing up in decode steps. So the added time should be a fixed fraction of a millisecond, and
a search that grows with the number of edits.

The base is the same model without hooks: a second module tree over the very same storage, so that neither side finds
its weights better placed. Both sides run in one process, in pairs, in random order within each pair; a pair takes the
same tokens. Ratios are of medians, with a 95 % bootstrap interval over the pairs. Beside them stands the ratio that the
runtime itself records (a forward against the same forward less the time inside the editor; of a generation, its
prefill): small differences between two forwards drown in the noise of a busy machine, that one does not.

- prefill    16 tokens, batch 1 and 8
- decode     one cached token after that prefill
- generate   20 tokens, batch 1, greedy, both sides forced to their full length
- memory     bytes of the tensors that the editor holds (spare room to grow included), and of the whole process

with each of `--counts` edits: misses (unrelated questions) and hits (prompts of learned edits) apart. At most eight
edits are learned; the others are made from them, moved far away, and published through the editor's own `insert`.

    editable bench latency
    editable bench latency --editor grace --set values=single --counts 0,100,10000 --repeats 100
    editable bench latency --against benchmarks/results

A model of images has one act, a forward of 1 or 8 pictures of blurred spots. Times do not depend on what the weights
are, so `--random-weights` will do where there is no network:

    editable bench latency --model torchvision/resnet18 --random-weights --counts 0,1000 --repeats 100
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editable import EditableModel
from editable.benchmarks import bars, common, growth, report, timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.prompts import Prompts, images, prompts, refuse_without_text
from editable.errors import InputError
from editable.learn import shadow_of

COUNTS = "0,1,10,100,1000,10000,100000"
GENERATED_TOKENS = 20
BATCHES = (1, 8)
WARMUP = 2
MISS_STEPS = 8  # decode steps after each prefill of a miss; after a hit as many as the answer has tokens
BARS = {0: 1.01, 1000: 1.02}  # number of edits to what a forward may cost, as a multiple of the base's


@dataclass(frozen=True)
class Pair:
    """The edited model and the same weights without hooks."""

    edited: Any
    base: Any
    pad: int
    rng: np.random.Generator

    def forward(self, images: Tensor, repeats: int) -> dict[str, list[float]]:
        """Seconds of forwards over images."""
        return timing.interleaved(self._sides(lambda m: m(images)), repeats, WARMUP, self.rng)

    def prefill(self, ids: Tensor, repeats: int) -> dict[str, list[float]]:
        """Seconds of whole forwards."""
        return timing.interleaved(self._sides(lambda m: m(input_ids=ids, use_cache=True)), repeats, WARMUP, self.rng)

    def decode(self, ids: Tensor, repeats: int, steps: int) -> dict[str, list[float]]:
        """Seconds of single cached steps, `steps` after each prefill; both sides are fed the edited one's tokens."""
        seconds: dict[str, list[float]] = {"edited": [], "base": []}
        for turn in range(-1, max(1, repeats // steps)):  # the first turn warms up
            found = self._decode_once(ids, steps)
            for name, values in found.items() if turn >= 0 else ():
                seconds[name].extend(values)
        return seconds

    def _decode_once(self, ids: Tensor, steps: int) -> dict[str, list[float]]:
        outputs = {name: model(input_ids=ids, use_cache=True) for name, model in self._models.items()}
        caches = {name: output.past_key_values for name, output in outputs.items()}
        token = outputs["edited"].logits[:, -1:].argmax(dim=-1)
        seconds: dict[str, list[float]] = {"edited": [], "base": []}

        def step(name: str) -> None:
            outputs[name] = self._models[name](input_ids=token, past_key_values=caches[name], use_cache=True)

        for _ in range(steps):
            sides = {name: timing.clocked(lambda n=name: step(n)) for name in caches}  # type: ignore[misc]
            for name, values in timing.interleaved(sides, 1, 0, self.rng).items():
                seconds[name].extend(values)
            token = outputs["edited"].logits[:, -1:].argmax(dim=-1)
        return seconds

    def generate(self, ids: Tensor, repeats: int) -> dict[str, list[float]]:
        """Seconds of whole generations."""
        length = {"max_new_tokens": GENERATED_TOKENS, "min_new_tokens": GENERATED_TOKENS}
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": self.pad, **length}
        sides = self._sides(lambda m: m.generate(**given, do_sample=False))
        return timing.interleaved(sides, repeats, 1, self.rng)

    def _sides(self, act: Callable[[Any], object]) -> dict[str, Callable[[], float]]:
        """The same act on both."""
        return {name: timing.clocked(lambda m=model: act(m)) for name, model in self._models.items()}  # type: ignore[misc]

    @property
    def _models(self) -> dict[str, Any]:
        return {"edited": self.edited, "base": self.base}


@dataclass(frozen=True)
class Cell:
    """One act at one batch size, on hits or misses, with so many edits.

    Args:
        act: prefill, decode or generate.
        batch: rows.
        edits: live edits.
        input: "hit" or "miss".
        seconds: of each side, pair by pair.
        ratio: edited over base.
        recorded: that ratio as the runtime recorded it.
        hit_share: of the forwards, in how many an edit applied.
    """

    act: str
    batch: int
    edits: int
    input: str
    seconds: dict[str, list[float]]
    ratio: timing.Ratio
    recorded: float
    hit_share: float

    @property
    def where(self) -> tuple[str, str]:
        """What it is called in the document."""
        return f"{self.act}, batch {self.batch}", f"{self.edits} edits, {self.input}"

    @property
    def median_ms(self) -> dict[str, float]:
        """Of each side."""
        return {side: timing.spread(seconds, 1e3).median for side, seconds in self.seconds.items()}

    @property
    def tokens_per_second(self) -> dict[str, float] | None:
        """New tokens of each side; None of a prefill."""
        tokens = {"decode": self.batch, "generate": self.batch * GENERATED_TOKENS}.get(self.act)
        if tokens is None:
            return None
        return {side: round(tokens / median * 1e3, 2) for side, median in self.median_ms.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        times = {side: timing.spread(seconds, 1e3).as_dict("ms") for side, seconds in self.seconds.items()}
        found: dict[str, Any] = {"ratio": self.ratio.as_dict(), "recorded_ratio": round(self.recorded, 5), **times}
        return found | ({"tokens_per_second": self.tokens_per_second} if self.tokens_per_second else {})


@dataclass
class Findings:
    """What was measured: times, and for each number of edits the bytes of the editor's tensors and of the process."""

    cells: list[Cell] = field(default_factory=list)
    tensor_bytes: dict[int, int] = field(default_factory=dict)
    resident_bytes: dict[int, int | None] = field(default_factory=dict)


# --- measuring ---


def measure(
    em: EditableModel, given: Prompts, counts: Sequence[int], repeats: int, rng: np.random.Generator
) -> Findings:
    """Everything, with more and more edits."""
    pair = Pair(em.model, shadow_of(em.model), getattr(em.tokenizer, "pad_token_id", 0), rng)
    found = Findings()
    for count in counts:
        _reach(em, given, count, rng)
        found.tensor_bytes[count] = growth.tensor_bytes(growth.state_of(em))
        found.resident_bytes[count] = common.resident_bytes()
        for kind in ("miss", "hit") if count else ("miss",):
            found.cells += _cells(em, pair, given, count, kind, repeats)
            common.note(f"{count} edits, {kind}: done")
    return found


def _reach(em: EditableModel, given: Prompts, count: int, rng: np.random.Generator) -> None:
    """As many edits: learned ones first, synthetic ones beyond."""
    live = len(em.edits)
    if new := given.edits[live:count]:
        em.edit(list(new), verify=False)
    growth.grow(em, count, rng)


def _cells(em: EditableModel, pair: Pair, given: Prompts, count: int, kind: str, repeats: int) -> list[Cell]:
    ids, steps = (given.miss, MISS_STEPS) if kind == "miss" else (given.hits(count), given.answer_tokens)
    found = []
    for batch in BATCHES:
        part, times = ids[:batch], repeats if batch == 1 else max(2, repeats // 3)
        acts: dict[str, Callable[[], dict[str, list[float]]]] = {
            "prefill": lambda p=part, t=times: pair.prefill(p, t),  # type: ignore[misc]
            "decode": lambda p=part, t=times: pair.decode(p, t, steps),  # type: ignore[misc]
        }
        if em.images:
            acts = {"forward": lambda p=part, t=times: pair.forward(p, t)}  # type: ignore[misc]
        elif batch == 1:
            acts["generate"] = lambda p=part: pair.generate(p, max(2, repeats // 8))  # type: ignore[misc]
        found += [_cell(em, pair, (act, batch, count, kind), run) for act, run in acts.items()]
    return found


def _cell(
    em: EditableModel, pair: Pair, what: tuple[str, int, int, str], run: Callable[[], dict[str, list[float]]]
) -> Cell:
    em.latency.reset()
    with torch.no_grad():
        seconds = run()
    phase = em.latency.report().as_dict()["phases"]["decode" if what[0] == "decode" else "prefill"]
    hits = phase["hit"]["forwards"] if phase["hit"] else 0
    ratio = timing.ratio_of_medians(seconds["edited"], seconds["base"], pair.rng)
    every = phase["every"]
    return Cell(*what, seconds, ratio, every["overhead_ratio"], round(hits / every["forwards"], 3))


# --- showing ---


def quality(found: Findings) -> dict[str, Any]:
    """What must repeat: which forwards edits applied to, and what the editor holds."""
    shares: dict[str, Any] = {}
    for cell in found.cells:
        act, which = cell.where
        shares.setdefault(act, {})[which] = cell.hit_share
    memory = {f"{count} edits": size for count, size in found.tensor_bytes.items()}
    return {"forwards_hit_share": shares, "editor_tensor_bytes": memory}


def times(found: Findings) -> dict[str, Any]:
    """What does not repeat."""
    whole: dict[str, Any] = {}
    for cell in found.cells:
        act, which = cell.where
        whole.setdefault(act, {})[which] = cell.as_dict()
    resident = {f"{count} edits": size for count, size in found.resident_bytes.items()}
    return {**whole, "process_resident_bytes": resident, "bars_met": bars.met(judged(found))}


def tables(found: Findings) -> list[report.Table]:
    """Times, memory, and the figures that have a bar."""
    header = ("", "batch", "edits", "input", "base ms", "edited ms", "ratio", "low", "high", "by pair", "recorded")
    rows = [_row(cell) for cell in found.cells]
    base = found.resident_bytes[min(found.resident_bytes)]
    memory = [
        (f"{count} edits", size / 1e6, *_resident(found.resident_bytes[count], base))
        for count, size in found.tensor_bytes.items()
    ]
    made = [
        report.Table("edited against base, medians", (*header, "tokens/s", "hit"), rows),
        report.Table("memory, MB", ("", "editor's tensors", "process", "more than at first"), memory),
    ]
    return [*made, bars.table(judged(found))]


def _row(cell: Cell) -> tuple[object, ...]:
    tokens = cell.tokens_per_second
    shown = (cell.act, cell.batch, cell.edits, cell.input, cell.median_ms["base"], cell.median_ms["edited"])
    ratio = (cell.ratio.ratio, cell.ratio.low, cell.ratio.high, cell.ratio.paired, cell.recorded)
    return (*shown, *ratio, tokens and tokens["edited"], cell.hit_share)


def _resident(now: int | None, base: int | None) -> tuple[float | None, float | None]:
    return (None, None) if now is None or base is None else (now / 1e6, (now - base) / 1e6)


def judged(found: Findings) -> list[Bar]:
    """Forwards and decode steps, as multiples of the base's."""
    return [
        Bar(", ".join(cell.where), cell.ratio.ratio, "<=", BARS[cell.edits], (cell.ratio.low, cell.ratio.high))
        for cell in found.cells
        if cell.edits in BARS and cell.act != "generate"
    ]


def draw(found: Findings) -> Callable[[Any], None]:
    """The ratio against the number of edits, a line for each act, batch size and kind of input."""
    lines: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in found.cells:
        for kind in ("miss", "hit") if cell.edits == 0 else (cell.input,):
            lines.setdefault((cell.act, cell.batch, kind), []).append(cell)

    def plot(axes: Any) -> None:
        for (act, batch, kind), line in lines.items():
            ratios = [cell.ratio for cell in line]
            error = ([max(0.0, r.ratio - r.low) for r in ratios], [max(0.0, r.high - r.ratio) for r in ratios])
            look = {"marker": "o", "ls": "--" if kind == "hit" else "-", "label": f"{act}, batch {batch}, {kind}"}
            axes.errorbar([c.edits for c in line], [r.ratio for r in ratios], yerr=error, capsize=2, **look)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("edits")
        axes.set_ylabel("edited / base (median, 95 % interval)")
        axes.set_title("What attached edits cost")
        axes.legend(fontsize="small")

    return plot


# --- the command ---


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__, "latency")
    common.add_editor(parser)
    parser.add_argument("--counts", type=common.counts, default=COUNTS, help=f"numbers of edits (default {COUNTS})")
    parser.add_argument("--repeats", type=int, default=12, help="pairs at batch 1 (default 12); fewer at batch 8")
    parser.add_argument("--random-weights", action="store_true", help="of a torchvision/ or timm/ model: load none")
    return parser.parse_args(argv)


def _weights(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the model's library is told so that it loads none; nothing where that is not asked for.

    Raises:
        InputError: it is asked for a model of neither library.
    """
    library = chosen.model.partition("/")[0]
    without: dict[str, dict[str, Any]] = {"torchvision": {"weights": None}, "timm": {"pretrained": False}}
    if chosen.random_weights and library not in without:
        raise InputError(
            f"--random-weights is for models of torchvision and timm, got --model {chosen.model}; name one such as "
            "torchvision/resnet18, or leave it out."
        )
    return without[library] if chosen.random_weights else {}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and show."""
    chosen = options(argv)
    editor = common.editor(chosen)
    model, tokenizer = common.prepare(chosen, **_weights(chosen))
    machine = common.machine_card(model)
    with EditableModel(model, tokenizer, editor=editor) as em:
        if em.images:
            given = images(tokenizer, chosen.seed)
        else:
            refuse_without_text(model, tokenizer, "latency")
            given = prompts(tokenizer, common.cases(chosen, 200), common.unrelated(chosen, 200))
        found = measure(em, given, chosen.counts, chosen.repeats, np.random.default_rng(chosen.seed))
    plots = [report.Plot("ratio", draw(found))]
    said = report.Report("latency", machine, common.given(chosen), quality(found), times(found), tables(found), plots)
    report.publish(said, chosen.results, chosen.against)


if __name__ == "__main__":
    main()
