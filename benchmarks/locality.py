"""What edits are worth, and what they cost the rest: reliability, generality, portability, locality, retention.

The physics. Every method can make one edit stick. What tells methods apart is whether the answer also holds for other
wordings, whether it still holds after a thousand further edits, and whether the model answers everything else with the
very same bits. Accuracy is given twice, teacher-forced and as the exact free answer that ends by itself: the first is
what most papers report, the second is what users get, and it is far lower.

Edits go in as `--protocol` says. At checkpoints (1, 10, 100, 1000 edits and the last) all edits so far are scored with
the model as it is then, and so are unrelated texts. `--immediate N` edits, evenly chosen, are scored right after their
insertion too. `--editor unedited` gives what the model knew before; the names of all baselines work.

Free answers are cut off a few tokens after the longest right answer. The unedited model's answers are computed once.
What is finished is kept in a folder `unfinished` in the results, with the edits themselves, so the same command goes on
where a killed one stopped, to the same numbers; after a complete run nothing is left there.

    editable bench locality
    editable bench locality --editor grace --set values=single --edits 100 --batch 10
    editable bench locality --editor grace --edits 1000 --data zsre.json --unrelated nq_open.jsonl --threads 2
    editable bench locality --editor finetuning --set blocks=0 --edits 20 --protocol single
"""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from editable.asking import Asker
from editable.benchmarks import common, editors
from editable.benchmarks.baselines import Baseline
from editable.benchmarks.report import Plot, Report, Table, publish
from editable.datasets.case import Case
from editable.digest import base_digest, tokenizer_digest
from editable.editor import Editor
from editable.journal import Journal
from editable.learn import shadow_of
from editable.protocols import Order, Outcome, Protocol, key_of, run
from editable.scoring import Base, Drift, drift_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNFINISHED = "unfinished"
QUIET_SECONDS = 10.0
ACCURACIES = ("success_rate", "generalization_rate", "edit_success", "portability")
DRIFTS = ("drawdown_forced", "drawdown_exact", "bit_equal_share", "kl_nats", "agreement", "perplexity_drift")
CONTRASTS = ("efficacy", "paraphrase", "neighbourhood", "score")


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "locality")
    parser.add_argument(
        "--editor", default="grace", help=f"one of {', '.join(editors.editors() + editors.baselines())}"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of the editor")
    parser.add_argument("--edits", type=int, default=100, help="at most so many cases")
    parser.add_argument("--protocol", choices=get_args(Order), default="sequential")
    parser.add_argument("--batch", type=int, default=1, help="edits inserted together, with --protocol sequential")
    parser.add_argument("--immediate", type=int, default=100, help="edits scored right after their insertion")
    parser.add_argument("--questions", type=int, default=200, help="unrelated texts, at most")
    parser.add_argument("--texts", type=int, default=0, help="texts generated for each case that has beginnings")
    return parser


def data(chosen: Namespace) -> list[Case]:
    """The cases, with as many texts to be generated as was asked for."""
    cases = common.cases(chosen, chosen.edits)
    return [replace(case, generate=case.generate[: chosen.texts]) for case in cases]


@dataclass(frozen=True)
class Plan:
    """What is measured, and where what is finished of it is kept.

    Args:
        method: the editor or baseline, configured.
        protocol: how edits go in.
        key: digest of everything that the numbers depend on.
        kept: path of the files for a run to go on with, without their endings.
    """

    method: Editor | Baseline
    protocol: Protocol
    key: str
    kept: Path

    def clear(self) -> None:
        """Remove those files, now that there are results."""
        for path in self.kept.parent.glob(f"{self.kept.name}.*"):
            path.unlink()
        if self.kept.parent.is_dir() and not any(self.kept.parent.iterdir()):
            self.kept.parent.rmdir()


def plan(chosen: Namespace, model: Any, tokenizer: Any, cases: Sequence[Case], unrelated: Sequence[str]) -> Plan:
    """What the options ask for."""
    found = editors.method(chosen.editor, editors.given(chosen.set))
    protocol = Protocol(chosen.protocol, chosen.batch, chosen.immediate, seed=chosen.seed)
    about = {"protocol": asdict(protocol), "editor": [chosen.editor, asdict(found)], "threads": chosen.threads}  # type: ignore[call-overload]
    key = key_of(cases, unrelated, **about, base=base_digest(model), tokenizer=tokenizer_digest(tokenizer))
    return Plan(found, protocol, key, chosen.results / UNFINISHED / f"locality-{key[:16]}")


def measured(
    made: Plan, name: str, model: Any, tokenizer: Any, cases: Sequence[Case], unrelated: Sequence[str]
) -> Outcome:
    """The outcome, of parts that are finished already and of what is missing."""
    journal = Journal(made.kept.with_suffix(".jsonl"), made.key)
    base = Base(Asker(shadow_of(model), tokenizer), [text for case in cases for text in case.reference])
    with editors.attached(name, made.method, model, tokenizer, made.kept.with_suffix(".db")) as system:
        return run(system, cases, base, made.protocol, unrelated, journal, paced(common.note))


def paced(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on one message every few seconds."""
    last = [float("-inf")]

    def told(text: str) -> None:
        if time.monotonic() - last[0] > QUIET_SECONDS:
            tell(text)
            last[0] = time.monotonic()

    return told


# --- showing ---


def tables(outcome: Outcome, what: str) -> list[Table]:
    """Accuracies, locality, and both after each checkpoint."""
    made = [_accuracy_table(outcome, what), _drift_table(outcome)]
    if outcome.checkpoints:
        made.append(_retention_table(outcome))
    final = outcome.final.summary()
    if final["counterfact_efficacy"] is not None:
        magnitudes = [final[f"counterfact_{name}_magnitude"] for name in CONTRASTS[:3]]
        row: list[object] = ["", *(final[f"counterfact_{name}"] for name in CONTRASTS), *magnitudes]
        title = "the new answer against the one it replaces (CounterFact's metrics)"
        made.append(Table(title, ("", "ES", "PS", "NS", "score", "EM", "PM", "NM"), [row]))
    if final["fluency_bits"] is not None:
        row = ["", final["fluency_bits"], final["consistency"]]
        made.append(Table("generated texts", ("", "fluency, bits", "consistency"), [row]))
    return made


def _accuracy_table(outcome: Outcome, what: str) -> Table:
    final, at_once = outcome.final.summary(), outcome.immediate.summary()
    sampled = len(outcome.immediate.cases)
    rows = [
        [name.replace("_", " "), *(by[f"{name}_{form}"] for by in (final, at_once) for form in ("forced", "exact"))]
        for name in ACCURACIES
    ]
    header = ("", "forced", "exact, stops", f"right after ({sampled} edits), forced", "exact, stops")
    return Table(f"{what}; accuracy with the final model", header, rows)


def _drift_table(outcome: Outcome) -> Table:
    own = [drift for case in outcome.final.cases for drift in case.locality]
    groups: dict[str, Sequence[Drift]] = {"the cases' own locality inputs": own}
    kinds = sorted({drift.kind for drift in own})
    groups |= {f"  {kind}": [d for d in own if d.kind == kind] for kind in kinds if len(kinds) > 1}
    if outcome.checkpoints:
        groups["unrelated texts"] = outcome.checkpoints[-1].unrelated
    rows = [[name, len(found), *(drift_summary(found)[key] for key in DRIFTS)] for name, found in groups.items()]
    header = ("", "inputs", "drawdown, forced", "exact", "bit-equal", "KL, nats", "same token", "perplexity ratio")
    return Table("locality: what became of inputs that no edit is about", header, rows)


def _retention_table(outcome: Outcome) -> Table:
    rows = []
    for checkpoint in outcome.checkpoints:
        cases, unrelated = checkpoint.scores.summary(), drift_summary(checkpoint.unrelated)
        rates = [cases[f"{name}_{form}"] for name in ACCURACIES[:3] for form in ("forced", "exact")]
        drift = [unrelated[name] for name in ("bit_equal_share", "kl_nats", "perplexity_drift")]
        rows.append([checkpoint.edits, *rates, cases["bit_equal_share"], *drift])
    names = [f"{name}, {form}" for name in ("SRR", "GRR", "ESR") for form in ("forced", "exact")]
    header = ("edits", *names, "own bit-equal", "unrelated bit-equal", "KL, nats", "perplexity ratio")
    return Table("retention: all edits so far, under the model at that point", header, rows)


def draw(outcome: Outcome) -> Callable[[Axes], None]:
    """The retention curve."""

    def plot(axes: Axes) -> None:
        edits = [checkpoint.edits for checkpoint in outcome.checkpoints]
        summaries = [checkpoint.scores.summary() for checkpoint in outcome.checkpoints]
        for name in ("success_rate", "generalization_rate"):
            for form, line in (("forced", "--"), ("exact", "-")):
                shares = _plotted(one[f"{name}_{form}"] for one in summaries)
                axes.plot(edits, shares, line, marker="o", label=f"{name.replace('_', ' ')}, {form}")
        equal = _plotted(drift_summary(checkpoint.unrelated)["bit_equal_share"] for checkpoint in outcome.checkpoints)
        axes.plot(edits, equal, ":", marker="s", label="unrelated texts bit-equal")
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("edits so far")
        axes.set_ylabel("share")
        axes.set_title("Retention: all edits so far, under the model at that point")
        axes.legend(fontsize="small")

    return plot


def _plotted(values: Iterable[float | None]) -> list[float]:
    """What is missing leaves a gap in the line."""
    return [math.nan if value is None else value for value in values]


def timing(outcome: Outcome, whole_seconds: float) -> dict[str, Any]:
    """What does not repeat."""
    inserted = sum(outcome.insert_seconds)
    per_edit = inserted / max(len(outcome.final.cases), 1)
    return {"insert_seconds": inserted, "insert_seconds_per_edit": per_edit, "this_process_seconds": whole_seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Insert, score, show."""
    chosen = options().parse_args(argv)
    start = time.perf_counter()
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    cases, unrelated = data(chosen), common.unrelated(chosen, chosen.questions)
    planned = plan(chosen, model, tokenizer, cases, unrelated)
    outcome = measured(planned, chosen.editor, model, tokenizer, cases, unrelated)
    order = f"{chosen.protocol}, {chosen.batch} at a time" if chosen.protocol == "sequential" else chosen.protocol
    made = tables(outcome, f"{len(cases)} edits, {order}, {chosen.editor}")
    seconds = timing(outcome, time.perf_counter() - start)
    made.append(Table("time", ("", "seconds"), [[name, value] for name, value in seconds.items()]))
    quality: Mapping[str, Any] = {"edits": len(cases), "numbers_held": outcome.numbers, **outcome.summary()}
    plots = [Plot("retention", draw(outcome))] if outcome.checkpoints else []
    publish(
        Report("locality", card, common.given(chosen), quality, seconds, made, plots), chosen.results, chosen.against
    )
    planned.clear()


if __name__ == "__main__":
    main()
