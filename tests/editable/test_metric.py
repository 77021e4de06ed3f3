"""A metric of activations: its losses by hand, what it learns, and where its file is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from editable import Edit
from editable.digest import base_digest
from editable.errors import InputError
from editable.metric import (
    APART,
    Course,
    Seen,
    activations,
    fit,
    followed,
    fresh,
    losses,
    measured,
    read,
    trained,
    write,
)
from editable.site import Site
from tests.families import FAMILIES

SITE = Site("1", side="input")


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()


def pictures(count: int = 48) -> list[Edit]:
    """The first two numbers tell the label, the last is large where nothing is wanted; in between is noise."""
    draw, edits = torch.Generator().manual_seed(1), []
    corners = torch.tensor([(3.0, 0.0), (-3.0, 0.0), (0.0, 4.0)])

    def picture(label: int, far: float) -> torch.Tensor:
        noise = 2 * torch.randn(5, generator=draw)
        return torch.cat([corners[label] + 0.2 * torch.randn(2, generator=draw), noise, torch.tensor([far])])[None]

    for number in range(count):
        label = number % 3
        edits.append(Edit(picture(label, 0), label, [picture(label, 0)], [picture(label, 6)]))
    return edits


def test_followed_by_hand() -> None:
    """Keys at distance .5 and 1.5, the second of the wanted label; the gate is open by sigmoid(8 (1 - .5))."""
    keys, queries = torch.tensor([(0.0, 0.5), (0.0, -1.5)]), torch.zeros(1, 2)
    found = followed(queries, keys, torch.tensor([1]), torch.tensor([0, 1]), bandwidth=1.0)
    weights = math.exp(-(0.5**2) / 2), math.exp(-(1.5**2) / 2)
    share, opened = weights[1] / sum(weights), 1 / (1 + math.exp(-8 * 0.5))
    assert found.tolist() == [pytest.approx(-math.log(0.98 * opened * share), rel=1e-4)]


def test_losses_are_the_sum_of_three_means() -> None:
    keys = torch.tensor([(0.0, 0.0), (4.0, 0.0)])
    seen = Seen(
        keys, torch.tensor([0, 1]), torch.tensor([(0.5, 0.0)]), torch.tensor([0]), torch.tensor([(0.0, 1.0)]),
        torch.tensor([1]),
    )  # fmt: skip
    eye = torch.eye(2)
    own = followed(keys, keys, seen.labels, seen.labels, 0.25).mean()
    told = followed(seen.rephrases, keys, torch.tensor([0]), seen.labels, 0.25).mean()
    assert float(losses(seen, eye, 0.25)) == pytest.approx(float(own + told) - math.log(1 - 0.98 * 0.5), rel=1e-4)
    alone = replace(seen, rephrases=torch.empty(0, 2), of=torch.empty(0).long(), unrelated=torch.empty(0, 2))
    assert float(losses(replace(alone, beside=torch.empty(0).long()), eye, 0.25)) == pytest.approx(float(own))


def test_some_edits_with_all_that_is_theirs() -> None:
    seen = activations(network(), None, SITE, pictures(6))
    some = seen.only(torch.tensor([4, 1]))
    assert torch.equal(some.prompts, seen.prompts[[4, 1]]) and some.labels.tolist() == [1, 1]
    assert some.of.tolist() == [1, 0] and torch.equal(some.rephrases, seen.rephrases[[1, 4]])
    assert some.beside.tolist() == [1, 0] and torch.equal(some.unrelated, seen.unrelated[[1, 4]])


def test_it_learns_what_is_near() -> None:
    seen, course = activations(network(), None, SITE, pictures(96)[:48]), Course(steps=150, width=4, rate=3e-2)
    draw = torch.Generator().manual_seed(0)
    start = fresh(seen, course, draw)
    assert float(torch.pdist(seen.prompts @ start.T).median()) == pytest.approx(APART, rel=1e-3)
    told = list[float]()
    found = trained(seen, start, course, draw, lambda _step, loss: told.append(loss))
    assert len(told) == 150 and told[-1] < 0.3 * told[0]
    new = activations(network(), None, SITE, pictures(96)[48:])
    before, after = (measured(new, one, course.bandwidth) for one in (start, found))
    assert before[0] < 0.8 < 0.95 <= after[0]
    assert after[1] < 0.05


def test_the_same_seed_writes_the_same_metric(tmp_path: Path) -> None:
    model, course = network(), Course(steps=5)
    results = [fit(model, None, SITE, tmp_path / str(turn), pictures(), course) for turn in range(2)]
    first, second = (read(one.path, model, SITE) for one in results)
    assert torch.equal(first, second) and first.shape == (64, 8)
    assert results[0].edits == 6 and replace(results[0], path=results[1].path) == results[1]


def test_a_text_is_compared_at_its_key_token(tmp_path: Path) -> None:
    loaded = next(one for one in FAMILIES if one.name == "llama-gqa").load()
    edits = [
        Edit(prompt, target, [prompt + " please"], [other])
        for prompt, target, other in zip(loaded.edited * 3, (*loaded.targets,) * 3, loaded.unrelated * 5, strict=False)
    ]
    site = Site("model.layers.2")
    seen = activations(loaded.model, loaded.tokenizer, site, edits)
    assert seen.prompts.shape == (18, 64) and len(seen.labels.unique()) == 6
    assert torch.allclose(seen.prompts[0], seen.prompts[6], atol=1e-4)
    assert fit(loaded.model, loaded.tokenizer, site, tmp_path / "metric", edits, Course(steps=2)).edits == 2


@pytest.mark.parametrize("missing", ["edits", "rephrases", "locality"])
def test_too_little_to_learn_from(missing: str, tmp_path: Path) -> None:
    edits = pictures(15 if missing == "edits" else 48)
    if missing == "rephrases":
        edits = [Edit(one.prompt, one.target, (), one.locality) for one in edits]
    if missing == "locality":
        edits = [Edit(one.prompt, one.target, one.rephrases) for one in edits]
    with pytest.raises(InputError, match="expected at least 16 and both of some"):
        fit(network(), None, SITE, tmp_path / "metric", edits, Course())


def test_a_file_is_bound_to_the_base_and_the_site(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "metric.safetensors"
    write(path, torch.ones(2, 8), {"base": base_digest(model), "site": "1"})
    assert torch.equal(read(path, network(), SITE), torch.ones(2, 8))
    with pytest.raises(InputError, match=r"fitted for base \w{24}, expected \w{24}; fit it again for this Sequential"):
        read(path, network(seed=1), SITE)
    with pytest.raises(InputError, match="fitted for site 1, expected 0"):
        read(path, model, Site("0"))
    with pytest.raises(InputError, match="holds no metric, expected a file that fit wrote"):
        read(tmp_path / "nothing", model, SITE)
