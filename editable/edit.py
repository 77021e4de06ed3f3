"""What goes into an editor (Edit) and what comes out of it (Patch), and what the caller is told (Receipt).

Knows nothing of models, hooks or methods: plain immutable values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from editable.errors import InputError
from editable.pictures import is_picture

if TYPE_CHECKING:
    from PIL.Image import Image

ModelInput: TypeAlias = "str | os.PathLike[str] | Image | Tensor | Mapping[str, Any]"
"""One input: text; a picture, as a PIL image, the path of its file, or a tensor without a batch dimension; or a mapping
of forward kwargs."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One request: on this input, give this answer.

    Args:
        prompt: x_e. Text; a picture: a PIL image, the path of an image file, or a tensor `(channels, height, width)`,
            floats as the model takes them or bytes; or a mapping of forward kwargs with batch size 1 that includes
            `labels`.
        target: y_e. Text (its leading space matters: it continues the prompt), or a class label, by number or name;
            None where the prompt is a mapping that brings its labels.
        rephrases: further inputs that must get the same answer; each becomes a key of this edit.
        locality: inputs whose output must not change; checked before the edit is published.
        subject: the entity the fact is about, where it is known.
        namespace: a name to group edits by, kept in the log and shown in lists; every call sees all of them.

    Raises:
        InputError: the prompt or the target is empty or of an unusable type.
    """

    prompt: ModelInput
    target: str | int | None = None
    rephrases: Sequence[ModelInput] = ()
    locality: Sequence[ModelInput] = ()
    subject: str | None = None
    namespace: str = "default"

    def __post_init__(self) -> None:
        for name in ("rephrases", "locality"):
            value = getattr(self, name)
            if isinstance(value, str | os.PathLike | Tensor | Mapping) or is_picture(value):
                raise InputError(
                    f"Edit.{name} is one {type(value).__name__}, expected a sequence of inputs; "
                    f"write {name}=[...] around it."
                )
            object.__setattr__(self, name, tuple(value))
        check_prompt("Edit.prompt", self.prompt)
        for name in ("rephrases", "locality"):
            for position, value in enumerate(getattr(self, name)):
                check_prompt(f"Edit.{name}[{position}]", value)
        _check_target(self.prompt, self.target)


def check_prompt(name: str, value: ModelInput) -> None:
    """Refuse an input that is empty or of an unusable type.

    Raises:
        InputError: it is; the message calls it `name`.
    """
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{name} is {value!r}, expected some text; give the question to be answered.")
    elif isinstance(value, Tensor):
        if value.numel() == 0:
            raise InputError(f"{name} is a tensor of shape {tuple(value.shape)}, expected a non-empty one.")
    elif not (is_picture(value) or isinstance(value, os.PathLike)) and (not isinstance(value, Mapping) or not value):
        raise InputError(
            f"{name} is {value!r}, expected text, a picture (a PIL image, a path or a tensor), or a mapping of forward "
            "kwargs."
        )


def _check_target(prompt: ModelInput, target: str | int | None) -> None:
    if isinstance(target, str):
        if not target.strip():
            raise InputError(f"Edit.target is {target!r}, expected some text; give the answer that should follow.")
    elif isinstance(target, bool) or not isinstance(target, int | None):
        raise InputError(f"Edit.target is {target!r}, expected text or an integer class label.")
    elif target is None and not (isinstance(prompt, Mapping) and prompt.get("labels") is not None):
        raise InputError(
            "Edit.target is missing, expected text or an integer class label; it may be left out only where the "
            "prompt is a mapping of forward kwargs with `labels`."
        )


@dataclass(frozen=True, eq=False)
class Patch:
    """What learning one edit produced: a few tensors and plain metadata. What the log stores, a pack carries.

    Args:
        edit_id: the edit it belongs to.
        tensors: name to tensor, all on the CPU and contiguous; shapes are the editor's own.
        meta: plain JSON values that the editor needs to insert the patch again.
    """

    edit_id: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))
        bad = [name for name, t in self.tensors.items() if t.is_floating_point() and not _finite(t)]
        if bad:
            raise InputError(
                f"Patch of edit {self.edit_id!r} has NaN or infinite values in {bad}, expected finite numbers; "
                "learn the edit again, or drop it."
            )


def _finite(tensor: Tensor) -> bool:
    # A finite sum tells at once; one that is not may also have overflowed.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


@dataclass(frozen=True)
class Verification:
    """What was checked on the candidate before it was published.

    Args:
        reliability: share of answer tokens (or labels) right on the prompt and the rephrases, teacher-forced.
        locality: share of the edit's locality inputs whose logits are bit-equal to the unedited model's;
            1.0 where none were given.
        collisions: ids of live edits that answer otherwise and whose scope had to be parted from the new edit's.
    """

    reliability: float
    locality: float
    collisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What an edit did: its id, the version that first shows it, what was verified, and seconds per phase."""

    id: str
    version: int
    verified: Verification
    superseded: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
