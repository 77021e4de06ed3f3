"""EditableModel: receipts, versions, who sees what; and what it says when something cannot be done."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.digest import base_digest
from editable.errors import (
    CorruptLogError,
    EditableError,
    InputError,
    LogError,
    SiteError,
    StateError,
    UnknownEditError,
    VerificationError,
    WrongBaseError,
)
from editable.memory.log import Log, Record
from editable.model import RECENT
from tests.conftest import Attach
from tests.contract.harness import everything, same_bits
from tests.families import FAMILIES, Loaded

NAME = "llama-gqa"


def load(name: str = NAME) -> Loaded:
    return {family.name: family for family in FAMILIES}[name].load()


@pytest.fixture
def loaded() -> Loaded:
    return load()


@pytest.fixture
def em(loaded: Loaded) -> Iterator[EditableModel]:
    with closing(attached(loaded)) as made:
        yield made


def attached(loaded: Loaded, **options: Any) -> EditableModel:
    return EditableModel(loaded.model, loaded.tokenizer, editor=options.pop("editor", GRACE()), **options)


def edit_of(loaded: Loaded, index: int, **more: Any) -> Edit:
    return Edit(loaded.edited[index], loaded.targets[index], **more)


def records_of(path: Path) -> list[Record]:
    with Log(path) as log:
        return list(log.records())


class Unchanged:
    """Nothing may have happened: version, edits, history, log and every answer."""

    def __init__(self, em: EditableModel, loaded: Loaded, log: Path | None = None) -> None:
        self.em, self.loaded, self.log = em, loaded, log
        self.before = self._now()
        self.logits = everything(loaded)

    def _now(self) -> Any:
        records = [] if self.log is None else [record.hash for record in records_of(self.log)]
        return self.em.version, list(self.em.edits), list(self.em.history), records

    def check(self) -> None:
        assert self._now() == self.before
        assert same_bits(everything(self.loaded), self.logits)


# ----------------------------------------------------------------------------------------------------- receipts


def test_a_receipt(em: EditableModel, loaded: Loaded) -> None:
    receipt = em.edit(edit_of(loaded, 0, rephrases=[loaded.edited[1]], locality=loaded.unrelated))
    assert (receipt.version, em.version) == (1, 1)
    assert (receipt.verified.reliability, receipt.verified.locality) == (1.0, 1.0)
    assert (receipt.verified.collisions, receipt.superseded) == ((), ())
    assert list(receipt.seconds) == ["read", "learn", "verify", "log", "publish"]
    assert all(seconds >= 0 for seconds in receipt.seconds.values())
    assert [listed.id for listed in em.edits] == [receipt.id]


def test_a_list_is_one_version_with_a_receipt_each(em: EditableModel, loaded: Loaded) -> None:
    receipts = em.edit([edit_of(loaded, i) for i in range(3)])
    assert [receipt.version for receipt in receipts] == [1, 1, 1]
    assert em.version == 1
    assert len({receipt.id for receipt in receipts}) == 3
    assert [listed.prompt for listed in em.edits] == list(loaded.edited[:3])
    assert [listed.id for listed in em.edits] == [receipt.id for receipt in receipts]


def test_an_unreliable_edit_may_be_asked_for(loaded: Loaded, attach: Attach) -> None:
    """Without steps the published value is the model's own activation: nothing is learned."""
    em = attach(loaded, GRACE(values="single", steps=0))
    receipt = em.edit(edit_of(loaded, 0), verify=False)
    assert receipt.verified.reliability < 1
    assert em.version == 1


def test_reliability_is_the_share_of_answer_tokens(loaded: Loaded, attach: Attach) -> None:
    """Of the tokens of prompt and rephrases; of an answer whose first token alone is the model's own."""
    em = attach(loaded, GRACE(values="single", steps=0))
    own = int(loaded.answers([loaded.edited[0]]).argmax())
    ids = torch.tensor(loaded.tokenizer(loaded.edited[0]).input_ids)
    other = 1 + (own % 2)
    answer = torch.tensor([own, other, other, other])
    with torch.no_grad():
        said = loaded.model(torch.cat([ids, answer[:-1]])[None]).logits[0, len(ids) - 1 :].argmax(-1)
    labels = torch.cat([torch.full_like(ids, -100), answer])
    receipt = em.edit(Edit({"input_ids": torch.cat([ids, answer])[None], "labels": labels[None]}), verify=False)
    assert receipt.verified.reliability == pytest.approx(float((said == answer).float().mean()))
    assert 0 < receipt.verified.reliability < 1


def test_locality_is_the_share_left_bit_equal(em: EditableModel, loaded: Loaded) -> None:
    locality = [*loaded.unrelated[:3], loaded.edited[0]]  # the last one is the edit's own prompt
    receipt = em.edit(edit_of(loaded, 0, locality=locality), verify=False)
    assert receipt.verified.locality == 0.75


# ----------------------------------------------------------------------------------------------------- versions


def test_versions_count_up_by_one(em: EditableModel, loaded: Loaded) -> None:
    first = em.edit([edit_of(loaded, 0), edit_of(loaded, 1)])
    second = em.edit(edit_of(loaded, 2))
    assert [first[0].version, second.version, em.rollback(first[0].id)] == [1, 2, 3]
    assert em.rollback([first[1].id, second.id]) == 4
    assert (em.version, len(em.edits), len(em.history)) == (4, 0, 3)
    assert [listed.rolled_back for listed in em.history] == [3, 4, 4]


def test_every_version_can_be_seen_again(em: EditableModel, loaded: Loaded) -> None:
    then = [loaded.logits(loaded.edited)]
    ids = []
    for index in range(3):
        ids.append(em.edit(edit_of(loaded, index)).id)
        then.append(loaded.logits(loaded.edited))
    em.rollback(ids[1])
    then.append(loaded.logits(loaded.edited))
    for version in (2, 0, 4, 1, 3):
        with em.at(version):
            assert torch.equal(loaded.logits(loaded.edited), then[version])
    assert torch.equal(loaded.logits(loaded.edited), then[4])


@pytest.mark.parametrize("logged", [False, True])
def test_a_version_long_gone_is_rebuilt_bit_equal(loaded: Loaded, tmp_path: Path, logged: bool) -> None:
    """More versions than are kept ready: edits, re-edits, and rollbacks of both."""
    then = {0: loaded.logits(loaded.edited)}
    with closing(attached(loaded, log=tmp_path / "edits.db" if logged else None)) as em:
        ids: list[str] = []
        while em.version < RECENT + 6:
            if em.version % 3 == 2:
                em.rollback(ids.pop(em.version % len(ids)))
            else:
                target = loaded.targets[em.version % 5]
                ids.append(em.edit(Edit(loaded.edited[em.version % 4], target)).id)
            then[em.version] = loaded.logits(loaded.edited)
        assert em.version - 5 > RECENT - 2
        for version in (0, 1, 2, 3, 5, 6, em.version):
            with em.at(version):
                assert torch.equal(loaded.logits(loaded.edited), then[version]), f"version {version}"


@pytest.mark.parametrize("version", [-1, 2, 99])
def test_a_version_that_never_was(em: EditableModel, loaded: Loaded, version: int) -> None:
    em.edit(edit_of(loaded, 0))
    with pytest.raises(InputError, match=f"Version {version} does not exist, expected one from 0 to 1"), em.at(version):
        pass


def in_thread(act: Callable[[], Tensor]) -> Tensor:
    seen: list[Tensor] = []
    thread = threading.Thread(target=lambda: seen.append(act()))
    thread.start()
    thread.join()
    return seen[0]


def test_unedited_is_this_threads_only(em: EditableModel, loaded: Loaded) -> None:
    base = loaded.logits(loaded.edited)
    em.edit(edit_of(loaded, 0))
    now = loaded.logits(loaded.edited)
    with em.unedited():
        assert torch.equal(loaded.logits(loaded.edited), base)
        assert torch.equal(in_thread(lambda: loaded.logits(loaded.edited)), now)
    assert torch.equal(loaded.logits(loaded.edited), now)


def test_an_edit_made_inside_unedited_is_published(em: EditableModel, loaded: Loaded) -> None:
    """What is learned, and on what, does not depend on what the calling thread looks at."""
    base = loaded.logits(loaded.edited)
    with em.unedited():
        receipt = em.edit(edit_of(loaded, 0))
        assert receipt.verified.reliability == 1.0
        assert torch.equal(loaded.logits(loaded.edited), base)
    assert loaded.is_answer(loaded.generate([loaded.edited[0]])[0], 0)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt(em: EditableModel, prompt: str) -> None:
    with pytest.raises(InputError, match=r"Edit\.prompt is .*expected some text"):
        em.edit(Edit(prompt, " west"))


def test_an_empty_target(em: EditableModel) -> None:
    with pytest.raises(InputError, match=r"Edit\.target is ' ', expected some text"):
        em.edit(Edit("alpha", " "))


def test_an_empty_list(em: EditableModel) -> None:
    with pytest.raises(InputError, match="The list of edits is empty, expected at least one Edit"):
        em.edit([])
    assert em.version == 0


def test_a_prompt_longer_than_the_context(em: EditableModel, loaded: Loaded) -> None:
    nothing = Unchanged(em, loaded)
    with pytest.raises(InputError, match=r"'kilo kilo .* expected at most 128 together, the context of LlamaFor"):
        em.edit(Edit("kilo " * 200, " west"))
    nothing.check()


def test_an_unknown_site_names_its_neighbours(loaded: Loaded) -> None:
    before = everything(loaded)
    message = (
        r"Site 'model\.layers\.1\.mlp\.dwn_proj' does not exist in LlamaForCausalLM, expected a module path; "
        r"the nearest are: model\.layers\.\d\.mlp\.down_proj, "
    )
    with pytest.raises(SiteError, match=message):
        attached(loaded, editor=GRACE(values="single", site="model.layers.1.mlp.dwn_proj"))
    assert same_bits(everything(loaded), before)
    attached(loaded).close()  # nothing was left behind that would refuse it


def test_failed_verification_says_what_came_out_and_changes_nothing(loaded: Loaded, tmp_path: Path) -> None:
    with closing(attached(loaded, editor=GRACE(values="single", steps=0), log=tmp_path / "edits.db")) as em:
        nothing = Unchanged(em, loaded, tmp_path / "edits.db")
        with pytest.raises(VerificationError) as caught:
            em.edit(edit_of(loaded, 0))
        nothing.check()
    text = str(caught.value)
    assert text.startswith("1 of 1 edits failed verification, and nothing has changed: ")
    assert f"{loaded.edited[0]} -> {loaded.targets[0]!r}: reliability 0.00 (expected 1.00)" in text
    assert "the model said '" in text
    assert "verify=False" in text


def test_failed_locality(em: EditableModel, loaded: Loaded) -> None:
    nothing = Unchanged(em, loaded)
    with pytest.raises(
        VerificationError, match=r"reliability 1\.00 \(expected 1\.00\), locality 0\.50 \(expected 1\.00\)"
    ):
        em.edit(edit_of(loaded, 0, locality=[loaded.edited[0], loaded.unrelated[0]]))
    nothing.check()


BAD: dict[str, Callable[[Loaded], Edit]] = {
    "unreadable": lambda loaded: Edit(loaded.edited[1], 3),
    "too long": lambda _: Edit("kilo " * 200, " west"),
    "fails locality": lambda loaded: edit_of(loaded, 1, locality=[loaded.edited[1]]),
}


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_edit_of_a_list_leaves_nothing(loaded: Loaded, tmp_path: Path, bad: str) -> None:
    with closing(attached(loaded, log=tmp_path / "edits.db")) as em:
        em.edit(edit_of(loaded, 3))
        nothing = Unchanged(em, loaded, tmp_path / "edits.db")
        with pytest.raises(EditableError):
            em.edit([edit_of(loaded, 0), BAD[bad](loaded), edit_of(loaded, 2)])
        nothing.check()
        assert em.edit(edit_of(loaded, 0)).version == 2  # and it goes on


def test_only_the_failing_edits_are_reported(em: EditableModel, loaded: Loaded) -> None:
    edits = [edit_of(loaded, 0), edit_of(loaded, 1, locality=[loaded.edited[1]])]
    with pytest.raises(VerificationError) as caught:
        em.edit(edits)
    assert str(caught.value).startswith("1 of 2 edits failed")
    assert loaded.edited[1] in str(caught.value)
    assert loaded.edited[0] not in str(caught.value)


def test_rolling_back_an_unknown_edit(em: EditableModel, loaded: Loaded) -> None:
    receipt = em.edit(edit_of(loaded, 0))
    nothing = Unchanged(em, loaded)
    message = "Edit 'nobody' is unknown, expected the id of a live edit; print em.edits to see them"
    with pytest.raises(UnknownEditError, match=message) as caught:
        em.rollback("nobody")
    assert str(caught.value).startswith("Edit 'nobody'")  # a KeyError would show its repr
    with pytest.raises(UnknownEditError):
        em.rollback([receipt.id, "nobody"])
    nothing.check()


def test_rolling_back_twice(em: EditableModel, loaded: Loaded) -> None:
    first, second = em.edit([edit_of(loaded, 0), edit_of(loaded, 1)])
    em.rollback(first.id)
    nothing = Unchanged(em, loaded)
    message = f"Edit '{first.id}' was rolled back in version 2 already, expected the id of a live edit"
    for ids in (first.id, [second.id, first.id]):
        with pytest.raises(UnknownEditError, match=message):
            em.rollback(ids)
    nothing.check()


def test_rolling_back_nothing_is_refused(em: EditableModel, loaded: Loaded) -> None:
    """As editing nothing is."""
    em.edit(edit_of(loaded, 0))
    with pytest.raises(InputError, match="empty"):
        em.rollback([])
    assert em.version == 1


def test_one_id_twice_in_a_rollback_is_one_rollback(loaded: Loaded, tmp_path: Path) -> None:
    with closing(attached(loaded, log=tmp_path / "edits.db")) as em:
        receipt = em.edit(edit_of(loaded, 0))
        em.rollback([receipt.id, receipt.id])
        assert [record.kind for record in records_of(tmp_path / "edits.db")] == ["edit", "rollback"]


CHANGES: dict[str, Callable[[EditableModel, Loaded, Path], Any]] = {
    "edit": lambda em, loaded, _: em.edit(edit_of(loaded, 1)),
    "rollback": lambda em, _loaded, _path: em.rollback(em.edits[0].id),
    "submit": lambda em, loaded, _: em.submit(edit_of(loaded, 1)),
    "edit_stream": lambda em, loaded, _: list(em.edit_stream([edit_of(loaded, 1)])),
    "load": lambda em, _, path: em.load(path / "pack.safetensors"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_closed_model_refuses_changes(loaded: Loaded, tmp_path: Path, change: str) -> None:
    em = attached(loaded)
    em.edit(edit_of(loaded, 0))
    em.export(tmp_path / "pack.safetensors")
    em.close()
    before = everything(loaded)
    with pytest.raises(StateError, match="This EditableModel is closed, expected an open one; attach a new one"):
        CHANGES[change](em, loaded, tmp_path)
    assert same_bits(everything(loaded), before)
    assert "closed" in repr(em)


def test_attaching_twice(em: EditableModel, loaded: Loaded) -> None:
    em.edit(edit_of(loaded, 0))
    nothing = Unchanged(em, loaded)
    message = r"This LlamaForCausalLM has an EditableModel attached already.*editors=\{\.\.\.\}, or close\(\) it first"
    with pytest.raises(StateError, match=message):
        attached(loaded)
    nothing.check()


def test_a_missing_tokenizer(loaded: Loaded) -> None:
    with closing(EditableModel(loaded.model, editor=GRACE())) as em:
        for act in (lambda: em.edit(edit_of(loaded, 0)), lambda: em.ask("alpha")):
            with pytest.raises(
                InputError, match=r"is text, but no tokenizer was given.*EditableModel\(model, tokenizer"
            ):
                act()


def test_no_editor_or_two(loaded: Loaded) -> None:
    choices: list[dict[str, Any]] = [{}, {"editor": GRACE(), "editors": {"a": GRACE()}}, {"editors": {}}]
    for options in choices:
        with pytest.raises(InputError, match=r"expected exactly one of them.*editor=GRACE\(\)"):
            EditableModel(loaded.model, loaded.tokenizer, **options)


def test_an_editor_that_is_not_attached(em: EditableModel, loaded: Loaded) -> None:
    for act in (em.edit, em.submit):
        with pytest.raises(InputError, match="Editor 'melo' is not attached, expected one of grace"):
            act(edit_of(loaded, 0), editor="melo")


def test_a_compiled_model(loaded: Loaded) -> None:
    loaded.model.model.layers[0].compile()
    with pytest.raises(StateError, match=r"LlamaForCausalLM is compiled already.*attach first and compile afterwards"):
        attached(loaded)


def test_a_model_without_a_place_for_the_editor() -> None:
    with pytest.raises(SiteError, match="ReLU has no linear layer"):
        EditableModel(nn.ReLU(), editor=GRACE())


# ------------------------------------------------------------------------------------------------------ the log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two edits and a rollback of the first."""
    path, loaded = tmp_path / "edits.db", load()
    with closing(attached(loaded, log=path)) as em:
        receipts = em.edit([edit_of(loaded, 0), edit_of(loaded, 1)])
        em.rollback(receipts[0].id)
    return path


def test_a_log_is_recalled(loaded: Loaded, log: Path) -> None:
    with closing(attached(loaded, log=log)) as em:
        assert (em.version, len(em.edits), len(em.history)) == (2, 1, 2)
        assert em.history[0].state == "rolled back in v2"
        assert loaded.is_answer(loaded.generate([loaded.edited[1]])[0], 1)
        assert em.edit(edit_of(loaded, 2)).version == 3


def test_older_versions_of_a_recalled_log(loaded: Loaded, log: Path) -> None:
    base = loaded.logits(loaded.edited)
    with closing(attached(loaded, log=log)) as em:
        with em.at(1):
            now = loaded.generate(loaded.edited[:2], max_new_tokens=8)
            assert [loaded.is_answer(tokens, i) for i, tokens in enumerate(now)] == [True, True]
        with em.at(0):
            assert torch.equal(loaded.logits(loaded.edited), base)


def refused(loaded: Loaded, log: Path, error: type[LogError], **options: Any) -> str:
    """The text; and the model is as it was, with nothing attached."""
    before = everything(loaded)
    with pytest.raises(error) as caught:
        attached(loaded, log=log, **options)
    assert same_bits(everything(loaded), before)
    attached(loaded).close()
    return str(caught.value)


def test_a_log_of_another_base(loaded: Loaded, log: Path) -> None:
    theirs = base_digest(loaded.model)
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[0] += 1
    text = refused(loaded, log, WrongBaseError)
    assert base_digest(loaded.model) != theirs
    assert theirs in text
    assert base_digest(loaded.model) in text


def test_a_log_of_another_tokenizer(loaded: Loaded, log: Path) -> None:
    loaded.tokenizer.add_tokens(["<new>"])
    assert "tokenizer" in refused(loaded, log, WrongBaseError)


def test_a_log_of_another_configuration(loaded: Loaded, log: Path) -> None:
    assert "editor" in refused(loaded, log, WrongBaseError, editor=GRACE(probability=0.9))


def test_a_corrupt_record(loaded: Loaded, log: Path) -> None:
    with closing(sqlite3.connect(log)) as db, db:
        (payload,) = db.execute("SELECT payload FROM records WHERE seq = 2").fetchone()
        flipped = payload[:-1] + bytes([payload[-1] ^ 1])
        db.execute("UPDATE records SET payload = ? WHERE seq = 2", (flipped,))
    text = refused(loaded, log, CorruptLogError)
    assert str(log) in text
    assert "2" in text


# ------------------------------------------------------------------------------------------------------- packs


def test_a_pack_is_loaded_once(loaded: Loaded, tmp_path: Path) -> None:
    other, path = load(), tmp_path / "pack.safetensors"
    with closing(attached(other)) as theirs:
        ids = [receipt.id for receipt in theirs.edit([edit_of(other, 0), edit_of(other, 1)])]
        theirs.export(path)
    with closing(attached(loaded)) as em:
        assert em.load(path) == 1
        assert [listed.id for listed in em.edits] == ids
        assert em.load(path) == 1  # they are there already
        em.rollback(ids[0])
        with pytest.raises(InputError, match=f"Edit '{ids[0]}' of the pack was rolled back here in version 2"):
            em.load(path)
        assert em.version == 2


def test_a_pack_joins_edits_that_are_there(loaded: Loaded, tmp_path: Path) -> None:
    """One of them on the same prompt: what comes later answers, and says what it took over."""
    other, path = load(), tmp_path / "pack.safetensors"
    with closing(attached(other)) as theirs:
        theirs.edit([Edit(other.edited[0], " golf"), edit_of(other, 1)])
        theirs.export(path)
    with closing(attached(loaded)) as em:
        mine = em.edit([edit_of(loaded, 0), edit_of(loaded, 2)])
        em.load(path)
        assert em.ask(loaded.edited[0]) == " golf"
        assert [em.ask(loaded.edited[i]) for i in (1, 2)] == list(loaded.targets[1:3])
        assert em.edits[mine[0].id].superseded_by == em.edits[2].id
        em.rollback(em.edits[2].id)
        assert em.ask(loaded.edited[0]) == loaded.targets[0]


def test_exporting_no_edits(em: EditableModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would hold no edits"):
        em.export(tmp_path / "pack.safetensors")


# --------------------------------------------------------------------------------------------- asking, streaming


def test_ask_gives_the_answer_without_its_end(em: EditableModel, loaded: Loaded) -> None:
    em.edit(edit_of(loaded, 2))
    assert em.ask(loaded.edited[2]) == loaded.targets[2]
    assert em.ask(loaded.edited[2], max_new_tokens=1) == loaded.tokenizer.decode([loaded.wanted(2)[0]])
    with em.unedited():
        assert em.ask(loaded.edited[2], max_new_tokens=8) != loaded.targets[2]


def test_ask_names_a_label(attach: Attach) -> None:
    loaded = load("vit")
    em = attach(loaded, GRACE())
    em.edit(Edit(loaded.edited[0], 5))
    assert em.ask(loaded.edited[0]) == "LABEL_5"


def test_several_editors_of_one_model(loaded: Loaded) -> None:
    editors, base = {"facts": GRACE(), "other": GRACE(probability=0.9)}, loaded.logits(loaded.edited)
    with closing(EditableModel(loaded.model, loaded.tokenizer, editors=editors)) as em:
        one, two = em.edit(edit_of(loaded, 0)), em.edit(edit_of(loaded, 1), editor="other")
        assert [em.edits[r.id].editor for r in (one, two)] == ["facts", "other"]
        assert [em.ask(loaded.edited[i]) for i in (0, 1)] == list(loaded.targets[:2])
        em.rollback([one.id, two.id])
        assert torch.equal(loaded.logits(loaded.edited), base)


def test_a_submitted_edit_is_seen_when_its_future_is_done(em: EditableModel, loaded: Loaded) -> None:
    futures = [em.submit(edit_of(loaded, i)) for i in range(3)]
    versions = [future.result(30).version for future in futures]
    assert versions == sorted(versions)
    assert [em.ask(loaded.edited[i]) for i in range(3)] == list(loaded.targets[:3])


def test_a_bad_submitted_edit_fails_alone(em: EditableModel, loaded: Loaded) -> None:
    good, bad, last = (em.submit(e) for e in (edit_of(loaded, 0), Edit(loaded.edited[1], 3), edit_of(loaded, 2)))
    with pytest.raises(InputError, match=r"Edit\.target is 3"):
        bad.result(30)
    assert {good.result(30).id, last.result(30).id} == {listed.id for listed in em.edits}


def test_a_stream_publishes_a_version_for_each_batch(em: EditableModel, loaded: Loaded) -> None:
    versions = [r.version for r in em.edit_stream((edit_of(loaded, i) for i in range(5)), batch_size=2)]
    assert versions == [1, 1, 2, 2, 3]


def test_leaving_a_with_block_closes(loaded: Loaded) -> None:
    base = everything(loaded)
    with attached(loaded) as em:
        em.edit(edit_of(loaded, 0))
    assert "closed" in repr(em)
    assert same_bits(everything(loaded), base)
