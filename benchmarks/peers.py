"""The networks that ours are measured beside, and what the two benchmarks of networks have in common.

Their widths are chosen so that their parameter counts come near the paper's 3.0 million.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedddpm.compute.device import pick_device
from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.errors import FedDDPMError
from fedddpm.model.attention import LinearAttention
from fedddpm.model.unet import UNet

IMAGE_SIZE = 28
PEERS = {"denoising_diffusion_pytorch": "denoising-diffusion-pytorch", "diffusers": "diffusers"}
_DIM_LUCIDRAINS = 32  # 2.6 million parameters; its README's own choices of width are multiples of 32
_DIM_DIFFUSERS = 28  # 3.0 million

Fact = str | int | float | None
Rows = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[Mapping[str, object]]]  # headings, cells, raw values


def missing_peers(peers: Mapping[str, str] = PEERS) -> str:
    """What to say when a peer is not installed; empty when all are."""
    missing = [name for module, name in peers.items() if importlib.util.find_spec(module) is None]
    return f"{' and '.join(missing)} not installed. Run: pip install {' '.join(peers.values())}" if missing else ""


def set_up(device: str, threads: int, console: Console) -> torch.device | None:
    """Make ready for a measurement; None, and what is missing on the console, where that cannot be."""
    if missing := missing_peers():
        console.print(missing)
        return None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        where = pick_device(device)
        load_torchvision()  # before the peers, which import torchvision themselves
    except FedDDPMError as error:
        console.print(str(error))
        return None
    return where


def versions() -> str:
    """torch and the peers, for the report."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *PEERS.values()))


def lucidrains_diffusion(sampling_steps: int | None = None) -> Any:
    """denoising-diffusion-pytorch's UNet in its GaussianDiffusion, whose images lie in [0, 1]."""
    library = lucidrains()
    unet = library.Unet(dim=_DIM_LUCIDRAINS, dim_mults=(1, 2, 4), channels=1, flash_attn=False)
    return library.GaussianDiffusion(
        unet, image_size=IMAGE_SIZE, timesteps=1000, sampling_timesteps=sampling_steps, objective="pred_noise"
    )


class _NoBar:
    """Stands where the peer would draw a bar, whoever calls it."""

    def __init__(self, steps: Iterable[int] = (), **_: object) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_description(self, _: str) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def lucidrains() -> Any:
    """denoising-diffusion-pytorch, without its bars."""
    vars(importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch"))["tqdm"] = _NoBar
    return importlib.import_module("denoising_diffusion_pytorch")


def diffusers_unet() -> Any:
    """diffusers' UNet2DModel, as in its unconditional training example but smaller."""
    return importlib.import_module("diffusers").UNet2DModel(
        sample_size=IMAGE_SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(_DIM_DIFFUSERS, 2 * _DIM_DIFFUSERS, 4 * _DIM_DIFFUSERS),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


class _FormulaAttention(LinearAttention):
    """Linear attention as its formula is written down."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(self.heads(self.norm(x)))
        return out


def plain_unet() -> UNet:
    """The paper's network as one would write it down: the same weights and function, no rearranged arithmetic."""
    model = UNet(IMAGE_SIZE, 1, "paper")
    for module in model.modules():
        if isinstance(module, LinearAttention):
            module.__class__ = _FormulaAttention
    return model


def size(model: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def wait_for(device: torch.device) -> None:
    """Until the card has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def console() -> Console:
    """The terminal, or lines long enough for a table."""
    return Console(width=None if sys.stdout.isatty() else 120)


def table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """For the screen; the first column is text."""
    result = Table(title=title)
    for column, heading in enumerate(headings):
        result.add_column(heading, justify="right" if column else "left", no_wrap=not column)
    for line in lines:
        result.add_row(*line)
    return result


def write(path: Path, title: str, facts: Mapping[str, Fact], tables: Mapping[str, Rows]) -> None:
    """The same numbers for programs (``path``.json) and for people (``path``.md)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {**facts, **{name: rows for name, (_, _, rows) in tables.items()}}
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    text = [f"# {title}", "", f"`{facts['command']}`", ""]
    text += [f"* {name}: {value}" for name, value in facts.items() if name != "command"]
    for headings, lines, _ in tables.values():
        text += ["", f"| {' | '.join(headings)} |", "|---" + "|--:" * (len(headings) - 1) + "|"]
        text += [f"| {' | '.join(line)} |" for line in lines]
    path.with_suffix(".md").write_text("\n".join(text) + "\n")
