"""The commands ``fedddpm sample`` and ``fedddpm export``: argument parsing and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedddpm.cli.choices import SamplerName, WeightsName
from fedddpm.errors import CheckpointError, ConfigError
from fedddpm.monitoring.terminal import PlainConsole


class FormatName(StrEnum):
    """Who is to read the file."""

    PLAIN = "plain"
    DIFFUSERS = "diffusers"


StateFolder = Annotated[Path | None, typer.Option(help="the institution's state folder: its newest network")]
ModelFile = Annotated[Path | None, typer.Option("--model", help="a model file, instead of --state-dir")]
Weights = Annotated[WeightsName | None, typer.Option(help="moving average or model; default: ema where there is one")]


def sample(
    state_dir: StateFolder = None,
    model: ModelFile = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write: all images in a grid")] = None,
    folder: Annotated[Path | None, typer.Option(help="new folder to write: a PNG for each image")] = None,
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 16,
    sampler: Annotated[
        SamplerName, typer.Option(help="dpm takes the fewest steps, ancestral is the paper's")
    ] = SamplerName.DPM,
    steps: Annotated[int | None, typer.Option(min=1, help="steps of ddim (default 50) or dpm (default 20)")] = None,
    seed: Annotated[int, typer.Option(help="decides the images")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    label: Annotated[list[int] | None, typer.Option(help="what to draw; repeat for several, which take turns")] = None,
    guidance: Annotated[float, typer.Option(help="how far to follow the label: 1 plain, more is stricter")] = 1.0,
    weights: Weights = None,
) -> None:
    """Draw images from the institution's newest network, or from a model file."""
    _require_target(out, folder)

    import torch

    from fedddpm.compute.device import pick_device
    from fedddpm.generation import image_files, networks, sampling

    if folder is not None:
        image_files.require_free_folder(folder)
    path = networks.chosen_file(state_dir, model)
    used = networks.chosen_weights(path, None if weights is None else weights.value)
    network = networks.load_network(path, used)
    with _bar(f"{count} images by {sampler.value}, weights: {used}") as tell:
        images = sampling.sample_images(
            network,
            count,
            sampler=sampler.value,
            steps=steps,
            seed=seed,
            device=pick_device(device),
            labels=torch.tensor([label[i % len(label)] for i in range(count)]) if label else None,
            guidance=guidance,
            on_progress=tell,
        )
    if out is not None:
        image_files.save_grid(images, out)
        typer.echo(str(out))
    if folder is not None:
        image_files.save_folder(images, folder)
        typer.echo(str(folder))


def export(
    out: Annotated[Path, typer.Option(help="safetensors file to write; never overwritten")],
    state_dir: StateFolder = None,
    model: ModelFile = None,
    weights: Weights = None,
    format_: Annotated[
        FormatName, typer.Option("--format", help="diffusers is refused: no model of it is this network")
    ] = FormatName.PLAIN,
) -> None:
    """Write a network with all that another program needs to draw from it."""
    from fedddpm.generation import networks
    from fedddpm.generation.export import export_model

    path = networks.chosen_file(state_dir, model)
    used = networks.chosen_weights(path, None if weights is None else weights.value)
    export_model(out, networks.load_network(path, used), format_.value, used)
    typer.echo(f"{out}: {used} weights, schedule and architecture in the metadata")


def _require_target(out: Path | None, folder: Path | None) -> None:
    """Refuse before the minutes that drawing may take."""
    if out is None and folder is None:
        raise ConfigError("there is nowhere to write the images", "Give --out grid.png, --folder images, or both")
    if out is not None and out.suffix.lower() != ".png":
        raise CheckpointError(f"{out} cannot be written (only PNG is known)", "Choose a name that ends in .png")
    if out is not None and not out.parent.is_dir():
        raise CheckpointError(f"there is no folder {out.parent} for {out.name}", f"Run: mkdir -p {out.parent}")


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on a terminal only; gives what is to be told of each step."""
    console = PlainConsole(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
