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

    editable bench radius
    editable bench radius --data zsre.json --unrelated nq_open.jsonl --edits 300 --questions 1000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editable.adapters import GRACE
from editable.benchmarks import common
from editable.benchmarks.report import Plot, Report, Table, publish
from editable.datasets.case import Case
from editable.edit import ModelInput
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.memory.radius import Codebook
from editable.scopes.ball import RADIUS_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    probe: Probe, editor: GRACE, cases: Sequence[Case], unrelated: Mapping[str, Sequence[ModelInput]]
) -> Activations:
    """What the base model shows for every text."""
    site = editor.sites(probe.model)["key"]

    def of(texts: Sequence[ModelInput]) -> Tensor:
        parts = []
        for start in range(0, len(texts), CHUNK):
            parts.append(probe.keys([probe.reader.arguments(t) for t in texts[start : start + CHUNK]], site))
        common.note(f"{len(texts)} texts read at {site.path}")
        return torch.cat(parts)

    prompts, rephrases = of([case.edit.prompt for case in cases]), of([case.rephrases[0].prompt for case in cases])
    return Activations(prompts, rephrases, {n: of(texts) for n, texts in unrelated.items()}, probe.spread(site))


def book_of(prompts: Tensor, cases: Sequence[Case], radius: float) -> Codebook:
    """The codebook that inserting all cases leads to."""
    book = Codebook.empty(prompts.shape[1])
    for index, (key, case) in enumerate(zip(prompts, cases, strict=True)):
        book = book.add(key, case.edit.target, str(index), radius)
    return book


def row(found: Activations, cases: Sequence[Case], portion: float) -> dict[str, Any]:
    """One line of the table."""
    book = book_of(found.prompts, cases, portion * found.spread)
    prompts, rephrases = (_landed(book, keys, cases) for keys in (found.prompts, found.rephrases))
    return {
        "radius_share_of_spread": portion,
        **{f"{n}_fire_share": float((book.find(keys)[1] <= 1).float().mean()) for n, keys in found.unrelated.items()},
        "prompt_hit_share": prompts[0],
        "rephrase_hit_share": rephrases[0],
        "rephrase_wrong_share": rephrases[1],
        "split_balls": sum(placed.kind == "split" for placed in book.placed),
    }


def _landed(book: Codebook, keys: Tensor, cases: Sequence[Case]) -> tuple[float, float]:
    """Shares of keys in a ball that gives their own answer, and in one that gives another."""
    nearest, share = book.find(keys)
    hit = share <= 1
    right = torch.tensor([book.labels[int(n)] == c.edit.target for n, c in zip(nearest, cases, strict=True)])
    return float((hit & right).float().mean()), float((hit & ~right).float().mean())


def draw(form: str, rows: Sequence[dict[str, Any]]) -> Callable[[Axes], None]:
    """Shares against the radius."""

    def plot(axes: Axes) -> None:
        shares = [one["radius_share_of_spread"] for one in rows]
        for name in (name for name in rows[0] if name.endswith("_share") and name != "prompt_hit_share"):
            axes.plot(shares, [one[name] for one in rows], marker="o", label=name.replace("_", " "))
        axes.axvline(RADIUS_SHARE, color="black", ls=":", label="the editor's default")
        axes.set_xlabel("radius / spread of unrelated prompts")
        axes.set_ylabel("share")
        axes.set_title(f"Which inputs fall into an edit's ball ({form})")
        axes.legend(fontsize="small")

    return plot


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and show, for both places where the editor reads its keys."""
    parser = common.parser(__doc__, "radius")
    parser.add_argument("--edits", type=int, default=300, help="cases inserted, at most half of what there is")
    parser.add_argument("--questions", type=int, default=1000)
    chosen = parser.parse_args(argv)
    model, tokenizer = common.prepare(chosen)
    everything = [case for case in common.cases(chosen) if case.rephrases]
    edits = min(chosen.edits, len(everything) // 2)
    cases, others = everything[:edits], everything[edits : edits + OTHERS]
    questions = common.unrelated(chosen, chosen.questions)
    marked = [question.rstrip("?") + "?" for question in questions]
    unrelated: dict[str, Sequence[ModelInput]] = {"questions": questions, "marked": marked}
    unrelated["other_facts"] = [case.edit.prompt for case in others]
    forms: dict[str, Any] = {}
    tables, plots = [], []
    for form, editor in (("per_token", GRACE()), ("single", GRACE(values="single"))):
        found = activations(probe_of(model, tokenizer), editor, cases, unrelated)
        rows = [row(found, cases, portion) for portion in SHARES]
        counted = f"{len(cases)} edits, {len(questions)} questions, {len(others)} other facts"
        title = f"{form}: {counted}, spread {found.spread:.3f}"
        tables.append(Table(title, ("radius/spread", *list(rows[0])[1:]), [list(one.values()) for one in rows]))
        plots.append(Plot(f"radius_{form}", draw(form, rows)))
        forms[form] = {"spread_l2": found.spread, "rows": {f"{one['radius_share_of_spread']:g}": one for one in rows}}
    counts = {"edits": len(cases), "questions": len(questions), "other_facts": len(others)}
    quality = {"radius_share_default": RADIUS_SHARE, **counts, "forms": forms}
    card = common.machine_card(model)
    report = Report("radius", card, common.given(chosen), quality, {}, tables, plots)
    publish(report, chosen.results, chosen.against)


if __name__ == "__main__":
    main()
