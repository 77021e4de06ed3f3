"""What stands in for a corpus: words of the model's own, and images whose tiles are out of order."""

from __future__ import annotations

import torch

from editable import augment, own_words
from tests.contract.harness import only
from tests.families import Loaded, images


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
