"""The command line: one store file, one model, and the verbs of whoever corrects it.

Knows arguments, tables, JSON and exit codes. Refuses to know how an edit is learned, kept or applied: commands that
answer or change something ask an EditableModel, commands about history read the log alone and load no model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from typer.core import TyperGroup

from editable.errors import EditableError, InputError, LogError, UnknownEditError

if TYPE_CHECKING:
    from editable import Edit, EditableModel, Receipt
    from editable.editor import Editor
    from editable.listing import Listed
    from editable.memory.log import Identity, Record

STORE = Path("edits.db")
MODEL = "smollm2"
PIPED_WIDTH = 100  # columns where there is no terminal to ask

StoreOption = Annotated[Path, typer.Option("--store", envvar="EDITABLE_STORE", help="The file that holds the edits.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        show_default=f"the one the store was made with, else {MODEL}",
        help="smollm2, a directory written by save_pretrained, a .gguf file, or a hub id.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class _Commands(TyperGroup):
    """Errors that this package raises on purpose become one message and exit code 1; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EditableError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 misused.",
)


@app.callback()
def root() -> None:
    """Edit a language model while it serves: correct it, ask it, look back, roll back.

    Edits are kept in one store file; the weights are never written. Every command takes --json, and then prints one
    JSON document on stdout; progress and errors go to stderr. Exit codes: 0 it worked; 1 it did not, and stderr says
    why; 2 the command line cannot be understood.
    """


def main() -> None:
    """Run the command line; the entry point of the `editable` script."""
    app()


# --- commands: answers ---


@app.command()
def demo(
    model: Annotated[str, typer.Option("--model", help="The model to correct.")] = MODEL,
    store: Annotated[
        Path | None, typer.Option("--store", help="A new file to keep the edits in.", show_default="a temporary one")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Correct a model while it runs: before and after, what stays bit-equal, a rollback, a restart, the cost.

    Exit code 1 if one of the things it proves does not hold.
    """
    from editable import demo as story

    if store is not None and store.exists():
        raise InputError(f"Store {store} exists already, expected a new file for the demo; choose another name.")
    with _quiet_loading():
        facts = story.run(_out(quiet=as_json), model, store)
    if as_json:
        _tell(facts)
    if not facts["ok"]:
        raise typer.Exit(1)


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    at: Annotated[int | None, typer.Option(help="Answer as of this version.", show_default="the latest")] = None,
    unedited: Annotated[bool, typer.Option("--unedited", help="Answer as the base model.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens at the latest.")] = 64,
    store: StoreOption = STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the model's answer."""
    if unedited and at is not None:
        raise typer.BadParameter("--unedited and --at exclude one another.")
    with _opened(store, model) as em:
        version = 0 if unedited else em.version if at is None else at
        with em.unedited() if unedited else em.at(version):
            answer = em.ask(prompt, max_new_tokens)
    if as_json:
        _tell({"prompt": prompt, "answer": answer, "version": version})
    else:
        typer.echo(answer)


@app.command()
def latency(
    steps: Annotated[int, typer.Option(min=1, help="Pairs of forwards to time, per phase.")] = 20,
    store: StoreOption = STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time prefill and decode with the edits against the same model without them."""
    from editable import demo as story

    with _opened(store, model) as em:
        prompts = [e.prompt for e in em.edits][-story.TIMED_EDITS :] + [story.UNRELATED[0]]
        ratios, report = story.measured(em, prompts, steps)
    if as_json:
        _tell({"version": em.version, "edits": len(em.edits), "paired": ratios, "report": report.as_dict()})
        return
    _out().print(story.ratio_table(ratios), f"\n{report}")


# --- commands: changes ---


@app.command()
def edit(
    prompt: Annotated[
        str | None, typer.Argument(help="The input that is answered wrongly.", show_default=False)
    ] = None,
    target: Annotated[
        str | None,
        typer.Argument(
            help="The answer it must get. Its leading space matters: it continues the prompt.", show_default=False
        ),
    ] = None,
    rephrase: Annotated[
        list[str] | None, typer.Option(help="Another input that must get the answer. Repeatable.")
    ] = None,
    locality: Annotated[list[str] | None, typer.Option(help="An input that must not change. Repeatable.")] = None,
    subject: Annotated[str | None, typer.Option(help="The entity the fact is about.")] = None,
    namespace: Annotated[str, typer.Option(help="Edits supersede one another within a namespace only.")] = "default",
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Many edits: a JSON object a line, its fields named as in editable.Edit."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits of the file learned and published together.")] = 8,
    store: StoreOption = STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn one edit, or the edits of a file, check them and keep them.

    An edit that does not pass its checks is left out and makes the exit code 1; the others of the file are kept.
    """
    if (file is None) == (prompt is None) or (file is None) == (target is None):
        raise typer.BadParameter("Give either PROMPT and TARGET, or --file.")
    if file is not None:
        edits = _edits_of(file)
    else:
        fields = {"prompt": prompt, "target": target, "subject": subject, "namespace": namespace}
        edits = {"command line": _edit({**fields, "rephrases": rephrase or [], "locality": locality or []})}
    with _opened(store, model, create=True) as em:
        receipts, failed = _insert(em, edits, batch_size)
        done = [{**em.history[r.id].as_dict(), **asdict(r)} for r in receipts]
    if as_json:
        _tell({"receipts": done, "failed": failed})
    else:
        _print_receipts(done, failed)
    if failed:
        raise typer.Exit(1)


@app.command()
def rollback(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The edits to take back, as one version.")],
    store: StoreOption = STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take edits back: outputs are again as if they had never been made."""
    wanted = list(dict.fromkeys(ids))
    known = _listed(_records(store))
    for edit_id in wanted:  # known before the model is loaded
        _known(known, edit_id, store)
    with _opened(store, model) as em:
        version = em.rollback(wanted)
    if as_json:
        _tell({"version": version, "rolled_back": wanted})
        return
    for edit_id in wanted:
        _out().print(f"v{version}: rolled back {edit_id}, {_pair(known[edit_id].as_dict())}")


# --- commands: history, without the model ---


@app.command()
def log(
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Entries to show at most.")] = 20,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Only entries with this text in id, prompt, target or subject.")
    ] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Print what was edited and rolled back, newest first."""
    records = _records(store)
    edits = _listed(records)
    events = [_event(r, edits[r.edit_id]) for r in reversed(records) if _mentions(edits[r.edit_id], query)][:number]
    if as_json:
        _tell({"store": str(store), "version": _latest(records), "events": events})
        return
    rows = [(f"v{e['version']}", _minute(e["created"]), e["kind"], e["id"], _pair(e), e["state"]) for e in events]
    _print_table(("", "when (UTC)", "what", "id", "prompt -> target", "state now"), rows)


@app.command()
def show(
    edit_id: Annotated[str, typer.Argument(metavar="ID", help="The edit's id, as log prints it.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Print everything the store knows about one edit."""
    records = _records(store, tensors_of=edit_id)
    found = _known(_listed(records), edit_id, store)
    (record,) = [r for r in records if r.edit_id == edit_id and r.kind == "edit"]
    about = {
        **found.as_dict(),
        "created": record.created,
        "verified": record.meta.get("verified"),
        "superseded": record.meta.get("superseded", []),
        "tensors": {n: {"dtype": str(t.dtype)[6:], "shape": list(t.shape)} for n, t in record.tensors.items()},
        "patch": record.meta["patch"],
        "seq": record.seq,
        "hash": record.hash,
    }
    if as_json:
        _tell(about)
    else:
        _print_fields(about)


@app.command()
def diff(
    a: Annotated[int, typer.Argument(metavar="A", help="A version.")],
    b: Annotated[int | None, typer.Argument(metavar="[B]", help="Another.", show_default="the latest")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Load the model and answer this at both. Repeatable.")
    ] = None,
    store: StoreOption = STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the edits that came and went from version A to version B."""
    records = _records(store)
    b = _latest(records) if b is None else b
    live = [{i: e for i, e in _listed(records, _version(records, v)).items() if e.state == "live"} for v in (a, b)]
    added = [edit.as_dict() for i, edit in live[1].items() if i not in live[0]]
    removed = [edit.as_dict() for i, edit in _listed(records, b).items() if i in live[0] and i not in live[1]]
    removed += [edit.as_dict() for i, edit in live[0].items() if i not in _listed(records, b)]  # where B comes before A
    answers = _answers(store, model, prompt, a, b) if prompt else []
    if as_json:
        _tell({"from": a, "to": b, "added": added, "removed": removed, "answers": answers})
        return
    rows = [("+", e["id"], _pair(e), e["state"]) for e in added] + [
        ("-", e["id"], _pair(e), e["state"]) for e in removed
    ]
    _print_table(("", "id", "prompt -> target", f"state in v{b}"), rows)
    if answers:
        _print_table(("prompt", f"v{a}", f"v{b}"), [(r["prompt"], r["from"], r["to"]) for r in answers])


def _answers(store: Path, model: str | None, prompts: Sequence[str], a: int, b: int) -> list[dict[str, str]]:
    with _opened(store, model) as em:
        said: list[list[str]] = []
        for version in (a, b):
            with em.at(version):
                said.append([em.ask(prompt) for prompt in prompts])
    return [{"prompt": p, "from": x, "to": y} for p, x, y in zip(prompts, *said, strict=True)]


# --- the model ---


@contextmanager
def _opened(store: Path, name: str | None, create: bool = False) -> Iterator[EditableModel]:
    """The model with the store's edits; a store that does not exist is made only where something will be kept."""
    from editable import EditableModel, models

    identity = _identity(store)
    source = _source(store, identity, name)
    with _quiet_loading(), _err().status(f"Loading {source}"):
        model, tokenizer = models.load(source)
        kept = store if create or identity else None
        em = EditableModel(model, tokenizer, editors=_editors(identity), log=kept, source=source)
    with em:
        yield em


def _identity(store: Path) -> Identity | None:
    from editable.memory.log import Log

    if not store.exists() or not store.stat().st_size:
        return None
    with Log(store) as history:
        return history.identity


def _source(store: Path, identity: Identity | None, name: str | None) -> str:
    """What to load; a path is made absolute, since the store will be opened from other directories too."""
    from editable.models import PACKAGED

    source = name or (identity.source if identity else MODEL)
    if not source:
        raise InputError(f"Store {store} does not say how its model was loaded, expected a name; pass it with --model.")
    path = Path(source).expanduser()
    return str(path.resolve()) if source not in PACKAGED and path.exists() else source


def _editors(identity: Identity | None) -> dict[str, Editor]:
    """The editors that the store was made with, configured as they were; GRACE for a new store."""
    from editable import adapters

    if identity is None:
        return {"grace": adapters.GRACE()}
    try:
        stated = json.loads(identity.editors).items()
        return {name: getattr(adapters, kind)(**config) for name, (kind, config) in stated}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"The store was made with the editors {identity.editors}, expected editors of this package; open it from "
            f"Python with EditableModel(..., editors=...). Reason: {error}"
        ) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hide transformers' own progress bars inside; ours says what is going on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# --- edits that come in ---


def _insert(em: EditableModel, edits: Mapping[str, Edit], size: int) -> tuple[list[Receipt], list[dict[str, str]]]:
    """Receipts of those that passed, and what is wrong with the others; the mapping says where each came from."""
    where = {edit: place for place, edit in edits.items()}
    failed: list[dict[str, str]] = []

    def note(edit: Edit, error: Exception) -> None:
        failed.append({"where": where[edit], "prompt": str(edit.prompt), "error": str(error)})

    done = em.edit_stream(edits.values(), size, on_error=note)
    with nullcontext() if len(edits) > 1 else _err().status("Learning"):
        bar = track(done, "Learning", len(edits), console=_err(), transient=True, disable=len(edits) == 1)
        return list(bar), failed


def _edits_of(file: Path) -> dict[str, Edit]:
    """File and line number to the edit there; blank lines are skipped."""
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    edits = {f"{file}:{number}": _edit_of_line(line, f"{file}:{number}") for number, line in lines if line.strip()}
    if not edits:
        raise InputError(f"{file} holds no edits, expected a JSON object a line.")
    return edits


def _edit_of_line(line: str, where: str) -> Edit:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: the line is not JSON ({error}), expected one object a line.") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: the line is a JSON {type(fields).__name__}, expected an object with Edit's fields.")
    try:
        return _edit(fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


_TEXT, _TEXTS = "text", "a list of texts"
FIELDS = {"prompt": _TEXT, "target": "text or an integer label", "rephrases": _TEXTS, "locality": _TEXTS}
FIELDS |= {"subject": "text or null", "namespace": _TEXT}


def _edit(fields: Mapping[str, Any]) -> Edit:
    """An Edit from plain JSON.

    Raises:
        InputError: names the field that is missing, unknown or of another type.
    """
    from editable import Edit

    if unknown := sorted(fields.keys() - FIELDS.keys()):
        raise InputError(f"field {unknown[0]!r} is unknown, expected some of {', '.join(FIELDS)}.")
    for name in ("prompt", "target"):
        if name not in fields:
            raise InputError(f"field {name!r} is missing, expected {FIELDS[name]}.")
    for name, value in fields.items():
        if not _fits(value, FIELDS[name]):
            raise InputError(f"field {name!r} is {json.dumps(value)}, expected {FIELDS[name]}.")
    return Edit(**fields)


def _fits(value: Any, expected: str) -> bool:
    if expected is _TEXTS:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if isinstance(value, str):
        return True
    return value is None if "null" in expected else "integer" in expected and type(value) is int


# --- history ---


def _records(store: Path, tensors_of: str | None = None) -> list[Record]:
    """The whole verified history, without tensors but for one edit's: a long one would fill the memory."""
    from editable.memory.log import Log

    if not store.exists():
        raise LogError(f"Store {store} does not exist, expected the file that holds the edits; pass it with --store.")
    with Log(store) as history:
        return [r if r.edit_id == tensors_of else replace(r, tensors={}) for r in history.records()]


def _latest(records: Sequence[Record]) -> int:
    return records[-1].version if records else 0


def _version(records: Sequence[Record], version: int) -> int:
    if not 0 <= version <= _latest(records):
        raise InputError(f"Version {version} does not exist, expected one from 0 to {_latest(records)}.")
    return version


def _listed(records: Sequence[Record], version: int | None = None) -> dict[str, Listed]:
    """Every edit by id, with its state as of a version (default: the latest)."""
    from editable.listing import listed

    seen = [r for r in records if version is None or r.version <= version]
    made = [r for r in seen if r.kind == "edit"]
    gone = {r.edit_id: r.version for r in seen if r.kind == "rollback"}
    over = {old: r.edit_id for r in made if r.edit_id not in gone for old in r.meta.get("superseded", ())}
    return {
        r.edit_id: replace(
            listed(r.meta["request"], r.edit_id, r.editor, r.version),
            rolled_back=gone.get(r.edit_id),
            superseded_by=over.get(r.edit_id),
        )
        for r in made
    }


def _known(edits: Mapping[str, Listed], edit_id: str, store: Path) -> Listed:
    if edit_id not in edits:
        raise UnknownEditError(
            f"Edit {edit_id!r} is unknown, expected the id of one of the {len(edits)} edits in {store}; "
            "`editable log` prints them."
        )
    return edits[edit_id]


def _mentions(edit: Listed, query: str | None) -> bool:
    texts = (edit.id, edit.prompt, str(edit.target), edit.subject or "", *edit.rephrases)
    return query is None or any(query.casefold() in text.casefold() for text in texts)


def _event(record: Record, edit: Listed) -> dict[str, Any]:
    return {
        "version": record.version,
        "created": record.created,
        "kind": record.kind,
        "id": edit.id,
        "editor": edit.editor,
        "prompt": edit.prompt,
        "target": edit.target,
        "state": edit.state,
    }


# --- printing ---


def _out(quiet: bool = False) -> Console:
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(markup=False, highlight=False, emoji=False, quiet=quiet, width=width)


def _err() -> Console:
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def _tell(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def _pair(edit: Mapping[str, Any]) -> str:
    return f"{' '.join(edit['prompt'].split())} -> {str(edit['target']).strip()}"


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("", "id"), overflow="fold")
    for row in rows:
        table.add_row(*row)
    _out().print(table if rows else "nothing to show")


def _print_fields(about: Mapping[str, Any]) -> None:
    texts = [(name, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for name, v in about.items()]
    _print_table(("", "value"), texts)


def _print_receipts(done: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, str]]) -> None:
    rows = [
        (
            f"v{r['version']}",
            r["id"],
            _pair(r),
            f"{r['verified']['reliability']:.2f}",
            f"{r['verified']['locality']:.2f}",
        )
        for r in done
    ]
    if rows:
        _print_table(("", "id", "prompt -> target", "reliability", "locality"), rows)
    for one in failed:
        typer.echo(f"error: {one['where']}: {one['error']}", err=True)
