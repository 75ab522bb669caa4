"""What the demo shows at its end: the table of rounds and the grid of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from local_federation import LocalFederation
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from fedddpm.data import open_images, split_holdout
from fedddpm.generation.networks import newest_network
from fedddpm.generation.sampling import sample_images
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm.transport.traffic import less_than_fedavg
from fedddpm_protocol.agreement.spec import LOSS_UNITS
from fedddpm_protocol.encoding.encoder import loss_units
from fedddpm_protocol.encoding.losses import mean_losses

SCALE, GAP, LABEL, BORDER = 2, 8, 96, 2  # pixels


def rounds_table(console: Console, federation: LocalFederation) -> None:
    """Print one row for every round, and one for the model after the last."""
    table = Table(title="The federation's rounds (UDEC)", title_justify="left")
    for column in ("round", "cohort", "survivors", "loss before", "loss after", "MB up", "MB down", "FedAvg", "less"):
        table.add_column(column, justify="right", no_wrap=True)
    sums = []
    for session in (session for session in federation.rounds() if session["phase"] == "done"):
        own = [line for member in federation.members for line in _lines(federation, member, session["round"])]
        before, after = mean_losses(session["sums"], len(session["survivors"]))
        up, down = (sum(line["traffic"][key] for line in own) for key in ("bytes_up", "bytes_down"))
        fedavg = sum(line["fedavg_bytes"] or 0 for line in own)
        sums.append(_losses(federation, session))
        table.add_row(
            str(session["round"] + 1),
            str(len(session["cohort"])),
            str(len(session["survivors"])),
            f"{before:.4f}",
            f"{after:.4f}",
            f"{up / 1e6:.2f}",
            f"{down / 1e6:.2f}",
            f"{fedavg / 1e6:.1f} MB",
            f"{less_than_fedavg(up + down, fedavg):.1f} %",
        )
    table.add_row("end", "", "", f"{final_loss(federation):.4f}")
    console.print(table)
    console.print(
        "loss: mean over the institutions in the sum of their held-out loss, before and after their local training;\n"
        "'end' is that of the published model. MB: all institutions together, the protocol's own messages included;\n"
        "FedAvg: what naive averaging moves, the whole network up and down in float32. theta_0 costs nothing, for\n"
        "everybody makes it from a seed; the first round's words are wider: nobody knows how large updates are.\n"
        "The sums are exact; the opened losses after training show it:"
    )
    for line in sums:
        console.print(f"    {line}")


def _losses(federation: LocalFederation, session: dict[str, Any]) -> str:
    """The opened sum of losses; RuntimeError if it is not exactly that of the survivors' own."""
    index = session["round"]
    losses = [line["loss_after"] for member in session["survivors"] for line in _lines(federation, member, index)]
    expected, opened = sum(map(loss_units, losses)), session["sums"][2]
    if opened != expected:
        raise RuntimeError(f"round {index + 1} opened losses of {opened} units, those of its survivors are {expected}")
    names = ", ".join(f"{member} {loss:.4f}" for member, loss in zip(session["survivors"], losses, strict=True))
    return f"round {index + 1}: opened {opened / LOSS_UNITS:.4f}, the sum of {names}"


def _lines(federation: LocalFederation, member: str, index: int) -> list[dict[str, Any]]:
    return [line for line in federation.site_rounds(member) if line["round"] == index]


def final_loss(federation: LocalFederation) -> float:
    """Mean over the institutions of the held-out loss of what they have now."""
    losses = []
    for member in federation.members:
        _, held_out = split_holdout(open_images(federation.folder / f"{member}.npz"), 0.1, 0)
        model = newest_network(federation.site(member) / "state")
        settings = TrainSettings(epochs=1, max_steps=None, batch_size=32, learning_rate=1e-3, max_seconds=None)
        losses.append(Trainer(model, held_out, torch.device("cpu"), settings, 0).score(held_out))
    return sum(losses) / len(losses)


def draw_grid(federation: LocalFederation, count: int, steps: int, path: Path) -> Path:
    """A PNG: a row for each institution, ``count`` of its real images left, ``count`` samples of its network right."""
    side = 28 * SCALE + BORDER
    width, height = LABEL + 2 * count * side + GAP, 20 + len(federation.members) * (side + GAP)
    sheet = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((LABEL, 4), "real images", fill=0)
    draw.text((LABEL + count * side + GAP, 4), "samples after the demo's short training", fill=0)
    for row, member in enumerate(federation.members):
        top = 20 + row * (side + GAP)
        draw.text((4, top + side // 2 - 6), member, fill=0)
        real = open_images(federation.folder / f"{member}.npz", limit=count).images
        model = newest_network(federation.site(member) / "state")
        drawn = sample_images(model, count, sampler="ddim", steps=steps, seed=row, device=torch.device("cpu"))
        _paste(sheet, real, LABEL, top, side)
        _paste(sheet, drawn, LABEL + count * side + GAP, top, side)
    sheet.save(path)
    return path


def _paste(sheet: Image.Image, images: torch.Tensor, left: int, top: int, side: int) -> None:
    for index, image in enumerate(images):
        picture = Image.fromarray(image[0].numpy()).resize((side - BORDER, side - BORDER), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + index * side, top))
