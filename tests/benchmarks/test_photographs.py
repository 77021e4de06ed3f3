"""Photographs: what the wheels carry, and what is counted on a tiny model, by hand."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from editable import EditableModel, augment
from editable.adapters import GRACE
from editable.benchmarks import photographs
from editable.benchmarks.photographs import EDITED, UNRELATED, Found, Photo
from editable.errors import MissingPackageError
from editable.pictures import Transform
from tests.families import FAMILIES, LABELS

CHOSEN = Namespace(edits=2, strength=0.1, seed=0)


def small(image: Image.Image) -> Tensor:
    """(3, 32, 32)"""
    return torch.from_numpy(np.array(image.resize((32, 32)))).movedim(2, 0) / 127.5 - 1


@pytest.fixture
def em(monkeypatch: pytest.MonkeyPatch) -> Iterator[EditableModel]:
    (family,) = [family for family in FAMILIES if family.name == "torchvision-resnet18"]
    monkeypatch.setattr(photographs, "UNRELATED", ("coins", "flower"))
    monkeypatch.setattr(photographs, "UNLIKELY", 3)
    names = tuple(f"thing {label}" for label in range(LABELS))
    with closing(EditableModel(family.load().model, Transform(small, names), GRACE())) as made:
        yield made


def test_every_photograph_is_carried_and_distinct() -> None:
    photos = photographs.photographs([*EDITED, *UNRELATED])
    assert len({photo.image.tobytes() for photo in photos}) == len(EDITED) + len(UNRELATED) == 20
    assert {photo.image.mode for photo in photos} == {"RGB"}
    assert min(min(photo.image.size) for photo in photos) >= 170
    assert len(photos[0].quarters) * len(EDITED) == 20


def test_quarters_are_the_whole() -> None:
    photo = Photo("ramp", Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)))
    parts = [np.array(one.image) for one in photo.quarters]
    whole = np.concatenate([np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)])
    assert np.array_equal(whole, np.array(photo.image))
    assert [one.name for one in photo.quarters] == [f"ramp, quarter {n}" for n in (1, 2, 3, 4)]


def test_a_changed_photograph_is_what_augment_makes() -> None:
    (photo,) = photographs.photographs(["coins"])
    levels = torch.from_numpy(np.array(photo.image)).movedim(2, 0) / 255
    wanted = augment.fog(levels, 0.3, torch.Generator().manual_seed(5))
    found = torch.from_numpy(np.array(photo.changed("fog", 0.3, 5))).movedim(2, 0) / 255
    torch.testing.assert_close(found, wanted, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("rephrased", [False, True])
def test_edits_are_right_and_the_unrelated_keeps_its_bits(em: EditableModel, rephrased: bool) -> None:
    found = photographs.measured(em, CHOSEN, rephrased)
    assert (found.success, found.retained, found.equal, found.unrelated) == (1.0, 1.0, 1.0, 10)
    assert list(found.generality) == list(found.before) == list(augment.AUGMENTATIONS)
    assert len(found.seconds) == len(found.shown) == len(em.edits) == 2
    assert {len(edit.rephrases) for edit in em.edits} == {5 if rephrased else 0}
    for one in found.shown:
        assert one.after == one.target != one.before
    fired = {kind: [one.neighbours[kind][2] for one in found.shown] for kind in augment.AUGMENTATIONS}
    assert found.generality == {kind: sum(each) / 2 for kind, each in fired.items()}


def test_the_page_shows_every_edit_with_its_neighbours(em: EditableModel) -> None:
    from matplotlib.figure import Figure

    found = photographs.measured(em, CHOSEN, False)
    axes = Figure().subplots()
    photographs.draw(found.shown)(axes)
    cells: list[Any] = axes.child_axes
    assert len(cells) == 2 * (1 + len(augment.AUGMENTATIONS))
    assert cells[0].get_title() == f"{found.shown[0].before}\n→ {found.shown[0].target}"
    titles = [cell.get_title() for cell in cells[1:9]]
    assert [title.split("\n")[0] for title in titles] == list(augment.AUGMENTATIONS)
    framed = [cell.spines["top"].get_linewidth() > 1 for cell in cells[1:9]]
    assert framed == [fired for _, _, fired in found.shown[0].neighbours.values()]


def test_bars_and_table() -> None:
    one = Found(1.0, 0.95, {"fog": 0.5, "blur": 1.0}, {"fog": 0.0, "blur": 0.1}, 1.0, 80, [1.0], [])
    assert [bar.met for bar in photographs.judged({"alone": one})] == [True, False, True]
    table = photographs.generality({"alone": one})
    assert [list(row) for row in table.rows] == [["fog", 0.0, 0.5], ["blur", 0.1, 1.0], ["mean", 0.05, 0.75]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(MissingPackageError, match="run `pip install scikit-image scikit-learn`"):
        photographs.photographs(["coins"])
