"""Neural models you can edit while they serve."""

from editable.edit import Edit, Patch, Receipt, Verification

__all__ = ["Edit", "Patch", "Receipt", "Verification"]
