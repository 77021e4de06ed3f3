"""Completed digits: what is seen and drawn, the least squares by hand, and the whole in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editable.benchmarks import completion
from editable.benchmarks.digits import Digits, digits
from tests.benchmarks.conftest import printed


@pytest.fixture(scope="module")
def small() -> Digits:
    data = digits(None, 0)
    train, pool, test = ((images[:200], labels[:200]) for images, labels in (data.train, data.pool, data.test))
    return Digits(train, pool, test)


def test_halves() -> None:
    images = torch.arange(2 * 28 * 28).reshape(2, 1, 28, 28).float()
    seen = completion.upper(images)
    assert torch.equal(seen[:, :, :14], images[:, :, :14]) and not seen[:, :, 14:].any()
    assert torch.equal(completion.lower(images), images[:, 0, 14:].flatten(1))
    assert torch.equal(completion.lower(images.flatten(1)), completion.lower(images))
    weight = images[0].flatten()[:, None]
    assert torch.equal(completion.lower_rows(weight)[:, 0], completion.lower(images[:1])[0])


def test_moves_bring_what_is_drawn_near(small: Digits) -> None:
    """The last layer alone, moved so, draws what is missing as well as any input of it could, nearly."""
    with torch.random.fork_rng(devices=[]):
        model = completion.trained(small.train[0], epochs=2, seed=0)
    images = small.pool[0][:8]
    head = model[-1]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        inputs = model[:-1](completion.upper(images))
        moved = completion.lower(head(inputs + completion.moves(model, images)))
        best = torch.linalg.lstsq(completion.lower_rows(head.weight), (completion.lower(images - 0) - completion.lower(
            head(inputs))).T).solution.T  # fmt: skip
        wanted = completion.lower(head(inputs + best))
    left = [float((one - completion.lower(images)).square().mean()) for one in (moved, wanted)]
    assert left[1] <= left[0] < 0.5 * completion.error(model, images)


def test_bars_by_hand() -> None:
    found = completion.Completed((0.1, 0.02), (0.1, 0.06), (0.1, 0.1), 0.9, restored=True)
    assert [bar.met for bar in completion.judged(found)] == [True, False, True, True]


def test_what_comes_out(
    small: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "digits", lambda _source, _seed: small)
    completion.main(["--edits", "6", "--rephrases", "2", "--epochs", "2", "--results", str(tmp_path)])
    quality = printed(capsys)["quality"]
    assert quality["edited"][1] < 0.5 * quality["edited"][0]
    assert quality["restored"] is True and quality["bit_equal"] > 0.5
