"""Packs: what goes in comes out, and only into the model it was made for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editable.edit import Patch
from editable.errors import CorruptLogError, InputError, WrongBaseError
from editable.memory.log import Identity
from editable.pack import Packed, pack_digest, read_pack, write_pack

IDENTITY = Identity("a" * 64, "b" * 64, '{"grace": {}}', "hub/model")


def packed(edit_id: str = "e1", editor: str = "grace") -> Packed:
    tensors = {
        "keys": torch.randn(2, 3, generator=torch.Generator().manual_seed(len(edit_id))),
        "values": torch.tensor([[1 / 3, -0.0]], dtype=torch.bfloat16),
        "answer": torch.tensor([5, 6]),
    }
    return Packed(Patch(edit_id, tensors, {"radius": 0.1}), editor, {"prompt": "Who? é", "target": " Me"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pack.safetensors"


def rewritten(path: Path, **metadata: str | None) -> None:
    """The pack with other metadata; None leaves an entry out."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        old = dict(file.metadata())
    kept = {name: value for name, value in {**old, **metadata}.items() if value is not None}
    save_file(load_file(path), path, kept)


def test_what_goes_in_comes_out(path: Path) -> None:
    edits = [packed("first"), packed("second one", "facts"), *(packed(f"e{n}") for n in range(10))]
    write_pack(path, edits, IDENTITY)
    back = read_pack(path, IDENTITY)
    assert len(back) == 12  # two digits: tensors of edit 1 must not be taken for those of 10 and 11
    for mine, theirs in zip(edits, back, strict=True):
        assert (theirs.patch.edit_id, theirs.editor) == (mine.patch.edit_id, mine.editor)
        assert dict(theirs.request) == dict(mine.request)
        assert dict(theirs.patch.meta) == dict(mine.patch.meta)
        assert set(theirs.patch.tensors) == set(mine.patch.tensors)
        for name, tensor in mine.patch.tensors.items():
            assert theirs.patch.tensors[name].dtype == tensor.dtype
            assert torch.equal(theirs.patch.tensors[name], tensor)


def test_a_view_is_written_as_it_reads(path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_pack(path, [Packed(Patch("e", {"keys": whole.T[1:3]}), "grace", {})], IDENTITY)
    assert torch.equal(read_pack(path, IDENTITY)[0].patch.tensors["keys"], whole.T[1:3])


def test_how_the_model_was_loaded_does_not_matter(path: Path) -> None:
    write_pack(path, [packed()], IDENTITY)
    assert len(read_pack(path, replace(IDENTITY, source="elsewhere"))) == 1


@pytest.mark.parametrize("what", ["base", "tokenizer", "editors"])
def test_a_pack_for_another_model_is_refused_with_both_sides(path: Path, what: str) -> None:
    write_pack(path, [packed()], IDENTITY)
    other = replace(IDENTITY, **{what: "c" * 64})
    with pytest.raises(WrongBaseError) as caught:
        read_pack(path, other)
    text = str(caught.value)
    assert text.startswith(f"Pack {str(path)!r} was made with {what} {getattr(IDENTITY, what)}, expected {'c' * 64}")
    assert "load it into the model, tokenizer and editor configuration it was made with" in text


def test_no_edits_make_no_pack(path: Path) -> None:
    with pytest.raises(InputError, match="would hold no edits, expected at least one live edit; edit first"):
        write_pack(path, [], IDENTITY)
    assert not path.exists()


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(InputError, match="does not exist, expected a file written by export"):
        read_pack(path, IDENTITY)


def broken(path: Path) -> None:
    with pytest.raises(CorruptLogError) as caught:
        read_pack(path, IDENTITY)
    text = str(caught.value)
    assert text.startswith(f"Pack {str(path)!r} cannot be read (")
    assert text.endswith("expected a file written by export(); export it again.")


@pytest.mark.parametrize("content", [b"", b"not a pack", b"\xff" * 64, b"SQLite format 3\0" * 8])
def test_a_file_of_another_kind(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    broken(path)


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_a_shortened_file(path: Path, kept: int) -> None:
    write_pack(path, [packed()], IDENTITY)
    path.write_bytes(path.read_bytes()[:kept])
    broken(path)


def test_any_safetensors_file_is_no_pack(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)
    broken(path)
    write_pack(path, [packed()], IDENTITY)
    rewritten(path, format="editable-pack-99")
    broken(path)


@pytest.mark.parametrize("missing", ["edits", "base", "tokenizer", "editors"])
def test_an_incomplete_head(path: Path, missing: str) -> None:
    write_pack(path, [packed()], IDENTITY)
    rewritten(path, **{missing: None})
    broken(path)


@pytest.mark.parametrize(
    "heads", ["{", "[1]", '[{"id": "e1"}]', '[{"id": "e", "editor": "g", "meta": 3, "request": {}}]']
)
def test_a_head_that_cannot_be_read(path: Path, heads: str) -> None:
    write_pack(path, [packed()], IDENTITY)
    rewritten(path, edits=heads)
    broken(path)


def test_nan_in_a_pack_is_refused(path: Path) -> None:
    write_pack(path, [packed()], IDENTITY)
    tensors = load_file(path)
    tensors["0.keys"][0, 0] = torch.nan
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, {**metadata, "digest": pack_digest(metadata["edits"], tensors)})
    with pytest.raises(InputError, match=r"Patch of edit 'e1' has NaN or infinite values in \['keys'\]"):
        read_pack(path, IDENTITY)


def test_one_flipped_bit_in_a_pack_is_noticed(path: Path) -> None:
    write_pack(path, [packed()], IDENTITY)
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(bytes(contents))
    with pytest.raises(CorruptLogError, match=r"its contents do not add up to its digest.*export it again"):
        read_pack(path, IDENTITY)


def test_writing_replaces_the_older_pack_and_leaves_no_draft(path: Path) -> None:
    write_pack(path, [packed("old")], IDENTITY)
    write_pack(path, [packed("new")], IDENTITY)
    assert [one.patch.edit_id for one in read_pack(path, IDENTITY)] == ["new"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_older_pack(path: Path) -> None:
    write_pack(path, [packed("old")], IDENTITY)
    unwritable = Packed(Patch("new", {}, {"radius": object()}), "grace", {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_pack(path, [unwritable], IDENTITY)
    assert [one.patch.edit_id for one in read_pack(path, IDENTITY)] == ["old"]


def test_the_head_is_plain_json(path: Path) -> None:
    """Anyone can see what is in a pack."""
    from safetensors import safe_open

    write_pack(path, [packed()], IDENTITY)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    (head,) = json.loads(metadata["edits"])
    assert (head["id"], head["request"]["prompt"], metadata["format"]) == ("e1", "Who? é", "editable-pack-1")
