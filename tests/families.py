"""Tiny random models of every family the library serves, and inputs for them.

Knows nothing of editing: a family builds a model and a tokenizer, both deterministic, both in milliseconds,
without stored weights and without a network. Weights are drawn wide, so that different prompts give different
activations and different answers (`contract/test_families.py` holds that).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

Kind = Literal["causal", "seq2seq", "text_classifier", "image_classifier"]
Side = Literal["left", "right"]
Build = Callable[[torch.dtype], "tuple[nn.Module, hf.PreTrainedTokenizerFast | None]"]

LABELS = 7
LONGEST = 8  # new tokens that a generation may have: more than any answer needs
PAD, BOS, EOS = 0, 1, 2
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa "
    "quebec romeo sierra tango uniform victor whiskey xray yankee zulu one two three four five six seven "
    "eight nine ten red green blue north south east west"
)


@dataclass(frozen=True)
class Family:
    """One architecture at toy size.

    Args:
        name: readable id.
        kind: what goes in and what comes out.
        build: `build(dtype) -> (model in eval mode, tokenizer or None)`; leaves the global random state be.
        sides: the padding sides at which a row's answer does not depend on how far it was padded.
        needs: an optional package without which it cannot be built.
    """

    name: str
    kind: Kind
    build: Build
    sides: tuple[Side, ...] = ()
    needs: str | None = None

    @property
    def generates(self) -> bool:
        """Whether it answers in text."""
        return self.kind in ("causal", "seq2seq")

    def load(self, dtype: torch.dtype = torch.float32) -> Loaded:
        """Build it, and choose an answer for each input that its model does not give by itself."""
        model, words = self.build(dtype)
        loaded = Loaded(self, model, words, dtype, TARGETS)
        if self.generates:
            return loaded
        with torch.no_grad():
            now = loaded.answers(loaded.edited).argmax(-1).tolist()
        return replace(loaded, targets=tuple((label + 1) % LABELS for label in now))

    @property
    def available(self) -> bool:
        """Whether everything it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A family's model with its tokenizer, and how inputs are fed to it and answers are read from it.

    Args:
        family: what it is.
        model: the user's own model object: always called directly.
        tokenizer: None where the input is no text.
        dtype: of its parameters.
        targets: an answer for each of `edited` that the model does not give by itself.
    """

    family: Family
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    targets: tuple[str, ...] | tuple[int, ...]

    @property
    def side(self) -> Side:
        """The padding side its batches have where nothing else is asked."""
        return (*self.family.sides, "left")[0]

    @property
    def edited(self) -> list[Any]:
        """Six inputs that tests edit: text, or images without their batch dimension."""
        return self._inputs(PROMPTS, seed=0)

    @property
    def unrelated(self) -> list[Any]:
        """Four inputs of the same kind that no test edits."""
        return self._inputs(UNRELATED, seed=1)

    def _inputs(self, texts: tuple[str, ...], seed: int) -> list[Any]:
        if self.tokenizer is not None:
            return list(texts)
        return [image.to(self.dtype) for image in images(len(texts), seed)]

    def encode(self, inputs: Sequence[Any], side: Side | None = None) -> dict[str, Tensor]:
        """One batch, as `generate` takes it; padded on the family's first side unless told."""
        if self.tokenizer is None:
            name = next(iter(inspect.signature(self.model.forward).parameters))
            return {name: torch.stack(list(inputs))}
        texts = list(inputs)
        coded = self.tokenizer(texts, padding=True, padding_side=side or self.side, return_token_type_ids=False)
        return {name: torch.tensor(coded[name]) for name in ("input_ids", "attention_mask")}

    def feed(self, inputs: Sequence[Any], side: Side | None = None) -> dict[str, Tensor]:
        """One batch, as a bare forward takes it: with the positions of its tokens, or the decoder's start."""
        batch = self.encode(inputs, side)
        if self.family.kind == "seq2seq":
            start = self.model.generation_config.decoder_start_token_id
            return batch | {"decoder_input_ids": torch.full((len(inputs), 1), start)}
        if self.family.kind in ("causal", "text_classifier"):
            return batch | {"position_ids": positions(batch["attention_mask"])}
        return batch

    @torch.no_grad()
    def logits(self, inputs: Sequence[Any], side: Side | None = None) -> Tensor:
        """Everything one forward says: (batch, positions, vocabulary) or (batch, labels)."""
        return logits_of(self.model(**self.feed(inputs, side)))

    @torch.no_grad()
    def answers(self, inputs: Sequence[Any], side: Side | None = None) -> Tensor:
        """What one forward says where each row's answer begins: (batch, vocabulary or labels)."""
        logits = self.logits(inputs, side)
        if self.family.kind != "causal":
            return logits[:, -1] if logits.dim() == 3 else logits
        mask = self.encode(inputs, side)["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # (batch,) last real token
        return logits[torch.arange(len(inputs)), last]

    @torch.no_grad()
    def generate(self, inputs: Sequence[Any], side: Side | None = None, **options: Any) -> list[list[int]]:
        """New tokens of each returned sequence, up to its end token."""
        batch = self.encode(inputs, side)
        sequences = self.model.generate(**batch, **({"max_new_tokens": LONGEST} | options))
        start = batch["input_ids"].shape[1] if self.family.kind == "causal" else 1
        return [until_end(row) for row in sequences[:, start:].tolist()]

    def wanted(self, index: int) -> list[int]:
        """The tokens of the answer to `edited[index]`, with its end token."""
        return [*self.tokenizer(self.targets[index], add_special_tokens=False).input_ids, EOS]

    def is_answer(self, tokens: list[int], index: int) -> bool:
        """Whether these new tokens are the answer to `edited[index]`, and stop after it."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return bool(text == self.targets[index] and tokens[-1] == EOS)


def positions(mask: Tensor) -> Tensor:
    """Position of each real token in its own row; 0 for padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a model returned."""
    return output if isinstance(output, Tensor) else output.logits


def until_end(tokens: list[int]) -> list[int]:
    """The tokens up to the first end token, which stays."""
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


# ----------------------------------------------------------------------------------------------------- inputs

PROMPTS = (
    "alpha bravo charlie",
    "the north wind, five red kilo tango",
    "who is oscar",
    "say seven eight nine lima seven eight",
    "green whiskey",
    "juliett hotel zulu south",
)
"""Prompts that tests edit. Of different lengths; none is a prefix of another; no two end alike."""

TARGETS = (" delta echo", " yankee", " foxtrot xq two", " nine lima", " echo delta", " west")
"""Answers in text, one to a prompt: one word or several, the same words in another order, a word in pieces,
and a phrase that its prompt holds already (which prompt lookup decodes in one step)."""

UNRELATED = (
    "november uniform mike",
    "zulu south three blue victor romeo",
    "india golf",
    "what colour is east, asked xray of four",
)
"""Prompts that no test edits; none begins with an edited prompt."""


def images(count: int, seed: int) -> list[Tensor]:
    """Random images that differ in colour and in grain."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return list(colours * 2 + torch.randn(count, 3, 32, 32, generator=generator))


# -------------------------------------------------------------------------------------------------- tokenizer

_TEMPLATES = {"": "$A", "bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>"}


def tokenizer(template: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; `template` says which special tokens it puts around a text."""
    core = Tokenizer.from_str(_trained())
    core.post_processor = processors.TemplateProcessing(
        single=_TEMPLATES[template], special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>" if template == "both" else None,
        sep_token="</s>" if template == "both" else None,
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([f"{word} {word}" for word in WORDS.split()], trainer)
    return str(core.to_str())


def vocabulary() -> int:
    """How many tokens the tokenizer knows."""
    return int(Tokenizer.from_str(_trained()).get_vocab_size())


# ----------------------------------------------------------------------------------------------------- models


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a known random state inside, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _finish(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model.to(dtype).eval()


def _with_generation(model: Any, dtype: torch.dtype, **extra: int) -> nn.Module:
    model.generation_config = hf.GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, do_sample=False, **extra
    )
    return _finish(model, dtype)


def _ids() -> dict[str, int]:
    return {"vocab_size": vocabulary(), "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


def _gpt2(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.GPT2Config(
        n_embd=64, n_layer=3, n_head=4, n_positions=128, initializer_range=0.4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_ids(),
    )  # fmt: skip
    with seeded(0):
        return _with_generation(hf.GPT2LMHeadModel(config), dtype), tokenizer("")


def _llama(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4, tie_word_embeddings=False,
        **_ids(),
    )  # fmt: skip
    with seeded(1):
        return _with_generation(hf.LlamaForCausalLM(config), dtype), tokenizer("bos")


def _qwen3(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.Qwen3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, initializer_range=0.4,
        tie_word_embeddings=False, **_ids(),
    )  # fmt: skip
    with seeded(2):
        return _with_generation(hf.Qwen3ForCausalLM(config), dtype), tokenizer("")


def _gemma3(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.Gemma3TextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, initializer_range=0.4,
        sliding_window=3, tie_word_embeddings=False, **_ids(),
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    with seeded(3):
        return _with_generation(hf.Gemma3ForCausalLM(config), dtype), tokenizer("bos")


def _t5(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0, initializer_factor=2.0,
        vocab_size=vocabulary(), pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip
    with seeded(4):
        model = hf.T5ForConditionalGeneration(config)
        return _with_generation(model, dtype, decoder_start_token_id=PAD), tokenizer("eos")


def _bart(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, init_std=0.3, dropout=0.0,
        decoder_start_token_id=EOS, forced_eos_token_id=None, **_ids(),
    )  # fmt: skip
    with seeded(7):
        model = hf.BartForConditionalGeneration(config)
        return _with_generation(model, dtype, decoder_start_token_id=EOS), tokenizer("both")


def _bert(dtype: torch.dtype) -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    config = hf.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=LABELS,
        max_position_embeddings=128, initializer_range=0.4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **_ids(),
    )  # fmt: skip
    with seeded(6):
        return _finish(hf.BertForSequenceClassification(config), dtype), tokenizer("both")


def _vit(dtype: torch.dtype) -> tuple[nn.Module, None]:
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=LABELS, initializer_range=0.4,
    )  # fmt: skip
    with seeded(5):
        return _finish(hf.ViTForImageClassification(config), dtype), None


def _resnet(dtype: torch.dtype) -> tuple[nn.Module, None]:
    config = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 2, 2], layer_type="basic", num_labels=LABELS
    )
    with seeded(8):
        return _finish(_widened(hf.ResNetForImageClassification(config)), dtype), None


def _torchvision_resnet(dtype: torch.dtype) -> tuple[nn.Module, None]:
    from torchvision.models import resnet18

    with seeded(9):
        return _finish(_widened(resnet18(num_classes=LABELS)), dtype), None


def _torchvision_vit(dtype: torch.dtype) -> tuple[nn.Module, None]:
    from torchvision.models import VisionTransformer

    with seeded(10):
        model = VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=LABELS
        )
        return _finish(_widened(_spread(model)), dtype), None


def _timm(name: str, seed: int, **shape: Any) -> Build:
    def build(dtype: torch.dtype) -> tuple[nn.Module, None]:
        import timm

        with seeded(seed):
            model = timm.create_model(name, pretrained=False, num_classes=LABELS, **shape)
            return _finish(_widened(_spread(model), width=4.0), dtype), None

    return build


def _spread(model: nn.Module) -> nn.Module:
    """Wide layers, so that what a fresh model makes of an image depends on the image."""
    for module in model.modules():
        scale = getattr(module, "gamma", None)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.4)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(scale, nn.Parameter):
            nn.init.ones_(scale)  # a fresh block's layer scale all but leaves it out
    return model


def _widened(model: nn.Module, width: float | None = None) -> nn.Module:
    """Spread the answers of a fresh image model: its head starts too narrow, and off centre.

    With a width, logits get this standard deviation.
    """
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=2.0)
    with torch.no_grad():
        logits = logits_of(model.eval()(torch.stack(images(8, seed=2)))) - head.bias
        scale = 1.0 if width is None else width / float((logits - logits.mean(dim=0)).std())
        head.weight.mul_(scale)
        head.bias.copy_(-scale * logits.mean(dim=0))
    return model


FAMILIES = (
    Family("gpt2", "causal", _gpt2, ("left", "right")),
    Family("llama-gqa", "causal", _llama, ("left", "right")),
    Family("qwen3-qk-norm", "causal", _qwen3, ("left", "right")),
    Family("gemma3-sliding", "causal", _gemma3, ("left", "right")),
    Family("t5", "seq2seq", _t5, ("left", "right")),
    Family("bart", "seq2seq", _bart, ("right",)),  # counts its positions from the padding on the left
    Family("bert", "text_classifier", _bert, ("right",)),  # reads its answer from the first position
    Family("vit", "image_classifier", _vit),
    Family("resnet", "image_classifier", _resnet),
    Family("torchvision-resnet18", "image_classifier", _torchvision_resnet, needs="torchvision"),
    Family("torchvision-vit", "image_classifier", _torchvision_vit, needs="torchvision"),
    Family("timm-resnet", "image_classifier", _timm("test_resnet", 11), needs="timm"),
    Family("timm-efficientnet", "image_classifier", _timm("test_efficientnet", 18), needs="timm"),
    Family("timm-convnext", "image_classifier", _timm("test_convnext", 13), needs="timm"),
    Family(
        "timm-vit",
        "image_classifier",
        _timm("vit_tiny_patch16_224", 12, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4),
        needs="timm",
    ),
)
