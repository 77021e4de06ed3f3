"""An EditableModel as a `System`, so that any editor is measured by the code that measures baselines."""

from __future__ import annotations

from collections.abc import Sequence

from editable.asking import ROWS, Asker
from editable.edit import Edit
from editable.model import EditableModel


class EditedSystem(Asker):
    """Asks the model that an EditableModel is attached to. Implements `editable.system.System`.

    Edits are published even where verification would refuse them: what they fail at is counted by the scores. With a
    log, they outlive the process. Closing the EditableModel is the caller's.

    Args:
        em: the model and its editor.
        name: what tables call it.
        rows: most rows in one forward.
    """

    def __init__(self, em: EditableModel, name: str, rows: int = ROWS) -> None:
        super().__init__(em.model, em.tokenizer, rows)
        self.em = em
        self.name = name

    @property
    def held(self) -> int:
        """See `System`."""
        return len(self.em.edits)

    @property
    def numbers(self) -> int:
        """See `System`."""
        patches = (packed.patch for packed in self.em._history.packed())
        return sum(tensor.numel() for patch in patches for tensor in patch.tensors.values())

    def insert(self, edits: Sequence[Edit]) -> None:
        """See `System`; one version for the whole batch."""
        self.em.edit(list(edits), verify=False)

    def reset(self) -> None:
        """See `System`; rolls back everything that is live."""
        if live := [edit.id for edit in self.em.edits]:
            self.em.rollback(live)
