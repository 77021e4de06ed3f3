"""Low-rank deltas are learned here: peft puts them on a shadow of the model, which is thrown away afterwards.

Imports peft when it is first needed. Knows no editor, and not how deltas are served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editable.deltas import Delta
from editable.errors import InputError, MissingPackageError
from editable.inputs import Batch, Reader
from editable.learn import Probe, shadow_of, shortfall
from editable.site import Site, classifier_head, is_transposed

ADAPTER = "default"  # what peft calls the one adapter on a shadow
SEED = 0  # of the first values of A, which are drawn

LEAD = 2.0
"""Log-odds by which a token that leads every other one needs no more: some models can give none a high probability."""

DORA = "its magnitude rescales W + B A column by column, which needs the base weights at every forward"
MOVES_THE_BASE = "it rewrites the base weights"
UNSERVED = {
    "use_dora": DORA,
    "lora_bias": "the delta would have a bias",
    "bias": "biases of the base model would be trained",
    "modules_to_save": "whole modules would be trained",
    "target_parameters": "parameters outside linear layers would be changed",
    "trainable_token_indices": "embeddings would be changed",
    "layer_replication": "it changes the model's structure",
    "use_qalora": "its delta is of grouped inputs",
    "use_bdlora": "its matrices are block-diagonal",
    "alora_invocation_tokens": "it acts from an invocation token on",
    "arrow_config": "it mixes adapters token by token",
    "kasa_config": "its delta is no product of two matrices",
    "velora_config": "its products are projected",
    "monteclora_config": "its deltas are drawn at random",
}
"""Settings of peft's LoraConfig under which a layer's change is not B A x s alone, and why."""


def peft_library() -> Any:
    """The peft package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError(
            "Low-rank adapters are trained, loaded and saved by peft, which is not installed, expected version 0.18 or "
            "later; run `pip install 'editable[peft]'`."
        ) from error
    return peft


def refuse_unserved(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a LoraConfig that cannot be served exactly.

    Raises:
        InputError: with the reason.
    """
    for name, reason in UNSERVED.items():
        if settings.get(name) not in (None, False, "none", [], {}, ()):
            raise InputError(
                f"The LoRA setting {name}={settings[name]!r} cannot be served exactly: {reason}, expected an adapter "
                "whose layers change by B A x alone; leave it out, or merge that adapter into the base model."
            )
    start = settings.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in ("gaussian", "orthogonal", "eva"):
        raise InputError(
            f"The LoRA setting init_lora_weights={start!r} cannot be served exactly: {MOVES_THE_BASE}, expected True, "
            "False, 'gaussian', 'orthogonal' or 'eva'; convert such an adapter with peft's save_pretrained"
            "(path_initial_model_for_weight_conversion=...)."
        )


@dataclass(frozen=True)
class Recipe:
    """How deltas are learned.

    Args:
        settings: of peft's LoraConfig.
        steps: of Adam at most; it stops when every answer token has the probability.
        rate: of Adam.
        probability: of each answer token, unless all of an answer lead by `LEAD`.
    """

    settings: Mapping[str, Any]
    steps: int
    rate: float
    probability: float


def tune(
    probe: Probe,
    batch: Batch,
    paths: Sequence[str],
    recipe: Recipe,
    blocks: Tensor | None = None,
    start: Mapping[str, Delta] | None = None,
) -> list[dict[str, Delta]]:
    """Learn deltas of the linear layers at `paths` under which every row of the batch gets its answer.

    Args:
        probe: gives the model, of which a further shadow is made.
        batch: teacher-forced rows.
        paths: of linear layers, in the order in which they run.
        recipe: how.
        blocks: (rows,) which of several independent adapters each row learns, which then acts from the row's key token
            on; None for one adapter that acts everywhere.
        start: what to begin with; None as the settings say.

    Returns:
        For each block, path to its delta.
    """
    count = 1 if blocks is None else int(blocks.max()) + 1
    model = shadow_of(probe.model)
    layers = injected(model, paths, recipe.settings, count)
    if start is not None:
        begin_with(layers, start)
    rest = _rest(probe, model, batch, paths)

    def loss(rows: Tensor) -> Tensor:
        with _only_due(layers, batch, blocks, count, rows):
            return _left(rest(rows), batch.answers[rows], recipe.probability)

    linears = [linear for layer in layers.values() for linear in _linears(layer)]
    start_at = [linear.weight for linear in linears]
    moved = Probe.descend_jointly(_on(linears, loss), start_at, len(batch), recipe.steps, recipe.rate)
    for linear, weight in zip(linears, moved, strict=True):
        linear.weight = weight
    found = {path: delta_of(layer) for path, layer in layers.items()}
    return [{path: _block(delta, number, count) for path, delta in found.items()} for number in range(count)]


def _left(logits: Tensor, answers: Tensor, probability: float) -> Tensor:
    """(rows,) the loss: what each answer's tokens lack, as long as one of them is not clearly the first choice."""
    wanted = answers != -100
    index = answers.clamp_min(0)[..., None]
    others = logits.detach().float().scatter(-1, index, -math.inf).amax(dim=-1)
    lead = logits.detach().float().gather(-1, index).squeeze(-1) - others
    clear = ((lead >= LEAD) | ~wanted).all(dim=1)
    return shortfall(logits, answers, probability).sum(dim=1) * ~clear


def _rest(probe: Probe, model: nn.Module, batch: Batch, paths: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """What gives the logits (n, longest answer, vocabulary) of rows (n,) on the tuned model, without what is before."""
    if not probe.reader.text and paths[0] == classifier_head(probe.model):
        site = Site(paths[0], side="input")
        vectors = probe.capture(batch, [site]).rows[site].squeeze(1)
        return lambda rows: model.get_submodule(site.path)(vectors[rows])[:, None]
    return Probe(model, Reader(model)).resume(batch, Site(paths[0], axis=-1))


def delta_of(layer: Any) -> Delta:
    """The delta of one of peft's linear layers."""
    down, up = (linear.weight.detach().clone() for linear in _linears(layer))
    return Delta(down, up, float(layer.scaling[ADAPTER]))


def _linears(layer: Any) -> tuple[Any, Any]:
    return layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]


def injected(model: nn.Module, paths: Sequence[str], settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Path to peft's layer there. Of several blocks all lie in one adapter of so many times the rank."""
    peft = peft_library()
    refuse_unserved(settings)
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    gain = alpha * (count**0.5 if settings.get("use_rslora") else count)
    given = {**settings, "r": rank * count, "lora_alpha": gain, "target_modules": list(paths)}
    given["fan_in_fan_out"] = is_transposed(model.get_submodule(paths[0]))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        peft.inject_adapter_in_model(peft.LoraConfig(**given), model, ADAPTER)
    return {path: model.get_submodule(path) for path in paths}


def begin_with(layers: Mapping[str, Any], start: Mapping[str, Delta]) -> None:
    """Put deltas by path into peft's layers."""
    for path, layer in layers.items():
        down, up = _linears(layer)
        down.weight.data.copy_(start[path].down)
        up.weight.data.copy_(start[path].up)


def _on(linears: Sequence[Any], loss: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """The loss of rows as a function of the layers' weights, which become plain tensors."""
    for linear in linears:
        weight = linear.weight
        del linear.weight
        linear.weight = weight.detach()

    def taking(weights: Sequence[Tensor], rows: Tensor) -> Tensor:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight
        return loss(rows)

    return taking


@contextmanager
def _only_due(
    layers: Mapping[str, Any], batch: Batch, blocks: Tensor | None, count: int, rows: Tensor
) -> Iterator[None]:
    """Each row's own block alone acts, from the row's key token on; nothing is held back without `blocks`."""
    with ExitStack() as stack:
        if blocks is not None:
            own = nn.functional.one_hot(blocks[rows], count)  # (rows, blocks)
            columns = None if batch.columns is None else batch.columns[rows, :1]
            for layer in layers.values():
                masking = _Masking(own, columns)
                stack.enter_context(layer.lora_A[ADAPTER].register_forward_hook(masking))
        yield


class _Masking:
    """A hook behind A that keeps of its output only what is due.

    Args:
        own: (rows, blocks) 1 at each row's block.
        columns: (rows, 1) of the key tokens; None where every position counts.
    """

    def __init__(self, own: Tensor, columns: Tensor | None) -> None:
        self.own = own
        self.columns = columns

    def __call__(self, _module: nn.Module, _args: Any, inner: Tensor) -> Tensor:
        own = self.own.repeat_interleave(inner.shape[-1] // self.own.shape[1], dim=1)  # (rows, ranks of all blocks)
        if self.columns is None or inner.ndim < 3 or inner.shape[1] == 1:
            return inner * own.reshape(len(own), *[1] * (inner.ndim - 2), -1)
        due = torch.arange(inner.shape[1], device=inner.device) >= self.columns  # (rows, positions)
        return inner * own[:, None] * due[..., None]


def _block(delta: Delta, number: int, count: int) -> Delta:
    """One of the blocks that lie side by side in a delta."""
    if count == 1:
        return delta
    rank = delta.rank // count
    own = slice(number * rank, (number + 1) * rank)
    return Delta(delta.down[own].clone(), delta.up[:, own].clone(), delta.scaling)
