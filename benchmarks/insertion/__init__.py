"""What inserting an edit costs: time against the textbook loop, publishing and taking back among many, memory, load.

The physics. Learning an edit is optimisation, so its time is steps x cost of a step. A textbook loop runs the whole
model forward and backward in every step, from a random value, a fixed number of times. Three things shrink that: what
runs before the edited place does not depend on the edit and is run once; a value that starts at the model's own
activation has less far to go; and a row that has arrived stops. In a batch, small products that only waited for the
weights to come from memory become large ones that use the processor. Publishing is one assignment and costs nothing
that grows with learning; what grows with the number of edits is finding a new edit's place among them.

Parts (`--parts`, all by default):

- memory     growth of the resident set while edits are learned, sampled; whether the learning copy shares all storage
- rollback   everything rolled back one by one in random order, logits against those recorded before the first edit, bit
             by bit; the log closed and reopened half-way and at the end
- speed      one edit (read, learn, verify, flush to the log, publish) and a batch, per edit, against the textbook loop;
             rounds of all three in random order in one process
- publish    insert, publish and roll back with many edits present; the log's flush apart
- stream     threads generate while edits come in; every output must be that of one published version

What edits are worth (reliability, generality, locality) is measured by `editable bench locality`.

    editable bench insertion
    editable bench insertion --data zsre.json --edits 100
    editable bench insertion --parts speed,publish --speed-rounds 30 --present 100000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from editable.benchmarks import bars, common, report
from editable.benchmarks.insertion import memory, publish, rollback, speed, stream
from editable.benchmarks.insertion.setting import Part, Setting
from editable.benchmarks.prompts import refuse_without_text

PARTS = {part.__name__.rpartition(".")[2]: part.run for part in (memory, rollback, speed, publish, stream)}


def parts(text: str) -> list[str]:
    """Names separated by commas, in the order of PARTS."""
    asked = text.split(",")
    if unknown := sorted(set(asked) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"unknown parts {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    return [name for name in PARTS if name in asked]


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__, "insertion")
    common.add_editor(parser)
    every = ",".join(PARTS)
    parser.add_argument("--parts", type=parts, default=every, help=f"comma-separated (default {every})")
    parser.add_argument("--edits", type=int, default=32, help="facts to insert (default 32)")
    parser.add_argument("--questions", type=int, default=16, help="unrelated questions (default 16)")
    parser.add_argument("--batch", type=int, default=32, help="edits in a batch (default 32)")
    parser.add_argument("--speed-rounds", type=int, default=9, help="each one textbook edit, seconds (default 9)")
    parser.add_argument("--present", type=int, default=10_000, help="edits present in the part publish")
    parser.add_argument("--publish-rounds", type=int, default=20)
    parser.add_argument("--stream-seconds", type=float, default=30.0)
    parser.add_argument("--stream-edits", type=int, default=30)
    parser.add_argument("--stream-threads", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen parts and show what they found."""
    chosen = options(argv)
    editor = common.editor(chosen)
    model, tokenizer = common.prepare(chosen)
    refuse_without_text(model, tokenizer, "insertion")
    cases, questions = common.cases(chosen, chosen.edits), common.unrelated(chosen, chosen.questions)
    setting = Setting(model, tokenizer, editor, cases, questions, chosen, np.random.default_rng(chosen.seed))
    machine = common.machine_card(model)
    found: dict[str, Part] = {}
    for name in chosen.parts:
        common.note(f"{name} ...")
        found[name] = PARTS[name](setting)
    report.publish(_report(machine, chosen, found), chosen.results, chosen.against)


def _report(machine: dict[str, object], chosen: argparse.Namespace, found: dict[str, Part]) -> report.Report:
    judged = [bar for part in found.values() for bar in part.bars]
    return report.Report(
        "insertion",
        machine,
        common.given(chosen),
        {name: part.quality for name, part in found.items() if part.quality},
        {**{name: part.timing for name, part in found.items() if part.timing}, "bars_met": bars.met(judged)},
        [*(table for part in found.values() for table in part.tables), bars.table(judged)],
        [plot for part in found.values() for plot in part.plots],
    )
