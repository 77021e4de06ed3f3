"""The finished parts of a long measurement, on disk as JSON lines, so that a killed one goes on where it stopped.

Knows names and JSON values; what a part is, its user knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editable.errors import StateError


class Journal:
    """Parts by name. One process at a time writes it.

    Args:
        path: the file, made with its folder when the first part is finished; None keeps parts in memory only.
        key: what the parts depend on (a digest of options, data, editor and model); a file with another key is refused.

    Raises:
        StateError: the file has another key, or a line that cannot be read.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self.path = path
        self.key = key
        self._parts: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        whole, torn = path.read_bytes(), b""
        if not whole.endswith(b"\n"):  # the process was killed while it wrote its last line
            head, newline, torn = whole.rpartition(b"\n")
            whole = head + newline
        for number, line in enumerate(whole.splitlines(), 1):
            self._take(path, number, line)
        if torn:
            os.truncate(path, len(whole))

    def _take(self, path: Path, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, name, value = entry["key"], entry["part"], entry["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"Journal {path.name!r}, line {number} cannot be read ({error}), expected a finished part; remove the "
                "file to measure everything anew."
            ) from error
        if key != self.key:
            raise StateError(
                f"Journal {path.name!r}, line {number} has key {key!r}, expected {self.key!r}; it belongs to another "
                "measurement: remove it, or choose another folder for results."
            )
        self._parts[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a part: kept from before, or made now and on disk once this returns."""
        if name not in self._parts:
            line = json.dumps({"key": self.key, "part": name, "value": make()})
            if self.path is not None:
                self._append(self.path, line)
            self._parts[name] = json.loads(line)["value"]  # what a process that continues would read
        return self._parts[name]

    @staticmethod
    def _append(path: Path, line: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget all parts, on disk too."""
        self._parts.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
