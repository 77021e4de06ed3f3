"""Digits: how they are split, what a radius reaches, and both tasks in small."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from editable.adapters import CNP
from editable.benchmarks import digits
from editable.errors import InputError
from editable.metric import Course
from editable.site import Site
from tests.benchmarks.conftest import printed

FOGGED = {"fog": 0.3, "repairs": 60, "seed": 0, "copies": 0}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> digits.Digits:
    """A tenth of the digits."""
    monkeypatch.setattr(digits, "SET_ASIDE", 60)
    data = digits.digits(None, 0)
    train, pool, test = ((images[:300], labels[:300]) for images, labels in (data.train, data.pool, data.test))
    return digits.Digits(train, pool, test)


def test_the_parts_share_no_image() -> None:
    data = digits.digits(None, 0)
    parts = [images for images, _ in (data.train, data.pool, data.test)]
    assert [len(images) for images in parts] == [1078, 300, 419]
    assert all(images.shape[1:] == (1, 28, 28) for images in parts)
    assert 0 <= min(float(images.min()) for images in parts) < max(float(images.max()) for images in parts) <= 1
    seen = [{image.numpy().tobytes() for image in images} for images in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_other_digits_are_read_from_a_file(tmp_path: Path) -> None:
    images = numpy.arange(20 * 28 * 28, dtype=numpy.uint8).reshape(20, 28, 28)
    numpy.savez(tmp_path / "digits.npz", images=images, labels=numpy.arange(20) % 10)
    data = digits.digits(str(tmp_path / "digits.npz"), 0)
    assert data.train[0].shape == (12, 1, 28, 28)
    numpy.savez(tmp_path / "colours.npz", images=numpy.zeros((20, 3, 8, 8), numpy.uint8), labels=numpy.arange(20))
    with pytest.raises(InputError, match=r"images of shape \(3, 8, 8\), expected \(1, side, side\)"):
        digits.digits(str(tmp_path / "colours.npz"), 0)


def test_radii_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model, places = digits.network(), torch.tensor([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(digits, "features", lambda _model, _images, _site: places[:, None])
    monkeypatch.setattr(digits, "APART", 0.5)
    assert digits.reach_of_each_other(model, torch.zeros(4), Site("head")) == pytest.approx(1.5)  # of 1, 1, 2, 4


def test_label_edits(small: digits.Digits) -> None:
    model = digits.trained(small, epochs=6, seed=0)
    asked = {"seed": 0, "edits": 5, "rephrases": 3, "strength": 0.05}
    found = digits.relabelled(model, CNP(radius=2.5), small, asked)
    assert found.success == 1.0 and found.generality > 0.5
    assert found.accuracy_before > 0.5 and abs(found.lost) < 0.1
    assert len(found.seconds) == 5
    nothing = digits.relabelled(model, CNP(radius=1e-3), small, {**asked, "rephrases": 0})
    assert (nothing.success, nothing.lost) == (1.0, 0.0) and nothing.generality < 0.2


def test_fog(small: digits.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = digits.trained(small, epochs=6, seed=0)
    path = tmp_path / "metric.safetensors"
    monkeypatch.setattr(digits, "Course", lambda seed: Course(steps=80, seed=seed))
    monkeypatch.setattr(digits, "FITTED", 200)
    digits.fitted(model, small, ["fog"], path, seed=0)
    found = digits.repaired(model, CNP(site=digits.FIRST, weights=str(path)), small, FOGGED)
    assert found.fogged_after > found.fogged_before + 0.2
    assert found.lost <= 0.01
    apart = digits.repaired(model, CNP(radius=1e-3), small, FOGGED)
    assert (apart.fogged_after, apart.lost) == (apart.fogged_before, 0.0), "no unseen image lies so near"


def test_bars_take_the_best_of_fog() -> None:
    labels = {
        "grace": digits.Relabelled(1.0, 0.89, 0.95, 0.945, []),
        "cnp": digits.Relabelled(0.95, 0.9, 0.95, 0.935, []),
    }
    fogged = {"a": digits.Repaired(0.3, 0.5, 0.9, 0.9, 1.0), "b": digits.Repaired(0.3, 0.8, 0.9, 0.88, 1.0)}
    met = {bar.figure: bar.met for bar in digits.judged(labels, fogged)}
    assert list(met.values()) == [True, False, True, True, True, True, True, True, False]
    assert "fog, b: accuracy after" in met


def test_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: digits.Digits
) -> None:
    monkeypatch.setattr(digits, "digits", lambda _source, _seed: small)
    monkeypatch.setattr(digits, "FITTED", 60)
    monkeypatch.setattr(digits, "LORA_STEPS", 3)
    monkeypatch.setattr(digits, "Course", lambda seed: Course(steps=3, seed=seed))
    chosen = ["--edits", "3", "--rephrases", "2", "--repairs", "20", "--epochs", "2", "--results", str(tmp_path)]
    digits.main(chosen)
    document = printed(capsys)
    assert set(document["quality"]["labels"]) >= {"grace", "cnp"} and "cnp, fitted" in document["quality"]["fog"]
    assert document["quality"]["labels"]["cnp"]["success"] == 1.0
