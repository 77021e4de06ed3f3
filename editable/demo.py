"""The story that `editable demo` tells: a model is corrected while it runs, and what must not change does not.

Knows a handful of facts, the order of the scenes and what each of them proves. Refuses to know how anything is
done: it is an ordinary user of EditableModel.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editable.adapters import GRACE
from editable.cli.terminal import each, err, line, table
from editable.cli.timing import measured, shown
from editable.edit import Edit, Receipt
from editable.model import EditableModel
from editable.models import load

if TYPE_CHECKING:
    from rich.console import Console

ANSWER_TOKENS = 10  # shown of an unedited answer; an edited one ends by itself
SERVED_TOKENS = 4  # per generation of the thread that goes on serving
TIMED = 16  # prompts

FACTS = (
    Edit("The capital of Australia is", " Canberra", rephrases=("Australia's capital city is",)),
    Edit("The capital of Turkey is", " Ankara"),
    Edit("The capital of Nigeria is", " Abuja"),
    Edit("The winner of the 2022 FIFA World Cup was", " Argentina"),
    Edit("Sweden joined NATO in the year", " 2024"),
    Edit("Twitter is now called", " X"),
    Edit("The current king of the United Kingdom is", " Charles III"),
    Edit("Question: Who wrote the novel Frankenstein?\nAnswer:", " Mary Shelley"),
    Edit("The chief executive of Northwind Robotics is", " Mara Lindqvist"),
    Edit("Question: How long is the return period at Northwind Robotics?\nAnswer:", " 60 days"),
)
"""What the model gets wrong, has not heard of yet, or cannot know."""

PROMPTS = tuple(str(fact.prompt) for fact in FACTS)
TAKEN_BACK = 8  # the fact that is rolled back

GIVEN = "rephrase, given"
NEARBY = (
    (GIVEN, "Australia's capital city is", " Canberra"),
    ("rephrase, not given", "The capital city of Australia is", " Canberra"),
    ("rephrase, not given", "Nigeria's capital is", " Abuja"),
    ("another subject", "The capital of New Zealand is", None),
    ("another subject", "Norway joined NATO in the year", None),
)
"""Kind, prompt, and the answer to be wished for; None where the model's own should stay."""

UNRELATED = (
    "Water boils at a temperature of",
    "Photosynthesis is the process by which",
    "def fibonacci(n):",
    "Once upon a time, there was a",
    "The largest planet in the Solar System is",
    "The opposite of hot is",
    "She opened the door and",
    "To make bread, you need flour,",
    "The capital of Canada is",
    "Question: How many days are in a week?\nAnswer:",
)


@dataclass
class Story:
    """What is told (to the console) and what is found (in `facts` and `proofs`)."""

    console: Console
    facts: dict[str, Any] = field(default_factory=dict)
    proofs: dict[str, bool] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def scene(self, title: str) -> None:
        """Begin a scene."""
        self.console.print(f"\n{title}", style="bold")

    def say(self, text: str) -> None:
        """Tell one line."""
        self.console.print(text)

    def prove(self, name: str, holds: bool, what: str) -> None:
        """State what has been checked just now."""
        self.proofs[name] = holds
        self.console.print(f"{'Proven' if holds else 'FAILED'}: {what}.", style="green" if holds else "bold red")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show rows under headings."""
        self.console.print(table(headings, rows))

    def seconds(self) -> float:
        """Count from where the story began."""
        return time.perf_counter() - self.since


def run(console: Console, name: str, store: Path | None = None) -> dict[str, Any]:
    """Tell the story.

    Args:
        console: where; a quiet one tells nothing, and all is found all the same.
        name: the model, as `editable.models.load` takes it.
        store: a new file to keep the edits in; None for one that is thrown away.

    Returns:
        What was found, as plain JSON; `ok` says whether everything held that was to be proven.
    """
    story = Story(console)
    with ExitStack() as stack:
        stack.enter_context(_half_the_threads())
        path = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="editable-"))) / "edits.db"
        attach = _load(story, name, path)
        with attach() as em:
            before = _before(story, em)
            receipts = _insert(story, em)
            _after(story, em, before, receipts)
            _nearby(story, em)
            _unrelated(story, em, before)
            _take_back(story, em, before, receipts[TAKEN_BACK])
            last = _logits(em, PROMPTS)
        start = time.perf_counter()
        with attach() as em:
            _restart(story, em, last, time.perf_counter() - start)
            _cost(story, em)
    return _ending(story)


@contextmanager
def _half_the_threads() -> Iterator[None]:
    """Leave a core to the thread beside: torch's threads wait for one another by spinning, and slow all of it down."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- scenes ---


def _load(story: Story, name: str, path: Path) -> Callable[[], EditableModel]:
    story.scene("1. A model")
    with err().status(f"Loading {name}"):
        model, tokenizer = load(name)
    parameters = sum(p.numel() for p in model.parameters())
    story.say(f"{name}: {parameters:,} parameters, loaded in {story.seconds():.1f} s. None of them will be written to.")
    story.facts |= {"model": name, "parameters": parameters}
    return lambda: EditableModel(model, tokenizer, GRACE(), log=path, source=name)


@dataclass(frozen=True)
class Before:
    """Answers and logits by prompt, of the model when it knew no edit."""

    answers: Mapping[str, str]
    logits: Mapping[str, Tensor]


def _before(story: Story, em: EditableModel) -> Before:
    story.scene("2. What it says by itself")
    answers = {prompt: em.ask(prompt, ANSWER_TOKENS) for prompt in each(PROMPTS, "Asking")}
    story.table(
        ("prompt", "answer", "should be"),
        [(prompt, answers[prompt], fact.target) for prompt, fact in zip(PROMPTS, FACTS, strict=True)],
    )
    return Before(answers, _logits(em, [*PROMPTS, *UNRELATED]))


def _insert(story: Story, em: EditableModel) -> list[Receipt]:
    story.scene("3. Corrections come in while another thread goes on generating")
    start = time.perf_counter()
    with _serving(em) as (served, errors):
        futures = [em.submit(fact) for fact in FACTS]
        receipts = [future.result() for future in each(futures, "Learning")]
    seconds = time.perf_counter() - start
    for version, edits in itertools.groupby(zip(receipts, FACTS, strict=True), key=lambda pair: pair[0].version):
        told = ", ".join(line(fact.target) for _, fact in edits)
        story.say(f"  v{version} shows {told}")
    story.say(f"{len(receipts)} edits in {seconds:.1f} s; {len(served)} generations finished meanwhile.")
    story.prove("serving", bool(served) and not errors, f"{len(errors)} generations failed")
    story.facts["streaming"] = {
        "edits": len(receipts),
        "versions": len({r.version for r in receipts}),
        "seconds": seconds,
        "generations": len(served),
        "errors": errors,
    }
    return receipts


@contextmanager
def _serving(em: EditableModel) -> Iterator[tuple[list[str], list[str]]]:
    """Another thread answers questions until the end of the block; gives its answers and its errors."""
    served: list[str] = []
    errors: list[str] = []
    enough = threading.Event()

    def serve() -> None:
        for prompt in itertools.cycle([*PROMPTS, *UNRELATED]):
            try:
                served.append(em.ask(prompt, SERVED_TOKENS))
            except Exception as error:  # whatever it is, it is the finding
                errors.append(f"{prompt}: {error}")
            if enough.is_set():
                return

    thread = threading.Thread(target=serve, name="demo-server")
    thread.start()
    try:
        yield served, errors
    finally:
        enough.set()
        thread.join()


def _after(story: Story, em: EditableModel, before: Before, receipts: Sequence[Receipt]) -> None:
    story.scene("4. Before and after")
    answers = {prompt: em.ask(prompt, ANSWER_TOKENS) for prompt in each(PROMPTS, "Asking")}
    found = [
        {
            "id": receipt.id,
            "version": receipt.version,
            "prompt": prompt,
            "target": fact.target,
            "before": before.answers[prompt],
            "after": answers[prompt],
            "right": answers[prompt] == fact.target,
        }
        for prompt, fact, receipt in zip(PROMPTS, FACTS, receipts, strict=True)
    ]
    story.table(("prompt", "before", "after"), [(f["prompt"], f["before"], f["after"]) for f in found])
    right = sum(bool(f["right"]) for f in found)
    told = f"{right} of {len(found)} answers are the new ones, word for word, and end there"
    story.prove("reliability", right == len(found), told)
    story.facts["edits"] = found


def _nearby(story: Story, em: EditableModel) -> None:
    story.scene("5. Close to an edit (as it comes: only the rephrase given with its edit is promised)")
    found = []
    for kind, prompt, wanted in each(NEARBY, "Asking"):
        after = em.ask(prompt, ANSWER_TOKENS)
        with em.unedited():
            before = em.ask(prompt, ANSWER_TOKENS)
        told = {"kind": kind, "prompt": prompt, "before": before, "after": after}
        found.append({**told, "as_wished": after == (before if wanted is None else wanted)})
    columns = ("kind", "prompt", "before", "after")
    rows = [(*(str(f[column]) for column in columns), "yes" if f["as_wished"] else "no") for f in found]
    story.table((*columns, "as wished"), rows)
    given = all(f["as_wished"] for f in found if f["kind"] == GIVEN)
    story.prove("rephrase", given, "the rephrase given with its edit gets the new answer")
    story.facts["nearby"] = found


def _unrelated(story: Story, em: EditableModel, before: Before) -> None:
    story.scene("6. Everything else")
    now = _logits(em, UNRELATED)
    with em.unedited():
        base = _logits(em, UNRELATED)
    found = [
        {"prompt": p, "bit_equal": torch.equal(now[p], base[p]) and torch.equal(now[p], before.logits[p])}
        for p in UNRELATED
    ]
    for one in found:
        story.say(f"  {'same bits' if one['bit_equal'] else 'DIFFERENT'}  {line(one['prompt'])}")
    equal = sum(bool(one["bit_equal"]) for one in found)
    told = f"{equal} of {len(found)} unrelated prompts have the base model's logits, bit for bit"
    story.prove("locality", equal == len(found), told)
    story.facts["unrelated"] = found


def _take_back(story: Story, em: EditableModel, before: Before, receipt: Receipt) -> None:
    story.scene("7. One edit is taken back")
    prompt = PROMPTS[TAKEN_BACK]
    version = em.rollback(receipt.id)
    equal = torch.equal(_logits(em, [prompt])[prompt], before.logits[prompt])
    answer = em.ask(prompt, ANSWER_TOKENS)
    story.say(f"v{version} is without {receipt.id}: {line(prompt)} -> {line(answer)}")
    holds = equal and answer == before.answers[prompt]
    story.prove("rollback", holds, "its logits are the base model's again, bit for bit")
    about = {"id": receipt.id, "prompt": prompt, "version": version, "answer": answer, "bit_equal": equal}
    story.facts["rollback"] = about


def _restart(story: Story, em: EditableModel, last: Mapping[str, Tensor], seconds: float) -> None:
    story.scene("8. Closed, and opened again from the store")
    now = _logits(em, PROMPTS)
    equal = sum(torch.equal(now[prompt], last[prompt]) for prompt in PROMPTS)
    story.say(
        f"Version {em.version} with {len(em.edits)} live edits is back after {seconds:.1f} s, nothing learned anew."
    )
    told = f"{equal} of {len(PROMPTS)} prompts have the logits they had before it was closed, bit for bit"
    story.prove("restart", equal == len(PROMPTS), told)
    about = {"seconds": seconds, "version": em.version, "live_edits": len(em.edits), "bit_equal": equal}
    story.facts["restart"] = about


def _cost(story: Story, em: EditableModel) -> None:
    story.scene("9. What it costs")
    ratios, report = measured(em, [*PROMPTS[:3], UNRELATED[0]], TIMED)
    story.console.print(shown(ratios), f"\n{report}")
    story.facts["latency"] = {"paired": ratios, "report": report.as_dict()}


def _ending(story: Story) -> dict[str, Any]:
    held = sum(story.proofs.values())
    facts = {"ok": held == len(story.proofs), "seconds": story.seconds(), "proofs": story.proofs, **story.facts}
    ratio = facts["latency"]["paired"]["decode"]["ratio"]
    style = "bold green" if facts["ok"] else "bold red"
    story.console.print(
        f"\n{len(FACTS)} edits, {held} of {len(story.proofs)} proofs hold, "
        f"a decode step costs {ratio:.3f} of the base model's; {facts['seconds']:.0f} s in all.",
        style=style,
    )
    return facts


# --- comparing ---


def _logits(em: EditableModel, prompts: Sequence[str]) -> dict[str, Tensor]:
    device = next(em.model.parameters()).device
    tokens = {prompt: em.tokenizer(prompt, return_tensors="pt")["input_ids"].to(device) for prompt in prompts}
    with torch.no_grad():
        return {prompt: em(input_ids=tokens[prompt]).logits for prompt in each(prompts, "Comparing")}
