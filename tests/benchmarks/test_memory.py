"""The memory benchmark: keys made by hand-checkable rules, answers compared with a plain loop, figures summed up right.

Never how long anything took.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editable import Edit
from editable.adapters import GRACE
from editable.benchmarks import common, memory
from editable.benchmarks.memory import (
    books,
    forward,
    keys,
    lookup,
    readers,
    reopen,
    room,
    scan,
    sentences,
    switch,
    writes,
)
from editable.benchmarks.memory.books import KINDS, PROBED, Filled
from editable.benchmarks.memory.forward import Timed
from editable.benchmarks.memory.keys import Real
from editable.benchmarks.memory.setting import Setting, Tail
from editable.benchmarks.prompts import Prompts
from editable.benchmarks.report import Table
from editable.datasets import Case, Question
from editable.memory import index
from editable.memory.radius import Codebook, Placed
from editable.memory.scope import Phrase
from tests.benchmarks.conftest import FACTS, printed
from tests.families import PROMPTS, TARGETS, Loaded
from tests.words import Words as WordsEncoder

# --- keys ---


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real(groups: Sequence[Tensor], radius: float = 1.0) -> Real:
    """Groups of keys (m, features), as they are."""
    ends = np.cumsum([0, *map(len, groups)])
    rows = [torch.arange(start, end) for start, end in pairwise(ends)]
    return Real(torch.cat(list(groups)), rows, torch.full((3, groups[0].shape[1]), 1e3), radius, GRACE(values="single"))


@pytest.fixture
def two() -> Real:
    """Twelve keys on a line through the origin, and four far away that are one and the same."""
    line = torch.zeros(12, 5)
    line[:, 0] = torch.arange(12.0)
    return real([line, torch.full((4, 5), 100.0)])


def made(source: Real, count: int, seed: int = 0) -> Tensor:
    return torch.cat(list(source.made(count, generator(seed))))


def test_a_made_key_is_its_groups_mean_and_deviations_of_members(two: Real) -> None:
    """On the line there are deviations along it only; where all members are one, that one is made."""
    found = made(two, 200)
    far = found[:, 1] > 50
    assert torch.equal(found[far], torch.full((int(far.sum()), 5), 100.0))
    assert bool((found[~far, 1:] == 0).all())
    assert len(found[~far, 0].unique()) > 100
    assert float(found[~far, 0].mean()) == pytest.approx(5.5, abs=1)
    assert float(found[~far, 0].std()) == pytest.approx(3.45, abs=1)  # that of 0 to 11


def test_large_groups_give_more_keys(two: Real) -> None:
    assert float((made(two, 4000)[:, 1] > 50).float().mean()) == pytest.approx(4 / 16, abs=0.03)


def test_keys_come_in_parts_and_the_same_seed_gives_the_same(two: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CHUNK", 30)
    assert [len(part) for part in two.made(70, generator())] == [30, 30, 10]
    assert torch.equal(made(two, 70), made(two, 70))
    assert not torch.equal(made(two, 70), made(two, 70, seed=1))


def test_prompts_of_one_template_are_alike_and_the_others_are_clustered() -> None:
    """Eight of one template; twenty by themselves at two places."""
    places = torch.cat([torch.randn(8, 3), torch.zeros(10, 3), torch.full((10, 3), 50.0)])
    groups = keys.alike(places, ["... is"] * 8 + [f"once {row}" for row in range(20)])
    assert groups[0].tolist() == list(range(8))
    assert sorted(torch.cat(groups).tolist()) == list(range(28))
    assert all(len(group) > 1 for group in groups)
    few = keys.alike(places[:3], ["a", "b", "c"])
    assert sorted(torch.cat(few).tolist()) == [0, 1, 2]


def test_a_prompts_template_is_what_is_left_without_its_subject() -> None:
    case = Case(Edit("Rome is in", " Spain", subject="Rome"), rephrases=(Question("Where is Rome?"), Question(" ")))
    assert dict(keys._said([case])) == {"Rome is in": "... is in", "Where is Rome?": "Where is ...?"}
    assert dict(keys._said([Case(Edit("Rome is in", " Spain"))])) == {"Rome is in": "Rome is in"}


def test_distances_to_the_nearest_other_key() -> None:
    """0, 1, 3, 7, 15 on a line: 1, 1, 2, 4, 8 away."""
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])
    found = keys.neighbour_distances(line, generator())
    assert found == pytest.approx([1.0, 1.0, 2.0, 4.0, 7.2])  # of 0 to 4 the places .2, 1, 2, 3, 3.8


# --- scanning ---


@pytest.fixture
def book() -> Codebook:
    """On a line: a ball of radius 1 at 0, and two of radius 5 at 10 and 20, which touch."""
    made = Codebook.empty(2, 0.0)
    for row, (place, radius) in enumerate([((0.0, 0.0), 1.0), ((10.0, 0.0), 5.0), ((20.0, 0.0), 5.0)]):
        made = made.add(torch.tensor(place), row, str(row), radius)
    return made


QUERIES = torch.tensor([[0.5, 0.0], [15.0, 0.0], [5.0, 9.0], [2.0, 0.0], [float("nan"), 0.0], [10.0, 0.0]])


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_plain_loop_by_hand(book: Codebook, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are equally near the latest; nothing in no ball, and nothing for what is no place."""
    monkeypatch.setattr(scan, "CHUNK", chunk)
    row, share = scan.scanned(book, QUERIES)
    assert share.tolist() == [0.5, 1.0, torch.inf, torch.inf, torch.inf, 0.0]
    assert row[share <= 1].tolist() == [0, 2, 1]
    assert scan.differing(book.find(QUERIES), (row, share)) == 0


def test_the_loop_passes_over_what_is_forgotten(book: Codebook) -> None:
    row, share = scan.scanned(book.forget(frozenset({"2"})), QUERIES)
    assert share.tolist() == [0.5, 1.0, torch.inf, torch.inf, torch.inf, 0.0]
    assert row[share <= 1].tolist() == [0, 1, 1]


@pytest.mark.parametrize("way", [scan.Product, scan.Cdist])
def test_the_other_scans_find_the_same(book: Codebook, way: Any) -> None:
    other = way(book)
    expected = scan.scanned(book, QUERIES[[0, 2, 3, 5]])
    found = [other.find(query[None]) for query in QUERIES[[0, 2, 3, 5]]]
    shares = torch.cat([share for _, share in found])
    torch.testing.assert_close(shares, expected[1], rtol=1e-3, atol=1e-3)
    assert [int(row) for (row, _), hit in zip(found, expected[1] <= 1, strict=True) if hit] == [0, 1]


def test_answers_differ_in_whether_how_deep_and_where() -> None:
    expected = (torch.tensor([0, 1, 2, 3]), torch.tensor([0.5, 0.5, 0.5, torch.inf]))
    rows, shares = torch.tensor([0, 7, 2, 9]), torch.tensor([0.5, 0.5, 0.25, torch.inf])
    assert scan.differing(expected, expected) == 0
    assert scan.differing((rows, shares), expected) == 2  # the row of a miss does not count


# --- books ---


def chosen(**given: Any) -> argparse.Namespace:
    known = {"searched": 100, "writes": 20, "store": "memory", "seed": 0, "repeats": 1, "scans": 2, "seconds": 0.4}
    return argparse.Namespace(**known | {"writes_per_second": 200.0, "forwards": 2, **given})


@pytest.fixture
def clouds() -> Real:
    return real([torch.randn(20, 6, generator=generator(seed)) + 20 * seed for seed in range(4)], radius=0.5)


def test_a_book_of_keys_placed_by_searching(clouds: Real) -> None:
    found = books.filled(clouds, 60, 3, chosen())
    assert (found.count, found.width, found.asked, found.raw_bytes) == (60, 6, 3 * PROBED, 60 * 6 * 4)
    assert (found.radius, len(found.spare)) == (0.5, 20)
    assert float(found.book.radii.max()) == 0.5
    assert float(found.book.radii.min()) < 0.5  # some were split
    shares = {kind: found.book.find(queries)[1] <= 1 for kind, queries in found.queries.items()}
    assert list(shares) == list(KINDS)
    assert bool(shares["hit"].all())
    assert not bool(shares["unrelated"].any())


def test_a_large_book_has_known_placements_and_half_the_neighbours_distance(clouds: Real) -> None:
    found = books.filled(clouds, 60, 3, chosen(searched=10))
    (radius,) = set(found.book.radii.tolist())
    assert {placed.kind for placed in found.book.placed} == {"add"}
    keys_of_it = found.book.keys.view
    apart = torch.cdist(keys_of_it, keys_of_it).fill_diagonal_(torch.inf).amin(dim=1)
    assert 0.5 < 2 * radius / float(apart.median()) < 2
    assert found.radius == 0.5  # with which more are inserted


def test_the_same_seed_makes_the_same_book(clouds: Real) -> None:
    one, again = (books.filled(clouds, 30, 3, chosen()) for _ in range(2))
    assert torch.equal(one.book.keys.view, again.book.keys.view)
    assert torch.equal(one.book.radii, again.book.radii)


def test_memory_that_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "resident_bytes", lambda: None)
    assert books.resident_bytes() is None
    assert books.grown_since(5) is None
    monkeypatch.setattr(common, "resident_bytes", lambda: 12)
    assert books.grown_since(None) is None
    assert books.grown_since(5) == 7


# --- parts, from figures made by hand ---


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.cells}


def test_tails_by_hand() -> None:
    tail = Tail.of([0.001] * 99 + [0.101])
    assert (tail.p50, tail.count) == (1.0, 100)
    assert tail.mean == pytest.approx(2.0)
    assert tail.p99 == pytest.approx(2.0)  # a hundredth of the way from the 99th to the 100th
    assert tail.as_dict() == {"mean_ms": 2.0, "p50_ms": 1.0, "p99_ms": 2.0, "count": 100}
    assert tail.cells == (tail.mean, tail.p50, tail.p99)


def test_lookups_are_shown_beside_the_scans_and_differences_counted() -> None:
    ours = {kind: Tail(1.0, 2.0, 3.0, 4) for kind in KINDS}
    seconds = {"ours": [0.001, 0.003], "matrix product": [0.01, 0.03], "torch.cdist": [0.1, 0.3]}
    shares = dict.fromkeys(KINDS, 0.25)
    part = lookup.part({n: lookup.Found(ours, seconds, shares, n // 10, 16) for n in (0, 10)})
    assert rows(part.tables[0])["10 keys, near miss"] == ["1", "2", "3", "0.25"]
    assert rows(part.tables[1])["10 keys"] == ["2", "20", "200"]
    assert part.quality["10 keys"] == {"hit_share": shares, "decisions_differing": 1}
    (bar,) = part.bars
    assert (bar.figure, bar.value, bar.met) == ("decisions of 32 that differ from a plain loop's", 1, False)
    assert part.timing["10 keys"]["in_turn"]["torch.cdist"]["median_ms"] == 200.0


def test_forwards_have_a_bar_where_one_is_set_and_decode_steps_everywhere() -> None:
    timed = Timed({"base": [0.1, 0.1], "edited": [0.103, 0.103]}, 1.005)
    found = {n: {"prefill with one lookup, hit": timed, "decode with GRACE": timed} for n in (500, 1_000, 1_000_000)}
    part = forward.part(found)
    assert {(bar.figure, bar.bar): bar.met for bar in part.bars} == {
        ("500 keys, decode with GRACE", 1.01): False,
        ("1000 keys, prefill with one lookup, hit", 1.01): False,
        ("1000 keys, decode with GRACE", 1.01): False,
        ("1000000 keys, prefill with one lookup, hit", 1.05): True,
        ("1000000 keys, decode with GRACE", 1.01): False,
    }
    row = rows(part.tables[0])["500 keys, decode with GRACE"]
    assert row == ["100", "103", "1.03", "1.03", "1.03", "1.03", "1.005"]
    assert part.timing["500 keys"]["decode with GRACE"]["recorded_ratio"] == 1.005


def test_changes_have_bars_in_large_books_only() -> None:
    tail = Tail(0.5, 0.1, 11.0, 9)
    part = writes.part({1_000: {"forget": tail}, 10_000: {"forget": tail}})
    assert {bar.figure: (bar.bar, bar.met) for bar in part.bars} == {
        "10000 keys, forget, mean ms": (1.0, True),
        "10000 keys, forget, p99 ms": (10.0, False),
    }
    assert rows(part.tables[0])["1000 keys, forget"] == ["0.5", "0.1", "11"]


def taken(book: int | None, store: str = "memory") -> room.Found:
    """Raw keys of 1 MB, values of 0.5 MB, versions that take 3 and 1 MB for 1 MB of keys."""
    versions = {"place looked for": 3_000_000, "place known": 1_000_000}
    return room.Found(1_000_000, 500_000, book, versions, 1_000_000, store)


def test_memory_is_held_against_raw_keys_and_values() -> None:
    assert taken(1_300_000).share == 1.2  # 1.3 + 0.5 over 1 + 0.5
    part = room.part({100_000: taken(1_300_000), 1_000_000: taken(100_000, "disk")})
    assert rows(part.tables[0])["100000 keys"] == ["1", "0.5", "1.3", "1.2"]
    assert rows(part.tables[1])["100000 keys, place looked for"] == ["3", "1", "3"]
    bars = {bar.figure: (bar.value, bar.bar, bar.met) for bar in part.bars}
    assert bars["1000000 keys in disk, book and values / raw"] == (0.4, 0.4, True)
    assert bars["100000 keys, 1000 versions kept, place looked for, of what was inserted"] == (3.0, 1.0, False)
    assert bars["100000 keys, 1000 versions kept, place known, of what was inserted"] == (1.0, 1.0, True)
    assert "100000 keys in memory, book and values / raw" not in bars


def test_memory_that_is_not_known_meets_no_bar() -> None:
    assert taken(None).share is None
    part = room.part({1_000_000: taken(None)})
    assert rows(part.tables[0])["1000000 keys"] == ["1", "0.5", "-", "-"]
    assert {bar.figure: bar.met for bar in part.bars}["1000000 keys in memory, book and values / raw"] is False


def test_readers_are_compared_window_by_window_and_torn_answers_counted() -> None:
    found = readers.Found([[0.001] * 10] * 2, [[0.002] * 10] * 2, written=30, checked=8, torn=0, asked_seconds=3.0)
    torn = readers.Found([[0.001] * 10] * 2, [[0.001] * 10] * 2, written=0, checked=8, torn=1, asked_seconds=3.0)
    part = readers.part({10: found, 20: torn})
    assert {bar.figure: (bar.value, bar.met) for bar in part.bars} == {
        "answers of 16 that no published version gives": (1, False),
        "10 keys, readers' p99 with a writer / without": (2.0, False),
        "20 keys, readers' p99 with a writer / without": (1.0, True),
    }
    assert part.quality == {"torn_answers": 1}
    assert rows(part.tables[0])["10 keys"] == ["1", "1", "1", "2", "2", "2", "2", "10"]


def test_an_answer_is_torn_if_its_own_version_does_not_give_it(book: Codebook) -> None:
    query = torch.tensor([15.0, 0.0])
    assert readers._torn((book, query, book.find(query[None]))) == 0
    without = book.forget(frozenset({"2"}))
    assert readers._torn((without, query, book.find(query[None]))) == 1


# --- parts, measured ---


@pytest.fixture
def setting(tiny: Loaded, clouds: Real) -> Setting:
    ids = torch.tensor([tiny.tokenizer(PROMPTS[0])["input_ids"]])
    given = Prompts(ids, ids, [Edit(PROMPTS[0], TARGETS[0])], 1)
    return Setting(tiny.model, tiny.tokenizer, given, clouds, chosen(), np.random.default_rng(0))


@pytest.fixture
def few(clouds: Real) -> Filled:
    return books.filled(clouds, 40, 5, chosen())


def test_what_a_lookup_is_measured_on(setting: Setting, few: Filled) -> None:
    found = lookup.measure(setting, few)
    assert (found.differing, found.checked) == (0, 3 * lookup.CHECKED)
    assert found.hit_share["hit"] == 1.0
    assert {kind: tail.count for kind, tail in found.ours.items()} == dict.fromkeys(KINDS, PROBED)
    assert {name: len(seconds) for name, seconds in found.scans.items()} == dict.fromkeys((*lookup.SCANS, "ours"), 2)


def test_changes_leave_the_book_as_it_was(setting: Setting, few: Filled) -> None:
    before = few.book.find(few.queries["hit"])
    found = writes.measure(setting, few)
    together = "insert 32 at once, places looked for, each"
    assert {what: tail.count for what, tail in found.items()} == dict.fromkeys(found, 20) | {together: 32}
    assert all(torch.equal(*pair) for pair in zip(before, few.book.find(few.queries["hit"]), strict=True))
    assert len(few.book) == 40


def test_versions_take_what_they_do_not_share(few: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each must take something; twice as many take about twice that, and not four times, as copies would."""
    taken_by = []
    for count in (200, 400):
        monkeypatch.setattr(room, "VERSIONS", count)
        taken_by.append(room._taken_by_versions(few, Placed("add")))
    assert taken_by[0] > 200 * 100
    assert 1.5 < taken_by[1] / taken_by[0] < 3


def test_a_slow_chain_of_changes_goes_no_further(few: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "LONGEST_S", 0.0)
    writer = writes.Writer(few.book).go_on([lambda book: book.forget(frozenset({"0"})), lambda _: few.book])
    assert len(writer.seconds) == 1
    assert writer.book.owners[0] is None


def test_readers_find_no_torn_answer_and_the_writer_writes(setting: Setting, few: Filled) -> None:
    found = readers.measure(setting, few)
    assert found.torn == 0
    assert found.checked > 0
    assert found.written > 0
    assert len(found.alone) == len(found.beside) == readers.WINDOWS
    assert found.asked_seconds == pytest.approx(0.2)


def test_a_state_of_grace_holds_the_book(few: Filled) -> None:
    state = forward.entries(few, token=3)
    assert len(state) == 40
    assert state.routes.book.codebook is few.book
    assert state.spans.view.tolist() == state.routes.spans.view.tolist() == [[0, 1]] * 40
    assert state.values.view.shape == (1, 5)
    assert state.routes.answers.view.tolist() == [3]
    assert state.routes.openings.ending(np.array([[9, 3]]), np.array([1]), 1).tolist() == [[True]]


def test_a_log_that_is_written_is_opened_with_all_its_edits(setting: Setting, tmp_path: Path) -> None:
    reopen.write(tmp_path / "edits.db", setting, 25)
    history = reopen.opened(tmp_path / "edits.db", setting, 25)
    book = history.start.states["grace"].routes.book.codebook
    assert len(book) == 25
    assert torch.equal(book.keys.view, made(setting.real, 25))
    assert set(book.radii.tolist()) == {0.125}
    with pytest.raises(ValueError, match=r"^25 edits in the log, expected 26$"):
        reopen.opened(tmp_path / "edits.db", setting, 26)


# --- the whole ---


@pytest.fixture
def fewer_versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room, "VERSIONS", 10)
    yield


@pytest.mark.usefixtures("fewer_versions")
@pytest.mark.parametrize("which", ["wide", "residual"])
def test_every_part_on_a_tiny_model(
    which: str, tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--counts 20,50 --searched 30 --repeats 1 --scans 2 --forwards 2 --writes 5 --seconds 0.4 --reopen 8"
    parts = ",".join(name for name in memory.PARTS if name not in ("switch", "sentences"))  # thousands of keys
    options = [*tiny_options, "--keys", which, *small.split(), "--reopen-rounds", "2", "--results", str(tmp_path)]
    memory.main([*options, "--parts", parts])
    found = printed(capsys)
    assert found["quality"]["readers"] == {"torn_answers": 0}
    for count in ("20 keys", "50 keys"):
        assert found["quality"]["lookup"][count]["decisions_differing"] == 0
        assert found["quality"]["lookup"][count]["hit_share"]["hit"] == 1.0
        assert set(found["timing"]["forward"][count]) == {
            "prefill with one lookup, own activation",
            "prefill with one lookup, hit",
            "prefill with GRACE",
            "decode with GRACE",
        }
    assert set(found["timing"]) == {"lookup", "forward", "writes", "room", "readers", "reopen", "bars_met"}
    assert found["timing"]["reopen"]["8 edits"]["count"] == 2
    assert "24 made" in found["quality"]["neighbours"]["distances"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html", ".png"}


def test_one_part_alone(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.main([*tiny_options, "--parts", "reopen", "--reopen", "3", "--results", str(tmp_path)])
    assert set(printed(capsys)["timing"]) == {"reopen", "bars_met"}


def test_parts_come_in_their_order_and_unknown_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.parts("reopen,lookup") == ["lookup", "reopen"]
    with pytest.raises(SystemExit):
        memory.options(["--parts", "lookup,speed"])
    said = capsys.readouterr().err
    assert "unknown parts speed, expected some of lookup, forward, writes, room, readers, switch, reopen" in said


def test_the_switch_is_looked_for_around_it(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SCANNED", 40 * setting.real.keys.shape[1])
    part = switch.run(setting)
    assert list(part.timing) == [f"{count} keys" for count in (10, 20, 40, 80, 160, 320)]
    assert all(0 < one["low"] <= one["high"] for one in part.timing.values())
    assert "comes with 40 keys" in part.tables[0].title


# --- sentences ---


def test_a_made_phrase_is_near_a_real_one_and_about_somebody_else() -> None:
    (read,) = WordsEncoder().encode(["The home of Oscar is"])
    real = Phrase.of(read, "Oscar")
    made = list(islice(sentences.made_phrases([real], seed=0), 20))
    assert [one.text for one in made] == [f"The home of {one.subject} is" for one in made]
    assert len({one.subject for one in made}) > 15
    cosines = [float((one.vectors[0].astype(float) * real.vectors[0]).sum()) for one in made]
    assert np.mean(cosines) == pytest.approx(1 / np.sqrt(1 + sentences.APART**2), abs=0.05)


def test_books_of_sentences_grow_to_each_count() -> None:
    cases = [Case(Edit(f"The home of {name} is", " x", subject=name)) for name in ("Oscar", "Maria", "Juliett")]
    made = {count: len(book) for count, book in sentences._books(cases, [2, 5, 9], WordsEncoder(), seed=0)}
    assert made == {2: 2, 5: 5, 9: 9}


def test_the_part_of_sentences(
    tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editable.encoders.load", lambda _: WordsEncoder())
    options = ["--parts", "sentences", "--counts", "5,20", "--repeats", "1", "--results", str(tmp_path)]
    memory.main([*tiny_options, *options])
    found = printed(capsys)["timing"]["sentences"]
    assert set(found) == {"5 phrases", "20 phrases", "encoder"}
    assert found["20 phrases"]["rephrases"]["count"] == FACTS


def test_the_largest_book_is_compared_with_the_first_of_a_thousand() -> None:
    tails = {10: 1.0, 1000: 2.0, 10_000: 3.0, 100_000: 5.0}
    found = {count: {"rephrases": Tail(p50, p50, p50, 1)} for count, p50 in tails.items()}
    part = sentences.part(found, Tail(9.0, 9.0, 9.0, 1))
    assert [(bar.figure, bar.value, bar.met) for bar in part.bars] == [
        ("look-up of rephrases among 100000 phrases over 1000", 2.5, False)
    ]
    assert part.timing["encoder"]["p50_ms"] == 9.0
    assert sentences.part({10: found[10]}, Tail(9.0, 9.0, 9.0, 1)).bars == []
