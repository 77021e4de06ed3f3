"""Digests: equal for equal weights however they are held, different for one different bit."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from editable.digest import base_digest, tokenizer_digest
from editable.errors import StateError


class Net(nn.Module):
    """Two layers, a buffer that is saved and one that is not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 4, bias=False)
        self.register_buffer("kept", torch.arange(5.0))
        self.register_buffer("dropped", torch.zeros(2), persistent=False)
        for position, tensor in enumerate(self.parameters()):
            tensor.data = torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape) + position
        self.to(dtype)


class Tied(nn.Module):
    """Embedding and head share one weight, under two names, assigned in either order."""

    def __init__(self, head_first: bool, tie: bool = True) -> None:
        super().__init__()
        weight = torch.arange(12.0).reshape(4, 3)
        embed, head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        embed.weight = nn.Parameter(weight.clone())
        head.weight = embed.weight if tie else nn.Parameter(weight.clone())
        for name in ("head", "embed") if head_first else ("embed", "head"):
            self.add_module(name, head if name == "head" else embed)


def flip_lowest_bit(tensor: Tensor) -> None:
    tensor.detach().view(-1).view(torch.uint8)[0] ^= 1


def test_digest_is_sha256_and_repeats() -> None:
    digest = base_digest(Net())
    assert len(digest) == 64 and int(digest, 16) >= 0
    assert base_digest(Net()) == digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_flipped_bit_changes_it_and_flipping_back_restores_it(dtype: torch.dtype) -> None:
    net = Net(dtype)
    before = base_digest(net)
    for tensor in (net.first.weight, net.first.bias, net.second.weight, net.kept):
        assert isinstance(tensor, Tensor)
        flip_lowest_bit(tensor)
        assert base_digest(net) != before
        flip_lowest_bit(tensor)
        assert base_digest(net) == before


def test_integer_boolean_scalar_and_empty_tensors_count() -> None:
    net = Net()
    seen = {base_digest(net)}
    tensors = (
        torch.tensor([1, -1], dtype=torch.int8),
        torch.tensor([1, -2], dtype=torch.int8),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.tensor(-0.0),
        torch.tensor(0.0),  # equal to the one before, with other bits
        torch.empty(0),
        torch.empty(0, 7),
    )
    for tensor in tensors:
        net.register_buffer("extra", tensor)
        seen.add(base_digest(net))
    assert len(seen) == 1 + len(tensors)


def test_name_shape_and_dtype_count() -> None:
    def digest(name: str, tensor: Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return base_digest(module)

    zeros = torch.zeros(4)
    variants = [("a", zeros), ("b", zeros), ("a", zeros.reshape(2, 2)), ("a", zeros.int())]
    assert len({digest(*variant) for variant in variants}) == 4


def test_swapping_two_equal_shaped_weights_changes_it() -> None:
    net, swapped = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Sequential()
    swapped.extend([net[1], net[0]])
    assert base_digest(net) != base_digest(swapped)


def test_buffers_that_are_not_saved_do_not_count() -> None:
    net = Net()
    before = base_digest(net)
    assert isinstance(net.dropped, Tensor)
    net.dropped += 1
    assert base_digest(net) == before


def test_tying_and_its_order_do_not_count() -> None:
    digests = {base_digest(Tied(head_first, tie)) for head_first in (True, False) for tie in (True, False)}
    assert len(digests) == 1


def test_layout_gradients_mode_and_hooks_do_not_count() -> None:
    conv = nn.Conv2d(3, 4, 3)
    before = base_digest(conv)
    assert base_digest(conv.to(memory_format=torch.channels_last)) == before
    conv.requires_grad_(False).eval().register_forward_hook(lambda *_: None)
    assert base_digest(conv) == before


def test_views_of_one_storage_are_told_apart() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    module, copied = nn.Module(), nn.Module()
    for name, view in {"rows": table, "turned": table.T, "part": table[:1], "flat": table.view(-1)}.items():
        module.register_buffer(name, view)
        copied.register_buffer(name, view.clone())
    assert base_digest(module) == base_digest(copied)


def test_weights_are_neither_copied_nor_changed() -> None:
    net = Net()
    pointers = [tensor.data_ptr() for tensor in net.parameters()]
    values = [tensor.clone() for tensor in net.parameters()]
    base_digest(net)
    assert [tensor.data_ptr() for tensor in net.parameters()] == pointers
    assert all(map(torch.equal, net.parameters(), values))
    assert all(tensor.requires_grad for tensor in net.parameters())


def test_another_process_gives_the_same_digests() -> None:
    code = (
        "import torch\nfrom torch import nn\nfrom editable.digest import base_digest, tokenizer_digest\n"
        "net = nn.Linear(2, 3)\nnet.weight.data = torch.arange(6.0).reshape(3, 2)\nnet.bias.data.zero_()\n"
        "class Slow:\n    def get_vocab(self): return {w: i for i, w in enumerate({'a', 'b', 'c', 'd'})}\n"
        "Slow.get_vocab = lambda self: {w: ord(w) for w in {'a', 'b', 'c', 'd'}}\n"
        "print(base_digest(net), tokenizer_digest(Slow()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    net = nn.Linear(2, 3)
    net.weight.data = torch.arange(6.0).reshape(3, 2)
    net.bias.data.zero_()
    assert len(outputs) == 1
    assert outputs.pop().split()[0] == base_digest(net)


def test_weights_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(StateError, match=r"'0\.weight' is on the meta device .* without offloading"):
        base_digest(net)


def fast(words: str = "a b c", lower: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, "[PAD]": 1} | {word: 2 + i for i, word in enumerate(words.split())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def test_tokenizer_digest_sees_vocabulary_normaliser_and_added_tokens() -> None:
    added = fast()
    added.add_tokens(["d"])
    variants = [fast(), fast("a c b"), fast("a b"), fast(lower=True), added]
    assert len({tokenizer_digest(variant) for variant in variants}) == len(variants)
    assert tokenizer_digest(fast()) == tokenizer_digest(fast())


def test_tokenizer_digest_ignores_padding_truncation_and_template() -> None:
    words = fast()
    before = tokenizer_digest(words)
    words(["a b c", "a"], padding=True, truncation=True, max_length=2)
    words.padding_side = "left"
    words.chat_template = "{{ messages }}"
    assert tokenizer_digest(words) == before
    assert words.backend_tokenizer.truncation is not None  # the call above did leave its state behind


def test_tokenizer_without_a_fast_backend_is_digested_by_its_vocabulary() -> None:
    class Slow:
        def __init__(self, vocabulary: dict[str, int]) -> None:
            self.vocabulary = vocabulary

        def get_vocab(self) -> dict[str, int]:
            return self.vocabulary

    same: list[Any] = [Slow({"a": 0, "b": 1}), Slow({"b": 1, "a": 0})]
    assert tokenizer_digest(same[0]) == tokenizer_digest(same[1]) != tokenizer_digest(Slow({"a": 1, "b": 0}))


def test_no_tokenizer_has_the_empty_digest() -> None:
    assert tokenizer_digest(None) == ""
