"""What an editor keeps beside a model for as long as it is attached: built when it is first needed, once.

States cannot hold it (they are logged values), modules must not, and a copy in every call would cost too much.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Built = TypeVar("Built")


class Residents:
    """Name to what was built for it. Any number of threads may ask.

    Args:
        model: the model they are beside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._built: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, name: str, build: Callable[[nn.Module], Built], usable: Callable[[Built], bool]) -> Built:
        """What was built under that name, or else now; again where it is no longer `usable`."""
        with self._lock:
            if name not in self._built or not usable(self._built[name]):
                self._built[name] = build(self.model)
            built: Built = self._built[name]
            return built
