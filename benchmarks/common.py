"""What the benchmarks share: facts and questions, the machine card, paired timing, statistics, tables.

Knows how figures are taken and shown; knows of the library only how to ask an edited model and how to fill it with
synthetic edits. Written for `python benchmarks/<name>.py` and for `python -m benchmarks.<name>`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from editable import Edit, EditableModel, Patch
from editable.memory.log import Entry

HERE = Path(__file__).resolve().parent
FACTS = HERE / "facts.jsonl"
QUESTIONS = HERE / "questions.txt"
RESULTS = HERE / "results"

BEGAN = time.perf_counter()
DRAWS = 2000  # bootstrap samples
FAR = 8.0  # radii between the learned keys' centre and a synthetic key
MARGIN = 8  # tokens a free answer may run over the target's length before it counts as one that does not stop
WHY_THREADS = (
    "pinned: two OpenMP threads wait for one another by spinning, so beside any other load they are slower than one"
)


# --- facts and questions ---


@dataclass(frozen=True)
class Fact:
    """One fact to insert.

    Args:
        prompt: the question or the beginning of the sentence.
        target: the answer as it continues the prompt, with its leading space.
        rephrase: the same question in other words; never shown to the editor.
        subject: what the fact is about.
        known: whether the target is a name a language model has met; None where nobody said.
    """

    prompt: str
    target: str
    rephrase: str
    subject: str
    known: bool | None = None

    @property
    def edit(self) -> Edit:
        """The request, without the rephrase."""
        return Edit(self.prompt, self.target, subject=self.subject)


def load_facts(path: Path | None, limit: int | None = None) -> list[Fact]:
    """Facts with one record per subject, in the file's order; the shipped ones without a path."""
    records = _json_lines(FACTS) if path is None else json.loads(path.read_text(encoding="utf-8"))
    facts = [_shipped(r) if path is None else _mend(r) for r in records]
    first = {fact.subject.strip().lower(): fact for fact in reversed(facts) if fact.prompt and fact.target.strip()}
    kept = [fact for fact in facts if first.get(fact.subject.strip().lower()) is fact]
    return kept[:limit]


def _shipped(record: Mapping[str, Any]) -> Fact:
    return Fact(**record)


def _mend(record: Mapping[str, Any]) -> Fact:
    """The layout of the MEND repository's zsRE files."""
    return Fact(record["src"], f" {record['alt'].strip()}", record["rephrase"], record["subject"])


def load_questions(path: Path | None, limit: int | None = None) -> list[str]:
    """Questions that no fact is about; the shipped ones without a path."""
    if path is None:
        return QUESTIONS.read_text(encoding="utf-8").splitlines()[:limit]
    return [record["question"] for record in _json_lines(path)][:limit]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


# --- the machine ---


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2", help="what editable.models.load takes")
    made.add_argument("--data", type=Path, help="zsRE in MEND's layout (JSON); default: the shipped facts")
    made.add_argument("--unrelated", type=Path, help='JSON lines with "question"; default: the shipped questions')
    made.add_argument("--threads", type=int, default=1, help="torch threads, pinned (default 1)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--results", type=Path, default=RESULTS, help="directory for plots")
    return made


def prepare(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Pin the threads, seed, and load the model and its tokenizer."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from editable import models

    return models.load(arguments.model)


def machine_card(model: Any) -> dict[str, Any]:
    """Where and on what a benchmark ran."""
    parameter = next(model.parameters())
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
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


# --- timing ---


def clocked(act: Callable[[], object]) -> Callable[[], float]:
    """A function that runs `act` and gives the seconds it took, device included."""

    def timed() -> float:
        wait_for_device()
        start = time.perf_counter()
        act()
        wait_for_device()
        return time.perf_counter() - start

    return timed


def wait_for_device() -> None:
    """CUDA runs behind the host; elsewhere there is nothing to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    sides: Mapping[str, Callable[[], float]], rounds: int, warmup: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Seconds of each side, round by round; in a round every side runs once, in random order.

    What else the machine does falls on all sides alike, and neither always finds the caches warmed by the other.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for index in rng.permutation(len(names)):
            elapsed = sides[names[index]]()
            if turn >= warmup:
                seconds[names[index]].append(elapsed)
    return seconds


# --- statistics ---


@dataclass(frozen=True)
class Spread:
    """Median, 5th and 95th percentile of some measurements; the holder names the unit."""

    median: float
    p5: float
    p95: float
    count: int

    def as_dict(self, unit: str) -> dict[str, float]:
        """Plain JSON values, the unit in the keys."""
        return {f"{k}_{unit}": round(getattr(self, k), 6) for k in ("median", "p5", "p95")} | {"count": self.count}


def spread(values: Iterable[float], scale: float = 1.0) -> Spread:
    """The spread of at least one value, each multiplied by `scale`."""
    taken = np.array(list(values), dtype=np.float64) * scale
    p5, median, p95 = np.percentile(taken, (5, 50, 95))
    return Spread(float(median), float(p5), float(p95), len(taken))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its 95 % bootstrap interval, and the median of the ratios pair by pair."""

    ratio: float
    low: float
    high: float
    paired: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Plain JSON values."""
        return {name: None if value is None else round(value, 5) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_of_medians(
    above: Sequence[float], below: Sequence[float], rng: np.random.Generator, paired: bool = True, draws: int = DRAWS
) -> Ratio:
    """Median of `above` over median of `below`; paired samples are drawn together, others each by themselves.

    Raises:
        ValueError: paired samples of different length.
    """
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if paired and len(top) != len(bottom):
        raise ValueError(f"{len(top)} and {len(bottom)} measurements, expected pairs")
    chosen = rng.integers(len(top), size=(draws, len(top)))
    other = chosen if paired else rng.integers(len(bottom), size=(draws, len(bottom)))
    drawn = np.median(top[chosen], axis=1) / np.median(bottom[other], axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    by_pair = float(np.median(top / bottom)) if paired else None
    return Ratio(float(np.median(top) / np.median(bottom)), float(low), float(high), by_pair)


def share(flags: Iterable[bool | float]) -> float | None:
    """Mean of what is true or partly true; None of nothing."""
    taken = [float(flag) for flag in flags]
    return sum(taken) / len(taken) if taken else None


# --- asking a model ---


Hopeless = Callable[[Tensor], bool]
"""Whether new tokens (n,) can no longer become what is hoped for."""


class Answerer(Protocol):
    """Something that continues a prompt: an edited model, a base model, the textbook's."""

    def forced(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """(1, positions, vocabulary) of one plain forward over prompt and answer, each (1, tokens)."""
        ...

    def free(self, prompt: Tensor, limit: int, hopeless: Hopeless | None = None) -> Tensor:
        """(n,) new tokens, greedy, at most `limit`; given up early where `hopeless` says so of the new tokens."""
        ...


@dataclass(frozen=True)
class Plain:
    """A Hugging Face model, edited or not, called as its users call it."""

    model: Any
    pad: int

    def forced(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """See `Answerer`."""
        with torch.no_grad():
            return self.model(input_ids=torch.cat([prompt, answer], dim=1)).logits  # type: ignore[no-any-return]

    def free(self, prompt: Tensor, limit: int, hopeless: Hopeless | None = None) -> Tensor:
        """See `Answerer`."""
        given: dict[str, Any] = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        if hopeless is not None:
            given["stopping_criteria"] = [lambda ids, _scores: torch.tensor([hopeless(ids[0, prompt.shape[1] :])])]
        with torch.no_grad():
            tokens = self.model.generate(**given, max_new_tokens=limit, do_sample=False, pad_token_id=self.pad)
        return tokens[0, prompt.shape[1] :]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Score:
    """How one prompt was answered.

    Args:
        tokens: share of answer tokens right, teacher-forced, without the end.
        end: whether the end token follows the answer, teacher-forced.
        text: whether the free greedy answer is the target, whitespace at its ends aside.
        stop: whether it is, and ended by itself within its length and a margin.
    """

    tokens: float
    end: bool
    text: bool
    stop: bool


def token_ids(tokenizer: Any, prompt: str, target: str) -> tuple[Tensor, Tensor]:
    """Prompt (1, n) and target (1, m) as tokens, the target's as they follow the prompt's."""
    before = tokenizer(prompt)["input_ids"]
    both = tokenizer(prompt + target)["input_ids"]
    if both[: len(before)] != before:
        both = [*before, *tokenizer(target, add_special_tokens=False)["input_ids"]]
    return torch.tensor([before]), torch.tensor([both[len(before) :]])


def score(answerer: Answerer, tokenizer: Any, prompt: str, target: str) -> Score:
    """Ask one prompt, teacher-forced and freely."""
    before, answer = token_ids(tokenizer, prompt, target)
    length, end = answer.shape[1], tokenizer.eos_token_id
    said = answerer.forced(before, answer)[0].argmax(dim=-1)[before.shape[1] - 1 :]
    wanted = target.strip()

    def text_of(tokens: Tensor) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def hopeless(tokens: Tensor) -> bool:
        return not wanted.startswith(text_of(tokens).rstrip("\ufffd"))  # half of a character may stand at the end

    free = answerer.free(before, length + 1 + MARGIN, hopeless)
    same, ended = text_of(free) == wanted, bool((free == end).any())
    return Score(float((said[:-1] == answer[0]).float().mean()), bool(said[-1] == end), same, same and ended)


def summed_up(scores: Sequence[Score]) -> dict[str, float | None]:
    """Shares over many prompts."""
    return {
        "teacher_forced": share(s.tokens for s in scores),
        "all_tokens": share(s.tokens == 1 for s in scores),
        "end_token": share(s.end for s in scores),
        "exact_with_stop": share(s.stop for s in scores),
    }


# --- synthetic edits ---


def grow(em: EditableModel, count: int, answers: Sequence[Sequence[int]], rng: np.random.Generator) -> None:
    """Publish, as one version, synthetic edits until `count` are live; at least one learned edit must be there.

    Each has one key, some radii away from the learned keys' centre in a random direction (in hundreds of dimensions
    such directions are nearly at right angles), some of the learned values, and one of the given answers. They go
    through the editor's own `insert`, as a log's edits do.
    """
    name, editor = next(iter(em.editors.items()))
    state = em._state_of(name)
    missing = count - len(em.edits)
    if missing <= 0:
        return
    centre, values = state.book.keys.view.cpu().mean(dim=0), state.values.view.cpu()
    away = FAR * state.book.initial[0]
    entries = []
    for index in range(missing):
        answer = torch.tensor(answers[index % len(answers)])
        key = centre + away * _direction(len(centre), rng)
        rows = values[torch.from_numpy(rng.integers(len(values), size=len(answer)))]
        tensors = {"keys": key[None], "values": rows, "answer": answer}
        patch = Patch(f"synthetic-{len(em.history)}-{index}", tensors, _alone(state))
        state = editor.insert(patch, state)
        entries.append(Entry("edit", patch.edit_id, name, patch.tensors, _about(patch)))
    snapshot = em._snapshot.replace(em.version + 1, {name: state})
    em._history.append(snapshot.version, entries)
    em._publish(snapshot)
    _check_apart(state, missing, rng)


def _direction(features: int, rng: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(rng.standard_normal(features).astype(np.float32))
    return nn.functional.normalize(drawn, dim=0)


def _alone(state: Any) -> dict[str, Any]:
    """That the key is far from all others is known here, so the search for its neighbours is spared."""
    return {"radius": state.book.initial[0], "namespace": "default", "placed": [["add", -1, "inf", []]]}


def _about(patch: Patch) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": patch.edit_id,
        "target": "",
        "rephrases": [],
        "subject": None,
        "namespace": "default",
    }
    return {"request": request, "patch": dict(patch.meta), "superseded": []}


def _check_apart(state: Any, last: int, rng: np.random.Generator, sample: int = 256) -> None:
    """That the balls of the last keys touch no other, on a sample.

    Raises:
        ValueError: two balls touch.
    """
    keys, radius = state.book.keys.view, state.book.initial[0]
    some = len(keys) - 1 - torch.from_numpy(rng.integers(last, size=min(sample, last)))
    distance = torch.cdist(keys[some], keys)
    distance[torch.arange(len(some)), some] = torch.inf
    if float(distance.min()) <= 2 * radius:
        raise ValueError(f"synthetic keys {float(distance.min()):.3f} apart, expected more than {2 * radius:.3f}")


# --- showing ---


def progress(text: str) -> None:
    """One line on stderr, with the seconds since the benchmark began."""
    print(f"[{time.perf_counter() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)


def print_card(card: Mapping[str, Any]) -> None:
    """The machine card."""
    width = max(map(len, card))
    for name, value in card.items():
        print(f"{name.ljust(width)}  {value}")
    print()


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table; the first column is words."""
    full = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    lines = [[str(cell) for cell in line] for line in (header, *[[_cell(c) for c in row] for row in full])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for line in lines:
        first, *rest = zip(line, widths, strict=True)
        print("  " + "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip())
    print()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_json(document: Mapping[Any, Any]) -> None:
    """The last line of stdout. Strict JSON: what is not finite becomes null."""
    print(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain JSON; files by name only."""
    return {name: value.name if isinstance(value, Path) else value for name, value in vars(arguments).items()}


def plot(path: Path, draw: Callable[[Any], None], figsize: tuple[float, float] = (8.0, 5.0)) -> str | None:
    """Save what `draw(axes)` draws as PNG; gives the path, or None where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        progress("no plot: matplotlib is not installed (pip install 'editable[plots]')")
        return None
    figure, axes = pyplot.subplots(figsize=figsize, layout="constrained")
    draw(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    progress(f"plot: {path}")
    return path.name
