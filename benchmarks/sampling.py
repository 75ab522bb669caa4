"""How many images a second the samplers draw: this package's beside those of two well-known libraries, in one run.

    pip install denoising-diffusion-pytorch diffusers
    python benchmarks/sampling.py --threads 2

Each library draws a batch of 28x28 grayscale images by its own network and sampler, as its users call them: ours by
``sample_images``, denoising-diffusion-pytorch by ``GaussianDiffusion.sample``, diffusers by the loop of its guides over
``DDIMScheduler`` and ``DPMSolverMultistepScheduler``. The networks hold random weights, which costs the same time. The
contenders take turns; times are medians, and the ratio is to our paper preset with the same sampler and steps: above 1
is slower. Ancestral sampling takes all 1000 steps and is left out on a CPU unless ``--ancestral`` asks for it.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers

from fedddpm.compute.acceleration import tuned_kernels
from fedddpm.generation.sampling import sample_images
from fedddpm.model.diffusion import Sampler
from fedddpm.model.unet import UNet

HEADINGS = ("network", "sampler", "steps", "images/s", "ms/image", "ratio")
REFERENCE = "fedddpm paper"
ALL_STEPS = 1000


@dataclass
class Contender:
    name: str
    sampler: Sampler
    steps: int
    draw: Callable[[], torch.Tensor]  # one batch, on the CPU


@dataclass(frozen=True)
class Row:
    name: str
    sampler: str
    steps: int
    images_per_s: float
    ms_per_image: float
    ratio: float | None  # to the reference with this sampler; None: it did not take part


def ours(preset: str, sampler: Sampler, steps: int, batch: int, device: torch.device) -> Contender:
    model = UNet(peers.IMAGE_SIZE, 1, preset)

    def draw() -> torch.Tensor:
        return sample_images(model, batch, sampler=sampler, steps=steps, seed=0, device=device, batch=batch)

    return Contender(f"fedddpm {preset}", sampler, steps, draw)


def lucidrains(steps: int, batch: int, device: torch.device) -> Contender:
    """denoising-diffusion-pytorch knows DDIM alone beside all steps."""
    diffusion = peers.lucidrains_diffusion(sampling_steps=steps).to(device).eval()

    def draw() -> torch.Tensor:
        images: torch.Tensor = diffusion.sample(batch_size=batch).cpu()
        return images

    return Contender("denoising-diffusion-pytorch", "ddim", steps, draw)


def diffusers(sampler: Sampler, steps: int, batch: int, device: torch.device) -> Contender:
    library = importlib.import_module("diffusers")
    kind = {"ddim": library.DDIMScheduler, "dpm": library.DPMSolverMultistepScheduler}[sampler]
    unet, scheduler = peers.diffusers_unet().to(device).eval(), kind(num_train_timesteps=ALL_STEPS)

    @torch.no_grad()
    def draw() -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, 1, peers.IMAGE_SIZE, peers.IMAGE_SIZE, device=device)
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        return x.cpu()

    return Contender("diffusers", sampler, steps, draw)


def line_up(options: argparse.Namespace, device: torch.device) -> list[Contender]:
    """All of one sampler side by side."""
    plan: list[tuple[Sampler, int]] = [("ddim", options.ddim_steps), ("dpm", options.dpm_steps)]
    found: list[Contender] = []
    for sampler, steps in plan:
        found += [ours(preset, sampler, steps, options.batch, device) for preset in ("paper", "fast")]
        if sampler == "ddim":
            found.append(lucidrains(steps, options.batch, device))
        found.append(diffusers(sampler, steps, options.batch, device))
    if options.ancestral or device.type == "cuda":
        found += [ours(preset, "ancestral", ALL_STEPS, options.batch, device) for preset in ("paper", "fast")]
    return found


def measure(contenders: list[Contender], repeats: int, batch: int) -> list[Row]:
    """Let the contenders take turns, after one batch each that does not count (but for the long ancestral ones)."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(-1, repeats):
        for contender, times in zip(contenders, seconds, strict=True):
            if turn < 0 and contender.sampler == "ancestral":
                continue
            began = time.perf_counter()
            contender.draw()
            if turn >= 0:
                times.append(time.perf_counter() - began)
    medians = [statistics.median(times) / batch for times in seconds]
    reference = {c.sampler: median for c, median in zip(contenders, medians, strict=True) if c.name == REFERENCE}
    return [
        Row(
            contender.name,
            contender.sampler,
            contender.steps,
            1 / median,
            1000 * median,
            median / reference[contender.sampler] if contender.sampler in reference else None,
        )
        for contender, median in zip(contenders, medians, strict=True)
    ]


def cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return row.name, row.sampler, str(row.steps), f"{row.images_per_s:.2f}", f"{row.ms_per_image:.1f}", ratio


def write(folder: Path, rows: list[Row], facts: dict[str, peers.Fact]) -> None:
    """``sampling.json`` and ``.md`` in ``folder``."""
    tables = {"rows": (HEADINGS, [cells(row) for row in rows], [asdict(row) for row in rows])}
    peers.write(folder / "sampling", "Drawing images", facts, tables)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for JSON and Markdown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--batch", type=int, default=16, help="images drawn together")
    parser.add_argument("--repeats", type=int, default=3, help="batches of each contender that count")
    parser.add_argument("--ddim-steps", type=int, default=50)
    parser.add_argument("--dpm-steps", type=int, default=20)
    parser.add_argument("--ancestral", action="store_true", help="all 1000 steps as well, also on a CPU (minutes)")
    parser.add_argument("--machine", default=f"{platform.machine()}, {platform.system()}", help="a word for the report")
    return parser.parse_args()


def main() -> int:
    options, console = arguments(), peers.console()
    device = peers.set_up(options.device, options.threads, console)
    if device is None:
        return 1
    with tuned_kernels(device):
        rows = measure(line_up(options, device), options.repeats, options.batch)
    facts: dict[str, peers.Fact] = {
        "command": f"python benchmarks/sampling.py --threads {options.threads} --batch {options.batch} "
        f"--repeats {options.repeats} --ddim-steps {options.ddim_steps} --dpm-steps {options.dpm_steps} "
        f"--device {options.device}{' --ancestral' if options.ancestral else ''}",
        "machine": options.machine,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": options.threads,
        "batch": options.batch,
        "repeats": options.repeats,
        "versions": peers.versions(),
    }
    title = f"Drawing images, batch {options.batch}, {device}, {options.threads} threads"
    console.print(peers.table(title, HEADINGS, [cells(row) for row in rows]))
    write(options.out, rows, facts)
    console.print(f"Written to {options.out}/sampling.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
