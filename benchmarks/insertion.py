"""What inserting an edit costs and what it is worth: quality, exactness, speed, memory, and edits under load.

The physics. Learning an edit is optimisation, so its time is steps x cost of a step. A textbook loop runs the whole
model forward and backward in every step, from a random value, a fixed number of times. Three things shrink that: what
runs before the edited place does not depend on the edit and is run once; a value that starts at the model's own
activation has less far to go; and a row that has arrived stops. In a batch, small products that only waited for the
weights to come from memory become large ones that use the processor. Publishing is one assignment and costs nothing
that grows with learning; what grows with the number of edits is copying their bookkeeping.

Parts (`--parts`, all by default):

- memory     growth of the resident set while a batch is learned, sampled; whether the learning copy shares all storage
- quality    N facts in one batch, and one by one: reliability and generality (the rephrase was never shown), each
             teacher-forced and as free greedy answers that are exact and stop by themselves; for one value per token,
             the published single value, and the textbook loop, beside the unedited model
- unrelated  all logits of unrelated questions against the same model with edits switched off, bit by bit
- rollback   everything rolled back one by one in random order, logits against those recorded before the first edit;
             the log closed and reopened half-way and at the end
- speed      one edit (read, learn, verify, flush to the log, publish) and a batch, per edit, against the textbook loop;
             rounds of all three in random order in one process
- publish    insert, publish and roll back with many edits present; the log's flush apart
- stream     threads generate while edits come in; every output must be that of one published version

The textbook loop is `textbook_grace.py`. "known" and "unseen" facts in the part `speed` are the shipped ones, whose
targets are names that every model has met, and invented ones; with `--data` its facts are a third kind, and are what
batches consist of.

Output: the machine card, tables, a plot in benchmarks/results/, and one JSON document as the last line of stdout.
Progress goes to stderr.

    python benchmarks/insertion.py
    python benchmarks/insertion.py --data zsre.json --unrelated nq_open.jsonl --edits 100
    python benchmarks/insertion.py --parts speed,publish --speed-rounds 30 --threads 2
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.common import Fact, Plain, Score, progress
from benchmarks.textbook_grace import TextbookGRACE
from editable import Edit, EditableModel, Patch, Receipt
from editable.adapters import GRACE
from editable.learn import shadow_of

PARTS = ("memory", "quality", "unrelated", "rollback", "speed", "publish", "stream")
FORMS = {"per_token": GRACE(), "single": GRACE(values="single")}
STREAMED_TOKENS = 8
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Setting:
    """What every part works with."""

    model: Any
    tokenizer: Any
    facts: Sequence[Fact]
    questions: Sequence[str]
    options: argparse.Namespace
    rng: np.random.Generator

    @contextmanager
    def edited(self, editor: GRACE | None = None, log: Path | None = None) -> Iterator[EditableModel]:
        """The model with an editor attached, and given back afterwards."""
        em = EditableModel(self.model, self.tokenizer, editor=editor or GRACE(), log=log)
        try:
            yield em
        finally:
            em.close()

    def plain(self, model: Any) -> Plain:
        """A model as its users call it."""
        return Plain(model, self.tokenizer.pad_token_id)

    def textbook(self) -> TextbookGRACE:
        """The baseline on a module tree of its own over the same weights, at the layer the published form uses."""
        path = FORMS["single"].sites(self.model)["value"].path
        return TextbookGRACE(shadow_of(self.model), path, self.tokenizer.eos_token_id)

    def ids(self, text: str) -> Tensor:
        """(1, tokens)."""
        return self.tokenizer(text, return_tensors="pt")["input_ids"]  # type: ignore[no-any-return]


@dataclass
class Findings:
    """What the parts found: JSON by part, and the figures that have a bar."""

    parts: dict[str, Any] = field(default_factory=dict)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def least(self, what: str, value: float | None, bar: float) -> None:
        """A figure that should be at least its bar."""
        self._note(what, value, bar, ">=", value is not None and value >= bar)

    def most(self, what: str, value: float | None, bar: float) -> None:
        """A figure that should be at most its bar."""
        self._note(what, value, bar, "<=", value is not None and value <= bar)

    def _note(self, what: str, value: float | None, bar: float, sign: str, met: bool) -> None:
        self.bars.append({"figure": what, "value": value, "bar": f"{sign} {bar:g}", "met": met})


# --- quality ---


def insert(em: EditableModel, facts: Sequence[Fact], together: bool) -> list[Receipt]:
    """Insert all facts, as one version or one after another. Nothing is refused, so that failures are counted here."""
    if together:
        return em.edit([fact.edit for fact in facts], verify=False)
    return [em.edit(fact.edit, verify=False) for fact in facts]


def scores(answerer: common.Answerer, tokenizer: Any, facts: Sequence[Fact]) -> dict[str, Any]:
    """Reliability on the prompts and generality on the rephrases."""
    asked: dict[str, Callable[[Fact], str]] = {"prompt": lambda f: f.prompt, "rephrase": lambda f: f.rephrase}
    found: dict[str, list[Score]] = {}
    for name, text in asked.items():
        found[name] = [common.score(answerer, tokenizer, text(fact), fact.target) for fact in facts]
    wrong = [f.prompt for f, s in zip(facts, found["prompt"], strict=True) if s.tokens < 1 or not s.stop]
    summary: dict[str, Any] = {name: common.summed_up(one) for name, one in found.items()}
    return {"edits": len(facts), **summary, "prompts_failed": wrong[:10]}


def quality(setting: Setting, findings: Findings) -> None:
    """Both forms, both ways of inserting, the textbook and the unedited model."""
    options = setting.options
    runs: dict[str, Any] = {"unedited": scores(setting.plain(setting.model), setting.tokenizer, setting.facts)}
    counts = {"per_token": options.edits, "single": options.published}
    for form, editor in FORMS.items():
        for way in ("batch", "one_by_one"):
            if counts[form]:
                runs[f"{form}_{way}"] = _edited_scores(setting, editor, setting.facts[: counts[form]], way == "batch")
                progress(f"quality: {form} {way} done")
    if options.textbook:
        runs["textbook_one_by_one"] = _textbook_scores(setting, setting.facts[: options.textbook])
    findings.parts["quality"] = runs
    _show_quality(runs)
    for way in ("batch", "one_by_one"):
        if (run := runs.get(f"per_token_{way}")) is not None:
            findings.least(f"reliability, teacher-forced, {way}", run["prompt"]["teacher_forced"], 0.99)
            findings.least(f"free answer exact with stop, {way}", run["prompt"]["exact_with_stop"], 0.97)


def _edited_scores(setting: Setting, editor: GRACE, facts: Sequence[Fact], together: bool) -> dict[str, Any]:
    with setting.edited(editor) as em:
        start = time.perf_counter()
        receipts = insert(em, facts, together)
        seconds = time.perf_counter() - start
        found = scores(setting.plain(em), setting.tokenizer, facts)
    return {
        **found,
        "refused_if_verified": sum(r.verified.reliability < 1 for r in receipts),
        "collisions": sum(len(r.verified.collisions) for r in receipts),
        "superseded": sum(len(r.superseded) for r in receipts),
        "seconds_per_edit": round(seconds / len(facts), 4),
    }


def _textbook_scores(setting: Setting, facts: Sequence[Fact]) -> dict[str, Any]:
    textbook = setting.textbook()
    start = time.perf_counter()
    for fact in facts:
        textbook.edit(*common.token_ids(setting.tokenizer, fact.prompt, fact.target))
    seconds = time.perf_counter() - start
    return {
        **scores(textbook, setting.tokenizer, facts),
        "seconds_per_edit": round(seconds / len(facts), 4),
    }


def _show_quality(runs: Mapping[str, Any]) -> None:
    header = ("", "edits", "reliability", "exact, stops", "generality", "exact, stops", "s per edit")
    rows = [
        (name, run["edits"], *_pair(run["prompt"]), *_pair(run["rephrase"]), run.get("seconds_per_edit"))
        for name, run in runs.items()
    ]
    common.print_table("quality (teacher-forced, and free greedy answers)", header, rows)


def _pair(found: Mapping[str, float | None]) -> tuple[float | None, float | None]:
    return found["teacher_forced"], found["exact_with_stop"]


# --- exactness ---


def unrelated(setting: Setting, findings: Findings) -> None:
    """Every logit of every question, edits on against edits off."""
    counts = {"per_token": setting.options.edits, "single": setting.options.published}
    found: dict[str, Any] = {}
    for form, editor in FORMS.items():
        if counts[form]:
            with setting.edited(editor) as em:
                insert(em, setting.facts[: counts[form]], together=True)
                found[form] = _questions_untouched(setting, em)
            progress(f"unrelated: {form} done")
    findings.parts["unrelated"] = found
    rows = [(form, *one.values()) for form, one in found.items()]
    common.print_table("unrelated questions", ("", "questions", "bit-equal", "fired", "changed"), rows)
    if "per_token" in found:
        findings.least("unrelated questions bit-equal to the base", found["per_token"]["bit_equal_share"], 1.0)


def _questions_untouched(setting: Setting, em: EditableModel) -> dict[str, Any]:
    em.latency.reset()
    changed = []
    for question in setting.questions:
        ids = setting.ids(question)
        with torch.no_grad():
            after = em(input_ids=ids).logits
            with em.unedited():
                before = em(input_ids=ids).logits
        if not torch.equal(after, before):
            changed.append(question)
    prefill = em.latency.report().as_dict()["phases"]["prefill"]
    fired = prefill["hit"]["forwards"] if prefill["hit"] else 0
    total = len(setting.questions)
    return {
        "questions": total,
        "bit_equal_share": 1 - len(changed) / total,
        "fired_share": fired / total,
        "changed": changed[:10],
    }


def fingerprints(model: Any, setting: Setting) -> list[str]:
    """SHA-256 of all logits of every prompt, rephrase and question, in order."""
    texts = [text for fact in setting.facts for text in (fact.prompt, fact.rephrase)] + list(setting.questions)
    found = []
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=setting.ids(text)).logits.contiguous()
        found.append(hashlib.sha256(logits.view(torch.uint8).numpy()).hexdigest())
    return found


def same_share(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of equal fingerprints."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def rollback(setting: Setting, findings: Findings) -> None:
    """Insert, roll back in random order, reopen half-way and at the end."""
    base = fingerprints(setting.model, setting)
    found: dict[str, Any] = {"edits": len(setting.facts), "texts": len(base)}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "edits.db"
        with setting.edited(log=log) as em:
            ids = [receipt.id for receipt in insert(em, setting.facts, together=True)]
            found["changed_by_the_edits_share"] = 1 - same_share(base, fingerprints(em, setting))
            order = [ids[index] for index in setting.rng.permutation(len(ids))]
            for edit_id in order[: len(order) // 2]:
                em.rollback(edit_id)
            half = fingerprints(em, setting)
        progress("rollback: half of them rolled back")
        with setting.edited(log=log) as em:
            found["reopened_half_way_bit_equal_share"] = same_share(half, fingerprints(em, setting))
            for edit_id in order[len(order) // 2 :]:
                em.rollback(edit_id)
            found["bit_equal_to_base_share"] = same_share(base, fingerprints(em, setting))
            version = em.version
        progress("rollback: all rolled back")
        with setting.edited(log=log) as em:
            found["reopened_version_equal"] = em.version == version and len(em.edits) == 0
            found["reopened_bit_equal_to_base_share"] = same_share(base, fingerprints(em, setting))
    findings.parts["rollback"] = found
    common.print_table("rollback in random order", ("", ""), list(found.items()))
    findings.least("all rolled back: bit-equal to the base", found["bit_equal_to_base_share"], 1.0)
    reopened = (found["reopened_half_way_bit_equal_share"], found["reopened_bit_equal_to_base_share"])
    findings.least("the log reopens bit-equal", min(*reopened, float(found["reopened_version_equal"])), 1.0)


# --- speed ---


@dataclass
class Times:
    """Seconds per edit, by side and by kind of fact."""

    textbook: dict[str, list[float]] = field(default_factory=dict)
    single: dict[str, list[float]] = field(default_factory=dict)
    batch: list[float] = field(default_factory=list)


def speed(setting: Setting, findings: Findings) -> None:
    """One edit and a batch against the textbook loop."""
    times = Times()
    textbook = setting.textbook()
    groups = _speed_groups(setting)
    with tempfile.TemporaryDirectory() as folder, setting.edited(log=Path(folder) / "edits.db") as em:
        _warm_up(setting, em, groups)
        for turn in range(setting.options.speed_rounds):
            kind = list(groups)[turn % len(groups)]
            fact = groups[kind][turn // len(groups) % len(groups[kind])]
            _speed_round(setting, em, textbook, kind, fact, turn, times)
            progress(f"speed: round {turn + 1} of {setting.options.speed_rounds}")
    found = _speed_found(times, setting)
    findings.parts["speed"] = found
    _show_speed(found)
    findings.least("one edit, times faster than the textbook loop", found["ratios"]["one_edit"]["ratio"], 8.0)
    findings.least("in a batch, per edit, times faster", found["ratios"]["batch_per_edit"]["ratio"], 25.0)


def _speed_groups(setting: Setting) -> dict[str, list[Fact]]:
    shipped = common.load_facts(None)
    groups = {"known": [f for f in shipped if f.known], "unseen": [f for f in shipped if not f.known]}
    if setting.options.data is not None:
        groups["data"] = list(setting.facts)
    return groups


def _warm_up(setting: Setting, em: EditableModel, groups: Mapping[str, Sequence[Fact]]) -> None:
    """The first edit makes the learning copy and measures the spread; the first batch grows the buffers."""
    for fact in (groups["known"][-1], groups["unseen"][-1]):
        em.rollback(em.edit(fact.edit, verify=False).id)
    _batch_seconds(setting, em, 0)


def _speed_round(
    setting: Setting, em: EditableModel, textbook: TextbookGRACE, kind: str, fact: Fact, turn: int, times: Times
) -> None:
    acts: list[Callable[[], None]] = [
        lambda: times.textbook.setdefault(kind, []).append(_textbook_seconds(setting, textbook, fact)),
        lambda: times.single.setdefault(kind, []).append(_edit_seconds(em, fact)),
    ]
    if turn % 3 == 0:
        acts.append(lambda: times.batch.append(_batch_seconds(setting, em, turn)))
    for index in setting.rng.permutation(len(acts)):
        acts[index]()


def _textbook_seconds(setting: Setting, textbook: TextbookGRACE, fact: Fact) -> float:
    textbook.book.clear()
    return common.clocked(lambda: textbook.edit(*common.token_ids(setting.tokenizer, fact.prompt, fact.target)))()


def _edit_seconds(em: EditableModel, fact: Fact) -> float:
    receipts: list[Receipt] = []
    seconds = common.clocked(lambda: receipts.append(em.edit(fact.edit, verify=False)))()
    em.rollback(receipts[0].id)
    return seconds


def _batch_seconds(setting: Setting, em: EditableModel, turn: int) -> float:
    facts = _rotated(_mixed(setting), turn)[: setting.options.batch]
    receipts: list[Receipt] = []
    seconds = common.clocked(lambda: receipts.extend(insert(em, facts, together=True)))()
    em.rollback([receipt.id for receipt in receipts])
    return seconds / len(facts)


def _mixed(setting: Setting) -> Sequence[Fact]:
    """What batches are taken from: the data, or the shipped facts, in which known and unseen names alternate."""
    return setting.facts if setting.options.data is not None else common.load_facts(None)


def _rotated(facts: Sequence[Fact], turn: int) -> Sequence[Fact]:
    start = (turn * 7) % len(facts)
    return [*facts[start:], *facts[:start]]


def _speed_found(times: Times, setting: Setting) -> dict[str, Any]:
    together = [[s for values in side.values() for s in values] for side in (times.textbook, times.single)]
    ratios = {
        f"one_edit_{kind}": common.ratio_of_medians(times.textbook[kind], times.single[kind], setting.rng)
        for kind in times.textbook
    }
    ratios["one_edit"] = common.ratio_of_medians(together[0], together[1], setting.rng)
    ratios["batch_per_edit"] = common.ratio_of_medians(together[0], times.batch, setting.rng, paired=False)
    sides = {
        **{f"textbook_{kind}": values for kind, values in times.textbook.items()},
        **{f"one_edit_{kind}": values for kind, values in times.single.items()},
        "textbook": together[0],
        "one_edit": together[1],
        f"batch_of_{setting.options.batch}_per_edit": times.batch,
    }
    return {
        "times": {name: common.spread(values).as_dict("s") for name, values in sides.items()},
        "ratios": {name: one.as_dict() for name, one in ratios.items()},
    }


def _show_speed(found: Mapping[str, Any]) -> None:
    rows = [(name, *one.values()) for name, one in found["times"].items()]
    common.print_table("seconds per edit", ("", "median", "p5", "p95", "count"), rows)
    rows = [(name, *one.values()) for name, one in found["ratios"].items()]
    common.print_table("times faster than the textbook loop", ("", "medians", "low", "high", "by pair"), rows)


# --- publish ---


def publish(setting: Setting, findings: Findings) -> None:
    """Publishing and rolling back with many edits present, without a log; the log's flush by itself."""
    found: dict[str, Any] = {}
    with setting.edited() as em:
        insert(em, setting.facts[:8], together=True)
        answers = [[*common.token_ids(setting.tokenizer, f.prompt, f.target)[1][0].tolist()] for f in setting.facts]
        end = setting.tokenizer.eos_token_id
        seconds = common.clocked(
            lambda: common.grow(em, setting.options.present, [[*a, end] for a in answers], setting.rng)
        )()
        progress(f"publish: {len(em.edits)} edits present after {seconds:.1f} s")
        times = _publish_times(setting, em)
        found["edits_present"] = len(em.edits)
        found["rollback_of_a_superseding_edit_ms"] = round(_superseding_seconds(em, setting.facts[0]) * 1e3, 3)
        progress("publish: a superseding edit rolled back")
    found |= {name: common.spread(values, 1e3).as_dict("ms") for name, values in times.items()}
    found["log_flush"] = common.spread(_flush_seconds(setting), 1e3).as_dict("ms")
    findings.parts["publish"] = found
    rows = [(name, *(one.values() if isinstance(one, dict) else [one])) for name, one in found.items()]
    common.print_table(
        f"with {found['edits_present']} edits present, milliseconds", ("", "median", "p5", "p95", "count"), rows
    )
    findings.most("publish (insert and publish), ms", found["insert_and_publish"]["median_ms"], 2.0)
    findings.most("rollback (forget and publish), ms", found["rollback"]["median_ms"], 2.0)


def _publish_times(setting: Setting, em: EditableModel) -> dict[str, list[float]]:
    """Learning apart: what is left is placing a learned patch among the others, publishing it, and taking it back."""
    name, editor = next(iter(em.editors.items()))
    spare = setting.facts[8:] or common.load_facts(None)[8:]
    times: dict[str, list[float]] = {"insert": [], "publish": [], "insert_and_publish": [], "rollback": []}
    for turn in range(setting.options.publish_rounds + 2):
        fact = spare[turn % len(spare)]
        receipt = em.edit(fact.edit, verify=False)
        learned = em._history.packed()[-1].patch
        meta = {key: value for key, value in learned.meta.items() if key != "placed"}  # as where it is new
        patch = Patch(receipt.id, learned.tensors, meta)
        rolled_back = common.clocked(lambda edit_id=receipt.id: em.rollback(edit_id))()  # type: ignore[misc]
        state = em._state_of(name)
        inserted = common.clocked(lambda p=patch, s=state: editor.insert(p, s))()  # type: ignore[misc]
        if turn >= 2:
            published = receipt.seconds["publish"]
            for key, value in zip(times, (inserted, published, inserted + published, rolled_back), strict=True):
                times[key].append(value)
    return times


def _superseding_seconds(em: EditableModel, fact: Fact) -> float:
    """Rolling back an edit that took another one's place: the other's ball has to be made again."""
    receipt = em.edit(Edit(fact.prompt, f"{fact.target} or not"), verify=False)
    return common.clocked(lambda: em.rollback(receipt.id))()


def _flush_seconds(setting: Setting) -> list[float]:
    with tempfile.TemporaryDirectory() as folder, setting.edited(log=Path(folder) / "edits.db") as em:
        return [receipt.seconds["log"] for receipt in insert(em, setting.facts[:8], together=False)]


# --- memory ---


def memory(setting: Setting, findings: Findings) -> None:
    """Growth of the resident set, and whose storage the learning copy stands over."""
    weights = sum(p.numel() * p.element_size() for p in setting.model.parameters())
    found: dict[str, Any] = {"weights_mb": round(weights / 1e6, 1)}
    with torch.no_grad():
        setting.model(input_ids=setting.ids(setting.questions[0]))
    with setting.edited() as em:
        for count in sorted({1, min(setting.options.batch, len(setting.facts)), len(setting.facts)}):
            peak, kept = _growth(lambda n=count: insert(em, setting.facts[:n], together=True))  # type: ignore[misc]
            found[f"peak_growth_{count}_edits_mb"], found[f"kept_{count}_edits_mb"] = peak, kept
        shadow = em._workshop.probe.model
        ours, theirs = [{t.data_ptr() for t in _tensors(m)} for m in (shadow, setting.model)]
        found["learning_copy_shares_all_storage"] = ours == theirs
    findings.parts["memory"] = found
    common.print_table("resident memory", ("", ""), list(found.items()))
    findings.least("learning copy shares all storage", float(found["learning_copy_shares_all_storage"]), 1.0)


def _tensors(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _growth(act: Callable[[], object]) -> tuple[float | None, float | None]:
    """Megabytes by which the resident set grew at most while `act` ran, and after it; None where it cannot be read."""
    before = _resident()
    if before is None:
        act()
        return None, None
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], _resident() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    act()
    done.set()
    watcher.join()
    return round((peak[0] - before) / 1e6, 1), round(((_resident() or 0) - before) / 1e6, 1)


def _resident() -> int | None:
    """Bytes of physical memory that this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _resident_by_psutil()
    import resource

    return pages * resource.getpagesize()


def _resident_by_psutil() -> int | None:
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


# --- stream ---


@dataclass(frozen=True)
class Heard:
    """One generation while edits came in: the prompt, its new tokens, and the versions just before and after."""

    prompt: str
    tokens: tuple[int, ...]
    first: int
    last: int


@dataclass
class Log:
    """What the generating threads heard, and what went wrong."""

    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def stream(setting: Setting, findings: Findings) -> None:
    """Threads generate while edits are submitted one after another."""
    count = min(setting.options.stream_edits, len(setting.facts))
    facts, log, done = setting.facts[:count], Log(), threading.Event()
    with setting.edited() as em:
        threads = [
            threading.Thread(target=_generate_on, args=(setting, em, _prompts(setting, facts, index), index, done, log))
            for index in range(setting.options.stream_threads)
        ]
        for thread in threads:
            thread.start()
        inserted = _submit_all(em, facts, setting.options.stream_seconds, log)
        done.set()
        for thread in threads:
            thread.join()
        progress(f"stream: {len(log.heard)} generations heard, checking them")
        impossible = _impossible(setting, em, log.heard)
    across = sum(one.first != one.last for one in log.heard)
    found = {
        "seconds": setting.options.stream_seconds,
        "threads": len(threads),
        "edits_published": inserted,
        "generations": len(log.heard),
        "generations_during_a_publication": across,
        "outputs_of_no_version": len(impossible),
        "errors": len(log.errors),
        "error_examples": log.errors[:3],
    }
    findings.parts["stream"] = found
    common.print_table("generating while edits come in", ("", ""), list(found.items()))
    findings.most("streaming: outputs of no published version", float(len(impossible)), 0.0)
    findings.most("streaming: errors", float(len(log.errors)), 0.0)


def _prompts(setting: Setting, facts: Sequence[Fact], index: int) -> list[str]:
    """Each thread asks about its own share of the facts, and some of the unrelated questions."""
    step = setting.options.stream_threads
    return [*(fact.prompt for fact in facts[index::step]), *setting.questions[index : 10 * step : step]]


def _generate_on(
    setting: Setting, em: EditableModel, prompts: Sequence[str], seed: int, done: threading.Event, log: Log
) -> None:
    order = random.Random(seed)
    while not done.is_set():
        prompt = order.choice(prompts)
        try:
            first = em.version
            tokens = _short(setting, em, prompt)
            log.heard.append(Heard(prompt, tokens, first, em.version))
        except Exception as error:  # counted and reported: that there are none is what is shown
            log.errors.append(f"{type(error).__name__}: {error}")


def _short(setting: Setting, em: EditableModel, prompt: str) -> tuple[int, ...]:
    return tuple(setting.plain(em).free(setting.ids(prompt), STREAMED_TOKENS).tolist())


def _submit_all(em: EditableModel, facts: Sequence[Fact], seconds: float, log: Log) -> int:
    """Evenly over the time; gives how many were published."""
    start, futures = time.perf_counter(), []
    for index, fact in enumerate(facts):
        time.sleep(max(0.0, start + index * seconds / len(facts) - time.perf_counter()))
        futures.append(em.submit(fact.edit))
    published = 0
    for future in futures:
        try:
            published += future.result().version <= em.version
        except Exception as error:
            log.errors.append(f"{type(error).__name__}: {error}")
    time.sleep(max(0.0, start + seconds - time.perf_counter()))
    return published


def _impossible(setting: Setting, em: EditableModel, heard: Sequence[Heard]) -> list[Heard]:
    """Generations that no version published between their beginning and their end gives."""
    known: dict[tuple[str, int], tuple[int, ...]] = {}

    def at(prompt: str, version: int) -> tuple[int, ...]:
        if (prompt, version) not in known:
            with em.at(version):
                known[prompt, version] = _short(setting, em, prompt)
        return known[prompt, version]

    return [h for h in heard if all(h.tokens != at(h.prompt, v) for v in range(h.first, h.last + 1))]


# --- all of it ---

RUN: Mapping[str, Callable[[Setting, Findings], None]] = {
    "memory": memory,
    "quality": quality,
    "unrelated": unrelated,
    "rollback": rollback,
    "speed": speed,
    "publish": publish,
    "stream": stream,
}


def options() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of: " + ", ".join(PARTS))
    parser.add_argument("--edits", type=int, default=100, help="facts to insert (default 100)")
    parser.add_argument("--questions", type=int, default=200, help="unrelated questions (default 200)")
    parser.add_argument("--published", type=int, default=100, help="facts for the published form; 0 leaves it out")
    parser.add_argument("--textbook", type=int, default=10, help="facts for the textbook's quality; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=32, help="edits in one batch where speed is measured")
    parser.add_argument("--speed-rounds", type=int, default=20, help="rounds, each one textbook edit (seconds)")
    parser.add_argument("--present", type=int, default=10_000, help="edits present in the part publish")
    parser.add_argument("--publish-rounds", type=int, default=20)
    parser.add_argument("--stream-seconds", type=float, default=60.0)
    parser.add_argument("--stream-edits", type=int, default=60)
    parser.add_argument("--stream-threads", type=int, default=2)
    chosen = parser.parse_args()
    unknown = set(chosen.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}, expected some of {', '.join(PARTS)}")
    return chosen


def draw(findings: Findings) -> Callable[[Any], None] | None:
    """Seconds per edit as bars, where the part `speed` ran."""
    if "speed" not in findings.parts:
        return None
    times = findings.parts["speed"]["times"]

    def bars(axes: Any) -> None:
        medians = [one["median_s"] for one in times.values()]
        below = [max(0.0, one["median_s"] - one["p5_s"]) for one in times.values()]
        above = [max(0.0, one["p95_s"] - one["median_s"]) for one in times.values()]
        axes.barh(list(times), medians, xerr=(below, above), color="tab:blue", ecolor="black", capsize=3)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_xlabel("seconds per edit (median, 5th to 95th percentile)")
        axes.set_title("Inserting an edit")

    return bars


def main() -> None:
    """Run the chosen parts and show what they found."""
    chosen = options()
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    common.print_card(card)
    facts = common.load_facts(chosen.data, chosen.edits)
    questions = common.load_questions(chosen.unrelated, chosen.questions)
    setting = Setting(model, tokenizer, facts, questions, chosen, np.random.default_rng(chosen.seed))
    findings = Findings()
    for part in (part for part in PARTS if part in chosen.parts.split(",")):
        progress(f"{part} ...")
        RUN[part](setting, findings)
    rows = [(b["figure"], b["value"], b["bar"], "yes" if b["met"] else "NO") for b in findings.bars]
    common.print_table("figures with a bar", ("", "value", "bar", "met"), rows)
    bars = draw(findings)
    image = common.plot(chosen.results / "insertion.png", bars) if bars else None
    document = {"benchmark": "insertion", "machine": card, "options": common.given(chosen), **findings.parts}
    common.print_json({**document, "bars": findings.bars, "plot": image})


if __name__ == "__main__":
    main()
