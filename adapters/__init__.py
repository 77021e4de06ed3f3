"""What an edit does to the network. One editor per file; the list of editors is this folder."""

from editable.adapters.calinet import CaliNet
from editable.adapters.cnp import CNP
from editable.adapters.grace import GRACE
from editable.adapters.lora import LoRA
from editable.adapters.melo import MELO
from editable.adapters.serac import SERAC
from editable.adapters.tpatcher import TPatcher

__all__ = ["CNP", "GRACE", "MELO", "SERAC", "CaliNet", "LoRA", "TPatcher"]
