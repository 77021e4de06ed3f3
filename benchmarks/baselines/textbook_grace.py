"""GRACE as the paper's readers would write it down, without any thought of speed: what the editor is compared with.

After Hartvigsen et al., NeurIPS 2023. One linear layer is wrapped; every edit runs 50 steps of Adam at learning rate
1.0, from a value drawn from U[0, 1), each step a whole forward and backward of the full model; the radius is 1.0
whatever the activations' scale; the key is the layer's input at the last prompt token, the value replaces its output
there (`replace_last`). Targets are learned without their end. Free generation recomputes the whole text for every
token, with the key's position fixed, since a cached step would ask about its own new token.

Two published slips are left out, because no one would want them back: labels are compared token by token, and the
codebook grows by appending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from editable.adapters import GRACE
from editable.asking import Asker
from editable.edit import Edit, ModelInput
from editable.errors import InputError
from editable.learn import shadow_of
from editable.system import Answer

STEPS = 50
RATE = 1.0
RADIUS = 1.0
SPLIT_GAP = 1e-5


@dataclass(frozen=True)
class Rule:
    """What an insertion does to the book.

    Args:
        kind: add an entry; split the space with the nearest one; expand the nearest one; or keep all as it is.
        own: radius of the new entry; None where there is none.
        nearest: new radius of the nearest entry; None where it keeps its own.
    """

    kind: Literal["add", "split", "expand", "keep"]
    own: float | None = None
    nearest: float | None = None


def rule(distance: float, reach: float, same: bool, initial: float = RADIUS) -> Rule:
    """GRACE's insertion rule for a query at `distance` from the nearest entry, whose radius is `reach`.

    An empty book is one whose nearest entry is infinitely far.
    """
    if distance > initial + reach:
        return Rule("add", own=initial)
    if not same:
        return Rule("split", own=distance / 2, nearest=distance / 2 - SPLIT_GAP)
    return Rule("expand", nearest=distance) if distance > reach else Rule("keep")


class Wrapped(nn.Module):
    """A linear layer with a codebook around it.

    Args:
        linear: the layer; not changed.
        features: length of its output.
    """

    def __init__(self, linear: nn.Module, features: int) -> None:
        super().__init__()
        self.linear = linear
        self.features = features
        self.position: int | None = None  # of the key token; None lets everything pass
        self.pending: tuple[int, ...] | None = None  # answer of an edit that waits for its key
        self.clear()

    def clear(self) -> None:
        """Forget all entries."""
        self.keys: list[Tensor] = []
        self.values = nn.ParameterList()
        self.radii: list[float] = []
        self.labels: list[tuple[int, ...]] = []
        self.chosen = -1

    def forward(self, x: Tensor) -> Tensor:
        """From (1, positions, features in) to (1, positions, features out)."""
        h: Tensor = self.linear(x)
        if self.position is None:
            return h
        query = x[0, self.position].detach()
        if self.pending is not None:
            self.chosen = self.insert(query, self.pending)
            self.pending = None
        near, distance = self.nearest(query)
        if near < 0 or distance > self.radii[near]:
            return h
        here = (torch.arange(h.shape[1], device=h.device) == self.position)[None, :, None]
        return torch.where(here, self.values[near], h)

    def nearest(self, query: Tensor) -> tuple[int, float]:
        """Row and distance of the nearest key; -1 and infinity in an empty book."""
        if not self.keys:
            return -1, float("inf")
        distances = torch.cdist(query[None], torch.stack(self.keys))[0]
        row = int(distances.argmin())
        return row, float(distances[row])

    def insert(self, query: Tensor, label: tuple[int, ...]) -> int:
        """Apply the rule; gives the row whose value has to be trained."""
        near, distance = self.nearest(query)
        reach, same = (self.radii[near], self.labels[near] == label) if near >= 0 else (0.0, False)
        decided = rule(distance, reach, same)
        if decided.nearest is not None:
            self.radii[near] = decided.nearest
        if decided.own is None:
            return near
        self.keys.append(query)
        self.values.append(nn.Parameter(torch.rand(self.features, device=query.device, dtype=query.dtype)))
        self.radii.append(decided.own)
        self.labels.append(label)
        return len(self.keys) - 1


class TextbookGRACE:
    """A model edited the textbook way.

    Args:
        model: a decoder without gradients; the layer at `path` is wrapped, so give it a module tree of its own.
        path: dotted path of the layer.
        end: the token that ends an answer.
    """

    def __init__(self, model: Any, path: str, end: int) -> None:
        self.model = model
        self.end = end
        parent, _, name = path.rpartition(".")
        linear = model.get_submodule(path)
        features = int(linear.out_features if hasattr(linear, "out_features") else linear.nf)
        self.book = Wrapped(linear, features)
        setattr(model.get_submodule(parent), name, self.book)

    def edit(self, prompt: Tensor, answer: Tensor) -> float:
        """Learn that `answer` (1, m) follows `prompt` (1, n); gives the last loss."""
        ids = torch.cat([prompt, answer], dim=1)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        self.book.position, self.book.pending = prompt.shape[1] - 1, tuple(answer[0].tolist())
        optimiser: torch.optim.Adam | None = None
        for _ in range(STEPS):
            loss = self.model(input_ids=ids, labels=labels).loss
            if optimiser is None:  # the first forward made the value
                optimiser = torch.optim.Adam([self.book.values[self.book.chosen]], lr=RATE)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.book.position = None
        return float(loss.detach())

    def forced(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """(1, positions, vocabulary) of one forward over prompt and answer, looked up at the prompt's last token."""
        return self._logits(torch.cat([prompt, answer], dim=1), prompt.shape[1] - 1)

    def free(self, prompt: Tensor, limit: int, hopeless: Callable[[Tensor], bool] | None = None) -> Tensor:
        """(n,) new tokens, greedy, the whole text computed anew for each; given up where they are `hopeless`."""
        ids = prompt
        for _ in range(limit):
            token = self._logits(ids, prompt.shape[1] - 1)[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
            if int(token) == self.end or (hopeless is not None and hopeless(ids[0, prompt.shape[1] :])):
                break
        return ids[0, prompt.shape[1] :]

    def _logits(self, ids: Tensor, position: int) -> Tensor:
        self.book.position = position
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        self.book.position = None
        return logits


@dataclass(frozen=True)
class Textbook:
    """The textbook loop as a baseline.

    Args:
        site: dotted path of the layer; None takes the one that the editor's published form takes.
    """

    site: str | None = None

    properties: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "family": "architectural",
            "scope": "ball around the key activation",
            "effect": "one value at a late feed-forward",
            "training": "none",
        }
    )

    def on(self, model: nn.Module, tokenizer: Any) -> TextbookSystem:
        """A module tree of its own over the same weights."""
        return TextbookSystem(self, shadow_of(model), tokenizer)


class TextbookSystem(Asker):
    """Asks a model edited the textbook way: one prompt after another, since the layer is told where each one ends."""

    name = "textbook_grace"

    def __init__(self, options: Textbook, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        if not self.reader.text or self.reader.seq2seq:
            raise InputError(
                f"The textbook loop was given a {type(model).__name__}, expected a decoder; choose another baseline."
            )
        path = GRACE(values="single", site=options.site).sites(model)["value"].path
        self._textbook = TextbookGRACE(model, path, self.reader.end or 0)
        self.held = 0

    @property
    def numbers(self) -> int:
        """See `System`."""
        book = self._textbook.book
        return sum(tensor.numel() for tensor in (*book.keys, *book.values))

    def insert(self, edits: Sequence[Edit]) -> None:
        """See `System`."""
        for edit in edits:
            self._textbook.edit(*self._pair(edit.prompt, edit.target or ""))
            self.held += 1

    def _pair(self, prompt: ModelInput, target: str | int) -> tuple[Tensor, Tensor]:
        """Prompt (1, n) and target (1, m)."""
        return self.prompt_ids([prompt])[0][None], self.target_ids([prompt], [target])[0][None]

    def reset(self) -> None:
        """See `System`."""
        self._textbook.book.clear()
        self.held = 0

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[Tensor]:
        """See `Asked`."""
        pairs = [self._pair(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        return [self._textbook.forced(p, answer)[0, p.shape[1] - 1 : -1].float() for p, answer in pairs]

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        """See `Asked`."""
        ids = self.prompt_ids(prompts)
        said = [self._textbook.free(one[None], most) for one, most in zip(ids, most_tokens, strict=True)]
        return [self._answer(tokens.tolist()) for tokens in said]

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        """See `Asked`."""
        nothing = torch.empty((1, 0), dtype=torch.long)
        return [self._textbook.forced(ids[None], nothing)[0].float() for ids in self.prompt_ids(prompts)]
