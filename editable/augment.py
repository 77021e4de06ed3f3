"""Neighbourhoods of an image: augmentations and corruptions that leave what it shows alone.

The corruptions are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), at strengths between its severities.
Every function takes images (..., channels, height, width) with values in [0, 1], a strength from 0 (nothing changes,
but for rounding) to 1, and a generator, from which each image of a batch draws for itself; the same seed gives the same
images. Knows nothing of models: images are changed before a model's own transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from editable.errors import InputError

Augmentation = Callable[[Tensor, float, torch.Generator], Tensor]


# Augmentations: the camera moves


def shift(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Moved in a random direction, by a quarter of the side at strength 1; edges are continued."""
    angle = 2 * math.pi * _drawn(images, strength, generator)
    return _warped(images, turn=0 * angle, scale=1 + 0 * angle, move=strength / 2 * _unit(angle))


def rotate(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turned to a random side, by 45 degrees at strength 1; edges are continued."""
    side = (_drawn(images, strength, generator) < 0.5).float() * 2 - 1
    turn = math.pi / 4 * strength * side
    return _warped(images, turn, scale=torch.ones_like(turn), move=torch.zeros(len(turn), 2))


def crop(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A part at a random place, enlarged to the full size; half of each side at strength 1."""
    share = 1 - strength / 2
    places = torch.stack([_drawn(images, strength, generator) for _ in "xy"], dim=1)
    still = torch.zeros(len(places))
    return _warped(images, still, share + still, move=(2 * places - 1) * (1 - share))


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _warped(images: Tensor, turn: Tensor, scale: Tensor, move: Tensor) -> Tensor:
    """Sampled where a map puts each pixel: turned by (n,) radians, scaled by (n,), moved by (n, 2) half sides."""
    flat = images.reshape(-1, *images.shape[-3:])
    height, width = flat.shape[-2:]
    ratio = height / width  # coordinates run from -1 to 1 on both sides, whatever their lengths
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = [torch.stack([cos, -sin * ratio, move[:, 0]], dim=1), torch.stack([sin / ratio, cos, move[:, 1]], dim=1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1).to(flat), list(flat.shape), align_corners=False)
    return functional.grid_sample(flat, grid, padding_mode="border", align_corners=False).reshape(images.shape)


# Corruptions: the light, the sensor, the weather


def brightness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brighter: up to 0.5 is added to the value of each pixel (V of HSV); hue and saturation stay."""
    _check(images, strength, generator)
    value = images.amax(dim=-3, keepdim=True)
    brighter = (value + _between((0, 0.1, 0.2, 0.3, 0.4, 0.5), strength)).clamp_max(1)
    return torch.where(value > 0, images * (brighter / value.clamp_min(1e-12)), brighter)


def contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Pulled towards the mean of each channel, down to 0.05 of the distance."""
    _check(images, strength, generator)
    mean = images.mean(dim=(-2, -1), keepdim=True)
    return mean + (images - mean) * _between((1, 0.4, 0.3, 0.2, 0.1, 0.05), strength)


def noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of each value, of a standard deviation up to 0.38."""
    _check(images, strength, generator)
    sigma = _between((0, 0.08, 0.12, 0.18, 0.26, 0.38), strength)
    return (images + sigma * torch.randn(images.shape, generator=generator).to(images)).clamp(0, 1)


def blur(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur, of a standard deviation up to 6 pixels at 224 pixels, in proportion at other sizes."""
    _check(images, strength, generator)
    sigma = _between((0, 1, 2, 3, 4, 6), strength) * min(images.shape[-2:]) / 224
    flat = images.reshape(-1, 1, *images.shape[-2:])
    for side in (-2, -1):
        flat = _smoothed(flat, sigma, side)
    return flat.reshape(images.shape).clamp(0, 1)


def _smoothed(flat: Tensor, sigma: float, side: int) -> Tensor:
    """(n, 1, height, width) smoothed along one side, cut off at 4 standard deviations; edges are continued."""
    reach = min(math.ceil(4 * sigma), flat.shape[side] - 1)
    steps = torch.arange(-reach, reach + 1).to(flat)
    weights = torch.exp(-(steps**2) / (2 * max(sigma, 1e-6) ** 2))
    shape, pad = ((1, 1, -1, 1), (0, 0, reach, reach)) if side == -2 else ((1, 1, 1, -1), (reach, reach, 0, 0))
    return functional.conv2d(functional.pad(flat, pad, "replicate"), (weights / weights.sum()).reshape(shape))


def fog(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Fog: plasma in [0, 1], up to 3 times, is added, and all is scaled back to the brightest value of the image."""
    _check(images, strength, generator)
    amount = _between((0, 1.5, 2, 2.5, 2.5, 3), strength)
    decay = _between((2, 2, 2, 1.7, 1.5, 1.4), strength)
    flat = images.reshape(-1, *images.shape[-3:])
    height, width = flat.shape[-2:]
    clouds = plasma(len(flat), 2 ** math.ceil(math.log2(max(height, width, 2))), decay, generator).to(flat)
    brightest = flat.amax(dim=(1, 2, 3), keepdim=True)
    foggy = (flat + amount * clouds[:, None, :height, :width]) * (brightest / (brightest + amount).clamp_min(1e-12))
    return foggy.clamp(0, 1).reshape(images.shape)


def plasma(count: int, side: int, decay: float, generator: torch.Generator) -> Tensor:
    """(count, side, side) random clouds from 0 to 1 by the diamond-square scheme on a torus; side is a power of two.

    At each halving of the step the new points are the mean of their four neighbours plus uniform noise, whose range
    falls by the square of `decay`, as in the published code.
    """
    clouds = torch.zeros(count, side, side)
    step, reach = side, 1.0
    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = _wobbling(pairs + pairs.roll(-1, 2), reach, generator)
        clouds[:, half::step, half::step] = centres
        above = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        beside = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        clouds[:, ::step, half::step] = _wobbling(above, reach, generator)
        clouds[:, half::step, ::step] = _wobbling(beside, reach, generator)
        step, reach = half, reach / decay**2
    low, high = clouds.amin(dim=(1, 2), keepdim=True), clouds.amax(dim=(1, 2), keepdim=True)
    return (clouds - low) / (high - low)


def _wobbling(sums: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    return sums / 4 + reach * (2 * torch.rand(sums.shape, generator=generator) - 1)


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "shift": shift,
        "rotate": rotate,
        "crop": crop,
        "brightness": brightness,
        "contrast": contrast,
        "noise": noise,
        "blur": blur,
        "fog": fog,
    }
)
"""Name to function."""


def neighbours(
    image: Tensor, strength: float = 0.2, seed: int = 0, names: tuple[str, ...] = tuple(AUGMENTATIONS)
) -> dict[str, Tensor]:
    """One image of each kind: name to (channels, height, width).

    Raises:
        InputError: an unknown kind, or what the kinds refuse.
    """
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise InputError(f"There is no augmentation {unknown[0]!r}, expected one of {', '.join(AUGMENTATIONS)}.")
    generator = torch.Generator().manual_seed(seed)
    return {name: AUGMENTATIONS[name](image, strength, generator) for name in names}


def _drawn(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """(n,) in [0, 1), one number for each image."""
    _check(images, strength, generator)
    return torch.rand(math.prod(images.shape[:-3]), generator=generator)


def _between(values: tuple[float, ...], strength: float) -> float:
    """The value at a strength: `values` lie at 0, 0.2 and so on; from the second on they are severities 1 to 5."""
    place = strength * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (place - low)


def _check(images: Tensor, strength: float, generator: torch.Generator) -> None:
    if images.ndim < 3 or not images.is_floating_point():
        raise InputError(
            f"The images are {images.dtype} of shape {tuple(images.shape)}, expected floats in [0, 1] of shape "
            "(..., channels, height, width); change images before the model's own transform."
        )
    if not 0 <= strength <= 1:
        raise InputError(f"The strength is {strength}, expected a number from 0 to 1.")
    if generator.device.type != "cpu":
        raise InputError(f"The generator is on {generator.device}, expected one on the CPU: torch.Generator().")
