"""Keys for books of any size: real activations, and as many more as are wanted, resampled among those that are alike.

Random vectors would not do: activations lie in clusters and in few directions, which is what makes a lookup easy or
hard. A made key is the mean of a group of similar real ones plus a random unit combination of a few of its members'
deviations. A group is a template asked about many subjects where the data has such, else a k-means cluster. How near
the nearest neighbours are, of real keys and of made ones, is printed side by side, for the reader to judge.
Knows models and vectors. Refuses to know books.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import torch
from torch import Tensor

from editable.adapters import GRACE
from editable.benchmarks.common import each
from editable.datasets import Case
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.scopes.ball import RADIUS_SHARE

TOGETHER = 32  # prompts in one forward
MEMBERS = 16  # of a cluster, on average
FEWEST = 8  # members from which a template is a group
COMBINED = 8  # deviations in a made key
CHUNK = 16384  # keys made at a time
SAMPLED = 500  # keys whose nearest neighbour is looked for
SEEN = 20_000  # most keys among which it is looked for
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of which distances are shown


@dataclass(frozen=True, eq=False)
class Real:
    """Activations as they are.

    Args:
        keys: (n, features) of the prompts that edits are about.
        groups: rows of `keys` that are alike.
        unrelated: (m, features) of questions that no edit is about.
        radius: the initial radius of a ball that GRACE would take here.
        editor: GRACE in the form that has its keys here.
    """

    keys: Tensor
    groups: Sequence[Tensor]
    unrelated: Tensor
    radius: float
    editor: GRACE

    def made(self, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`count` keys (at most CHUNK, features) at a time, in random order; large groups give more of them."""
        sizes = torch.tensor([float(len(rows)) for rows in self.groups])
        for start in range(0, count, CHUNK):
            some = min(CHUNK, count - start)
            groups = torch.multinomial(sizes, some, replacement=True, generator=generator)
            yield self._combined(groups, generator)

    def _combined(self, groups: Tensor, generator: torch.Generator) -> Tensor:
        """(len(groups), features), each of the group with that number."""
        made = torch.empty(len(groups), self.keys.shape[1])
        for group in groups.unique().tolist():
            where = (groups == group).nonzero()[:, 0]
            members = self.keys[self.groups[group]]
            mean = members.mean(dim=0)
            chosen = torch.randint(len(members), (len(where), COMBINED), generator=generator)
            weights = torch.randn(len(where), COMBINED, generator=generator)
            weights = weights / weights.norm(dim=1, keepdim=True)
            made[where] = mean + torch.einsum("nk,nkf->nf", weights, (members - mean)[chosen])
        return made


def real(
    model: Any, tokenizer: Any, cases: Sequence[Case], questions: Sequence[str], where: Literal["wide", "residual"]
) -> Real:
    """Look at the prompts and rephrases of the cases, and at questions.

    Args:
        model: what is looked at.
        tokenizer: the model's.
        cases: what edits are about.
        questions: what none is about.
        where: what GRACE compares, see there.
    """
    editor = GRACE(values="single", keys=where)
    shadow = shadow_of(model)
    reference = resources.files("editable").joinpath("reference.txt").read_text().splitlines()
    probe, site = Probe(shadow, Reader(shadow, tokenizer), reference), editor.sites(model)["key"]
    said = dict(_said(cases))
    keys, unrelated = (_looked_at(probe, list(texts), site) for texts in (said, questions))
    groups = alike(keys, list(said.values()))
    return Real(keys, groups, unrelated, RADIUS_SHARE * probe.spread(site), editor)


def _said(cases: Sequence[Case]) -> Iterator[tuple[str, str]]:
    """Every prompt and rephrase, and its template."""
    for case in cases:
        for prompt in (case.edit.prompt, *(question.prompt for question in case.rephrases)):
            if isinstance(prompt, str) and prompt.strip():
                yield prompt, prompt.replace(case.edit.subject, "...") if case.edit.subject else prompt


def _looked_at(probe: Probe, texts: Sequence[str], site: Any) -> Tensor:
    """(n, features), in order; texts of one length go together."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    found: dict[int, Tensor] = {}
    for part in each(parts, f"looking at {len(texts)} prompts", len(parts)):
        keys = probe.keys([probe.reader.arguments(texts[row]) for row in part], site)
        found.update(zip(part, keys, strict=True))
    return torch.stack([found[row] for row in range(len(texts))])


def alike(keys: Tensor, templates: Sequence[str]) -> list[Tensor]:
    """Groups of rows of keys (n, features): of one template where enough have it, the others in k-means clusters."""
    by_template: dict[str, list[int]] = defaultdict(list)
    for row, template in enumerate(templates):
        by_template[template].append(row)
    groups = [torch.tensor(rows) for rows in by_template.values() if len(rows) >= FEWEST]
    left = torch.tensor(sorted(row for rows in by_template.values() if len(rows) < FEWEST for row in rows))
    return groups + (_clusters(keys, left) if len(left) else [])


def _clusters(keys: Tensor, rows: Tensor) -> list[Tensor]:
    """Of one or more members each; those of one alone join the nearest other."""
    import faiss

    some = keys[rows].contiguous()
    count = max(1, len(rows) // MEMBERS)
    means = faiss.Kmeans(some.shape[1], count, niter=10, seed=1, min_points_per_centroid=1)
    means.train(some.numpy())
    centres = torch.from_numpy(means.centroids)
    sizes = torch.cdist(some, centres).argmin(dim=1).bincount(minlength=count)
    centres = centres[sizes > 1] if bool((sizes > 1).any()) else centres.mean(dim=0, keepdim=True)
    cluster = torch.cdist(some, centres).argmin(dim=1)
    return [rows[cluster == number] for number in cluster.unique().tolist()]


def neighbour_distances(keys: Tensor, generator: torch.Generator) -> list[float]:
    """From a key to the nearest other one: of SAMPLED keys (n, features) the quantiles SHARES."""
    chosen = torch.randperm(len(keys), generator=generator)[:SAMPLED]
    distances = torch.cdist(keys[chosen], keys, compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.arange(len(chosen)), chosen] = torch.inf
    return distances.amin(dim=1).quantile(torch.tensor(SHARES)).tolist()
