"""Which inputs fall under an edit: scopes side by side, with one effect, on rephrases, errors, prefixes and siblings.

The physics. With values per answer token the effect is exact wherever an edit fires, so what an editor is worth is what
its scope is worth: it has to fire for a rephrase, also with a typing error in its subject or an unrelated sentence in
front, and must not for the same question about another subject.

Edits go in one at a time. After 1, 10, 100 edits and the last, all so far are scored: the prompts and rephrases, forced
and as free answers that end by themselves; the cases' own locality inputs and unrelated texts, by bits. Texts that are
written from a case's beginnings, for fluency and consistency, take most of the time: the part `texts`. The part `bits`
is `all` without asking for the answers to locality inputs, which takes most of what is left.

After the last come perturbed rephrases, portability, CounterFact's scores, other questions about the edits' subjects
(in the words of another case), which should keep every bit, and a stream of conflicts: each edit made once more in the
words of a rephrase, with another answer, and then asked in the words of both. The part `alone` asks each case with
nothing held but the edits of its record: what would come of perfect retrieval.

    editable bench scopes
    editable bench scopes --scopes ball,sentence --edits 700 --data zsre.json --unrelated nq_open.jsonl
    editable bench scopes --scopes 'sentence(false_fire=0.001)' --subjects found --data counterfact.json
    editable bench scopes --editor serac --set probability=0.9 --checkpoints 0 --data knowedit.json
    editable bench scopes --editor prompting --parts alone --data knowedit.json
"""

from __future__ import annotations

import random
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from editable.adapters import GRACE
from editable.asking import Asker
from editable.benchmarks import common, editors
from editable.benchmarks.baselines import Baseline
from editable.benchmarks.report import Report, Table, publish
from editable.datasets import unrelated as shipped_unrelated
from editable.datasets.case import Case, Question
from editable.edit import Edit
from editable.editor import Editor
from editable.learn import shadow_of
from editable.metrics import Accuracy, mean_accuracy
from editable.scope_data import misspelt
from editable.scoring import Base, CaseScore, Scores, drift_summary, drifts, replies, score
from editable.system import System

RATES = ("success_rate", "generalization_rate", "portability")
FORMS = ("forced", "exact")
CONTRASTS = ("counterfact_efficacy", "counterfact_paraphrase", "counterfact_neighbourhood")


@dataclass(frozen=True)
class Found:
    """What was measured of one scope.

    Args:
        checkpoints: number of edits to what all of them came to.
        perturbed: kind of perturbation to accuracy on the rephrases that have it, and on these before.
        alone: what all cases came to, each with its own record's edits alone; empty if that was not asked for.
        others: of other questions about the edits' subjects, how many, and the share that is bit-equal.
        conflicts: accuracy of later answers, asked in the later words and in the earlier ones.
        insert_seconds: of each edit.
    """

    checkpoints: dict[int, dict[str, Any]]
    alone: dict[str, Any]
    perturbed: dict[str, dict[str, Any]]
    others: dict[str, Any]
    conflicts: dict[str, Any]
    insert_seconds: list[float]


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "scopes")
    parser.add_argument("--scopes", default="ball,sentence", help="scopes, separated by commas, or by ; with options")
    parser.add_argument("--editor", help="a baseline or an editor, instead of GRACE with scopes")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of --editor")
    parser.add_argument("--edits", type=int, default=100, help="cases")
    parser.add_argument("--questions", type=int, default=200, help="unrelated texts, at most")
    parser.add_argument("--subjects", choices=("given", "found"), default="given", help="whether edits name theirs")
    parser.add_argument("--checkpoints", type=common.counts, default="1,10,100", help="edits; the last is always one")
    parser.add_argument(
        "--parts", default="all,perturbed,others,conflicts", help="what to measure; also bits, texts, alone"
    )
    return parser


def methods(chosen: Namespace) -> dict[str, Editor | Baseline]:
    """Name to method."""
    if chosen.editor:
        return {chosen.editor: editors.method(chosen.editor, editors.given(chosen.set))}
    names = chosen.scopes.split(";") if ";" in chosen.scopes or "(" in chosen.scopes else chosen.scopes.split(",")
    return {name: GRACE(scope=editors.scope("--scopes", name)) for name in names}


def cases_of(chosen: Namespace) -> list[Case]:
    """The cases, without their subjects where these are to be found, and with what is asked of each only."""
    cases, parts = common.cases(chosen, chosen.edits), chosen.parts.split(",")
    cases = [case for case in cases if isinstance(case.edit.prompt, str)]
    if "texts" not in parts:
        cases = [replace(case, generate=()) for case in cases]
    if "bits" in parts:
        cases = [replace(case, locality=tuple(replace(one, answers=()) for one in case.locality)) for case in cases]
    if chosen.subjects == "given":
        return cases
    return [replace(case, edit=replace(case.edit, subject=None)) for case in cases]


def measured(
    name: str,
    method: Editor | Baseline,
    model: nn.Module,
    tokenizer: Any,
    cases: Sequence[Case],
    base: Base,
    chosen: Namespace,
) -> Found:
    """One method, on a model that is given back as it was."""
    unrelated, parts = common.unrelated(chosen, chosen.questions), chosen.parts.split(",")
    whole = not {"all", "bits"}.isdisjoint(parts)
    found = Found({}, {}, {}, {}, {}, [])
    with editors.attached(name, method, model, tokenizer) as system:
        for count, case in enumerate(cases, start=1):
            found.insert_seconds.append(_timed(lambda edit=case.edit: system.insert([edit])))  # type: ignore[misc]
            if count == len(cases) or (count in chosen.checkpoints and whole):
                found.checkpoints[count] = _scored(system, cases[:count], base, unrelated, whole)
                common.note(f"{name}: {count} edits scored")
        if "perturbed" in parts:
            found.perturbed.update(_perturbed(system, cases, chosen.seed))
        if "others" in parts:
            asked = list(other_questions(cases, chosen.seed))
            found.others.update({"asked": len(asked), **drift_summary(drifts(system, asked, base))})
        if "conflicts" in parts:
            system.reset()
            found.conflicts.update(_conflicts(system, cases))
        if "alone" in parts:
            found.alone.update(_summary(alone(system, cases, base), cases))
    return found


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _scored(system: System, cases: Sequence[Case], base: Base, unrelated: Sequence[str], whole: bool) -> dict[str, Any]:
    found = _summary(score(system, cases, base), cases) if whole else {}
    return {**found, "unrelated_bit_equal": drift_summary(drifts(system, unrelated, base))["bit_equal_share"]}


def alone(system: System, cases: Sequence[Case], base: Base) -> Scores:
    """Each case with nothing held but the edits of the record that it is from."""
    scored: list[CaseScore] = []
    for _, group in groupby(cases, key=lambda case: case.where):
        own = list(group)
        system.reset()
        system.insert([case.edit for case in own])
        scored += score(system, own, base).cases
    return Scores(tuple(scored))


def _summary(scores: Scores, cases: Sequence[Case]) -> dict[str, Any]:
    own = [drift for case in scores.cases for drift in case.locality]
    kinds = sorted({drift.kind for drift in own})
    return {
        **scores.summary(),
        "own_by_kind": {k or "all": drift_summary([d for d in own if d.kind == k])["bit_equal_share"] for k in kinds},
        "portability_by_kind": by_kind(scores, cases),
    }


def by_kind(scores: Scores, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Accuracy of what follows from edits, over all questions of a kind."""
    found: dict[str, list[Accuracy]] = defaultdict(list)
    for case, one in zip(cases, scores.cases, strict=True):
        asked = [question for question in case.portability if question.answers]
        for question, accuracy in zip(asked, one.portability, strict=True):
            found[question.kind].append(accuracy)
    return {kind: asdict(mean) for kind in sorted(found) if (mean := mean_accuracy(found[kind])) is not None}


# --- rephrases that are made harder ---


def perturbations(cases: Sequence[Case], seed: int) -> Iterator[tuple[str, Question, Question]]:
    """Kind, a rephrase, and the same made harder: a typing error in its subject, an unrelated sentence in front."""
    draw, sentences = random.Random(seed), shipped_unrelated()
    for case in cases:
        for question in _answered(case):
            text, subject = str(question.prompt), case.edit.subject
            if subject and subject in text:
                yield "typing error", question, replace(question, prompt=text.replace(subject, misspelt(subject, draw)))
            front = draw.choice(sentences).rstrip(" .?!")
            yield "sentence in front", question, replace(question, prompt=f"{front}. {text}")


def _answered(case: Case) -> list[Question]:
    """The rephrases in text, with the answer of the edit."""
    target = case.edit.target
    if target is None:
        return []
    return [Question(q.prompt, (target,)) for q in case.rephrases if isinstance(q.prompt, str)]


def _perturbed(system: System, cases: Sequence[Case], seed: int) -> dict[str, dict[str, Any]]:
    made = list(perturbations(cases, seed))
    found = {}
    for kind in dict.fromkeys(kind for kind, _, _ in made):
        plain, hard = [q for name, q, _ in made if name == kind], [q for name, _, q in made if name == kind]
        found[kind] = {"plain": _accuracy(system, plain), "harder": _accuracy(system, hard)}
    return found


def _accuracy(system: System, questions: Sequence[Question]) -> dict[str, float] | None:
    accuracy = mean_accuracy(reply.accuracy for reply in replies(system, questions))
    return None if accuracy is None else asdict(accuracy)


def other_questions(cases: Sequence[Case], seed: int) -> Iterator[str]:
    """Each edit's subject in the words of another case that asks something else."""
    draw = random.Random(seed)
    about = [(case.edit.subject, case.edit.prompt) for case in cases]
    own = [(subject, prompt) for subject, prompt in about if subject and isinstance(prompt, str) and subject in prompt]
    forms = {subject: prompt.replace(subject, "{}") for subject, prompt in own}
    for subject, form in forms.items():
        others = [one for one in dict.fromkeys(forms.values()) if one != form]
        if others:
            yield draw.choice(others).replace("{}", subject)


# --- conflicts ---


def conflict_stream(cases: Sequence[Case]) -> tuple[list[Edit], list[Question], list[Question]]:
    """Edits in the words of a rephrase, with the answer that was true before, then the cases' own edits.

    Returns:
        edits in order; the questions in the later edits' words, and in the earlier ones'.
    """
    able = [case for case in cases if _answered(case) and case.before is not None and case.before != case.edit.target]
    earlier = [replace(case.edit, prompt=_answered(case)[0].prompt, target=case.before) for case in able]
    later = [Question(case.edit.prompt, (case.edit.target,)) for case in able if case.edit.target is not None]
    return [*earlier, *(case.edit for case in able)], later, [_answered(case)[0] for case in able]


def _conflicts(system: System, cases: Sequence[Case]) -> dict[str, Any]:
    edits, later, earlier = conflict_stream(cases)
    for edit in edits:
        system.insert([edit])
    return {
        "pairs": len(later),
        "later words": _accuracy(system, later),
        "earlier words": _accuracy(system, earlier),
    }


# --- showing ---


def tables(found: dict[str, Found]) -> list[Table]:
    """Checkpoints of all scopes; perturbed rephrases; conflicts."""
    made = [_checkpoint_table(found)]
    if any(one.perturbed for one in found.values()):
        rows = [
            [name, kind, *(of[form] for form in FORMS for of in (by["plain"], by["harder"]))]
            for name, one in found.items()
            for kind, by in one.perturbed.items()
        ]
        header = ("", "rephrases with a", "forced, plain", "so", "exact, plain", "so")
        made.append(Table("rephrases made harder", header, rows))
    if any(one.others for one in found.values()):
        rows = [[name, one.others["asked"], one.others["bit_equal_share"]] for name, one in found.items() if one.others]
        made.append(Table("other questions about the edits' subjects", ("", "asked", "bit-equal"), rows))
    if any(one.conflicts for one in found.values()):
        words = ("later words", "earlier words")
        rows = [
            [name, one.conflicts["pairs"], *((one.conflicts[w] or {}).get(f) for w in words for f in FORMS)]
            for name, one in found.items()
            if one.conflicts
        ]
        forms = [f"{word}, {form}" for word in words for form in FORMS]
        made.append(Table("conflicts: the later answer, asked in either edit's words", ("", "pairs", *forms), rows))
    return made


def _checkpoint_table(found: dict[str, Found]) -> Table:
    rows: list[list[Any]] = []
    for name, one in found.items():
        counted = [(str(count), count, seen) for count, seen in one.checkpoints.items()]
        alone = [("each alone", None, one.alone)] if one.alone else []
        for said, count, seen in [*counted, *alone]:
            rates = [seen.get(f"{rate}_{form}") for rate in RATES for form in FORMS]
            contrasts = [seen.get(contrast) for contrast in CONTRASTS]
            own = [seen.get("bit_equal_share"), seen.get("unrelated_bit_equal")]
            rows.append([name, said, *rates, *contrasts, *own, statistics.median(one.insert_seconds[:count])])
    names = [f"{rate}, {form}" for rate in ("reliability", "generality", "portability") for form in FORMS]
    header = ("", "edits", *names, "ES", "PS", "NS", "own bit-equal", "unrelated bit-equal", "s per edit, median")
    return Table("scopes: all edits so far, with the model at that point", header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Insert, score, show."""
    chosen = options().parse_args(argv)
    model, tokenizer = common.prepare(chosen)
    card, cases = common.machine_card(model), cases_of(chosen)
    base = Base(Asker(shadow_of(model), tokenizer))
    found = {
        name: measured(name, method, model, tokenizer, cases, base, chosen) for name, method in methods(chosen).items()
    }
    quality = {
        name: {"checkpoints": {str(k): v for k, v in one.checkpoints.items()}, **_rest(one)}
        for name, one in found.items()
    }
    seconds = {name: {"insert_seconds_median": statistics.median(one.insert_seconds)} for name, one in found.items()}
    publish(
        Report("scopes", card, common.given(chosen), quality, seconds, tables(found)), chosen.results, chosen.against
    )


def _rest(found: Found) -> dict[str, Any]:
    return {"alone": found.alone, "perturbed": found.perturbed, "others": found.others, "conflicts": found.conflicts}


if __name__ == "__main__":
    main()
