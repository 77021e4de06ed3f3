"""Names of labels: found by name, by one of several names, by number; and what is said where none is meant."""

from __future__ import annotations

import pytest
from torch import nn

from editable.errors import InputError
from editable.labels import Labels
from tests.families import FAMILIES, LABELS

NAMES = ("tench, Tinca tinca", "tiger cat", "oystercatcher", "Cardigan", "cardigan", "crane, bird", "crane, machine")


def labels(names: tuple[str, ...] = NAMES) -> Labels:
    return Labels(names, len(names), "Net")


@pytest.mark.parametrize(
    ("given", "label"),
    [(2, 2), ("tiger cat", 1), ("Tiger Cat", 1), ("Tinca tinca", 0), ("tench", 0), ("Cardigan", 3), ("cardigan", 4)],
)
def test_a_label_is_found_by_number_and_by_name(given: str | int, label: int) -> None:
    assert labels().number(given) == label


def test_a_number_may_be_written_as_text_unless_a_label_is_called_so() -> None:
    assert labels().number("5") == 5
    assert labels(("one", "0")).number("0") == 1


def test_a_name_that_several_labels_have_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        labels().number("crane")
    assert str(caught.value) == (
        "Edit.target is 'crane', which 2 labels of Net are called, expected one of 'crane, bird' (5), 'crane, machine' "
        "(6); give its full name or its number."
    )


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        labels().number("cat")
    assert str(caught.value) == (
        "Edit.target is 'cat', expected a label from 0 to 6 of Net. The nearest of its names are: tiger cat, "
        "oystercatcher."
    )
    with pytest.raises(InputError, match=r"nearest of its names are: tench, Tinca tinca, tiger cat, oystercatcher,"):
        labels().number("zzzzz")


@pytest.mark.parametrize("bad", [7, -1, "7", None])
def test_a_number_without_label_is_refused(bad: int | str | None) -> None:
    with pytest.raises(InputError, match=rf"Edit.target is {bad!r}, expected a label from 0 to 6 of Net\."):
        labels().number(bad)


def test_without_names_labels_are_numbers() -> None:
    plain = Labels(count=3, owner="Net")
    assert plain.name(2) == "2"
    assert plain.number(2) == 2
    with pytest.raises(InputError, match=r"is 'tench', expected a label from 0 to 2 of Net\.$"):
        plain.number("tench")
    assert Labels().number(12) == 12  # how many there are is not known
    with pytest.raises(InputError, match="is -1, expected an integer label of the model"):
        Labels().number(-1)


def test_the_names_and_the_count_come_from_the_model() -> None:
    families = {family.name: family for family in FAMILIES}
    vit = families["vit"].load().model
    vit.config.id2label = {label: f"thing {label}" for label in range(LABELS)}
    assert Labels.of(vit).name(3) == "thing 3"
    assert Labels.of(vit, ["given"] * LABELS).name(3) == "given"
    resnet = families["torchvision-resnet18"].load().model
    assert Labels.of(resnet) == Labels((), LABELS, "ResNet")
    assert Labels.of(nn.Conv2d(3, 4, 1)) == Labels((), None, "Conv2d")
