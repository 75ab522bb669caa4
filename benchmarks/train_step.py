"""How long one training step takes: this package's networks beside those of two well-known libraries, in one run.

    pip install denoising-diffusion-pytorch diffusers
    python benchmarks/train_step.py --threads 2

A step is forward, backward and optimizer on a batch of 28x28 grayscale images in float32. Each network is trained as
its own users train it: ours by ``Trainer`` (channels_last, fused Adam), denoising-diffusion-pytorch by its
``GaussianDiffusion`` and Adam, diffusers by its ``DDPMScheduler``, MSE and AdamW. Their widths are chosen so that their
parameter counts come near the paper's 3.0 million. The contenders take turns, so that noise of the machine hits all.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fedddpm.data import ImageSet
from fedddpm.device import pick_device
from fedddpm.errors import FedDDPMError
from fedddpm.trainer import Trainer, TrainSettings
from fedddpm.training_state import make_adam
from fedddpm.unet import UNet
from fedddpm.vision import load_torchvision

IMAGE_SIZE = 28
LEARNING_RATE = 1e-4
PEERS = {"denoising_diffusion_pytorch": "denoising-diffusion-pytorch", "diffusers": "diffusers"}
REFERENCE = "fedddpm paper"
DIM_LUCIDRAINS = 32  # 2.6 million parameters; its README's own choices of width are multiples of 32
DIM_DIFFUSERS = 28  # 3.0 million


@dataclass
class Contender:
    name: str
    parameters: int
    step: Callable[[], object]


@dataclass(frozen=True)
class Row:
    name: str
    parameters: int
    ms_per_image: float  # median over the steps
    quartiles_ms_per_image: tuple[float, float]
    ratio: float  # to the reference: above 1 is slower than it


def ours(preset: str, images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """One step of the SDK's trainer, the drawing of a batch included."""
    model = UNet(IMAGE_SIZE, 1, preset)
    settings = TrainSettings(epochs=10**6, batch_size=batch_size, learning_rate=LEARNING_RATE)
    trainer = Trainer(model, images, device, settings, seed=0)
    adam = make_adam(dict(model.named_parameters()), LEARNING_RATE)
    ready = trainer._batches_from(0)
    count = iter(range(10**9))
    return Contender(f"fedddpm {preset}", size(model), lambda: trainer._step(adam, next(ready)[1], next(count)))


def lucidrains(images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """denoising-diffusion-pytorch as its README trains it: GaussianDiffusion's loss and Adam."""
    library = importlib.import_module("denoising_diffusion_pytorch")
    unet = library.Unet(dim=DIM_LUCIDRAINS, dim_mults=(1, 2, 4), channels=1, flash_attn=False)
    diffusion = library.GaussianDiffusion(unet, image_size=IMAGE_SIZE, timesteps=1000, objective="pred_noise").to(
        device
    )
    adam = torch.optim.Adam(diffusion.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    zero_to_one = (images.images.float() / 255).to(device)

    def step() -> None:
        loss = diffusion(zero_to_one[torch.randint(len(images), (batch_size,), device=device)])
        loss.backward()
        adam.step()
        adam.zero_grad()

    return Contender("denoising-diffusion-pytorch", size(unet), step)


def diffusers(images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """diffusers as its unconditional training example: UNet2DModel, DDPMScheduler, MSE, AdamW."""
    library = importlib.import_module("diffusers")
    unet = library.UNet2DModel(
        sample_size=IMAGE_SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(DIM_DIFFUSERS, 2 * DIM_DIFFUSERS, 4 * DIM_DIFFUSERS),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).to(device)
    scheduler = library.DDPMScheduler(num_train_timesteps=1000)
    adam = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    floats = (images.images.float() / 127.5 - 1).to(device)

    def step() -> None:
        clean = floats[torch.randint(len(images), (batch_size,), device=device)]
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (batch_size,), device=device)
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        adam.step()
        adam.zero_grad()

    return Contender("diffusers", size(unet), step)


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure(contenders: list[Contender], steps: int, batch_size: int, device: torch.device) -> list[Row]:
    """Let the contenders take turns, after two steps each that do not count."""
    milliseconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(-2, steps):
        for contender in contenders:
            began = time.perf_counter()
            contender.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 0:
                milliseconds[contender.name].append(1000 * (time.perf_counter() - began) / batch_size)
    reference = statistics.median(milliseconds[REFERENCE])
    rows = []
    for contender in contenders:
        low, median, high = statistics.quantiles(milliseconds[contender.name], n=4)
        rows.append(Row(contender.name, contender.parameters, median, (low, high), median / reference))
    return rows


def table(rows: list[Row], title: str) -> Table:
    result = Table(title=title)
    for heading in ("network", "parameters", "median ms/image", "middle half", f"time / {REFERENCE}"):
        result.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=heading == "network")
    for row in rows:
        result.add_row(*cells(row))
    return result


def cells(row: Row) -> tuple[str, ...]:
    low, high = row.quartiles_ms_per_image
    return row.name, f"{row.parameters:,}", f"{row.ms_per_image:.2f}", f"{low:.2f} to {high:.2f}", f"{row.ratio:.2f}"


def write(folder: Path, rows: list[Row], facts: dict[str, str | int]) -> None:
    """The same numbers for programs (JSON) and for people (Markdown)."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {**facts, "rows": [asdict(row) for row in rows]}
    (folder / "train_step.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = ["# One training step", "", f"`{facts['command']}`", ""]
    lines += [f"* {name}: {value}" for name, value in facts.items() if name != "command"]
    lines += [
        "",
        f"| network | parameters | median ms/image | middle half | time / {REFERENCE} |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    (folder / "train_step.md").write_text("\n".join(lines) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for JSON and Markdown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--steps", type=int, default=10, help="steps of each network that count (at least 2)")
    parser.add_argument("--machine", default=f"{platform.machine()}, {platform.system()}", help="a word for the report")
    return parser.parse_args()


def main() -> int:
    options, console = arguments(), Console()
    missing = [name for module, name in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        console.print(f"{' and '.join(missing)} not installed. Run: pip install {' '.join(PEERS.values())}")
        return 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        device = pick_device(options.device)
        load_torchvision()  # before the peers, which import torchvision themselves
    except FedDDPMError as error:
        console.print(str(error))
        return 1
    images = ImageSet(torch.randint(0, 256, (4 * options.batch, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8))
    contenders = [ours(preset, images, options.batch, device) for preset in ("paper", "fast")]
    contenders += [peer(images, options.batch, device) for peer in (lucidrains, diffusers)]
    rows = measure(contenders, options.steps, options.batch, device)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *PEERS.values()))
    facts: dict[str, str | int] = {
        "command": f"python benchmarks/train_step.py --threads {options.threads} --batch {options.batch} "
        f"--steps {options.steps} --device {options.device}",
        "machine": options.machine,
        "device": str(device),
        "threads": options.threads,
        "batch": options.batch,
        "steps": options.steps,
        "versions": versions,
    }
    console.print(table(rows, f"One training step, batch {options.batch}, {device}, {options.threads} threads"))
    write(options.out, rows, facts)
    console.print(f"Written to {options.out}/train_step.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
