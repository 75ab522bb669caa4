"""Images out of a network and into files; export for other programs."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from fedddpm.cli.app import app
from fedddpm.data.image_set import to_uint8
from fedddpm.errors import CheckpointError, ConfigError, DataError, FedDDPMError, ModelError
from fedddpm.files.atomic import load_tensors
from fedddpm.generation.export import export_model
from fedddpm.generation.image_files import save_folder, save_grid
from fedddpm.generation.networks import load_network, open_network
from fedddpm.generation.sampling import sample_images, sample_images_raw
from fedddpm.model.diffusion import Diffusion, guided
from fedddpm.model.ema import AverageState, average_file, save_average
from fedddpm.model.model_files import load_model_into, save_model
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet

CPU = torch.device("cpu")


def tiny(classes: int = 0, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, 1, "tiny", classes=classes)


def draw(model: UNet, count: int = 5, seed: int = 0, **options: object) -> Tensor:
    return sample_images_raw(model, count, sampler="dpm", steps=3, seed=seed, device=CPU, **options)  # type: ignore[arg-type]


def command(folder: Path, *arguments: object) -> Result:
    with contextlib.chdir(folder):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


# --- drawing -------------------------------------------------------------------------------------------------------


def test_a_seed_decides_the_images_however_many_are_drawn() -> None:
    model = tiny()
    images = draw(model, batch=2)
    assert images.shape == (5, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert torch.equal(images, draw(model, batch=2))
    assert torch.equal(images[:4], draw(model, count=4, batch=2))
    assert not torch.equal(images, draw(model, seed=1, batch=2))
    assert len(torch.unique(images.flatten(1), dim=0)) == 5  # no batch repeats another


def test_bytes_are_the_floats_rescaled() -> None:
    model = tiny()
    images = sample_images(model, 3, sampler="ddim", steps=2, seed=4, device=CPU)
    assert images.dtype == torch.uint8
    raw = sample_images_raw(model, 3, sampler="ddim", steps=2, seed=4, device=CPU)
    assert torch.equal(images, to_uint8(raw))


def test_progress_counts_the_steps_of_all_batches() -> None:
    said: list[tuple[int, int]] = []
    draw(tiny(), batch=2, on_progress=lambda *step: said.append(step))
    assert said == [(done, 9) for done in range(1, 10)]  # three batches of three steps


def test_labels_go_to_the_images_in_order() -> None:
    model = tiny(classes=3)
    by_itself = draw(model, batch=2)
    assert torch.equal(by_itself, draw(model, batch=2, labels=torch.tensor([0, 1, 2, 0, 1])))
    other = draw(model, batch=2, labels=torch.tensor([0, 1, 2, 0, 3]))  # the last one without a label
    assert torch.equal(by_itself[:4], other[:4])
    assert not torch.equal(by_itself[4], other[4])


def test_guidance_reaches_the_network() -> None:
    model, labels = tiny(classes=3), torch.tensor([0, 1, 2])
    strong = draw(model, count=3, guidance=4.0)
    assert not torch.equal(strong, draw(model, count=3))
    seen: list[Tensor] = []
    handle = model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    draw(model, count=3, labels=labels, guidance=4.0)
    handle.remove()
    assert [row.tolist() for row in seen] == [[0, 1, 2, 3, 3, 3]] * 3
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([9, 9, 9])
    with torch.no_grad():
        eps = guided(model, labels, 3, 4.0)(x, t)
        torch.testing.assert_close(eps, 4 * model(x, t, labels) - 3 * model(x, t), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (0, {"labels": torch.zeros(5, dtype=torch.int64)}, "not trained with labels"),
        (0, {"guidance": 2.0}, "not trained with labels"),
        (3, {"labels": torch.tensor([0, 1, 2, 3, 4])}, "from 0 to 4, the network knows 0 to 2"),
        (3, {"labels": torch.tensor([0, 1, 2, 0, -1])}, "from -1 to 2"),
        (3, {"labels": torch.zeros(4, dtype=torch.int64)}, "5 images need as many"),
        (3, {"labels": torch.zeros(5)}, "torch.float32"),
        (3, {"guidance": -1.0}, "guidance of -1"),
        (3, {"guidance": math.nan}, "guidance of nan"),
        (0, {"batch": 0}, "batches of 0"),
        (0, {"count": 0}, "0 images"),
    ],
)
def test_wishes_a_network_cannot_fulfil_are_refused(classes: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(tiny(classes), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sampler", "steps"), [("dpm", 1000), ("dpm", 0), ("ancestral", 20), ("euler", None)])
def test_impossible_steps_are_refused_before_a_step(sampler: str, steps: int | None) -> None:
    model = tiny()
    model.register_forward_hook(lambda *_: pytest.fail("the network was used"))
    with pytest.raises(ConfigError):
        sample_images(model, 1, sampler=sampler, steps=steps, seed=0, device=CPU)  # type: ignore[arg-type]


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_holds_every_image_as_it_is(tmp_path: Path, channels: int) -> None:
    images = torch.randint(0, 256, (12, channels, 8, 8), dtype=torch.uint8)
    folder = tmp_path / "deep" / "images"
    save_folder(images, folder)
    assert sorted(path.name for path in folder.iterdir()) == [f"{index:06d}.png" for index in range(12)]
    for index, image in enumerate(images):
        with Image.open(folder / f"{index:06d}.png") as picture:
            assert picture.mode == ("L" if channels == 1 else "RGB")
            shown = np.asarray(picture).reshape(8, 8, channels)
        np.testing.assert_array_equal(shown, image.permute(1, 2, 0).numpy())
    with pytest.raises(ConfigError, match="not empty"):
        save_folder(images, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".images.partial").mkdir()
    (tmp_path / ".images.partial" / "000007.png").write_bytes(b"half")
    (tmp_path / "images").mkdir()  # empty: as good as new
    save_folder(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), tmp_path / "images")
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert not (tmp_path / ".images.partial").exists()


def test_a_grid_shows_the_images_row_by_row(tmp_path: Path) -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].mul(40).expand(6, 1, 8, 8)
    save_grid(images, tmp_path / "g.png", columns=4)
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == (4 * 10 + 2, 2 * 10 + 2)  # two pixels between and around
        pixels = np.asarray(picture.convert("L"))
    centres = [pixels[6 + 10 * row, 6 + 10 * column] for row in range(2) for column in range(4)]
    assert centres == [0, 40, 80, 120, 160, 200, 0, 0]


def test_pictures_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 2, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="2 channels"):
        save_grid(images, tmp_path / "g.png")
    with pytest.raises(DataError, match="2 channels"):
        save_folder(images, tmp_path / "images")
    with pytest.raises(CheckpointError, match=r"ends in \.png"):
        save_grid(images[:, :1], tmp_path / "g.tiff")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="not empty"):
        save_folder(images[:, :1], tmp_path / "file")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_folder(images[:, :1], tmp_path / "file" / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- which weights -------------------------------------------------------------------------------------------------


def with_average(folder: Path) -> tuple[Path, UNet, UNet]:
    """A model file with an average beside it, and the two networks."""
    model, averaged, path = tiny(), tiny(seed=1), folder / "m.safetensors"
    save_model(path, model)
    save_average(average_file(path), model, AverageState(flatten(averaged), 7))
    return path, model, averaged


def test_the_average_is_taken_where_there_is_one(tmp_path: Path) -> None:
    path, model, averaged = with_average(tmp_path)
    np.testing.assert_array_equal(flatten(open_network(None, path)), flatten(averaged))
    np.testing.assert_array_equal(flatten(open_network(None, path, "ema")), flatten(averaged))
    np.testing.assert_array_equal(flatten(open_network(None, path, "model")), flatten(model))
    average_file(path).unlink()
    np.testing.assert_array_equal(flatten(open_network(None, path)), flatten(model))
    with pytest.raises(CheckpointError, match="no average"):
        open_network(None, path, "ema")
    for state_dir, file in ((None, None), (tmp_path, path)):
        with pytest.raises(ConfigError, match="either --state-dir or --model"):
            open_network(state_dir, file)


# --- export --------------------------------------------------------------------------------------------------------


def test_an_exported_file_says_all_that_sampling_needs(tmp_path: Path) -> None:
    model, path = tiny(classes=4), tmp_path / "e.safetensors"
    export_model(path, model, weights="ema")
    _, notes = load_tensors(path)
    schedule, d = json.loads(notes["fedddpm.schedule"]), Diffusion()
    betas = np.linspace(schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"])
    np.testing.assert_allclose(betas, d.betas.numpy())
    assert (schedule["beta_schedule"], schedule["prediction_type"]) == ("linear", "epsilon")
    assert json.loads(notes["fedddpm.image_range"]) == [-1, 1]
    assert json.loads(notes["fedddpm.labels"]) == {"classes": 4, "no_label": 4}
    assert json.loads(notes["fedddpm.architecture"])["preset"] == "tiny"
    assert (notes["format"], notes["fedddpm.weights"]) == ("pt", "ema")
    again = tiny(classes=4, seed=1)
    load_model_into(path, again)  # and this package reads it too
    np.testing.assert_array_equal(flatten(again), flatten(model))
    with pytest.raises(ConfigError, match="not overwritten"):
        export_model(path, model)


@pytest.mark.parametrize("preset", ["paper", "fast", "tiny", "lean"])
def test_diffusers_is_refused_with_the_reason(tmp_path: Path, preset: str) -> None:
    lean = preset == "lean"
    why = "four pixels in one place" if lean else r"normalise before each convolution.*one less"
    with pytest.raises(ModelError, match=why):
        export_model(tmp_path / "e.safetensors", UNet(8, 1, preset, base_dim=32 if lean else 16), "diffusers")
    with pytest.raises(ConfigError, match="no format 'onnx'"):
        export_model(tmp_path / "e.safetensors", tiny(), "onnx")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# --- the commands --------------------------------------------------------------------------------------------------


def test_the_command_draws_from_a_file_into_a_grid_and_a_folder(tmp_path: Path) -> None:
    path, _, averaged = with_average(tmp_path)
    common = ("sample", "--model", path, "--count", 3, "--sampler", "ddim", "--steps", 2, "--seed", 5)
    result = command(tmp_path, *common, "--out", "g.png", "--folder", "images")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["g.png", "images"]
    expected = sample_images(averaged, 3, sampler="ddim", steps=2, seed=5, device=CPU)
    with Image.open(tmp_path / "images" / "000002.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected[2, 0].numpy())
    result = command(tmp_path, *common, "--folder", "plain", "--weights", "model")
    assert result.exit_code == 0, result.output
    expected = sample_images(load_network(path, "model"), 3, sampler="ddim", steps=2, seed=5, device=CPU)
    with Image.open(tmp_path / "plain" / "000002.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected[2, 0].numpy())


def test_labels_on_the_command_line_take_turns(tmp_path: Path) -> None:
    made = command(
        tmp_path, "init-model", "--image-size", 8, "--preset", "tiny", "--classes", 3, "--out", "m.safetensors"
    )
    assert "with 3 classes" in made.stdout
    common = ("sample", "--model", "m.safetensors", "--count", 3, "--steps", 2)
    result = command(tmp_path, *common, "--folder", "i", "--label", 2, "--label", 0, "--guidance", 2)
    assert result.exit_code == 0, result.output
    network, labels = load_network(tmp_path / "m.safetensors", "model"), torch.tensor([2, 0, 2])
    expected = sample_images(network, 3, sampler="dpm", steps=2, seed=0, device=CPU, labels=labels, guidance=2)
    for index in range(3):
        with Image.open(tmp_path / "i" / f"{index:06d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected[index, 0].numpy())
    refused = command(tmp_path, *common, "--out", "g.png", "--label", 7)
    assert (refused.exit_code, isinstance(refused.exception, FedDDPMError)) == (2, False)
    assert "the network knows 0 to 2" in refused.stderr


def test_mistakes_end_before_a_network_is_read(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    model = ("--model", "none.safetensors")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("sample", *model), 2, "nowhere to write"),
        (("sample", "--out", "g.png"), 2, "either --state-dir or --model"),
        (("sample", *model, "--folder", "full"), 2, "not empty"),
        (("sample", *model, "--out", "g.jpg"), 5, "ends in .png"),
        (("sample", *model, "--out", "g.png"), 5, "none.safetensors does not exist"),
        (("sample", *model, "--out", "g.png", "--weights", "ema"), 5, "no average"),
        (("export", "--out", "e.safetensors"), 2, "either --state-dir or --model"),
    ]
    for arguments, code, message in cases:
        result = command(tmp_path, *arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr


def test_the_export_command_says_what_it_wrote(tmp_path: Path) -> None:
    path, _, averaged = with_average(tmp_path)
    result = command(tmp_path, "export", "--model", path, "--out", "e.safetensors")
    assert result.exit_code == 0, result.output
    assert "ema weights" in result.stdout
    np.testing.assert_array_equal(flatten(load_network(tmp_path / "e.safetensors", "model")), flatten(averaged))
    refused = command(tmp_path, "export", "--model", path, "--out", "d.safetensors", "--format", "diffusers")
    assert refused.exit_code == 2
    assert "UNet2DModel" in refused.stderr


def test_a_set_drawn_in_pieces_is_the_same_set():
    torch.manual_seed(0)
    model = UNet(8, 1, "tiny", classes=3)
    how = {"sampler": "dpm", "steps": 3, "seed": 5, "device": torch.device("cpu"), "batch": 4, "guidance": 2.0}
    whole = sample_images_raw(model, 10, **how)
    pieces = [sample_images_raw(model, count, start=start, **how) for start, count in ((0, 4), (4, 6))]
    assert torch.equal(whole, torch.cat(pieces))
    with pytest.raises(ConfigError, match="from number 3 on"):
        sample_images_raw(model, 4, start=3, **how)
