"""Facts a model lacks, learned together from half of their wordings, asked for in the other half.

The physics. An editor that learns a set of facts as one has to put them where other wordings find them too, and where
nothing else does. Contrastive knowledge assessment first finds the facts that the model lacks: those that it finds less
likely than the same answer after statements about the same subject that are wrong. They go in as one batch, each with
every other of its relation's templates; the other templates are its neighbourhood. What must not change are answers to
unrelated texts and, strictest of all, facts that the model knows, of the same relations and in the same templates.

Accuracies are teacher-forced by token, the end token of an answer left out: a model that was never told to stop does
not. Drawdown is accuracy before less accuracy after. Of known facts the answer is the right one, and all wordings are
asked in which the model finds it; half of the facts are given with the edits, to be left alone, and of the others
nothing is said. Of unrelated texts it is the token with which the unedited model goes on. Accuracy before is 1.

    editable bench calibration --data pararel
    editable bench calibration --data pararel --editor grace --facts 20
"""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from editable import Edit, EditableModel, metrics
from editable.asking import Asker
from editable.assess import Fact
from editable.benchmarks import bars, common, editors
from editable.benchmarks.bars import Bar
from editable.benchmarks.report import Report, Table, publish
from editable.datasets import files
from editable.datasets.layouts.pararel import prompts
from editable.errors import DataError, InputError
from editable.metrics import Accuracy, Edited

LEAST = 4  # templates that a relation needs: two to learn from, two to ask
MORE = 4  # tokens that a free answer may be longer than the right one


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "calibration")
    parser.add_argument("--editor", default="calinet", help=f"one of {', '.join(editors.editors())}")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of the editor")
    parser.add_argument("--facts", type=int, default=100, help="facts to learn")
    parser.add_argument("--drawn", type=int, default=40, help="facts of each relation to draw")
    parser.add_argument("--assessed", type=int, default=220, help="of all drawn, facts to assess")
    parser.add_argument("--questions", type=int, default=200, help="unrelated texts, at most")
    return parser


@dataclass(frozen=True, eq=False)
class Statement:
    """A fact in all wordings of its relation: the fact's own and its edit's rephrases to learn from, others to ask."""

    fact: Fact
    asked: tuple[str, ...]


def statements(folder: Path, most: int, seed: int) -> Iterator[Statement]:
    """Facts of every relation that has wordings to split and wrong statements to compare with.

    Raises:
        DataError: the folder is not ParaRel with CaliNet's relations beside it.
    """
    contrast, draw = folder / "calinet_relations.jsonl", random.Random(seed)
    if not contrast.is_file():
        raise DataError(f"--data {str(folder)!r} has no {contrast.name}, expected it beside ParaRel's folders.")
    for relation in files.read(contrast):
        name = f"{relation.text('relation')}.jsonl"
        patterns, pairs = folder / "patterns" / name, folder / "trex_lms_vocab" / name
        if not patterns.is_file() or not pairs.is_file():
            continue
        wordings = prompts(pattern.text("pattern") for pattern in files.read(patterns))
        wrong = prompts(relation.texts("wrong"))
        if len(wordings) >= LEAST and wrong:
            known = [(pair.text("sub_label"), pair.text("obj_label")) for pair in files.read(pairs)]
            for subject, target in draw.sample(known, min(most, len(known))):
                yield _statement(subject, f" {target}", wordings, wrong)


def _statement(subject: str, target: str, wordings: Sequence[str], wrong: Sequence[str]) -> Statement:
    said = [wording.replace("[X]", subject) for wording in wordings]
    prompt, *rephrases = said[::2]
    contrast = [one.replace("[X]", subject) for one in wrong]
    return Statement(Fact(Edit(prompt, target, rephrases=rephrases, subject=subject), contrast), tuple(said[1::2]))


# --- measuring ---

Question = tuple[str, str]
"""A prompt and its right answer."""


def forced(asker: Asker, questions: Sequence[Question]) -> list[float]:
    """Share of each answer's tokens that are most likely where they are due, the end token left out."""
    prompts, answers = _columns(questions)
    targets = asker.target_ids(prompts, answers)
    return [metrics.forced_share(*pair) for pair in zip(asker.forced(prompts, answers), targets, strict=True)]


def accuracies(asker: Asker, questions: Sequence[Question]) -> list[Accuracy]:
    """Forced, and whether the free greedy answer is the right one and ends by itself."""
    lengths = [len(ids) + MORE for ids in asker.target_ids(*_columns(questions))]
    said = asker.free([prompt for prompt, _ in questions], lengths)
    exact = [metrics.exact_match(s.text, s.stopped, [a]) for s, (_, a) in zip(said, questions, strict=True)]
    return [Accuracy(*both) for both in zip(forced(asker, questions), exact, strict=True)]


def _columns(questions: Sequence[Question]) -> tuple[list[str], list[str]]:
    return [prompt for prompt, _ in questions], [answer for _, answer in questions]


@dataclass(frozen=True, eq=False)
class Split:
    """Statements that the model lacks, and questions that it answers rightly by itself.

    Args:
        lacking: to be learned.
        kept: about other facts of the same relations, in all wordings; given with the edits, to be left alone.
        known: the same about further facts, of which nothing is said.
    """

    lacking: Sequence[Statement]
    kept: Sequence[Question]
    known: Sequence[Question]

    @property
    def edits(self) -> list[Edit]:
        """The facts to learn, and shared out among them what they are to leave alone."""
        prompts, edits = [prompt for prompt, _ in self.kept], [statement.fact.edit for statement in self.lacking]
        return [replace(edit, locality=prompts[place :: len(edits)]) for place, edit in enumerate(edits)]


def split(em: EditableModel, found: Sequence[Statement], assessed: int, count: int, seed: int) -> Split:
    """Assess so many, drawn; of those that are lacking take `count`. Look for known ones among all the others."""
    drawn = random.Random(seed).sample(found, min(assessed, len(found)))
    marks = em.assess([statement.fact for statement in drawn])
    lacking = [statement for statement, mark in zip(drawn, marks, strict=True) if mark.lacking]
    asker, others = Asker(em.model, em.tokenizer), [one for one in found if one not in lacking]
    right = _known(asker, [_right(one) for one in others])
    sure = [one for one in others if _right(one) in right]
    kept, known = (_known(asker, [q for one in half for q in _everything(one)]) for half in (sure[::2], sure[1::2]))
    return Split(lacking[:count], kept, known)


def _known(asker: Asker, questions: Sequence[Question]) -> list[Question]:
    return [one for one, share in zip(questions, forced(asker, questions), strict=True) if share == 1]


def _everything(statement: Statement) -> list[Question]:
    prompt, answer = _right(statement)
    return [(text, answer) for text in (prompt, *map(str, statement.fact.edit.rephrases), *statement.asked)]


def edited(asker: Asker, chosen: Sequence[Statement]) -> list[Edited]:
    """Each fact's own prompt, and the wordings that were not shown."""
    own = accuracies(asker, [_right(one) for one in chosen])
    asked = iter(accuracies(asker, [(text, str(one.fact.edit.target)) for one in chosen for text in one.asked]))
    return [Edited(mine, tuple(next(asked) for _ in one.asked)) for mine, one in zip(own, chosen, strict=True)]


def _right(statement: Statement) -> Question:
    return str(statement.fact.edit.prompt), str(statement.fact.edit.target)


def measured(em: EditableModel, parts: Split, unrelated: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Quality before and after, and seconds."""
    asker = Asker(em.model, em.tokenizer)
    was = asker.logits(unrelated)
    before = {"before_own_forced": metrics.mean(forced(asker, [_right(one) for one in parts.lacking]))}
    common.note(f"{len(parts.lacking)} facts the model lacks; {len(parts.kept)} + {len(parts.known)} right answers")
    start = time.perf_counter()
    receipts = em.edit(parts.edits, verify=False)
    seconds = {"learning_seconds": time.perf_counter() - start}
    common.note(f"learned in {seconds['learning_seconds']:.0f} s")
    after, now = edited(asker, parts.lacking), asker.logits(unrelated)
    kept, known = (metrics.mean(forced(asker, questions)) for questions in (parts.kept, parts.known))
    quality = {
        "facts": len(parts.lacking),
        "shown": sum(1 + len(one.fact.edit.rephrases) for one in parts.lacking),
        "asked": sum(len(one.asked) for one in parts.lacking),
        "reliability_on_all_shown": metrics.mean(receipt.verified.reliability for receipt in receipts),
        **before,
        **dict(_rates(after)),
        "kept": len(parts.kept),
        "drawdown_kept": None if kept is None else 1 - kept,
        "known": len(parts.known),
        "drawdown_known": None if known is None else 1 - known,
        **_drift(was, now),
    }
    return quality, seconds


def _rates(found: Sequence[Edited]) -> Iterator[tuple[str, float | None]]:
    for rate in (metrics.success_rate, metrics.generalization_rate):
        accuracy = rate(found)
        for form in ("forced", "exact"):
            yield f"{rate.__name__}_{form}", None if accuracy is None else getattr(accuracy, form)


def _drift(was: Sequence[Tensor], now: Sequence[Tensor]) -> dict[str, float | None]:
    """Of unrelated texts, at the token that begins the answer, and at all of them."""
    pairs = list(zip(was, now, strict=True))
    return {
        "unrelated": len(pairs),
        "drawdown_unrelated": 1 - (metrics.mean(metrics.agreement(a[-1:], b[-1:]) for b, a in pairs) or 0),
        "unrelated_same_token": metrics.mean(metrics.agreement(a, b) for b, a in pairs),
        "unrelated_bit_equal": metrics.bit_equal_share(now, was),
        "unrelated_kl_nats": metrics.mean(metrics.kl_nats(b, a) for b, a in pairs),
    }


def judged(quality: Mapping[str, Any]) -> list[Bar]:
    """The figures that have a bar."""
    return [
        Bar("success on the facts' own wordings (SR), forced", quality["success_rate_forced"], ">=", 0.95),
        Bar("success in wordings not shown (GR), forced", quality["generalization_rate_forced"], ">=", 0.80),
        Bar("drawdown on unrelated texts", quality["drawdown_unrelated"], "<=", 0.05),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Assess, learn, ask, show."""
    chosen = options().parse_args(argv)
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    if chosen.data is None:
        raise InputError("--data is missing, expected a folder with ParaRel and CaliNet's relations.")
    found = list(statements(Path(chosen.data), chosen.drawn, chosen.seed))
    with closing(EditableModel(model, tokenizer, editor=common.editor(chosen))) as em:
        parts = split(em, found, chosen.assessed, chosen.facts, chosen.seed)
        quality, seconds = measured(em, parts, common.unrelated(chosen, chosen.questions))
    rows = [[name.replace("_", " "), value] for name, value in {"assessed": len(found), **quality, **seconds}.items()]
    title = f"{len(parts.lacking)} facts the model lacks, {chosen.editor}"
    tables = [bars.table(judged(quality)), Table(title, ("", "value"), rows)]
    publish(Report("calibration", card, common.given(chosen), quality, seconds, tables), chosen.results, chosen.against)


if __name__ == "__main__":
    main()
