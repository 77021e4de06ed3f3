"""How near two inputs are, learned once for a base model: a linear map of its activations, in which 1 is near enough.

It is meta-trained on episodes. Some edits are the context of each; inputs then attend to the context as they do when
edits are served. Three losses (Editable Neural Networks, Sinitsin et al., ICLR 2020, section 3): the edits themselves
and their rephrases must get the edits' labels, unrelated inputs must be said about what the base model says. With g how
far a gate at distance 1 is open, s the share of the attention that the right labels have, and ρ what the context's
labels get together, an edited model says p = (1 - ρ g) p_base + ρ g s. So -log(ρ g s) bounds the first two losses, and
-log(1 - ρ g) bounds KL(p_base, p): the base model need not be run, and what a label means plays no part.

Knows activations and files; knows no editor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from editable.digest import base_digest
from editable.edit import Edit, ModelInput
from editable.errors import InputError
from editable.inputs import Reader
from editable.learn import Probe, reference_prompts, shadow_of
from editable.site import Site

APART = 3.0  # distance of a typical pair of inputs before anything is learned
STEEP = 8.0  # of the gate that is trained, which has to be smooth
AT_ONCE = 256  # inputs to a forward
PROBABILITY = 0.98


@dataclass(frozen=True)
class Course:
    """How it is trained.

    Args:
        steps: episodes.
        context: edits in each.
        width: of the space that activations are mapped to.
        rate: of Adam, as a share of the map's typical number; it falls to 0 along a cosine.
        bandwidth: of the attention, see `CNP.bandwidth`.
        seed: of what is drawn.
    """

    steps: int = 200
    context: int = 128
    width: int = 64
    rate: float = 1e-2
    bandwidth: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    Args:
        path: the file.
        followed: share of the rephrases of edits that were not trained on which get their edit's label.
        fired: share of the unrelated inputs of those edits that any of them reaches.
        before: the same two, with the activations as they are, mapped at random.
        edits: how many edits these shares are of.
    """

    path: Path
    followed: float
    fired: float
    before: tuple[float, float]
    edits: int


@dataclass(frozen=True, eq=False)
class Seen:
    """Activations of edits.

    Args:
        prompts: (n, features).
        labels: (n,) edits that answer alike have the same.
        rephrases: (r, features).
        of: (r,) the edit of each.
        unrelated: (u, features).
        beside: (u,) the edit of each.
    """

    prompts: Tensor
    labels: Tensor
    rephrases: Tensor
    of: Tensor
    unrelated: Tensor
    beside: Tensor

    def only(self, edits: Tensor) -> Seen:
        """Of these edits (m,) only."""
        place = torch.full((len(self.prompts),), -1).scatter(0, edits, torch.arange(len(edits)))
        told, near = place[self.of] >= 0, place[self.beside] >= 0
        return Seen(
            self.prompts[edits], self.labels[edits], self.rephrases[told], place[self.of[told]],
            self.unrelated[near], place[self.beside[near]],
        )  # fmt: skip


def fit(
    model: nn.Module,
    tokenizer: object,
    site: Site,
    path: str | Path,
    edits: Sequence[Edit],
    course: Course,
    progress: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Train a metric for what the model computes at a site, and write it to `path`, bound to the model's weights.

    An eighth of the edits is not trained on, but measured afterwards. The model is not touched.

    Raises:
        InputError: too few edits, or edits without rephrases or unrelated inputs.
    """
    if len(edits) < 16 or not any(one.rephrases for one in edits) or not any(one.locality for one in edits):
        raise InputError(
            f"Got {len(edits)} edits, {sum(map(bool, (one.rephrases for one in edits)))} with rephrases and "
            f"{sum(map(bool, (one.locality for one in edits)))} with locality, expected at least 16 and both of some, "
            "since the metric is learned from what should be near and what should not; give the edits more of them."
        )
    seen = activations(model, tokenizer, site, edits)
    draw = torch.Generator().manual_seed(course.seed)
    order, apart = torch.randperm(len(edits), generator=draw), len(edits) // 8
    asked = seen.only(order[:apart])
    start = fresh(seen, course, draw)
    found = trained(seen.only(order[apart:]), start, course, draw, progress)
    write(path, found, {"base": base_digest(model), "site": site.path, "course": json.dumps(asdict(course))})
    before, after = (measured(asked, one, course.bandwidth) for one in (start, found))
    return Fitted(Path(path), *after, before, apart)


def activations(model: nn.Module, tokenizer: object, site: Site, edits: Sequence[Edit]) -> Seen:
    """What the model computes at the site for the prompts, rephrases and locality inputs of edits."""
    shadow = shadow_of(model)
    probe = Probe(shadow, Reader(shadow, tokenizer), reference_prompts())
    rephrases = [(number, one) for number, edit in enumerate(edits) for one in edit.rephrases]
    unrelated = [(number, one) for number, edit in enumerate(edits) for one in edit.locality]
    # Not as the reader has them: what a target means plays no part, so it need not be one of the model's labels.
    answers = [probe.reader.request("", edit).answer if edit.target is None else edit.target for edit in edits]
    known = {answer: number for number, answer in enumerate(dict.fromkeys(answers))}
    return Seen(
        _keys(probe, [edit.prompt for edit in edits], site),
        torch.tensor([known[answer] for answer in answers]),
        _keys(probe, [one for _, one in rephrases], site),
        torch.tensor([number for number, _ in rephrases]),
        _keys(probe, [one for _, one in unrelated], site),
        torch.tensor([number for number, _ in unrelated]),
    )


def _keys(probe: Probe, inputs: Sequence[ModelInput], site: Site) -> Tensor:
    given = [probe.reader.arguments(one) for one in inputs]
    parts = [probe.keys(given[start : start + AT_ONCE], site) for start in range(0, len(given), AT_ONCE)]
    return torch.cat(parts).cpu()


def fresh(seen: Seen, course: Course, draw: torch.Generator) -> Tensor:
    """(width, features) a random map, under which typical edits are `APART` from one another."""
    wide = seen.prompts.shape[1]
    mapped = torch.randn(course.width, wide, generator=draw) / math.sqrt(wide)
    some = seen.prompts[:AT_ONCE] @ mapped.T
    return mapped * APART / torch.pdist(some).median()


def trained(
    seen: Seen, start: Tensor, course: Course, draw: torch.Generator, progress: Callable[[int, float], None] | None
) -> Tensor:
    """(width, features) the map after all episodes."""
    metric = start.clone().requires_grad_()
    rate = course.rate * float(start.std())
    optimiser = torch.optim.Adam([metric], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, course.steps)
    for step in range(course.steps):
        episode = seen.only(torch.randperm(len(seen.prompts), generator=draw)[: course.context])
        with torch.enable_grad():
            loss = losses(episode, metric, course.bandwidth)
        (metric.grad,) = torch.autograd.grad(loss, metric)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    return metric.detach()


def losses(episode: Seen, metric: Tensor, bandwidth: float) -> Tensor:
    """The sum of the three means; an episode without rephrases or unrelated inputs does without theirs."""
    keys = episode.prompts @ metric.T
    total = followed(keys, keys, episode.labels, episode.labels, bandwidth).mean()
    if len(episode.rephrases):
        asked = episode.rephrases @ metric.T
        total = total + followed(asked, keys, episode.labels[episode.of], episode.labels, bandwidth).mean()
    if len(episode.unrelated):
        near = _apart(episode.unrelated @ metric.T, keys).amin(dim=1)
        total = total - (1 - PROBABILITY * torch.sigmoid(STEEP * (1 - near))).log().mean()
    return total


def followed(queries: Tensor, keys: Tensor, wanted: Tensor, labels: Tensor, bandwidth: float) -> Tensor:
    """(m,) -log(ρ g s) for mapped queries (m, width) that want labels (m,), with keys (n, width) of labels (n,)."""
    apart = _apart(queries, keys)
    attention = (-(apart / bandwidth).square() / 2).log_softmax(dim=1)
    right = attention.masked_fill(wanted[:, None] != labels, -torch.inf).logsumexp(dim=1)
    opened = nn.functional.logsigmoid(STEEP * (1 - apart.amin(dim=1)))
    return -(right + opened + math.log(PROBABILITY))


def _apart(queries: Tensor, keys: Tensor) -> Tensor:
    squares = queries.square().sum(1, keepdim=True) + keys.square().sum(1) - 2 * queries @ keys.T
    return squares.clamp_min(1e-6).sqrt()  # the root has no slope at 0


@torch.no_grad()
def measured(asked: Seen, metric: Tensor, bandwidth: float) -> tuple[float, float]:
    """(share of rephrases that are near an edit and get their own edit's label, share of unrelated inputs near one)."""
    keys, inputs = asked.prompts @ metric.T, asked.rephrases @ metric.T
    apart = _apart(inputs, keys)
    weights = (-(apart / bandwidth).square() / 2).softmax(dim=1)
    share = weights.new_zeros(len(inputs), int(asked.labels.max()) + 1).index_add(1, asked.labels, weights)
    right = (share.argmax(dim=1) == asked.labels[asked.of]) & (apart.amin(dim=1) <= 1)
    near = _apart(asked.unrelated @ metric.T, keys).amin(dim=1) <= 1
    return float(right.double().mean()), float(near.double().mean())


def write(path: str | Path, metric: Tensor, notes: Mapping[str, str]) -> None:
    """To a safetensors file."""
    from safetensors.torch import save_file

    save_file({"metric": metric.detach().float().cpu().contiguous()}, path, dict(notes))


def read(path: str | Path, model: nn.Module, site: Site) -> Tensor:
    """(width, features) the metric of a file.

    Raises:
        InputError: there is no such file, or it was fitted beside another model or for another site.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metric, notes = file.get_tensor("metric"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} holds no metric, expected a file that fit wrote ({error}).") from error
    own = {"base": base_digest(model), "site": site.path}
    wrong = [name for name, value in own.items() if notes.get(name) != value]
    if wrong:
        seen, expected = (str(one.get(wrong[0], "unknown"))[:24] for one in (notes, own))
        raise InputError(
            f"The metric {str(path)!r} was fitted for {wrong[0]} {seen}, expected {expected}; fit it again for this "
            f"{type(model).__name__}."
        )
    device = next(model.parameters()).device
    return torch.as_tensor(metric, device=device)
