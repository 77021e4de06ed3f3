"""Neural models you can edit while they serve."""

from editable.edit import Edit, Patch, Receipt, Verification
from editable.errors import EditableError
from editable.model import EditableModel

__all__ = ["Edit", "EditableError", "EditableModel", "Patch", "Receipt", "Verification"]
