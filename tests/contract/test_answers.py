"""An edit answers: alone and in a batch, whichever way the model is called, and only where it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editable import Edit
from tests.conftest import Attach
from tests.contract.harness import LEARNED, Edited, both_dtypes, edits_of, named, only
from tests.families import LABELS, LONGEST, Loaded, logits_of


@both_dtypes
def test_each_row_of_a_batch_is_decided_by_itself(edited: Edited) -> None:
    loaded = edited.loaded
    for side in loaded.family.sides or (loaded.side,):
        now = loaded.answers(edited.mixed, side).argmax(-1)
        base = edited.twin.answers(edited.mixed, side).argmax(-1)
        alone = torch.cat([loaded.answers([row]).argmax(-1) for row in edited.mixed])
        for row in range(len(edited.mixed)):
            index = edited.index(row)
            if index is None:
                assert now[row] == base[row] or not edited.routes
            else:
                assert now[row] == alone[row] == _first(edited, index) != base[row]


def _first(edited: Edited, index: int) -> int:
    """The label of an edit, or the first token of its answer as the model itself says it."""
    loaded = edited.loaded
    if not loaded.family.generates:
        return int(loaded.targets[index])
    if loaded.family.kind == "causal":
        return loaded.wanted(index)[0]
    said = loaded.generate([loaded.edited[index]])[0]
    assert loaded.is_answer(said, index)
    return said[0]


def test_a_row_answers_alike_alone_and_in_a_batch(edited: Edited) -> None:
    loaded = edited.loaded
    for side in loaded.family.sides or (loaded.side,):
        alone = torch.cat([loaded.answers([row]) for row in edited.mixed])
        torch.testing.assert_close(loaded.answers(edited.mixed, side), alone, rtol=1e-3, atol=1e-3)


def test_the_same_row_many_times(edited: Edited) -> None:
    rows = [edited.loaded.edited[0]] * 5
    answers = edited.loaded.answers(rows)
    assert (answers.argmax(-1) == answers[0].argmax(-1)).all()
    assert not torch.equal(answers, edited.twin.answers(rows))


@only("causal", "seq2seq")
def test_ask_returns_the_answer_alone(edited: Edited) -> None:
    loaded = edited.loaded
    said = [edited.em.ask(prompt) for prompt in loaded.edited[:LEARNED]]
    assert said == list(loaded.targets[:LEARNED])


def test_every_door_is_the_same_model(edited: Edited) -> None:
    feed = edited.loaded.feed(edited.mixed)
    assert edited.em.model is edited.loaded.model
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            direct = logits_of(edited.loaded.model(**feed))
            assert torch.equal(logits_of(edited.em(**feed)), direct)
            assert not torch.equal(direct, logits_of(edited.twin.model(**feed)))


@only("causal", "seq2seq")
def test_em_generate_is_the_models_own(edited: Edited) -> None:
    batch = edited.loaded.encode(edited.mixed)
    own = edited.loaded.model.generate(**batch, max_new_tokens=LONGEST)
    assert torch.equal(edited.em.generate(**batch, max_new_tokens=LONGEST), own)


@named("llama-gqa", "bert", "vit")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_editing_inside_any_grad_mode(loaded: Loaded, editor: Any, attach: Attach, mode: Any) -> None:
    em = attach(loaded, editor)
    with mode():
        em.edit(edits_of(loaded, [0]))
        inside = loaded.answers(loaded.edited[:1])
    assert torch.equal(loaded.answers(loaded.edited[:1]), inside)
    wanted = loaded.wanted(0)[0] if loaded.family.generates else loaded.targets[0]
    assert int(inside.argmax(-1)) == wanted


@named("llama-gqa", "t5", "bert", "vit")
def test_re_editing_supersedes(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    first = em.edit(edits_of(loaded, [0])[0])
    base = loaded.family.load().answers(loaded.edited[:1])
    second = em.edit(Edit(loaded.edited[0], _another(loaded)))
    assert second.superseded == (first.id,)
    assert _says(loaded) == _another(loaded)
    em.rollback(second.id)
    assert torch.equal(loaded.answers(loaded.edited[:1]), base) or _says(loaded) == loaded.targets[0]


def _another(loaded: Loaded) -> str | int:
    """An answer that is neither the first edit's nor the model's own."""
    if loaded.family.generates:
        return loaded.targets[2]
    return (int(loaded.targets[0]) + 1) % LABELS


def _says(loaded: Loaded) -> str | int:
    """What the model now answers to the first edited input."""
    if loaded.family.generates:
        return str(loaded.tokenizer.decode(loaded.generate(loaded.edited[:1])[0], skip_special_tokens=True))
    return int(loaded.answers(loaded.edited[:1]).argmax(-1))


@named("llama-gqa", "t5", "bert", "vit")
def test_rephrases_get_the_answer_too(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    em.edit(Edit(loaded.edited[0], loaded.targets[0], rephrases=(loaded.edited[4], loaded.edited[5])))
    answers = loaded.answers([loaded.edited[i] for i in (0, 4, 5)]).argmax(-1)
    assert len(set(answers.tolist())) == 1
    assert _says(loaded) == loaded.targets[0]


@named("llama-gqa", "bart", "bert", "vit", "resnet")
def test_a_mapping_of_forward_arguments_is_an_edit_too(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """The kwargs of the model's own forward, labels among them: what text or an image would come to."""
    em = attach(loaded, editor)
    feed = _with_labels(loaded)
    before = loaded.model(**feed).loss
    em.edit(Edit(feed))
    output = loaded.model(**feed)
    answer = output.logits.argmax(-1)
    labels = feed["labels"]
    if loaded.family.kind == "causal":
        answer, labels = answer[:, :-1], labels[:, 1:]
    assert torch.equal(answer[labels != -100], labels[labels != -100])
    assert output.loss < before


def _with_labels(loaded: Loaded) -> dict[str, torch.Tensor]:
    batch = loaded.encode(loaded.edited[:1])
    if not loaded.family.generates:
        return batch | {"labels": torch.tensor([loaded.targets[0]])}
    answer = torch.tensor([loaded.wanted(0)])
    if loaded.family.kind == "seq2seq":
        return batch | {"labels": answer}
    prompt = batch["input_ids"]
    ids = torch.cat([prompt, answer], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
