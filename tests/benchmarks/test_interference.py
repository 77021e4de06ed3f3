"""The interference benchmark on a tiny model: who does what when; never how long anything took."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from editable import Edit, EditableModel, Receipt, Verification
from editable.adapters import GRACE
from editable.benchmarks import interference
from editable.benchmarks.interference import STEPS, Window
from editable.errors import InputError
from tests.benchmarks.conftest import printed
from tests.families import PROMPTS, TARGETS, UNRELATED, Loaded

EDITS = [Edit(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def em(tiny: Loaded) -> Iterator[EditableModel]:
    """A model without edits."""
    with closing(EditableModel(tiny.model, tiny.tokenizer, editor=GRACE())) as em:
        yield em


@pytest.fixture
def ids(tiny: Loaded) -> torch.Tensor:
    """(2, 4) of prompts that no edit is about."""
    return torch.tensor([tiny.tokenizer(text)["input_ids"][:4] for text in UNRELATED[:2]])


# --- measuring ---


def test_edits_come_in_windows_of_one_side_only_and_are_gone_afterwards(em: EditableModel, ids: torch.Tensor) -> None:
    chosen = argparse.Namespace(windows=2, seconds=0.1, rate=0.0)
    windows = interference.measure(em, ids, EDITS, chosen, rng())
    assert {side: len(made) for side, made in windows.items()} == {"quiet": 2, "edits": 2}
    assert all(window.receipts for window in windows["edits"])
    assert not any(window.receipts for window in windows["quiet"])
    for window in (*windows["quiet"], *windows["edits"]):
        assert window.prefill
        assert len(window.decode) == STEPS * len(window.prefill)
        assert window.seconds >= 0.1
    assert len(em.edits) == 0
    assert len(em.history) > 2  # the warm-up's too


def test_every_edit_of_the_stream_is_published_in_its_turn(em: EditableModel) -> None:
    receipts: list[Receipt] = []
    with interference._streaming(em, iter(EDITS[:3]), 0.0, receipts):
        pass
    assert len(receipts) in (1, 2, 3)  # the one being learned is waited for, those behind it are not begun
    assert [receipt.id for receipt in receipts] == [edit.id for edit in em.edits]


def test_what_an_edit_fails_with_is_raised(em: EditableModel) -> None:
    bad = Edit({"input_ids": torch.tensor([[5, 6]])}, 3)
    with pytest.raises(InputError), interference._streaming(em, itertools.repeat(bad), 0.0, []):
        pass


# --- summing up ---


def window(prefill: list[float], decode: list[float], edits: int = 0, seconds: float = 2.0) -> Window:
    receipts = [Receipt(str(index), 1, Verification(1.0, 1.0)) for index in range(edits)]
    return Window(prefill, decode, receipts, seconds)


WINDOWS = {
    "quiet": [window([0.1, 0.1], [0.01]), window([0.1], [0.01])],
    "edits": [window([0.2, 0.4], [0.01], edits=3), window([0.3], [0.03], edits=2, seconds=3.0)],
}


def test_percentiles_and_ratios_by_hand() -> None:
    found = interference.times(WINDOWS, rng())
    assert found["prefill"]["quiet"] == {"p50_ms": 100.0, "p99_ms": 100.0, "count": 3}
    assert found["prefill"]["edits"] == {"p50_ms": 300.0, "p99_ms": 398.0, "count": 3}  # 300 + 0.98 * 100
    assert found["prefill"]["p50_ratio"]["ratio"] == 3.0
    assert found["prefill"]["p99_ratio"]["ratio"] == 3.98
    assert found["decode"]["edits"]["p50_ms"] == 20.0
    assert (found["edits_published"], found["edits_per_second"]) == (5, 1.0)  # 5 in 2 + 3 seconds


def test_tables_put_both_sides_beside_one_another() -> None:
    serving, stream = interference.tables(interference.times(WINDOWS, rng()))
    assert serving.cells[0][:5] == ["prefill", "p50", "100", "300", "3"]
    assert [row[:2] for row in serving.cells] == [[a, p] for a in ("prefill", "decode") for p in ("p50", "p99")]
    assert stream.cells == [["edits published", "5"], ["edits per second", "1"]]


# --- the whole ---


def test_the_whole(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interference.main([*tiny_options, "--windows", "2", "--seconds", "0.1", "--results", str(tmp_path)])
    found = printed(capsys)
    assert found["benchmark"] == "interference"
    assert found["timing"]["edits_published"] >= 2
    assert found["timing"]["prefill"]["quiet"]["count"] >= 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html", ".png"}
