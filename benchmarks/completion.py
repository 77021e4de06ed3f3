"""Digits completed: a network draws the lower half of a digit that it sees the upper half of, and is corrected.

The physics. This is regression: the target of an edit is 392 pixels, and what is measured is the squared error of the
lower half. The last layer of the network is linear, so that the move of its input that comes nearest to given pixels is
a least-squares solution: a CNP's representation without any training. A gate leaves other digits alone, to the bit.
Conditional neural processes were shown on completion of digits (Garnelo et al., ICML 2018, section 4.2); there the
context was pixels, here it is corrections.

So many completions are corrected, each with augmented images. Squared error of the lower half: on the edited
images, on augmented images of other draws (whose true completion is augmented alike), and on the test images.

An `Edit` has a label or a text as its target, no pixels. So patches are made here and published as edits that were
learned elsewhere; what serves them and takes them back is the editor as it is.

    editable bench completion
    editable bench completion --data mnist.npz
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editable import Edit, EditableModel
from editable.adapters import CNP
from editable.benchmarks import bars, common, report
from editable.benchmarks.bars import Bar
from editable.benchmarks.digits import BATCH, DRAWS, RATE, SIDE, Digits, augmented, digits, features, reach_of_augmented
from editable.edit import Patch
from editable.listing import described
from editable.pack import Packed
from editable.site import Site, classifier_head

WIDTH = 256  # features that the last layer reads
RIDGE = 1e-3  # of the least squares, as a share of the mean variance


@dataclass(frozen=True)
class Completed:
    """Mean squared errors of the lower half, and shares of images.

    Args:
        edited: before, after.
        augmented: of other draws.
        elsewhere: of test images.
        bit_equal: share of the test images that are completed as before, to the bit.
        restored: whether all test and edited images are, once every edit is taken back.
    """

    edited: tuple[float, float]
    augmented: tuple[float, float]
    elsewhere: tuple[float, float]
    bit_equal: float
    restored: bool


def completer() -> nn.Sequential:
    """Sees (n, 1, SIDE, SIDE), draws (n, SIDE²)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * (SIDE // 2) ** 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, SIDE * SIDE),
    )  # fmt: skip


def upper(images: Tensor) -> Tensor:
    """Their lower half is black."""
    return torch.cat([images[..., : SIDE // 2, :], torch.zeros_like(images[..., SIDE // 2 :, :])], dim=-2)


def lower(pixels: Tensor) -> Tensor:
    """(n, pixels of the lower half) of images (n, 1, SIDE, SIDE) or drawn ones (n, SIDE²)."""
    return pixels.reshape(len(pixels), SIDE, SIDE)[:, SIDE // 2 :].flatten(1)


def trained(images: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """A completer from a random start."""
    torch.manual_seed(seed)
    model, draw = completer().train(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    for epoch in common.each(range(epochs), "training", epochs):
        seen = augmented(images, 0.1, draw) if epoch % 2 else images
        for rows in torch.randperm(len(images), generator=draw).split(BATCH):
            (model(upper(seen[rows])) - seen[rows].flatten(1)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()


@torch.no_grad()
def error(model: nn.Module, images: Tensor) -> float:
    """Mean squared error of the lower half."""
    return float((lower(model(upper(images))) - lower(images)).square().mean())


@torch.no_grad()
def moves(model: nn.Module, images: Tensor) -> Tensor:
    """(n, WIDTH) what brings the lower halves that the last layer draws nearest to the true ones."""
    head = model.get_submodule(classifier_head(model))
    rows = lower_rows(head.weight)  # type: ignore[arg-type]
    square = rows.T @ rows
    ridge = RIDGE * square.diagonal().mean() * torch.eye(WIDTH)
    missing = lower(images) - lower(model(upper(images)))
    found: Tensor = torch.linalg.solve(square + ridge, rows.T @ missing.T).T
    return found


def lower_rows(weight: Tensor) -> Tensor:
    """(pixels of the lower half, WIDTH) of the last layer's weights (SIDE², WIDTH)."""
    return weight.reshape(SIDE, SIDE, -1)[SIDE // 2 :].flatten(0, 1)


def patches(model: nn.Module, images: Tensor, shown: Sequence[Tensor], radius: float) -> list[Packed]:
    """A correction for each image, with the keys of its augmented ones in `shown` beside its own."""
    site, found = Site(classifier_head(model), side="input"), []
    keys = torch.stack([features(model, upper(one), site) for one in (images, *shown)], dim=1)
    for number, (own, move) in enumerate(zip(keys, moves(model, images), strict=True)):
        tensors = {"keys": own, "answer": torch.tensor([number]), "values": move[None].contiguous()}
        about = described(Edit(upper(images[number]), number))
        found.append(Packed(Patch(f"completion {number}", tensors, {"radius": radius}), "cnp", about))
    return found


def completed(model: nn.Module, data: Digits, asked: Mapping[str, Any]) -> Completed:
    """Correct, measure, take back; `asked` has the options."""
    draw, images = torch.Generator().manual_seed(asked["seed"] + 1), data.pool[0][: asked["edits"]]
    shown = [augmented(images, asked["strength"], draw) for _ in range(asked["rephrases"])]
    others, test = [augmented(images, asked["strength"], draw) for _ in range(DRAWS)], data.test[0]
    known = upper(data.train[0][: 2 * asked["edits"]])
    radius = reach_of_augmented(model, known, asked["rephrases"], asked["strength"], asked["seed"] + 3)
    everything = torch.cat([test, images])
    before, base = [error(model, x) for x in (images, torch.cat(others), test)], _drawn(model, everything)
    with closing(EditableModel(model, editor=CNP(condition="additive", radius=radius))) as em:
        em.adopt(patches(model, images, shown, radius))
        after, now = [error(model, x) for x in (images, torch.cat(others), test)], _drawn(model, everything)
        em.rollback([edit.id for edit in em.edits])
        restored = torch.equal(_drawn(model, everything), base)
    same = (now == base).all(dim=1)[: len(test)]
    edited, near, elsewhere = zip(before, after, strict=True)
    return Completed(edited, near, elsewhere, float(same.double().mean()), restored)


@torch.no_grad()
def _drawn(model: nn.Module, images: Tensor) -> Tensor:
    drawn: Tensor = model(upper(images))
    return drawn


def judged(found: Completed) -> list[Bar]:
    """Corrections have to show, and to stay where they belong. These bars are ours."""
    return [
        Bar("squared error left on edited images", found.edited[1] / found.edited[0], "<=", 0.2),
        Bar("squared error left on other augmented images", found.augmented[1] / found.augmented[0], "<=", 0.5),
        Bar("squared error elsewhere, after over before", found.elsewhere[1] / found.elsewhere[0], "<=", 1.01),
        Bar("taken back: bit-equal", float(found.restored), ">=", 1.0),
    ]


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "completion")
    parser.set_defaults(model="trained here")
    parser.add_argument("--edits", type=int, default=100, help="corrected completions")
    parser.add_argument("--rephrases", type=int, default=24, help="augmented images given with each")
    parser.add_argument("--strength", type=float, default=0.1, help="of augmentation")
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, correct, show."""
    chosen = options().parse_args(argv)
    torch.set_num_threads(chosen.threads)
    data = digits(chosen.data, chosen.seed)
    model = trained(data.train[0], chosen.epochs, chosen.seed)
    found = completed(model, data, vars(chosen))
    rows = [(name, *getattr(found, name)) for name in ("edited", "augmented", "elsewhere")]
    tables = [
        bars.table(judged(found)),
        report.Table("completed digits: mean squared error of the lower half", ("", "before", "after"), rows),
        report.Table("elsewhere", ("", "share"), [("bit-equal", found.bit_equal)]),
    ]
    card = common.machine_card(model)
    document = report.Report("completion", card, common.given(chosen), asdict(found), {}, tables)
    report.publish(document, chosen.results, chosen.against)


if __name__ == "__main__":
    main()
