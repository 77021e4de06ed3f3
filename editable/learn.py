"""How edits are learned without touching what is served.

The weight-sharing shadow, skipping what an edit cannot change, and the one optimisation loop all learners share.

Knows module trees and losses; knows no editing method.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from editable import own_words
from editable.edit import ModelInput
from editable.errors import SiteError
from editable.hooks import Inert
from editable.inputs import Arguments, Batch, Reader
from editable.resident import Residents
from editable.site import Site, block_paths, classifier_head
from editable.taps import changing, collecting, only_at, putting, skipping, watching

CHUNK = 512  # vectors that go through the vocabulary head at once; bounds memory to CHUNK x vocabulary

CALMER = 0.5  # the rate of a joint descent that has overtaken itself

GOES_ON = 24  # tokens that the model adds to each reference prompt

DONE = 0.01  # log-odds short of what was asked; the last bit of the way would take as many steps as all the rest


def shadow_of(model: nn.Module) -> nn.Module:
    """A second module tree over the same storage, in eval mode, without our hooks and without gradients.

    Costs milliseconds and no memory: parameters are detached aliases, buffers are the same tensors. What is done to
    its modules (hooks, replaced forwards) is not done to the model's.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = getattr(module, kind)
            # The user's own hooks are part of what the model computes: kept, by reference.
            memo[id(hooks)] = OrderedDict((k, h) for k, h in hooks.items() if not isinstance(h, Inert))
    shadow = copy.deepcopy(model, memo)
    for module in shadow.modules():
        module._compiled_call_impl = None  # that graph is of the model's own modules
    return shadow.eval()


def shares_storage(shadow: nn.Module, model: nn.Module) -> bool:
    """Whether the shadow still stands over the model's weights (the model may have been moved)."""
    pairs = zip(shadow.parameters(), model.parameters(), strict=False)
    return all(a.data_ptr() == b.data_ptr() and a.device == b.device for a, b in pairs)


def reference_prompts() -> list[str]:
    """The shipped prompts that are about nothing in particular."""
    return resources.files("editable").joinpath("reference.txt").read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True, eq=False)
class Capture:
    """What one unedited forward over a batch showed.

    Args:
        rows: site to its rows (batch, positions, features).
        logits: (batch, longest answer, vocabulary) at the answer positions, or (batch, 1, classes).
    """

    rows: Mapping[Site, Tensor]
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Suffix:
    """What follows a site, position by position.

    Args:
        rows: (answers,) the batch row of each answer token.
        columns: (answers,) the position at the site that its logits come from.
        start: (answers, features) what the site gave there.
        run: from values (n, features) and which answer tokens they are for (n,) to logits (n, vocabulary).
    """

    rows: Tensor
    columns: Tensor
    start: Tensor
    run: Callable[[Tensor, Tensor], Tensor]


class Probe:
    """What `learn` may do with a model: look at activations, run what comes after a site, optimise.

    Everything happens on the shadow.
    """

    def __init__(
        self, shadow: nn.Module, reader: Reader, reference: Sequence[str] = (), residents: Residents | None = None
    ) -> None:
        self.model = shadow
        self.reader = reader
        self.residents = residents or Residents(shadow)
        self._reference = reference
        self._spreads: dict[Site, float] = {}
        self._unrelated: dict[Site, Tensor] = {}
        self._said: Batch | None = None
        self._captured: tuple[Batch, Any] | None = None  # what was captured last behind the last block
        self._centre: Tensor | None = None  # (features,) what all rows of the unembedding have in common
        self._samples: dict[str, Any] = {}  # block to what its forward gives for one token

    def capture(self, batch: Batch, sites: Sequence[Site]) -> Capture:
        """One unedited forward over the batch: the rows at each site, and the logits at the answer positions."""
        seen: dict[Site, Any] = {}
        with ExitStack() as stack, torch.no_grad():
            for site in set(sites):
                stack.enter_context(watching(self.model, site, seen))
            logits = self.logits(batch)
        if self.reader.text and (last := Site(block_paths(self.model)[-1])) in seen:
            self._captured = batch, seen[last]
        return Capture({site: site.read(activation) for site, activation in seen.items()}, logits)

    def logits(self, batch: Batch) -> Tensor:
        """(batch, longest answer, vocabulary) of a forward over the batch, computed at the answer positions only."""
        if batch.columns is None:
            return _logits_of(self.model(**batch.arguments)).unsqueeze(1)
        with only_at(self.model.get_output_embeddings(), batch.columns):  # type: ignore[operator]
            return _logits_of(self.model(**batch.arguments, use_cache=False))

    def logits_behind(self, batch: Batch) -> Tensor:
        """What `logits` gives, where nothing acts before the last block has given its output: mostly runs no block.

        Blocks give what they gave when this very batch was captured last, if it was, and NaN otherwise. Answers that
        are numbers even so do not depend on what blocks say; rows with others are run as they are.
        """
        if batch.columns is None or self.reader.seq2seq:
            return self.logits(batch)
        blocks = block_paths(self.model)
        with skipping(self.model, dict.fromkeys(blocks, self._given(batch, blocks[-1]))):
            logits = self.logits(batch)
        open_rows = (logits.isnan().any(dim=-1) & (batch.answers != -100)).any(dim=1).nonzero()[:, 0]
        if len(open_rows):
            logits[open_rows] = self.logits(batch.select(open_rows))
        return logits

    def _given(self, batch: Batch, block: str) -> Any:
        """What the last block gave for the batch; NaN where that is not known."""
        if self._captured is not None and self._captured[0].alike(batch):
            return self._captured[1]
        shape = (*batch.arguments["input_ids"].shape, self._width(block))
        return self._shaped_like_output(
            block, torch.full(shape, math.nan, dtype=self._dtype, device=self.reader.device)
        )

    def let_go(self) -> None:
        """Keep nothing of what was captured last."""
        self._captured = None

    def towards(self, tokens: Tensor, site: Site) -> Tensor | None:
        """(n, features) from where at the site each of tokens (n,) is said rather than others, as a rule.

        The token's own row of the unembedding, without what all rows have in common: most such values are right at
        once. None where there is another width, or no row that can be read, between the site and the vocabulary.
        """
        rows = self._unembedding() if self.reader.text else None
        if rows is None or site != Site(block_paths(self.model)[-1]) or rows.shape[1] != self._width(site.path):
            return None
        if self._centre is None:
            self._centre = rows.mean(dim=0, dtype=torch.float32)
        return rows[tokens].float() - self._centre

    def _unembedding(self) -> Tensor | None:
        """(vocabulary, features) the head's weights; None where these are packed, or held elsewhere until they run."""
        rows = getattr(self.model.get_output_embeddings(), "weight", None)  # type: ignore[operator]
        readable = isinstance(rows, Tensor) and rows.is_floating_point() and not rows.is_meta
        return rows if readable else None

    def _width(self, block: str) -> int:
        """Features of a block's output."""
        return int(Site(block).read(self._sample(block)).shape[-1])

    def tail(self, site: Site) -> Callable[[Tensor], Tensor]:
        """What turns single vectors (n, features) at the site into logits (n, vocabulary).

        Only for sites after which each position is computed by itself: behind the last block, or a classifier's head.

        Raises:
            SiteError: attention follows the site.
        """
        if not self.reader.text:
            if site != Site(classifier_head(self.model), side="input"):
                raise SiteError(f"Site {site.path!r} is not the input of the classifier's head, which values need.")
            return lambda vectors: self.model.get_submodule(site.path)(vectors.to(self._dtype))
        blocks = block_paths(self.model)
        if site != Site(blocks[-1]):
            raise SiteError(
                f"Site {site.path!r} has attention after it, expected the output of the last block {blocks[-1]!r} "
                "for one value per answer token; use values='single' to write elsewhere."
            )
        return lambda vectors: self._behind_blocks(blocks, vectors)

    @property
    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def _behind_blocks(self, blocks: Sequence[str], vectors: Tensor) -> Tensor:
        token = torch.zeros((len(vectors), 1), dtype=torch.long, device=vectors.device)
        arguments: dict[str, Any] = {"input_ids": token, "use_cache": False}
        if self.reader.seq2seq:
            arguments = {"decoder_input_ids": token, "encoder_outputs": self._no_encoding(vectors), "use_cache": False}
        given = self._shaped_like_output(blocks[-1], vectors[:, None].to(self._dtype))
        with skipping(self.model, dict.fromkeys(blocks, given)):
            return _logits_of(self.model(**arguments))[:, -1]

    def _shaped_like_output(self, block: str, hidden: Tensor) -> Any:
        """`hidden` alone or at the head of a tuple, as the block's own forward would give it."""
        return _in_place(hidden, self._sample(block))

    def _sample(self, block: str) -> Any:
        """What a block gives for one token; looked at once."""
        if block not in self._samples:
            blank = {"input_ids": torch.zeros((1, 1), dtype=torch.long, device=self.reader.device)}
            if self.reader.seq2seq:
                blank["decoder_input_ids"] = blank["input_ids"]
            zero = blank["input_ids"]
            self._samples[block] = self._output_of(Batch(blank, zero, zero - 100, zero[0]), block)
        return self._samples[block]

    def _no_encoding(self, vectors: Tensor) -> tuple[Tensor]:
        return (vectors.new_zeros((len(vectors), 1, self.model.config.hidden_size), dtype=self._dtype),)  # type: ignore[union-attr, arg-type]

    def replay(self, batch: Batch, site: Site) -> Callable[[Tensor, Tensor], Tensor]:
        """What turns one value per row, put at the key token of `site`, into logits at the answer positions.

        The forward up to the block that holds the site runs once, here; each call runs the rest. The returned function
        takes values (n, features) and rows (n,) of the batch, and gives (n, longest answer, vocabulary).

        Raises:
            SiteError: a text model's site is in none of its blocks.
        """
        if self.reader.text and _earlier_blocks(self.model, site) is None:
            blocks = block_paths(self.model)
            raise SiteError(f"Site {site.path!r} is in none of the blocks {blocks[0]!r} ..., expected a module in one.")
        rest = self.resume(batch, site)

        def run(values: Tensor, rows: Tensor) -> Tensor:
            columns = None if batch.columns is None else batch.columns[rows]
            with putting(self.model, site, values, columns):
                return rest(rows)

        return run

    def behind(self, batch: Batch, site: Site, seen: Capture) -> Suffix:
        """What follows a site at the positions that answers are read from, after a capture of the batch at the site.

        Raises:
            SiteError: what follows the site mixes positions: attention, or pooling over several.
        """
        rows, place = (batch.answers != -100).nonzero(as_tuple=True)
        if batch.columns is not None:
            columns, run = batch.columns[rows, place], self.tail(site)
            suffix = Suffix(rows, columns, seen.rows[site][rows, columns], lambda values, _which: run(values))
        else:
            columns = _reach(self.model, site, lambda: self.logits(batch)).long().argmax(dim=1)
            run_rows = partial(self._classified, batch, site)
            suffix = Suffix(rows, columns, seen.rows[site][rows, columns], run_rows)
        _check_suffix(suffix, seen.logits[rows, place], site)
        return suffix

    def _classified(self, batch: Batch, site: Site, values: Tensor, which: Tensor) -> Tensor:
        """(n, labels) from values (n, features) at the one position that these rows' (n,) labels are read from."""
        if site == Site(classifier_head(self.model)):
            return values
        part, blocks = batch.select(which), block_paths(self.model)
        if site != Site(blocks[-1]):
            raise SiteError(f"Site {site.path!r} has attention after it, expected {blocks[-1]!r} or the head.")
        arguments: dict[str, Any] = dict(part.arguments)
        if "input_ids" in arguments:  # their embeddings do not count, and neither does what masks them
            arguments = {"input_ids": torch.zeros_like(arguments["input_ids"][:, :1])}
        given = values[:, None].to(self._dtype)
        if blocks[-1] not in self._samples:
            self._samples[blocks[-1]] = self._output_of(batch.select(which[:1]), blocks[-1])
        with skipping(self.model, dict.fromkeys(blocks, self._shaped_like_output(blocks[-1], given))):
            return _logits_of(self.model(**arguments))

    def resume(self, batch: Batch, site: Site) -> Callable[[Tensor], Tensor]:
        """What gives the logits (n, longest answer, vocabulary) of rows (n,) of the batch, again and again.

        The blocks before the one that holds the site run once, here; each call runs the rest, with gradients where the
        caller asks for them. A site in none of the blocks has everything run each time.
        """
        earlier = _earlier_blocks(self.model, site)
        known = self._output_of(batch, earlier[-1]) if earlier else None

        def run(rows: Tensor) -> Tensor:
            given = {} if known is None else dict.fromkeys(earlier or (), _pick(known, rows, len(batch)))
            with skipping(self.model, given):
                return self.logits(batch.select(rows))

        return run

    @contextmanager
    def acting(self, sites: Mapping[str, Site], act: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Inside, rows (batch, positions, features) at each site become what `act` makes of its role and them."""
        with ExitStack() as stack:
            for role, site in sites.items():
                stack.enter_context(changing(self.model, site, functools.partial(act, role)))
            yield

    def _output_of(self, batch: Batch, path: str) -> Any:
        """What a block's forward gives over the batch: a tensor, or a tuple that starts with it."""
        seen: dict[Site, Any] = {}
        with watching(self.model, Site(path), seen), torch.no_grad():
            self.logits(batch)
        return seen[Site(path)]

    def descend(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        start: Tensor,
        steps: int,
        rate: float = 1.0,
        chunk: int = CHUNK,
        careful: bool = False,
    ) -> Tensor:
        """Move every row of `start` (n, features) until its own loss is 0, and stop there row by row.

        `loss` takes the rows that are still open (m, features) and their indices (m,), and gives (m,) losses; a row is
        done where its loss is at most DONE. The step is Polyak's, the loss over the squared gradient norm, which needs
        no learning rate, since the least loss is known to be 0. With `careful` a row that a step took further away
        goes back and halves its steps: for losses that flatten out (behind a tanh), where a long step is lost for good.
        """
        values = start.detach().float().clone()
        for begin in range(0, len(values), chunk):
            rows = torch.arange(begin, min(begin + chunk, len(values)), device=values.device)
            self._descend_rows(loss, values, rows, steps, rate, careful)
        return values

    @staticmethod
    def _descend_rows(
        loss: Callable[[Tensor, Tensor], Tensor], values: Tensor, rows: Tensor, steps: int, rate: float, careful: bool
    ) -> None:
        best, least = values.clone(), values.new_full((len(values),), math.inf)
        steepest, rates = torch.zeros_like(values), values.new_full((len(values),), rate)
        for step in range(steps + 1):
            moving = values[rows].requires_grad_()
            with torch.enable_grad():
                left = loss(moving, rows).float()
                total = left.sum()
            closer = left < least[rows]
            best[rows[closer]], least[rows[closer]] = moving[closer].detach(), left[closer].detach()
            still = left > DONE
            if not bool(still.any()) or step == steps:
                rows = rows[still]
                break
            (gradient,) = torch.autograd.grad(total, moving)
            origin = moving.detach()
            if careful:
                steepest[rows[closer]] = gradient[closer]
                rates[rows[~closer]] *= 0.5
                origin, gradient, left = best[rows], steepest[rows], least[rows]
            stride = rates[rows] * left.detach() / gradient.square().sum(dim=1).clamp_min(1e-12)
            values[rows[still]] = (origin - stride[:, None] * gradient)[still]
            rows = rows[still]
        values[rows] = best[rows]  # what was asked is out of reach for these: the nearest they came to it

    @staticmethod
    def minimise(
        loss: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, steps: int, rate: float
    ) -> tuple[Tensor, Tensor]:
        """Adam on every row of `start` (n, features) by itself, each until it is satisfied, for losses without a zero.

        `loss` takes (n, features) and gives each row's loss (n,) and whether the row may stay as it is (n,).

        Returns:
            The rows (n, features) as they first satisfied, or were last; and which ever did (n,).
        """
        values = start.detach().float().clone().requires_grad_()
        found, satisfied = values.detach().clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
        optimiser = torch.optim.Adam([values], lr=rate)
        for _ in range(steps + 1):
            with torch.enable_grad():
                left, enough = loss(values)
            found = torch.where(satisfied[:, None], found, values.detach())
            satisfied = satisfied | enough
            if bool(satisfied.all()):
                break
            (values.grad,) = torch.autograd.grad(left.sum(), values)
            optimiser.step()
        return found, satisfied

    def unrelated(self, site: Site, batch: Batch) -> Tensor:
        """(n, features) activations at the site of inputs that no edit is about, at all their positions.

        Text that the frozen model says by itself, sampled once and cached; for models that read text and write none,
        the reference prompts; for images, those of the batch with their tiles shuffled: the same colours and textures
        showing something else.
        """
        if not self.reader.text and (self.reader.tokenizer is None or not self._reference):
            shuffled = own_words.shuffled_tiles(batch.arguments)
            return self.rows([shuffled], site) if shuffled else torch.empty(0, device=self.reader.device)
        if site not in self._unrelated:
            self._unrelated[site] = self._spoken(site) if self.reader.text else self.rows_of(self._reference, site)
        return self._unrelated[site]

    def _spoken(self, site: Site) -> Tensor:
        start = self.reader.decoder_start if self.reader.seq2seq else None

        def speak() -> Tensor:
            said: list[Tensor] = []
            with collecting(self.model, site, said):
                own_words.speak(self.model, start)
            return torch.cat([rows.flatten(0, 1) for rows in said]).float()

        return own_words.kept(self.model, f"{site} {start}", speak).to(self.reader.device)

    def rows_of(self, inputs: Sequence[ModelInput], site: Site) -> Tensor:
        """(n, features) activations at the site at all positions of these inputs."""
        return self.rows([self.reader.arguments(one) for one in inputs], site)

    def rows(self, arguments: Sequence[Arguments], site: Site) -> Tensor:
        """(n, features) activations at the site at all positions, from one forward each."""
        found: list[Tensor] = []
        with collecting(self.model, site, found), torch.no_grad():
            for one in arguments:
                start = {"decoder_input_ids": torch.tensor([[self.reader.decoder_start]], device=self.reader.device)}
                self.model(**one, **(start if self.reader.seq2seq and self.reader.text else {}))
        return torch.cat([rows.flatten(0, 1) for rows in found]).float()

    @staticmethod
    def descend_jointly(
        loss: Callable[[Sequence[Tensor], Tensor], Tensor],
        start: Sequence[Tensor],
        count: int,
        steps: int,
        rate: float,
        chunk: int = 32,
        keep: Callable[[Sequence[Tensor]], Tensor] | None = None,
        still: float = math.inf,
        cooling: bool = False,
    ) -> list[Tensor]:
        """Move tensors that `count` rows share until every row's loss is at most DONE, or for so many steps.

        `loss` takes the tensors and indices (m,) of rows, and gives (m,) losses. `keep` takes the tensors and gives a
        number that is added to the rows' mean: what holds them back elsewhere; it has to come down to `still` as well.
        A step is Adam's at learning rate `rate`, over a chunk of rows that is drawn in an order that repeats: open rows
        first, then others, so that those stay done. Whenever all looked done and are not when looked at together, steps
        become smaller; with `cooling` they become so all the time, evenly, and reach 0 with the last one.
        """
        moving = [tensor.detach().float().clone().requires_grad_() for tensor in start]
        optimiser = torch.optim.Adam(moving, lr=rate)
        draw = torch.Generator().manual_seed(count)
        left = torch.full((count,), math.inf, device=moving[0].device)
        for step in range(steps):
            rows = _open_first(left, chunk, draw)
            with torch.enable_grad():
                each = loss(moving, rows).float()
                held = each.new_zeros(()) if keep is None else keep(moving)
                gradients = torch.autograd.grad(each.mean() + held, moving)
            for tensor, gradient in zip(moving, gradients, strict=True):
                tensor.grad = gradient
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps) if cooling else rate
            optimiser.step()
            left[rows] = each.detach()
            if not bool((left > DONE).any()) and bool(held <= still):
                with torch.no_grad():  # a row may have moved since it was looked at
                    left = torch.cat([loss(moving, part) for part in torch.arange(count).to(left.device).split(chunk)])
                if not bool((left > DONE).any()):
                    break
                rate *= CALMER
        return [tensor.detach() for tensor in moving]

    def reference(self) -> Batch | None:
        """The reference prompts and, where the model writes text, what it goes on to say by itself; asked once.

        None without a tokenizer. What an edit must leave alone, for editors that act wherever an activation leads them.
        """
        if self._said is None and self.reader.tokenizer is not None and self._reference:
            self._said = self._go_on(self.reader.stack([self.reader.arguments(text) for text in self._reference]))
        return self._said

    def _go_on(self, prompts: dict[str, Tensor]) -> Batch:
        device, count = self.reader.device, len(self._reference)
        nothing = torch.full((count, 1), -100, device=device)
        if not self.reader.text:
            return Batch(prompts, None, nothing, nothing[:, 0])
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        if not self.reader.seq2seq:  # generated text follows its prompt: padding goes to the left
            shift = mask.sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=device)
            ids, mask = ids.gather(1, shift % ids.shape[1]), mask.gather(1, shift % ids.shape[1])
        with torch.no_grad():  # greedily: drawing would move the random state that other threads draw from
            said = self.model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=GOES_ON,
                pad_token_id=self.reader.pad,
            )  # fmt: skip
        if self.reader.seq2seq:
            real = (said != self.reader.pad).long()
            real[:, 0] = 1
            arguments = {**prompts, "decoder_input_ids": said, "decoder_attention_mask": real}
        else:
            new = said[:, ids.shape[1] :]
            arguments = {"input_ids": said, "attention_mask": torch.cat([mask, (new != self.reader.pad).long()], dim=1)}
        return Batch(arguments, torch.zeros_like(nothing), nothing, nothing[:, 0])

    def spread(self, site: Site) -> float:
        """The typical (median) distance from an unrelated input's activation at the site to its nearest neighbour.

        What a radius is measured against. Text models are shown the reference prompts once; others have none, and 0.0
        is returned.
        """
        if site not in self._spreads:
            self._spreads[site] = self._measured_spread(site)
        return self._spreads[site]

    def _measured_spread(self, site: Site) -> float:
        if self.reader.tokenizer is None or not self._reference:
            return 0.0
        keys = self.keys([self.reader.arguments(text) for text in self._reference], site)
        return float(torch.cdist(keys, keys).fill_diagonal_(math.inf).amin(dim=1).median())

    def reach(self, batch: Batch, keys: Tensor, site: Site) -> Tensor | None:
        """(rows,) how far images that show the same lie from each image at the site; None where the batch is no images.

        The typical (median) distance to the image shifted, turned and cropped a little, but at most half of that to the
        image with its tiles shuffled, which has its colours and textures and shows something else.

        Args:
            batch: the images.
            keys: (rows, features) their activations.
            site: where.
        """
        same, other = (changed(batch.arguments) for changed in (own_words.nudged, own_words.shuffled_tiles))
        if not same:
            return None
        near, far = (self._moved(batch, keys, site, changed).median(dim=0).values for changed in (same, other))
        return torch.minimum(near, far / 2)

    def _moved(self, batch: Batch, keys: Tensor, site: Site, changed: Mapping[str, Tensor]) -> Tensor:
        """(changes, rows) how far each image moves with each change; `changed` holds all rows, change by change."""
        rows = torch.arange(len(next(iter(changed.values()))), device=keys.device)
        inputs = {**batch.select(rows % len(keys)).arguments, **changed}
        moved = self.keys([{name: value[row : row + 1] for name, value in inputs.items()} for row in rows], site)
        distances: Tensor = (moved.unflatten(0, (-1, len(keys))) - keys).norm(dim=-1)
        return distances

    def keys(self, prompts: Sequence[Mapping[str, Tensor]], site: Site) -> Tensor:
        """(n, features) activations at the key token of each prompt, from one forward."""
        arguments = self.reader.stack(prompts)
        last = arguments["attention_mask"].sum(dim=1) - 1 if "attention_mask" in arguments else None
        if self.reader.seq2seq:
            last = torch.zeros(len(prompts), dtype=torch.long, device=self.reader.device)
            start = torch.full_like(last, self.reader.decoder_start)
            arguments["decoder_input_ids"] = start[:, None]
        columns = None if last is None or not self.reader.text else last[:, None]
        nothing = torch.full((len(prompts), 1), -100, device=self.reader.device)
        rows = self.capture(Batch(arguments, columns, nothing, nothing[:, 0]), [site]).rows[site]
        return at_columns(rows, last).float()


def _open_first(left: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """At most `count` rows, in a random order: those with a loss (n,) still left before the others."""
    order = torch.randperm(len(left), generator=draw).to(left.device)
    return order[(left[order] <= DONE).long().argsort(stable=True)][:count]


def at_columns(rows: Tensor, columns: Tensor | None) -> Tensor:
    """(n, features): of rows (n, positions, features) the one at each column; their mean where they are not tokens."""
    if columns is None or rows.shape[1] == 1:
        return rows.mean(dim=1)
    return rows[torch.arange(len(rows), device=rows.device), columns]


def at_answers(rows: Tensor, batch: Batch) -> Tensor:
    """(answer tokens, features) of rows (rows, positions, features): each where its token, or the label, is read."""
    if batch.columns is None:
        return at_columns(rows, batch.last_real)
    return rows.gather(1, batch.columns[..., None].expand(-1, -1, rows.shape[-1]))[batch.answers != -100]


def shortfall(logits: Tensor, targets: Tensor, probability: float) -> Tensor:
    """How far each target's log-odds stay below those of `probability`: 0 where it is reached.

    logits (..., vocabulary), targets (...) with -100 for none; returns (...).
    """
    logits = logits.float()
    index = targets.clamp_min(0)[..., None]
    wanted = logits.gather(-1, index).squeeze(-1)
    others = logits.scatter(-1, index, -math.inf).logsumexp(dim=-1)
    margin = math.log(probability / (1 - probability))
    return (margin - (wanted - others)).clamp_min(0) * (targets != -100)


def _logits_of(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output[0] if isinstance(output, tuple) else output
    return logits  # type: ignore[no-any-return]


def _in_place(hidden: Tensor, output: Any) -> Any:
    """`hidden` alone where `output` is a tensor, else at the head of a tuple as long as it."""
    return (hidden, *[None] * (len(output) - 1)) if isinstance(output, tuple) else hidden


def _earlier_blocks(model: nn.Module, site: Site) -> list[str] | None:
    """Blocks that run before the one that holds the site; None where no block does."""
    try:
        blocks = block_paths(model)
    except SiteError:
        return None
    inside = (place for place, path in enumerate(blocks) if f"{site.path}.".startswith(f"{path}."))
    place = next(inside, None)
    return None if place is None else blocks[:place]


def _pick(output: Any, rows: Tensor, batch: int) -> Any:
    """Rows of a block's output; a tuple's further tensors (T5's position bias) may be shared by all rows."""
    if isinstance(output, Tensor):
        return output[rows] if len(output) == batch else output
    return tuple(_pick(part, rows, batch) if isinstance(part, Tensor) else part for part in output)


def _reach(model: nn.Module, site: Site, forward: Callable[[], Tensor]) -> Tensor:
    """(batch, positions) whether the logits depend on the site's output there."""
    module, leaf = model.get_submodule(site.path), torch.zeros(())

    def add(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal leaf
        leaf = torch.zeros_like(site.read(output)).requires_grad_()
        return site.write(output, site.read(output) + leaf)

    with module.register_forward_hook(add), torch.enable_grad():
        logits = forward().float()
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    return gradient.abs().sum(dim=2) > 0


def _check_suffix(suffix: Suffix, logits: Tensor, site: Site) -> None:
    """What was at the site has to give the logits that came of it; it does not where positions are mixed later."""
    with torch.no_grad():
        again = suffix.run(suffix.start, torch.arange(len(suffix.rows), device=suffix.rows.device)).float()
    far = (again - logits.float()).abs().max()
    if not far <= 0.1 * logits.float().std():
        raise SiteError(
            f"What follows site {site.path!r} does not compute each position by itself (its logits are off by "
            f"{float(far):.2g}), expected a place behind all attention and pooling; "
            "name the classifier's head with site='...'."
        )
