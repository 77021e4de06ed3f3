"""What is kept beside a model is built once, by whoever asks first, and again when it is of no use any more."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from torch import nn

from editable.resident import Residents


def test_it_is_built_once_however_many_ask_at_once() -> None:
    residents, gate, built = Residents(nn.Identity()), threading.Barrier(8), list[nn.Module]()

    def build(model: nn.Module) -> object:
        time.sleep(0.01)
        built.append(model)
        return object()

    def ask(_: int) -> object:
        gate.wait()
        return residents.get("one", build, lambda _: True)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(ask, range(8))))) == 1
    assert built == [residents.model]


def test_names_are_apart_and_what_is_of_no_use_is_built_again() -> None:
    residents, count = Residents(nn.Identity()), iter(range(9))
    built = [residents.get(name, lambda _: next(count), lambda number: number != 1) for name in "abba"]
    assert built == [0, 1, 2, 0]
