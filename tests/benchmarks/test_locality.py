"""The benchmark from the command line to its JSON document, on a tiny model; it repeats, and goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from editable import models, protocols
from editable.benchmarks import locality
from editable.edit import Edit
from editable.edited import EditedSystem
from tests.families import FAMILIES, Loaded

UNRELATED = "november uniform mike\nzulu south three blue\nindia golf\n"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """What the benchmark gets instead of real weights."""
    tiny = FAMILIES[1].load()
    monkeypatch.setattr(models, "load", lambda *_args, **_options: (tiny.model, tiny.tokenizer))
    return tiny


@pytest.fixture
def bench(loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs it on six invented facts; gives the document, and what was printed as `printed`."""
    records = [
        {
            "subject": f"s{index}",
            "src": prompt,
            "pred": "west",
            "rephrase": f"{prompt} now",
            "alt": target.strip(),
            "answers": ["west"],
            "loc": f"nq question: {loaded.unrelated[index % 4]}",
            "loc_ans": "yankee",
            "cond": "x",
        }
        for index, (prompt, target) in enumerate(zip(loaded.edited, map(str, loaded.targets), strict=True))
    ]
    data, unrelated = tmp_path / "zsre.json", tmp_path / "unrelated.txt"
    data.write_text(json.dumps(records))
    unrelated.write_text(UNRELATED)
    given = ["--data", str(data), "--unrelated", str(unrelated), "--results", str(tmp_path / "results")]

    def run(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        locality.main([*given, *more])
        printed = capsys.readouterr().out
        document: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return {**document, "printed": printed}

    return run


def test_what_comes_out(bench: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = bench("--edits", "5", "--immediate", "2")
    assert found["benchmark"] == "locality"
    quality = found["quality"]
    assert quality["edits"] == 5
    assert quality["final"]["success_rate_exact"] == quality["retention"]["success_rate"]["exact"] == 1.0
    assert quality["immediate"]["edits"] == 2
    assert quality["final"]["bit_equal_share"] == 1.0
    assert set(quality["checkpoints"]) == {"1", "5"}
    assert quality["checkpoints"]["5"]["unrelated"]["bit_equal_share"] == 1.0
    assert quality["numbers_held"] > 0
    assert found["timing"]["insert_seconds"] > 0
    for title in ("accuracy with the final model", "locality: what became", "retention:", "CounterFact's metrics"):
        assert title in found["printed"]
    assert not (tmp_path / "results" / "unfinished").exists()


@pytest.mark.parametrize("order", [["single"], ["batch"], ["sequential", "--batch", "4"]], ids=" ".join)
def test_protocols(bench: Callable[..., dict[str, Any]], order: list[str]) -> None:
    found = bench("--protocol", *order)["quality"]
    assert found["final"]["success_rate_exact"] == 1.0
    expected = {"single": None, "batch": {"6"}, "sequential": {"4", "6"}}[order[0]]
    assert (set(found["checkpoints"]) if "checkpoints" in found else None) == expected


def test_the_same_command_gives_the_same_numbers(bench: Callable[..., dict[str, Any]]) -> None:
    first, second = (
        bench("--editor", "finetuning", "--set", "steps=3"),
        bench("--editor", "finetuning", "--set", "steps=3"),
    )
    assert first["quality"] == second["quality"]
    assert first["quality"]["final"]["kl_nats"] > 0


def killed_at(insertion: int) -> Callable[..., Any]:
    """`protocols.run`, killed before its insertion of that number."""
    calls = iter(range(1000))

    def run(system: Any, *rest: Any) -> Any:
        insert = system.insert

        def dying(edits: Sequence[Edit]) -> None:
            if next(calls) == insertion:
                raise KeyboardInterrupt
            insert(edits)

        system.insert = dying
        return protocols.run(system, *rest)

    return run


@pytest.fixture
def inserted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many edits each insertion into an edited model took in."""
    seen: list[int] = []
    original = EditedSystem.insert

    def counting(self: EditedSystem, edits: Sequence[Edit]) -> None:
        seen.append(len(edits))
        original(self, edits)

    monkeypatch.setattr(EditedSystem, "insert", counting)
    return seen


@pytest.mark.parametrize("method", ["grace", "unedited"])
def test_a_killed_run_goes_on_to_the_same_numbers(
    bench: Callable[..., dict[str, Any]],
    method: str,
    inserted: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = bench("--editor", method)["quality"]
    monkeypatch.setattr(locality, "run", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        bench("--editor", method)
    kept = {path.suffix for path in (tmp_path / "results" / "unfinished").iterdir()}
    assert ".jsonl" in kept
    assert (".db" in kept) == (method == "grace")
    monkeypatch.setattr(locality, "run", protocols.run)
    inserted.clear()
    assert bench("--editor", method)["quality"] == whole
    assert sum(inserted) == (3 if method == "grace" else 0)  # three of six were in the log
    assert not (tmp_path / "results" / "unfinished").exists()


def test_only_its_own_unfinished_files_are_cleared(bench: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    other = tmp_path / "results" / "unfinished" / "locality-0123456789abcdef.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("")
    bench("--edits", "2")
    assert list(other.parent.iterdir()) == [other]


@pytest.mark.real
def test_on_real_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locality.main(["--edits", "2", "--immediate", "0", "--questions", "3", "--results", str(tmp_path)])
    quality = json.loads(capsys.readouterr().out.splitlines()[-1])["quality"]
    assert quality["final"]["success_rate_exact"] == 1.0
    assert quality["final"]["bit_equal_share"] == 1.0
