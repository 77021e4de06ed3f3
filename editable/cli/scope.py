"""`editable scope`: train the classifier that tells a rephrase from a sibling.

Knows arguments and what is printed. Refuses to know how pairs are made or weights are fitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from editable.cli import terminal

scope = typer.Typer(no_args_is_help=True, help="Scopes that read text: train their classifier.")


@scope.command()
def train(
    output: Annotated[Path, Argument(help="Where to write the weights.")],
    data: Annotated[list[Path] | None, Option(help="Further files of editing data, besides the shipped facts.")] = None,
    encoder: Annotated[str, Option(help="minilm, a directory, or a hub id.")] = "minilm",
    seed: Annotated[int, Option(help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Make pairs from editing data, fit the classifier, and calibrate it on relations that are held out.

    Use the weights with SentenceScope(classifier=PATH).
    """
    from editable import datasets, encoders, scope_training
    from editable.scope_data import pairs

    cases = [*datasets.facts(), *(case for path in data or () for case in datasets.load(path))]
    with terminal.err().status("Encoding and comparing pairs"):
        compared = scope_training.compare(pairs(cases, datasets.unrelated(), seed), encoders.load(encoder))
    classifier = scope_training.train(compared, seed)
    scope_training.save(classifier, output)
    table = scope_training.held_out(classifier, compared)
    if as_json:
        terminal.tell({"pairs": len(compared.pairs), "fires": table})
        return
    header = ("false fires accepted", *next(iter(table.values())))
    rows = [(rate, *(f"{share:.3f}" for share in shares.values())) for rate, shares in table.items()]
    terminal.out().print(terminal.table(header, rows, ()))
    typer.echo(f"{len(compared.pairs)} pairs; weights in {output}")
