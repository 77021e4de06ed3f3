"""`editable serac`: teach a base model to answer by edits that it reads.

Knows arguments and what is printed. Refuses to know how lessons are made or weights are fitted.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from editable.cli import terminal

serac = typer.Typer(no_args_is_help=True, help="SERAC: teach a base model to answer by edits that it reads.")


@serac.callback()
def root() -> None:
    """SERAC: teach a base model to answer by edits that it reads."""


@serac.command()
def fit(
    output: Annotated[Path, Argument(help="Where to write the weights.")],
    model: Annotated[str, Option(help="smollm2, a directory, a .gguf file, or a hub id.")] = "smollm2",
    data: Annotated[list[Path] | None, Option(help="Further files of editing data, besides the shipped facts.")] = None,
    steps: Annotated[int, Option(min=1, help="Batches of lessons; the default is that of the shipped weights.")] = 200,
    batch: Annotated[int, Option(min=1, help="Lessons in each.")] = 16,
    rank: Annotated[int, Option(min=1, help="Of the deltas beside the attention's layers.")] = 8,
    seed: Annotated[int, Option(help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Make lessons from editing data and a small world, fit the weights, and ask lessons that were held out.

    Use the weights with SERAC(weights=PATH). The model is not changed.
    """
    from editable import datasets, models
    from editable.adapters import SERAC
    from editable.cli.opening import quiet_loading
    from editable.teaching import Course

    cases = [case for path in data or () for case in datasets.load(path)]
    with quiet_loading(), terminal.err().status(f"Loading {model}"):
        base, tokenizer = models.load(model)
    with terminal.err().status("Teaching") as status:
        taught = SERAC().fit(
            base,
            tokenizer,
            output,
            cases,
            Course(steps, batch, rank, seed=seed),
            lambda step, nats: status.update(f"Teaching: step {step + 1} of {steps}, {nats:.2f} nats a token"),
        )
    if as_json:
        terminal.tell({**asdict(taught), "path": str(taught.path)})
        return
    held_out = f"{taught.held_out:.3f} of {taught.lessons} held-out edits ({taught.before:.3f} before)"
    built_on = f"{taught.built_on:.3f} of as many questions on what follows from edits ({taught.built_on_before:.3f})"
    typer.echo(f"{held_out} are answered in full, {built_on}; weights in {output}")
