"""Fingerprints of the base weights and of the tokenizer, by which a log or a pack recognises its model.

Knows how to read parameters, persistent buffers and a tokenizer's tables as bytes. Knows nothing of edits, of
logs or of where a model came from: two models with equal names, dtypes, shapes and bytes have one digest, on
any device, in any process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from editable.errors import StateError

_MAX_THREADS = 4  # more than a few threads only wait for memory


def base_digest(model: nn.Module) -> str:
    """Digest all parameters and persistent buffers of a model.

    A weight that is tied counts under each of its names, so neither the order of tying nor an untied copy of
    equal values changes the digest; nor do the device, the memory layout, `requires_grad` or hooks. The
    weights are read in place: only a tensor that is not on the CPU or not contiguous is copied, one at a time
    and thread.

    Returns:
        SHA-256 as 64 hex digits.

    Raises:
        StateError: a parameter or buffer holds no data (it is on the meta device).
    """
    tensors = dict(sorted(_persistent_tensors(model)))
    distinct = {_identity(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:  # hashlib releases the GIL
        hashed = dict(zip(distinct, pool.map(bytes_digest, distinct.values()), strict=True))
    whole = hashlib.sha256()
    for name, tensor in tensors.items():
        line = [name, str(tensor.dtype), list(tensor.shape), hashed[_identity(tensor)]]
        whole.update(json.dumps(line).encode() + b"\n")
    return whole.hexdigest()


def tokenizer_digest(tokenizer: Any | None) -> str:
    """Digest what decides which ids a text becomes: vocabulary, merges, normaliser, added tokens.

    Padding and truncation are left out: they change from call to call. So are the chat template and the roles
    of special tokens: they do not change the ids of a given text.

    Args:
        tokenizer: a Hugging Face tokenizer, or None for a model without one.

    Returns:
        SHA-256 as 64 hex digits; the empty string for None.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tables: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        tables = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def _persistent_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what `state_dict` would hold, without running state-dict hooks that a library may have set."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is None or name in module._non_persistent_buffers_set:
                continue
            path = f"{prefix}.{name}" if prefix else name
            if tensor.is_meta:
                raise StateError(
                    f"{path!r} is on the meta device and holds no data, expected weights in memory; load the "
                    "model without offloading (no device_map that places modules on disk) and try again."
                )
            yield path, tensor.detach()


def _identity(tensor: Tensor) -> Hashable:
    """Tell tied tensors, so that shared bytes are hashed once."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def bytes_digest(tensor: Tensor) -> str:
    """Digest the bytes of a tensor alone: SHA-256 as 64 hex digits."""
    flat = tensor.cpu().contiguous().reshape(-1)  # no copy for a contiguous tensor on the CPU
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
