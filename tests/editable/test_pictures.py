"""Pictures: PIL images, files and bytes through a model's own transform, and what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from editable import Edit, EditableModel, augment, pictures
from editable.adapters import GRACE
from editable.asking import Asker
from editable.datasets.case import Case, Question
from editable.edited import EditedSystem
from editable.errors import InputError
from editable.inputs import Reader
from editable.learn import shadow_of
from editable.memory.log import Log
from editable.pictures import Transform
from editable.protocols import Protocol, run
from editable.scoring import Base, drift_summary
from tests.families import FAMILIES, LABELS, Loaded

NAMES = ("ant", "bee", "crab", "dove", "emu", "fox", "gull")


def load(name: str) -> Loaded:
    return {family.name: family for family in FAMILIES}[name].load()


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def small(image: Image.Image) -> Tensor:
    """(3, 32, 32) in [-1, 1]: the middle of a picture."""
    left, top = (image.width - 32) // 2, (image.height - 32) // 2
    cut = image.crop((left, top, left + 32, top + 32))
    return torch.tensor(list(cut.tobytes())).reshape(32, 32, 3).movedim(2, 0) / 127.5 - 1


@pytest.fixture
def em() -> Iterator[EditableModel]:
    with closing(EditableModel(load("torchvision-resnet18").model, Transform(small, NAMES), GRACE())) as made:
        yield made


def other(em: EditableModel, given: Any) -> str:
    """A label that the model does not give by itself."""
    return NAMES[(NAMES.index(em.ask(given)) + 1) % LABELS]


# ------------------------------------------------------------------------------------------------ what is a picture


def test_an_image_its_file_and_its_bytes_are_one_input(em: EditableModel, tmp_path: Path) -> None:
    image, reader = picture(), Reader(em.model, em.tokenizer)
    image.save(tmp_path / "one.png")
    bytes_ = torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(40, 48, 3).movedim(2, 0)
    wanted = small(image)
    for given in (image, tmp_path / "one.png", str(tmp_path / "one.png"), bytes_, wanted):
        assert list(reader.arguments(given)) == ["x"]
        assert torch.equal(reader.arguments(given)["x"], wanted[None])


def test_an_edit_of_a_picture(em: EditableModel, tmp_path: Path) -> None:
    image, unrelated = picture(), picture(1)
    image.save(tmp_path / "one.png")
    before = em.ask(unrelated)
    target = other(em, image)
    receipt = em.edit(Edit(image, target, locality=[unrelated]))
    assert (receipt.verified.reliability, receipt.verified.locality) == (1.0, 1.0)
    assert em.ask(image) == em.ask(tmp_path / "one.png") == em.ask(str(tmp_path / "one.png")) == target
    assert em.ask(unrelated) == before
    assert [one.prompt for one in em.edits] == ["<picture 48x40>"]
    assert em.explain(image).fired == [receipt.id]
    assert em.explain(unrelated).fired == []
    em.rollback(receipt.id)
    assert em.ask(image) != target


def test_rephrases_are_pictures_of_which_each_has_a_key(em: EditableModel) -> None:
    image = picture()
    levels = torch.tensor(list(image.tobytes())).reshape(40, 48, 3).movedim(2, 0) / 255
    changed = [
        (255 * one).round().to(torch.uint8) for one in augment.neighbours(levels, 0.6, names=("shift", "fog")).values()
    ]
    target = other(em, image)
    em.edit(Edit(image, target))
    missed = [one for one in changed if em.ask(one) != target]
    assert missed, "the neighbours are too near for this test"
    em.rollback(em.edits[0].id)
    em.edit(Edit(image, target, rephrases=changed))
    assert em.ask(image) == target
    assert [em.ask(one) for one in changed] == [target] * 2
    assert len(em.state("grace").routes.book.codebook) == 3


def test_the_log_holds_the_edit_by_its_tensors(tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "edits.db"
    image.save(tmp_path / "one.png")
    with EditableModel(load("torchvision-resnet18").model, Transform(small, NAMES), GRACE(), log=path) as em:
        target = other(em, image)
        em.edit(Edit(tmp_path / "one.png", target))
    (tmp_path / "one.png").unlink()  # nothing is read again
    with EditableModel(load("torchvision-resnet18").model, small, GRACE(), log=path) as again:
        assert NAMES[int(again.ask(image))] == target
        assert again.edits[0].prompt == str(tmp_path / "one.png")
        assert again.edits[0].target == target
    with Log(path) as log:
        assert log.identity is not None
        assert log.identity.tokenizer == ""


def test_a_picture_is_turned_upright_and_made_rgb() -> None:
    model, seen = load("torchvision-resnet18").model, []

    def noted(image: Image.Image) -> Tensor:
        seen.append(image)
        return torch.zeros(3, 32, 32)

    lying = picture(size=(40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    lying.info["exif"] = exif.tobytes()
    turned = lying.copy()
    turned.getexif()[0x0112] = 6
    pictures.read(turned, model, Transform(noted))
    pictures.read(picture().convert("RGBA"), model, Transform(noted))
    pictures.read(picture().convert("L"), model, Transform(noted))
    assert [(image.size, image.mode) for image in seen] == [((20, 40), "RGB"), ((48, 40), "RGB"), ((48, 40), "RGB")]


def test_a_model_of_grey_images_is_given_grey_ones_in_its_own_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 900, 3)).bfloat16()
    seen = pictures.read(picture(), model, Transform(lambda image: torch.zeros(len(image.getbands()), 32, 32)))
    assert (seen.shape, seen.dtype) == ((1, 32, 32), torch.bfloat16)


# -------------------------------------------------------------------------------------------- where transforms are


def test_an_image_processor_is_a_transform() -> None:
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    loaded = load("vit")
    reader = Reader(loaded.model, processor)
    assert reader.tokenizer is None
    wanted = processor(images=picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(reader.arguments(picture())["pixel_values"], wanted)


def test_timm_models_bring_theirs() -> None:
    import timm

    model = timm.create_model("test_resnet", pretrained=False).eval()
    reader = Reader(model)
    config = timm.data.resolve_model_data_config(model)
    wanted = timm.data.create_transform(**config, is_training=False)(picture(size=(200, 180)))
    assert wanted.shape == (3, 160, 160)
    assert torch.equal(reader.arguments(picture(size=(200, 180)))["x"][0], wanted)
    assert reader.labels.number("goldfish") == 1
    assert reader.labels.name(1) == "goldfish, Carassius auratus"
    assert Reader(timm.create_model("test_resnet", num_classes=7)).labels.names == ()


def test_torchvisions_transform_is_any_callable() -> None:
    from torchvision.models import ResNet18_Weights

    transform = ResNet18_Weights.DEFAULT.transforms()
    reader = Reader(load("torchvision-resnet18").model, transform)
    assert torch.equal(reader.arguments(picture())["x"][0], transform(picture()))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_models_of_text_take_no_pictures(name: str) -> None:
    loaded = load(name)
    reader = Reader(loaded.model, loaded.tokenizer)
    assert reader.tokenizer is not None
    for given in (picture(), Path("one.png")):
        with pytest.raises(InputError, match=rf"expected text, since {type(loaded.model).__name__} takes no images"):
            reader.arguments(given)


# ------------------------------------------------------------------------------------------------------- errors


def test_no_transform(em: EditableModel) -> None:
    with pytest.raises(InputError) as caught:
        Reader(em.model).arguments(picture())
    assert str(caught.value) == (
        "The input is a picture, but no transform was given, expected what makes of it the tensor that the model "
        "takes; pass EditableModel(model, transform, ...), such as ResNet18_Weights.DEFAULT.transforms(), an image "
        "processor, or any callable from a PIL image to a tensor (channels, height, width)."
    )


@pytest.mark.parametrize(
    ("function", "made"),
    [(lambda _: torch.zeros(1, 3, 32, 32), r"a Tensor of shape \(1, 3, 32, 32\)"), (lambda image: image, "a Image")],
)
def test_a_transform_that_makes_something_else(function: Callable[..., Any], made: str) -> None:
    with pytest.raises(InputError, match=rf"The transform made {made} of a picture, expected a tensor \(channels"):
        Transform(function)(picture())


def test_files_that_are_no_pictures(em: EditableModel, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        em.ask("no.png")
    assert str(caught.value) == (
        f"Image file 'no.png' does not exist (looked in {Path.cwd()}), expected the path of an image; check the path."
    )
    with pytest.raises(InputError, match=r"Image file '.*' is a folder, expected the path of an image"):
        em.ask(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("no pixels")
    with pytest.raises(InputError, match=r"text.png' cannot be read as an image, expected one in a format .* Reason: "):
        em.edit(Edit(text, 1))
    whole = tmp_path / "whole.png"
    picture().save(whole)
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(InputError, match=r"whole.png' cannot be read as an image"):
        em.ask(whole)


def test_tensors_that_are_no_pictures(em: EditableModel) -> None:
    with pytest.raises(InputError, match=r"a tensor of torch.int64 and shape \(3, 4, 4\), expected floats as"):
        em.ask(torch.zeros(3, 4, 4, dtype=torch.long))


def test_an_unknown_label(em: EditableModel) -> None:
    with pytest.raises(InputError, match=r"is 'bea', expected a label from 0 to 6 of ResNet. The nearest .* are: bee"):
        em.edit(Edit(picture(), "bea"))


def test_one_picture_where_several_are_expected() -> None:
    for one in (picture(), Path("one.png")):
        with pytest.raises(InputError, match=r"Edit\.rephrases is one .*, expected a sequence of inputs"):
            Edit(picture(), 1, rephrases=one)  # type: ignore[arg-type]


def test_text_is_asked_without_pillow_and_timm(tmp_path: Path) -> None:
    code = (
        "import sys, editable, editable.pictures, editable.inputs, editable.augment\n"
        "assert not {'PIL', 'timm', 'torchvision'} & set(sys.modules), sys.modules.keys() & {'PIL', 'timm'}\n"
        "assert not editable.pictures.is_picture(object())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=dict(os.environ))


# -------------------------------------------------------------------------------------------------- neighbourhoods


def test_changed_images_are_cases_of_a_protocol() -> None:
    """One change is learned from, another is asked about, another picture is what must not change."""
    loaded = load("timm-resnet")
    transform = Transform(labels=NAMES)
    spots = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    images = nn.functional.interpolate(spots, (32, 32), mode="bicubic").clamp(0, 1)
    with closing(EditableModel(loaded.model, transform, GRACE())) as em:
        cases = []
        for index, image in enumerate(images[:3]):
            near = augment.neighbours(image, 0.1, seed=index)
            target = other(em, image)
            edit = Edit(image, target, rephrases=[near["shift"]])
            cases.append(Case(edit, (Question(near["crop"], (target,)),), (Question(images[4]),)))
        base = Base(Asker(shadow_of(loaded.model), transform))
        found = run(EditedSystem(em, "grace"), cases, base, Protocol("sequential"), [images[5]])
        assert len(em.state("grace").routes.book.codebook) == 6
    final = found.final.summary()
    assert (final["success_rate_exact"], final["generalization_rate_exact"], final["bit_equal_share"]) == (1, 1, 1)
    assert drift_summary(found.checkpoints[-1].unrelated)["bit_equal_share"] == 1
