"""Folders of real files: every mode and size, classes by folder names, and MedMNIST's arrays at every size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm.client import Client
from fedddpm.data.opening import ImageSet, open_images
from fedddpm.errors import DataError
from fedddpm.identity import Identity

GREY = Image.fromarray(np.full((40, 52), 200, np.uint8))


def see_through() -> Image.Image:
    """Grey with a transparent rim, which becomes black."""
    image = GREY.convert("LA")
    alpha = np.zeros((40, 52), np.uint8)
    alpha[5:-5, 5:-5] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


def palette_with_transparency() -> Image.Image:
    return see_through().convert("RGBA").quantize(8)


IMAGES = {
    "L.png": GREY,
    "L.webp": GREY,
    "RGB.bmp": GREY.convert("RGB"),
    "RGB.jpg": GREY.convert("RGB"),
    "CMYK.jpg": GREY.convert("RGB").convert("CMYK"),
    "CMYK.tiff": GREY.convert("RGB").convert("CMYK"),
    "P.png": GREY.convert("P"),
    "P.gif": GREY.convert("P"),
    "RGBA.png": GREY.convert("RGBA"),
    "LA.png": GREY.convert("LA"),
    "I16.png": Image.fromarray(np.full((40, 52), 200 * 256, np.uint16)),
    "I16.tif": Image.fromarray(np.full((40, 52), 200 * 256 + 255, np.uint16)),
}


@pytest.mark.parametrize("name", sorted(IMAGES))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_the_same_grey(tmp_path: Path, name: str, channels: int) -> None:
    IMAGES[name].save(tmp_path / name)
    data = open_images(tmp_path, image_size=32, channels=channels)
    assert data.images.shape == (1, channels, 32, 32)
    assert (data.images.int() - 200).abs().max() <= 2


@pytest.mark.parametrize(
    ("image", "bright", "dark"),
    [(Image.fromarray(np.tile([[True, False]], (40, 20))), 255, 0), (see_through(), 200, 0),
     (palette_with_transparency(), 200, 0)],
    ids=["1", "LA", "P"],
)  # fmt: skip
def test_one_bit_and_transparency(tmp_path: Path, image: Image.Image, bright: int, dark: int) -> None:
    image.save(tmp_path / "x.png")
    pixels = open_images(tmp_path, image_size=40, channels=1).images
    assert abs(int(pixels.max()) - bright) <= 1
    assert int(pixels.min()) == dark


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_every_size_up_and_down(tmp_path: Path, size: int) -> None:
    for i, shape in enumerate([(20, 20), (128, 90), (300, 301)]):
        Image.fromarray(np.full(shape, 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = open_images(tmp_path, image_size=size, channels=3)
    assert data.images.shape == (3, 3, size, size)
    assert data.images[:, 1, size // 2, 0].tolist() == [0, 40, 80]


def test_a_photograph_taken_sideways_is_turned(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = open_images(tmp_path, image_size=16, channels=1).images[0, 0]
    assert upright[0].max() == 0
    assert upright[-1].min() == 255


def test_hidden_files_are_nobodys_images(tmp_path: Path) -> None:
    GREY.save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork of a Mac")
    (tmp_path / ".thumbnails").mkdir()
    GREY.save(tmp_path / ".thumbnails" / "b.png")
    data = open_images(tmp_path, image_size=16)
    assert (len(data), list(data.skipped)) == (1, [])


def pets(folder: Path, *classes: str) -> Path:
    for place, name in enumerate(classes):
        for i in range(3):
            (folder / name / "deeper").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 10 * place + i, np.uint8)).save(folder / name / "deeper" / f"{i}.png")
    return folder


def test_sub_folders_are_classes_only_when_asked(tmp_path: Path) -> None:
    pets(tmp_path, "dog", "ant", "cat")
    assert open_images(tmp_path).labels is None
    data = open_images(tmp_path, labels="folders")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.images[:, 0, 0, 0].tolist() == [10, 11, 12, 20, 21, 22, 0, 1, 2]  # ant, cat, dog
    few = open_images(tmp_path, labels="folders", limit=3)
    assert few.labels is not None
    assert few.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [["cat", "bird", "dog"], "cat,bird,dog"])
def test_an_institution_without_a_class_numbers_as_the_others(tmp_path: Path, labels: str | list[str]) -> None:
    data = open_images(pets(tmp_path, "cat", "dog"), labels=labels)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_labels_stay_with_their_images_where_files_are_skipped(tmp_path: Path) -> None:
    for i in range(24):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(pets(tmp_path, "a", "b") / "ab"[i % 2] / f"x{i:02}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")  # comes before all others of its class
    data = open_images(tmp_path, labels="folders", image_size=8, channels=1)
    assert list(data.skipped) == ["a/0.png: not an image"]
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 15 + [1] * 15


def test_classes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    pets(tmp_path / "pets", "cat", "dog")
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8))
    cases: list[tuple[Path, str | list[str], str]] = [
        (tmp_path / "pets", ["cat"], "dog in .* belongs to none of the classes cat"),
        (tmp_path / "pets", ["cat", "dog", "cat"], "name one twice"),
        (tmp_path / "x.npz", "folders", "need a folder of images"),
    ]
    for source, labels, message in cases:
        with pytest.raises(DataError, match=message):
            open_images(source, labels=labels)
    GREY.save(tmp_path / "pets" / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png in .* belongs to none"):
        open_images(tmp_path / "pets", labels="folders")


def test_an_institution_sets_classes_and_cache(tmp_path: Path) -> None:
    identity = Identity.generate("hospital-a")
    identity.save(tmp_path / "a.key")

    def start(**settings: str | Path) -> Client:
        return Client(
            aggregator_url="http://127.0.0.1:9",
            identity=tmp_path / "a.key",
            federation_root=identity.public_key,
            data=pets(tmp_path / "pets", "cat", "dog"),
            state_dir=tmp_path / "state",
            **settings,  # type: ignore[arg-type]
        )

    start(labels="cat,dog", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.safetensors"))
    with pytest.raises(DataError, match=r"dog in .* belongs to none of the classes cat"):
        start(labels="cat")


def test_what_was_left_out_is_said_in_a_sentence() -> None:
    one = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert ImageSet(one).left_out == ""
    assert ImageSet(one, None, ["a: b"]).left_out == "1 file could not be read and is left out: a: b"
    many = ImageSet(one, None, list("abcd")).subset([0])
    assert many.left_out == "4 files could not be read and are left out: a; b; c; ..."


@pytest.mark.parametrize("size", [28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_has_three_splits_and_labels_in_a_column(tmp_path: Path, size: int, channels: int) -> None:
    shape = (size, size) if channels == 1 else (size, size, 3)
    arrays = {}
    for place, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 4))):
        arrays[f"{split}_images"] = np.full((count, *shape), place, np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None]
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays)
    for split, value, count in (("train", 0, 6), ("test", 2, 4)):
        data = open_images(tmp_path / "pathmnist.npz", split=split, image_size=size, channels=channels)  # type: ignore[arg-type]
        assert data.images.shape == (count, channels, size, size)
        assert (data.images == value).all()
        assert data.labels is not None
        assert data.labels.tolist() == list(range(count))
