"""Learning: a shadow that touches nothing, shortcuts equal to the whole forward, steps worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editable import Edit, own_words
from editable.errors import SiteError
from editable.hooks import Inert
from editable.inputs import Batch, Reader
from editable.learn import DONE, Probe, at_columns, shadow_of, shares_storage, shortfall
from editable.site import Site, block_paths, classifier_head, down_projection, units_place
from tests.contract.harness import hooks, only, parameters, surface
from tests.families import FAMILIES, Loaded, logits_of

TEXT = only("causal", "seq2seq")
CLASSIFIERS = only("text_classifier", "image_classifier")


def probe_of(loaded: Loaded, reference: tuple[str, ...] = ()) -> Probe:
    shadow = shadow_of(loaded.model)
    return Probe(shadow, Reader(shadow, loaded.tokenizer), reference)


def batch_of(loaded: Loaded, probe: Probe, count: int = 3) -> Batch:
    edits = [Edit(loaded.edited[index], loaded.targets[index]) for index in range(count)]
    return probe.reader.batch([probe.reader.request(str(i), edit) for i, edit in enumerate(edits)])


@torch.no_grad()
def full_logits(loaded: Loaded, batch: Batch) -> Tensor:
    """(rows, longest answer, vocabulary or labels): the user's own model, every position computed."""
    logits = logits_of(loaded.model(**batch.arguments))
    if batch.columns is None:
        return logits[:, None]
    return logits.gather(1, batch.columns[..., None].expand(-1, -1, logits.shape[-1]))


def close(now: Tensor, expected: Tensor) -> bool:
    return torch.allclose(now, expected, rtol=1e-4, atol=1e-3)


# ----------------------------------------------------------------------------------------------------- the shadow


def test_a_shadow_shares_every_weight(loaded: Loaded) -> None:
    shadow = shadow_of(loaded.model)
    for (name, mine), (other, theirs) in zip(shadow.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert (name, mine.data_ptr(), mine.requires_grad) == (other, theirs.data_ptr(), False)
    for mine_buffer, theirs_buffer in zip(shadow.buffers(), loaded.model.buffers(), strict=True):
        assert mine_buffer is theirs_buffer
    assert shares_storage(shadow, loaded.model)
    owned = {id(module) for module in loaded.model.modules()}
    assert not any(id(module) in owned for module in shadow.modules())


def test_a_shadow_leaves_the_model_alone(loaded: Loaded) -> None:
    loaded.model.train()
    next(loaded.model.parameters()).requires_grad_(False)
    before = parameters(loaded.model), hooks(loaded.model), surface(loaded.model)
    flags = [module.training for module in loaded.model.modules()]
    shadow = shadow_of(loaded.model)
    for module in shadow.modules():
        module.register_forward_hook(lambda *_: None)
    assert not any(module.training for module in shadow.modules())
    assert (parameters(loaded.model), hooks(loaded.model), surface(loaded.model)) == before
    assert [module.training for module in loaded.model.modules()] == flags
    assert any(p.requires_grad for p in loaded.model.parameters())


def test_a_shadow_computes_what_the_model_computes(loaded: Loaded) -> None:
    feed = loaded.feed(loaded.edited)
    with torch.no_grad():
        assert torch.equal(logits_of(shadow_of(loaded.model)(**feed)), logits_of(loaded.model(**feed)))


class Doubling:
    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * 2


class Ours(Inert):
    def __call__(self, *_: Any) -> None:
        raise AssertionError("a shadow must not run the served model's hooks")


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


def test_the_users_hooks_are_kept_and_ours_are_not() -> None:
    """A user's hook is part of what the model computes."""
    model = small()
    model[0].register_forward_hook(Doubling())
    expected = model(torch.ones(1, 2))
    model[0].register_forward_hook(Ours())
    model.register_forward_pre_hook(Ours())
    assert torch.equal(shadow_of(model)(torch.ones(1, 2)), expected)
    with pytest.raises(AssertionError, match="must not run"):
        model(torch.ones(1, 2))


def test_a_hook_on_the_shadow_is_not_on_the_model() -> None:
    model = small()
    model[0].register_forward_hook(Doubling())
    expected = model(torch.ones(1, 2))
    shadow_of(model)[0].register_forward_hook(Doubling())  # type: ignore[index]
    assert torch.equal(model(torch.ones(1, 2)), expected)


def test_a_model_that_moved_no_longer_shares_its_storage() -> None:
    model = small()
    shadow = shadow_of(model)
    assert shares_storage(shadow, model)
    (*_, last) = model.parameters()
    last.data = last.data.clone()
    assert not shares_storage(shadow, model)


def test_tied_weights_stay_tied() -> None:
    model = small()
    model[2].weight = model[0].weight
    shadow = shadow_of(model)
    assert shadow[0].weight is shadow[2].weight  # type: ignore[index]


# --------------------------------------------------------------------------------------------- looking and skipping


def test_logits_at_the_answer_are_the_whole_forwards(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    batch = batch_of(loaded, probe)
    with torch.no_grad():
        assert close(probe.logits(batch), full_logits(loaded, batch))


def test_capture_sees_what_a_plain_hook_sees(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    batch = batch_of(loaded, probe)
    site = _any_site(loaded)
    seen = probe.capture(batch, [site, site])
    expected = _seen(loaded, batch, site)
    assert torch.equal(seen.rows[site], site.read(expected))
    assert close(seen.logits, full_logits(loaded, batch))


def _any_site(loaded: Loaded) -> Site:
    if loaded.family.generates:
        return Site(block_paths(loaded.model)[0])
    return Site(classifier_head(loaded.model), side="input")


@torch.no_grad()
def _seen(loaded: Loaded, batch: Batch, site: Site) -> Any:
    seen: list[Any] = []
    module = loaded.model.get_submodule(site.path)
    if site.side == "input":
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with handle:
        loaded.model(**batch.arguments)
    return seen[0]


def test_looking_leaves_nothing_behind(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    batch, before = batch_of(loaded, probe), hooks(probe.model)
    outside = surface(probe.model)
    probe.capture(batch, [_any_site(loaded)])
    if loaded.family.generates:
        probe.tail(Site(block_paths(probe.model)[-1]))(torch.zeros(2, _width(loaded)))
        site = Site(block_paths(probe.model)[-1])
        probe.replay(batch, site)(torch.zeros(1, _width(loaded)), torch.tensor([0]))
    assert (hooks(probe.model), surface(probe.model)) == (before, outside)


def _width(loaded: Loaded) -> int:
    return int(loaded.model.config.hidden_size)


@TEXT
def test_an_aim_is_the_tokens_row_without_what_all_rows_share(loaded: Loaded) -> None:
    probe, site = probe_of(loaded), Site(block_paths(loaded.model)[-1])
    rows = loaded.model.get_output_embeddings().weight.detach()
    aims = probe.towards(torch.tensor([3, 5, 3]), site)
    if rows.shape[1] != _width(loaded):
        assert aims is None
        return
    assert aims is not None
    assert torch.allclose(aims, rows[[3, 5, 3]] - rows.mean(dim=0), atol=1e-6)


def test_there_is_no_aim_elsewhere(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    assert probe.towards(torch.tensor([3]), _any_site(loaded)) is None


@TEXT
def test_logits_behind_the_blocks_are_those_of_a_whole_forward(loaded: Loaded) -> None:
    """Of a batch that was just captured, of one that was not, and of one that was captured and is another."""
    probe = probe_of(loaded)
    batch, other = batch_of(loaded, probe), batch_of(loaded, probe, count=2)
    wanted, site = batch.answers != -100, Site(block_paths(loaded.model)[-1])
    expected = full_logits(loaded, batch)[wanted]
    assert close(probe.logits_behind(batch)[wanted], expected)
    probe.capture(other, [site])
    assert close(probe.logits_behind(batch)[wanted], expected)
    probe.capture(batch, [site])
    assert close(probe.logits_behind(batch)[wanted], expected)


@only("causal")
def test_what_a_value_stands_in_for_is_not_run(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose last block's output is replaced need no block; the one row that keeps its own needs all of them."""
    probe = probe_of(loaded)
    batch, last = batch_of(loaded, probe), Site(block_paths(loaded.model)[-1])
    probe.towards(torch.tensor([0]), last)  # looks at one token, once
    block, whole = probe.model.get_submodule(block_paths(loaded.model)[0]), list[int]()
    plain_forward = block.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        whole.append(1)
        return plain_forward(*args, **kwargs)

    def stand_in(_role: str, rows: Tensor) -> Tensor:
        """For the first two rows; one alone is the third."""
        if len(rows) == 1:
            return rows
        return torch.where(torch.arange(len(rows))[:, None, None] < 2, torch.ones_like(rows), rows)

    monkeypatch.setattr(block, "forward", counted)

    with probe.acting({"value": last}, stand_in):
        expected = probe.logits(batch)[batch.answers != -100]
        whole.clear()
        probe.logits_behind(batch.select(torch.tensor([0, 1])))
        assert not whole
        found = probe.logits_behind(batch)[batch.answers != -100]
        assert whole == [1]
    assert close(found, expected)


@TEXT
def test_the_tail_is_what_follows_the_last_block(loaded: Loaded) -> None:
    """The very vectors of a real forward give that forward's logits."""
    probe = probe_of(loaded)
    batch, site = batch_of(loaded, probe), Site(block_paths(loaded.model)[-1])
    rows = site.read(_seen(loaded, batch, site))
    assert batch.columns is not None
    vectors = rows.gather(1, batch.columns[..., None].expand(-1, -1, rows.shape[-1])).flatten(0, 1)
    with torch.no_grad():
        logits = probe.tail(site)(vectors)
    assert close(logits, full_logits(loaded, batch).flatten(0, 1))


@CLASSIFIERS
def test_the_tail_of_a_classifier_is_its_head(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    batch, site = batch_of(loaded, probe), Site(classifier_head(loaded.model), side="input")
    vectors = site.read(_seen(loaded, batch, site))[:, 0]
    with torch.no_grad():
        assert close(probe.tail(site)(vectors), full_logits(loaded, batch)[:, 0])


@TEXT
def test_a_tail_is_differentiable(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    vectors = torch.randn(2, _width(loaded), generator=torch.Generator().manual_seed(0)).requires_grad_()
    probe.tail(Site(block_paths(loaded.model)[-1]))(vectors).logsumexp(-1).sum().backward()
    assert vectors.grad is not None
    assert bool((vectors.grad != 0).any(dim=1).all())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


@TEXT
def test_a_tail_is_refused_where_attention_follows(loaded: Loaded) -> None:
    site = Site(block_paths(loaded.model)[0])
    with pytest.raises(SiteError, match=r"has attention after it.*use values='single' to write elsewhere"):
        probe_of(loaded).tail(site)


@CLASSIFIERS
def test_a_classifiers_tail_is_refused_elsewhere(loaded: Loaded) -> None:
    with pytest.raises(SiteError, match="is not the input of the classifier's head"):
        probe_of(loaded).tail(Site(classifier_head(loaded.model)))


@torch.no_grad()
def put_in(loaded: Loaded, batch: Batch, site: Site, values: Tensor) -> Tensor:
    """A full forward of the user's own model, the values put at each row's key token by a plain hook."""

    def put(_module: nn.Module, _args: Any, output: Any) -> Any:
        rows = site.read(output).clone()
        for row, value in enumerate(values):
            if batch.columns is None or rows.shape[1] == 1:
                rows[row] = value
            else:
                rows[row, batch.columns[row, 0]] = value
        return site.write(output, rows)

    with loaded.model.get_submodule(site.path).register_forward_hook(put):
        return full_logits(loaded, batch)


@TEXT
@pytest.mark.parametrize("block", [0, -1], ids=["first block", "last block"])
@pytest.mark.parametrize("place", ["block", "down projection"])
def test_replay_is_the_whole_forward_with_the_value_in_it(loaded: Loaded, block: int, place: str) -> None:
    probe = probe_of(loaded)
    batch, path = batch_of(loaded, probe), block_paths(loaded.model)[block]
    site = Site(path if place == "block" else down_projection(loaded.model, path))
    values = torch.randn(3, _width(loaded), generator=torch.Generator().manual_seed(0))
    expected = put_in(loaded, batch, site, values)
    replay = probe.replay(batch, site)
    with torch.no_grad():
        assert close(replay(values, torch.tensor([0, 1, 2])), expected)
        assert close(replay(values[[2, 0]], torch.tensor([2, 0])), expected[[2, 0]])
    assert not close(expected, full_logits(loaded, batch))


@CLASSIFIERS
def test_replay_of_a_classifier(loaded: Loaded) -> None:
    """There is no prefix to skip, and no token to choose: the value goes everywhere."""
    probe = probe_of(loaded)
    batch = batch_of(loaded, probe)
    site = Site(classifier_head(loaded.model))
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = probe.replay(batch, site)(values, torch.tensor([0, 1, 2]))
    assert close(out[:, 0], values)
    assert close(out, put_in(loaded, batch, site, values))


@TEXT
def test_replay_runs_only_what_follows(loaded: Loaded) -> None:
    """The first block computes once, when the replay is made."""
    probe = probe_of(loaded)
    batch, blocks, runs = batch_of(loaded, probe), block_paths(loaded.model), list[int]()
    first = probe.model.get_submodule(blocks[0])
    inner = next(m for m in first.modules() if isinstance(m, nn.LayerNorm) or "Norm" in type(m).__name__)
    inner.register_forward_hook(lambda *_: runs.append(1))
    replay = probe.replay(batch, Site(blocks[-1]))
    made = len(runs)
    with torch.no_grad():
        replay(torch.zeros(3, _width(loaded)), torch.tensor([0, 1, 2]))
    assert made > 0
    assert len(runs) == made


def test_a_site_outside_the_blocks_cannot_be_replayed() -> None:
    from tests.families import FAMILIES

    loaded = FAMILIES[0].load()
    probe = probe_of(loaded)
    with pytest.raises(SiteError, match=r"Site 'lm_head' is in none of the blocks 'transformer\.h\.0' \.\.\."):
        probe.replay(batch_of(loaded, probe), Site("lm_head"))


@TEXT
def test_keys_are_the_activations_at_the_prompts_ends(loaded: Loaded) -> None:
    """One padded forward gives what each prompt gives alone."""
    probe = probe_of(loaded)
    site = Site(block_paths(loaded.model)[-1])
    prompts = [probe.reader.arguments(text) for text in loaded.edited[:4]]
    keys = probe.keys(prompts, site)
    for key, prompt in zip(keys, prompts, strict=True):
        assert close(key, probe.keys([prompt], site)[0])
    assert keys.dtype == torch.float32


@TEXT
def test_the_spread_is_the_median_distance_to_the_nearest(loaded: Loaded) -> None:
    probe = probe_of(loaded, tuple(loaded.edited))
    site = Site(block_paths(loaded.model)[-1])
    keys = probe.keys([probe.reader.arguments(text) for text in loaded.edited], site)
    nearest = sorted(min(float((a - b).norm()) for j, b in enumerate(keys) if i != j) for i, a in enumerate(keys))
    assert probe.spread(site) == pytest.approx(nearest[2], rel=1e-3)  # of six the lower median
    assert probe_of(loaded).spread(site) == 0.0  # no reference


# ----------------------------------------------------------------------------------------------------- descending


def linear(direction: Tensor, wanted: Tensor) -> Any:
    """How far a·v stays below what is wanted, row by row."""

    def loss(values: Tensor, rows: Tensor) -> Tensor:
        return (wanted[rows] - values @ direction).clamp_min(0)

    return loss


def test_a_polyak_step_by_hand() -> None:
    """Loss 10 - (3, 4)·v at v = 0: the gradient is (-3, -4), its square 25, the stride 10/25, so v = (1.2, 1.6)."""
    loss = linear(torch.tensor([3.0, 4.0]), torch.tensor([10.0]))
    found = Probe.descend(_PROBE, loss, torch.zeros(1, 2), steps=1)
    assert found.tolist() == [pytest.approx([1.2, 1.6])]
    assert float(loss(found, torch.tensor([0]))) == pytest.approx(0, abs=1e-5)


def test_half_the_rate_goes_half_the_way() -> None:
    loss = linear(torch.tensor([3.0, 4.0]), torch.tensor([10.0]))
    found = Probe.descend(_PROBE, loss, torch.zeros(1, 2), steps=2, rate=0.5)
    assert found.tolist() == [pytest.approx([0.9, 1.2])]  # 5 short, then 2.5 short


def test_each_row_stops_by_itself() -> None:
    """The second is near enough from the start: DONE short of what is wanted, it is not moved by a bit."""
    wanted = torch.tensor([10.0, DONE / 2, 1000.0])
    calls: list[list[int]] = []

    def loss(values: Tensor, rows: Tensor) -> Tensor:
        calls.append(rows.tolist())
        return torch.as_tensor(linear(torch.tensor([3.0, 4.0]), wanted)(values, rows))

    found = Probe.descend(_PROBE, loss, torch.zeros(3, 2), steps=10)
    assert found[1].tolist() == [0.0, 0.0]
    assert found[[0, 2]].flatten().tolist() == pytest.approx([1.2, 1.6, 120.0, 160.0])
    assert calls == [[0, 1, 2], [0, 2]]


def test_a_quadratic_is_reached_in_few_steps() -> None:
    """|v - 1|^2 halves its distance with every step; the square is then a quarter."""

    def loss(values: Tensor, _rows: Tensor) -> Tensor:
        return (values - 1).square().sum(dim=1)

    one = Probe.descend(_PROBE, loss, torch.zeros(1, 4), steps=1)
    assert one.tolist() == [pytest.approx([0.5] * 4)]
    found = Probe.descend(_PROBE, loss, torch.zeros(1, 4), steps=10)
    assert float(loss(found, torch.tensor([0]))) <= DONE
    assert float((found - 1).norm()) == pytest.approx(2 / 2**5)  # 4 / 4^5 < DONE: stopped after five


def test_chunks_make_no_difference() -> None:
    wanted = torch.arange(1.0, 8.0)
    loss = linear(torch.tensor([3.0, 4.0]), wanted)
    whole = Probe.descend(_PROBE, loss, torch.zeros(7, 2), steps=3)
    for chunk in (1, 3, 7):
        assert torch.equal(Probe.descend(_PROBE, loss, torch.zeros(7, 2), steps=3, chunk=chunk), whole)


def test_no_steps_leave_the_start() -> None:
    start = torch.tensor([[0.5, 0.25]])
    found = Probe.descend(_PROBE, linear(torch.ones(2), torch.tensor([9.0])), start, steps=0)
    assert torch.equal(found, start)
    assert found.data_ptr() != start.data_ptr()


def test_the_start_is_not_written_into() -> None:
    start = torch.zeros(1, 2)
    Probe.descend(_PROBE, linear(torch.ones(2), torch.tensor([9.0])), start, steps=3)
    assert start.tolist() == [[0.0, 0.0]]


def test_half_precision_is_descended_in_full() -> None:
    found = Probe.descend(
        _PROBE, linear(torch.tensor([3.0, 4.0]), torch.tensor([10.0])), torch.zeros(1, 2).bfloat16(), steps=1
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("start", [0.1, 1.0, 3.0])
def test_a_loss_that_cannot_reach_zero_ends_no_worse_than_it_began(start: float) -> None:
    """1 + |v|^2: near the least value the gradient vanishes and Polyak's stride has no bound."""

    def loss(values: Tensor, _rows: Tensor) -> Tensor:
        return 1 + values.square().sum(dim=1)

    begin = torch.full((1, 1), start)
    for steps in (1, 2, 5, 20):
        found = Probe.descend(_PROBE, loss, begin, steps=steps)
        assert float(loss(found, torch.tensor([0]))) <= float(loss(begin, torch.tensor([0]))) + 1e-6


_PROBE = Probe.__new__(Probe)
"""`descend` asks nothing of a model."""


def test_shortfall_by_hand() -> None:
    """Odds of 9 to 1 are asked, log 9; two others at 0 make log-odds of x - log 2."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    short = shortfall(logits, torch.tensor([0, 0, -100]), 0.9)
    assert short.tolist() == pytest.approx([math.log(9) - (2 - math.log(2)), 0.0, 0.0])


def test_no_shortfall_is_the_probability_reached() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 5, generator=generator) * 4
    targets = torch.randint(5, (200,), generator=generator)
    chance = logits.softmax(-1).gather(1, targets[:, None])[:, 0]
    assert torch.equal(shortfall(logits, targets, 0.7) == 0, chance >= 0.7)


def test_rows_at_columns() -> None:
    rows = torch.arange(12.0).reshape(2, 3, 2)
    assert at_columns(rows, torch.tensor([2, 0])).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert at_columns(rows, None).tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert at_columns(rows[:, :1], torch.tensor([2, 0])).tolist() == [[0.0, 1.0], [6.0, 7.0]]


# ------------------------------------------------------------------------------------- behind a site, by position


@torch.no_grad()
def test_what_follows_a_place_is_what_the_model_computes(loaded: Loaded) -> None:
    """At every answer position, also for values that were never there."""
    probe = probe_of(loaded)
    batch, site = batch_of(loaded, probe), units_place(probe.model).output
    seen = probe.capture(batch, [site])
    suffix = probe.behind(batch, site, seen)
    wanted = batch.answers != -100
    which = torch.arange(int(wanted.sum()))
    assert close(suffix.run(suffix.start, which), full_logits(loaded, batch)[wanted])
    moved = suffix.start + 0.3 * torch.randn(suffix.start.shape, generator=torch.Generator().manual_seed(0))
    rows = seen.rows[site].clone()
    rows[suffix.rows, suffix.columns] = moved

    def put(_module: nn.Module, _args: Any, output: Any) -> Any:
        return site.write(output, rows)

    with loaded.model.get_submodule(site.path).register_forward_hook(put):
        expected = full_logits(loaded, batch)[wanted]
    assert close(suffix.run(moved[1:], which[1:]), expected[1:])


class Pooled(nn.Module):
    """A classifier that reads its answer from the mean of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(dim=1))  # type: ignore[no-any-return]


def test_a_place_before_pooling_is_refused() -> None:
    torch.manual_seed(0)
    model = Pooled()
    probe = Probe(shadow_of(model), Reader(model))
    batch = probe.reader.batch([probe.reader.request("x", Edit(torch.randn(5, 4), 1))])
    site = units_place(probe.model).output
    assert site == Site("blocks.1")
    with pytest.raises(SiteError, match=r"'blocks\.1' does not compute each position by itself .* head with site='"):
        probe.behind(batch, site, probe.capture(batch, [site]))


# ------------------------------------------------------------------------------------------------ steps of Adam


def test_the_first_steps_of_adam_by_hand() -> None:
    """Adam's first step is its rate along the sign of the gradient, whatever its size; so is the next on a line."""
    found, satisfied = Probe.minimise(
        lambda values: (5 * values[:, 0] - 1e-3 * values[:, 1], values[:, 0] <= -0.15),
        torch.tensor([[0.0, 0.0], [0.02, 0.0]]),
        steps=10,
        rate=0.1,
    )
    assert torch.allclose(found, torch.tensor([[-0.2, 0.2], [-0.18, 0.2]]), atol=1e-4)
    assert satisfied.tolist() == [True, True]


def test_rows_stop_each_by_itself() -> None:
    """A row that is satisfied stays as it first was, while others go on; those that never are end at the last step."""
    limits = torch.tensor([0.15, 0.35, 9.0])
    found, satisfied = Probe.minimise(
        lambda values: (-values[:, 0], values[:, 0] >= limits), torch.zeros(3, 1), steps=5, rate=0.1
    )
    assert torch.allclose(found[:, 0], torch.tensor([0.2, 0.4, 0.5]), atol=1e-4)
    assert satisfied.tolist() == [True, True, False]


def test_a_careful_descent_goes_back_from_a_step_too_long() -> None:
    """|tanh|-like losses flatten out: the plain step jumps to where there is no slope left, the careful one returns."""
    probe = probe_of(FAMILIES[0].load())
    start = torch.tensor([[0.7]])

    def loss(values: Tensor, _rows: Tensor) -> Tensor:
        return (1 - (-values.square() * 9).exp())[:, 0]  # a narrow pit: far away it is flat

    plain, careful = (probe.descend(loss, start, steps=40, careful=c) for c in (False, True))
    assert loss(plain, torch.zeros(1)) > 0.5
    assert loss(careful, torch.zeros(1)) < 0.02


# ------------------------------------------------------------------------------------------ what nobody asked about


def test_unrelated_activations_are_always_the_same(loaded: Loaded) -> None:
    probes = [probe_of(loaded, tuple(loaded.unrelated) if loaded.tokenizer else ()) for _ in range(2)]
    state = torch.get_rng_state()
    site = units_place(probes[0].model).input
    found = [probe.unrelated(site, batch_of(loaded, probe)) for probe in probes]
    assert torch.equal(*found) and torch.equal(torch.get_rng_state(), state)
    assert found[0].ndim == 2 and len(found[0].unique(dim=0)) > 4
    if loaded.family.generates:
        assert len(found[0]) == own_words.SEQUENCES * own_words.TOKENS
        assert probes[0].unrelated(site, batch_of(loaded, probes[0])) is found[0]  # sampled once


# --------------------------------------------------------------------------------------------- a joint descent


def _distance(targets: Tensor) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """Rows that each pull the one shared tensor towards their own target."""
    return lambda moving, rows: (moving[0] - targets[rows]).square().sum(dim=1)


def test_a_first_joint_step_by_hand() -> None:
    """Adam's first step is the rate against the sign of the mean gradient, (2, -8)/2 here."""
    targets = torch.tensor([[0.0, 2.0], [0.0, 6.0]])
    (moved,) = Probe.descend_jointly(_distance(targets), [torch.tensor([1.0, 0.0])], 2, steps=1, rate=0.5)
    assert torch.allclose(moved, torch.tensor([0.5, 0.5]))


def test_what_holds_back_is_added_to_the_mean() -> None:
    """The rows pull up with gradient -2, what holds back pulls down with 3: the first step goes down."""
    (moved,) = Probe.descend_jointly(
        _distance(torch.ones(4, 1)), [torch.zeros(1)], 4, steps=1, rate=0.25, keep=lambda moving: 3 * moving[0].sum()
    )
    assert torch.allclose(moved, torch.tensor([-0.25]))


def test_a_joint_descent_stops_when_every_row_is_done() -> None:
    steps: list[int] = []

    def loss(moving: Sequence[Tensor], rows: Tensor) -> Tensor:
        steps.append(len(rows))
        return (1 - moving[0]).clamp_min(0).expand(len(rows))

    (moved,) = Probe.descend_jointly(loss, [torch.zeros(())], 3, steps=100, rate=0.5, chunk=2)
    assert float(moved) >= 1 - DONE
    assert len(steps) < 20


def test_a_joint_descent_goes_on_until_what_holds_back_is_satisfied() -> None:
    """The rows are done from the start; |x| has to come down from 1 to a tenth, at a tenth a step."""
    (moved,) = Probe.descend_jointly(
        lambda moving, rows: 0 * moving[0].expand(len(rows)),
        [torch.ones(())],
        2,
        steps=100,
        rate=0.1,
        keep=lambda moving: moving[0].abs(),
        still=0.1,
    )
    assert -0.2 < float(moved) <= 0.1


def test_a_joint_descent_takes_open_rows_first() -> None:
    """Rows 0 to 5 are done from the start: once each has been looked at, every chunk holds the two that are not."""
    seen: list[set[int]] = []

    def loss(moving: Sequence[Tensor], rows: Tensor) -> Tensor:
        seen.append(set(rows.tolist()))
        return torch.where(rows < 6, 0.0, 1.0) + 0 * moving[0]

    Probe.descend_jointly(loss, [torch.zeros(())], 8, steps=12, rate=0.1, chunk=4)
    assert set().union(*seen) == set(range(8))
    assert all({6, 7} <= rows for rows in seen[4:])


def test_a_joint_descent_looks_again_at_all_before_it_stops() -> None:
    """Row 1 wants what row 0 does not: seen one at a time each may look done, and together they never are."""
    targets = torch.tensor([[1.0], [-1.0]])
    calls: list[list[int]] = []

    def loss(moving: Sequence[Tensor], rows: Tensor) -> Tensor:
        calls.append(rows.tolist())
        return (moving[0] - targets[rows]).square().sum(dim=1)

    Probe.descend_jointly(loss, [torch.zeros(1)], 2, steps=30, rate=0.3, chunk=1)
    assert len(calls) >= 30


def test_a_joint_descent_repeats_itself() -> None:
    start = [torch.zeros(3), torch.ones(2, 3)]

    def loss(moving: Sequence[Tensor], rows: Tensor) -> Tensor:
        return (moving[0] - rows[:, None]).square().sum(dim=1) + moving[1].square().sum()

    once, again = (Probe.descend_jointly(loss, start, 9, steps=7, rate=0.1, chunk=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert torch.equal(start[1], torch.ones(2, 3)), "the start is not written into"


@pytest.mark.parametrize("block", [0, -1])
def test_a_resumed_forward_is_the_whole_forward(loaded: Loaded, block: int) -> None:
    probe = probe_of(loaded)
    batch = batch_of(loaded, probe)
    site = Site(_block(loaded, block))
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        assert close(probe.resume(batch, site)(rows), probe.logits(batch)[rows])


def _block(loaded: Loaded, block: int) -> str:
    try:
        return block_paths(loaded.model)[block]
    except SiteError:  # torchvision's networks have no list of blocks
        return classifier_head(loaded.model)


def test_acting_changes_what_follows_and_passes_gradients(loaded: Loaded) -> None:
    probe = probe_of(loaded)
    batch = batch_of(loaded, probe)
    site = Site(_block(loaded, -1))
    scale = torch.ones((), requires_grad=True)
    rest = probe.resume(batch, site)
    every = torch.arange(len(batch))
    with torch.no_grad():
        before = rest(every)
    with probe.acting({"last": site}, lambda role, rows: rows * scale if role == "last" else rows):
        assert torch.equal(rest(every), before)
        (gradient,) = torch.autograd.grad(rest(every).square().sum(), scale)
    assert gradient.abs() > 0
    assert torch.equal(rest(every).detach(), before), "nothing acts outside"


# -------------------------------------------------------------------------------------------------- other text

TEXTS = ("november uniform mike", "india golf")


@TEXT
def test_reference_is_the_prompts_and_what_the_model_goes_on_to_say(loaded: Loaded) -> None:
    probe = probe_of(loaded, TEXTS)
    state = torch.get_rng_state()
    reference = probe.reference()
    assert reference is not None
    assert probe.reference() is reference, "asked once"
    assert torch.equal(torch.get_rng_state(), state)
    seq2seq = loaded.family.kind == "seq2seq"
    ids = reference.arguments["decoder_input_ids" if seq2seq else "input_ids"]
    mask = reference.arguments["decoder_attention_mask" if seq2seq else "attention_mask"]
    assert ids.shape == mask.shape
    for row, text in enumerate(TEXTS):
        real = ids[row][mask[row].bool()].tolist()
        prompt = loaded.tokenizer(text).input_ids
        assert len(real) > (1 if seq2seq else len(prompt))
        assert seq2seq or real[: len(prompt)] == prompt


@CLASSIFIERS
def test_a_classifiers_reference_is_the_prompts(loaded: Loaded) -> None:
    reference = probe_of(loaded, TEXTS).reference()
    if loaded.tokenizer is None:
        assert reference is None
    else:
        assert reference is not None
        assert reference.arguments["input_ids"].shape[0] == 2


def test_without_reference_prompts_there_is_no_reference() -> None:
    from tests.families import FAMILIES

    assert probe_of(FAMILIES[0].load()).reference() is None
