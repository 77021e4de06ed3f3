"""Mistakes repaired one after another: facts of a language model, and the labels of a classifier trained here.

The physics. A repair has to work at once (SR), to survive the repairs after it (SRR), and to leave alone what nobody
complained about (locality). The mean over few inputs hides little here: both figures are counts.

- facts        --edits of --data go in one at a time. SR is scored right after each edit, SRR with the final model, on
               the edit's own prompt; locality is the share of answer tokens of the cases' own locality questions that
               are the unedited model's, and the share of those questions whose logits keep every bit. All of it is
               teacher-forced.
- classifier   a BERT (4 layers, 256 wide, as BERT-mini of Turc et al., 2019) is trained on the shipped facts to tell
               which relation a text is about, from a random start. Facts are split in three: to train on, to find
               mistakes in, to test on. The first mistakes are repaired one at a time; accuracy is of all test texts,
               none of which is among the repairs.

    editable bench repair
    editable bench repair --data zsre.json --edits 100
    editable bench repair --editor tpatcher --set gate=none --edits 100 --data zsre.json
"""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from editable import Edit, EditableModel
from editable.asking import Asker
from editable.benchmarks import bars, common, report, timing
from editable.benchmarks.bars import Bar
from editable.datasets.case import Case
from editable.edited import EditedSystem
from editable.editor import Editor
from editable.learn import shadow_of
from editable.metrics import forced_share

VOCABULARY, LAYERS, WIDTH, HEADS = 2000, 4, 256, 4
BATCH, RATE, SMOOTH = 32, 5e-4, 0.1  # of training; the rate falls to 0 along half a cosine
PARTS = (0.5, 0.25, 0.25)  # of the facts: to train on, to find mistakes in, to test on

Labelled = tuple[str, int]


@dataclass(frozen=True)
class Facts:
    """What became of the facts."""

    success: float
    retained: float
    locality: float
    bit_equal: float
    seconds: Sequence[float]


@dataclass(frozen=True)
class Classified:
    """What became of the classifier."""

    repaired: float
    retained: float
    accuracy_before: float
    accuracy_after: float
    repairs: int
    texts: int
    seconds: Sequence[float]

    @property
    def moved(self) -> float:
        """By how much accuracy elsewhere has changed, either way."""
        return abs(self.accuracy_after - self.accuracy_before)


# --- a language model ---


def facts(em: EditableModel, cases: Sequence[Case]) -> Facts:
    """Insert, score, and score again at the end."""
    system, base = EditedSystem(em, "edited"), Asker(shadow_of(em.model), em.tokenizer)
    success, seconds = [], []
    for case in common.each(cases, "editing", len(cases)):
        seconds.append(timing.clocked(lambda: system.insert([case.edit]))())  # noqa: B023 - called at once
        success += _right(system, [case.edit])
    questions = [(q.prompt, q.answers[0]) for case in cases for q in case.locality if q.answers]
    prompts, answers = [prompt for prompt, _ in questions], [answer for _, answer in questions]
    pairs = list(zip(system.forced(prompts, answers), base.forced(prompts, answers), strict=True))
    alike = [float((now.argmax(dim=-1) == before.argmax(dim=-1)).double().mean()) for now, before in pairs]
    bits = [float(torch.equal(now, before)) for now, before in pairs]
    return Facts(_mean(success), _mean(_right(system, [c.edit for c in cases])), _mean(alike), _mean(bits), seconds)


def _right(asked: Asker, edits: Sequence[Edit]) -> list[float]:
    """Share of each edit's answer tokens that are right, teacher-forced."""
    prompts, targets = [edit.prompt for edit in edits], [edit.target or "" for edit in edits]
    logits, ids = asked.forced(prompts, targets), asked.target_ids(prompts, targets)
    return [forced_share(one, target) for one, target in zip(logits, ids, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


# --- a classifier ---


def texts(seed: int) -> tuple[list[str], list[list[Labelled]]]:
    """Names of the relations, and texts with their relation, in three parts that share no fact."""
    lines = resources.files("editable.datasets").joinpath("facts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    names = sorted({record["relation"] for record in records})
    random.Random(seed).shuffle(records)
    ends = [round(len(records) * sum(PARTS[:count])) for count in range(len(PARTS) + 1)]
    return names, [list(_labelled(records[start:end], names)) for start, end in pairwise(ends)]


def _labelled(records: Sequence[dict[str, Any]], names: Sequence[str]) -> Iterator[Labelled]:
    for record in records:
        for text in (record["prompt"], *record["rephrases"]):
            yield text, names.index(record["relation"])


def trained(names: Sequence[str], data: Sequence[Labelled], epochs: int, seed: int) -> tuple[Any, Any]:
    """A classifier and its tokenizer, from a random start."""
    tokenizer = _tokenizer([text for text, _ in data])
    torch.manual_seed(seed)
    config = hf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=64, num_labels=len(names), pad_token_id=0,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    model = hf.BertForSequenceClassification(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    steps = epochs * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order, left = random.Random(seed), list(data)
    for _ in common.each(range(epochs), "training", epochs):
        order.shuffle(left)
        for start in range(0, len(left), BATCH):
            part = left[start : start + BATCH]
            logits = model(**_encoded(tokenizer, [text for text, _ in part])).logits
            labels = torch.tensor([label for _, label in part])
            torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTH).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return model.eval(), tokenizer


def _tokenizer(said: Sequence[str]) -> hf.PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(said, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=specials))
    ends = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _encoded(tokenizer: Any, said: Sequence[str]) -> dict[str, torch.Tensor]:
    coded = tokenizer(list(said), padding=True, return_tensors="pt", return_token_type_ids=False)
    return {name: coded[name] for name in ("input_ids", "attention_mask")}


def classified(em: EditableModel, mistakes: Sequence[Labelled], test: Sequence[Labelled]) -> Classified:
    """Repair the mistakes, one at a time."""
    before, seconds, repaired = _accuracy(em, test), [], []
    for text, label in mistakes:
        edit = Edit(text, label)
        seconds.append(timing.clocked(lambda: em.edit(edit, verify=False))())  # noqa: B023 - called at once
        repaired.append(_accuracy(em, [(text, label)]))
    after = _accuracy(em, test)
    return Classified(_mean(repaired), _accuracy(em, mistakes), before, after, len(mistakes), len(test), seconds)


def _accuracy(em: EditableModel, data: Sequence[Labelled]) -> float:
    return _mean([float(said == label) for said, (_, label) in zip(_labels(em, data), data, strict=True)])


@torch.no_grad()
def _labels(em: EditableModel, data: Sequence[Labelled]) -> list[int]:
    said: list[int] = []
    for start in range(0, len(data), BATCH):
        batch = _encoded(em.tokenizer, [text for text, _ in data[start : start + BATCH]])
        said += em(**batch).logits.argmax(dim=-1).tolist()
    return said


def repaired_classifier(editor: Editor, repairs: int, epochs: int, seed: int) -> Classified:
    """Train, find mistakes, repair them."""
    names, (train, search, test) = texts(seed)
    model, tokenizer = trained(names, train, epochs, seed)
    with closing(EditableModel(model, tokenizer, editor=editor)) as em:
        wrong = [one for one, said in zip(search, _labels(em, search), strict=True) if one[1] != said]
        return classified(em, wrong[:repairs], test)


# --- showing ---


def judged(first: Facts, second: Classified) -> list[Bar]:
    """The figures that have a bar."""
    return [
        Bar("facts: success right after the edit (SR), forced", first.success, ">=", 0.98),
        Bar("facts: success with the final model (SRR), forced", first.retained, ">=", 0.95),
        Bar("facts: locality, answer tokens as before", first.locality, ">=", 0.95),
        Bar("facts: median seconds per edit", timing.spread(first.seconds).median, "<=", 3.0),
        Bar("classifier: mistakes repaired, with the final model", second.retained, ">=", 1.0),
        Bar("classifier: accuracy elsewhere moved by", second.moved, "<=", 0.005),
    ]


def quality(first: Facts, second: Classified) -> dict[str, Any]:
    """What must repeat."""
    counted = {name: value for name, value in vars(second).items() if name != "seconds"}
    return {"facts": {n: v for n, v in vars(first).items() if n != "seconds"}, "classifier": counted}


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "repair")
    common.add_editor(parser)
    parser.set_defaults(editor="tpatcher")
    parser.add_argument("--edits", type=int, default=100, help="facts")
    parser.add_argument("--repairs", type=int, default=50, help="mistakes of the classifier")
    parser.add_argument("--epochs", type=int, default=15, help="of the classifier's training")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both and show them."""
    chosen = options().parse_args(argv)
    editor = common.editor(chosen)
    model, tokenizer = common.prepare(chosen)
    card = common.machine_card(model)
    cases = [case for case in common.cases(chosen, chosen.edits) if case.edit.target is not None]
    with closing(EditableModel(model, tokenizer, editor=editor)) as em:
        first = facts(em, cases)
    common.note(f"facts: {first}")
    second = repaired_classifier(editor, chosen.repairs, chosen.epochs, chosen.seed)
    found = judged(first, second)
    seconds = {
        "facts": timing.spread(first.seconds).as_dict("s"),
        "classifier": timing.spread(second.seconds).as_dict("s"),
    }
    tables = [bars.table(found), _table(first, second)]
    document = report.Report("repair", card, common.given(chosen), quality(first, second), seconds, tables)
    report.publish(document, chosen.results, chosen.against)


def _table(first: Facts, second: Classified) -> report.Table:
    rows: list[tuple[object, ...]] = [
        ("facts", len(first.seconds), first.success, first.retained, first.locality, first.bit_equal),
        ("classifier", second.repairs, second.repaired, second.retained, None, None),
        ("  its accuracy elsewhere", second.texts, second.accuracy_before, second.accuracy_after, None, None),
    ]
    header = ("", "inputs", "right after", "in the end", "locality, forced", "bit-equal")
    return report.Table("repairs one after another (accuracy: before, after)", header, rows)


if __name__ == "__main__":
    main()
