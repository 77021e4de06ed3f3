"""How wide may an edit's ball be? What fires that should not, and what does not that should, as the radius grows.

The physics. An edit applies where the key token's activation lies within a radius of the edit's key. Distances between
activations differ by orders of magnitude from model to model, so the radius is given as a share of the spread: the
median distance from one unrelated prompt's activation to its nearest neighbour among some. A small ball holds the
prompt and little else; a large one reaches rephrases, and other questions too. Where balls of different answers would
overlap, the codebook splits the space between them, exactly as it does in service.

Measured for each share: what falls into any ball though no edit is about it (false fires): unrelated questions, the
same with a question mark, whose activations lie much nearer to those of prompts that end in one, and the prompts of
facts that were not inserted; and prompts and rephrases that fall into their own edit's ball (hits) or into another's
(wrong). `RADIUS_SHARE` in the editor is chosen from this table: a false fire changes an answer that nobody asked to
change, so it weighs more than a rephrase that is missed.

Output: the machine card, a table, a plot in benchmarks/results/, and one JSON document as the last line of stdout.
Progress goes to stderr.

    python benchmarks/locality.py
    python benchmarks/locality.py --data zsre.json --unrelated nq_open.jsonl --edits 300 --questions 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.common import Fact, progress
from editable.adapters import GRACE
from editable.adapters.grace import RADIUS_SHARE
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.memory.radius import Codebook

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
OTHERS = 300  # facts not inserted, at most
CHUNK = 16  # prompts in one forward


@dataclass(frozen=True)
class Activations:
    """Key-token activations (n, features) at the site, of edits and of what no edit is about, and the site's spread."""

    prompts: Tensor
    rephrases: Tensor
    unrelated: Mapping[str, Tensor]
    spread: float


def probe_of(model: Any, tokenizer: Any) -> Probe:
    """What editors learn with, hence the very activations they see, the spread's reference prompts included."""
    reference = resources.files("editable").joinpath("reference.txt").read_text().splitlines()
    shadow = shadow_of(model)
    return Probe(shadow, Reader(shadow, tokenizer), reference)


def activations(
    probe: Probe, editor: GRACE, facts: Sequence[Fact], unrelated: Mapping[str, Sequence[str]]
) -> Activations:
    """What the base model shows for every text."""
    site = editor.sites(probe.model)["key"]

    def of(texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), CHUNK):
            parts.append(probe.keys([probe.reader.arguments(t) for t in texts[start : start + CHUNK]], site))
        progress(f"{len(texts)} texts read at {site.path}")
        return torch.cat(parts)

    prompts, rephrases = of([f.prompt for f in facts]), of([f.rephrase for f in facts])
    return Activations(prompts, rephrases, {n: of(texts) for n, texts in unrelated.items()}, probe.spread(site))


def book_of(prompts: Tensor, facts: Sequence[Fact], radius: float) -> Codebook:
    """The codebook that inserting all facts leads to."""
    book = Codebook.empty(prompts.shape[1])
    for index, (key, fact) in enumerate(zip(prompts, facts, strict=True)):
        book = book.add(key, fact.target, str(index), radius)
    return book


def row(found: Activations, facts: Sequence[Fact], portion: float) -> dict[str, Any]:
    """One line of the table."""
    book = book_of(found.prompts, facts, portion * found.spread)
    prompts, rephrases = (_landed(book, keys, facts) for keys in (found.prompts, found.rephrases))
    return {
        "radius_share_of_spread": portion,
        **{f"{n}_fire_share": float((book.find(keys)[1] <= 1).float().mean()) for n, keys in found.unrelated.items()},
        "prompt_hit_share": prompts[0],
        "rephrase_hit_share": rephrases[0],
        "rephrase_wrong_share": rephrases[1],
        "split_balls": sum(placed.kind == "split" for placed in book.placed),
    }


def _landed(book: Codebook, keys: Tensor, facts: Sequence[Fact]) -> tuple[float, float]:
    """Shares of keys in a ball that gives their own answer, and in one that gives another."""
    nearest, share = book.find(keys)
    hit = share <= 1
    right = torch.tensor([book.labels[int(n)] == fact.target for n, fact in zip(nearest, facts, strict=True)])
    return float((hit & right).float().mean()), float((hit & ~right).float().mean())


def draw(form: str, rows: Sequence[dict[str, Any]]) -> Callable[[Any], None]:
    """Shares against the radius."""

    def plot(axes: Any) -> None:
        shares = [one["radius_share_of_spread"] for one in rows]
        for name in (name for name in rows[0] if name.endswith("_share") and name != "prompt_hit_share"):
            axes.plot(shares, [one[name] for one in rows], marker="o", label=name.replace("_", " "))
        axes.axvline(RADIUS_SHARE, color="black", ls=":", label="the editor's default")
        axes.set_xlabel("radius / spread of unrelated prompts")
        axes.set_ylabel("share")
        axes.set_title(f"Which inputs fall into an edit's ball ({form})")
        axes.legend(fontsize="small")

    return plot


def options() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--edits", type=int, default=300, help="facts inserted, at most half of what there is")
    parser.add_argument("--questions", type=int, default=1000)
    return parser.parse_args()


def main() -> None:
    """Measure and show, for both places where the editor reads its keys."""
    chosen = options()
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    common.print_card(card)
    everything = common.load_facts(chosen.data)
    edits = min(chosen.edits, len(everything) // 2)
    facts, others = everything[:edits], everything[edits : edits + OTHERS]
    questions = common.load_questions(chosen.unrelated, chosen.questions)
    marked = [question.rstrip("?") + "?" for question in questions]
    unrelated = {"questions": questions, "marked": marked, "other_facts": [fact.prompt for fact in others]}
    forms: dict[str, Any] = {}
    for form, editor in (("per_token", GRACE()), ("single", GRACE(values="single"))):
        found = activations(probe_of(model, tokenizer), editor, facts, unrelated)
        rows = [row(found, facts, portion) for portion in SHARES]
        counted = f"{len(facts)} edits, {len(questions)} questions, {len(others)} other facts"
        title = f"{form}: {counted}, spread {found.spread:.3f}"
        common.print_table(title, ("radius/spread", *list(rows[0])[1:]), [list(one.values()) for one in rows])
        image = common.plot(chosen.results / f"locality_{form}.png", draw(form, rows))
        forms[form] = {"spread_l2": found.spread, "edits": len(facts), "questions": len(questions), "rows": rows}
        forms[form]["other_facts"] = len(others)
        forms[form]["plot"] = image
    document = {"benchmark": "locality", "machine": card, "options": common.given(chosen)}
    common.print_json({**document, "radius_share_default": RADIUS_SHARE, "forms": forms})


if __name__ == "__main__":
    main()
