"""GRACE: what it writes where, on states and calls made by hand; then its published faults, one test each."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from editable import Edit, EditableModel
from editable.adapters import GRACE
from editable.edit import Patch
from editable.editor import Call, Decision, Editor
from editable.entries import Entries
from editable.errors import InputError, SiteError
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.memory.log import Log
from editable.memory.radius import Codebook
from editable.own_words import nudged, shuffled_tiles
from editable.site import Site, classifier_head
from editable.snapshot import Snapshot
from tests.conftest import Attach
from tests.families import EOS, FAMILIES, Loaded

EDITOR = GRACE()

# Two edits by hand. Features are two wide; the values are easy to see.
KEY_A, KEY_B = (1.0, 2.0), (-3.0, 4.0)
ANSWER_A, ANSWER_B = (5, 6, 2), (7, 2)
VALUES_A, VALUES_B = [(10.0, 11.0), (20.0, 21.0), (30.0, 31.0)], [(40.0, 41.0), (50.0, 51.0)]
PLAIN = (0.25, -0.25)  # what every other position holds; far from both keys
V0, V1, V2 = VALUES_A
W0, W1 = VALUES_B

Vector = tuple[float, float]


def patch(
    edit_id: str,
    keys: Sequence[Vector],
    values: Sequence[Vector],
    answer: Sequence[int],
    **meta: Any,
) -> Patch:
    tensors = {
        "keys": torch.tensor(keys),
        "values": torch.tensor(values),
        "answer": torch.tensor(list(answer)),
    }
    return Patch(edit_id, tensors, {"radius": 0.5, **meta})


A = patch("a", [KEY_A], VALUES_A, ANSWER_A)
B = patch("b", [KEY_B], VALUES_B, ANSWER_B)


def state_of(*patches: Patch) -> Entries:
    state = EDITOR.empty()
    for one in patches:
        state = EDITOR.insert([one], state)
    return state


STATE = state_of(A, B)


def rows_of(*rows: Sequence[Vector | None]) -> Tensor:
    """(batch, positions, features); None stands for a plain position."""
    return torch.tensor([[PLAIN if vector is None else vector for vector in row] for row in rows])


def prefill(tokens: Sequence[Sequence[int]], left: Sequence[int] = (), right: Sequence[int] = ()) -> Call:
    """A forward over whole prompts, with so many padding columns on either side of each row."""
    batch, positions = len(tokens), len(tokens[0])
    before, after = torch.tensor(left or [0] * batch), torch.tensor(right or [0] * batch)
    real = torch.arange(positions).expand(batch, -1)
    last = positions - 1 - after
    ordinal = torch.minimum(real, last[:, None]) - before[:, None]
    pads = before + after if left or right else None
    return Call(Snapshot(), torch.tensor(tokens), ordinal, last, pads=pads)


def following(call: Call, tokens: Sequence[Sequence[int]], past: int) -> Call:
    """A decode step that continues `call`, whose rows hold `past` real tokens each."""
    ids = torch.tensor(tokens)
    ordinal = past + torch.arange(ids.shape[1]).expand(ids.shape)
    return Call(Snapshot(), ids, ordinal, None, dict(call.decisions), phase="decode")


def serve(call: Call, rows: Tensor, state: Entries = STATE) -> Tensor:
    """Both roles at one site, as the runtime calls them."""
    call.editor = "grace"
    for call.role in ("key", "value"):
        rows = EDITOR.apply(call, rows, state)
    return rows


def written(rows: Tensor) -> list[list[Vector | None]]:
    """What `rows_of` takes."""
    pairs = [[(float(x), float(y)) for x, y in row] for row in rows]
    return [[None if pair == PLAIN else pair for pair in row] for row in pairs]


# ------------------------------------------------------------------------------------------- one value, one place


def test_the_first_value_is_written_at_the_key_token() -> None:
    out = serve(prefill([[1, 3, 4]]), rows_of([None, None, KEY_A]))
    assert written(out) == [[None, None, V0]]


def test_only_the_key_token_is_looked_up() -> None:
    rows = rows_of([KEY_A, KEY_B, None])
    assert torch.equal(serve(prefill([[1, 3, 4]]), rows), rows)


def test_a_row_outside_every_ball_is_left_alone() -> None:
    near = (KEY_A[0] + 0.51, KEY_A[1])
    rows = rows_of([None, near])
    assert torch.equal(serve(prefill([[1, 3]]), rows), rows)


def test_a_row_inside_the_ball_gets_the_value() -> None:
    near = (KEY_A[0] + 0.49, KEY_A[1])
    assert written(serve(prefill([[1, 3]]), rows_of([None, near]))) == [[None, V0]]


def test_hits_and_misses_share_a_batch() -> None:
    rows = rows_of([None, KEY_A], [None, (9.0, 9.0)], [None, KEY_B], [KEY_A, None])
    call = prefill([[1, 3]] * 4)
    out = serve(call, rows)
    assert written(out) == [[None, V0], [None, (9.0, 9.0)], [None, W0], [KEY_A, None]]
    assert torch.equal(out[1], rows[1])
    assert torch.equal(out[3], rows[3])
    decision = call.decision
    assert decision is not None
    assert decision["hit"].tolist() == [True, False, True, False]


def test_unhit_rows_keep_their_bits() -> None:
    """Negative zero and NaN included."""
    rows = rows_of([None, KEY_A], [(-0.0, math.nan), (-0.0, 7e-45)])
    out = serve(prefill([[1, 3]] * 2), rows)
    assert torch.equal(out[1].view(torch.int32), rows[1].view(torch.int32))


def test_a_nan_query_never_hits() -> None:
    out = serve(prefill([[1, 3]]), rows_of([None, (math.nan, 2.0)]))
    assert not torch.equal(out[0, 1], torch.tensor(V0))
    assert out[0, 1].isnan().tolist() == [True, False]


def test_nobodys_tensor_is_written_into() -> None:
    rows = rows_of([None, KEY_A])
    before, version = rows.clone(), rows._version
    held = [STATE.values.view.clone(), STATE.routes.book.codebook.radii.clone()]
    out = serve(prefill([[1, 3]]), rows)
    assert out.data_ptr() != rows.data_ptr()
    assert (rows._version, torch.equal(rows, before)) == (version, True)
    for now, then in zip([STATE.values.view, STATE.routes.book.codebook.radii], held, strict=True):
        assert torch.equal(now, then)


def test_half_precision_rows_stay_half_precision() -> None:
    rows = rows_of([None, KEY_A], [None, None]).bfloat16()
    out = serve(prefill([[1, 3]] * 2), rows)
    assert out.dtype == torch.bfloat16
    assert written(out.float()) == [[None, V0], [None, None]]


def test_a_value_is_rounded_only_when_it_is_written() -> None:
    state = state_of(patch("a", [KEY_A], [(1 / 3, 1000.1)], (2,)))
    assert state.values.view.dtype == torch.float32
    out = serve(prefill([[1]]), rows_of([KEY_A]).bfloat16(), state)
    assert torch.equal(out[0, 0], torch.tensor((1 / 3, 1000.1), dtype=torch.bfloat16))


# ------------------------------------------------------------------------------------------------- padding (G7)


def test_g7_right_padding_reads_the_last_real_token() -> None:
    """The pad column must not be what is looked up."""
    tokens = [[1, 3, 4, 0, 0], [1, 3, 4, 8, 9], [1, 0, 0, 0, 0]]
    rows = rows_of([None, None, KEY_A, KEY_B, KEY_B], [None] * 5, [KEY_B, None, None, None, KEY_A])
    out = written(serve(prefill(tokens, right=[2, 0, 4]), rows))
    assert [out[0][:3], out[1], out[2][:1]] == [[None, None, V0], [None] * 5, [W0]]


def test_the_value_stays_due_over_padding_on_the_right() -> None:
    """There `generate` reads the next token, whatever the padding side."""
    rows = rows_of([None, KEY_A, KEY_B, None])
    assert written(serve(prefill([[1, 3, 0, 0]], right=[2]), rows)) == [[None, V0, V0, V0]]


def test_g7_left_padding_reads_the_last_real_token() -> None:
    tokens = [[0, 0, 1, 3, 4], [1, 3, 4, 8, 9], [0, 0, 0, 0, 1]]
    rows = rows_of([KEY_B, None, None, None, KEY_A], [None] * 5, [KEY_A, None, None, None, KEY_B])
    out = serve(prefill(tokens, left=[2, 0, 4]), rows)
    assert written(out) == [[KEY_B, None, None, None, V0], [None] * 5, [KEY_A, None, None, None, W0]]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_row_does_not_depend_on_how_far_it_is_padded(left: int) -> None:
    tokens, vectors = [1, 3, 5, 6], [None, KEY_A, None, None]
    call = prefill([[0] * left + tokens], left=[left])
    out = serve(call, rows_of([None] * left + vectors))
    assert written(out[:, left:]) == [[None, V0, V1, V2]]
    call = prefill([tokens + [0] * left], right=[left])
    out = serve(call, rows_of(vectors + [None] * left))
    assert written(out[:, :4]) == [[None, V0, V1, V2]]


def test_padding_equal_to_an_answer_token_is_not_heard() -> None:
    """The pad token is the answer's first: a right-padded row must not seem to have begun it."""
    state = state_of(patch("a", [KEY_A], VALUES_A, (0, 0, 2)))
    call = prefill([[1, 3, 0, 0]], right=[2])
    out = serve(call, rows_of([None, KEY_A, None, None]), state)
    assert written(out[:, :2]) == [[None, V0]]
    step = following(call, [[9]], 2)  # nor is it taken for the token that came in its place
    assert written(serve(step, rows_of([None]), state)) == [[None]]


# ------------------------------------------------------------------------------------------ one value per token


def decoded(*steps: Sequence[int], key: Vector = KEY_A, state: Entries = STATE) -> list[list[Vector | None]]:
    """Prefill with a key that is hit, then each step's tokens: what is written in each step."""
    call = prefill([[1, 3, 4]])
    serve(call, rows_of([None, None, key]), state)
    outs, past = [], 3
    for step in steps:
        call = following(call, [step], past)
        outs.append(written(serve(call, rows_of([None] * len(step)), state))[0])
        past += len(step)
    return outs


def test_each_value_is_written_where_its_token_is_due() -> None:
    assert decoded([5], [6], [2], [8]) == [[V1], [V2], [None], [None]]


def test_a_wrong_token_in_between_ends_it() -> None:
    assert decoded([7], [6], [2]) == [[None], [None], [None]]
    assert decoded([5], [7], [6]) == [[V1], [None], [None]]


def test_the_right_token_at_the_wrong_offset_is_nothing() -> None:
    assert decoded([6], [5]) == [[None], [None]]
    assert decoded([2]) == [[None]]


def test_several_tokens_in_one_decode_call() -> None:
    """Assisted decoding checks a draft in one forward."""
    assert decoded([5, 6, 2]) == [[V1, V2, None]]
    assert decoded([5, 9, 6]) == [[V1, None, None]]
    assert decoded([5], [6, 2]) == [[V1], [V2, None]]
    assert decoded([9, 5, 6]) == [[None, None, None]]


def test_a_rejected_draft_is_replaced_by_what_is_kept() -> None:
    """The draft's second token was wrong; its place is decoded anew and the answer goes on."""
    call = prefill([[1, 3, 4]])
    serve(call, rows_of([None, None, KEY_A]))
    draft = following(call, [[5, 9, 9]], 3)
    assert written(serve(draft, rows_of([None] * 3))) == [[V1, None, None]]
    again = following(draft, [[6, 2]], 4)  # two tokens were cropped from the cache
    assert written(serve(again, rows_of([None, None]))) == [[V2, None]]


def test_the_other_edits_longer_answer_does_not_lengthen_this_one() -> None:
    assert decoded([7], [2], [6], key=KEY_B) == [[W1], [None], [None]]


def test_rows_decode_each_by_its_own_decision() -> None:
    call = prefill([[1, 3]] * 3)
    serve(call, rows_of([None, KEY_A], [None, KEY_B], [None, None]))
    step = following(call, [[5], [7], [5]], 2)
    assert written(serve(step, rows_of([None], [None], [None]))) == [[V1], [W1], [None]]
    step = following(step, [[6], [2], [6]], 3)
    assert written(serve(step, rows_of([None], [None], [None]))) == [[V2], [None], [None]]


def test_reordered_decisions_follow_their_rows() -> None:
    """What a beam search does to the cache, and so to what it carries."""
    call = prefill([[1, 3]] * 2)
    serve(call, rows_of([None, KEY_A], [None, KEY_B]))
    decision = call.decision
    assert decision is not None
    order = torch.tensor([1, 1, 0])
    call.decisions["grace"] = {name: tensor[order] for name, tensor in decision.items()}
    step = following(call, [[7], [5], [5]], 2)
    assert written(serve(step, rows_of([None], [None], [None]))) == [[W1], [None], [V1]]


def test_left_padded_rows_decode_by_their_own_ordinals() -> None:
    call = prefill([[0, 0, 1, 3], [8, 9, 1, 3]], left=[2, 0])
    serve(call, rows_of([None, None, None, KEY_A], [None, None, None, KEY_B]))
    step = Call(Snapshot(), torch.tensor([[5], [7]]), torch.tensor([[2], [4]]), None, dict(call.decisions))
    assert written(serve(step, rows_of([None], [None]))) == [[V1], [W1]]


def test_a_decode_step_never_looks_up_again() -> None:
    """G6: the new token's activation is the other edit's key, and decides nothing."""
    call = prefill([[1, 3, 4]])
    serve(call, rows_of([None, None, KEY_A]))
    step = following(call, [[5]], 3)
    assert written(serve(step, rows_of([KEY_B]))) == [[V1]]
    missed = prefill([[1, 3, 4]])
    serve(missed, rows_of([None, None, None]))
    step = following(missed, [[5]], 3)
    assert written(serve(step, rows_of([KEY_A]))) == [[KEY_A]]


def test_embeddings_in_place_of_tokens() -> None:
    """Without tokens nothing can be heard: each value is due at its offset."""
    call = replace(prefill([[1, 3, 4]]), tokens=None)
    assert written(serve(call, rows_of([None, None, KEY_A]))) == [[None, None, V0]]
    step = replace(following(call, [[0]], 3), tokens=None)
    assert written(serve(step, rows_of([None]))) == [[V1]]


# --------------------------------------------------------------------- prompt and answer in one forward (lag)


def at_once(*answer: int, key: Vector = KEY_A, state: Entries = STATE) -> list[Vector | None]:
    """A bare forward over a prompt of two tokens whose last hits, and what follows it."""
    rows = rows_of([None, key] + [None] * len(answer))
    return written(serve(prefill([[1, 3, *answer]]), rows, state))[0]


def test_the_key_token_is_found_before_the_first_answer_tokens() -> None:
    assert at_once(5) == [None, V0, V1]
    assert at_once(5, 6) == [None, V0, V1, V2]
    assert at_once(5, 6, 2) == [None, V0, V1, V2, None]
    assert at_once(7, key=KEY_B) == [None, W0, W1]


def test_a_text_that_goes_on_otherwise_is_another_text() -> None:
    assert at_once(5, 9) == [None, KEY_A, None, None]
    assert at_once(9) == [None, KEY_A, None]
    assert at_once(5, 6, 2, 8) == [None, KEY_A, None, None, None, None]
    assert at_once(7) == [None, KEY_A, None]  # B's answer after A's key


def test_the_newest_place_decides() -> None:
    """Answer tokens inside the prompt do not count where the last token itself hits."""
    rows = rows_of([KEY_A, KEY_B])
    assert written(serve(prefill([[1, 5]]), rows)) == [[KEY_A, W0]]


def test_what_was_found_with_a_lag_goes_on_in_decode() -> None:
    call = prefill([[1, 3, 5]])
    assert written(serve(call, rows_of([None, KEY_A, None]))) == [[None, V0, V1]]
    step = following(call, [[6]], 3)
    assert written(serve(step, rows_of([None]))) == [[V2]]
    assert written(serve(following(step, [[2]], 4), rows_of([None]))) == [[None]]


def test_rows_of_one_batch_have_lags_of_their_own() -> None:
    tokens = [[1, 3, 4], [1, 3, 5], [3, 5, 6], [1, 3, 7]]
    rows = rows_of([None, None, KEY_A], [None, KEY_A, None], [KEY_A, None, None], [None, KEY_B, None])
    out = serve(prefill(tokens), rows)
    assert written(out) == [[None, None, V0], [None, V0, V1], [V0, V1, V2], [None, W0, W1]]


def test_lags_under_padding() -> None:
    tokens = [[0, 1, 3, 5], [1, 3, 5, 6]]
    out = serve(prefill(tokens, left=[1, 0]), rows_of([None, None, KEY_A, None], [None, KEY_A, None, None]))
    assert written(out) == [[None, None, V0, V1], [None, V0, V1, V2]]
    tokens = [[1, 3, 5, 0], [1, 3, 5, 6]]
    out = serve(prefill(tokens, right=[1, 0]), rows_of([None, KEY_A, None, None], [None, KEY_A, None, None]))
    assert written(out[:1, :3]) + written(out[1:]) == [[None, V0, V1], [None, V0, V1, V2]]


def test_left_padding_that_hits_is_no_key_token() -> None:
    """The answer stands at the row's beginning: before it is only padding."""
    rows = rows_of([KEY_A, None])
    assert torch.equal(serve(prefill([[0, 5]], left=[1]), rows), rows)


def test_teacher_forcing_with_labels_writes_at_the_prompts_end() -> None:
    """The runtime puts the key before the first label; what is forced after it is heard."""
    for forced, expected in (([5, 6], [V0, V1, V2]), ([5, 9], [V0, V1, None]), ([9, 6], [V0, None, None])):
        call = replace(prefill([[1, 3, *forced]]), key=torch.tensor([1]))
        out = serve(call, rows_of([None, KEY_A, None, None]))
        assert written(out) == [[None, *expected]]


# --------------------------------------------------------------------------------- chunks, turns, other shapes


def test_an_early_chunk_decides_nothing() -> None:
    call = Call(Snapshot(), torch.tensor([[1, 3]]), torch.tensor([[0, 1]]), None)
    rows = rows_of([KEY_A, KEY_A])
    assert serve(call, rows) is rows
    assert call.decisions == {}


def test_a_continued_conversation_decides_anew() -> None:
    """A second turn on the same cache: its own key token hits B; A's decision is over."""
    call = prefill([[1, 3]])
    serve(call, rows_of([None, KEY_A]))
    turn = Call(Snapshot(), torch.tensor([[8, 9]]), torch.tensor([[2, 3]]), torch.tensor([1]), call.decisions)
    assert written(serve(turn, rows_of([None, KEY_B]))) == [[None, W0]]
    step = following(turn, [[7]], 4)
    assert written(serve(step, rows_of([None]))) == [[W1]]


def test_classifier_rows() -> None:
    """One vector a row, as a head's input reads: no tokens, no ordinals."""
    rows = rows_of([KEY_A], [None], [KEY_B])
    out = serve(Call(Snapshot()), rows)
    assert written(out) == [[V0], [None], [W0]]


def test_classifier_rows_beside_tokens() -> None:
    """A text classifier's head sees one row where the forward has five tokens."""
    call = prefill([[1, 3, 4, 5, 6]] * 2)
    assert written(serve(call, rows_of([KEY_A], [None]))) == [[V0], [None]]


def test_feature_maps_are_read_by_their_mean_and_written_everywhere() -> None:
    around = [(KEY_A[0] - 5, KEY_A[1]), (KEY_A[0] + 5, KEY_A[1] - 1), (KEY_A[0], KEY_A[1] + 1)]
    out = serve(Call(Snapshot()), rows_of(around, [None] * 3))
    assert written(out) == [[V0, V0, V0], [None] * 3]


# ---------------------------------------------------------------------------------------------- nothing to do


def test_an_empty_state_returns_the_same_object() -> None:
    rows = rows_of([None, KEY_A])
    assert serve(prefill([[1, 3]]), rows, EDITOR.empty()) is rows


def test_a_state_whose_edits_are_all_forgotten_changes_nothing() -> None:
    rows = rows_of([None, KEY_A])
    state = EDITOR.forget(frozenset({"a", "b"}), STATE)
    assert len(state) == 0
    assert torch.equal(serve(prefill([[1, 3]]), rows, state), rows)


def test_the_value_site_without_a_decision_returns_the_same_object() -> None:
    call, rows = prefill([[1, 3]]), rows_of([None, KEY_A])
    call.editor, call.role = "grace", "value"
    assert EDITOR.apply(call, rows, STATE) is rows


def test_the_key_site_returns_the_same_object() -> None:
    call, rows = prefill([[1, 3]]), rows_of([None, KEY_A])
    call.editor, call.role = "grace", "key"
    assert EDITOR.apply(call, rows, STATE) is rows


# --------------------------------------------------------------------------------- insert, forget, conflicts


def contents(state: Entries) -> list[Tensor]:
    book = state.routes.book.codebook
    routes = state.routes
    return [book.keys.view, book.radii, state.values.view, state.spans.view, routes.answers.view, routes.spans.view]


def answers(state: Entries, *keys: Vector) -> list[Vector | None]:
    """The value each key gets when it is a row by itself."""
    out = serve(Call(Snapshot()), rows_of(*[[key] for key in keys]), state)
    return [None if row[0] == key else row[0] for row, key in zip(written(out), keys, strict=True)]


def test_grace_is_an_editor() -> None:
    assert isinstance(EDITOR, Editor)
    with pytest.raises(AttributeError):
        EDITOR.steps = 3  # type: ignore[misc]


def test_what_a_state_holds() -> None:
    assert [len(EDITOR.empty()), len(state_of(A)), len(STATE)] == [0, 1, 2]
    assert STATE.spans.view.tolist() == STATE.routes.spans.view.tolist() == [[0, 3], [3, 2]]
    assert STATE.routes.answers.view.tolist() == [5, 6, 2, 7, 2]
    assert STATE.values.view.tolist() == [list(v) for v in [*VALUES_A, *VALUES_B]]
    assert STATE.routes.longest == 3


def test_every_key_of_an_edit_leads_to_its_values() -> None:
    """Prompt and rephrases: further keys of the same edit."""
    state = state_of(patch("a", [KEY_A, (8.0, 8.0), (-8.0, -8.0)], VALUES_A, ANSWER_A), B)
    assert len(state) == 2
    assert answers(state, KEY_A, (8.0, 8.0), (-8.0, -8.0), KEY_B) == [V0, V0, V0, W0]
    state = EDITOR.forget(frozenset({"a"}), state)
    assert answers(state, KEY_A, (8.0, 8.0), (-8.0, -8.0), KEY_B) == [None, None, None, W0]


def test_inserting_leaves_the_older_state_alone() -> None:
    one = state_of(A)
    EDITOR.insert([B], one)
    assert len(one) == 1
    assert answers(one, KEY_A, KEY_B) == [V0, None]


def test_the_same_patches_in_the_same_order_give_the_same_state() -> None:
    again = state_of(A, B)
    for now, then in zip(contents(again), contents(STATE), strict=True):
        assert torch.equal(now, then)


def test_forgetting_and_inserting_again() -> None:
    state = EDITOR.insert([A], EDITOR.forget(frozenset({"a"}), STATE))
    assert len(state) == 2
    assert answers(state, KEY_A, KEY_B) == [V0, W0]


def test_forgetting_a_stranger_forgets_nothing() -> None:
    state = EDITOR.forget(frozenset({"stranger"}), STATE)
    assert (len(state), answers(state, KEY_A, KEY_B)) == (2, [V0, W0])


def test_conflicts_tell_superseded_from_parted() -> None:
    close = (KEY_A[0] + 0.4, KEY_A[1])
    state = state_of(A, patch("c", [KEY_A], VALUES_B, ANSWER_B), patch("d", [close], [V2], (9, 2)))
    assert EDITOR.conflicts("a", state) == ((), ())
    assert EDITOR.conflicts("c", state) == (("a",), ())
    assert EDITOR.conflicts("d", state) == ((), ("c",))
    assert EDITOR.conflicts("stranger", state) == ((), ())


def test_a_recorded_placement_survives_json() -> None:
    """The log keeps the distance as a hexadecimal float: bit for bit."""
    third = 1 / 3
    one = patch("b", [(1.2, 2.0)], VALUES_A, ANSWER_A, placed=[["expand", 0, third.hex(), []]])
    book = state_of(A, one).routes.book.codebook
    assert (book.placed[1].kind, book.placed[1].nearest, book.placed[1].distance) == ("expand", 0, third)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["keys", "values"])
def test_a_patch_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    tensors = {"keys": torch.ones(1, 2), "values": torch.ones(3, 2), "answer": torch.tensor([5, 6, 2])}
    tensors[name][0, 1] = bad
    with pytest.raises(InputError, match=rf"Patch of edit 'a7' has NaN or infinite values in \['{name}'\]"):
        Patch("a7", tensors)


# -------------------------------------------------------------------------------------------------------- sites

LAST_BLOCK = {
    "gpt2": "transformer.h.2",
    "llama-gqa": "model.layers.2",
    "qwen3-qk-norm": "model.layers.2",
    "gemma3-sliding": "model.layers.3",
    "t5": "decoder.block.1",
    "bart": "model.decoder.layers.1",
}
DOWN = {
    "gpt2": "mlp.c_proj",
    "llama-gqa": "mlp.down_proj",
    "qwen3-qk-norm": "mlp.down_proj",
    "gemma3-sliding": "mlp.down_proj",
    "t5": "layer.2.DenseReluDense.wo",
    "bart": "fc2",
}
HEAD = {"bert": "classifier", "vit": "classifier", "resnet": "classifier.1", "torchvision-resnet18": "fc"}


def load(name: str, dtype: torch.dtype = torch.float32) -> Loaded:
    family = {family.name: family for family in FAMILIES}[name]
    if not family.available:
        pytest.skip(f"{family.needs} is not installed")
    return family.load(dtype)


@pytest.mark.parametrize("name", LAST_BLOCK)
def test_sites_of_models_that_write_text(name: str) -> None:
    model = load(name).model
    block = Site(LAST_BLOCK[name])
    assert GRACE().sites(model) == {"key": block, "value": block}
    last = int(LAST_BLOCK[name].rpartition(".")[2])
    path = f"{LAST_BLOCK[name].rpartition('.')[0]}.{max(last - 1, 0)}.{DOWN[name]}"
    assert GRACE(values="single").sites(model) == {"key": Site(path, "input"), "value": Site(path, "output")}


@pytest.mark.parametrize("name", HEAD)
def test_sites_of_classifiers(name: str) -> None:
    model, head = load(name).model, Site(HEAD[name], "input")
    assert GRACE().sites(model) == GRACE(values="single").sites(model) == {"key": head, "value": head}


@pytest.mark.parametrize(("layers", "chosen"), [(1, 0), (2, 0), (11, 9), (30, 27)])
def test_the_published_layer_is_nine_tenths_deep(layers: int, chosen: int) -> None:
    config = hf.LlamaConfig(
        num_hidden_layers=layers, hidden_size=8, intermediate_size=12, num_attention_heads=1, vocab_size=5
    )
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
    sites = GRACE(values="single").sites(model)
    assert sites["value"] == Site(f"model.layers.{chosen}.mlp.down_proj")


def test_the_users_site() -> None:
    model = load("llama-gqa").model
    chosen = GRACE(values="single", site="*.layers.1.mlp.down_proj").sites(model)
    assert chosen["key"] == Site("model.layers.1.mlp.down_proj", "input")
    with pytest.raises(SiteError, match=r"does not exist in LlamaForCausalLM.*the nearest are: .*down_proj"):
        GRACE(values="single", site="model.layers.1.mlp.down_prj").sites(model)


# -------------------------------------------------------------------------- end to end, on a tiny random model

LM = "llama-gqa"
# The published form on a random model: later answer tokens would have to come through attention that leads nowhere,
# so it is given answers of one token.
SINGLE = GRACE(values="single", site="*.1.mlp.[dc]*_proj")


@pytest.fixture
def loaded() -> Loaded:
    return load(LM)


def edit_of(loaded: Loaded, index: int, target: str | None = None, **more: Any) -> Edit:
    return Edit(loaded.edited[index], target or str(loaded.targets[index]), **more)


def one_token(loaded: Loaded, index: int, target: str) -> Edit:
    """An edit whose answer is one token, without an end."""
    ids = torch.tensor([loaded.tokenizer(loaded.edited[index]).input_ids])
    (token,) = loaded.tokenizer(target, add_special_tokens=False).input_ids
    labels = torch.full_like(ids, -100)
    return Edit(
        {"input_ids": torch.cat([ids, ids[:, :1]], 1), "labels": torch.cat([labels, ids[:, :1] * 0 + token], 1)}
    )


def first_word(loaded: Loaded, index: int) -> str:
    return str(loaded.tokenizer.decode(loaded.answers([loaded.edited[index]]).argmax(-1)))


def said(loaded: Loaded, prompt: str) -> str:
    """Greedy free generation; the end token is part of it."""
    (tokens,) = loaded.generate([prompt], max_new_tokens=8)
    return str(loaded.tokenizer.decode(tokens))


def state_in(em: EditableModel) -> Entries:
    state: Entries = em._snapshot.states["grace"]
    return state


def book_of(em: EditableModel) -> Codebook:
    book: Codebook = state_in(em).routes.book.codebook
    return book


def patches_in(log: Path) -> dict[str, Patch]:
    """Edit id to the patch that a log holds."""
    with Log(log) as opened:
        return {r.edit_id: Patch(r.edit_id, r.tensors, r.meta["patch"]) for r in opened.records()}


def forced(loaded: Loaded, prompt: str, target: str) -> tuple[Tensor, list[int]]:
    """(answer tokens, vocabulary) logits of one plain forward over prompt and answer, and the answer's tokens."""
    before = loaded.tokenizer(prompt).input_ids
    answer = [*loaded.tokenizer(target, add_special_tokens=False).input_ids, EOS]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([before + answer[:-1]])).logits[0]
    return logits[len(before) - 1 :], answer


def test_g1_the_same_prompt_edited_twice_gives_the_newest_answer(loaded: Loaded, attach: Attach) -> None:
    """G1: a split at distance 0 made both edits unreachable."""
    em = attach(loaded, GRACE())
    prompt = loaded.edited[0]
    first = em.edit(edit_of(loaded, 0, " west"))
    second = em.edit(edit_of(loaded, 0, " yankee"))
    assert second.superseded == (first.id,)
    assert (first.superseded, second.verified.collisions) == ((), ())
    assert forced(loaded, prompt, " yankee")[0].argmax(-1).tolist() == forced(loaded, prompt, " yankee")[1]
    assert said(loaded, prompt) == " yankee</s>"
    assert em.edits[first.id].superseded_by == second.id
    em.rollback(second.id)
    assert said(loaded, prompt) == " west</s>"
    assert em.edits[first.id].state == "live"


def test_g1_in_the_published_form(loaded: Loaded, attach: Attach) -> None:
    """G1, with one value at the down projection."""
    em = attach(loaded, SINGLE)
    first, second = (em.edit(one_token(loaded, 0, target)) for target in (" west", " yankee"))
    assert second.superseded == (first.id,)
    assert first_word(loaded, 0) == " yankee"
    em.rollback(second.id)
    assert first_word(loaded, 0) == " west"


def test_g1_the_middle_of_three_rolled_back(loaded: Loaded, attach: Attach) -> None:
    """G1: the newest goes on answering, and the oldest is superseded by it."""
    em = attach(loaded, GRACE())
    first, second, third = (em.edit(edit_of(loaded, 0, target)) for target in (" west", " yankee", " golf"))
    em.rollback(second.id)
    assert said(loaded, loaded.edited[0]) == " golf</s>"
    assert em.edits[first.id].superseded_by == third.id
    em.rollback(third.id)
    assert said(loaded, loaded.edited[0]) == " west</s>"
    assert em.edits[first.id].state == "live"


def test_g1_duplicates_are_superseded_together(loaded: Loaded, attach: Attach) -> None:
    """G1: the same edit twice, then another answer: the receipt names both."""
    em = attach(loaded, GRACE())
    twice = [em.edit(edit_of(loaded, 0, " west")).id for _ in range(2)]
    newest = em.edit(edit_of(loaded, 0, " yankee"))
    assert said(loaded, loaded.edited[0]) == " yankee</s>"
    assert set(newest.superseded) == set(twice)
    assert [em.edits[i].superseded_by for i in twice] == [newest.id] * 2


@pytest.mark.parametrize("name", [LM, "t5"])
def test_g1_duplicates_learned_in_other_batches_do_not_shadow_the_newest(attach: Attach, name: str) -> None:
    """G1: one prompt's key differs in its last bits from batch to batch; the newest answers in every batch."""
    loaded = load(name)
    em, prompt, others = attach(loaded, GRACE()), loaded.edited[0], loaded.edited[1:4]
    em.edit(Edit(prompt, " west"))
    em.edit([Edit(prompt, " west"), Edit(others[0], " golf"), Edit(others[2], " golf")])
    em.edit([Edit(others[1], " golf"), Edit(prompt, " yankee")])
    wanted = loaded.tokenizer(" yankee", add_special_tokens=False).input_ids[0]
    batches = [[prompt], [prompt, others[0]], [prompt, *loaded.unrelated], loaded.edited + loaded.unrelated]
    for side, batch in itertools.product(loaded.family.sides, batches):
        assert int(loaded.answers(batch, side)[0].argmax()) == wanted, f"{len(batch)} rows, {side}"


def test_g1_within_one_batch(loaded: Loaded, attach: Attach) -> None:
    """G1: a list that edits one prompt twice: the later entry answers."""
    em = attach(loaded, GRACE())
    first, second = em.edit([edit_of(loaded, 0, " west"), edit_of(loaded, 0, " yankee")])
    assert second.superseded == (first.id,)
    assert said(loaded, loaded.edited[0]) == " yankee</s>"


def test_a_prompt_that_goes_on_where_another_answer_begins(loaded: Loaded, attach: Attach) -> None:
    """One edit has P answer "delta echo", another has "P delta" answer "west": each prompt gets its own answer."""
    em = attach(loaded, GRACE())
    longer = f"{loaded.edited[0]} delta"
    em.edit(edit_of(loaded, 0))
    assert em.edit(Edit(longer, " west")).verified.reliability == 1.0
    assert said(loaded, longer) == " west</s>"
    assert said(loaded, loaded.edited[0]) == " delta echo</s>"


def test_namespaces_group_edits_and_part_nothing(loaded: Loaded, attach: Attach) -> None:
    """Every call sees all namespaces, so the newest answers whatever its own is."""
    em = attach(loaded, GRACE())
    first = em.edit(edit_of(loaded, 0, " west", namespace="one"))
    second = em.edit(edit_of(loaded, 0, " yankee", namespace="two"))
    assert second.superseded == (first.id,)
    assert said(loaded, loaded.edited[0]) == " yankee</s>"
    assert [listed.namespace for listed in em.edits] == ["one", "two"]


def apart(loaded: Loaded, attach: Attach, one: int = 0, two: int = 1) -> float:
    """The distance between the keys of two prompts."""
    em = attach(loaded, GRACE())
    em.edit([edit_of(loaded, one), edit_of(loaded, two)])
    keys = book_of(em).keys.view
    em.close()
    return float((keys[0] - keys[1]).norm())


def test_g2_the_same_answer_at_another_length_expands(loaded: Loaded, attach: Attach) -> None:
    """G2: the masked prompt counted in the label, so that a paraphrase of another length split the ball."""
    one, two = loaded.edited[:2]
    assert len(loaded.tokenizer(one).input_ids) != len(loaded.tokenizer(two).input_ids)
    distance = apart(loaded, attach)
    em = attach(loaded, GRACE(radius=0.6 * distance))  # eps < d <= 2 eps
    receipts = [em.edit(Edit(prompt, " west")) for prompt in (one, two)]
    assert [p.kind for p in book_of(em).placed] == ["add", "expand"]
    assert receipts[1].verified.collisions == receipts[1].superseded == ()
    assert [said(loaded, prompt) for prompt in (one, two)] == [" west</s>"] * 2


def test_g3_answers_of_equal_token_sum_are_different_answers(loaded: Loaded, attach: Attach) -> None:
    """G3: labels were compared by the mean of their token ids, and the first answer was lost."""
    targets = (" delta echo", " echo delta")
    ids = [loaded.tokenizer(target, add_special_tokens=False).input_ids for target in targets]
    assert sum(ids[0]) == sum(ids[1])
    assert len(ids[0]) == len(ids[1])
    em = attach(loaded, GRACE(radius=0.6 * apart(loaded, attach)))
    receipts = [em.edit(edit_of(loaded, i, target)) for i, target in enumerate(targets)]
    assert [p.kind for p in book_of(em).placed] == ["add", "split"]
    assert receipts[1].verified.collisions == (receipts[0].id,)
    assert [said(loaded, loaded.edited[i]) for i in (0, 1)] == [f"{target}</s>" for target in targets]


def test_g4_an_edit_on_an_existing_key_works(loaded: Loaded, attach: Attach) -> None:
    """G4: a duplicate, or a second answer at a key, crashed in backward."""
    em = attach(loaded, GRACE())
    first, again = em.edit(edit_of(loaded, 0)), em.edit(edit_of(loaded, 0))
    assert (again.verified.reliability, again.superseded, len(em.edits)) == (1.0, (), 2)
    assert said(loaded, loaded.edited[0]) == f"{loaded.targets[0]}</s>"
    em.rollback(first.id)
    assert said(loaded, loaded.edited[0]) == f"{loaded.targets[0]}</s>"
    em.rollback(again.id)
    assert said(loaded, loaded.edited[0]) == said(load(LM), loaded.edited[0])


def test_g4_in_the_published_form(loaded: Loaded, attach: Attach) -> None:
    """G4, where the value is learned through the model itself."""
    em = attach(loaded, SINGLE)
    first, again = (em.edit(one_token(loaded, 0, " west")) for _ in range(2))
    assert (first.verified.reliability, again.verified.reliability) == (1.0, 1.0)
    em.rollback(first.id)
    assert first_word(loaded, 0) == " west"


@pytest.mark.parametrize("radius", [None, 1e4], ids=["apart", "overlapping"])
def test_g5_rolling_back_any_edit_leaves_exactly_the_others(
    loaded: Loaded, attach: Attach, tmp_path: Path, radius: float | None
) -> None:
    """G5: rolling back the last edit deleted another edit's key; compared with never having had the edit."""
    prompts = [*loaded.edited, *loaded.unrelated]
    whole = attach(loaded, GRACE(radius=radius), log=tmp_path / "edits.db")
    ids = [whole.edit(edit_of(loaded, i), verify=False).id for i in range(4)]
    patches = patches_in(tmp_path / "edits.db")
    for order in (ids, ids[::-1], random.Random(3).sample(ids, 4)):
        state, left = state_in(whole), list(ids)
        for gone in order:
            left.remove(gone)
            state = GRACE(radius=radius).forget(frozenset({gone}), state)
            fresh = GRACE().empty()
            for one in left:
                meta = {k: v for k, v in patches[one].meta.items() if k != "placed"}
                fresh = GRACE().insert([replace(patches[one], meta=meta)], fresh)
            assert len(state) == len(left)
            assert logits_under(whole, state, prompts).equal(logits_under(whole, fresh, prompts))


def logits_under(em: EditableModel, state: Entries, prompts: list[str]) -> Tensor:
    """What the model says while it sees this state."""
    ids = em.tokenizer(prompts, return_tensors="pt", padding=True)
    with em._pin(Snapshot().replace(99, {"grace": state})), torch.no_grad():
        return torch.as_tensor(em.model(**ids).logits)


@pytest.mark.parametrize("seed", range(3))
def test_g5_all_rolled_back_in_any_order_is_the_base(loaded: Loaded, attach: Attach, seed: int) -> None:
    """G5, through the runtime: after each rollback the others answer, in the end the base does."""
    base = loaded.logits(loaded.edited)
    em = attach(loaded, GRACE())
    receipts = em.edit([edit_of(loaded, i) for i in range(5)])
    left = dict(enumerate(receipts))
    for index in random.Random(seed).sample(range(5), 5):
        em.rollback(left.pop(index).id)
        now = loaded.generate(loaded.edited[:5], max_new_tokens=8)
        assert [loaded.is_answer(tokens, i) for i, tokens in enumerate(now)] == [i in left for i in range(5)]
    assert torch.equal(loaded.logits(loaded.edited), base)


def test_g6_no_key_position_is_left_over(loaded: Loaded, attach: Attach) -> None:
    """G6: the first query's token index stayed, so a longer prompt was looked up in its middle."""
    em = attach(loaded, GRACE())
    em.edit([edit_of(loaded, i) for i in range(4)])
    lengths = [len(loaded.tokenizer(prompt).input_ids) for prompt in loaded.edited[:4]]
    assert len(set(lengths)) > 1
    for index in (2, 1, 3, 0, 1, 2):
        prompt, target = loaded.edited[index], str(loaded.targets[index])
        logits, answer = forced(loaded, prompt, target)  # a plain forward
        assert logits.argmax(-1).tolist() == answer
        assert said(loaded, prompt) == f"{target}</s>"  # generate
        assert int(loaded.answers([prompt]).argmax()) == answer[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_g7_padded_batches_hit_on_either_side(loaded: Loaded, attach: Attach, side: Any) -> None:
    """G7: right-padded batches looked up the pad token, and missed three of four edits."""
    base = loaded.answers(loaded.unrelated, side)
    attach(loaded, GRACE()).edit([edit_of(loaded, i) for i in range(4)])
    first = [loaded.wanted(i)[0] for i in range(4)]
    assert loaded.answers(loaded.edited[:4], side).argmax(-1).tolist() == first
    mixed = [row for pair in zip(loaded.edited[:4], loaded.unrelated, strict=True) for row in pair]
    assert loaded.answers(mixed, side)[::2].argmax(-1).tolist() == first
    assert torch.equal(loaded.answers(loaded.unrelated, side), base)


def test_g8_a_reopened_log_holds_everything(tmp_path: Path, attach: Attach) -> None:
    """G8: keys and radii were missing from what was saved."""
    one = load(LM)
    em = attach(one, GRACE(), log=tmp_path / "edits.db")
    receipts = em.edit([edit_of(one, i) for i in range(4)])
    em.edit(edit_of(one, 0, " golf"))
    em.rollback(receipts[1].id)
    logits, state = one.logits(one.edited), state_in(em)
    em.close()
    two = load(LM)
    again = attach(two, GRACE(), log=tmp_path / "edits.db")
    assert torch.equal(two.logits(two.edited), logits)
    for now, then in zip(contents(state_in(again)), contents(state), strict=True):
        assert torch.equal(now, then)


def test_g8_a_pack_holds_everything(tmp_path: Path, attach: Attach) -> None:
    """G8, carried: another process with the same base answers the same bits."""
    one, two = load(LM), load(LM)
    em = attach(one, GRACE())
    receipts = em.edit([edit_of(one, i) for i in range(3)])
    em.rollback(receipts[1].id)
    em.export(tmp_path / "pack.safetensors")
    attach(two, GRACE()).load(tmp_path / "pack.safetensors")
    assert torch.equal(two.logits(two.edited), one.logits(one.edited))
    assert said(two, two.edited[2]) == f"{two.targets[2]}</s>"


@pytest.mark.parametrize("name", [LM, "t5"])
def test_g9_rephrases_are_answered(attach: Attach, name: str) -> None:
    """G9: the last token's activation is no semantic key, so rephrases that are given become keys."""
    loaded = load(name)
    prompt, *rephrases = loaded.edited[:3]
    em = attach(loaded, GRACE())
    receipt = em.edit(Edit(prompt, " west", rephrases=rephrases))
    assert receipt.verified.reliability == 1.0
    assert book_of(em).owners == (receipt.id,) * 3
    assert [said(loaded, text) for text in (prompt, *rephrases)] == [" west</s>"] * 3
    base = [said(load(name), text) for text in rephrases]
    em.rollback(receipt.id)
    assert [said(loaded, text) for text in rephrases] == base


@pytest.mark.parametrize("name", ["gpt2", LM, "t5", "bart"])
def test_g10_the_model_stops_after_the_answer(attach: Attach, name: str) -> None:
    """G10: targets were learned without their end, and the model never stopped talking."""
    loaded = load(name)
    em = attach(loaded, GRACE())
    em.edit([edit_of(loaded, i) for i in range(4)])
    tokens = loaded.generate(loaded.edited[:4], max_new_tokens=20)
    assert [row[-1] for row in tokens] == [EOS] * 4
    assert all(loaded.is_answer(row, index) for index, row in enumerate(tokens))


# ----------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", ["gpt2", LM, "gemma3-sliding"])
def test_the_learned_probability_is_really_reached(attach: Attach, name: str) -> None:
    """Softmax of the served model's logits, hooks and all, at every answer token."""
    loaded = load(name)
    attach(loaded, GRACE()).edit([edit_of(loaded, i) for i in range(4)])
    for index in range(4):
        logits, answer = forced(loaded, loaded.edited[index], str(loaded.targets[index]))
        reached = logits.softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        assert reached.min() >= 0.97, reached


@pytest.mark.parametrize("name", ["gpt2", LM])
def test_the_published_form_reaches_it_too(attach: Attach, name: str) -> None:
    loaded, targets = load(name), (" west", " yankee", " golf", " lima")
    em = attach(loaded, SINGLE)
    em.edit([one_token(loaded, i, target) for i, target in enumerate(targets)])
    tokens = [loaded.tokenizer(t, add_special_tokens=False).input_ids[0] for t in targets]
    chance = loaded.answers(loaded.edited[:4]).softmax(-1)
    assert chance[torch.arange(4), torch.tensor(tokens)].min() >= 0.97


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.999])
def test_the_probability_asked_for_is_the_one_reached(loaded: Loaded, attach: Attach, probability: float) -> None:
    """The least of it: not short of what was asked by more than the last hundredth of log-odds."""
    attach(loaded, GRACE(probability=probability)).edit(edit_of(loaded, 2))
    logits, answer = forced(loaded, loaded.edited[2], str(loaded.targets[2]))
    chance = logits.double().softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    asked = math.log(probability / (1 - probability))
    assert (chance.logit() >= asked - 0.011).all()


def test_classifiers_reach_it_too(attach: Attach) -> None:
    loaded = load("bert")
    attach(loaded, GRACE()).edit([Edit(loaded.edited[i], loaded.targets[i]) for i in range(4)])
    chance = loaded.answers(loaded.edited[:4]).softmax(-1)
    assert chance[torch.arange(4), torch.tensor(loaded.targets[:4])].min() >= 0.97


def test_a_batch_is_learned_as_each_alone(loaded: Loaded, attach: Attach) -> None:
    """Independent values: the batch's neighbours make no difference beyond rounding."""
    em = attach(loaded, GRACE())
    em.edit([edit_of(loaded, i) for i in range(4)])
    together = state_in(em).values.view.clone()
    em.close()
    em = attach(loaded, GRACE())
    for i in range(4):
        em.edit(edit_of(loaded, i))
    alone = state_in(em).values.view
    assert together.shape == alone.shape
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_a_value_is_moved_no_further_than_it_must_be(loaded: Loaded, attach: Attach) -> None:
    """It begins at its token's row of the unembedding; where that is enough it stays."""
    em = attach(loaded, GRACE(probability=1e-6))
    em.edit(edit_of(loaded, 0, " yankee west"), verify=False)
    tokens = [*loaded.tokenizer(" yankee west", add_special_tokens=False).input_ids, EOS]
    rows = loaded.model.get_output_embeddings().weight.detach()
    assert torch.allclose(state_in(em).values.view, rows[tokens] - rows.mean(dim=0), atol=1e-6)


def test_a_token_has_one_value_whoever_says_it(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, GRACE())
    em.edit([edit_of(loaded, 0, " west"), edit_of(loaded, 1, " yankee west")])
    em.edit(edit_of(loaded, 2, " golf"))
    west, end, _, second_west, second_end, _, third_end = state_in(em).values.view
    assert torch.equal(west, second_west)
    assert torch.equal(end, second_end)
    assert torch.equal(end, third_end)  # learned once


@torch.no_grad()
def test_the_published_value_begins_at_the_models_own_activation(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, replace(SINGLE, probability=1e-6))
    em.edit(one_token(loaded, 0, " west"), verify=False)
    seen: list[Tensor] = []
    module = loaded.model.get_submodule(SINGLE.sites(loaded.model)["value"].path)
    with em.unedited(), module.register_forward_hook(lambda _m, _a, output: seen.append(output)):
        loaded.model(torch.tensor([loaded.tokenizer(loaded.edited[0]).input_ids]))
    assert torch.allclose(state_in(em).values.view[0], seen[0][0, -1], atol=1e-6)


def test_what_is_stored_on_disk_answers_alike(loaded: Loaded, attach: Attach) -> None:
    found = []
    for store in ("memory", "disk"):
        em = attach(loaded, GRACE(store=store))
        receipts = em.edit([edit_of(loaded, i) for i in range(3)])
        em.rollback(receipts[1].id)
        assert state_in(em).on_disk == (store == "disk")
        found.append([said(loaded, prompt) for prompt in loaded.edited[:3]])
        em.close()
    assert found[0] == found[1]
    assert found[0][0].startswith(str(loaded.targets[0]))


def test_the_single_form_keeps_one_value_for_an_answer(loaded: Loaded, attach: Attach) -> None:
    em = attach(loaded, SINGLE)
    receipt = em.edit(edit_of(loaded, 2), verify=False)  # an answer of several tokens
    state = state_in(em)
    wide, narrow = loaded.model.config.intermediate_size, loaded.model.config.hidden_size
    assert (state.routes.book.codebook.keys.view.shape, state.values.view.shape) == ((1, wide), (1, narrow))
    assert state.spans.view.tolist() == [[0, 1]]
    assert state.routes.spans.view.tolist() == [[0, len(loaded.wanted(2))]]
    assert receipt.verified.reliability > 0


@pytest.mark.parametrize(
    ("values", "keys", "path", "side"),
    [
        ("per_token", None, "model.layers.2", "output"),
        ("per_token", "residual", "model.layers.2", "output"),
        ("per_token", "wide", "model.layers.2.mlp.down_proj", "input"),
        ("single", None, "model.layers.1.mlp.down_proj", "input"),
        ("single", "wide", "model.layers.1.mlp.down_proj", "input"),
        ("single", "residual", "model.layers.1", "input"),
    ],
)
def test_keys_are_read_where_they_were_asked_for(
    loaded: Loaded, attach: Attach, values: Any, keys: Any, path: str, side: str
) -> None:
    editor = GRACE(values=values, keys=keys)
    site = editor.sites(loaded.model)["key"]
    assert (site.path, site.side) == (path, side)
    em = attach(loaded, editor)
    assert em.edit(one_token(loaded, 0, " west")).verified.reliability == 1
    assert said(loaded, loaded.edited[0]).startswith(" west")


def test_the_single_value_is_what_the_down_projection_gives(loaded: Loaded, attach: Attach) -> None:
    """At the key token of the prompt, and nowhere else."""
    path = "model.layers.1.mlp.down_proj"
    base = _output_of(loaded, path, loaded.edited[0])
    em = attach(loaded, SINGLE)
    em.edit(one_token(loaded, 0, " west"))
    now = _output_of(loaded, path, loaded.edited[0])
    assert torch.equal(now[0, -1], state_in(em).values.view[0])
    assert torch.equal(now[0, :-1], base[0, :-1])


def _output_of(loaded: Loaded, path: str, prompt: str) -> Tensor:
    seen: list[Tensor] = []

    def watch(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append(output.clone())

    with loaded.model.get_submodule(path).register_forward_hook(watch):
        loaded.logits([prompt])
    return seen[0]


def test_the_radius_is_measured_unless_it_is_given(loaded: Loaded, attach: Attach) -> None:
    """Half the typical distance between unrelated inputs at the site."""
    em = attach(loaded, GRACE(radius=0.125))
    em.edit(edit_of(loaded, 0))
    assert book_of(em).radii.tolist() == [0.125]
    em.close()
    em = attach(loaded, GRACE())
    em.edit(edit_of(loaded, 0))
    shadow, site = shadow_of(loaded.model), Site("model.layers.2")
    reference = resources.files("editable").joinpath("reference.txt").read_text().splitlines()
    spread = Probe(shadow, Reader(shadow, loaded.tokenizer), reference).spread(site)
    assert spread > 0
    assert book_of(em).radii.tolist() == pytest.approx([0.5 * spread])


@pytest.mark.parametrize("together", [True, False])
def test_an_image_has_a_radius_of_its_own(attach: Attach, together: bool) -> None:
    """How far it moves with small changes, but at most half as far as with its tiles shuffled."""
    loaded = load("torchvision-resnet18")
    smooth = nn.functional.interpolate(torch.stack(loaded.edited[:2])[:, :, ::8, ::8], (32, 32), mode="bicubic")
    em, site, radii = attach(loaded, GRACE()), classifier_head(loaded.model), list[float]()
    for image in smooth[:, None]:
        shown = (image, nudged({"x": image})["x"], shuffled_tiles({"x": image})["x"])
        key, same, other = (activation(loaded, site, rows) for rows in shown)
        near, far = (float((moved - key).norm(dim=1).median()) for moved in (same, other))
        radii.append(min(near, far / 2))
    edits = [Edit(smooth[index], loaded.targets[index]) for index in range(2)]
    for some in [edits] if together else [[edit] for edit in edits]:
        em.edit(some, verify=False)
    assert book_of(em).column.tolist("initial") == pytest.approx(radii, rel=1e-4)


@torch.no_grad()
def activation(loaded: Loaded, site: str, batch: Tensor) -> Tensor:
    """(batch, features) what goes into the head."""
    seen: list[Tensor] = []
    handle = loaded.model.get_submodule(site).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loaded.model(batch)
    handle.remove()
    return seen[0]


def test_patches_of_learning_insert_to_the_learned_state(loaded: Loaded, attach: Attach, tmp_path: Path) -> None:
    """What `learn` publishes and what the log would rebuild from its patches are the same bits."""
    em = attach(loaded, GRACE(radius=1e4), log=tmp_path / "edits.db")  # everything overlaps
    for i, j in itertools.product(range(2), range(2)):
        em.edit(edit_of(loaded, i, str(loaded.targets[j])), verify=False)
    state, again = state_in(em), GRACE().empty()
    for one in patches_in(tmp_path / "edits.db").values():
        again = GRACE().insert([one], again)
    for now, then in zip(contents(again), contents(state), strict=True):
        assert torch.equal(now, then)


def test_a_decision_is_a_plain_mapping_of_rows() -> None:
    """What a cache can select, repeat and copy: tensors whose first axis is the rows."""
    call = prefill([[1, 3]] * 3)
    serve(call, rows_of([None, KEY_A], [None, KEY_B], [None, None]))
    decision: Decision | None = call.decision
    assert decision is not None
    assert {len(tensor) for tensor in decision.values()} == {3}
    assert decision["hit"].dtype == torch.bool
