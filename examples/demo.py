"""Four institutions train one diffusion model on this machine, through a real aggregator, in a few minutes.

    python examples/demo.py            (or: make demo)

Every institution is a process with images of its own (a label-skewed share of Fashion-MNIST). One of them is killed in
the second round after it has joined and before it has uploaded; the round closes with the sum of the other three, and
it comes back for the next.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from demo_report import draw_grid, rounds_table
from get_fashion_mnist import get_fashion_mnist
from local_federation import CommandError, LocalFederation
from rich.console import Console

from fedddpm.data import open_images
from fedddpm.data.splits import label_skew
from fedddpm.errors import FedDDPMError
from fedddpm_protocol.encoding.losses import mean_losses

MEMBERS = ("hospital-a", "hospital-b", "clinic-c", "lab-d")
KILLED_IN = 1  # the second round
SAMPLES = 8
STEPS = 50
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)


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
            now = sessions[-1]
            done = ", ".join(now["joined"]) or "nobody yet"
            status.update(f"round {now['round'] + 1}, phase {now['phase']}; trained and joined: {done}")
            time.sleep(0.5)


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
        time.sleep(0.05)


def play(federation: LocalFederation, shares: dict[str, Path], rounds: int) -> None:
    """Run all rounds, with the kill in between."""
    victim = MEMBERS[-1]
    for member, file in shares.items():
        federation.start_site(member, file)
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
            federation.start_site(victim, shares[victim])
    federation.wait_for_sites(MEMBERS, timeout_s=120)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="made anew every time")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with Fashion-MNIST; filled if empty")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs a round")
    parser.add_argument("--images", type=int, default=6000, help="of all institutions together")
    parser.add_argument("--preset", default="fast", choices=["paper", "fast", "tiny"])
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
    shares = share_out(source, options.folder, options.images, seed=3)
    federation = LocalFederation(options.folder.resolve(), MEMBERS, name="demo", c_max=1, n_min=3)
    say("keys for the root and four institutions, a roster signed by the root, an aggregator that holds it")
    federation.enrol()
    say(f"theta_0 from a seed, and a run: UDEC, {options.rounds} rounds, preset {options.preset};")
    console.print("    only the decoder leaves anybody, rotated, dithered and masked, in few bits a parameter")
    model = federation.init_model(28, 1, options.preset)
    training = {"rounds": options.rounds, "epochs": options.epochs, "batch_size": 32, "learning_rate": 1e-3}
    federation.start_run("demo", "UDEC", model, **training, join_s=86_400, shares_s=5)
    with federation:
        federation.serve()
        say(f"aggregator at {federation.url}; four institutions start, each a process that speaks HTTP")
        play(federation, {member: file.resolve() for member, file in shares.items()}, options.rounds)
    rounds_table(console, federation)
    say(f"drawing {SAMPLES} samples of every institution's network (DDIM, {STEPS} steps)")
    grid = draw_grid(federation, SAMPLES, STEPS, options.folder / "samples.png")
    say(f"real images (left) beside samples of each institution (right): [bold]{grid}[/]")
    for member in MEMBERS:
        console.print(f"    model of {member}: {federation.site(member) / 'state'}")
    console.print(f"    published decoder and signed results: {federation.data}")
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    console.print(
        "After minutes of training on a CPU the samples are noise with some structure, not clothes. To train longer\n"
        "(hours on two cores):\n"
        "    .venv/bin/python examples/demo.py --preset paper --images 20000 --rounds 15 --epochs 2"
    )


if __name__ == "__main__":
    sys.exit(main())
