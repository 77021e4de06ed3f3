"""Sites: every layout reads as rows and is written back; modules are chosen by structure."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from editable.errors import SiteError
from editable.site import (
    ACTIVATIONS,
    FeedForward,
    Site,
    block_paths,
    classifier_head,
    context_length,
    down_projection,
    feed_forward,
    find_module,
    is_seq2seq,
    label_rows,
    units_place,
    writes_text,
)
from tests.families import FAMILIES

Named = namedtuple("Named", ["hidden", "extra"])


def counted(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


LAYOUTS: dict[str, tuple[Site, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # site, activation's shape, rows' shape, and where rows[1, 2, 3] (or its like) is found in the activation
    "features": (Site("m"), (2, 5), (2, 1, 5), (1, 3)),
    "positions": (Site("m"), (2, 4, 5), (2, 4, 5), (1, 2, 3)),
    "positions, last axis": (Site("m", axis=-1), (2, 4, 5), (2, 4, 5), (1, 2, 3)),
    "positions, axis 2": (Site("m", axis=2), (2, 4, 5), (2, 4, 5), (1, 2, 3)),
    "channels before positions": (Site("m", axis=1), (2, 5, 4), (2, 4, 5), (1, 3, 2)),
    "channels, from the end": (Site("m", axis=-2), (2, 5, 4), (2, 4, 5), (1, 3, 2)),
    "feature map": (Site("m"), (2, 5, 2, 3), (2, 6, 5), (1, 3, 0, 2)),
    "feature map, axis 1": (Site("m", axis=1), (2, 5, 2, 3), (2, 6, 5), (1, 3, 0, 2)),
    "channels last": (Site("m", axis=3), (2, 2, 3, 5), (2, 6, 5), (1, 0, 2, 3)),
    "channels last, from the end": (Site("m", axis=-1), (2, 2, 3, 5), (2, 6, 5), (1, 0, 2, 3)),
    "channels in the middle": (Site("m", axis=2), (2, 2, 5, 3), (2, 6, 5), (1, 0, 3, 2)),
}
layouts = pytest.mark.parametrize(("site", "shape", "rows", "place"), LAYOUTS.values(), ids=LAYOUTS.keys())


@layouts
def test_reading_gives_rows(site: Site, shape: tuple[int, ...], rows: tuple[int, ...], place: tuple[int, ...]) -> None:
    activation = counted(*shape)
    read = site.read(activation)
    assert read.shape == rows
    assert read[1, min(2, rows[1] - 1), 3] == activation[place]


@layouts
def test_writing_undoes_reading(
    site: Site, shape: tuple[int, ...], rows: tuple[int, ...], place: tuple[int, ...]
) -> None:
    activation = counted(*shape)
    assert torch.equal(site.write(activation, site.read(activation)), activation)
    changed = site.read(activation).clone()
    changed[1, min(2, rows[1] - 1), 3] = -7
    out = site.write(activation, changed)
    assert out[place] == -7
    assert int((out != activation).sum()) == 1


@layouts
def test_writing_leaves_the_given_activation_alone(
    site: Site, shape: tuple[int, ...], rows: tuple[int, ...], place: tuple[int, ...]
) -> None:
    activation = counted(*shape)
    before, version = activation.clone(), activation._version
    site.write(activation, torch.zeros(rows))
    assert torch.equal(activation, before)
    assert activation._version == version
    assert activation[place] == before[place]


WRAPPED = {
    "tuple": (counted(2, 4, 5), "cache", None),
    "tuple, the tensor later": (None, counted(2, 4, 5), counted(1)),
    "list": [counted(2, 4, 5), "cache"],
    "mapping": {"a": None, "hidden": counted(2, 4, 5), "b": counted(1)},
    "model output": BaseModelOutput(last_hidden_state=counted(2, 4, 5), hidden_states=(counted(1),)),
    "output without its first field": SequenceClassifierOutput(logits=counted(2, 4, 5)),
    "named tuple": Named(counted(2, 4, 5), "cache"),
}


def parts(activation: Any) -> list[Any]:
    return list(activation.values()) if isinstance(activation, dict) else list(activation)


@pytest.mark.parametrize("activation", WRAPPED.values(), ids=WRAPPED.keys())
def test_the_first_tensor_counts_and_the_rest_is_passed_on(activation: Any) -> None:
    site, rows = Site("m"), torch.zeros(2, 4, 5)
    assert torch.equal(site.read(activation), counted(2, 4, 5))
    out = site.write(activation, rows)
    assert type(out) is type(activation)
    assert torch.equal(site.read(out), rows)
    assert torch.equal(site.read(activation), counted(2, 4, 5))
    others = [part for part in parts(out) if part is not site.read(out)]
    assert all(any(part is old for old in parts(activation)) for part in others)
    assert len(parts(out)) == len(parts(activation))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_a_shape_without_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SiteError, match=r"Site 'a\.b' has an activation of shape .*expected \(batch, features\)"):
        Site("a.b").read(torch.zeros(shape))


@pytest.mark.parametrize("activation", [None, "text", (), (None, 3), {}])
def test_an_activation_without_a_tensor_is_refused(activation: Any) -> None:
    with pytest.raises(SiteError, match=r"Site 'a\.b' produces \w+, expected a tensor, or a tuple"):
        Site("a.b").read(activation)


# ----------------------------------------------------------------------------------------------------- by name


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)
        self.out = nn.Linear(4, 4)


class Net(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(9))  # longer, but nothing repeats inside
        self.head = nn.Linear(4, 2)


def test_a_module_by_path_or_glob() -> None:
    net = Net()
    assert find_module(net, "blocks.1.down") == "blocks.1.down"
    assert find_module(net, "*.2.up") == "blocks.2.up"
    assert find_module(net, "h??d") == "head"


def test_an_unknown_site_lists_the_nearest_names() -> None:
    message = r"Site 'blocks\.1\.dwn' does not exist in Net, expected a module path; the nearest are: blocks\.1\.down"
    with pytest.raises(SiteError, match=message):
        find_module(Net(), "blocks.1.dwn")


def test_a_site_like_nothing_lists_some_names() -> None:
    with pytest.raises(SiteError, match=r"the nearest are: blocks, blocks\.0, blocks\.0\.up"):
        find_module(Net(), "§§§§")


def test_a_glob_that_matches_several_is_refused() -> None:
    message = r"Site '\*\.down' matches 3 modules \(blocks\.0\.down, blocks\.1\.down, blocks\.2\.down \.\.\.\)"
    with pytest.raises(SiteError, match=message):
        find_module(Net(), "*.down")


# ------------------------------------------------------------------------------------------------ by structure


def test_the_blocks_are_the_longest_repeated_stack() -> None:
    assert block_paths(Net()) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_model_without_a_stack_is_refused() -> None:
    with pytest.raises(SiteError, match=r"Linear has no repeated block stack.*name the module to edit with site="):
        block_paths(nn.Linear(2, 2))


def test_the_down_projection_is_the_last_that_narrows() -> None:
    assert down_projection(Net(), "blocks.1") == "blocks.1.down"


def test_without_a_narrowing_layer_it_is_the_last() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8))
    assert down_projection(nn.ModuleDict({"b": net}), "b") == "b.2"


def test_a_block_without_a_linear_is_refused() -> None:
    with pytest.raises(SiteError, match=r"Block '0' has no linear layer"):
        down_projection(nn.ModuleList([nn.ReLU()]), "0")


def test_the_head_is_the_last_linear() -> None:
    assert classifier_head(Net()) == "head"
    with pytest.raises(SiteError, match="ReLU has no linear layer"):
        classifier_head(nn.ReLU())


FEED_FORWARDS = {
    "gpt2": ("mlp.c_fc", "mlp.c_proj", False, "gelu_tanh"),
    "llama-gqa": ("mlp.gate_proj", "mlp.down_proj", True, "silu"),
    "qwen3-qk-norm": ("mlp.gate_proj", "mlp.down_proj", True, "silu"),
    "gemma3-sliding": ("mlp.gate_proj", "mlp.down_proj", True, "gelu_tanh"),
    "t5": ("layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo", False, "relu"),
    "bart": ("fc1", "fc2", False, "gelu"),
    "bert": ("intermediate.dense", "output.dense", False, "gelu"),
    "vit": ("mlp.fc1", "mlp.fc2", False, "gelu"),
}


@pytest.mark.parametrize("name", FEED_FORWARDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_feed_forward_of_a_block(name: str, training: bool) -> None:
    """Also while the user trains the model, whose dropout then draws random numbers: none are drawn here."""
    up, down, gated, activation = FEED_FORWARDS[name]
    model = {family.name: family for family in FAMILIES}[name].load().model.train(training)
    block, state = block_paths(model)[-1], torch.get_rng_state()
    found = feed_forward(model, block)
    assert (found.input, found.output) == (Site(f"{block}.{up}", "input", -1), Site(f"{block}.{down}", axis=-1))
    assert (found.gated, found.activation) == (gated, activation)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in model.modules())


class Fused(nn.Module):
    """Gate and up projection in one layer."""

    def __init__(self, ups: int = 1) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.ups = nn.ModuleList(nn.Linear(4, 12) for _ in range(ups))
        self.act = nn.SiLU()
        self.down = nn.Linear(6, 4)


def test_a_gated_feed_forward_with_one_wide_layer() -> None:
    model = nn.ModuleDict({"block": Fused()})
    found = feed_forward(model, "block")
    assert found == FeedForward(Site("block.ups.0", "input", -1), Site("block.down", axis=-1), "silu", True)


def test_a_mixture_of_experts_is_refused() -> None:
    message = r"Block 'block' has 3 linear layers that lead to 'block\.down', expected .* site='\.\.\.'"
    with pytest.raises(SiteError, match=message):
        feed_forward(nn.ModuleDict({"block": Fused(3)}), "block")


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"), (nn.Tanh(), "tanh")],
    ids=str,
)
def test_an_activation_is_known_by_its_values(module: nn.Module, name: str) -> None:
    block = nn.Sequential(nn.Linear(4, 8), module, nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4))
    assert feed_forward(nn.ModuleDict({"b": block}), "b").activation == name
    numbers = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(ACTIVATIONS[name](numbers), module(numbers))


def test_a_feed_forward_without_an_activation_is_refused() -> None:
    with pytest.raises(SiteError, match=r"Block 'blocks\.0' has no activation function among its modules"):
        feed_forward(Net(), "blocks.0")


def test_units_add_to_the_stream_that_leaves_the_last_block() -> None:
    model = {family.name: family for family in FAMILIES}["gemma3-sliding"].load().model
    read, added = Site("model.layers.3.mlp.gate_proj", "input", -1), Site("model.layers.3")
    assert units_place(model) == FeedForward(read, added, "gelu_tanh", True)
    assert units_place(model, "model.layers.1").output == Site("model.layers.1")


@pytest.mark.parametrize(
    "name", ["resnet", "torchvision-resnet18", "timm-resnet", "timm-efficientnet", "timm-convnext"]
)
def test_without_a_feed_forward_units_stand_beside_the_head(name: str) -> None:
    model = {family.name: family for family in FAMILIES}[name].load().model
    head = classifier_head(model)
    assert units_place(model) == FeedForward(Site(head, side="input"), Site(head), "relu")
    assert units_place(Net(), "head") == FeedForward(Site("head", side="input"), Site("head"), "relu")


KINDS = {
    "gpt2": (3, "transformer.h.", True, False),
    "llama-gqa": (3, "model.layers.", True, False),
    "t5": (2, "decoder.block.", True, True),
    "bart": (2, "model.decoder.layers.", True, True),
    "bert": (None, "bert.encoder.layer.", False, False),
    "vit": (3, None, False, False),
    "resnet": (None, None, False, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_from_a_models_tree(name: str) -> None:
    count, prefix, text, seq2seq = KINDS[name]
    model = {family.name: family for family in FAMILIES}[name].load().model
    assert (writes_text(model), is_seq2seq(model)) == (text, seq2seq)
    if count is not None and prefix is not None:
        assert block_paths(model) == [f"{prefix}{i}" for i in range(count)]


def test_the_decoders_stack_is_chosen_where_the_encoders_is_longer() -> None:
    config = hf.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=4, num_decoder_layers=2, num_heads=2, vocab_size=9)
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(config)
    assert block_paths(model) == ["decoder.block.0", "decoder.block.1"]


class Stage(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*(layers or (nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))))


def test_a_sequential_is_a_stack_where_there_is_no_list() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Stage(), Stage()), nn.Linear(4, 2))
    assert block_paths(model) == ["1.0", "1.1"]
    assert block_paths(nn.ModuleList([Stage(), model])) == ["1.1.0", "1.1.1"]
    assert block_paths(nn.ModuleDict({"a": model, "b": nn.ModuleList([Stage()])})) == ["b.0"]


def test_units_stand_beside_the_head_where_another_stack_follows_the_longest() -> None:
    """Networks in stages: what comes behind the longest one mixes positions."""
    stages = nn.Sequential(nn.Sequential(Stage(), Stage()), nn.ModuleDict({"down": nn.Linear(4, 4)}))
    one = nn.Sequential(stages, nn.Linear(4, 2))
    assert units_place(one).output == Site("0.0.1")
    stages = nn.Sequential(nn.Sequential(Stage(), Stage(), Stage()), nn.ModuleDict({"s": nn.Sequential(Stage())}))
    two = nn.Sequential(stages, nn.Linear(4, 2))
    assert units_place(two) == FeedForward(Site("1", side="input"), Site("1"), "relu")


@pytest.mark.parametrize(
    ("name", "output"),
    [("timm-vit", "blocks.2"), ("torchvision-vit", "encoder.layers.encoder_layer_2"), ("vit", "vit.layers.2")],
)
def test_units_of_a_vision_transformer_stand_beside_its_last_feed_forward(name: str, output: str) -> None:
    place = units_place({family.name: family for family in FAMILIES}[name].load().model)
    assert (place.output.path, place.activation, place.gated) == (output, "gelu", False)
    assert place.input.axis == -1


def test_the_weights_that_read_labels() -> None:
    """Of a vocabulary, of a classifier, of a layer that holds them transposed; not of a quantised one."""
    gpt2 = next(one for one in FAMILIES if one.name == "gpt2").load().model
    assert label_rows(gpt2) is gpt2.lm_head.weight
    perceptron = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    assert label_rows(perceptron).shape == (3, 8)
    turned = hf.pytorch_utils.Conv1D(3, 8)
    assert torch.equal(label_rows(nn.Sequential(turned)), turned.weight.T)
    packed = nn.Sequential(nn.Linear(8, 3))
    packed[0].weight = nn.Parameter(torch.zeros(12, 1))
    with pytest.raises(SiteError, match="Module '0' is a Linear, expected a linear layer with plain weights"):
        label_rows(packed)


def test_a_context_is_as_long_as_the_config_says_or_has_no_end() -> None:
    llama = next(family for family in FAMILIES if family.name == "llama-gqa").load()
    assert context_length(llama.model) == 128
    assert context_length(nn.Linear(2, 2)) == 1 << 30
