"""Edit, Patch, Receipt: plain values that refuse what cannot be understood, in words that help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from editable.edit import Edit, Patch, Receipt, Verification
from editable.errors import EditableError, InputError

IMAGE = torch.zeros(3, 4, 4)
FORWARD = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[-100, 2]])}


@pytest.mark.parametrize(
    ("prompt", "target"),
    [("Who?", " Me"), ("Who?", 3), (IMAGE, 3), (IMAGE, "cat"), (FORWARD, None), (FORWARD, " Me")],
    ids=["text", "text label", "image", "image by name", "labels in the prompt", "mapping and text"],
)
def test_what_an_edit_may_be(prompt: Any, target: Any) -> None:
    edit = Edit(prompt, target)
    assert edit.prompt is prompt
    assert edit.target == target
    assert (edit.rephrases, edit.locality, edit.subject, edit.namespace) == ((), (), None, "default")


def test_sequences_become_tuples() -> None:
    edit = Edit("Who?", " Me", rephrases=["Who is it?"], locality=["What?", IMAGE])
    assert edit.rephrases == ("Who is it?",)
    assert edit.locality == ("What?", IMAGE)


def test_an_edit_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Edit("Who?", " Me").target = " You"  # type: ignore[misc]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match=r"Edit\.prompt is .* expected some text; give the question"):
        Edit(prompt, " Me")


@pytest.mark.parametrize("target", ["", "  "])
def test_an_empty_target_is_refused(target: str) -> None:
    with pytest.raises(InputError, match=r"Edit\.target is .* expected some text; give the answer"):
        Edit("Who?", target)


def test_an_empty_tensor_is_refused() -> None:
    with pytest.raises(InputError, match=r"Edit\.prompt is a tensor of shape \(0, 4\), expected a non-empty one"):
        Edit(torch.zeros(0, 4), 1)


@pytest.mark.parametrize("prompt", [None, 3, ["Who?"], {}])
def test_a_prompt_of_another_kind_is_refused(prompt: Any) -> None:
    with pytest.raises(
        InputError,
        match=r"Edit\.prompt is .* expected text, a picture \(a PIL image, a path",
    ):
        Edit(prompt, " Me")


@pytest.mark.parametrize("target", [True, 1.5, [" Me"]])
def test_a_target_of_another_kind_is_refused(target: Any) -> None:
    with pytest.raises(InputError, match=r"Edit\.target is .* expected text or an integer class label"):
        Edit("Who?", target)


@pytest.mark.parametrize("prompt", ["Who?", IMAGE, {"input_ids": IMAGE}, {"labels": None}])
def test_a_missing_target_is_refused(prompt: Any) -> None:
    with pytest.raises(InputError, match=r"Edit\.target is missing.*mapping of forward kwargs with `labels`"):
        Edit(prompt)


@pytest.mark.parametrize("name", ["rephrases", "locality"])
@pytest.mark.parametrize("value", ["Who is it?", IMAGE, FORWARD], ids=["text", "tensor", "mapping"])
def test_one_input_where_a_sequence_is_meant(name: str, value: Any) -> None:
    """A string is a sequence too: of letters."""
    with pytest.raises(InputError, match=rf"Edit\.{name} is one \w+, expected a sequence.*write {name}=\[\.\.\.\]"):
        Edit("Who?", " Me", **{name: value})


@pytest.mark.parametrize("name", ["rephrases", "locality"])
def test_a_bad_one_among_many_is_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"Edit\.{name}\[1\] is ' ', expected some text"):
        Edit("Who?", " Me", **{name: ["Fine?", " "]})  # type: ignore[arg-type]


def test_input_errors_are_value_errors_of_ours() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, EditableError)


# ---------------------------------------------------------------------------------------------------- patches


def test_a_patch_keeps_what_it_was_given() -> None:
    tensors, meta = {"keys": torch.ones(2)}, {"radius": 1.0}
    patch = Patch("a", tensors, meta)
    tensors["more"], meta["more"] = torch.ones(1), 2.0
    assert list(patch.tensors) == ["keys"]
    assert dict(patch.meta) == {"radius": 1.0}
    for held in (patch.tensors, patch.meta):
        assert isinstance(held, Mapping)
        with pytest.raises(TypeError):
            held["x"] = 1  # type: ignore[index]


def test_nan_in_a_patch_is_refused() -> None:
    tensors = {"fine": torch.ones(2), "keys": torch.tensor([1.0, float("nan")]), "ids": torch.tensor([1])}
    message = r"Patch of edit 'a7' has NaN or infinite values in \['keys'\], expected finite numbers; learn the edit"
    with pytest.raises(InputError, match=message):
        Patch("a7", tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_infinity_in_any_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"\['values'\]"):
        Patch("a7", {"values": torch.tensor([float("inf")], dtype=dtype)})


def test_a_receipt_says_what_happened() -> None:
    receipt = Receipt("a7", 3, Verification(1.0, 0.5, ("b",)))
    assert (receipt.superseded, dict(receipt.seconds), receipt.verified.collisions) == ((), {}, ("b",))
