"""What stands in for a corpus: words of the model's own, kept in the cache, and images whose tiles are out of order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from editable import augment, models, own_words
from editable.inputs import Batch, Reader
from editable.learn import Probe, shadow_of
from editable.site import Site
from tests.contract.harness import only
from tests.families import FAMILIES, Loaded, images


@only("causal", "seq2seq")
def test_a_model_speaks_alike_every_time_and_draws_from_nobody(loaded: Loaded) -> None:
    start = loaded.model.generation_config.decoder_start_token_id if loaded.family.kind == "seq2seq" else None
    state = torch.get_rng_state()
    said = own_words.speak(loaded.model, start)
    assert torch.equal(torch.get_rng_state(), state)
    assert said.shape == (own_words.SEQUENCES, own_words.TOKENS)
    assert torch.equal(said, own_words.speak(loaded.model, start))
    assert len(said.unique(dim=0)) > own_words.SEQUENCES // 2
    if start is not None:
        assert (said[:, 0] == start).all()


@only("causal")
@torch.no_grad()
def test_what_is_said_is_what_the_model_finds_likely(loaded: Loaded) -> None:
    """Far likelier than tokens drawn evenly."""
    said = own_words.speak(loaded.model)
    even = torch.randint(100, said.shape, generator=torch.Generator().manual_seed(1))
    likely, unlikely = (
        loaded.model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).mean()
        for tokens in (said, even)
    )
    assert likely > unlikely + 2


def test_nudged_images_are_moved_alike_whatever_else_is_in_the_batch() -> None:
    batch = torch.randn(3, 2, 16, 12, generator=torch.Generator().manual_seed(1))
    moved = own_words.nudged({"pixel_values": batch, "labels": torch.tensor([1, 2, 3])})
    assert list(moved) == ["pixel_values"]
    assert moved["pixel_values"].shape == (9, 2, 16, 12)
    alone = own_words.nudged({"pixel_values": batch[1:2]})["pixel_values"]
    assert torch.equal(moved["pixel_values"][1::3], alone)
    wanted = augment.shift(batch[1], own_words.NUDGE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone[0], wanted)
    assert not own_words.nudged({"input_ids": torch.tensor([[1]])})


def test_shuffled_tiles_hold_the_same_pixels_elsewhere() -> None:
    batch = torch.stack(images(2, seed=0))
    shuffled = own_words.shuffled_tiles({"pixel_values": batch, "labels": torch.tensor([1, 2])})
    assert list(shuffled) == ["pixel_values"]
    mixed = shuffled["pixel_values"]
    assert mixed.shape == (2 * own_words.SHUFFLES, 3, 32, 32)
    for index, image in enumerate(mixed):
        own = batch[index % 2]
        assert torch.equal(image.flatten(1).sort(dim=1).values, own.flatten(1).sort(dim=1).values)
        assert not torch.equal(image, own)
        tile = image[:, :8, :8]
        places = [own[:, y : y + 8, x : x + 8] for y in range(0, 32, 8) for x in range(0, 32, 8)]
        assert any(torch.equal(tile, place) for place in places)


def test_a_rim_that_no_tile_covers_stays() -> None:
    image = torch.arange(2 * 3 * 10 * 9.0).reshape(2, 3, 10, 9)
    mixed = own_words.shuffled_tiles({"x": image})["x"]
    assert torch.equal(mixed[:2, :, 8:], image[:, :, 8:])
    assert torch.equal(mixed[:2, :, :, 8:], image[..., 8:])


# ------------------------------------------------------------------------------------------------- the cache

FOLDER = own_words.folder  # as it is where no test puts another in its place
ROWS = torch.tensor([[1.5, -0.0], [torch.inf, 3e-42]])


def never() -> Tensor:
    raise AssertionError("it was in the cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, that is not there yet."""
    monkeypatch.setattr(own_words, "folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_it_lies_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_VARIABLE, str(tmp_path))
    assert FOLDER() == tmp_path / "own_words"


def test_worked_out_once_for_the_same_weights_and_place(cache: Path) -> None:
    model = nn.Linear(1, 1)
    assert own_words.kept(model, "here", lambda: ROWS) is ROWS
    same = nn.Linear(1, 1)
    same.load_state_dict(model.state_dict())
    found = own_words.kept(same, "here", never)
    assert found.numpy().tobytes() == ROWS.numpy().tobytes()
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"], "and nothing half-written"


def test_other_weights_and_another_place_have_their_own(cache: Path) -> None:
    model, other = nn.Linear(1, 1), torch.zeros(1)
    own_words.kept(model, "here", lambda: ROWS)
    assert own_words.kept(model, "there", lambda: other) is other
    model.weight.data += 1
    assert own_words.kept(model, "here", lambda: other) is other
    assert len(list(cache.iterdir())) == 3


def _cut(whole: bytes) -> bytes:
    return whole[:-3]


def _flipped(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 1])


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda _: b"", lambda _: b"not at all"])
def test_what_is_damaged_is_worked_out_anew(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    model = nn.Linear(1, 1)
    own_words.kept(model, "here", lambda: ROWS)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert own_words.kept(model, "here", lambda: ROWS) is ROWS
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_keeps_nothing(cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    model = nn.Linear(1, 1)
    for _ in range(2):
        assert own_words.kept(model, "here", lambda: ROWS) is ROWS


def test_a_second_attachment_reads_what_the_first_one_heard(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {family.name: family for family in FAMILIES}["gpt2"].load()
    site, batch = Site("transformer.h.2.mlp.c_fc", side="input"), Batch({}, None, torch.zeros(1, 1), torch.zeros(1))
    first, second = (Probe(shadow_of(loaded.model), Reader(loaded.model, loaded.tokenizer)) for _ in range(2))
    heard = first.unrelated(site, batch)
    assert heard.shape == (own_words.SEQUENCES * own_words.TOKENS, loaded.model.config.hidden_size)
    monkeypatch.setattr(own_words, "speak", never)
    assert torch.equal(second.unrelated(site, batch), heard)
    assert len(list(cache.iterdir())) == 1
