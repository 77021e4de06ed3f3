"""The command line: one store file, one model, and the verbs of whoever corrects it.

Knows arguments, exit codes, and what each command prints. Refuses to know how an edit is learned, kept or applied:
commands that answer or change something ask an EditableModel, commands about history read the log and load no model.
What needs torch is imported by the commands that need it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from editable.cli import bench, scope, serac, terminal
from editable.errors import EditableError, InputError

if TYPE_CHECKING:
    from editable import Edit, EditableModel, Receipt

STORE = Path("edits.db")
MODEL_HELP = (
    "smollm2, efficientnet-lite0, a directory written by save_pretrained, a .gguf file, a hub id, torchvision/NAME or "
    "timm/NAME."
)
FACTS_HELP = (
    "Facts, a JSON object a line: the fields of an edit, and wrong_prompts (after which its target is wrong) or "
    "wrong_targets (wrong answers to its prompt)."
)
FILE_HELP = "Many edits: a JSON object a line, its fields named as in editable.Edit."

Store = Annotated[Path, Option("--store", envvar="EDITABLE_STORE", help="The file that holds the edits.")]
Model = Annotated[str | None, Option("--model", show_default="that of the store, else smollm2", help=MODEL_HELP)]
Json = Annotated[bool, Option("--json", help="Print one JSON document and nothing else.")]
Texts = list[str] | None


class Commands(TyperGroup):
    """Errors that this package raises on purpose become one message and exit code 1; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except EditableError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(scope.scope, name="scope")
app.add_typer(serac.serac, name="serac")


@app.callback()
def root() -> None:
    """Edit a model while it serves: correct it, ask it, look back, roll back.

    Edits are kept in one store file; the weights are never written.

    With --json, a command prints one JSON document on stdout. Progress and errors go to stderr.

    Exit codes: 0, it worked; 1, it did not, and stderr says why; 2, the command line cannot be understood.
    """


def main() -> None:
    """Run the command line: the `editable` script."""
    app()


# --- answers ---


@app.command()
def demo(
    model: Annotated[str, Option("--model", help=MODEL_HELP)] = "smollm2",
    store: Annotated[Path | None, Option("--store", show_default="a temporary one", help="A new file.")] = None,
    as_json: Json = False,
) -> None:
    """Correct a model while it runs: before and after, what stays bit-equal, a rollback, a restart, the cost.

    The exit code is 1 if something that it sets out to prove does not hold.
    """
    from editable import demo as story
    from editable.cli.opening import quiet_loading

    if store is not None and store.exists():
        raise InputError(f"Store {store} exists already, expected a new file for the demo; choose another name.")
    with quiet_loading():
        found = story.run(terminal.out(quiet=as_json), model, store)
    if as_json:
        terminal.tell(found)
    raise typer.Exit(0 if found["ok"] else 1)


@app.command()
def ask(
    prompt: Annotated[str, Argument(help="The text to continue; the path of an image file for a model of images.")],
    at: Annotated[int | None, Option(help="Answer as of this version.", show_default="the latest")] = None,
    unedited: Annotated[bool, Option("--unedited", help="Answer as the base model.")] = False,
    max_new_tokens: Annotated[int, Option(min=1, help="Stop after this many tokens at the latest.")] = 64,
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print the model's answer."""
    from editable.cli.opening import opened, refuse_pictures

    if unedited and at is not None:
        raise typer.BadParameter("--unedited and --at exclude one another.")
    _refuse_empty(prompt)
    with opened(store, model) as em:
        refuse_pictures(em, prompt)
        version = 0 if unedited else em.version if at is None else at
        with em.at(version):
            answer = em.ask(prompt, max_new_tokens)
    if as_json:
        terminal.tell({"prompt": prompt, "answer": answer, "version": version})
    else:
        typer.echo(answer)


@app.command()
def explain(
    prompt: Annotated[str, Argument(help="The text to be continued, or the path of an image file.")],
    at: Annotated[int | None, Option(help="As of this version.", show_default="the latest")] = None,
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Show which edits are considered for a prompt, which fires, and why the others do not."""
    from editable.cli.opening import opened, refuse_pictures

    _refuse_empty(prompt)
    with opened(store, model) as em, em.at(em.version if at is None else at):
        refuse_pictures(em, prompt)
        explanation = em.explain(prompt)
    if as_json:
        terminal.tell(explanation.as_dict())
    else:
        typer.echo(repr(explanation))


@app.command()
def latency(
    steps: Annotated[int, Option(min=1, help="Prompts to time: a prefill and some decode steps each.")] = 20,
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Time the model with its edits against itself without them."""
    from editable.cli import timing
    from editable.cli.opening import opened

    with opened(store, model) as em:
        prompts = timing.prompts_of(em)
        paired, report = timing.measured(em, prompts, steps)
        about = {"version": em.version, "edits": len(em.edits)}
    if as_json:
        terminal.tell({**about, "paired": paired, "report": report.as_dict()})
    else:
        terminal.out().print(timing.shown(paired), f"\n{report}")


@app.command()
def assess(
    file: Annotated[Path, Argument(exists=True, dir_okay=False, help=FACTS_HELP)],
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print which facts the model lacks: those it finds less likely than statements like them that are wrong."""
    from editable.cli.incoming import facts_of
    from editable.cli.opening import opened

    facts = facts_of(file)
    with opened(store, model) as em:
        marks = em.assess(list(facts.values()))
    found = [
        {"prompt": mark.fact.edit.prompt, "target": mark.fact.edit.target, "where": where, "lacking": mark.lacking}
        | {"right": mark.right, "wrong": mark.wrong, "score": mark.score}
        for where, mark in zip(facts, marks, strict=True)
    ]
    if as_json:
        terminal.tell({"facts": found, "lacking": sum(mark.lacking for mark in marks)})
        return
    rows = [
        (terminal.pair(one), *(f"{value:.3g}" for value in (mark.right, mark.wrong, mark.score)), _lacks(mark.lacking))
        for one, mark in zip(found, marks, strict=True)
    ]
    _print_table(("prompt -> target", "P(right)", "P(wrong)", "CKA", ""), rows)


def _lacks(lacking: bool) -> str:
    return "lacks it" if lacking else ""


# --- changes ---


@app.command()
def edit(
    prompt: Annotated[
        str | None,
        Argument(help="An input that is answered wrongly: text, or the path of an image file.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        Argument(
            help="The right answer. Its leading space matters: it continues the prompt. Of an image, a label's name or "
            "number.",
            show_default=False,
        ),
    ] = None,
    rephrase: Annotated[Texts, Option(help="Another input that must get the answer. Repeatable.")] = None,
    locality: Annotated[Texts, Option(help="An input that must not change. Repeatable.")] = None,
    subject: Annotated[str | None, Option(help="The entity the fact is about.")] = None,
    namespace: Annotated[str, Option(help="Edits supersede one another within a namespace only.")] = "default",
    file: Annotated[Path | None, Option(exists=True, dir_okay=False, help=FILE_HELP)] = None,
    batch_size: Annotated[int, Option(min=1, help="Edits of the file learned and published together.")] = 8,
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Learn one edit, or those of a file; check them and keep them.

    An edit that fails its checks is left out, and the exit code is 1; the others of the file are kept.
    """
    from editable.cli.incoming import edit_of, edits_of
    from editable.cli.opening import opened, refuse_pictures

    if (file is None) != (prompt is not None and target is not None) or (file is not None and prompt is not None):
        raise typer.BadParameter("expected either PROMPT and TARGET, or --file.")
    options = {"rephrases": rephrase or [], "locality": locality or [], "subject": subject, "namespace": namespace}
    given = {"prompt": prompt, "target": target, **options}
    edits = edits_of(file) if file is not None else {"PROMPT": edit_of(given)}
    with opened(store, model, create=True) as em:
        refuse_pictures(em, *(str(one.prompt) for one in edits.values()))
        receipts, failed = _learn(em, edits, batch_size)
        done = [{**em.history[receipt.id].as_dict(), **asdict(receipt)} for receipt in receipts]
    if as_json:
        terminal.tell({"receipts": done, "failed": failed})
    else:
        _print_receipts(done, failed)
    raise typer.Exit(1 if failed else 0)


def _learn(em: EditableModel, edits: Mapping[str, Edit], batch_size: int) -> tuple[list[Receipt], list[dict[str, str]]]:
    """Receipts of those that passed, and what is wrong with the others; the mapping says where each came from."""
    place = {edit: where for where, edit in edits.items()}
    failed: list[dict[str, str]] = []

    def note(edit: Edit, error: Exception) -> None:
        failed.append({"where": place[edit], "prompt": str(edit.prompt), "error": str(error)})

    stream = em.edit_stream(edits.values(), batch_size, on_error=note)
    return list(terminal.progress(stream, "Learning", len(edits))), failed


def _print_receipts(done: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, str]]) -> None:
    checks = [(f"{r['verified']['reliability']:.2f}", f"{r['verified']['locality']:.2f}") for r in done]
    rows = [(f"v{r['version']}", r["id"], terminal.pair(r), *check) for r, check in zip(done, checks, strict=True)]
    if rows:
        _print_table(("in", "id", "prompt -> target", "reliability", "locality"), rows)
    for one in failed:
        typer.echo(f"error: {one['where']}: {one['error']}", err=True)


@app.command()
def rollback(
    ids: Annotated[list[str], Argument(metavar="ID", help="Edits to take back, all in one version.")],
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Take edits back: outputs are again as if they had never been made."""
    from editable.cli import history
    from editable.cli.opening import opened

    records = history.read(store)
    edits = history.edits_at(records, history.latest(records))
    wanted = {edit_id: history.known(edits, edit_id, store) for edit_id in ids}  # before a model is loaded for nothing
    with opened(store, model) as em:
        version = em.rollback(list(wanted))
    if as_json:
        terminal.tell({"version": version, "rolled_back": list(wanted)})
        return
    rows = [(f"v{version}", "rolled back", edit.id, terminal.pair(edit.as_dict())) for edit in wanted.values()]
    _print_table(("in", "what", "id", "prompt -> target"), rows)


# --- history ---


@app.command()
def log(
    number: Annotated[int, Option("--number", "-n", min=1, help="Entries to print at most.")] = 20,
    query: Annotated[str | None, Option("--query", "-q", help="Only edits that hold this text.")] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Print what was edited and rolled back, newest first. Loads no model."""
    from editable.cli import history

    records = history.read(store)
    events = history.events(records, query)[:number]
    if as_json:
        terminal.tell({"store": str(store), "version": history.latest(records), "events": events})
        return
    whole = ("version", "when (UTC)", "what", "id")
    rows = [
        (f"v{e['version']}", _minute(e["created"]), e["kind"], e["id"], terminal.pair(e), e["state"]) for e in events
    ]
    _print_table((*whole, "prompt -> target", "state now"), rows, whole)


@app.command()
def show(
    edit_id: Annotated[str, Argument(metavar="ID", help="The edit's id; `editable log` prints it.")],
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Print everything the store knows about one edit. Loads no model."""
    from editable.cli import history

    about = history.about(store, edit_id)
    if as_json:
        terminal.tell(about)
        return
    texts = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in about.items()}
    _print_table(("field", "value"), list(texts.items()))


@app.command()
def diff(
    a: Annotated[int, Argument(metavar="A", help="A version.")],
    b: Annotated[int | None, Argument(metavar="B", show_default="the latest", help="Another version.")] = None,
    prompt: Annotated[Texts, Option(help="Load the model and answer this at both. Repeatable.")] = None,
    store: Store = STORE,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print the edits that came and went from version A to version B. Loads a model for --prompt only."""
    from editable.cli import history

    _refuse_empty(*(prompt or ()))
    records = history.read(store)
    b = history.latest(records) if b is None else b
    added, removed = history.difference(records, a, b)
    answers = _answers(store, model, prompt, a, b) if prompt else []
    if as_json:
        terminal.tell({"from": a, "to": b, "added": added, "removed": removed, "answers": answers})
        return
    rows = [(sign, e["id"], terminal.pair(e), e["state"]) for sign, es in (("+", added), ("-", removed)) for e in es]
    _print_table(("", "id", "prompt -> target", f"state in v{b}"), rows)
    if answers:
        _print_table(("prompt", f"v{a}", f"v{b}"), [list(answer.values()) for answer in answers])


def _answers(store: Path, model: str | None, prompts: Sequence[str], a: int, b: int) -> list[dict[str, str]]:
    from editable.cli.opening import opened

    said: list[list[str]] = []
    with opened(store, model) as em:
        for version in (a, b):
            with em.at(version):
                said.append([em.ask(prompt) for prompt in terminal.each(prompts, f"Asking v{version}")])
    return [{"prompt": p, "from": x, "to": y} for p, x, y in zip(prompts, *said, strict=True)]


def _refuse_empty(*prompts: str) -> None:
    if not all(prompts):
        raise typer.BadParameter("the prompt is empty, expected some text.")


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")


def _print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ("in", "id")
) -> None:
    if rows:
        terminal.out().print(terminal.table(headings, rows, whole))
    else:
        typer.echo("nothing to show")


app.command(context_settings=bench.HANDED_ON, add_help_option=False)(bench.bench)
