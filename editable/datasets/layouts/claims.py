"""Claims to be classified: FEVER and FeverSymmetric.

Knows the labels in the order of the fact checkers used in editing papers: refuted 0, supported 1; not enough
information 2. Evidence that is text is a part of the input, since FeverSymmetric has each claim with either label.
"""

from __future__ import annotations

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.edit import Edit

LABELS = ("REFUTES", "SUPPORTS", "NOT ENOUGH INFO")


def recognises(record: Record) -> bool:
    """Whether it is a claim with a label."""
    return record.has("claim") and (record.has("label") or record.has("gold_label"))


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    return [Case(Edit(_input(record), _label(record)), where=record.where)]


def _input(record: Record) -> str:
    evidence = record.fields.get("evidence")
    return f"{record.text('claim')} {evidence.strip()}" if isinstance(evidence, str) else record.text("claim")


def _label(record: Record) -> int:
    name = "label" if record.has("label") else "gold_label"
    value = record.fields[name]
    if value not in LABELS:
        raise record.wrong(name, f"one of {', '.join(LABELS)}")
    return LABELS.index(value)
