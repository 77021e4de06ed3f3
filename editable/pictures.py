"""Pictures as a model's input: image files and PIL images, through the model's own transform.

Knows the transforms of torchvision, timm and Hugging Face, and takes any other callable. Knows nothing of edits.
Neither Pillow nor timm is loaded before somebody gives a picture or a model that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editable.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import TypeIs


@dataclass(frozen=True, eq=False)
class Transform:
    """How a model sees a picture, and what its labels are called; goes where a text model's tokenizer goes.

    Args:
        function: from a PIL image to a tensor (channels, height, width): torchvision's `weights.transforms()`, timm's
            `create_transform(...)`, a Hugging Face image processor, or any callable; None reads no pictures.
        labels: names of the labels, in order; empty where they have none.
    """

    function: Callable[..., Any] | None = None
    labels: Sequence[str] = field(default=(), repr=False)

    @classmethod
    def of(cls, model: nn.Module, given: Any = None) -> Transform:
        """The transform of a model: the one given; else timm's for a model of timm; else one that reads no pictures."""
        if isinstance(given, Transform):
            return given
        return of_timm(model) if given is None and hasattr(model, "pretrained_cfg") else cls(given)

    def __call__(self, picture: Image) -> Tensor:
        """(channels, height, width) what the model is given for a picture.

        Raises:
            InputError: there is no function, or it gives something else.
        """
        if self.function is None:
            raise InputError(
                "The input is a picture, but no transform was given, expected what makes of it the tensor that the "
                "model takes; pass EditableModel(model, transform, ...), such as ResNet18_Weights.DEFAULT.transforms(),"
                " an image processor, or any callable from a PIL image to a tensor (channels, height, width)."
            )
        if hasattr(self.function, "model_input_names"):  # a Hugging Face image processor
            made = self.function(images=picture, return_tensors="pt")["pixel_values"][0]
        else:
            made = self.function(picture)
        if not isinstance(made, Tensor) or made.ndim != 3:
            shape = f" of shape {tuple(made.shape)}" if isinstance(made, Tensor) else ""
            raise InputError(
                f"The transform made a {type(made).__name__}{shape} of a picture, expected a tensor (channels, height, "
                "width); give one that ends with a tensor, without a batch dimension."
            )
        return made


def of_timm(model: Any) -> Transform:
    """What timm says of a model of its own: its evaluation transform, and ImageNet's names where those are its labels.

    Raises:
        MissingPackageError: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
    except ImportError as error:
        raise MissingPackageError(
            "The transform of a timm model comes from the package 'timm', which is not installed; run "
            "`pip install 'editable[vision]'`, or pass a transform of your own in the place of a tokenizer."
        ) from error
    labels = model.pretrained_cfg.get("label_names") or ()
    as_published = model.num_classes == model.pretrained_cfg.get("num_classes")
    subset = infer_imagenet_subset(model) if as_published and not labels else None
    if subset is not None:
        labels = ImageNetInfo(subset).label_descriptions()
    return Transform(create_transform(**resolve_model_data_config(model), is_training=False), tuple(labels))


def takes_pictures(model: nn.Module, given: Any = None) -> bool:
    """Whether a model's input is images, so that what was `given` beside it is a transform and not a tokenizer."""
    main = getattr(model, "main_input_name", None)  # Hugging Face's models say it
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return isinstance(given, Transform) or main == "pixel_values" or (main is None and convolves)


def is_picture(value: object) -> TypeIs[Image]:
    """Whether a value is a PIL image; Pillow is not loaded to find out."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def read(given: Image | str | os.PathLike[str] | Tensor, model: nn.Module, transform: Transform) -> Tensor:
    """(channels, height, width) what a model is given for a picture.

    Args:
        given: a PIL image; the path of an image file; or a tensor (channels, height, width), which is a picture if it
            holds bytes, and is taken as it is if it holds floats.
        model: says how many channels a picture must have.
        transform: the model's.

    Raises:
        InputError: no such file, not an image, or no transform.
        MissingPackageError: Pillow is not installed.
    """
    if isinstance(given, Tensor) and given.is_floating_point():
        return given
    if isinstance(given, Tensor):
        given = _of_bytes(given)
    picture = given if is_picture(given) else opened(given)
    made = transform(_upright(picture).convert("L" if _channels(model) == 1 else "RGB"))
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return made.to(next(dtypes, made.dtype))


def opened(path: str | os.PathLike[str]) -> Image:
    """The picture in a file, read to its end.

    Raises:
        InputError: no such file, or it holds no image.
        MissingPackageError: Pillow is not installed.
    """
    image = _pillow()
    place = Path(path).expanduser()
    if not place.is_file():
        what = "is a folder" if place.is_dir() else f"does not exist (looked in {Path.cwd()})"
        raise InputError(f"Image file {str(path)!r} {what}, expected the path of an image; check the path.")
    try:
        with image.open(place) as picture:
            picture.load()
            return picture  # type: ignore[no-any-return]
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise InputError(
            f"File {str(path)!r} cannot be read as an image, expected one in a format that Pillow knows, such as PNG "
            f"or JPEG. Reason: {error}"
        ) from error


def _of_bytes(tensor: Tensor) -> Image:
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(
            f"The image is a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}, expected floats as the model "
            "takes them, or bytes of shape (1 or 3, height, width)."
        )
    array = tensor.movedim(0, 2).cpu().numpy()
    return _pillow().fromarray(array[..., 0] if array.shape[2] == 1 else array)  # type: ignore[no-any-return]


def _upright(picture: Image) -> Image:
    """Turned as the camera says that it was held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _channels(model: nn.Module) -> int:
    """Of what the first convolution takes; 3 without one."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), 3)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError(
            "Pictures are read with the package 'pillow', which is not installed; run "
            "`pip install 'editable[vision]'`, or give tensors."
        ) from error
    return Image
