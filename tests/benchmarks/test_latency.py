"""The latency benchmark on a tiny model: what is counted and how it is summed up; never how long anything took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.benchmarks import common, latency, timing
from editable.benchmarks.latency import Cell, Findings, Pair
from editable.errors import InputError
from editable.learn import shadow_of
from tests.benchmarks.conftest import printed
from tests.families import FAMILIES, PROMPTS, TARGETS, Loaded


def cell(act: str, batch: int, edits: int, kind: str, edited: float, hit: float = 0.0) -> Cell:
    """Made by hand: the base takes 0.1 and 0.2 s, the edited side so many times that."""
    ratio = timing.Ratio(edited, edited - 0.1, edited + 0.1, edited)
    seconds = {"base": [0.1, 0.2], "edited": [0.1 * edited, 0.2 * edited]}
    return Cell(act, batch, edits, kind, seconds, ratio, 1.01, hit)


def findings(*cells: Cell) -> Findings:
    counts = dict.fromkeys(one.edits for one in cells)
    return Findings(list(cells), {c: 1000 * c for c in counts}, {c: 5_000_000 + 2_000_000 * c for c in counts})


# --- what is made of the times ---


def test_tokens_per_second_come_from_medians() -> None:
    assert cell("decode", 8, 0, "miss", 2.0).tokens_per_second == {"base": 53.33, "edited": 26.67}  # 8 / 0.15 s
    assert cell("generate", 1, 0, "miss", 1.0).tokens_per_second == {"base": 133.33, "edited": 133.33}  # 20 / 0.15 s
    assert cell("prefill", 8, 0, "miss", 1.0).tokens_per_second is None


def test_a_cell_in_the_document() -> None:
    found = cell("decode", 1, 10, "hit", 2.0)
    assert found.where == ("decode, batch 1", "10 edits, hit")
    assert found.as_dict()["ratio"] == {"ratio": 2.0, "low": 1.9, "high": 2.1, "paired": 2.0}
    assert found.as_dict()["base"]["median_ms"] == 150.0
    assert found.as_dict()["edited"]["median_ms"] == 300.0
    assert found.as_dict()["recorded_ratio"] == 1.01


def test_what_repeats_is_kept_apart_from_what_does_not() -> None:
    found = findings(cell("prefill", 1, 0, "miss", 1.0), cell("prefill", 1, 10, "hit", 1.5, hit=1.0))
    assert latency.quality(found) == {
        "forwards_hit_share": {"prefill, batch 1": {"0 edits, miss": 0.0, "10 edits, hit": 1.0}},
        "editor_tensor_bytes": {"0 edits": 0, "10 edits": 10_000},
    }
    times = latency.times(found)
    assert set(times["prefill, batch 1"]) == {"0 edits, miss", "10 edits, hit"}
    assert times["process_resident_bytes"] == {"0 edits": 5_000_000, "10 edits": 25_000_000}


def test_tables_show_every_cell_and_how_memory_grew() -> None:
    found = findings(cell("prefill", 1, 0, "miss", 1.0), cell("decode", 8, 10, "hit", 1.5, hit=0.5))
    times, memory, _ = latency.tables(found)
    assert times.cells[1] == [
        "decode",
        "8",
        "10",
        "hit",
        "150",
        "225",
        "1.5",
        "1.4",
        "1.6",
        "1.5",
        "1.01",
        "35.56",
        "0.5",
    ]
    assert len(times.cells[0]) == len(times.header)
    assert memory.cells == [["0 edits", "0", "5", "0"], ["10 edits", "0.01", "25", "20"]]


def test_memory_that_the_system_does_not_tell_is_a_dash() -> None:
    found = Findings([], {0: 0}, {0: None})
    assert latency.tables(found)[1].cells == [["0 edits", "0", "-", "-"]]


def test_bars_are_on_forwards_and_decode_steps_with_0_and_1000_edits() -> None:
    found = findings(
        cell("prefill", 1, 0, "miss", 1.01),
        cell("decode", 8, 1000, "hit", 1.021),
        cell("generate", 1, 1000, "hit", 9.0),
        cell("prefill", 1, 100, "hit", 9.0),
    )
    assert [(bar.figure, bar.bar, bar.met) for bar in latency.judged(found)] == [
        ("prefill, batch 1, 0 edits, miss", 1.01, True),
        ("decode, batch 8, 1000 edits, hit", 1.02, False),
    ]
    assert latency.times(found)["bars_met"] == {
        "prefill, batch 1, 0 edits, miss": True,
        "decode, batch 8, 1000 edits, hit": False,
    }


class Lines:
    """Axes that note what is drawn."""

    def __init__(self) -> None:
        self.drawn: dict[str, tuple[list[int], list[float], Any]] = {}

    def errorbar(self, x: list[int], y: list[float], yerr: Any, label: str, **_: Any) -> None:
        self.drawn[label] = x, y, yerr

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_line_of_hits_begins_where_there_are_no_edits() -> None:
    axes = Lines()
    latency.draw(findings(cell("prefill", 1, 0, "miss", 1.0), cell("prefill", 1, 10, "hit", 1.5)))(axes)
    assert set(axes.drawn) == {"prefill, batch 1, miss", "prefill, batch 1, hit"}
    x, y, ((below, _), (above, _)) = axes.drawn["prefill, batch 1, hit"]
    assert (x, y) == ([0, 10], [1.0, 1.5])
    assert (below, above) == (pytest.approx(0.1), pytest.approx(0.1))


# --- what is timed ---


@pytest.fixture
def pair(tiny: Loaded) -> Iterator[Pair]:
    """A model with one edit, and its shadow."""
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=GRACE())) as em:
        em.edit(Edit(PROMPTS[0], TARGETS[0]))
        yield Pair(em.model, shadow_of(em.model), 0, np.random.default_rng(0))


def ids_of(tiny: Loaded, text: str) -> torch.Tensor:
    return torch.tensor([tiny.tokenizer(text)["input_ids"]])


@torch.no_grad()
def test_the_base_is_the_same_model_without_edits(pair: Pair, tiny: Loaded) -> None:
    hit, miss = ids_of(tiny, PROMPTS[0]), ids_of(tiny, PROMPTS[1])
    assert torch.equal(pair.edited(input_ids=miss).logits, pair.base(input_ids=miss).logits)
    assert not torch.equal(pair.edited(input_ids=hit).logits, pair.base(input_ids=hit).logits)
    assert pair.edited.lm_head.weight.data_ptr() == pair.base.lm_head.weight.data_ptr()


@torch.no_grad()
def test_every_act_gives_as_many_pairs_as_asked_for(pair: Pair, tiny: Loaded) -> None:
    ids = ids_of(tiny, PROMPTS[0])
    acts = {"prefill": pair.prefill(ids, 3), "decode": pair.decode(ids, 6, 2), "generate": pair.generate(ids, 2)}
    assert {act: (len(s["edited"]), len(s["base"])) for act, s in acts.items()} == {
        "prefill": (3, 3),
        "decode": (6, 6),
        "generate": (2, 2),
    }


# --- the whole ---


ACTS = {"prefill, batch 1", "prefill, batch 8", "decode, batch 1", "decode, batch 8", "generate, batch 1"}
HITS = {"1 edits, hit", "12 edits, hit"}
MISSES = {"0 edits, miss", "1 edits, miss", "12 edits, miss"}


def test_hits_hit_and_misses_miss_and_the_next_run_agrees(
    tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*tiny_options, "--counts", "0,1,12", "--repeats", "2", "--results", str(tmp_path)]
    latency.main(options)
    found = printed(capsys)
    shares = found["quality"]["forwards_hit_share"]
    assert set(shares) == ACTS
    assert all(share == dict.fromkeys(HITS, 1.0) | dict.fromkeys(MISSES, 0.0) for share in shares.values())
    sizes = list(found["quality"]["editor_tensor_bytes"].values())
    assert sizes == sorted(sizes)
    assert sizes[0] == 0 < sizes[1] < sizes[2]
    one = found["timing"]["prefill, batch 8"]["12 edits, hit"]
    assert one["ratio"]["ratio"] == pytest.approx(one["edited"]["median_ms"] / one["base"]["median_ms"], rel=1e-3)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html", ".png"}

    latency.main([*options, "--against", str(tmp_path)])
    out = capsys.readouterr().out
    assert "Numbers that must repeat and differ: 0." in out
    assert "The same machine and the same options." in out


def test_a_model_of_images_has_one_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "timm/test_resnet", "--random-weights", "--counts", "0,12", "--repeats", "2"]
    latency.main([*options, "--results", str(tmp_path)])
    found = printed(capsys)
    misses, hits = dict.fromkeys(["0 edits, miss", "12 edits, miss"], 0.0), {"12 edits, hit": 1.0}
    acts = ("forward, batch 1", "forward, batch 8")
    assert found["quality"]["forwards_hit_share"] == dict.fromkeys(acts, misses | hits)
    assert found["timing"][acts[1]]["12 edits, hit"]["base"]["count"] == 2
    assert list(found["timing"]["bars_met"]) == [f"{act}, 0 edits, miss" for act in acts]


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_model_that_generates_nothing_from_its_prompt_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    loaded = next(family for family in FAMILIES if family.name == name).load()
    monkeypatch.setattr(common, "prepare", lambda _chosen: (loaded.model, loaded.tokenizer))
    with pytest.raises(InputError, match="expected a decoder that generates text: latency times its prefill"):
        latency.main(["--results", str(tmp_path)])


def test_random_weights_are_those_of_two_libraries(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        latency.main(["--random-weights", "--results", str(tmp_path)])
    assert str(caught.value) == (
        "--random-weights is for models of torchvision and timm, got --model smollm2; name one such as "
        "torchvision/resnet18, or leave it out."
    )
