"""A model that answers in the base model's stead, with an edit in front of what it reads (SERAC, section 4.1).

It is a second tree over the base model's own storage, without our hooks, with fitted low-rank deltas beside its
weights; or another model with the same tokenizer. What it has read is kept as plain tensors whose first axis is the
rows, so that it goes along with the base model's KV cache. Knows tokens and how an edit reads; knows no scope.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editable.digest import base_digest
from editable.errors import InputError
from editable.inputs import Reader, Request
from editable.learn import shadow_of, shares_storage
from editable.lowrank import Deltas, made_for, put_beside, read
from editable.site import Site, block_paths, context_length, is_seq2seq

Read = Mapping[str, Tensor]
"""What a counterfactual model has read, rows first: of a decoder its keys and values, of an encoder-decoder the
encoder's states and the decoder's tokens."""

WEIGHTS = Path(__file__).parent / "weights"

_SEEN: ContextVar[list[Tensor] | None] = ContextVar("editable_counterfactual_seen", default=None)


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """See the module docstring. Holds no state of any call, so threads may share it.

    Args:
        model: what reads, hook-free.
        base: the model it stands in for.
        is_base: whether it stands over the base model's weights; then it gives what its last block gives, to be put in
            the base's place there, and else its logits.
    """

    model: nn.Module
    base: nn.Module
    is_base: bool = True

    @classmethod
    def of_base(cls, base: nn.Module, deltas: Deltas | None = None) -> Counterfactual:
        """The base model itself, with `deltas` beside its weights."""
        shadow = shadow_of(base)
        put_beside(shadow, deltas or {})
        site = Site(block_paths(shadow)[-1])
        shadow.get_submodule(site.path).register_forward_hook(lambda _module, _args, output: _note(site.read(output)))
        return cls(shadow, base)

    @classmethod
    def of_other(cls, base: nn.Module, other: nn.Module) -> Counterfactual:
        """Another model with the same tokenizer."""
        device = next(base.parameters()).device
        return cls(other.to(device).eval(), base, is_base=False)

    @property
    def usable(self) -> bool:
        """Whether it still stands over the base model's weights (the model may have been moved)."""
        return not self.is_base or shares_storage(self.model, self.base)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def begin(self, texts: Sequence[Sequence[int]], columns: Tensor, last: int) -> tuple[Tensor, Read]:
        """Read whole texts.

        Args:
            texts: (rows,) token ids of each, context in front.
            columns: (rows, n) what the base model has read so far: a decoder's columns, of which only the number
                counts; an encoder-decoder's decoder tokens.
            last: so many positions at the end are wanted.

        Returns:
            (rows, m, features) at the last m positions, the last real token of every row in the last column; for an
            encoder-decoder at the n decoder positions. And what to go on with.
        """
        if is_seq2seq(self.model):
            longest = context_length(self.model)
            ids, mask = _padded([text[-longest:] for text in texts], left=False, device=self._device)
            states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[operator]
            return self._decoded({"states": states, "mask": mask, "heard": columns})
        ids, mask = _padded(texts, left=True, device=self._device)
        blank = torch.zeros(columns.shape, dtype=torch.bool, device=columns.device)
        return self._read_on(ids, DynamicCache(), {"mask": mask, "columns": blank}, last)

    @torch.no_grad()
    def go_on(self, tokens: Tensor, past: int, read: Read) -> tuple[Tensor, Read]:
        """Read the next tokens (rows, n) of the base model, which has read `past` columns before.

        It may have taken some back since. Returns (rows, n, features), and what to go on with.
        """
        if "heard" in read:
            features, read = self._decoded({**read, "heard": torch.cat([read["heard"][:, :past], tokens], dim=1)})
            return features[:, -tokens.shape[1] :], read
        kept = read["mask"].shape[1] + past - read["columns"].shape[1]
        cache = DynamicCache()
        for layer in range(sum(name.startswith("key") for name in read)):
            cache.update(read[f"key{layer}"][:, :, :kept], read[f"value{layer}"][:, :, :kept], layer)
        return self._read_on(tokens, cache, read, tokens.shape[1])

    def _decoded(self, read: Read) -> tuple[Tensor, Read]:
        """Answers are short: the decoder reads its own from the start each time, the encoder has read once."""
        if self.is_base:
            decoder = self.model.get_decoder()  # type: ignore[operator]
            given = {"encoder_hidden_states": read["states"], "encoder_attention_mask": read["mask"]}
            return self._features(decoder, input_ids=read["heard"], use_cache=False, **given)[0], read
        encoded = {"encoder_outputs": (read["states"],), "attention_mask": read["mask"]}
        return self._features(self.model, decoder_input_ids=read["heard"], use_cache=False, **encoded)[0], read

    def _read_on(self, ids: Tensor, cache: DynamicCache, read: Read, last: int) -> tuple[Tensor, Read]:
        past = int(cache.get_seq_length())
        first, width = read["mask"], past + ids.shape[1]
        mask = torch.cat([first[:, :width], first.new_ones(len(first), max(width - first.shape[1], 0))], dim=1)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        module: Any = self.model.base_model if self.is_base else self.model
        known = inspect.signature(module.forward).parameters
        if not self.is_base and "logits_to_keep" in known:
            arguments["logits_to_keep"] = last
        if "position_ids" in known:
            # Clamped above too: the text may just fit the base model's context, and not with an edit in front of it.
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(0, context_length(self.model) - 1)[:, past:]
        features, cache = self._features(module, use_cache=True, **arguments)
        kept = {name: read[name] for name in ("mask", "columns")}
        for place, layer in enumerate(cache.layers):
            kept |= {f"key{place}": layer.keys, f"value{place}": layer.values}
        return features, kept

    def _features(self, module: Any, **arguments: Any) -> tuple[Tensor, Any]:
        seen: list[Tensor] = []
        token = _SEEN.set(seen)
        try:
            output = module(**arguments)
        finally:
            _SEEN.reset(token)
        return seen[-1] if self.is_base else output.logits, getattr(output, "past_key_values", None)


def context(request: Request, reader: Reader) -> tuple[int, ...]:
    """An edit as it stands in front of a prompt: its own prompt, its answer with the end token, and a line break.

    The end token is what tells the model where an answer of this edit stops.
    """
    ids = request.prompts[0].get("input_ids")
    if ids is None:
        return ()
    mask = request.prompts[0].get("attention_mask")
    prompt = ids[0] if mask is None else ids[0][mask[0].bool()]
    line = () if reader.tokenizer is None else reader.tokenizer("\n", add_special_tokens=False)["input_ids"]
    return (*prompt.tolist(), *request.answer, *line)


def in_context(before: Sequence[Request], asked: Request, reader: Reader) -> Request:
    """The request with edits in front of each of its prompts."""
    told = [token for request in before for token in context(request, reader)]
    ids = torch.tensor([told], dtype=torch.long, device=reader.device)
    prompts = ({"input_ids": torch.cat([ids, prompt["input_ids"]], dim=1)} for prompt in asked.prompts)
    return replace(asked, prompts=tuple(prompts))


def texts(contexts: Sequence[Sequence[int]], tokens: Tensor, rows: Iterable[int]) -> list[list[int]]:
    """A context in front of each of these rows of tokens (batch, columns), whose padding is negative."""
    asked = tokens.cpu().numpy()
    return [[*before, *(int(t) for t in asked[row] if t >= 0)] for before, row in zip(contexts, rows, strict=True)]


def shipped(model: nn.Module) -> Deltas:
    """The weights in this package that were fitted beside the very weights of this model; none for most models."""
    for file in sorted(WEIGHTS.glob("*.safetensors")):
        if made_for(model, file):
            deltas, notes = read(file)
            if notes["base"] == base_digest(model):
                return deltas
    return {}


def fitted(path: str | Path, model: nn.Module) -> Deltas:
    """The weights of a file.

    Raises:
        InputError: they were fitted beside another model.
    """
    deltas, notes = read(path)
    if notes.get("base") != base_digest(model):
        raise InputError(
            f"The weights {str(path)!r} were fitted beside the base {notes.get('base', 'unknown')[:12]}, expected "
            f"{base_digest(model)[:12]}; fit them again for this {type(model).__name__}."
        )
    return deltas


def _note(rows: Tensor) -> None:
    seen = _SEEN.get()
    if seen is not None:
        seen.append(rows)


def _padded(texts: Sequence[Sequence[int]], left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, longest) token ids, and which are real."""
    width = max(map(len, texts))
    pads = [[0] * (width - len(text)) for text in texts]
    ids = [[*pad, *text] if left else [*text, *pad] for text, pad in zip(texts, pads, strict=True)]
    ones = [[1] * len(text) for text in texts]
    mask = [[*pad, *one] if left else [*one, *pad] for one, pad in zip(ones, pads, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
