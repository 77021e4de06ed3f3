"""What the codebook memory costs: lookups, forwards, changes, room, reopening, readers, by number of keys.

The physics. A lookup by brute force reads every key: 1,000 keys of width 1,536 are 6 MB and are lost beside a forward
of the model; 1,000,000 are 6 GB, more than ten times the weights, and cost many forwards. An index that bounds
distances from below reads short sketches of the keys that may be near, and few keys; how few depends on how the keys
lie, so those measured here are real activations and keys made from them (`neighbours` in the output tells how near one
another both lie). Changes must cost what they change, never what is there; versions must share what they have in
common; and a reader must never wait.

Parts (`--parts`, all but the last by default), with each of `--counts` keys:

- lookup    one lookup, hits and misses apart, beside one matrix product with cached norms and `torch.cdist`; all three
            in turn in one process; decisions compared with a plain loop over all keys
- forward   a prefill of 16 tokens with a bare hook that looks up at the key token, and with GRACE holding the book, and
            decode steps with GRACE, against the same model without, in pairs, in random order
- writes    inserting keys whose places are looked for, one by one and 32 at once, or known (as from the log);
            forgetting, publishing
- room      memory of the process against raw float32 keys and values; what 1,000 versions take that are kept alive
- readers   three threads look up while a fourth writes, windows with and without the writer in turn; answers compared
            with a plain loop over the version they came from
- switch    one lookup with an index and without one, around the number of keys from which books have one
- reopen    opening a log of `--reopen` edits, without the base model
- sentences one look-up of a text in a book of sentences, and the encoder's forward before it

Up to `--searched` keys each is placed by searching, with the radius that GRACE takes; in larger books keys come with
known placements and half the neighbours' distance as radius. One torch thread, medians with 95 % bootstrap intervals.
The default takes about seven minutes; a million keys of width 1,536 take far longer, and 14 GB:

    editable bench memory
    editable bench memory --keys residual --parts lookup,room --counts 1000,10000
    editable bench memory --parts sentences
    editable bench memory --counts 1000,10000,100000,1000000 --reopen 10000,100000 --seconds 60
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from editable.benchmarks import bars, common, report
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory import forward, keys, lookup, readers, reopen, room, sentences, switch, writes
from editable.benchmarks.memory.books import filled
from editable.benchmarks.memory.setting import Setting
from editable.benchmarks.prompts import prompts, refuse_without_text

COUNTS = "1000,10000,100000"
OF_A_BOOK = {one.__name__.rpartition(".")[2]: one for one in (lookup, forward, writes, room, readers)}
BY_THEMSELVES = {"switch": switch, "reopen": reopen, "sentences": sentences}
PARTS = (*OF_A_BOOK, *BY_THEMSELVES)


def parts(text: str) -> list[str]:
    """Names separated by commas, in the order of PARTS."""
    asked = text.split(",")
    if unknown := sorted(set(asked) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"unknown parts {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    return [name for name in PARTS if name in asked]


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser, every = common.parser(__doc__, "memory"), ",".join(PARTS[:-1])
    parser.add_argument("--parts", type=parts, default=every, help=f"comma-separated (default {every})")
    parser.add_argument("--counts", type=common.counts, default=COUNTS, help=f"numbers of keys (default {COUNTS})")
    parser.add_argument(
        "--keys", choices=("wide", "residual"), default="wide", help="what GRACE compares (default wide)"
    )
    parser.add_argument("--store", choices=("memory", "disk"), default="memory", help="where a book holds its keys")
    parser.add_argument("--searched", type=int, default=10_000, help="keys up to which each is placed by searching")
    parser.add_argument("--repeats", type=int, default=5, help="times each query is asked (default 5)")
    parser.add_argument("--scans", type=int, default=20, help="lookups of each way of scanning (default 20)")
    parser.add_argument("--forwards", type=int, default=40, help="pairs of forwards (default 40)")
    parser.add_argument("--writes", type=int, default=300, help="changes of each kind (default 300)")
    parser.add_argument("--seconds", type=float, default=10.0, help="that readers read, in sum (default 10)")
    parser.add_argument("--writes-per-second", type=float, default=50.0, help="of the writer beside readers")
    parser.add_argument("--reopen", type=common.counts, default="10000", help="edits in a log (default 10000)")
    parser.add_argument("--reopen-rounds", type=int, default=3)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and show."""
    chosen = options(argv)
    model, tokenizer = common.prepare(chosen)
    refuse_without_text(model, tokenizer, "memory")
    machine, cases, questions = common.machine_card(model), common.cases(chosen), common.unrelated(chosen)
    with torch.no_grad():
        real = keys.real(model, tokenizer, cases, questions, chosen.keys)
    given = prompts(tokenizer, cases, questions)
    setting = Setting(model, tokenizer, given, real, chosen, np.random.default_rng(chosen.seed))
    found = {"neighbours": neighbours(setting), **_of_books(setting)}
    found |= {name: BY_THEMSELVES[name].run(setting) for name in chosen.parts if name in BY_THEMSELVES}
    report.publish(_report(machine, chosen, found), chosen.results, chosen.against)


def _of_books(setting: Setting) -> dict[str, Part]:
    """Book by book, so that only one is held at a time."""
    names = [name for name in setting.options.parts if name in OF_A_BOOK]
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    for count in setting.options.counts if names else ():
        book = filled(setting.real, count, setting.values, setting.options)
        common.note(f"{count} keys in {book.built_seconds:.0f} s")
        for name in names:
            found[name][count] = OF_A_BOOK[name].measure(setting, book)
            common.note(f"{count} keys, {name}: done")
        del book
    return {name: OF_A_BOOK[name].part(by_count) for name, by_count in found.items()}


def neighbours(setting: Setting) -> Part:
    """How near the nearest other key is, of real keys and of as many made ones; and in the largest book."""
    real, generator = setting.real, torch.Generator().manual_seed(setting.options.seed)
    some = {f"{len(real.keys)} real": real.keys}
    for count in dict.fromkeys((len(real.keys), *(n for n in setting.options.counts if 0 < n <= keys.SEEN))):
        some[f"{count} made"] = torch.cat(list(real.made(count, generator)))
    rows = [(name, *keys.neighbour_distances(one, generator)) for name, one in some.items()]
    title = f"distance to the nearest other key ({len(real.groups)} groups; GRACE's radius here: {real.radius:.3g})"
    quantiles = tuple(f"{share:.0%}" for share in keys.SHARES)
    distances = {name: dict(zip(quantiles, shares, strict=True)) for name, *shares in rows}
    return Part({"distances": distances}, tables=[report.Table(title, ("", *quantiles), rows)])


def _report(machine: dict[str, Any], chosen: argparse.Namespace, found: dict[str, Part]) -> report.Report:
    judged = [bar for part in found.values() for bar in part.bars]
    return report.Report(
        "memory",
        machine,
        common.given(chosen),
        {name: part.quality for name, part in found.items() if part.quality},
        {**{name: part.timing for name, part in found.items() if part.timing}, "bars_met": bars.met(judged)},
        [*(table for part in found.values() for table in part.tables), bars.table(judged)],
        [plot for part in found.values() for plot in part.plots],
    )
