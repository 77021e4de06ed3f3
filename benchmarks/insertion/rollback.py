"""Exactness of taking back: edits rolled back one by one in random order, the log reopened half-way and at the end."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from editable.benchmarks import common
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part, Setting, insert
from editable.benchmarks.report import Table


def run(setting: Setting) -> Part:
    """Logits of all prompts, a rephrase of each, and questions, against those recorded before the first edit."""
    texts = texts_of(setting)
    base = fingerprints(setting, texts, "before")
    found: dict[str, Any] = {"edits": len(setting.cases), "texts": len(texts)}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "edits.db"
        with setting.edited(log) as em:
            ids = [receipt.id for receipt in insert(em, setting.cases)]
            found["changed_by_the_edits_share"] = 1 - same_share(base, fingerprints(setting, texts, "edited"))
            order = [ids[index] for index in setting.rng.permutation(len(ids))]
            for edit_id in order[: len(order) // 2]:
                em.rollback(edit_id)
            half = fingerprints(setting, texts, "half rolled back")
        with setting.edited(log) as em:
            found["reopened_half_way_bit_equal_share"] = same_share(half, fingerprints(setting, texts, "reopened"))
            for edit_id in order[len(order) // 2 :]:
                em.rollback(edit_id)
            found["bit_equal_to_base_share"] = same_share(base, fingerprints(setting, texts, "all rolled back"))
            version = em.version
        with setting.edited(log) as em:
            found["reopened_version_equal"] = em.version == version and len(em.edits) == 0
            found["reopened_bit_equal_to_base_share"] = same_share(base, fingerprints(setting, texts, "reopened"))
    return _part(found)


def texts_of(setting: Setting) -> list[str]:
    """Every prompt with one rephrase, and every question."""
    asked = [prompt for c in setting.cases for prompt in (c.edit.prompt, *(q.prompt for q in c.rephrases[:1]))]
    return [*(text for text in asked if isinstance(text, str)), *setting.questions]


def fingerprints(setting: Setting, texts: Sequence[str], doing: str) -> list[str]:
    """SHA-256 of all logits of every text, in order."""
    found = []
    for text in common.each(texts, f"rollback, {doing}", len(texts)):
        logits = setting.logits(text).cpu().contiguous()
        found.append(hashlib.sha256(logits.view(torch.uint8).numpy().tobytes()).hexdigest())
    return found


def same_share(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of equal fingerprints."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _part(found: dict[str, Any]) -> Part:
    reopened = [found[name] for name in found if name.startswith("reopened")]
    bars = [
        Bar("all rolled back: share bit-equal to the base", found["bit_equal_to_base_share"], ">=", 1.0),
        Bar("the log reopens: share bit-equal", float(min(reopened)), ">=", 1.0),
    ]
    rows = [(name.replace("_", " "), value) for name, value in found.items()]
    return Part(found, {}, [Table("rollback in random order", ("", ""), rows)], bars)
