"""Digits relabelled and repaired: edits of a small convolutional network that is trained here, in seconds.

The physics. An edit of an image lives in the features that the network's head reads: an augmented image has to fall
near enough to be the same, another image of the same digit far enough not to be. How near that is (the radius) is taken
from images that no edit is about. Fog changes nearly every feature, so that fogged digits form a region of their own,
which a gate can tell from clean ones; within it digits have to be learned anew, from the edits alone.

- labels       --edits images get another label, one after another, each with --rephrases augmented images (moved and
               turned). SR: the edited images with the final model; GR: augmented images of other draws; lost: by how
               much accuracy on all test images has fallen.
- fog          --repairs fogged images are edits with their true label, learned in one batch, each with --copies of it
               that are moved and turned. Accuracy on the test images fogged, and on the same images clean. "cnp,
               fitted" was meta-trained on training images in fog: it knows how fogged images resemble one another, and
               no label of any but the edits'.

The digits are scikit-learn's (1,797 of 8 x 8 pixels, enlarged), or what --data names: a file that `editable.datasets`
reads. Fog is that of MNIST-C (Mu and Gilmer, 2019).

    editable bench digits
    editable bench digits --data mnist.npz --fog 0.4
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from editable import Edit, EditableModel, datasets
from editable.adapters import CNP, GRACE, LoRA
from editable.augment import AUGMENTATIONS, fog, rotate, shift
from editable.benchmarks import bars, common, report, timing
from editable.benchmarks.bars import Bar
from editable.editor import Editor
from editable.errors import InputError
from editable.inputs import Reader
from editable.learn import Probe, shadow_of
from editable.metric import Course, Fitted
from editable.scopes import NearestScope
from editable.site import Site, classifier_head

TRAINED, SET_ASIDE = 0.6, 300  # share of the images to train on; of the others, how many edits are taken from
SIDE = 28  # pixels
BATCH, RATE = 64, 1e-3
FIRST = "hidden"  # the layer that reads what the convolution sees
LORA_STEPS = 600
MOVED = 0.15  # strength at which copies of fogged edits are moved and turned
FITTED = 1200  # training images that a metric is fitted on
STRENGTHS = (0.2, 0.4)  # of their corruption
DRAWS = 8  # augmented images of each edited one that generality is asked on
COVERED = 0.95  # of augmented images that a radius should reach
APART = 0.99  # of fogged images that a radius should reach


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, side, side) in [0, 1] with labels (n,), in three parts that share no image."""

    train: tuple[Tensor, Tensor]
    pool: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Relabelled:
    """What became of label edits."""

    success: float
    generality: float
    accuracy_before: float
    accuracy_after: float
    seconds: Sequence[float]

    @property
    def lost(self) -> float:
        """By how much accuracy elsewhere has fallen."""
        return self.accuracy_before - self.accuracy_after


@dataclass(frozen=True)
class Repaired:
    """What became of fogged digits, and of clean ones."""

    fogged_before: float
    fogged_after: float
    clean_before: float
    clean_after: float
    seconds: float

    @property
    def lost(self) -> float:
        """By how much accuracy on clean digits has fallen."""
        return self.clean_before - self.clean_after


# --- the network ---


def digits(source: str | None, seed: int) -> Digits:
    """All images, shuffled and split.

    Raises:
        InputError: scikit-learn is not installed, or the images are not square ones of one channel.
    """
    images, labels = _bundled() if source is None else _loaded(source)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = _enlarged(images[order]), labels[order]
    ends = [0, int(TRAINED * len(images)), int(TRAINED * len(images)) + SET_ASIDE, len(images)]
    parts = [(images[a:b], labels[a:b]) for a, b in pairwise(ends)]
    return Digits(*parts)


def _enlarged(images: Tensor) -> Tensor:
    """To the size of MNIST's: fog on 8 x 8 pixels would leave nothing to see."""
    if images.shape[-1] == SIDE:
        return images
    return nn.functional.interpolate(images, size=SIDE, mode="bilinear", align_corners=False)


def _bundled() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "The digits come with scikit-learn, which is not installed; run `pip install scikit-learn`, or name a file "
            "of digits with --data."
        ) from error
    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target).long()


def _loaded(source: str) -> tuple[Tensor, Tensor]:
    edits = [case.edit for case in datasets.load(source)]
    images = torch.stack([edit.prompt for edit in edits])  # type: ignore[misc]
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise InputError(f"--data {source} has images of shape {tuple(images.shape[1:])}, expected (1, side, side).")
    return images, torch.tensor([int(edit.target or 0) for edit in edits])


def network() -> nn.Sequential:
    """A convolution, pooling and two linear layers, for images (1, SIDE, SIDE)."""
    layers: Mapping[str, nn.Module] = {
        "maps": nn.Conv2d(1, 16, 5, padding=2), "relu1": nn.ReLU(), "pool": nn.AvgPool2d(2), "flat": nn.Flatten(),
        "hidden": nn.Linear(16 * (SIDE // 2) ** 2, 128), "relu2": nn.ReLU(), "head": nn.Linear(128, 10),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def trained(data: Digits, epochs: int, seed: int) -> nn.Sequential:
    """A network from a random start; every other epoch sees augmented images."""
    images, labels = data.train
    torch.manual_seed(seed)
    model, draw = network().train(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    for epoch in common.each(range(epochs), "training", epochs):
        seen = augmented(images, 0.1, draw) if epoch % 2 else images
        for rows in torch.randperm(len(images), generator=draw).split(BATCH):
            nn.functional.cross_entropy(model(seen[rows]), labels[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()


def augmented(images: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Moved in a random direction and turned to a random side."""
    return rotate(shift(images, strength, draw), strength, draw)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (n, 1, side, side) that get their label (n,)."""
    said = torch.cat([model(part).argmax(dim=1) for part in images.split(500)])
    return float((said == labels).double().mean())


# --- how far a radius has to reach ---


def features(model: nn.Module, images: Tensor, site: Site) -> Tensor:
    """(n, features) at the site."""
    reader = Reader(model)
    return Probe(shadow_of(model), reader).keys([reader.arguments(image) for image in images], site)


def reach_of_augmented(model: nn.Module, images: Tensor, draws: int, strength: float, seed: int) -> float:
    """How far an augmented image lies from the nearest of an image's `draws` other augmented ones, mostly."""
    site, draw = Site(classifier_head(model), side="input"), torch.Generator().manual_seed(seed)
    known = [
        features(model, images, site),
        *(features(model, augmented(images, strength, draw), site) for _ in range(draws)),
    ]
    new = features(model, augmented(images, strength, draw), site)
    return float((torch.stack(known) - new).norm(dim=2).amin(dim=0).quantile(COVERED))


def reach_of_each_other(model: nn.Module, images: Tensor, site: Site) -> float:
    """How far one of the images lies from the nearest other one, mostly."""
    found = features(model, images, site)
    return float(torch.cdist(found, found).fill_diagonal_(torch.inf).amin(dim=1).quantile(APART))


# --- the two tasks ---


def relabelled(model: nn.Module, editor: Editor, data: Digits, asked: Mapping[str, Any]) -> Relabelled:
    """Edit one image after another, then score; `asked` has the options."""
    draw, count = torch.Generator().manual_seed(asked["seed"] + 1), asked["edits"]
    images, labels = data.pool[0][:count], data.pool[1][:count]
    targets = (labels + 1 + torch.randint(9, labels.shape, generator=draw)) % 10
    drawn = [augmented(images, asked["strength"], draw) for _ in range(asked["rephrases"])]
    before, seconds = accuracy(model, *data.test), []
    with closing(EditableModel(model, editor=editor)) as em:
        for number, target in enumerate(targets.tolist()):
            edit = Edit(images[number], target, rephrases=[one[number] for one in drawn])
            seconds.append(timing.clocked(lambda: em.edit(edit, verify=False))())  # noqa: B023 - called at once
        others = [accuracy(model, augmented(images, asked["strength"], draw), targets) for _ in range(DRAWS)]
        return Relabelled(
            accuracy(model, images, targets), sum(others) / DRAWS, before, accuracy(model, *data.test), seconds
        )


def repaired(model: nn.Module, editor: Editor, data: Digits, asked: Mapping[str, Any]) -> Repaired:
    """Fogged images with their labels as edits, in one batch; `asked` has the options."""
    seed = asked["seed"]
    (images, labels), (test, wanted) = foggy(data, asked["fog"], asked["repairs"], seed)
    draw = torch.Generator().manual_seed(seed + 6)
    copies = [augmented(images, MOVED, draw) for _ in range(asked["copies"])]
    before = accuracy(model, test, wanted), accuracy(model, *data.test)
    edits = [
        Edit(image, label, rephrases=[one[number] for one in copies])
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    ]
    with closing(EditableModel(model, editor=editor)) as em:
        seconds = timing.clocked(lambda: em.edit(edits, verify=False))()
        return Repaired(before[0], accuracy(model, test, wanted), before[1], accuracy(model, *data.test), seconds)


def foggy(data: Digits, strength: float, count: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images to edit and the test images, in fog, with their labels."""
    draw = torch.Generator().manual_seed(seed + 2)
    images, labels = data.pool[0][:count], data.pool[1][:count]
    return (fog(images, strength, draw), labels), (fog(data.test[0], strength, draw), data.test[1])


def label_editors(model: nn.Module, data: Digits, asked: Mapping[str, Any]) -> dict[str, Editor]:
    """Those that are compared on label edits."""
    known = data.train[0][: 2 * asked["edits"]]
    radius = reach_of_augmented(model, known, asked["rephrases"], asked["strength"], asked["seed"] + 3)
    return {
        "grace": GRACE(scope=NearestScope(radius)),
        "grace, balls that grow": GRACE(radius=radius),
        "cnp": CNP(radius=radius),
    }


def fog_editors(model: nn.Module, images: Tensor, weights: Path) -> dict[str, Editor]:
    """Those that are compared on fog."""
    before, first = Site(classifier_head(model), side="input"), Site(FIRST, side="input")
    radius, wide = (reach_of_each_other(model, images, site) for site in (before, first))
    lora = LoRA(targets=(FIRST, "head"), scope=NearestScope(wide), rank=128, alpha=256.0, steps=LORA_STEPS, rate=5e-4)
    fitted = CNP(site=FIRST, weights=str(weights))
    return {"grace": GRACE(radius=radius), "cnp": CNP(radius=radius), "lora": lora, "cnp, fitted": fitted}


def fitted(model: nn.Module, data: Digits, kinds: Sequence[str], path: Path, seed: int) -> Fitted:
    """A metric for corrupted digits: one near itself, moved and turned and corrupted anew; clean ones far.

    All are training images, and what digit an image shows plays no part: each has a label of its own.
    """
    images, edits, draw = data.train[0][:FITTED], list[Edit](), torch.Generator().manual_seed(seed + 4)
    for kind in kinds:
        for strength in STRENGTHS:
            corrupt = AUGMENTATIONS[kind]
            shown, others = corrupt(images, strength, draw), corrupt(augmented(images, 0.1, draw), strength, draw)
            edits += [
                Edit(image, number, rephrases=[other], locality=[clean])
                for number, (image, other, clean) in enumerate(zip(shown, others, images, strict=True))
            ]
    return CNP(site=FIRST).fit(model, None, path, edits, Course(seed=seed))


# --- showing ---


def judged(labels: Mapping[str, Relabelled], fogged: Mapping[str, Repaired]) -> list[Bar]:
    """The figures that have a bar; of fog those of the editor that repairs most."""
    wanted = {"grace": (0.99, 0.9, 0.01), "cnp": (0.95, 0.9, 0.02)}
    found = [
        bar
        for name, (success, general, lost) in wanted.items()
        for bar in (
            Bar(f"labels, {name}: edited images (SR)", labels[name].success, ">=", success),
            Bar(f"labels, {name}: other augmented images (GR)", labels[name].generality, ">=", general),
            Bar(f"labels, {name}: accuracy elsewhere lost", labels[name].lost, "<=", lost),
        )
    ]
    best = max(fogged, key=lambda name: fogged[name].fogged_after)
    return [
        *found,
        Bar("fog: accuracy before", fogged[best].fogged_before, "<=", 0.3),
        Bar(f"fog, {best}: accuracy after", fogged[best].fogged_after, ">=", 0.8),
        Bar(f"fog, {best}: clean accuracy lost", fogged[best].lost, "<=", 0.01),
    ]


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "digits")
    parser.set_defaults(model="trained here")
    parser.add_argument("--edits", type=int, default=100, help="label edits")
    parser.add_argument("--rephrases", type=int, default=24, help="augmented images given with each")
    parser.add_argument("--strength", type=float, default=0.1, help="of augmentation")
    parser.add_argument("--repairs", type=int, default=200, help="fogged digits with their true label")
    parser.add_argument("--copies", type=int, default=8, help="moved and turned copies given with each of them")
    parser.add_argument("--fog", type=float, default=0.3, help="how thick; MNIST-C's severities are 0.2 to 1")
    parser.add_argument("--fitted-on", default="fog", help="corruptions of training digits that CNP is fitted on")
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, edit, show."""
    chosen = options().parse_args(argv)
    torch.set_num_threads(chosen.threads)
    data, start = digits(chosen.data, chosen.seed), time.perf_counter()
    model = trained(data, chosen.epochs, chosen.seed)
    common.note(f"trained in {time.perf_counter() - start:.0f} s, accuracy {accuracy(model, *data.test):.3f}")
    labels = {}
    for name, editor in label_editors(model, data, vars(chosen)).items():
        labels[name] = relabelled(model, editor, data, vars(chosen))
        common.note(f"labels, {name}: {_without_seconds(labels[name])}")
    (images, _), _ = foggy(data, chosen.fog, chosen.repairs, chosen.seed)
    fogged = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metric.safetensors"
        metric = fitted(model, data, chosen.fitted_on.split(","), path, chosen.seed)
        common.note(f"metric: {metric}")
        for name, editor in fog_editors(model, images, path).items():
            fogged[name] = repaired(model, editor, data, vars(chosen))
            common.note(f"fog, {name}: {_without_seconds(fogged[name])}")
    found = judged(labels, fogged)
    quality = {
        "labels": {name: _without_seconds(one) for name, one in labels.items()},
        "fog": {name: _without_seconds(one) for name, one in fogged.items()},
    }
    seconds = {
        "labels": {name: timing.spread(one.seconds).as_dict("s") for name, one in labels.items()},
        "fog_seconds": {name: one.seconds for name, one in fogged.items()},
    }
    tables = [bars.table(found), _table(labels, fogged)]
    card = common.machine_card(model)
    document = report.Report("digits", card, common.given(chosen), quality, seconds, tables)
    report.publish(document, chosen.results, chosen.against)


def _without_seconds(one: Relabelled | Repaired) -> dict[str, float]:
    return {name: value for name, value in {**asdict(one), "lost": one.lost}.items() if name != "seconds"}


def _table(labels: Mapping[str, Relabelled], fogged: Mapping[str, Repaired]) -> report.Table:
    rows = [
        ("labels", name, one.success, one.generality, one.accuracy_before, one.accuracy_after)
        for name, one in labels.items()
    ]
    more = [
        ("fog", name, one.fogged_before, one.fogged_after, one.clean_before, one.clean_after)
        for name, one in fogged.items()
    ]
    header = (
        "",
        "editor",
        "edited, or fogged before",
        "augmented, or fogged after",
        "elsewhere before",
        "elsewhere after",
    )
    return report.Table("digits: labels changed, and fog repaired (accuracy)", header, [*rows, *more])


if __name__ == "__main__":
    main()
