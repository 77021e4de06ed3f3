"""What attached edits cost a forward, a decode step and a generation, against the same model without any hook.

The physics. A prefill is bound by arithmetic, a decode step by reading the weights once; both take tens of milliseconds
on a small model and a CPU. What editing adds is a few Python calls in each forward; at the site, one product of the key
token's activation with all keys, which reads edits x features numbers (1,000 x 576: 2 MB, against half a gigabyte of
weights); and, on a hit, one vector written. Decode steps look nothing up: they carry on what prefill decided. So the
added time should be a fixed fraction of a millisecond, and a lookup that grows with the number of edits.

The base is the same model without hooks: a second module tree over the very same storage, so that neither side finds
its weights better placed. Both sides run in one process, in pairs, in random order within each pair; a pair takes the
same tokens. Ratios are of medians, with a 95 % bootstrap interval over the pairs. Beside them
stands the ratio that the runtime itself records (a forward against the same forward less the time inside the editor;
of a generation, its prefill): small differences between two forwards drown in the noise of a busy machine, that one
does not.

- prefill    16 tokens, batch 1 and 8
- decode     one cached token after that prefill
- generate   20 tokens, batch 1, greedy, both sides forced to their full length

with no edits, and with each of `--counts`: misses (unrelated questions) and hits (prompts of learned edits) apart.
All but eight edits are synthetic, published through the editor's own `insert`; the eight are learned.

Output: the machine card, a table, a plot in benchmarks/results/, and one JSON document as the last line of stdout.
Progress goes to stderr.

    python benchmarks/latency.py
    python benchmarks/latency.py --counts 100,1000,10000 --repeats 100 --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.common import Fact, progress
from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.learn import shadow_of

PROMPT_TOKENS = 16
GENERATED_TOKENS = 20
BATCHES = (1, 8)
WARMUP = 3
BARS = {0: 1.01, 1000: 1.02}


@dataclass(frozen=True)
class Inputs:
    """Prompts of exactly PROMPT_TOKENS tokens: (8, PROMPT_TOKENS) that no edit is about, and that edits are about."""

    miss: Tensor
    hit: Tensor


@dataclass(frozen=True)
class Pair:
    """The edited model and the same weights without hooks."""

    edited: Any
    base: Any
    pad: int
    rng: np.random.Generator

    def sides(self, act: Callable[[Any], object]) -> dict[str, Callable[[], float]]:
        """The same act on both."""
        return {name: common.clocked(lambda m=model: act(m)) for name, model in self._models.items()}  # type: ignore[misc]

    @property
    def _models(self) -> dict[str, Any]:
        return {"edited": self.edited, "base": self.base}

    def prefill(self, ids: Tensor, repeats: int) -> dict[str, list[float]]:
        """Seconds of whole forwards."""
        return common.interleaved(self.sides(lambda m: m(input_ids=ids, use_cache=True)), repeats, WARMUP, self.rng)

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
            sides = {name: common.clocked(lambda n=name: step(n)) for name in caches}  # type: ignore[misc]
            for name, values in common.interleaved(sides, 1, 0, self.rng).items():
                seconds[name].extend(values)
            token = outputs["edited"].logits[:, -1:].argmax(dim=-1)
        return seconds

    def generate(self, ids: Tensor, repeats: int) -> dict[str, list[float]]:
        """Seconds of whole generations."""
        length = {"max_new_tokens": GENERATED_TOKENS, "min_new_tokens": GENERATED_TOKENS}
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": self.pad, **length}
        sides = self.sides(lambda m: m.generate(**given, do_sample=False))
        return common.interleaved(sides, repeats, 1, self.rng)


# --- inputs ---


def inputs(tokenizer: Any, facts: Sequence[Fact], questions: Sequence[str]) -> Inputs:
    """Texts run together and cut to PROMPT_TOKENS; edits' prompts end as their facts do."""
    batch = max(BATCHES)
    spare = iter(questions)
    miss = [_cut(tokenizer, [next(spare), next(spare), next(spare)]) for _ in range(batch)]
    hit = [_cut(tokenizer, [next(spare), next(spare), fact.prompt]) for fact in facts[:batch]]
    return Inputs(torch.tensor(miss), torch.tensor(hit))


def _cut(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    ids = tokenizer("? ".join(texts))["input_ids"][-PROMPT_TOKENS:]
    if len(ids) < PROMPT_TOKENS:
        raise SystemExit(f"the texts {list(texts)} have {len(ids)} tokens, expected {PROMPT_TOKENS}: use longer ones")
    return list(ids)


def answers(tokenizer: Any, facts: Sequence[Fact]) -> list[list[int]]:
    """Each fact's answer with its end."""
    end = tokenizer.eos_token_id
    return [[*common.token_ids(tokenizer, f.prompt, f.target)[1][0].tolist(), end] for f in facts]


def edit_of(prompt: Tensor, answer: Sequence[int]) -> Edit:
    """An edit on exact tokens, prompt (PROMPT_TOKENS,)."""
    ids = torch.cat([prompt, torch.tensor(answer)])[None]
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return Edit({"input_ids": ids, "labels": labels})


# --- measuring ---


def measure(em: EditableModel, pair: Pair, ids: Tensor, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Every act at every batch size on one kind of input, with the share of forwards in which an edit applied."""
    found = []
    for batch in BATCHES:
        part, times = ids[:batch], repeats if batch == 1 else max(4, repeats // 3)
        found.append(_result(em, pair, "prefill", batch, lambda p=part, t=times: pair.prefill(p, t)))  # type: ignore[misc]
        found.append(_result(em, pair, "decode", batch, lambda p=part, t=times: pair.decode(p, t, steps)))  # type: ignore[misc]
    found.append(_result(em, pair, "generate", 1, lambda: pair.generate(ids[:1], max(4, repeats // 8))))
    return found


def _result(
    em: EditableModel, pair: Pair, act: str, batch: int, run: Callable[[], dict[str, list[float]]]
) -> dict[str, Any]:
    em.latency.reset()
    with torch.no_grad():
        seconds = run()
    phase = em.latency.report().as_dict()["phases"]["decode" if act == "decode" else "prefill"]
    hits = phase["hit"]["forwards"] if phase["hit"] else 0
    ratio = common.ratio_of_medians(seconds["edited"], seconds["base"], pair.rng)
    return {
        "act": act,
        "batch": batch,
        "base": common.spread(seconds["base"], 1e3).as_dict("ms"),
        "edited": common.spread(seconds["edited"], 1e3).as_dict("ms"),
        "ratio": ratio.as_dict(),
        "recorded_ratio": round(phase["every"]["overhead_ratio"], 5),
        "forwards_hit_share": round(hits / phase["every"]["forwards"], 3),
    }


def run(em: EditableModel, pair: Pair, facts: Sequence[Fact], given: Inputs, chosen: argparse.Namespace) -> list[Any]:
    """All cases: without edits, then with more and more of them."""
    said = answers(em.tokenizer, facts)
    steps = min(len(answer) for answer in said[: max(BATCHES)])
    cases = [{"edits": 0, "input": "miss", **one} for one in measure(em, pair, given.miss, 8, chosen.repeats)]
    progress("no edits done")
    em.edit([edit_of(prompt, answer) for prompt, answer in zip(given.hit, said, strict=False)], verify=False)
    for count in sorted(int(count) for count in chosen.counts.split(",") if int(count)):
        common.grow(em, count, said, pair.rng)
        for kind, ids, length in (("miss", given.miss, 8), ("hit", given.hit, max(1, steps))):
            found = measure(em, pair, ids, length, chosen.repeats)
            cases += [{"edits": len(em.edits), "input": kind, **one} for one in found]
            progress(f"{count} edits, {kind} done")
    return cases


def bars(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Forward and decode step at batch 1 against their bars; met where the ratio itself is."""
    return [
        {
            "figure": f"{case['act']}, batch {case['batch']}, {case['edits']} edits, {case['input']}",
            "value": case["ratio"]["ratio"],
            "interval": [case["ratio"]["low"], case["ratio"]["high"]],
            "bar": f"<= {BARS[case['edits']]}",
            "met": case["ratio"]["ratio"] <= BARS[case["edits"]],
        }
        for case in cases
        if case["edits"] in BARS and case["act"] != "generate"
    ]


# --- showing ---


def show(cases: Sequence[dict[str, Any]]) -> None:
    """One line per case."""
    header = (
        "",
        "batch",
        "edits",
        "input",
        "base ms",
        "edited ms",
        "ratio",
        "low",
        "high",
        "by pair",
        "recorded",
        "hit",
    )
    rows = [(c["act"], c["batch"], c["edits"], c["input"], *_times(c), *c["ratio"].values(), *_ours(c)) for c in cases]
    common.print_table("edited against base, medians", header, rows)


def _times(case: dict[str, Any]) -> tuple[float, float]:
    return case["base"]["median_ms"], case["edited"]["median_ms"]


def _ours(case: dict[str, Any]) -> tuple[float, float]:
    return case["recorded_ratio"], case["forwards_hit_share"]


def draw(cases: Sequence[dict[str, Any]]) -> Callable[[Any], None]:
    """The ratio against the number of edits, a line for each act, batch size and kind of input."""
    lines: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for case in cases:
        kinds = ("miss", "hit") if case["edits"] == 0 else (case["input"],)
        for kind in kinds:
            lines.setdefault((case["act"], case["batch"], kind), []).append(case)

    def plot(axes: Any) -> None:
        for (act, batch, kind), line in lines.items():
            ratios = [c["ratio"] for c in line]
            middle = [r["ratio"] for r in ratios]
            error = ([r["ratio"] - r["low"] for r in ratios], [r["high"] - r["ratio"] for r in ratios])
            style = "--" if kind == "hit" else "-"
            label = f"{act}, batch {batch}, {kind}"
            axes.errorbar([c["edits"] for c in line], middle, yerr=error, marker="o", ls=style, capsize=2, label=label)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.set_xscale("symlog", linthresh=100)
        axes.set_xlabel("edits")
        axes.set_ylabel("edited / base (median, 95 % interval)")
        axes.set_title("What attached edits cost")
        axes.legend(fontsize="small")

    return plot


def options() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--counts", default="100,1000", help="numbers of edits, comma-separated (default 100,1000)")
    parser.add_argument("--repeats", type=int, default=80, help="pairs at batch 1 (default 80); fewer at batch 8")
    return parser.parse_args()


def main() -> None:
    """Measure and show."""
    chosen = options()
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    common.print_card(card)
    facts = common.load_facts(chosen.data, 1000)
    given = inputs(tokenizer, facts, common.load_questions(chosen.unrelated, 200))
    with EditableModel(model, tokenizer, editor=GRACE()) as em:
        pair = Pair(em.model, shadow_of(model), tokenizer.pad_token_id, np.random.default_rng(chosen.seed))
        cases = run(em, pair, facts, given, chosen)
    show(cases)
    found = bars(cases)
    rows = [(b["figure"], b["value"], *b["interval"], b["bar"], "yes" if b["met"] else "NO") for b in found]
    common.print_table("figures with a bar", ("", "value", "low", "high", "bar", "met"), rows)
    image = common.plot(chosen.results / "latency.png", draw(cases), (9.0, 6.0))
    document = {"benchmark": "latency", "machine": card, "options": common.given(chosen), "cases": cases}
    common.print_json({**document, "bars": found, "plot": image})


if __name__ == "__main__":
    main()
