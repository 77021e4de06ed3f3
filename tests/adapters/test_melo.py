"""MELO: blocks that rows are routed to, and a regression test for every fault known of other implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from editable import Edit
from editable.adapters import MELO
from editable.blocks import Blocks
from editable.edit import Patch
from editable.errors import InputError
from editable.memory.radius import Codebook
from editable.scopes import SentenceScope
from tests.conftest import Attach
from tests.contract.harness import ByHand, edits_of, named, only
from tests.families import LONGEST, Loaded
from tests.words import Words

LLAMA = named("llama-gqa")


def patch(edit_id: str, key: list[float], answer: list[int], radius: float = 1.0, up: float = 1.0) -> Patch:
    """As it would have been learned: a key of two features, a block of rank 1 at a layer of two to one."""
    tensors = {
        "keys": torch.tensor([key]),
        "answer": torch.tensor(answer),
        "down.layer": torch.tensor([[1.0, 0.0]]),
        "up.layer": torch.tensor([[up]]),
    }
    return Patch(edit_id, tensors, {"radius": radius, "scaling": {"layer": 1.0}, "block": edit_id})


def owner(state: Blocks, query: list[float]) -> str | None:
    """The edit that a query falls under."""
    row, share = state.routes.book.codebook.find(torch.tensor([query]))
    slot = int(state.routes.book.slots.view[int(row)])
    return state.routes.edit_id(slot) if float(share) <= 1 else None


def block(state: Blocks, edit_id: str) -> float:
    """What tells an edit's block from others: its B."""
    slot = state.routes.slot(edit_id)
    assert slot is not None
    return float(state.stacks["layer"].up.at(state.block.view[slot][None]))


# --------------------------------------------------------------------------------- faults of other implementations


def test_labels_are_compared_token_by_token() -> None:
    """[5, 6] and [4, 7] have one sum; taken for one answer, the second edit would join the first one's cluster."""
    melo = MELO()
    state = melo.insert([patch("a", [0.0, 0.0], [5, 6]), patch("b", [0.5, 0.0], [4, 7], up=2.0)], melo.empty())
    assert melo.conflicts("b", state) == ((), ("a",))
    assert owner(state, [0.0, 0.0]) == "a" and owner(state, [0.5, 0.0]) == "b"
    assert (block(state, "a"), block(state, "b")) == (1.0, 2.0)


def test_the_same_prompt_edited_again_is_served_by_the_newer_block() -> None:
    """A split at distance 0 would leave both unreachable."""
    melo = MELO()
    state = melo.insert([patch("a", [0.0, 0.0], [5]), patch("b", [0.0, 0.0], [6])], melo.empty())
    assert owner(state, [0.0, 0.0]) == "b" and melo.conflicts("b", state) == (("a",), ())
    assert owner(melo.forget(frozenset({"b"}), state), [0.0, 0.0]) == "a"


def test_a_point_that_a_split_cluster_loses_has_a_cluster_of_its_own() -> None:
    """MELO forgets points outside the narrowed radius: their edits would be lost, and nobody told."""
    melo = MELO()
    points = [patch("a", [0.0, 0.0], [5]), patch("far", [1.5, 0.0], [5], up=3.0), patch("b", [0.4, 0.0], [6])]
    joined = melo.insert(points[:2], melo.empty())
    assert owner(joined, [1.5, 0.0]) is not None
    state = melo.insert(points, melo.empty())
    assert float(state.routes.book.codebook.radii[0]) < 0.2, "the cluster of a and far was split"
    assert owner(state, [1.5, 0.0]) == "far" and block(state, "far") == 3.0
    assert owner(state, [0.4, 0.0]) == "b" and owner(state, [0.0, 0.0]) == "a"


def test_capacity_grows() -> None:
    """Blocks times edits a block is no limit."""
    melo = MELO()
    patches = [patch(str(i), [10.0 * i, 0.0], [i], up=float(i)) for i in range(300)]
    state = melo.insert(patches, melo.empty())
    assert len(state) == 300
    assert all(owner(state, [10.0 * i, 0.0]) == str(i) and block(state, str(i)) == i for i in range(0, 300, 37))


@LLAMA
def test_two_models_do_not_share_their_routing(loaded: Loaded, attach: Attach) -> None:
    """A table in a module global would have the second model's edits route the first one's rows."""
    other = loaded.family.load()
    first, second = attach(loaded, MELO()), attach(other, MELO())
    first.edit(edits_of(loaded, [0]))
    second.edit([Edit(other.edited[0], other.targets[1]), *edits_of(other, [2])])
    assert first.ask(loaded.edited[0]) == loaded.targets[0] and second.ask(other.edited[0]) == other.targets[1]
    untouched = loaded.family.load()
    assert torch.equal(loaded.logits(loaded.edited[2:3]), untouched.logits(loaded.edited[2:3]))


@named("llama-gqa", "t5", "bart")
def test_beams_and_returned_sequences_multiply_rows(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, MELO())
    em.edit(edits_of(loaded, [0, 1]))
    rows = [loaded.edited[0], loaded.unrelated[0], loaded.edited[1]]
    found = loaded.generate(rows, num_beams=4, num_return_sequences=2)
    assert len(found) == 6
    assert loaded.is_answer(found[0], 0) and loaded.is_answer(found[4], 1)
    assert found[2:4] == loaded.family.load().generate(rows, num_beams=4, num_return_sequences=2)[2:4]


@LLAMA
def test_rows_are_decided_at_prefill_alone(loaded: Loaded, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided anew from each new token, a row would change its block in the middle of an answer."""
    em = attach(loaded, MELO())
    em.edit(edits_of(loaded, [0, 2]))
    looked: list[int] = []
    find = Codebook.find

    def counted(book: Codebook, queries: Tensor, space: str | None = None) -> tuple[Tensor, Tensor]:
        looked.append(len(queries))
        return find(book, queries, space)

    monkeypatch.setattr(Codebook, "find", counted)
    said = ByHand(loaded, [loaded.edited[0], loaded.unrelated[0], loaded.edited[2]]).step(LONGEST - 1).said
    assert looked == [3]
    assert loaded.is_answer(said[0], 0) and loaded.is_answer(said[2], 2)


@LLAMA
def test_routing_is_saved_with_the_blocks(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """Saved without its clusters, a block could never be found again."""
    em = attach(loaded, MELO(), log=tmp_path / "log.db")
    em.edit(edits_of(loaded, [0, 1]))
    now = loaded.logits([*loaded.edited, *loaded.unrelated])
    em.export(tmp_path / "pack")
    em.close()
    for options in ({"log": tmp_path / "log.db"}, {}):
        em = attach(loaded, MELO(), **options)
        if not options:
            em.load(tmp_path / "pack")
        assert torch.equal(loaded.logits([*loaded.edited, *loaded.unrelated]), now)
        em.close()


# -------------------------------------------------------------------------------------------------------- blocks


@only("causal")
def test_a_batch_meets_many_blocks_at_once(loaded: Loaded, attach: Attach) -> None:
    base = loaded.generate(loaded.unrelated)
    em = attach(loaded, MELO())
    em.edit(edits_of(loaded, range(6)))
    found = loaded.generate([*loaded.edited, *loaded.unrelated])
    assert all(loaded.is_answer(found[i], i) for i in range(6)) and found[6:] == base


@LLAMA
def test_each_edit_has_a_block_of_its_own_and_leaves_alone(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, MELO())
    receipts = em.edit(edits_of(loaded))
    others = loaded.logits(loaded.edited[1:4])
    assert MELO().unit(receipts[0].id, em.state("melo")) == {receipts[0].id}
    em.rollback(receipts[0].id)
    assert torch.equal(loaded.logits(loaded.edited[1:4]), others)
    assert torch.equal(loaded.logits(loaded.edited[:1]), loaded.family.load().logits(loaded.edited[:1]))


@LLAMA
def test_edits_that_share_a_block_leave_it_together(loaded: Loaded, attach: Attach) -> None:
    """The published form: one rolled back, the rest of its block is learned again."""
    melo = MELO(together=2, rank=4)
    em = attach(loaded, melo)
    receipts = em.edit(edits_of(loaded, range(3)))
    ids = [receipt.id for receipt in receipts]
    state = em.state("melo")
    assert [melo.unit(one, state) for one in ids] == [{ids[0], ids[1]}, {ids[0], ids[1]}, {ids[2]}]
    assert len(state.stacks["model.layers.2.mlp.down_proj"].down) == 2
    em.rollback(ids[0])
    assert [em.ask(loaded.edited[i]) for i in (1, 2)] == [loaded.targets[i] for i in (1, 2)]
    assert em.edits[ids[1]].relearned == em.version and em.edits[ids[2]].relearned is None


def test_a_patch_whose_block_is_not_here_is_refused() -> None:
    tensors = {"keys": torch.tensor([[0.0, 0.0]]), "answer": torch.tensor([1])}
    shared = Patch("b", tensors, {"radius": 1.0, "block": "a"})
    with pytest.raises(InputError, match=r"'b' shares the block of edit 'a', which is not here"):
        MELO().insert([shared], MELO().empty())


# ------------------------------------------------------------------------------------------------- configuration


@LLAMA
def test_sentences_are_a_scope_too(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, MELO(scope=SentenceScope(Words())))
    asked, rephrased = "the home of kilo november is in the", "the home where kilo november is"
    sibling = "the home of lima oscar is in the"
    base = loaded.logits([sibling])
    em.edit(Edit(asked, " yankee west", subject="kilo november"))
    assert em.ask(asked) == " yankee west"
    assert torch.equal(loaded.logits([sibling]), base)
    assert not torch.equal(loaded.logits([rephrased]), loaded.family.load().logits([rephrased]))


@named("bert", "vit")
def test_layers_of_a_classifier_are_served_at_every_position(loaded: Loaded, attach: Attach) -> None:
    """The answer is read from the first position, left of the key token."""
    targets = ("*.1.intermediate.dense", "*.1.output.dense") if loaded.family.name == "bert" else ("*layers.2.mlp.*",)
    em = attach(loaded, MELO(targets=targets, steps=400))
    em.edit(edits_of(loaded, [0, 1]))
    answers = loaded.answers([*loaded.edited[:2], *loaded.unrelated])
    assert answers[:2].argmax(-1).tolist() == list(loaded.targets[:2])
    untouched = loaded.family.load().answers([*loaded.edited[:2], *loaded.unrelated])
    assert torch.equal(answers[2:], untouched[2:])


def test_a_radius_beside_a_scope_is_refused() -> None:
    with pytest.raises(InputError, match=r"radius=3.0 beside scope=SentenceScope.*give it to BallScope"):
        MELO(scope=SentenceScope(Words()), radius=3.0)
    with pytest.raises(InputError, match="together=0, expected at least 1"):
        MELO(together=0)
