"""When edits go in and when they are scored; and that a killed run goes on to the very same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.asking import Asker
from editable.datasets.case import Case, Question
from editable.edited import EditedSystem
from editable.errors import InputError, StateError
from editable.journal import Journal
from editable.learn import shadow_of
from editable.protocols import Outcome, Protocol, key_of, run
from editable.scoring import Base
from tests.editable.parrot import Parrot
from tests.families import FAMILIES, Loaded

CASES = [Case(Edit(f"p{index}", f" a{index}"), (Question(f"r{index}"),), where=str(index)) for index in range(5)]


def outcome(system: Parrot, protocol: Protocol, cases: list[Case] = CASES, journal: Journal | None = None) -> Outcome:
    return run(system, cases, Base(Parrot()), protocol, ["unrelated"], journal)


# --- the order ---


def test_batches() -> None:
    assert Protocol("sequential").batches(3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert Protocol("sequential", 2).batches(5) == [range(0, 2), range(2, 4), range(4, 5)]
    assert Protocol("batch").batches(5) == [range(0, 5)]
    assert Protocol("single").batches(2) == [range(0, 1), range(1, 2)]
    assert Protocol("batch").batches(0) == []


def test_checkpoints_are_at_the_end_of_the_batch_that_reaches_them() -> None:
    assert Protocol().scored_after(1000) == [1, 10, 100, 1000]
    assert Protocol().scored_after(250) == [1, 10, 100, 250]
    assert Protocol("sequential", 32).scored_after(250) == [32, 128, 250]
    assert Protocol("batch").scored_after(250) == [250]
    assert Protocol("single").scored_after(250) == []
    assert Protocol(checkpoints=()).scored_after(7) == [7]
    assert Protocol().scored_after(0) == []


def test_immediate_scores_are_spread_evenly() -> None:
    assert Protocol(immediate=3).scored_at_once(9) == [range(0, 1), range(3, 4), range(6, 7)]
    assert Protocol("sequential", 2, immediate=3).scored_at_once(8) == [range(0, 2), range(4, 6)]
    assert Protocol(immediate=0).scored_at_once(9) == []
    assert len(Protocol(immediate=99).scored_at_once(9)) == 9
    assert len(Protocol().scored_at_once(9)) == 9
    assert Protocol("batch").scored_at_once(9) == []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: Protocol("parallel"),  # type: ignore[arg-type]
            r"Protocol.order is 'parallel', expected one of single, batch, sequential",
        ),
        (lambda: Protocol("sequential", 0), r"Protocol.batch_size is 0, expected at least 1 edit"),
        (lambda: Protocol("single", 4), r"Protocol.batch_size is 4 with order 'single', expected 1; only sequential"),
    ],
)
def test_protocols_that_make_no_sense(made: Callable[[], Protocol], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made()


# --- scores ---


def test_single_edits_start_from_a_clean_model() -> None:
    system = Parrot(room=1)
    found = outcome(system, Protocol("single"))
    assert system.batches == [0, 1] * 5
    assert found.checkpoints == ()
    assert [case.where for case in found.final.cases] == list("01234")
    assert found.final.summary()["success_rate_exact"] == 1.0
    assert "retention" not in found.summary()


def test_a_batch_goes_in_at_once() -> None:
    system = Parrot(room=2)
    found = outcome(system, Protocol("batch"))
    assert system.batches == [5]
    assert [checkpoint.edits for checkpoint in found.checkpoints] == [5]
    assert found.final.summary()["success_rate_exact"] == pytest.approx(2 / 5)
    assert found.batches == (5,)
    assert found.numbers == 50


def test_sequential_edits_are_right_at_once_and_forgotten_later() -> None:
    found = outcome(Parrot(room=2), Protocol(checkpoints=(1, 2, 4)))
    assert [case.own.exact for case in found.immediate.cases] == [1.0] * 5
    kept = [(c.edits, c.scores.summary()["success_rate_exact"]) for c in found.checkpoints]
    assert kept == [(1, 1.0), (2, 1.0), (4, 0.5), (5, pytest.approx(2 / 5))]
    assert [case.own.exact for case in found.final.cases] == [0, 0, 0, 1, 1]
    assert found.summary()["retention"]["success_rate"]["exact"] == pytest.approx(2 / 5)
    assert set(found.summary()["checkpoints"]) == {"1", "2", "4", "5"}
    assert len(found.insert_seconds) == 5


def test_unrelated_inputs_are_looked_at_at_every_checkpoint() -> None:
    system = Parrot(spoils=["unrelated"])
    found = outcome(system, Protocol(checkpoints=(1,)))
    kl = [checkpoint.unrelated[0].kl_nats for checkpoint in found.checkpoints]
    assert 0 < kl[0] < kl[1]
    assert not found.checkpoints[0].unrelated[0].bit_equal


def test_editors_draw_the_same_whatever_was_drawn_before() -> None:
    drawn: list[float] = []
    for _ in range(2):
        torch.rand(3)
        outcome(Parrot(before_insert=lambda _: drawn.append(float(torch.rand(())))), Protocol("sequential", 2))
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


def test_a_system_that_holds_edits_already_is_refused() -> None:
    system = Parrot()
    system.insert([Edit("x", " y")])
    with pytest.raises(StateError, match=r"System 'parrot' holds 1 edits, expected none at the start; reset\(\) it"):
        outcome(system, Protocol())


# --- going on after a kill ---


class Killed(BaseException):
    """What a kill does, as far as Python code can see it."""


def kill_at(held: int) -> Callable[[int], None]:
    def check(now: int) -> None:
        if now >= held:
            raise Killed

    return check


ORDERS = [Protocol(checkpoints=(1, 3)), Protocol("sequential", 2), Protocol("single"), Protocol(immediate=2)]


@pytest.mark.parametrize("protocol", ORDERS, ids=str)
@pytest.mark.parametrize("survives", [True, False], ids=["edits kept", "edits lost"])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, protocol: Protocol, survives: bool) -> None:
    whole = outcome(Parrot(room=2, spoils=["unrelated"]), protocol)
    path = tmp_path / "parts.jsonl"
    system = Parrot(room=2, spoils=["unrelated"])
    inserted = iter(range(100))
    system.before_insert = lambda _: kill_at(2)(next(inserted))
    with pytest.raises(Killed):
        outcome(system, protocol, journal=Journal(path, "k"))
    continued = system if survives else Parrot(room=2, spoils=["unrelated"])
    continued.before_insert = lambda _: None
    held = continued.held
    found = outcome(continued, protocol, journal=Journal(path, "k"))
    assert found.summary() == whole.summary()
    if survives and protocol.order != "single":
        assert held > 0
        assert sum(continued.batches) == 5  # nothing went in twice


def test_a_kill_while_scoring(tmp_path: Path) -> None:
    many = [Case(Edit(f"p{index}", f" a{index}"), where=str(index)) for index in range(70)]
    path = tmp_path / "parts.jsonl"
    system = Parrot()
    asked = iter(range(100))

    def dies(prompts: object, most: object) -> list[object]:
        if next(asked) == 1:
            raise Killed
        return Parrot.free(system, prompts, most)  # type: ignore[arg-type, return-value]

    system.free = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        outcome(system, Protocol("batch"), many, Journal(path, "k"))
    kept = [json.loads(line)["part"] for line in path.read_text().splitlines()]
    assert kept[1:] == ["all, 70 held: cases 0"]  # after the seconds of the insertion
    found = outcome(system, Protocol("batch"), many, Journal(path, "k"))
    assert found.summary() == outcome(Parrot(), Protocol("batch"), many).summary()
    assert system.batches == [70]


def test_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "parts.jsonl"
    whole = outcome(Parrot(), Protocol(), journal=Journal(journal, "k"))
    idle = Parrot(before_insert=kill_at(0))
    assert outcome(idle, Protocol(), journal=Journal(journal, "k")) == whole


def test_more_edits_than_the_missing_part_needs_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    system = Parrot(room=2)
    whole = outcome(system, Protocol(checkpoints=(2,)), journal=Journal(path, "k"))
    lines = [line for line in path.read_text().splitlines() if '"all, 2 held: cases 0"' not in line]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert outcome(system, Protocol(checkpoints=(2,)), journal=Journal(path, "k")) == whole


# --- a real system ---


@pytest.fixture
def loaded() -> Loaded:
    return FAMILIES[1].load()


def real_cases(loaded: Loaded) -> list[Case]:
    texts = zip(loaded.edited, map(str, loaded.targets), strict=True)
    locality = (Question(loaded.unrelated[0], (" west",)),)
    return [Case(Edit(text, target), (Question(f"{text} now"),), locality, before=" yankee") for text, target in texts]


def real(loaded: Loaded, log: Path, journal: Journal, kill_before: int | None = None) -> Outcome:
    """Three edits and three edits, into a log."""
    cases = real_cases(loaded)
    base = Base(Asker(shadow_of(loaded.model), loaded.tokenizer))
    with EditableModel(loaded.model, loaded.tokenizer, editor=GRACE(), log=log) as em:
        system = EditedSystem(em, "grace", rows=4)
        if kill_before is not None:
            insert = system.insert
            system.insert = lambda edits: kill_at(kill_before)(system.held) or insert(edits)  # type: ignore[method-assign]
        return run(system, cases, base, Protocol("sequential", 2), loaded.unrelated, journal)


def test_a_killed_editor_goes_on_from_its_log(loaded: Loaded, tmp_path: Path) -> None:
    whole = real(loaded, tmp_path / "whole.db", Journal(tmp_path / "whole.jsonl", "k"))
    assert whole.final.summary()["success_rate_exact"] == 1.0
    assert whole.final.summary()["bit_equal_share"] == 1.0
    with pytest.raises(Killed):
        real(loaded, tmp_path / "killed.db", Journal(tmp_path / "killed.jsonl", "k"), kill_before=4)
    found = real(loaded, tmp_path / "killed.db", Journal(tmp_path / "killed.jsonl", "k"))
    assert found.summary() == whole.summary()
    assert [asdict(case) for case in found.final.cases] == [asdict(case) for case in whole.final.cases]
    assert found.numbers == whole.numbers


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in ("t5", "vit", "bert")], ids=lambda f: f.name)
@pytest.mark.parametrize("order", ["single", "batch", "sequential"])
def test_every_kind_of_model_goes_through_every_protocol(family: object, order: str) -> None:
    loaded = family.load()  # type: ignore[attr-defined]
    pairs = list(zip(loaded.edited, loaded.targets, strict=True))[:3]
    label = int(loaded.logits([loaded.unrelated[0]]).argmax()) if not loaded.family.generates else " west"
    locality = (Question(loaded.unrelated[0], (label,)),)
    cases = [Case(Edit(prompt, target), (), locality) for prompt, target in pairs]
    base = Base(Asker(shadow_of(loaded.model), loaded.tokenizer))
    with EditableModel(loaded.model, loaded.tokenizer, editor=GRACE()) as em:
        found = run(EditedSystem(em, "grace"), cases, base, Protocol(order), loaded.unrelated)  # type: ignore[arg-type]
    summary = found.final.summary()
    assert (summary["success_rate_forced"], summary["success_rate_exact"]) == (1.0, 1.0)
    assert summary["bit_equal_share"] == 1.0
    assert summary["drawdown_exact"] == 0.0
    for checkpoint in found.checkpoints:
        assert all(drift.bit_equal for drift in checkpoint.unrelated)


# --- the key ---


def test_the_key_depends_on_everything_that_numbers_depend_on() -> None:
    image = torch.zeros(3, 2, 2)
    cases = [
        Case(Edit("p", " a")),
        Case(Edit("p", " b")),
        Case(Edit("p", " a"), rephrases=(Question("q"),)),
        Case(Edit("p", " a"), locality=(Question("q"),)),
        Case(Edit("p", " a"), locality=(Question("q", (" x",)),)),
        Case(Edit("p", " a"), before=" b"),
        Case(Edit("p", " a", rephrases=["q"])),
        Case(Edit(image, 1)),
        Case(Edit(image + 1, 1)),
    ]
    keys = [key_of([case], [], seed=0) for case in cases]
    keys += [key_of(cases[:1], ["u"], seed=0), key_of(cases[:1], [], seed=1), key_of(cases[:2], [], seed=0)]
    assert len(set(keys)) == len(keys)
    assert key_of([Case(Edit("p", " a"), where="elsewhere")], [], seed=0) == keys[0]
