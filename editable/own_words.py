"""Inputs that nobody gave: what a frozen model says by itself, images that show nothing in particular or the same.

What an editor keeps its hands off where its user has no corpus at hand. Always the same for the same model, so what a
place in a model makes of it is worked out once and kept in the user's cache; the global random state is neither read
nor moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editable import augment
from editable.digest import base_digest, bytes_digest
from editable.models import cache_dir

SEQUENCES = 64
TOKENS = 16  # in each
SHUFFLES = 4  # of each image
TILES = 4  # to a side
NUDGE = 0.1  # strength of a change that leaves alone what an image shows


@torch.no_grad()
def speak(model: nn.Module, decoder_start: int | None = None) -> Tensor:
    """Tokens (SEQUENCES, TOKENS) sampled from the model, each sequence begun with a token drawn evenly.

    A first token at random, then the model's own choice, as data-free quantisation does it (LLM-QAT, Liu et al., 2023,
    section 2.1). Where a decoder starts with `decoder_start`, its encoder is given tokens drawn evenly.
    """
    random = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    vocabulary = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    drawn = torch.randint(vocabulary, (SEQUENCES, TOKENS), generator=random).to(device)
    name, said, arguments = "input_ids", drawn[:, :1], dict[str, Any](use_cache=True)
    if decoder_start is not None:
        name, said = "decoder_input_ids", torch.full_like(drawn[:, :1], decoder_start)
        arguments["encoder_outputs"] = (model.get_encoder()(input_ids=drawn)[0],)  # type: ignore[operator]
    for step in range(TOKENS):
        output = model(**arguments, **{name: said[:, -1:]})
        arguments["past_key_values"] = output.past_key_values
        if step < TOKENS - 1:
            chances = output.logits[:, -1].float().softmax(dim=-1).cpu()
            said = torch.cat([said, torch.multinomial(chances, 1, generator=random).to(device)], dim=1)
    return said


def folder() -> Path:
    """Where `kept` keeps its files: below `EDITABLE_CACHE`, or the user's cache directory."""
    return cache_dir() / "own_words"


def kept(model: nn.Module, place: str, work_out: Callable[[], Tensor]) -> Tensor:
    """What `work_out` makes of what the model says, from the cache where a model of the same weights has left it there.

    A file that is damaged counts as none, and a folder that cannot be written to keeps nothing.

    Args:
        model: whose weights name the file, so that none is ever read for another model.
        place: what else the result depends on: where in the model it is read, how speaking begins.
        work_out: makes the tensor; called where there is no file.
    """
    key = json.dumps([base_digest(model), place, SEQUENCES, TOKENS])
    path = folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    found = _read(path)
    if found is None:
        found = work_out()
        with contextlib.suppress(OSError):
            _write(path, found)
    return found


def _read(path: Path) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor("rows")
            return tensor if file.metadata() == {"digest": bytes_digest(tensor)} else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, tensor: Tensor) -> None:
    """Under its name complete or not at all: written beside it and renamed."""
    from safetensors.torch import save_file

    plain = tensor.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        save_file({"rows": plain}, draft, {"digest": bytes_digest(plain)})
        draft.replace(path)


def shuffled_tiles(arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The images (batch, channels, height, width) among forward kwargs, SHUFFLES of each, their tiles out of order."""
    random = torch.Generator().manual_seed(0)
    orders = [torch.randperm(TILES * TILES, generator=random) for _ in range(SHUFFLES)]
    return {name: torch.cat([_tiled(value, order) for order in orders]) for name, value in _images(arguments)}


def nudged(arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The images (batch, channels, height, width) among forward kwargs shifted, then turned, then cropped, a little."""
    return {name: torch.cat(_nudged(value)) for name, value in _images(arguments)}


def _nudged(images: Tensor) -> list[Tensor]:
    """All in the same way, as one image of many channels: whatever else is in the batch."""
    random = torch.Generator().manual_seed(0)
    changes = (augment.shift, augment.rotate, augment.crop)  # these keep values of any range
    return [change(images.flatten(0, 1), NUDGE, random).reshape(images.shape) for change in changes]


def _images(arguments: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in arguments.items() if value.ndim == 4 and value.is_floating_point()]


def _tiled(images: Tensor, order: Tensor) -> Tensor:
    height, width = (size // TILES for size in images.shape[2:])
    whole = images[:, :, : height * TILES, : width * TILES]
    tiles = whole.unflatten(3, (TILES, width)).unflatten(2, (TILES, height)).transpose(3, 4).flatten(2, 3)
    mixed = tiles[:, :, order.to(images.device)].unflatten(2, (TILES, TILES)).transpose(3, 4)
    shuffled = images.clone()  # a rim that no tile covers stays
    shuffled[:, :, : height * TILES, : width * TILES] = mixed.flatten(4, 5).flatten(2, 3)
    return shuffled
