"""All methods side by side, as in the survey's tables 3 and 4: what they are, and what they measure to, here.

The first table says of each method what it is in its own words (`properties` of its class) and what was seen of it: how
its edits do when some go in at once, whether the base weights stay as they are, how many numbers an edit holds. The
second is measured on one machine, one model and the same facts for all: success, generality, edit success, drawdown,
locality, time per edit, and what asking costs against the unedited model (the same prompts, in pairs, interleaved).

Methods are those of `editable.adapters` and the baselines; a new file joins by being there. Edits go in one at a time
and are scored with the final model. Slow methods get fewer edits (`--fewer`): only rows with the same number of edits
compare.

    editable bench methods
    editable bench methods --edits 100 --data zsre.json --methods grace,grace:values=single,finetuning:blocks=0
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from editable.asking import Asker
from editable.benchmarks import common, editors
from editable.benchmarks.baselines import Baseline
from editable.benchmarks.report import Report, Table, publish
from editable.benchmarks.timing import Ratio, clocked, interleaved, ratio_of_medians
from editable.datasets.case import Case, Question
from editable.editor import Editor
from editable.learn import shadow_of
from editable.metrics import Accuracy, mean_accuracy
from editable.protocols import Outcome, Protocol, run
from editable.scoring import Base, drift_summary, fingerprint, replies
from editable.system import System

WORDS = ("family", "scope", "effect", "training")
TOGETHER = 4  # edits that a method is tried with at once
ROUNDS = 20  # timed pairs
WARMUP = 3
RATES = ("success_rate", "generalization_rate", "edit_success")
DRIFTS = ("bit_equal_share", "kl_nats", "perplexity_drift")


@dataclass(frozen=True)
class Named:
    """One row: a method with its options, and how many edits it gets."""

    name: str
    method: Editor | Baseline
    edits: int

    @property
    def words(self) -> dict[str, str]:
        """What it says of itself; a dash where it says nothing."""
        properties = getattr(type(self.method), "properties", {})
        return {word: str(properties.get(word, "-")) for word in WORDS}


@dataclass(frozen=True)
class Found:
    """What was seen of one method.

    Args:
        outcome: of inserting one edit after another.
        together: accuracy on the first edits, inserted at once.
        weights_kept: whether every base parameter is in the model that was asked, to the bit.
        latency: time to ask it one prompt over the time to ask the unedited model.
    """

    outcome: Outcome
    together: Accuracy | None
    weights_kept: bool
    latency: Ratio

    @property
    def seconds_per_edit(self) -> float:
        """Of insertion alone."""
        return sum(self.outcome.insert_seconds) / max(sum(self.outcome.batches), 1)

    @property
    def numbers_per_edit(self) -> float:
        """What an edit holds beside the model."""
        return self.outcome.numbers / max(sum(self.outcome.batches), 1)


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "methods")
    parser.add_argument("--edits", type=int, default=20, help="cases for each method")
    parser.add_argument("--methods", type=_listed, help="NAME or NAME:FIELD=VALUE, separated by commas; default: all")
    parser.add_argument(
        "--fewer", type=_listed, default=["textbook_grace=5"], help="NAME=EDITS of slow methods, separated by commas"
    )
    parser.add_argument("--questions", type=int, default=50, help="unrelated texts, at most")
    return parser


def _listed(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError(f"{text!r}, expected names separated by commas")
    return parts


def chosen_methods(chosen: Namespace) -> list[Named]:
    """The rows, in the order asked for."""
    fewer = editors.given(chosen.fewer)
    rows = []
    for entry in chosen.methods or [*editors.baselines(), *editors.editors()]:
        name, *assignments = entry.split(":")
        edits = min(chosen.edits, int(fewer.get(name, chosen.edits)))
        rows.append(Named(entry, editors.method(name, editors.given(assignments)), edits))
    return rows


def measured(
    row: Named, model: nn.Module, tokenizer: Any, cases: Sequence[Case], base: Base, unrelated: Sequence[str], seed: int
) -> Found:
    """One method, on a model that is given back as it was."""
    cases = cases[: row.edits]
    with editors.attached(row.name, row.method, model, tokenizer) as system:
        together = _at_once(system, cases[:TOGETHER])
        system.reset()
        protocol = Protocol("sequential", immediate=0, checkpoints=(), seed=seed)
        outcome = run(system, cases, base, protocol, unrelated)
        prompts = [*(case.edit.prompt for case in cases), *unrelated]
        sides = {name: _asks(asked, prompts) for name, asked in (("edited", system), ("base", base.asked))}
        rng = np.random.default_rng(seed)
        seconds = interleaved(sides, ROUNDS, WARMUP, rng)
        latency = ratio_of_medians(seconds["edited"], seconds["base"], rng)
        return Found(outcome, together, weights_kept(system, model), latency)


def _at_once(system: System, cases: Sequence[Case]) -> Accuracy | None:
    system.insert([case.edit for case in cases])
    questions = [Question(case.edit.prompt, (case.edit.target,)) for case in cases if case.edit.target is not None]
    return mean_accuracy(reply.accuracy for reply in replies(system, questions))


def _asks(asked: Any, prompts: Sequence[Any]) -> Any:
    """A timed question: the next prompt in turn, each time."""
    turn = iter(range(10**9))
    return clocked(lambda: asked.logits([prompts[next(turn) % len(prompts)]]))


def weights_kept(system: System, model: nn.Module) -> bool:
    """Whether every parameter of the base model is, bit for bit, a parameter of the model that the system asks."""
    asked: nn.Module = getattr(system, "model", model)
    has = {fingerprint(parameter.detach()) for parameter in asked.parameters()}
    return all(fingerprint(parameter.detach()) in has for parameter in model.parameters())


# --- showing ---


def properties_table(rows: Sequence[Named], found: Mapping[str, Found]) -> Table:
    """The survey's table 3."""
    lines = [[row.name, *row.words.values(), *_seen(found[row.name])] for row in rows]
    at_once = f"{TOGETHER} at once: success, forced"
    header = ("", *WORDS, "base weights kept", at_once, "exact", "numbers per edit")
    return Table("methods: what they are", header, lines)


def _seen(one: Found) -> list[object]:
    together = (None, None) if one.together is None else (one.together.forced, one.together.exact)
    return ["yes" if one.weights_kept else "no", *together, round(one.numbers_per_edit)]


def measured_table(rows: Sequence[Named], found: Mapping[str, Found]) -> Table:
    """The survey's table 4."""
    lines: list[list[object]] = []
    for row in rows:
        one, summary = found[row.name], found[row.name].outcome.final.summary()
        accuracies = [summary[f"{name}_{form}"] for name in (*RATES, "drawdown") for form in ("forced", "exact")]
        unrelated = drift_summary(one.outcome.checkpoints[-1].unrelated)
        drift = [summary["bit_equal_share"], *(unrelated[name] for name in DRIFTS)]
        lines.append([row.name, row.edits, *accuracies, *drift, one.seconds_per_edit, str(one.latency)])
    rates = [f"{name}, {form}" for name in ("SRR", "GRR", "ESR", "DD") for form in ("forced", "exact")]
    drift_names = ("own bit-equal", "unrelated bit-equal", "KL, nats", "perplexity ratio")
    header = ("", "edits", *rates, *drift_names, "s per edit", "latency ratio")
    return Table("methods: what they measure to, one edit after another, with the final model", header, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every method and show both tables."""
    chosen = options().parse_args(argv)
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    cases, unrelated = common.cases(chosen, chosen.edits), common.unrelated(chosen, chosen.questions)
    cases = [case for case in cases if case.edit.target is not None]
    base = Base(Asker(shadow_of(model), tokenizer))
    rows = chosen_methods(chosen)
    found: dict[str, Found] = {}
    for row in rows:
        found[row.name] = measured(row, model, tokenizer, cases, base, unrelated, chosen.seed)
        common.note(f"{row.name}: {row.edits} edits measured")
    quality = {name: _quality(one) for name, one in found.items()}
    seconds = {
        name: {"seconds_per_edit": one.seconds_per_edit, "latency": one.latency.as_dict()}
        for name, one in found.items()
    }
    tables = [properties_table(rows, found), measured_table(rows, found)]
    publish(Report("methods", card, common.given(chosen), quality, seconds, tables), chosen.results, chosen.against)


def _quality(one: Found) -> dict[str, Any]:
    together = None if one.together is None else vars(one.together)
    seen = {"together": together, "weights_kept": one.weights_kept, "numbers_per_edit": one.numbers_per_edit}
    return {**seen, **one.outcome.summary()}


if __name__ == "__main__":
    main()
