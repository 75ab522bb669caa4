"""``fedddpm evaluate`` from the command line, with the quick net."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.sdk.support.evaluated import SIZE, shapes
from typer.testing import CliRunner

from fedddpm.cli import app
from fedddpm.evaluation.scorecard import FORMAT
from fedddpm.model.model_files import save_model
from fedddpm.model.unet import UNet

TRAIN, TEST = shapes(600, 1), shapes(300, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    arrays = {
        f"{name}_{what}": values.numpy()
        for name, part in (("train", TRAIN), ("test", TEST))
        for what, values in (("images", part.images), ("labels", part.labels))
    }
    np.savez(folder / "real.npz", **arrays)
    np.savez(folder / "unlabelled.npz", images=TEST.images.numpy())
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, image in enumerate(shapes(120, 3).images):
        Image.fromarray(image[0].numpy()).save(pictures / f"{number:06}.png")
    return folder


def run(place, *options, reference="real.npz", net="classifier"):
    arguments = ["evaluate", "--reference", str(place / reference), "--net", net, "--cache", str(place / "cache")]
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app.app, [*arguments, "--classifier-steps", "8", *map(str, options)]
    )


def test_a_folder_is_scored_with_its_numbers_and_floors(place):
    out = place / "scores.json"
    options = ("--images", place / "pictures", "--count", "50,100", "--saving", "rescaled", "--saving", "clipped")
    done = run(place, *options, "--out", out)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["format"] == FORMAT
    assert [(s["label"], s["saving"]) for s in found["scores"]] == [
        ("FD (N = 50)", "rescaled"),
        ("FD (N = 100)", "rescaled"),
        ("FD (N = 50)", "clipped"),
        ("FD (N = 100)", "clipped"),
    ]
    plain, clipped = found["scores"][1], found["scores"][3]
    assert plain["floor"] == clipped["floor"] > 0
    assert plain["distance"] < clipped["distance"]
    assert 0 <= plain["recall"] <= 1
    for text in ("FD (N = 100)", "floor", f"{plain['distance']:.4f}", f"{plain['floor']:.4f}", "8 steps"):
        assert text in done.output


def test_all_images_of_a_file_are_scored_where_no_count_is_given(place):
    done = run(place, "--images", place / "unlabelled.npz", "--no-companions")
    assert done.exit_code == 0, done.output
    assert "FD (N = 300)" in done.output


def test_images_drawn_from_a_model_file_are_scored(place):
    save_model(place / "model.safetensors", UNet(16, 1, "tiny"))
    np.savez(place / "sixteen.npz", **{f"{name}_{what}": values for name, what, values in _padded()})
    drawing = ("--model", place / "model.safetensors", "--count", "6", "--sampler", "ddim", "--steps", "2")
    done = run(place, *drawing, reference="sixteen.npz")
    assert done.exit_code == 0, done.output
    assert "FD (N = 6)" in done.output
    assert "drawn from the weights as trained by ddim, 2 steps, seed 0" in done.output
    wrong = run(place, *drawing)
    assert wrong.exit_code == 2
    assert f"draws 16x16x1, the reference has {SIZE}x{SIZE}x1" in wrong.output


def _padded():
    for name, part in (("train", TRAIN), ("test", TEST)):
        yield name, "images", np.pad(part.images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        yield name, "labels", part.labels.numpy()


def test_a_single_set_is_parted_and_says_so(place):
    np.savez(place / "single.npz", images=TRAIN.images.numpy(), labels=TRAIN.labels.numpy())
    done = run(place, "--images", place / "pictures", "--count", "40", "--no-companions", reference="single.npz")
    assert done.exit_code == 0, done.output
    assert "300 of them are the reference" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "exactly one of --images, --model and --state-dir"),
        (("--images", "x", "--model", "y"), "exactly one of --images, --model and --state-dir"),
        (("--images", "nowhere"), "nowhere does not exist"),
        (("--images", "pictures", "--count", "many"), "--count many"),
        (("--images", "pictures", "--count", "1"), "1 images cannot be scored"),
        (("--images", "pictures", "--count", "121"), "there are 120"),
    ],
)
def test_what_cannot_be_scored_is_said_with_code_2(place, monkeypatch, options, said):
    monkeypatch.chdir(place)
    done = run(place, *options)
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_errors_come_before_images_are_drawn(place, tmp_path):
    drawing = ("--model", place / "none.safetensors")
    unlabelled = run(place, *drawing, reference="unlabelled.npz")
    assert "learns from labels" in unlabelled.output
    no_weights = run(place, *drawing, "--weights", tmp_path / "none.pth", net="inception")
    assert "given file" in no_weights.output
    no_folder = run(place, *drawing, "--out", tmp_path / "none" / "scores.json")
    assert "mkdir -p" in no_folder.output
    assert [done.exit_code for done in (unlabelled, no_weights, no_folder)] == [2, 2, 5]
