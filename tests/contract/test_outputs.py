"""The many shapes of one forward's answer are the same answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from editable.site import Site, vocabulary_head
from tests.contract.harness import LEARNED, Edited, named, only, reads_text
from tests.families import FAMILIES, Loaded

TRANSFORMERS = named(*(family.name for family in FAMILIES if family.needs is None))


@TRANSFORMERS
def test_a_tuple_instead_of_a_mapping(edited: Edited) -> None:
    feed = edited.loaded.feed(edited.mixed)
    whole = edited.loaded.model(**feed)
    parts = edited.loaded.model(**feed, return_dict=False)
    assert isinstance(parts, tuple)
    assert torch.equal(parts[0], whole.logits)
    assert not torch.equal(whole.logits, edited.twin.logits(edited.mixed))


@only("causal", "seq2seq")
def test_a_tuple_whose_cache_is_continued(edited: Edited) -> None:
    """`return_dict=False` hands the cache out at a place of the tuple; it still carries its decisions."""
    loaded, index = edited.loaded, 0
    feed = loaded.feed([loaded.edited[index]])
    with torch.no_grad():
        parts = loaded.model(**feed, use_cache=True, return_dict=False)
        cache = next(part for part in parts if isinstance(part, hf.Cache))
        first = parts[0][:, -1:].argmax(-1)
        name = "input_ids" if loaded.family.kind == "causal" else "decoder_input_ids"
        rest = {} if name == "input_ids" else {"encoder_outputs": (parts[-1],)}
        mask = {} if name == "input_ids" else {"attention_mask": feed["attention_mask"]}
        out = loaded.model(**{name: first}, **rest, **mask, past_key_values=cache, return_dict=False)
    second = int(out[0][0, -1].argmax())
    assert [int(first), second] == loaded.generate([loaded.edited[index]])[0][:2]


@only("causal")
@pytest.mark.parametrize("keep", [1, 3])
def test_fewer_logits(edited: Edited, keep: int) -> None:
    feed = edited.loaded.feed(edited.mixed)
    whole = edited.loaded.model(**feed).logits[:, -keep:]
    kept = edited.loaded.model(**feed, logits_to_keep=keep).logits
    torch.testing.assert_close(kept, whole)
    assert torch.equal(kept.argmax(-1), whole.argmax(-1))


@TRANSFORMERS
def test_labels_add_a_loss_and_change_nothing_else(edited: Edited) -> None:
    feed = edited.loaded.encode(edited.loaded.edited[:LEARNED])
    labels, logits = _labels(edited.loaded, feed)
    output = edited.loaded.model(**feed, labels=labels)
    assert torch.equal(output.logits, logits)
    wanted = labels[:, 1:] if edited.loaded.family.kind == "causal" else labels
    flat = logits[:, :-1] if edited.loaded.family.kind == "causal" else logits
    loss = nn.functional.cross_entropy(flat.reshape(-1, flat.shape[-1]), wanted.reshape(-1))
    torch.testing.assert_close(output.loss, loss)


def _labels(loaded: Loaded, feed: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels for these inputs, and the logits of a forward that was given none."""
    kind = loaded.family.kind
    if kind == "causal":
        return feed["input_ids"].masked_fill(feed["attention_mask"] == 0, -100), loaded.model(**feed).logits
    if kind == "seq2seq":
        labels = torch.full((LEARNED, 3), 7)
        start = loaded.model.prepare_decoder_input_ids_from_labels(labels=labels)
        return labels, loaded.model(**feed, decoder_input_ids=start).logits
    return torch.tensor(loaded.targets[:LEARNED]), loaded.model(**feed).logits


@only("causal")
def test_hidden_states_show_what_the_model_computed_with(edited: Edited) -> None:
    feed = edited.loaded.feed(edited.loaded.edited[:LEARNED])
    plain = edited.loaded.model(**feed)
    output = edited.loaded.model(**feed, output_hidden_states=True)
    assert torch.equal(output.logits, plain.logits)
    base = edited.twin.model(**feed, output_hidden_states=True)
    assert torch.equal(output.hidden_states[0], base.hidden_states[0])
    behind = Site(vocabulary_head(edited.loaded.model))  # an editor that acts on the logits may leave all before alone
    acting = [site for editor in edited.em.editors.values() for site in editor.sites(edited.loaded.model).values()]
    assert behind in acting or not torch.equal(output.hidden_states[-1], base.hidden_states[-1])
    assert not torch.equal(output.logits, base.logits)


@only("causal")
def test_embeddings_instead_of_tokens(edited: Edited, editor: Any) -> None:
    if reads_text(editor):
        pytest.skip("embeddings cannot be read as text")
    loaded = edited.loaded
    feed = loaded.feed(edited.mixed)
    tokens = feed.pop("input_ids")
    embedded = loaded.model.get_input_embeddings()(tokens)
    assert torch.equal(loaded.model(**feed, inputs_embeds=embedded).logits, loaded.logits(edited.mixed))


@only("causal")
def test_arguments_by_position(edited: Edited) -> None:
    feed = edited.loaded.feed(edited.mixed)
    feed.pop("position_ids")
    by_name = edited.loaded.model(**feed).logits
    by_place = edited.loaded.model(feed["input_ids"], attention_mask=feed["attention_mask"]).logits
    assert torch.equal(by_place, by_name)
