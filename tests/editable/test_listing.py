"""The list of edits: what it says in a terminal, in a notebook and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from editable.edit import Edit
from editable.listing import WIDTH, Edits, Listed, described, listed

FIRST = Listed("a1", "grace", "The capital of Australia is", " Canberra", (), None, "default", 1)
SECOND = Listed("b22", "facts", "<tensor 3x4x4>", 7, ("<tensor 3x4x4>",), "cat", "pets", 12)


def test_a_terminal_sees_a_table() -> None:
    assert repr(Edits([FIRST, replace(SECOND, rolled_back=13)], 13)) == "\n".join(
        [
            "2 edits (version 13)",
            "id   prompt                       target    editor  version  state",
            "a1   The capital of Australia is  Canberra  grace   v1       live",
            "b22  <tensor 3x4x4>               7         facts   v12      rolled back in v13",
        ]
    )


def test_one_edit_and_none() -> None:
    assert repr(Edits([FIRST], 1)).startswith("1 edit (version 1)\n")
    assert repr(Edits([], 4)) == "no edits (version 4)"
    assert Edits([], 4)._repr_html_() == "<p>no edits (version 4)</p>"


def test_a_notebook_sees_a_table() -> None:
    shown = Edits([replace(FIRST, prompt="<b> & co")], 1)._repr_html_()
    assert "<th>id</th><th>prompt</th><th>target</th>" in shown
    assert "<td>&lt;b&gt; &amp; co</td>" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 2


def test_long_and_broken_lines_are_shortened() -> None:
    long = replace(FIRST, prompt="so\nlong " + "x" * 60)
    cell = repr(Edits([long], 1)).splitlines()[2].split("  ")[1]
    assert cell == "so long " + "x" * (WIDTH - 9) + "…"
    assert len(cell) == WIDTH
    exact = replace(FIRST, prompt="y" * WIDTH)
    assert "y" * WIDTH in repr(Edits([exact], 1))


def test_states() -> None:
    assert FIRST.state == "live"
    assert replace(FIRST, superseded_by="b22").state == "superseded by b22"
    assert replace(FIRST, superseded_by="b22", rolled_back=3).state == "rolled back in v3"


def test_a_sequence_by_position_and_by_id() -> None:
    edits = Edits([FIRST, SECOND], 12)
    assert (len(edits), list(edits)) == (2, [FIRST, SECOND])
    assert edits[0] is edits["a1"] is FIRST
    assert edits[-1] is edits["b22"] is SECOND
    assert FIRST in edits
    assert isinstance(edits[1:], Edits)
    assert list(edits[1:]) == [SECOND]
    with pytest.raises(IndexError):
        edits[2]
    with pytest.raises(KeyError, match="stranger"):
        edits["stranger"]


def test_the_list_does_not_follow_what_it_was_made_from() -> None:
    held = [FIRST]
    edits = Edits(held, 1)
    held.append(SECOND)
    assert len(edits) == 1


def test_an_edit_as_json() -> None:
    plain = SECOND.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["rephrases"], plain["state"], plain["version"]) == (["<tensor 3x4x4>"], "live", 12)


def test_what_the_log_keeps_of_a_request() -> None:
    edit = Edit("Who?", " Me", rephrases=("Who is it?",), locality=("What?",), subject="me", namespace="n")
    about = described(edit)
    assert about == {
        "prompt": "Who?",
        "target": " Me",
        "rephrases": ["Who is it?"],
        "subject": "me",
        "namespace": "n",
    }
    assert listed(json.loads(json.dumps(about)), "a1", "grace", 3) == Listed(
        "a1", "grace", "Who?", " Me", ("Who is it?",), "me", "n", 3
    )


def test_tensors_are_described_by_their_shape() -> None:
    image = torch.zeros(3, 4, 5)
    assert described(Edit(image, 1, rephrases=(image,)))["rephrases"] == ["<tensor 3x4x5>"]
    mapping = {"pixel_values": image, "labels": torch.tensor([1])}
    assert described(Edit(mapping))["prompt"] == "<inputs labels, pixel_values>"
