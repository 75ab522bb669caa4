"""The images of a study: training and test images never meet, and everybody gets a share of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedddpm.errors import DataError
from fedddpm.experiment.design.images import ImageSource, class_counts, open_source, share_out
from fedddpm.experiment.design.settings import build


def make_folder(folder: Path, count: int = 60) -> Path:
    rng = np.random.default_rng(1)
    for index in range(count):
        place = folder / ("bright" if index % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (16, 16)) + 100 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index:03d}.png")
    return folder


def source(folder: Path, **changes: object) -> ImageSource:
    return ImageSource.of(build({"data": str(folder), "institutions": (3,)}, changes))


@pytest.mark.parametrize("limits", [{}, {"subset": 30}, {"subset": 30, "test_images": 4}])
def test_a_set_without_test_images_gives_some_of_its_own(tmp_path: Path, limits: dict[str, object]) -> None:
    train, test = open_source(source(make_folder(tmp_path / "images"), **limits))
    assert (len(train), len(test)) == (limits.get("subset", 54), limits.get("test_images", 6))
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in test.images}


def test_sub_folders_may_be_classes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    assert open_source(source(folder))[0].labels is None
    train, _ = open_source(source(folder, labels="folders"))
    assert train.labels is not None
    brightness = train.images.float().mean((1, 2, 3))
    assert bool(((brightness > 100) == (train.labels == 0)).all())  # "bright" sorts before "dark"


@pytest.mark.parametrize("split", ["iid", "label-skew", "quantity-skew"])
def test_shares_part_the_whole_set_and_follow_the_seed(tmp_path: Path, split: str) -> None:
    train, _ = open_source(source(make_folder(tmp_path / "images"), labels="folders"))
    shares = share_out(train, split, 3, 5, 0.5)
    assert sorted(np.concatenate(shares)) == list(range(len(train)))
    again, other = share_out(train, split, 3, 5, 0.5), share_out(train, split, 3, 6, 0.5)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(shares, other, strict=True))
    assert sum(sum(class_counts(train, share)) for share in shares) == len(train)


def test_more_institutions_than_images_is_an_error(tmp_path: Path) -> None:
    train, _ = open_source(source(make_folder(tmp_path / "images")))
    with pytest.raises(DataError, match="54 images do not go round 6 institutions with at least 10 each"):
        share_out(train, "iid", 6, 0, 0.5)
