"""Four institutions train one diffusion model on this machine, through a real aggregator, in a few minutes.

    python examples/demo.py            (or: make demo)

Every institution is a process with images of its own (a label-skewed share of Fashion-MNIST). One of them is killed in
the second round after it has joined and before it has uploaded; the round closes with the sum of the other three, and
it comes back for the next. After that each trains by itself, with as many steps, to be compared with the federation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_alone import draw
from demo_report import FEDERATION, distances_table, draw_picture, rounds_table, write_figures
from demo_scores import Distances, distances
from get_fashion_mnist import get_fashion_mnist
from local_federation import CommandError, LocalFederation
from rich.console import Console

from fedddpm.data import open_images
from fedddpm.data.splits import label_skew
from fedddpm.errors import FedDDPMError
from fedddpm.generation.networks import newest_network
from fedddpm_aggregator.cli.app import app as aggregator
from fedddpm_protocol.encoding.losses import mean_losses

MEMBERS = ("hospital-a", "hospital-b", "clinic-c", "lab-d")
ASK_EVERY_S = 0.5
KILLED_IN = 1  # the second round
SETTINGS = {"learning": {"flips": True}}  # clothes may be mirrored
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)


class WatchedFederation(LocalFederation):
    """One whose rounds are asked for again and again while all cores train: not by a process each time."""

    def rounds(self) -> list[dict[str, Any]]:
        """`fedddpm-aggregator rounds --json`, in this process."""
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            aggregator(["rounds", "--data", str(self.data), "--json"], standalone_mode=False)
        return list(json.loads(shown.getvalue()))


def say(text: str) -> None:
    """One line about what happens now."""
    console.print(f"[bold cyan]>[/] {text}")


def share_out(folder: Path, out: Path, images: int, seed: int) -> dict[str, Path]:
    """Write a label-skewed share for every institution; the smallest goes to the last."""
    data = open_images(folder, image_size=28, channels=1, limit=images)
    if data.labels is None:
        raise FedDDPMError("Fashion-MNIST has no labels here", "Give a folder with all four idx files")
    shares = sorted(label_skew(data.labels.numpy(), len(MEMBERS), seed, smallest=images // 10), key=len, reverse=True)
    files = {}
    for member, chosen in zip(MEMBERS, shares, strict=True):
        files[member] = out / f"{member}.npz"
        labels = data.labels.numpy()[chosen]
        np.savez_compressed(files[member], images=data.images.numpy()[chosen, 0], labels=labels)
        counts = " ".join(f"{count:4d}" for count in np.bincount(labels, minlength=10))
        console.print(f"    {member:11s} {len(chosen):5d} images, by class: {counts}")
    return files


def wait_for_round(federation: LocalFederation, index: int) -> dict[str, Any]:
    """Wait until round ``index`` is open, saying how far the institutions are; the opened session."""
    with console.status("training") as status:
        while True:
            require_alive(federation)
            sessions = federation.rounds()
            for session in sessions:
                if session["round"] == index and session["phase"] == "done":
                    return session
            if sessions:  # none before the aggregator has begun the first attempt
                now = sessions[-1]
                done = ", ".join(now["joined"]) or "nobody yet"
                status.update(f"round {now['round'] + 1}, phase {now['phase']}; trained and joined: {done}")
            time.sleep(ASK_EVERY_S)


def require_alive(federation: LocalFederation) -> None:
    """CommandError with the log of a process that ended by itself and badly."""
    for name, process in federation.processes.items():
        if process.poll() not in (None, 0):
            raise CommandError(f"{name} ended unexpectedly:\n{federation.log(name)[-3000:]}")


def kill_after_join(federation: LocalFederation, victim: str, index: int) -> None:
    """SIGKILL the victim once its JOIN for round ``index`` is in, while others still train."""
    while True:
        require_alive(federation)
        for session in federation.rounds():
            if session["round"] == index and victim in session["joined"]:
                federation.kill(victim)
                return
        time.sleep(0.2)


def play(federation: LocalFederation, shares: dict[str, Path], rounds: int) -> None:
    """Run all rounds, with the kill in between."""
    victim = MEMBERS[-1]
    for member, file in shares.items():
        federation.start_site(member, file, SETTINGS)
    for index in range(rounds):
        if index == KILLED_IN:
            say(f"round {index + 1}: [red]{victim} is killed[/] as soon as it has joined, before its upload")
            kill_after_join(federation, victim, index)
            console.print(f"    {victim} is gone; the others go on")
        session = wait_for_round(federation, index)
        before, after = mean_losses(session["sums"], len(session["survivors"]))
        say(
            f"round {index + 1} is open: sum of {len(session['survivors'])} of {len(session['cohort'])} institutions, "
            f"held-out loss {before:.4f} before, {after:.4f} after local training"
        )
        if index == KILLED_IN:
            say(f"{victim} is started again, with the same command")
            federation.start_site(victim, shares[victim], SETTINGS)
    federation.wait_for_sites(MEMBERS, timeout_s=120)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="made anew every time")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with Fashion-MNIST; filled if empty")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs a round")
    parser.add_argument("--images", type=int, default=6000, help="of all institutions together")
    parser.add_argument("--drawn", type=int, default=1000, help="images of each network, for distances")
    parser.add_argument("--preset", default="lean", choices=["lean", "fast", "paper", "tiny"])
    options = parser.parse_args()
    if options.rounds < KILLED_IN + 2:
        parser.error(f"at least {KILLED_IN + 2} rounds: one is interrupted, and the institution comes back")
    try:
        demo(options)
    except (CommandError, FedDDPMError) as error:
        console.print(f"[red]{error}[/]")
        return 1
    return 0


def demo(options: argparse.Namespace) -> None:
    """The whole story."""
    began = time.monotonic()
    say(f"looking for Fashion-MNIST in {options.data}, else fetching it")
    source = get_fashion_mnist(options.data)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    say(f"sharing out {options.images} images to {len(MEMBERS)} institutions, each with its own mix of classes")
    shares = {member: file.resolve() for member, file in share_out(source, options.folder, options.images, 3).items()}
    federation = WatchedFederation(options.folder.resolve(), MEMBERS, name="demo", c_max=1, n_min=3)
    say("keys for the root and four institutions, a roster signed by the root, an aggregator that holds it")
    federation.enrol()
    say(f"theta_0 from a seed, and a run: FULL, {options.rounds} rounds, network {options.preset}, recipe modern;")
    console.print("    its means move the model with momentum, and travel rotated and masked, in one byte a parameter")
    model = federation.init_model(28, 1, options.preset)
    training = {
        "rounds": options.rounds,
        "epochs": options.epochs,
        "batch_size": 16,
        "recipe": "modern",
        "outer_momentum": 0.4,
        "chunk_coordinates": 65536,  # sums are checked by the chunk: small ones for a small network
    }
    federation.start_run("demo", "FULL", model, **training, join_s=86_400, shares_s=5)
    with federation:
        federation.serve()
        say(f"aggregator at {federation.url}; four institutions start, each a process that speaks HTTP")
        play(federation, shares, options.rounds)
    rounds_table(console, federation)
    say(f"the same number of steps for each institution [bold]alone[/], and {options.drawn} images of its network")
    drawn = {FEDERATION: torch.empty(0), **alone(federation, shares, model, options.drawn)}
    say(f"drawing {options.drawn} images of the federation's network, and training a small classifier to compare with")
    drawn[FEDERATION] = draw(newest_network(federation.site(MEMBERS[0]) / "state"), options.drawn)
    found = distances(source, options.folder / "cache", drawn)
    show(federation, drawn, found, began)


def alone(federation: LocalFederation, shares: dict[str, Path], model: Path, count: int) -> dict[str, torch.Tensor]:
    """Images of each institution's network had it trained by itself; as many processes at once as there are cores."""
    script = Path(__file__).parent / "demo_alone.py"
    waiting, done = list(MEMBERS), list[str]()
    common = ("--theta0", model, "--charter", federation.charter("demo"), "--root-key", federation.root_public)
    with federation, console.status("training alone") as status:
        while len(done) < len(MEMBERS):
            require_alive(federation)
            for member in [name for name, process in federation.processes.items() if process.poll() == 0]:
                federation.processes.pop(member)
                done.append(member)
                console.print(f"    {member} is done")
            while waiting and len(federation.processes) < (os.cpu_count() or 1):
                member = waiting.pop(0)
                out = ("--images", str(count), "--out", federation.folder / f"alone-{member}")
                command = (sys.executable, script, "--data", shares[member], *common, *out)
                federation.start_process(f"alone-{member}", *command)
            status.update(", ".join(map(partial(_last_line, federation), federation.processes)))
            time.sleep(0.2)
    return {name: open_images(federation.folder / f"alone-{name}.npz").images for name in MEMBERS}


def _last_line(federation: LocalFederation, name: str) -> str:
    return f"{name}: {(federation.log(name).splitlines() or ['starts'])[-1]}"


def show(federation: LocalFederation, drawn: dict[str, torch.Tensor], found: Distances, began: float) -> None:
    """Tables, picture and figures."""
    distances_table(console, found, federation)
    picture = draw_picture(federation, drawn, found, federation.folder / "samples.png")
    say(f"images of the federation, beside real ones and those of each institution alone: [bold]{picture}[/]")
    minutes = (time.monotonic() - began) / 60
    console.print(f"    figures: {write_figures(federation.folder / 'figures.json', federation, found, minutes)}")
    for member in MEMBERS:
        console.print(f"    model of {member}: {federation.site(member) / 'state'}")
    console.print(f"    published models and signed results: {federation.data}")
    say(f"done in {minutes:.1f} minutes; more images and rounds give better ones: --images 20000 --rounds 15")


if __name__ == "__main__":
    sys.exit(main())
