"""What the demo shows at its end: the tables of rounds and distances, and the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from demo_scores import Distances
from local_federation import LocalFederation
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedddpm.data import open_images, split_holdout
from fedddpm.generation.networks import newest_network
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm.transport.traffic import less_than_fedavg
from fedddpm_protocol.agreement.spec import LOSS_UNITS
from fedddpm_protocol.encoding.encoder import loss_units
from fedddpm_protocol.encoding.losses import mean_losses

FEDERATION = "federation"
WIDE, REAL = 8, 3  # images in a row: drawn ones, real ones
SCALE, GAP, LABEL, BORDER, LINE = 2, 16, 72, 2, 4  # pixels


def rounds_table(console: Console, federation: LocalFederation) -> None:
    """Print one row for every round, and one for the model after the last."""
    table = Table(title="The federation's rounds (FULL)", title_justify="left")
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


def distances_table(console: Console, found: Distances, federation: LocalFederation) -> None:
    """Print how far the federation's images, and those of each institution alone, are from real ones."""
    table = Table(title="Frechet distance to real images of all classes (less is nearer)", title_justify="left")
    for column in ("network", "own images", "FD"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    table.add_row("real images", "", f"{found.real:.1f}")
    for name, distance in found.drawn.items():
        own = "" if name == FEDERATION else str(len(open_images(federation.folder / f"{name}.npz")))
        table.add_row(name if name == FEDERATION else f"{name} alone", own, f"{distance:.1f}")
    console.print(table)
    console.print(
        f"{found.count} drawn images against the first {found.count} test images, features of {found.net}: a small\n"
        "classifier of this data set, so these are no FID. 'real images': as many other real ones. One seed.\n"
        "Alone: the same first weights, recipe and number of steps as in the federation, on the institution's images."
    )


def write_figures(path: Path, federation: LocalFederation, found: Distances, minutes: float) -> Path:
    """The rounds and distances as JSON."""
    done = [session for session in federation.rounds() if session["phase"] == "done"]
    rounds = [
        {"round": session["round"] + 1, "survivors": session["survivors"], "losses": mean_losses(*_summed(session))}
        for session in done
    ]
    figures = {
        "rounds": rounds,
        "final_loss": final_loss(federation),
        "frechet": {**found.drawn, "real": found.real},
        "images": found.count,
        "features": found.net,
        "minutes": round(minutes, 2),
    }
    path.write_text(json.dumps(figures, indent=2) + "\n")
    return path


def _summed(session: dict[str, Any]) -> tuple[list[int], int]:
    return session["sums"], len(session["survivors"])


def draw_picture(federation: LocalFederation, drawn: Mapping[str, Tensor], found: Distances, path: Path) -> Path:
    """A PNG: the federation's images left; right a row for each institution, its real images and those drawn alone."""
    members = federation.members
    side, heads = 28 * SCALE + BORDER, 22
    left, real_left = GAP, 2 * GAP + WIDE * side
    alone_left = real_left + LABEL + REAL * side + GAP
    sheet = Image.new("L", (alone_left + WIDE * side, heads + len(members) * (side + LINE)), 255)
    pen = ImageDraw.Draw(sheet)
    pen.text((left, 5), f"the federation's one network: FD {found.drawn[FEDERATION]:.1f}", fill=0)
    pen.text((real_left + LABEL, 5), "real images", fill=0)
    pen.text((alone_left, 5), "the same training alone", fill=0)
    for row, member in enumerate(members):
        top = heads + row * (side + LINE)
        _paste(sheet, drawn[FEDERATION][row * WIDE : (row + 1) * WIDE], left, top, side)
        pen.text((real_left, top + side // 2 - 12), f"{member}\nFD {found.drawn[member]:.1f}", fill=0)
        _paste(sheet, open_images(federation.folder / f"{member}.npz", limit=REAL).images, real_left + LABEL, top, side)
        _paste(sheet, drawn[member][:WIDE], alone_left, top, side)
    sheet.save(path)
    return path


def _paste(sheet: Image.Image, images: Tensor, left: int, top: int, side: int) -> None:
    for index, image in enumerate(images):
        picture = Image.fromarray(image[0].numpy()).resize((side - BORDER, side - BORDER), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + index * side, top))
