"""Adapter folders as peft writes them: brought in to be served here, and written for peft and for serving engines.

peft itself reads and writes, on a shadow of the model; what it makes of a folder is what is served.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from editable.deltas import Delta, packed
from editable.edit import Patch
from editable.editor import Named
from editable.errors import InputError, SiteError
from editable.learn import shadow_of
from editable.model import EditableModel
from editable.named import DEFAULT, Adapters
from editable.pack import Packed
from editable.site import is_transposed
from editable.tuning import ADAPTER, begin_with, delta_of, peft_library, refuse_unserved

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # peft's, before every module path


def targets(folder: str | Path) -> tuple[str, ...]:
    """The paths of the layers that a folder's adapter changes, for `LoRA(targets=...)`.

    Raises:
        InputError: no such folder, or none of peft's.
    """
    _check(folder)
    with safe_open(str(Path(folder) / WEIGHTS), framework="pt") as file:
        names = list(file.keys())
    inner = [name.removeprefix(PREFIX).partition(".lora_A.")[0] for name in names if ".lora_A." in name]
    return tuple(dict.fromkeys(inner))


def load(em: EditableModel, folder: str | Path, name: str = DEFAULT, *, editor: str | None = None) -> int:
    """Serve a folder's adapter under a name, exactly as peft does; one edit, which can be rolled back.

    Args:
        em: has the editor LoRA, with the folder's layers among its targets.
        folder: written by peft's `save_pretrained`, or by `save`.
        name: what rows ask for; "default" serves every row that asks for nothing.
        editor: the name of the LoRA editor, where several are attached.

    Returns:
        The version that shows it.

    Raises:
        InputError: no such folder, an adapter that cannot be served exactly, a name that is taken, or no such editor.
        SiteError: the editor has not all of the adapter's layers.
    """
    owner = _editor(em, editor)
    state = em.state(owner)
    if name in state.names():
        raise InputError(f"The adapter {name!r} is there already, expected a new name; roll its edits back first.")
    deltas = _read(em.model, folder)
    missing = sorted(deltas.keys() - em.editors[owner].sites(em.model).keys())
    if missing:
        raise SiteError(
            f"The adapter in {str(folder)!r} changes {len(missing)} layers that the editor {owner!r} does not, such as "
            f"{missing[0]!r}, expected all of them among its targets; attach LoRA(targets=folders.targets(folder))."
        )
    edit_id = secrets.token_hex(6)
    tensors, meta = packed(deltas)
    patch = Patch(edit_id, tensors, {**meta, "adapter": name, "edits": [edit_id]})
    about: dict[str, Any] = {
        "prompt": f"adapter folder {Path(folder).name}",
        "target": None,
        "rephrases": [],
        "subject": None,
        "namespace": name,
    }
    return em.adopt([Packed(patch, owner, about)])


def save(em: EditableModel, folder: str | Path, name: str = DEFAULT, *, editor: str | None = None) -> None:
    """Write the adapter that serves a name as a folder, which peft loads and serving engines take.

    Raises:
        InputError: no such adapter, or no such editor.
    """
    state = em.state(_editor(em, editor))
    if name not in state.names():
        raise InputError(
            f"Adapter {name!r} does not exist, expected one of {', '.join(sorted(state.names())) or '(none)'}; "
            "an adapter is made by editing in its namespace."
        )
    deltas = state.serving[name].deltas
    peft, model = peft_library(), shadow_of(em.model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(**_settings(model, deltas)), ADAPTER)
    begin_with({path: model.get_submodule(path) for path in deltas}, deltas)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)


def _check(folder: str | Path) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise InputError(
            f"Adapter folder {str(folder)!r} has no {missing[0]}, expected one written by peft's save_pretrained "
            "(as safetensors)."
        )


def _editor(em: EditableModel, name: str | None) -> str:
    """The name of the editor whose adapters have names."""
    fitting = [n for n, editor in em.editors.items() if isinstance(editor, Named) and isinstance(em.state(n), Adapters)]
    if name is None and len(fitting) == 1:
        return fitting[0]
    if name in fitting:
        return str(name)
    raise InputError(
        f"Editor {name!r} keeps no named adapters, expected {'one of ' + ', '.join(fitting) if fitting else 'LoRA()'}; "
        "attach the model with editor=LoRA(...) without a scope."
    )


def _read(model: nn.Module, folder: str | Path) -> dict[str, Delta]:
    """Path to delta, as peft loads them."""
    _check(folder)
    peft, shadow = peft_library(), shadow_of(model)
    config = peft.PeftConfig.from_pretrained(str(folder))
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise InputError(f"Adapter folder {str(folder)!r} holds {config.peft_type}, expected a LoRA adapter.")
    refuse_unserved(config.to_dict())
    peft.PeftModel.from_pretrained(shadow, str(folder), ADAPTER, config=config)
    layers = {path: module for path, module in shadow.named_modules() if hasattr(module, "lora_A")}
    odd = [path for path, module in layers.items() if type(module).__name__ != "Linear"]
    if odd:
        raise InputError(
            f"Adapter folder {str(folder)!r} changes {odd[0]} ({type(layers[odd[0]]).__name__}), expected linear "
            "layers only, since deltas are added to rows of features."
        )
    return {path: delta_of(layer) for path, layer in layers.items()}


def _settings(model: nn.Module, deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """LoraConfig of deltas; with patterns only where they differ, since not every engine reads those."""
    ranks = {path: delta.rank for path, delta in deltas.items()}
    alphas = {path: _alpha(delta) for path, delta in deltas.items()}
    first = next(iter(deltas))
    common: dict[str, Any] = {
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "target_modules": list(deltas),
        "fan_in_fan_out": is_transposed(model.get_submodule(first)),
    }
    if len(set(ranks.values())) > 1 or len(set(alphas.values())) > 1:
        common |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    return common


def _alpha(delta: Delta) -> float:
    """What divided by the rank gives the scaling, to the last bit; a whole number where one does."""
    near = delta.scaling * delta.rank
    tried = (round(near), near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next(alpha for alpha in tried if alpha / delta.rank == delta.scaling)
