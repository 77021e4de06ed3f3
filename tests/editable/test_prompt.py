"""Reading one forward: each row's key column and ordinals, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editable.carry import Carried
from editable.editor import Call
from editable.errors import StateError
from editable.prompt import Generation, cached_length, prompt_width, read_call
from editable.snapshot import Snapshot

SNAPSHOT = Snapshot()


def ids(batch: int, positions: int) -> Tensor:
    return torch.arange(batch * positions).reshape(batch, positions)


def mask(*rows: str) -> Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows])


def read(*, carried: Carried | None = None, generation: Generation | None = None, **arguments: Any) -> Call:
    return read_call(arguments, SNAPSHOT, generation=generation, carried=carried)


def read_seq2seq(*, carried: Carried | None = None, generation: Generation | None = None, **arguments: Any) -> Call:
    return read_call(arguments, SNAPSHOT, True, generation, carried)


def plain(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.tolist()


class Cache:
    """A cache that says how much it holds."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> Tensor:
        return torch.tensor(self.length)


# ------------------------------------------------------------------------------------------------- bare forwards


def test_without_padding_the_last_column_is_the_key() -> None:
    call = read(input_ids=ids(2, 3))
    assert plain(call.key) == [2, 2]
    assert plain(call.ordinal) == [[0, 1, 2]] * 2
    assert (call.pads, call.past, call.phase) == (None, 0, "prefill")
    assert call.snapshot is SNAPSHOT
    assert torch.equal(call.tokens if call.tokens is not None else torch.empty(0), ids(2, 3))


def test_left_padding() -> None:
    call = read(input_ids=ids(3, 4), attention_mask=mask("0011", "1111", "0001"))
    assert plain(call.key) == [3, 3, 3]
    assert plain(call.ordinal) == [[-1, -1, 0, 1], [0, 1, 2, 3], [-1, -1, -1, 0]]
    assert plain(call.pads) == [2, 0, 3]


def test_right_padding() -> None:
    call = read(input_ids=ids(3, 4), attention_mask=mask("1100", "1111", "1000"))
    assert plain(call.key) == [1, 3, 0]
    assert [row[: k + 1] for row, k in zip(plain(call.ordinal), plain(call.key), strict=True)] == [
        [0, 1],
        [0, 1, 2, 3],
        [0],
    ]
    assert plain(call.pads) == [2, 0, 3]


def test_padding_on_both_sides() -> None:
    call = read(input_ids=ids(1, 5), attention_mask=mask("01110"))
    assert plain(call.key) == [3]
    assert plain(call.ordinal)[0][1:4] == [0, 1, 2]


def test_a_boolean_or_float_mask_is_a_mask() -> None:
    for dtype in (torch.bool, torch.float32):
        call = read(input_ids=ids(2, 3), attention_mask=mask("011", "110").to(dtype))
        assert plain(call.key) == [2, 1]


def test_a_prepared_mask_of_four_dimensions_says_nothing_of_rows() -> None:
    call = read(input_ids=ids(1, 3), attention_mask=torch.zeros(1, 1, 3, 3))
    assert (plain(call.key), plain(call.ordinal), call.pads) == ([2], [[0, 1, 2]], None)


def test_embeddings_in_place_of_tokens() -> None:
    call = read(inputs_embeds=torch.zeros(2, 3, 8), attention_mask=mask("011", "111"))
    assert call.tokens is None
    assert plain(call.key) == [2, 2]
    assert plain(call.ordinal) == [[-1, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("arguments", [{"pixel_values": torch.zeros(2, 3, 4, 4)}, {"input_ids": None}, {}])
def test_what_is_no_sequence_has_no_key(arguments: dict[str, Any]) -> None:
    call = read(**arguments)
    assert (call.key, call.ordinal, call.tokens, call.phase) == (None, None, None, "prefill")


def test_packed_requests_are_refused() -> None:
    message = r"packs several requests into one row \(cu_seq_lens_q is set: continuous batching\).*use generate\(\)"
    with pytest.raises(StateError, match=message):
        read(input_ids=ids(1, 5), cu_seq_lens_q=torch.tensor([0, 2, 5]))


# -------------------------------------------------------------------------------------------------------- labels


def test_labels_put_the_key_before_the_answer() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [-100, -100, -100, 9], [-100, 5, -100, -100]])
    assert plain(read(input_ids=ids(3, 4), labels=labels).key) == [1, 2, 0]


def test_labels_under_padding() -> None:
    """Left: three pads, two prompt tokens, one answer token. Right: three prompt tokens, one answer token, two pads."""
    labels = torch.tensor([[-100] * 5 + [7], [-100, -100, -100, 8, -100, -100]])
    call = read(input_ids=ids(2, 6), labels=labels, attention_mask=mask("000111", "111100"))
    assert plain(call.key) == [4, 2]
    assert plain(call.ordinal)[0] == [-1, -1, -1, 0, 1, 2]


def test_labels_that_ask_for_everything_leave_the_key_at_the_end() -> None:
    """Plain language-model training or perplexity: there is no prompt that an answer follows."""
    call = read(input_ids=ids(2, 3), labels=ids(2, 3))
    assert plain(call.key) == [2, 2]
    call = read(input_ids=ids(1, 3), labels=torch.full((1, 3), -100))
    assert plain(call.key) == [2]


@pytest.mark.parametrize(("side", "rows", "key"), [("left", "00111", 4), ("right", "11100", 2)])
def test_labels_that_leave_out_only_padding(side: str, rows: str, key: int) -> None:
    """Perplexity of a padded batch: the column before the first label is padding, no key token."""
    real = mask(rows)
    labels = ids(1, 5).masked_fill(real == 0, -100)
    assert plain(read(input_ids=ids(1, 5), labels=labels, attention_mask=real).key) == [key], side


def test_class_labels_are_no_answer() -> None:
    assert plain(read(input_ids=ids(2, 3), labels=torch.tensor([1, 0])).key) == [2, 2]


# -------------------------------------------------------------------------------------------- caches, bare loops


def test_a_decode_step_has_no_key() -> None:
    call = read(input_ids=ids(2, 1), past_key_values=Cache(4))
    assert call.key is None
    assert (plain(call.ordinal), call.past, call.phase) == ([[4], [4]], 4, "decode")


def test_a_carried_cache_knows_its_length_and_pads_by_itself() -> None:
    carried = Carried(SNAPSHOT, seen=4, pads=torch.tensor([2, 0]), decisions={"e": {"hit": torch.ones(2)}})
    call = read(input_ids=ids(2, 1), attention_mask=mask("00111", "11111"), carried=carried)
    assert (call.key, call.past) == (None, 4)
    assert plain(call.ordinal) == [[2], [4]]
    assert plain(call.pads) == [2, 0]
    assert call.decisions == carried.decisions
    assert call.decisions is not carried.decisions  # a forward that fails must not leave half a decision behind


def test_a_step_of_right_padded_rows_goes_on_from_the_last_real_token() -> None:
    carried = Carried(SNAPSHOT, seen=4, pads=torch.tensor([2, 0]))
    call = read(input_ids=ids(2, 1), attention_mask=mask("11001", "11111"), carried=carried)
    assert plain(call.ordinal) == [[2], [4]]


def test_several_tokens_on_a_cache_are_a_prompt_again() -> None:
    """A later turn, or the last chunk, in a loop of the caller's own."""
    carried = Carried(SNAPSHOT, seen=2, pads=torch.tensor([1, 0]))
    call = read(input_ids=ids(2, 3), attention_mask=mask("01111", "11110"), carried=carried)
    assert plain(call.key) == [2, 1]
    assert plain(call.ordinal)[0] == [1, 2, 3]
    assert plain(call.ordinal)[1][:2] == [2, 3]
    assert (call.phase, plain(call.pads)) == ("prefill", [1, 1])


def test_several_tokens_without_a_mask_use_the_carried_pads() -> None:
    carried = Carried(SNAPSHOT, seen=3, pads=torch.tensor([2, 0]))
    call = read(input_ids=ids(2, 2), carried=carried)
    assert plain(call.ordinal) == [[1, 2], [3, 4]]
    assert plain(call.key) == [1, 1]


def test_an_empty_cache_is_a_prefill() -> None:
    call = read(input_ids=ids(1, 1), past_key_values=Cache(0))
    assert (plain(call.key), call.past, call.phase) == ([0], 0, "prefill")


def test_the_length_of_a_cache() -> None:
    assert cached_length(Cache(5)) == 5
    assert cached_length(None) == cached_length((1, 2)) == 0


# ---------------------------------------------------------------------------------------------------- generation


def test_generation_prefills_at_the_prompts_end() -> None:
    generation = Generation(SNAPSHOT, width=4)
    call = read(input_ids=ids(2, 4), attention_mask=mask("0011", "1111"), generation=generation)
    assert (plain(call.key), call.phase) == ([3, 3], "prefill")


def test_chunks_find_the_key_only_in_the_last() -> None:
    """A prompt of five columns in chunks of two: columns 0-1, 2-3, 4."""
    generation, keys, ordinals = Generation(SNAPSHOT, width=5), [], []
    for past, size in ((0, 2), (2, 2), (4, 1)):
        carried = Carried(SNAPSHOT, seen=past, pads=torch.tensor([1])) if past else None
        rows = mask("01111"[: past + size])
        call = read(input_ids=ids(1, size), attention_mask=rows, generation=generation, carried=carried)
        keys.append(plain(call.key))
        ordinals += plain(call.ordinal)[0]
    assert keys == [None, None, [0]]
    assert ordinals == [-1, 0, 1, 2, 3]


def test_a_last_chunk_of_one_token_is_no_decode_step() -> None:
    carried = Carried(SNAPSHOT, seen=4)
    call = read(input_ids=ids(1, 1), generation=Generation(SNAPSHOT, width=5), carried=carried)
    assert (plain(call.key), call.phase) == ([0], "prefill")


def test_decode_steps_of_a_generation() -> None:
    generation = Generation(SNAPSHOT, width=4)
    for positions in (1, 3):  # assisted decoding checks several tokens at once
        call = read(input_ids=ids(1, positions), generation=generation, carried=Carried(SNAPSHOT, seen=5))
        assert (call.key, call.phase) == (None, "decode")
        assert plain(call.ordinal) == [list(range(5, 5 + positions))]


def test_without_a_cache_the_key_stays_where_the_prompt_ended() -> None:
    """Every step runs over everything: the key is the prompt's last column, not the newest."""
    generation = Generation(SNAPSHOT, width=3)
    for positions in (3, 4, 6):
        rows = mask("011" + "1" * (positions - 3))
        call = read(input_ids=ids(1, positions), attention_mask=rows, generation=generation)
        assert plain(call.key) == [2]
        assert plain(call.ordinal) == [[-1, *range(positions - 1)]]


def test_a_right_padded_prompt_in_a_generation() -> None:
    call = read(input_ids=ids(2, 4), attention_mask=mask("1100", "1111"), generation=Generation(SNAPSHOT, width=4))
    assert plain(call.key) == [1, 3]


def test_beams_repeat_the_given_mask() -> None:
    """A static cache passes a prepared mask only; the one given to generate has a row for each prompt."""
    generation = Generation(SNAPSHOT, width=3, mask=mask("011", "111"))
    call = read(input_ids=ids(4, 3), attention_mask=torch.zeros(4, 1, 3, 3), generation=generation)
    assert plain(call.ordinal) == [[-1, 0, 1], [-1, 0, 1], [0, 1, 2], [0, 1, 2]]
    assert plain(call.pads) == [1, 1, 0, 0]


def test_a_width_not_known_is_taken_from_the_first_forward() -> None:
    generation = Generation(SNAPSHOT, width=None)
    call = read_seq2seq(decoder_input_ids=ids(1, 3), generation=generation)
    assert (plain(call.key), generation.width) == ([2], 3)


@pytest.mark.parametrize(
    ("arguments", "width"),
    [
        ({"inputs": ids(2, 4)}, 4),
        ({"input_ids": ids(2, 4), "attention_mask": ids(2, 4)}, 4),
        ({"input_ids": ids(2, 1), "attention_mask": ids(2, 6)}, 6),  # five are in the cache already
        ({"inputs_embeds": torch.zeros(1, 5, 8)}, 5),
        ({"inputs": None, "input_ids": ids(1, 2)}, 2),
        ({}, 1),  # generate starts from the beginning-of-text token
    ],
)
def test_the_prompts_width(arguments: dict[str, Any], width: int) -> None:
    assert prompt_width(arguments, seq2seq=False) == width


def test_the_width_of_a_decoders_prompt() -> None:
    assert prompt_width({"input_ids": ids(2, 9)}, seq2seq=True) == 1
    assert prompt_width({"input_ids": ids(2, 9), "decoder_input_ids": ids(2, 3)}, seq2seq=True) is None


# ------------------------------------------------------------------------------------------------------- seq2seq


def test_the_decoders_start_ends_its_prompt() -> None:
    call = read_seq2seq(input_ids=ids(2, 9), attention_mask=mask("0" * 9, "1" * 9), decoder_input_ids=ids(2, 4))
    assert plain(call.key) == [0, 0]
    assert plain(call.ordinal) == [[0, 1, 2, 3]] * 2
    assert call.pads is None  # the encoder's padding is not the decoder's
    assert torch.equal(call.tokens if call.tokens is not None else torch.empty(0), ids(2, 4))


def test_a_decoders_step_has_no_key() -> None:
    call = read_seq2seq(decoder_input_ids=ids(1, 1), carried=Carried(SNAPSHOT, seen=2))
    assert (call.key, plain(call.ordinal), call.phase) == (None, [[2]], "decode")


def test_a_forward_without_a_decoders_input_has_no_key() -> None:
    assert read_seq2seq(input_ids=ids(1, 3)).key is None


def test_the_encoders_mask_of_a_generation_is_not_the_decoders() -> None:
    generation = Generation(SNAPSHOT, width=1, mask=mask("0011"))
    call = read_seq2seq(decoder_input_ids=ids(1, 1), generation=generation)
    assert (plain(call.key), plain(call.ordinal), call.pads) == ([0], [[0]], None)


def test_tokens_after_the_prompt_are_counted_without_the_device() -> None:
    """Six columns of prompt and nine in the cache: the next token is the fourth after the key token."""
    call = read(input_ids=ids(1, 1), carried=Carried(SNAPSHOT, seen=9, prompt=6))
    assert (call.after_prompt, call.prompt) == (4, 6)
    assert read(input_ids=ids(1, 6)).after_prompt == 0
    assert read(input_ids=ids(1, 6)).prompt == 6
