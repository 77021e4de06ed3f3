"""Edits carried from one process to another: one safetensors file, bound to the base weights and the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editable.edit import Patch
from editable.errors import CorruptLogError, InputError, WrongBaseError
from editable.memory.log import Identity

FORMAT = "editable-pack-1"


@dataclass(frozen=True, eq=False)
class Packed:
    """One edit in a pack: its patch, the name of its editor, and what was asked for."""

    patch: Patch
    editor: str
    request: Mapping[str, Any]


def write_pack(path: str | Path, edits: Sequence[Packed], identity: Identity) -> None:
    """Write edits in order. The file appears complete or not at all.

    Raises:
        InputError: there is nothing to write.
    """
    if not edits:
        raise InputError(f"Pack {str(path)!r} would hold no edits, expected at least one live edit; edit first.")
    heads = [
        {"id": e.patch.edit_id, "editor": e.editor, "request": dict(e.request), "meta": dict(e.patch.meta)}
        for e in edits
    ]
    metadata = {
        "format": FORMAT,
        "base": identity.base,
        "tokenizer": identity.tokenizer,
        "editors": identity.editors,
        "edits": json.dumps(heads, sort_keys=True),
    }
    tensors = {f"{i}.{name}": t.contiguous() for i, e in enumerate(edits) for name, t in e.patch.tensors.items()}
    metadata["digest"] = pack_digest(metadata["edits"], tensors)
    target = Path(path)
    draft = target.with_name(f".{target.name}.draft")
    save_file(tensors, draft, metadata)
    draft.replace(target)


def read_pack(path: str | Path, identity: Identity) -> list[Packed]:
    """The edits of a pack, in order.

    Raises:
        InputError: no such file.
        CorruptLogError: not a pack, or one that does not add up.
        WrongBaseError: made with other base weights, another tokenizer or other editors.
    """
    if not Path(path).is_file():
        raise InputError(f"Pack {str(path)!r} does not exist, expected a file written by export().")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_identity(path, metadata, identity)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        if metadata["digest"] != pack_digest(metadata["edits"], tensors):
            raise ValueError("its contents do not add up to its digest")
        heads = json.loads(metadata["edits"])
        return [_packed(index, head, tensors) for index, head in enumerate(heads)]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise CorruptLogError(
            f"Pack {str(path)!r} cannot be read ({error}), expected a file written by export(); export it again."
        ) from error


def pack_digest(edits: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of what a pack holds."""
    digest = hashlib.sha256(edits.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _packed(index: int, head: Mapping[str, Any], tensors: Mapping[str, Any]) -> Packed:
    prefix = f"{index}."
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return Packed(Patch(head["id"], own, head["meta"]), head["editor"], head["request"])


def _check_identity(path: str | Path, metadata: Mapping[str, str], identity: Identity) -> None:
    if metadata.get("format") != FORMAT:
        raise KeyError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    for what in ("base", "tokenizer", "editors"):
        found, own = metadata[what], getattr(identity, what)
        if found != own:
            raise WrongBaseError(
                f"Pack {str(path)!r} was made with {what} {found}, expected {own}, which this model has; "
                "load it into the model, tokenizer and editor configuration it was made with."
            )
