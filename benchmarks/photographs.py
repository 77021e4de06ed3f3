"""Edits on photographs: the labels of an ImageNet classifier changed one after another, and everything else left alone.

The physics. A classifier's last step is one matrix product over the pooled features of an image (1,280 numbers in
EfficientNet-Lite0). GRACE decides there, by the distance to the features of the edited photographs, and puts other
features in their place, which give the new label. A photograph that no edit is about lies outside every ball, so its
logits keep all their bits. How far a ball should reach is the question: the same scene shifted, turned or in fog lies
nearby or not, as the model sees it. So generality is given for each kind of change, with and without some of them
(other draws) as the edit's rephrases, each of which brings a key.

The photographs are those that the wheels of scikit-image and scikit-learn carry; nothing is downloaded. They have ten
distinct ones in colour, fewer than edits, so five of them are cut into quarters, which makes 20 distinct pictures to be
edited. Unrelated are the other five and ten in grey, each whole and in quarters: 75 pictures. New labels are drawn from
the hundred that the model finds least likely.

    editable bench photographs
    editable bench photographs --editor grace --set radius=6.0 --strength 0.2
    editable bench photographs --editor tpatcher --edits 5
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from editable import Edit, EditableModel, augment
from editable.benchmarks import bars, common, report, timing
from editable.benchmarks.bars import Bar
from editable.editor import Editor
from editable.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

EDITED = ("astronaut", "chelsea", "coffee", "rocket", "china")
UNRELATED = (
    "motorcycle_left", "flower", "hubble_deep_field", "retina", "ihc",  # in colour
    "camera", "gravel", "brick", "page", "moon", "grass", "cell", "clock_motion", "coins", "text",
)  # fmt: skip
REPHRASES = ("shift", "rotate", "crop", "brightness", "fog")  # kinds of change that are given with an edit
UNLIKELY = 100  # labels, from which a new one is drawn
SHOWN = 8  # edits on the page


@dataclass(frozen=True)
class Photo:
    """One picture, or a quarter of one."""

    name: str
    image: Image

    @property
    def quarters(self) -> list[Photo]:
        """Upper left, upper right, lower left, lower right."""
        width, height = (side // 2 for side in self.image.size)
        boxes = [(x, y, x + width, y + height) for y in (0, height) for x in (0, width)]
        return [Photo(f"{self.name}, quarter {n}", self.image.crop(box)) for n, box in enumerate(boxes, start=1)]

    def changed(self, kind: str, strength: float, seed: int) -> Image:
        """The same after one of `augment.AUGMENTATIONS`."""
        from PIL import Image

        levels = torch.from_numpy(np.array(self.image)).movedim(2, 0).float() / 255  # (3, height, width)
        made = augment.AUGMENTATIONS[kind](levels, strength, torch.Generator().manual_seed(seed))
        return Image.fromarray((255 * made).round().byte().movedim(0, 2).numpy())


def photographs(names: Sequence[str]) -> list[Photo]:
    """Those pictures of the two wheels.

    Raises:
        MissingPackageError: one of the packages is not installed.
    """
    from PIL import Image

    files = {path.stem: path for folder in _folders() for path in sorted(folder.glob("*.*g"))}
    return [Photo(name, Image.open(files[name]).convert("RGB")) for name in names]


def _folders() -> list[Path]:
    try:
        import skimage.data
        import sklearn.datasets
    except ImportError as error:
        raise MissingPackageError(
            "The photographs are those that scikit-image and scikit-learn carry, of which one is not installed; run "
            "`pip install scikit-image scikit-learn`."
        ) from error
    return [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]


@dataclass(frozen=True)
class Shown:
    """One edit as the page shows it.

    Args:
        photo: what was edited.
        before: label of the unedited model.
        target: the new label.
        neighbours: name of a change to the changed picture, its label now, and whether the edit fires there.
    """

    photo: Photo
    before: str
    target: str
    after: str
    neighbours: Mapping[str, tuple[Image, str, bool]]


@dataclass(frozen=True)
class Found:
    """What was measured.

    Args:
        success: share of edits right after their own insertion.
        retained: share right after all.
        generality: kind of change to the share of edits whose changed picture has the new label.
        before: the same with the unedited model.
        equal: share of unrelated pictures whose logits have the unedited model's bits.
        unrelated: how many there are.
        seconds: for each edit.
        shown: the first edits.
    """

    success: float
    retained: float
    generality: Mapping[str, float]
    before: Mapping[str, float]
    equal: float
    unrelated: int
    seconds: Sequence[float]
    shown: Sequence[Shown]


def measured(em: EditableModel, chosen: Namespace, rephrased: bool) -> Found:
    """Insert the edits one by one; then ask for them, their neighbours and what is unrelated."""
    photos = [quarter for photo in photographs(EDITED) for quarter in photo.quarters][: chosen.edits]
    others = [one for photo in photographs(UNRELATED) for one in (photo, *photo.quarters)]
    targets = [_unlikely(em, photo.image, chosen.seed + n) for n, photo in enumerate(photos)]
    said = [em.ask(photo.image) for photo in photos]
    base = [_logits(em, one.image) for one in others]
    right, seconds = [], []
    for n, (photo, target) in enumerate(zip(photos, targets, strict=True)):
        rephrases = [photo.changed(kind, chosen.strength, 1000 + n) for kind in REPHRASES] if rephrased else []
        receipt = em.edit(Edit(photo.image, target, rephrases=rephrases), verify=False)
        right.append(em.ask(photo.image) == target)
        seconds.append(sum(receipt.seconds.values()))
    now = [em.ask(photo.image) for photo in photos]
    equal = [torch.equal(_logits(em, one.image), before) for one, before in zip(others, base, strict=True)]
    asked = {kind: [one.changed(kind, chosen.strength, n) for n, one in enumerate(photos)] for kind in _kinds(photos)}
    general = {kind: _share(em, images, targets) for kind, images in asked.items()}
    with em.unedited():
        before = {kind: _share(em, images, targets) for kind, images in asked.items()}
    shown = [
        Shown(photos[n], said[n], targets[n], now[n], {kind: _neighbour(em, asked[kind][n]) for kind in asked})
        for n in range(0, len(photos), max(1, math.ceil(len(photos) / SHOWN)))
    ]
    kept = mean(one == target for one, target in zip(now, targets, strict=True))
    return Found(mean(right), kept, general, before, mean(equal), len(others), seconds, shown)


def _kinds(photos: Sequence[Photo]) -> list[str]:
    return list(augment.AUGMENTATIONS) if photos else []


@torch.no_grad()
def _logits(em: EditableModel, image: Image) -> Tensor:
    output = em(em.tokenizer(image)[None].to(next(em.model.parameters()).device))
    return getattr(output, "logits", output)[0]  # type: ignore[no-any-return]


def _unlikely(em: EditableModel, image: Image, seed: int) -> str:
    """A label drawn from the least likely ones."""
    least = _logits(em, image).topk(UNLIKELY, largest=False).indices
    drawn = least[torch.randint(len(least), (1,), generator=torch.Generator().manual_seed(seed))]
    return str(em.tokenizer.labels[int(drawn)])


def _share(em: EditableModel, images: Sequence[Image], targets: Sequence[str]) -> float:
    return mean(em.ask(image) == target for image, target in zip(images, targets, strict=True))


def _neighbour(em: EditableModel, image: Image) -> tuple[Image, str, bool]:
    return image, em.ask(image), bool(em.explain(image).fired)


# --- showing ---


def judged(found: Mapping[str, Found]) -> list[Bar]:
    """The figures that have a bar."""
    made = []
    for name, one in found.items():
        made.append(Bar(f"{name}: success right after the edit (SR)", one.success, ">=", 1.0))
        made.append(Bar(f"{name}: success with the final model (SRR)", one.retained, ">=", 1.0))
        made.append(Bar(f"{name}: unrelated pictures bit-equal", one.equal, ">=", 1.0))
    return made


def generality(found: Mapping[str, Found]) -> report.Table:
    """A line for each kind of change."""
    first = next(iter(found.values()))
    rows: list[Sequence[object]] = [
        (kind, first.before[kind], *(one.generality[kind] for one in found.values())) for kind in first.generality
    ]
    rows.append(("mean", *(mean(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    return report.Table("generality: changed pictures with the new label", ("", "unedited", *found), rows)


def draw(shown: Sequence[Shown]) -> Callable[[Axes], None]:
    """A row for each edit: the picture before and after, and its neighbours; those where the edit fired are framed."""

    def plot(axes: Axes) -> None:
        axes.axis("off")
        kinds = list(shown[0].neighbours)
        width, height = 1 / (len(kinds) + 1), 1 / len(shown)
        for row, one in enumerate(shown):
            label = f"{_cut(one.before)}\n→ {_cut(one.after)}"
            cells = [(one.photo.image, label, True), *one.neighbours.values()]
            for column, (image, text, fired) in enumerate(cells):
                place = (column * width, 1 - (row + 1) * height, 0.94 * width, 0.7 * height)
                cell = axes.inset_axes(place)
                cell.imshow(np.asarray(image.resize((96, 72))))
                cell.set_xticks([])
                cell.set_yticks([])
                title = f"{kinds[column - 1]}\n{_cut(text)}" if column else text
                cell.set_title(title, fontsize=4.5, pad=1.5)
                for side in cell.spines.values():
                    side.set(color="tab:red" if fired else "lightgrey", linewidth=1.5 if fired else 0.5)

    return plot


def _cut(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def quality(found: Mapping[str, Found]) -> dict[str, Any]:
    """What must repeat."""
    return {name: {k: v for k, v in vars(one).items() if k not in ("seconds", "shown")} for name, one in found.items()}


def options() -> ArgumentParser:
    """The command line."""
    parser = common.parser(__doc__, "photographs")
    common.add_editor(parser)
    parser.set_defaults(model="efficientnet-lite0")
    parser.add_argument("--edits", type=int, default=20, help="photographs to be edited (default and most: 20)")
    parser.add_argument("--strength", type=float, default=0.1, help="of the changes, 0 to 1 (default 0.1)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure without and with rephrases, and show both."""
    chosen = options().parse_args(argv)
    editor: Editor = common.editor(chosen)
    model, transform = common.prepare(chosen)
    found: dict[str, Found] = {}
    for name, rephrased in (("prompt alone", False), (f"with {len(REPHRASES)} rephrases", True)):
        with closing(EditableModel(model, transform, editor=editor)) as em:
            if not em.images or not getattr(transform, "labels", ()):
                raise InputError(
                    f"Model {chosen.model!r} reads no pictures or has no names of labels, expected an ImageNet "
                    "classifier; leave --model out for EfficientNet-Lite0."
                )
            found[name] = measured(em, chosen, rephrased)
        common.note(f"{name}: done")
    judgement = judged(found)
    seconds = {name: timing.spread(one.seconds).as_dict("s") for name, one in found.items()}
    tables = [bars.table(judgement), generality(found)]
    tables.append(report.Table("median seconds an edit", ("", "s"), [(n, s["median_s"]) for n, s in seconds.items()]))
    plots = [report.Plot(name.replace(" ", "-"), draw(one.shown)) for name, one in found.items() if one.shown]
    document = report.Report(
        "photographs", common.machine_card(model), common.given(chosen), quality(found),
        {"edit": seconds, "bars_met": bars.met(judgement)}, tables, plots,
    )  # fmt: skip
    report.publish(document, chosen.results, chosen.against)


if __name__ == "__main__":
    main()
