"""Methods by name, options by text; a new file joins by being there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import editable.adapters
from editable.adapters import GRACE, MELO, CaliNet
from editable.benchmarks import editors
from editable.benchmarks.baselines import Baseline
from editable.benchmarks.baselines.finetuning import FineTuning
from editable.edited import EditedSystem
from editable.editor import Editor
from editable.errors import InputError
from tests.families import FAMILIES

DUMMY = '''
"""An editor that does nothing."""
from dataclasses import dataclass
from typing import Literal

from editable.adapters import GRACE

@dataclass(frozen=True)
class Dummy:
    depth: int
    ratio: float | None = 0.5
    loud: bool = False
    name: str = "x"
    form: Literal["a", "b"] | None = "a"

    def learn(self, requests, state, probe): ...

@dataclass(frozen=True)
class State:
    count: int = 0
'''


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in a folder of editors that was not there before."""
    path = tmp_path / "dummy.py"
    path.write_text(DUMMY)
    monkeypatch.setattr(editable.adapters, "__path__", [*editable.adapters.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "editable.adapters.dummy", raising=False)
    yield path
    sys.modules.pop("editable.adapters.dummy", None)
    vars(editable.adapters).pop("dummy", None)


def test_an_editor_by_its_modules_name() -> None:
    assert editors.find("grace") == GRACE()
    assert isinstance(editors.find("grace"), Editor)
    assert editors.find("grace", {"values": "single", "steps": "7", "radius": "1.5"}) == GRACE(
        values="single", steps=7, radius=1.5
    )
    assert editors.find("grace", {"radius": "none", "site": "transformer.h.1"}) == GRACE(site="transformer.h.1")


@pytest.mark.parametrize("name", editors.editors())
def test_every_file_of_the_folder_is_an_editor(name: str) -> None:
    assert isinstance(editors.find(name), Editor)


@pytest.mark.parametrize("name", editors.baselines())
def test_every_file_of_the_other_folder_is_a_baseline(name: str) -> None:
    assert isinstance(editors.method(name), Baseline)


def test_a_method_is_an_editor_or_a_baseline() -> None:
    assert editors.method("grace") == GRACE()
    assert editors.method("finetuning", {"blocks": "0"}) == FineTuning(blocks=0)


@pytest.mark.usefixtures("dummy")
def test_a_new_file_joins_by_being_there() -> None:
    assert "dummy" in editors.editors()
    options = {"depth": "3", "ratio": "none", "loud": "True", "name": "7", "form": "b"}
    found = editors.find("dummy", options)
    assert vars(found) == {"depth": 3, "ratio": None, "loud": True, "name": "7", "form": "b"}
    assert vars(editors.find("dummy", {"depth": "1", "ratio": "2", "form": "none"}))["ratio"] == 2.0


@pytest.mark.usefixtures("dummy")
@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("depth", "deep", r"Dummy.depth is 'deep', expected int"),
        ("ratio", "half", r"Dummy.ratio is 'half', expected float"),
        ("loud", "perhaps", r"Dummy.loud is 'perhaps', expected one of true, false"),
        ("form", "c", r"Dummy.form is 'c', expected one of a, b"),
        ("dept", "1", r"Option of Dummy 'dept' does not exist, expected one of 5; the nearest are: depth"),
        ("zzz", "1", r"Option of Dummy 'zzz' does not exist, expected one of 5; there are: depth, ratio, loud, name"),
    ],
)
def test_values_are_of_the_fields_type(field: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editors.find("dummy", {field: text})


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Editor 'grase' does not exist, expected one of \d+; the nearest are: grace"):
        editors.find("grase")
    with pytest.raises(InputError, match=r"Editor or baseline 'fine_tuning' does not .* the nearest are: finetuning"):
        editors.method("fine_tuning")
    with pytest.raises(InputError, match="Editor 'unedited' does not exist"):
        editors.find("unedited")  # a baseline is no editor


def test_two_editors_in_one_file_are_refused(dummy: Path) -> None:
    dummy.write_text(DUMMY + DUMMY.replace("class Dummy", "class Second"))
    with pytest.raises(InputError, match=r"adapters.dummy holds 2 dataclasses with a method 'learn', expected exactly"):
        editors.find("dummy")


def test_assignments() -> None:
    assert editors.given(["values=single", "site = a=b"]) == {"values": "single", "site": "a=b"}
    for wrong in ("values", "=single"):
        with pytest.raises(InputError, match=f"--set '{wrong}' has no field and value, expected field=value; write"):
            editors.given([wrong])


def test_attached_gives_the_model_back(tmp_path: Path) -> None:
    loaded = FAMILIES[0].load()
    log = tmp_path / "new" / "edits.db"
    with editors.attached("mine", GRACE(), loaded.model, loaded.tokenizer, log) as system:
        assert isinstance(system, EditedSystem)
        assert system.name == "mine"
        assert len(loaded.model._forward_pre_hooks) == 1
    assert log.exists()
    assert not loaded.model._forward_pre_hooks
    with editors.attached("unedited", editors.method("unedited"), loaded.model, loaded.tokenizer) as system:
        assert system.name == "unedited"
        assert not loaded.model._forward_pre_hooks


def test_an_option_of_several_values() -> None:
    assert editors.find("calinet", {"layers": "-3,-2"}) == CaliNet(layers=(-3, -2))
    assert editors.find("melo", {"targets": "down_proj,up_proj"}) == MELO(targets=("down_proj", "up_proj"))
