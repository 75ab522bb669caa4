"""What is said of grey values at every start: the range as it is trained on, and what looks wrong in it."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.data.grey_summary import grey_line
from fedddpm.data.image_set import split_holdout
from fedddpm.data.opening import ImageSet
from fedddpm.identity import Identity

SIDE = 16


def of(*images: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(np.stack([image.astype(np.uint8).reshape(1, SIDE, SIDE) for image in images])))


def ramp(low: int, high: int) -> np.ndarray:
    return np.linspace(low, high, SIDE * SIDE).round()


def test_the_range_is_counted_over_all_images() -> None:
    line = grey_line(of(ramp(10, 200), ramp(50, 90), np.full(256, 70)))
    assert line.sentence == (
        "grey values 10 to 200 of 0..255, mean 81.7, 1 of 3 images constant (8 bits or fewer, as they are)"
    )
    assert line.fields == {
        "grey_min": 10, "grey_max": 200, "grey_mean": 81.67, "constant": 1, "scaling": "8 bits or fewer, as they are",
    }  # fmt: skip
    assert line.concern == ""
    assert "no images constant" in grey_line(of(ramp(0, 255))).sentence


def test_a_plain_colour_is_constant_and_an_edge_in_one_channel_is_none() -> None:
    images = torch.tensor([10, 120, 250], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(2, 1, 8, 8)
    images[1, 2, :4] = 0
    assert grey_line(ImageSet(images)).constant == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.full(256, 9)] * 3, "3 of 3 images are constant"),
        ([np.full(256, 9), np.full(256, 200), ramp(0, 255)], "2 of 3 images are constant"),
        ([ramp(0, 15)] * 3 + [ramp(0, 255)], "3 of 4 images are nearly constant, with less than 32 of 256 grey values"),
        ([np.r_[ramp(0, 15)[1:], 255]] * 3, "98 % of all pixels lie between 0 and 15 of 0..255"),  # one dead pixel each
    ],
)
def test_what_is_almost_one_grey_is_warned_of(images: list[np.ndarray], message: str) -> None:
    assert grey_line(of(*images)).concern.startswith(message)


def test_half_of_them_constant_is_said_and_not_warned_of() -> None:
    line = grey_line(of(np.zeros(256), ramp(0, 255)))
    assert (line.constant, line.concern) == (1, "")


def site(folder: Path, greys: np.ndarray) -> list[str]:
    """Words that start an institution on ten files of these greys, whose aggregator does not answer."""
    identity = Identity.generate("hospital-a")
    identity.save(folder / "a.key")
    (folder / "images").mkdir()
    for i in range(10):
        Image.fromarray(greys.reshape(SIDE, SIDE)).save(folder / "images" / f"{i}.png")
    words = {
        "aggregator-url": "http://127.0.0.1:9", "identity": "a.key", "federation-root": "ab" * 32, "data": "images",
        "state-dir": "state", "patience": "0", "holdout": "0.2",
    }  # fmt: skip
    return ["participate", *(word for name, value in words.items() for word in (f"--{name}", value))]


def said(folder: Path, words: list[str]) -> list[str]:
    with contextlib.chdir(folder):
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, words)
    assert result.exit_code in (2, 4), result.stderr
    return result.stderr.splitlines()


def test_an_institution_says_it_at_its_start(tmp_path: Path) -> None:
    words = site(tmp_path, np.linspace(0, 60000, 256).astype(np.uint16))
    mapped = "16-bit files (10), 0 to 65535 by their depth mapped to 0..255"
    for _ in range(2):
        (line,) = (line for line in said(tmp_path, words) if "images to train on" in line)
        assert "8 images to train on, 2 held out, on cpu; grey values 0 to 233 of 0..255, mean 116." in line
        assert line.endswith(f"no images constant ({mapped})")
    events = [json.loads(line) for line in said(tmp_path, [*words, "--log-format", "json"])]
    (images,) = (event for event in events if event["event"] == "images")
    expected = {"train": 8, "held_out": 2, "grey_min": 0, "grey_max": 233, "constant": 0, "scaling": mapped}
    assert {name: images[name] for name in expected} == expected
    assert not [event for event in events if event["event"] == "warning" and "constant" in event["message"]]


def test_an_institution_is_warned_of_one_grey(tmp_path: Path) -> None:
    lines = said(tmp_path, site(tmp_path, np.full(256, 40000, np.uint16)))
    assert any("Warning: 8 of 8 images are constant, one grey value throughout" in line for line in lines)


def test_an_institution_stops_where_the_range_is_wrong(tmp_path: Path) -> None:
    lines = said(tmp_path, site(tmp_path, np.linspace(0, 4095, 256).astype(np.uint16)))
    assert "10 of 10 files in images" in lines[-1]
    assert "0 to 65535 by their depth, but hold 0 to 4095" in lines[-1]


def test_parts_of_a_set_know_how_it_was_mapped() -> None:
    whole = ImageSet(of(*[ramp(0, 255)] * 4).images, None, ["a: b"], "as it was")
    for part in split_holdout(whole, 0.5, 0):
        assert (part.scaling, part.skipped) == ("as it was", ["a: b"])
