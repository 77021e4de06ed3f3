"""Work done in a thread of its own, whose result is taken over when somebody next looks.

For caches and savings only: work that fails says so and is left at that.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch

Made = TypeVar("Made")


class Job(Generic[Made]):
    """Something in the making.

    Args:
        what: what it is, for the warning if it fails.
        make: makes it.
    """

    def __init__(self, what: str, make: Callable[[], Made]) -> None:
        self.what = what
        self.result: Future[Made | None] = Future()
        threading.Thread(target=self._run, args=(make,), name=f"editable: {what}").start()

    def _run(self, make: Callable[[], Made]) -> None:
        try:
            with torch.inference_mode(False), torch.no_grad():
                self.result.set_result(make())
        except Exception as error:
            self.result.set_result(None)  # first: a warning may be an error here, and somebody may wait
            warnings.warn(f"No {self.what} could be made ({error!r}); all goes on without.", stacklevel=2)

    @property
    def made(self) -> Made | None:
        """What has been made; None before that, and where it failed."""
        return self.result.result() if self.result.done() else None

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.result.done()

    def wait(self) -> Made | None:
        """What it makes, once it is made."""
        return self.result.result()

    def __deepcopy__(self, _memo: dict[int, Any]) -> Job[Made]:
        return self
