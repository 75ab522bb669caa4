"""How long one training step takes: this package's networks beside those of two well-known libraries, in one run.

    pip install denoising-diffusion-pytorch diffusers
    python benchmarks/train_step.py --threads 2

A step is forward, backward and optimizer on a batch of 28x28 grayscale images. Each network is trained as its own users
train it: ours by ``Trainer`` and the recipe that goes with it (channels_last; on a card bfloat16 and compiled),
denoising-diffusion-pytorch by its ``GaussianDiffusion`` and Adam, diffusers by its ``DDPMScheduler``, MSE and AdamW;
both with bfloat16 on a card, as their own training scripts offer it. "written plainly" is the paper's network itself,
by the formulas, with torch's defaults in float32. The contenders take turns, so that noise of the machine hits all;
times are medians, and the ratio is to our paper preset.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers

from fedddpm.compute.acceleration import arithmetic, resolve_precision, tuned_kernels
from fedddpm.data.image_set import to_floats
from fedddpm.data.opening import ImageSet
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.unet import UNet
from fedddpm.training.optimizers import make_optimizer
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.charter import USUAL_RECIPES

LEARNING_RATE = 1e-4
REFERENCE = "fedddpm paper"
PLAIN = "paper, written plainly"
# Dense bfloat16 operations a second that the makers state, by a piece of the card's name; the first that fits counts.
BFLOAT16_RATES = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


PRESETS = ("paper", "fast", "lean")  # each by the recipe that goes with it
HEADINGS = ("network", "parameters", "ms/image", "middle half", "ratio", "GFLOP/image", "of card")


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
    gflop_per_image: float = 0.0  # forward and backward, by torch's counter
    matrix_share: float | None = None  # of the card's bfloat16 rate; None: not known


@dataclass(frozen=True)
class Threads:
    threads: int
    name: str
    ms_per_image: float


def ours(preset: str, images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """One step of the SDK's trainer, the drawing of a batch included."""
    model = UNet(peers.IMAGE_SIZE, 1, preset)
    recipe = USUAL_RECIPES[model.architecture.prediction]
    settings = TrainSettings(epochs=10**6, batch_size=batch_size, learning_rate=LEARNING_RATE, recipe=recipe)
    trainer = Trainer(model, images, device, settings, seed=0)
    trainer.prepare()
    optimizer = make_optimizer(dict(model.named_parameters()), LEARNING_RATE, recipe)
    ready = trainer._batches_from(0)
    count = iter(range(10**9))

    def step() -> object:
        return trainer._step(optimizer, next(ready)[1], next(count))

    return Contender(f"fedddpm {preset}", peers.size(model), step)


def plain(images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """The same network and loss with nothing done for speed: float batches, Adam as it comes."""
    model = peers.plain_unet().to(device)
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    diffusion, generator = Diffusion(), torch.Generator(device).manual_seed(0)
    floats = to_floats(images.images, device).contiguous()

    def step() -> None:
        adam.zero_grad()
        chosen = floats[torch.randint(len(images), (batch_size,), device=device)]
        diffusion.loss(model, chosen, generator).backward()  # type: ignore[no-untyped-call]  # torch
        adam.step()

    return Contender(PLAIN, peers.size(model), step)


def lucidrains(images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """denoising-diffusion-pytorch as its README trains it: GaussianDiffusion's loss and Adam."""
    diffusion = peers.lucidrains_diffusion().to(device)
    adam = torch.optim.Adam(diffusion.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    zero_to_one = (images.images.float() / 255).to(device)
    precision = resolve_precision("auto", device)

    def step() -> None:
        with arithmetic(precision, device):
            loss = diffusion(zero_to_one[torch.randint(len(images), (batch_size,), device=device)])
        loss.backward()
        adam.step()
        adam.zero_grad()

    return Contender("denoising-diffusion-pytorch", peers.size(diffusion.model), step)


def diffusers(images: ImageSet, batch_size: int, device: torch.device) -> Contender:
    """diffusers as its unconditional training example: UNet2DModel, DDPMScheduler, MSE, AdamW."""
    unet: nn.Module = peers.diffusers_unet().to(device)
    scheduler = importlib.import_module("diffusers").DDPMScheduler(num_train_timesteps=1000)
    adam = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    floats = (images.images.float() / 127.5 - 1).to(device)
    precision = resolve_precision("auto", device)

    def step() -> None:
        clean = floats[torch.randint(len(images), (batch_size,), device=device)]
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (batch_size,), device=device)
        with arithmetic(precision, device):
            eps = unet(scheduler.add_noise(clean, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(eps.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        adam.step()
        adam.zero_grad()

    return Contender("diffusers", peers.size(unet), step)


def operations() -> dict[str, float]:
    """Floating-point operations an image, forwards and backwards, of each network."""
    return {
        REFERENCE: _operations(UNet(peers.IMAGE_SIZE, 1, "paper")),
        "fedddpm fast": _operations(UNet(peers.IMAGE_SIZE, 1, "fast")),
        "fedddpm lean": _operations(UNet(peers.IMAGE_SIZE, 1, "lean")),
        PLAIN: _operations(peers.plain_unet()),
        "denoising-diffusion-pytorch": _operations(peers.lucidrains_diffusion().model),
        "diffusers": _operations(peers.diffusers_unet()),
    }


def _operations(network: nn.Module) -> float:
    x_t = torch.zeros(1, 1, peers.IMAGE_SIZE, peers.IMAGE_SIZE)
    with FlopCounterMode(display=False) as counter:
        eps = network(x_t, torch.zeros(1, dtype=torch.int64))
        (eps if isinstance(eps, torch.Tensor) else eps.sample).sum().backward()
    return float(counter.get_total_flops())


def matrix_rate(device: torch.device) -> float | None:
    """The card's stated bfloat16 rate in operations a second; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for piece, rate in BFLOAT16_RATES.items() if piece in name), None)


def measure(
    contenders: list[Contender],
    steps: int,
    batch_size: int,
    device: torch.device,
    counts: dict[str, float] | None = None,
) -> list[Row]:
    """Let the contenders take turns, after two steps each that do not count."""
    milliseconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(-2, steps):
        for contender in contenders:
            began = time.perf_counter()
            contender.step()
            peers.wait_for(device)
            if turn >= 0:
                milliseconds[contender.name].append(1000 * (time.perf_counter() - began) / batch_size)
    reference, rate = statistics.median(milliseconds[REFERENCE]), matrix_rate(device)
    rows = []
    for contender in contenders:
        low, median, high = statistics.quantiles(milliseconds[contender.name], n=4)
        count = (counts or {}).get(contender.name, 0.0)
        share = None if rate is None or not count else count / (median / 1000) / rate
        name, parameters = contender.name, contender.parameters
        rows.append(Row(name, parameters, median, (low, high), median / reference, count / 1e9, share))
    return rows


def sweep(images: ImageSet, options: argparse.Namespace, device: torch.device) -> list[Threads]:
    """Our networks with other numbers of CPU threads."""
    rows = []
    for threads in options.sweep:
        torch.set_num_threads(threads)
        contenders = [ours(preset, images, options.batch, device) for preset in PRESETS]
        measured = measure(contenders, max(2, options.steps // 2), options.batch, device)
        rows += [Threads(threads, row.name, row.ms_per_image) for row in measured]
    torch.set_num_threads(options.threads)
    return rows


def cells(row: Row) -> tuple[str, ...]:
    low, high = row.quartiles_ms_per_image
    share = "unknown" if row.matrix_share is None else f"{100 * row.matrix_share:.1f} %"
    times = (f"{row.ms_per_image:.2f}", f"{low:.2f} to {high:.2f}", f"{row.ratio:.2f}")
    return row.name, f"{row.parameters:,}", *times, f"{row.gflop_per_image:.2f}", share


def write(folder: Path, rows: list[Row], swept: list[Threads], facts: dict[str, peers.Fact]) -> None:
    """``train_step.json`` and ``.md`` in ``folder``."""
    tables: dict[str, peers.Rows] = {"rows": (HEADINGS, [cells(row) for row in rows], [asdict(row) for row in rows])}
    if swept:
        lines = [(row.name, str(row.threads), f"{row.ms_per_image:.2f}") for row in swept]
        tables["sweep"] = (("network", "threads", "ms/image"), lines, [asdict(row) for row in swept])
    peers.write(folder / "train_step", "One training step", facts, tables)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for JSON and Markdown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--steps", type=int, default=10, help="steps of each network that count (at least 2)")
    parser.add_argument("--sweep", type=int, nargs="*", default=[], help="numbers of threads to try ours with as well")
    parser.add_argument("--machine", default=f"{platform.machine()}, {platform.system()}", help="a word for the report")
    return parser.parse_args()


def main() -> int:
    options, console = arguments(), peers.console()
    device = peers.set_up(options.device, options.threads, console)
    if device is None:
        return 1
    side = peers.IMAGE_SIZE
    images = ImageSet(torch.randint(0, 256, (4 * options.batch, 1, side, side), dtype=torch.uint8))
    with tuned_kernels(device):
        contenders = [ours(preset, images, options.batch, device) for preset in PRESETS]
        contenders += [peer(images, options.batch, device) for peer in (plain, lucidrains, diffusers)]
        rows = measure(contenders, options.steps, options.batch, device, operations())
        swept = sweep(images, options, device)
    facts: dict[str, peers.Fact] = {
        "command": f"python benchmarks/train_step.py --threads {options.threads} --batch {options.batch} "
        f"--steps {options.steps} --device {options.device}",
        "machine": options.machine,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": resolve_precision("auto", device),
        "threads": options.threads,
        "batch": options.batch,
        "steps": options.steps,
        "versions": peers.versions(),
    }
    title = f"One training step, batch {options.batch}, {device}, {options.threads} threads"
    console.print(peers.table(title, HEADINGS, [cells(row) for row in rows]))
    for row in swept:
        console.print(f"{row.name}, {row.threads} threads: {row.ms_per_image:.2f} ms/image")
    write(options.out, rows, swept, facts)
    console.print(f"Written to {options.out}/train_step.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
