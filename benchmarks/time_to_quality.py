"""CPU minutes until images are good: ours beside two well-known libraries' own training loops, in one run.

    pip install denoising-diffusion-pytorch diffusers
    python benchmarks/time_to_quality.py --data data

Good is a Frechet distance of at most ``--target`` in the features of a small classifier (1,000 images drawn, Fashion-
MNIST's test images for reference). Everybody trains on one thread on the 60,000 training images, in batches of 16.

* Ours: the network ``lean`` with the recipe ``modern``, whose learning rate falls over the whole training, so that its
  length is fixed before: trainings of 20,000 images, a quarter more, and so on, each from new weights, until one is
  good. What is reported is the time of that one, and beside it that of all that were tried.
* denoising-diffusion-pytorch: its ``Unet`` in its ``GaussianDiffusion`` by its ``Trainer``, all with their defaults
  (objective, schedule, EMA, flips), images drawn by DDIM in 25 steps from the EMA.
* diffusers: ``UNet2DModel``, ``DDPMScheduler`` and the loop of its guide *Train a diffusion model* (AdamW, 500 steps of
  warm-up, gradients cut at 1), images drawn by ``DDIMScheduler`` in 25 steps.

The peers are looked at after a quarter, a half and the whole of ``--minutes``, until they are good, once with each of
``--learning-rates``; widths bring their networks near ours in parameters. CPU time of training counts alone: neither
drawing and scoring, nor what the peer's processes that load images take.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers

from fedddpm.data.image_set import ImageSet
from fedddpm.data.opening import open_images
from fedddpm.evaluation.cache import default_cache
from fedddpm.evaluation.classifier import open_classifier
from fedddpm.evaluation.reference import open_reference
from fedddpm.evaluation.scores import score
from fedddpm.generation.sampling import sample_images
from fedddpm.model.unet import UNet
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.terms import MODERN, RECIPES

HEADINGS = ("trained by", "parameters", "learning rate", "CPU minutes", "images seen", "FD", "good")
BATCH, DRAWN, DDIM_STEPS = 16, 1000, 25
SHORTEST, LONGER = 20_000, 1.25  # images that our first training sees, and how much longer each next one is
STEPS = 50  # of a peer, after which the clock is looked at
OURS = "fedddpm lean, modern"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    name: str
    parameters: int
    learning_rate: float
    cpu_minutes: float
    images: int
    distance: float
    good: bool


Judge = Callable[[Tensor], float]  # uint8 images [N, 1, 28, 28] -> their distance


def cpu_minutes_of(train: Callable[[], object]) -> float:
    """CPU time of this process that ``train`` takes."""
    began = time.process_time()
    train()
    return (time.process_time() - began) / 60


def ours(images: ImageSet, seen: int, judge: Judge, target: float) -> Row:
    """One training of ``lean`` that sees so many images."""
    model, rate = UNet(peers.IMAGE_SIZE, 1, "lean"), RECIPES[MODERN].learning_rate
    steps = -(-seen // BATCH)
    epochs = -(-steps * BATCH // len(images))
    settings = TrainSettings(
        epochs=epochs, max_steps=steps, batch_size=BATCH, learning_rate=rate, recipe=MODERN, flips=True
    )
    trainer = Trainer(model, images, CPU, settings, seed=0)
    minutes = cpu_minutes_of(trainer.train)
    distance = judge(sample_images(model, DRAWN, sampler="dpm", seed=1, device=CPU))
    return Row(OURS, peers.size(model), rate, minutes, steps * BATCH, distance, distance <= target)


class Lucidrains:
    """denoising-diffusion-pytorch by its own Trainer, over a folder of images."""

    name = "denoising-diffusion-pytorch"

    def __init__(self, folder: Path, learning_rate: float) -> None:
        library = peers.lucidrains()
        unet = library.Unet(dim=16, dim_mults=(1, 2, 4), channels=1, flash_attn=False)
        diffusion = library.GaussianDiffusion(unet, image_size=peers.IMAGE_SIZE, sampling_timesteps=DDIM_STEPS)
        self.network: nn.Module = unet
        self.trainer = library.Trainer(
            diffusion,
            str(folder),
            train_lr=learning_rate,
            train_num_steps=0,
            save_and_sample_every=10**9,
            results_folder=str(folder.parent / "results"),
            calculate_fid=False,
            num_samples=25,
        )

    def step(self, steps: int) -> None:
        self.trainer.train_num_steps = self.trainer.step + steps
        self.trainer.train()

    def draw(self) -> Tensor:
        drawn = torch.cat([self.trainer.ema.ema_model.sample(batch_size=250) for _ in range(DRAWN // 250)])
        return (drawn.clamp(0, 1) * 255).round().to(torch.uint8)


class Diffusers:
    """diffusers by the loop of its guide."""

    name = "diffusers"

    def __init__(self, images: ImageSet, learning_rate: float) -> None:
        library = importlib.import_module("diffusers")
        optimization = importlib.import_module("diffusers.optimization")
        self.network: nn.Module = library.UNet2DModel(
            sample_size=peers.IMAGE_SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(12, 24, 48),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
        self._noise = library.DDPMScheduler(num_train_timesteps=1000)
        self._sampler = library.DDIMScheduler(num_train_timesteps=1000)
        self._adam = torch.optim.AdamW(self.network.parameters(), lr=learning_rate)
        self._rate = optimization.get_constant_schedule_with_warmup(self._adam, num_warmup_steps=500)
        self._images, self._batches = images.images.float() / 127.5 - 1, images_in_turn(len(images))

    def step(self, steps: int) -> None:
        self.network.train()
        for _ in range(steps):
            clean = self._images[next(self._batches)]
            clean = torch.where(torch.rand(len(clean), 1, 1, 1) < 0.5, clean.flip(3), clean)
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
            guess = self.network(self._noise.add_noise(clean, noise, t), t).sample
            torch.nn.functional.mse_loss(guess, noise).backward()  # type: ignore[no-untyped-call]  # torch
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self._adam.step()
            self._rate.step()
            self._adam.zero_grad()

    @torch.no_grad()
    def draw(self) -> Tensor:
        self.network.eval()
        self._sampler.set_timesteps(DDIM_STEPS)
        drawn = []
        for _ in range(DRAWN // 250):
            x = torch.randn(250, 1, peers.IMAGE_SIZE, peers.IMAGE_SIZE)
            for t in self._sampler.timesteps:
                x = self._sampler.step(self.network(x, t).sample, t, x).prev_sample
            drawn.append(x)
        return ((torch.cat(drawn).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def images_in_turn(count: int) -> Iterator[Tensor]:
    """Numbers of images [BATCH], in a new order each epoch."""
    while True:
        order = torch.randperm(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def race(peer: Any, learning_rate: float, judge: Judge, target: float, minutes: float) -> Iterator[Row]:
    """A peer's looks, until it is good or the time is over."""
    spent, steps = 0.0, 0
    for look in (minutes / 4, minutes / 2, minutes):
        while spent < look:
            spent += cpu_minutes_of(lambda: peer.step(STEPS))
            steps += STEPS
        distance = judge(peer.draw())
        row = Row(
            peer.name, peers.size(peer.network), learning_rate, spent, steps * BATCH, distance, distance <= target
        )
        yield row
        if row.good:
            return


def folder_of(images: ImageSet, folder: Path) -> Path:
    """Images as files, for who reads nothing else."""
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(images.images[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{number:05d}.png")
    return folder


def run(options: argparse.Namespace, images: ImageSet, judge: Judge, told: Callable[[Row], None]) -> list[Row]:
    """Everybody's rows in turn: ours, then each peer with each learning rate."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        told(row)

    seen = SHORTEST
    while not (rows and rows[-1].good) and (not rows or rows[-1].cpu_minutes < options.minutes):
        add(ours(images, seen, judge, options.target))
        seen = round(seen * LONGER)
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_of(images, Path(scratch) / "images")
        for rate in options.learning_rates:
            for begin in (partial(Diffusers, images), partial(Lucidrains, folder)):
                torch.manual_seed(0)
                for row in race(begin(rate), rate, judge, options.target, options.minutes):
                    add(row)
    return rows


def answer(rows: list[Row], target: float) -> str:
    """One sentence: how much sooner ours is good than the better peer."""
    good = [row.cpu_minutes for row in rows if row.name == OURS and row.good]
    if not good:
        return f"Ours did not come to a distance of {target:g} in the time given."
    tried = sum(row.cpu_minutes for row in rows if row.name == OURS)
    theirs = [row.cpu_minutes for row in rows if row.name != OURS and row.good]
    most = max((row.cpu_minutes for row in rows if row.name != OURS), default=0.0)
    than = f"{min(theirs) / good[0]:.1f} times" if theirs else f"more than {most / good[0]:.1f} times"
    why = "" if theirs else f", which did not come to {target:g} in {most:.0f} CPU minutes"
    return (
        f"Ours came to a distance of {target:g} in {good[0]:.2f} CPU minutes ({tried:.2f} with the shorter trainings"
        f" that were tried before): {than} sooner than the better peer{why}. One seed."
    )


def cells(row: Row) -> tuple[str, ...]:
    figures = (f"{row.cpu_minutes:.2f}", f"{row.images:,}", f"{row.distance:.2f}", "yes" if row.good else "no")
    return row.name, f"{row.parameters:,}", f"{row.learning_rate:g}", *figures


def write(folder: Path, rows: list[Row], facts: dict[str, peers.Fact]) -> None:
    """``time_to_quality.json`` and ``.md`` in ``folder``."""
    tables: dict[str, peers.Rows] = {"rows": (HEADINGS, [cells(row) for row in rows], [asdict(row) for row in rows])}
    peers.write(folder / "time_to_quality", "Time to quality", facts, tables)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for JSON and Markdown")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where Fashion-MNIST lies")
    parser.add_argument("--target", type=float, default=5.0, help="Frechet distance that is good")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes that a training may take")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 1e-3], help="of the peers")
    return parser.parse_args()


def open_judge(train: ImageSet, test: ImageSet, console: Console) -> Judge:
    """The distance of drawn images, in the features of a classifier that is trained once and kept."""
    cache = default_cache()
    with console.status("training the feature net, once"):
        net = open_classifier(train, test, cache, steps=1000, device="cpu")
        reference = open_reference(net, train, test, cache)
        reference.floor(DRAWN)
    return lambda drawn: float(score(net, reference, drawn, companions=False, seed=0).distance)


def main() -> int:
    options, console = arguments(), peers.console()
    if peers.set_up("cpu", 1, console) is None:
        return 1
    train, test = (open_images("fashion-mnist", split=split, root=options.data) for split in ("train", "test"))
    judge = open_judge(train, test, console)
    with contextlib.redirect_stdout(sys.stderr):  # a peer writes to the screen as it goes
        rows = run(options, train, judge, lambda row: console.print("  ".join(cells(row))))
    said = answer(rows, options.target)
    facts: dict[str, peers.Fact] = {
        "command": f"python benchmarks/time_to_quality.py --target {options.target:g} --minutes {options.minutes:g}"
        f" --learning-rates {' '.join(f'{rate:g}' for rate in options.learning_rates)}",
        "answer": said,
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "versions": peers.versions(),
    }
    console.print(peers.table("Time to quality", HEADINGS, [cells(row) for row in rows]))
    console.print(said)
    write(options.out, rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
