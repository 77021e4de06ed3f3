"""What learning takes in memory: growth of the resident set, and whose storage the learning copy stands over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from editable.benchmarks import common, growth
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part, Setting, insert
from editable.benchmarks.report import Table

SAMPLE_SECONDS = 0.002


def run(setting: Setting) -> Part:
    """One edit, a batch, and all of them, each learned at once."""
    setting.logits(setting.questions[0])  # what the first forward takes is not learning's
    rows = []
    with setting.edited() as em:
        for count in sorted({1, min(setting.options.batch, len(setting.cases)), len(setting.cases)}):
            rows.append((f"{count} edits", *grown_mb(lambda n=count: insert(em, setting.cases[:n]))))  # type: ignore[misc]
        shared = _storages(growth.learning_copy(em)) == _storages(setting.model)
    weights_mb = sum(p.numel() * p.element_size() for p in setting.model.parameters()) / 1e6
    found = {name: {"peak_mb": peak, "kept_mb": kept} for name, peak, kept in rows}
    return Part(
        {"learning_copy_shares_all_storage": shared, "weights_mb": round(weights_mb, 1)},
        found,
        [Table(f"growth of the resident set, MB (weights: {weights_mb:.0f})", ("", "peak", "kept"), rows)],
        [Bar("learning copy shares all storage", float(shared), ">=", 1.0)],
    )


def _storages(model: Any) -> set[int]:
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def grown_mb(act: Callable[[], object]) -> tuple[float | None, float | None]:
    """By how much the resident set grew at most while `act` ran, and after it; None where the system does not say."""
    before = common.resident_bytes()
    if before is None:
        act()
        return None, None
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], common.resident_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        act()
    finally:
        done.set()
        watcher.join()
    after = common.resident_bytes() or 0
    return round((max(peak[0], after) - before) / 1e6, 1), round((after - before) / 1e6, 1)
