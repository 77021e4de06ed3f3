"""What the benchmarks share: the command line, the machine card, what to insert and to ask, progress on stderr.

Knows where a benchmark runs and what it is given. Refuses to know how figures are taken and shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import transformers

from editable import datasets
from editable.benchmarks import comparison
from editable.errors import InputError

if TYPE_CHECKING:
    from editable.datasets import Case
    from editable.editor import Editor

T = TypeVar("T")

RESULTS = Path("benchmarks") / "results"
QUIET_SECONDS = 10.0  # between two lines of progress where there is no terminal to draw on
WHY_THREADS = (
    "pinned: two OpenMP threads wait for one another by spinning, so beside any other load they are slower than one"
)


# --- the command line ---


def parser(description: str | None, benchmark: str = "") -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Args:
        description: the module's docstring.
        benchmark: its name; where it is given, `prepare` refuses a bad --against before anything is measured.
    """
    made = argparse.ArgumentParser(
        prog=f"editable bench {benchmark}" if benchmark else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", default="smollm2", help="what editable.models.load takes")
    made.add_argument("--data", help="a file or folder of facts, or a hub id; default: the shipped facts")
    made.add_argument("--layout", help="layout of --data; default: recognised")
    made.add_argument("--unrelated", type=Path, help="a file of questions, a line each; default: the shipped ones")
    made.add_argument("--threads", type=int, default=1, help="torch threads, pinned (default 1)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--results", type=Path, default=RESULTS, help=f"folder for what is found (default {RESULTS})")
    made.add_argument("--against", type=Path, help="an earlier run to compare with: its JSON file, or a folder of them")
    made.set_defaults(benchmark=benchmark)
    return made


def add_editor(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark of one editor."""
    parser.add_argument("--editor", default="grace", help="a module of editable.adapters (default grace)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of the editor")


def editor(arguments: argparse.Namespace) -> Editor:
    """The editor that was asked for.

    Raises:
        InputError: there is none of that name, or it has no such option.
    """
    from editable.benchmarks import editors

    return editors.find(arguments.editor, editors.given(arguments.set))


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that tell what was measured, as plain JSON; files by name only."""
    aside = ("results", "against", "benchmark")
    said = {name: value for name, value in vars(arguments).items() if name not in aside}
    named = {name: Path(said[name]).name for name in ("data", "unrelated") if said.get(name) is not None}
    return {name: value.name if isinstance(value, Path) else value for name, value in {**said, **named}.items()}


def counts(text: str) -> list[int]:
    """Numbers separated by commas, in order; what `type=` of an option takes."""
    try:
        found = sorted({int(part.replace("_", "")) for part in text.split(",")})
    except ValueError:
        found = [-1]
    if found[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r}, expected numbers separated by commas, such as 0,100,10000")
    return found


def prepare(arguments: argparse.Namespace, **loading: Any) -> tuple[Any, Any]:
    """Pin the threads, seed, and load the model and its tokenizer or transform; `loading` goes to `models.load`.

    Raises:
        InputError: --against is no run of this benchmark.
    """
    if arguments.against is not None and arguments.benchmark:
        comparison.earlier(arguments.against, arguments.benchmark)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from editable import models

    return models.load(arguments.model, **loading)


def cases(arguments: argparse.Namespace, limit: int | None = None) -> list[Case]:
    """What to insert: of --data, else of the shipped facts."""
    if arguments.data is None:
        return datasets.facts(limit)
    return datasets.load(arguments.data, arguments.layout, limit=limit)


def unrelated(arguments: argparse.Namespace, limit: int | None = None) -> list[str]:
    """Questions that no fact is about: of --unrelated, else the shipped ones.

    Raises:
        InputError: the file holds none.
    """
    if arguments.unrelated is None:
        return datasets.unrelated(limit)
    path: Path = arguments.unrelated
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        asked = [str(json.loads(line)["question"]) if line.startswith("{") else line for line in lines if line]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f'--unrelated {path} cannot be read, expected a question a line, or lines of JSON with "question"; give '
            f"another file, or leave it out. Reason: {type(error).__name__}: {error}"
        ) from error
    if not asked:
        raise InputError(f"--unrelated {path} is empty, expected a question a line; leave it out for the shipped ones.")
    return asked[:limit]


# --- the machine ---


def machine_card(model: Any) -> dict[str, Any]:
    """Where and on what a benchmark ran."""
    parameter = next(model.parameters())
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb("SC_PHYS_PAGES"),
        "memory_free_gb": _memory_gb("SC_AVPHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "threads_note": WHY_THREADS,
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": str(parameter.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "model": type(model).__name__,
        "parameters_millions": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb(pages: str) -> float | None:
    try:
        return round(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def resident_bytes() -> int | None:
    """Physical memory that this process holds; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _resident_by_psutil()
    return pages * int(os.sysconf("SC_PAGE_SIZE"))


def _resident_by_psutil() -> int | None:
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


# --- progress ---


def note(text: str) -> None:
    """One line on stderr, with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def each(items: Iterable[T], doing: str, total: int) -> Iterator[T]:
    """Iterate, and show on stderr how far it is: as a bar on a terminal, else as a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, doing, total, console=Console(stderr=True), transient=True)
        return
    since = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - since > QUIET_SECONDS:
            note(f"{doing}: {done} of {total}")
            since = time.monotonic()
        yield item
