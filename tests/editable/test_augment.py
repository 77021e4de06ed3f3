"""Augmentations against their formulas, computed here in another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from editable import augment
from editable.augment import AUGMENTATIONS
from editable.errors import InputError


def _seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _picture(*batch: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(*batch, 3, height, width, generator=_seed(7))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_gives_the_same_images_and_another_seed_or_strength_others(name: str) -> None:
    image = _picture(height=16, width=24)
    change = AUGMENTATIONS[name]
    once = change(image, 0.6, _seed())
    assert once.shape == image.shape
    assert torch.equal(once, change(image, 0.6, _seed()))
    assert not torch.equal(once, change(image, 0.3, _seed()))
    if name not in ("brightness", "contrast", "blur"):  # these draw nothing
        assert any(not torch.equal(once, change(image, 0.6, _seed(other))) for other in (1, 2, 3))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_values_stay_between_0_and_1_and_strength_0_changes_nothing(name: str) -> None:
    images = _picture(2, height=12, width=20)
    changed = AUGMENTATIONS[name](images, 1.0, _seed())
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.allclose(changed, images, atol=0.01)
    torch.testing.assert_close(AUGMENTATIONS[name](images, 0.0, _seed()), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_leading_dimensions_are_a_batch_and_the_images_given_are_not_written(name: str) -> None:
    image = _picture()
    images = image.expand(2, 3, *image.shape).clone()
    before = images.clone()
    changed = AUGMENTATIONS[name](images, 0.5, _seed())
    assert changed.shape == images.shape
    assert torch.equal(images, before)
    alike = [torch.equal(one, changed[0, 0]) for one in changed.flatten(0, 1)]
    assert all(alike) == (name in ("brightness", "contrast", "blur"))


def test_an_image_is_shifted_by_a_quarter_of_its_side_at_most() -> None:
    image = torch.zeros(1, 40, 40)
    image[:, 20, 20] = 1
    bright = (augment.shift(image, 1.0, _seed())[0] > 0.1).nonzero().float().mean(dim=0)
    assert math.isclose(float((bright - 20).norm()), 10, abs_tol=0.75)


def test_an_image_that_is_not_square_is_turned_without_being_sheared() -> None:
    image = torch.zeros(1, 40, 80)
    image[:, 19:21, 60] = 1  # 20 pixels to the right of the centre
    place = (augment.rotate(image, 1.0, _seed())[0] > 0.1).nonzero().float().mean(dim=0) - torch.tensor([19.5, 39.5])
    assert math.isclose(float(place.norm()), 20.5, abs_tol=0.75)
    assert math.isclose(float(place[0].abs()), float(place[1]), abs_tol=0.75)  # by 45 degrees


def test_a_crop_is_half_of_each_side_at_strength_1_and_lies_inside() -> None:
    ramp = torch.arange(64.0).div(63).expand(1, 64, 64)
    cropped = augment.crop(ramp, 1.0, _seed())[0, 0]
    assert math.isclose(float((cropped[-1] - cropped[0]) * 63), 31.5, abs_tol=0.1)


def test_brightness_adds_to_the_value_and_keeps_the_hue() -> None:
    image = torch.tensor([0.2, 0.1, 0.0]).reshape(3, 1, 1)
    assert augment.brightness(image, 0.4, _seed()).flatten().tolist() == pytest.approx([0.4, 0.2, 0.0])
    black = torch.zeros(3, 1, 1)
    assert augment.brightness(black, 0.2, _seed()).flatten().tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_contrast_pulls_towards_the_mean() -> None:
    image = torch.tensor([[[0.0, 1.0]]])
    assert augment.contrast(image, 0.2, _seed()).flatten().tolist() == pytest.approx([0.3, 0.7])  # 0.4 is left
    assert augment.contrast(image, 0.1, _seed()).flatten().tolist() == pytest.approx([0.15, 0.85])  # 0.7 between


def test_noise_has_the_published_deviation() -> None:
    grey = torch.full((1, 200, 200), 0.5)
    assert float(augment.noise(grey, 0.2, _seed()).std()) == pytest.approx(0.08, rel=0.02)


def test_blur_is_a_gaussian_in_proportion_to_the_image() -> None:
    dot = torch.zeros(1, 112, 112)
    dot[:, 56, 56] = 1
    blurred = augment.blur(dot, 0.8, _seed())[0]  # sigma 4 at 224, so 2 here
    assert float(blurred[56, 56]) == pytest.approx(1 / (2 * math.pi * 4), rel=0.01)
    assert float(blurred[56, 58] / blurred[56, 56]) == pytest.approx(math.exp(-0.5), rel=0.001)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)


def test_fog_keeps_the_brightest_value_and_takes_the_contrast() -> None:
    image = torch.rand(1, 32, 32, generator=_seed(3)) * 0.8
    clouds = augment.plasma(1, 32, 2.0, _seed())[0]
    foggy = augment.fog(image, 0.2, _seed())
    torch.testing.assert_close(foggy[0], (image[0] + 1.5 * clouds) * image.max() / (image.max() + 1.5))
    assert augment.fog(image, 1.0, _seed()).max() <= 0.8
    assert torch.equal(augment.fog(torch.zeros(1, 8, 8), 1.0, _seed()), torch.zeros(1, 8, 8))


def test_plasma_is_rough_near_and_rougher_far() -> None:
    clouds = augment.plasma(64, 32, 2.0, _seed())
    assert clouds.amin(dim=(1, 2)).tolist() == [0] * 64
    assert clouds.amax(dim=(1, 2)).tolist() == [1] * 64
    near = (clouds - clouds.roll(1, 2)).abs().mean()
    far = (clouds - clouds.roll(8, 2)).abs().mean()
    assert far > 3 * near


def test_neighbours_are_one_image_of_each_kind() -> None:
    image = _picture()
    found = augment.neighbours(image, strength=0.3, seed=4)
    assert list(found) == list(AUGMENTATIONS)
    assert torch.equal(found["shift"], augment.shift(image, 0.3, _seed(4)))
    assert list(augment.neighbours(image, names=("blur",))) == ["blur"]


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(InputError, match=r"images are torch.uint8 of shape \(3, 4, 4\), expected floats in \[0, 1\]"):
        augment.fog(torch.zeros(3, 4, 4, dtype=torch.uint8), 0.5, _seed())
    with pytest.raises(InputError, match=r"strength is 3, expected a number from 0 to 1"):
        augment.rotate(_picture(), 3, _seed())
    with pytest.raises(InputError, match=r"no augmentation 'rain', expected one of shift, rotate, crop, brightness"):
        augment.neighbours(_picture(), names=("rain",))
