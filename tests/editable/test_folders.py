"""peft's adapter folders: served here with peft's own output, written so that peft gives ours."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from editable import Edit, folders
from editable.adapters import GRACE, LoRA
from editable.errors import InputError, SiteError
from tests.conftest import Attach
from tests.contract.harness import named, only
from tests.families import Loaded, seeded

TARGETS: dict[str, list[list[str]]] = {
    "gpt2": [["c_attn", "c_proj"], ["mlp.c_fc"]],
    "llama-gqa": [["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj", "lm_head"]],
    "qwen3-qk-norm": [["q_proj", "k_proj", "v_proj", "o_proj"]],
    "gemma3-sliding": [["v_proj", "down_proj"]],
    "t5": [["q", "v"], ["wi", "wo", "o"]],
    "bart": [["q_proj", "v_proj"], ["fc1", "fc2"]],
    "bert": [["query", "value"], ["dense", "classifier"]],
    "vit": [["q_proj", "v_proj"], ["classifier"]],
}
SETTINGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8},
    {"r": 3, "lora_alpha": 7, "use_rslora": True},
    {"r": 16, "lora_alpha": 5, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
]


def made_by_peft(loaded: Loaded, folder: Path, seed: int = 0, **settings: Any) -> Any:
    """A peft model of its own, whose adapter changes what it says, and that adapter's folder."""
    model = loaded.family.load(loaded.dtype).model
    with seeded(seed):
        tuned = peft.get_peft_model(model, peft.LoraConfig(fan_in_fan_out=loaded.family.name == "gpt2", **settings))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.2)
    tuned.eval().save_pretrained(folder, save_embedding_layers=False)
    return tuned.eval()


def combinations(loaded: Loaded) -> list[dict[str, Any]]:
    """Every choice of the family's layers with every setting."""
    choices = itertools.product(TARGETS[loaded.family.name], SETTINGS)
    return [{"target_modules": targets, **settings} for targets, settings in choices]


def rows_of(loaded: Loaded) -> list[Any]:
    return [*loaded.edited, *loaded.unrelated]


@torch.no_grad()
def difference(loaded: Loaded, tuned: nn.Module) -> float:
    """The largest between what is served here and what peft's own forward gives, over all inputs in one batch."""
    feed = loaded.feed(rows_of(loaded))
    return float((loaded.model(**feed).logits - tuned(**feed).logits).abs().max())


SERVED = named(*TARGETS)


@SERVED
def test_a_folder_made_by_peft_is_served_with_pefts_own_output(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """To the last bit, whatever the layers, the rank and the scaling."""
    base = loaded.logits(loaded.edited)
    for number, settings in enumerate(combinations(loaded)):
        tuned = made_by_peft(loaded, tmp_path / str(number), **settings)
        em = attach(loaded, LoRA(targets=folders.targets(tmp_path / str(number))))
        folders.load(em, tmp_path / str(number))
        assert not torch.allclose(loaded.logits(loaded.edited), base, atol=1e-2)
        assert difference(loaded, tuned) == 0, settings
        em.close()


@only("causal", "seq2seq")
def test_so_is_a_whole_generation(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """With a cache and beams; and an encoder's layers act where `generate` calls the encoder by itself."""
    for number, targets in enumerate(TARGETS[loaded.family.name]):
        tuned = made_by_peft(loaded, tmp_path / str(number), target_modules=targets, r=4, lora_alpha=16)
        em = attach(loaded, LoRA(targets=folders.targets(tmp_path / str(number))))
        folders.load(em, tmp_path / str(number))
        batch = loaded.encode(rows_of(loaded))
        for options in ({}, {"num_beams": 3}, {"use_cache": False}):
            ours = loaded.model.generate(**batch, max_new_tokens=5, **options)
            assert torch.equal(ours, tuned.generate(**batch, max_new_tokens=5, **options)), (targets, options)
        em.close()


@named("llama-gqa")
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"], indirect=True, scope="session")
def test_in_half_precision_the_adapter_computes_in_its_own(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    tuned = made_by_peft(loaded, tmp_path, target_modules=["q_proj", "down_proj"], r=4, lora_alpha=16)
    em = attach(loaded, LoRA(targets=folders.targets(tmp_path)))
    folders.load(em, tmp_path)
    assert difference(loaded, tuned) == 0


@SERVED
def test_what_is_learned_here_peft_loads(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    em = attach(loaded, LoRA())
    em.edit([Edit(loaded.edited[index], loaded.targets[index]) for index in range(2)])
    folders.save(em, tmp_path)
    tuned = peft.PeftModel.from_pretrained(loaded.family.load().model, tmp_path).eval()
    assert difference(loaded, tuned) == 0


@named("llama-gqa")
def test_a_folder_is_what_serving_engines_read(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """The keys of peft's own folders, one rank and one alpha, no patterns."""
    em = attach(loaded, LoRA(rank=4, alpha=8.0, targets=("down_proj",)))
    em.edit(Edit(loaded.edited[0], loaded.targets[0]))
    folders.save(em, tmp_path)
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.rank_pattern, config.bias) == (4, 8, {}, "none")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    assert sorted(weights)[:2] == [f"{first}A.weight", f"{first}B.weight"]
    assert weights[f"{first}A.weight"].shape == (4, 96) and weights[f"{first}B.weight"].shape == (64, 4)


@named("llama-gqa")
def test_different_ranks_and_scalings_survive_both_ways(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    pattern: dict[str, Any] = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 11}}
    tuned = made_by_peft(loaded, tmp_path / "theirs", target_modules=["q_proj", "v_proj"], r=3, lora_alpha=7, **pattern)
    em = attach(loaded, LoRA(targets=folders.targets(tmp_path / "theirs")))
    folders.load(em, tmp_path / "theirs")
    assert difference(loaded, tuned) == 0
    folders.save(em, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(loaded.family.load().model, tmp_path / "ours").eval()
    assert difference(loaded, again) == 0


@named("llama-gqa")
def test_a_loaded_adapter_is_an_edit_like_others(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    base = loaded.logits(loaded.edited)
    made_by_peft(loaded, tmp_path / "peft", target_modules=["down_proj"], r=2)
    em = attach(loaded, LoRA(targets=("down_proj",)), log=tmp_path / "log.db")
    folders.load(em, tmp_path / "peft", name="style")
    assert torch.equal(loaded.logits(loaded.edited), base), "it serves who asks for it"
    named_rows = em(**loaded.feed(loaded.edited), adapters="style").logits
    (listed,) = em.edits
    assert (listed.prompt, listed.namespace) == ("adapter folder peft", "style")
    em.close()
    em = attach(loaded, LoRA(targets=("down_proj",)), log=tmp_path / "log.db")
    assert torch.equal(em(**loaded.feed(loaded.edited), adapters="style").logits, named_rows)
    with pytest.raises(InputError, match="'style' is there already"):
        folders.load(em, tmp_path / "peft", name="style")
    with pytest.raises(InputError, match=r"loaded from a folder .* another namespace"):
        em.edit(Edit(loaded.edited[0], loaded.targets[0], namespace="style"))
    em.rollback(listed.id)
    assert torch.equal(loaded.logits(loaded.edited), base) and not len(em.edits)


# ------------------------------------------------------------------------------------------------------ refusals


@named("llama-gqa")
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft has its own to say about them
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora=True cannot be served exactly: its magnitude rescales"),
        ({"lora_bias": True}, "lora_bias=True cannot be served exactly: the delta would have a bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
    ],
)
def test_an_adapter_that_cannot_be_served_exactly_is_refused(
    loaded: Loaded, attach: Attach, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    made_by_peft(loaded, tmp_path, target_modules=["down_proj"], **settings)
    em = attach(loaded, LoRA(targets=("down_proj",)))
    with pytest.raises(InputError, match=said):
        folders.load(em, tmp_path)
    assert em.version == 0


@named("llama-gqa")
def test_other_refusals(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    made_by_peft(loaded, tmp_path / "lora", target_modules=["down_proj"])
    made_by_peft(loaded, tmp_path / "embedding", target_modules=["embed_tokens"])
    em = attach(loaded, LoRA(targets=("q_proj",)))
    with pytest.raises(SiteError, match=r"changes 3 layers .*down_proj.* LoRA\(targets=folders.targets\(folder\)\)"):
        folders.load(em, tmp_path / "lora")
    with pytest.raises(InputError, match=r"embed_tokens .*expected linear"):
        folders.load(em, tmp_path / "embedding")
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        folders.load(em, tmp_path)
    with pytest.raises(InputError, match=r"'style' does not exist, expected one of \(none\)"):
        folders.save(em, tmp_path / "out", name="style")
    em.close()
    em = attach(loaded, GRACE())
    with pytest.raises(InputError, match=r"keeps no named adapters, expected LoRA\(\)"):
        folders.load(em, tmp_path / "lora")
