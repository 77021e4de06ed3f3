"""From a store file to a model that shows its edits.

Knows what the store says about its model and editors. Refuses to know what is done with the model afterwards.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editable import EditableModel, adapters, models, scopes
from editable.cli import terminal
from editable.configuration import restored
from editable.editor import Editor
from editable.errors import InputError
from editable.memory.log import Identity, Log

DEFAULT_MODEL = "smollm2"


@contextmanager
def opened(store: Path, name: str | None, create: bool = False) -> Iterator[EditableModel]:
    """Load the model, with the store's edits.

    Args:
        store: the file; where it does not exist the model has no edits.
        name: the model; None for the one that the store was made with.
        create: make the store if it does not exist.

    Raises:
        InputError: the store does not say what to load, or has editors that are not of this package.
    """
    identity = _identity(store)
    source = _source(store, identity, name)
    with quiet_loading(), terminal.err().status(f"Loading {source}"):
        model, tokenizer = models.load(source)
        kept = store if create or identity else None
        em = EditableModel(model, tokenizer, editors=_editors(identity), log=kept, source=source)
    with em:
        yield em


def refuse_pictures(em: EditableModel, *prompts: str) -> None:
    """Refuse image files where the model reads text: the answer would be about the file's name.

    Raises:
        InputError: the model takes no images, and a prompt is the path of an image file.
    """
    for prompt in prompts:
        kind = mimetypes.guess_type(prompt)[0] or ""
        if not em.images and kind.startswith("image/") and Path(prompt).expanduser().is_file():
            raise InputError(
                f"Prompt {prompt!r} is an image file, but {type(em.model).__name__} takes no images, expected text; "
                "name a model of images with --model, such as efficientnet-lite0."
            )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' own progress bars inside; the command line has one of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _identity(store: Path) -> Identity | None:
    if not store.exists() or not store.stat().st_size:
        return None
    with Log(store) as log:
        return log.identity


def _source(store: Path, identity: Identity | None, name: str | None) -> str:
    """What to load; a path is made absolute, since the store will be opened from other directories too."""
    source = name or (identity.source if identity else DEFAULT_MODEL)
    if not source:
        raise InputError(f"Store {store} does not say how its model was loaded, expected a name; pass it with --model.")
    path = Path(source).expanduser()
    return str(path.resolve()) if source not in models.PACKAGED and path.exists() else source


def _editors(identity: Identity | None) -> dict[str, Editor]:
    """The editors that the store was made with, configured as they were; GRACE for a new store."""
    if identity is None:
        return {"grace": adapters.GRACE()}
    try:
        return {name: restored(one, adapters, scopes) for name, one in json.loads(identity.editors).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"The store was made with the editors {identity.editors}, expected editors of this package; open it from "
            f"Python with EditableModel(..., editors=...). Reason: {error}"
        ) from error
