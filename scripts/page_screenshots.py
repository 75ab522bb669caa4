"""Pictures of the aggregator's page for the README: docs/images/page-light.png and docs/images/page-dark-phone.png.

    python scripts/page_screenshots.py [--folder DIR]

A real small federation runs on this machine: five institutions train a tiny network for some rounds, one of them drops
out of a round, an attempt fails because two are away, and in the last round one is stopped while the others upload.
Needs chromium and the package playwright; two minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples")]
from local_federation import LocalFederation  # noqa: E402

from fedddpm_aggregator.app import open_context  # noqa: E402
from fedddpm_aggregator.service.context import Context  # noqa: E402
from fedddpm_aggregator.service.history.session_lines import SessionLine, overview  # noqa: E402
from fedddpm_aggregator.settings import Settings  # noqa: E402
from fedddpm_protocol.wire.phases import Phase  # noqa: E402

MEMBERS = ("city-radiology", "clinic-bergen", "hospital-porto", "lab-lyon", "st-marys")
DROPS_IN, FAILS_IN, SHOWN = 6, 3, 9  # rounds, from 0
CHROMIUM = "/usr/bin/chromium"
IMAGES, SIZE = 160, 8
COLOURS = 128  # of a picture, so that it stays small


def soft_spots(path: Path, seed: int) -> Path:
    """Grey images [IMAGES, SIZE, SIZE] of one soft spot each, as .npz."""
    random = np.random.default_rng(seed)
    centres = random.uniform(1, SIZE - 1, (IMAGES, 2, 1, 1))
    distance = ((np.mgrid[:SIZE, :SIZE] - centres) ** 2).sum(axis=1)
    np.savez(path, images=(255 * np.exp(-distance / 4)).astype(np.uint8))
    return path


def wait_for(true: Callable[[], object], what: str, timeout_s: float = 600) -> None:
    """Look again and again; SystemExit with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.005)


class Play:
    """The federation and a look into its database."""

    def __init__(self, federation: LocalFederation, ctx: Context) -> None:
        self.federation, self.ctx = federation, ctx

    def last(self) -> SessionLine:
        """The newest attempt's session."""
        wait_for(lambda: overview(self.ctx), "the first attempt")
        return overview(self.ctx)[-1]

    def send(self, number: signal.Signals, *members: str) -> None:
        """A signal to institutions' processes."""
        for member in members:
            self.federation.processes[member].send_signal(number)

    def in_phase(self, index: int, phase: Phase) -> bool:
        """Whether the newest attempt is at this round and phase."""
        line = self.last()
        return line.round == index and line.phase == phase

    def begun(self, index: int) -> None:
        """Wait for a round's start."""
        wait_for(lambda: self.last().round >= index, f"round {index + 1}")

    def act(self) -> None:
        """Run until the moment that is shown."""
        first, second = MEMBERS[1], MEMBERS[3]
        self.begun(FAILS_IN)
        wait_for(lambda: {first, second} <= set(self.last().joined), f"both in round {FAILS_IN + 1}")
        self.send(signal.SIGSTOP, first, second)
        wait_for(lambda: self.last().attempt > 0, "the failed attempt")
        self.send(signal.SIGCONT, first, second)
        self.begun(DROPS_IN)
        wait_for(lambda: first in self.last().joined, f"{first} in round {DROPS_IN + 1}")
        self.send(signal.SIGSTOP, first)
        self.begun(DROPS_IN + 1)
        self.send(signal.SIGCONT, first)
        self.begun(SHOWN)
        wait_for(lambda: self.in_phase(SHOWN, Phase.MASKED), "uploads")
        self.send(signal.SIGSTOP, second)
        time.sleep(2)


@contextmanager
def playing(folder: Path) -> Iterator[Play]:
    """A federation at the moment that is shown."""
    federation = LocalFederation(folder, MEMBERS, name="retina-imaging", c_max=1, n_min=3)
    federation.enrol()
    model = federation.init_model(SIZE, 1, "tiny")
    durations = {"join_s": 600, "shares_s": 10, "masked_s": 25, "confirm_s": 30, "unmask_s": 30}
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "weight_cap": 1000}
    federation.start_run("oct-2026", "UDEC", model, rounds=20, **training, **durations)
    with federation:
        federation.serve()
        for number, member in enumerate(MEMBERS):
            federation.start_site(member, soft_spots(folder / f"{member}.npz", number), {"device": "cpu"})
        ctx = open_context(Settings(data=federation.data))
        play = Play(federation, ctx)
        try:
            play.act()
            yield play
        finally:
            play.send(signal.SIGCONT, *MEMBERS)
            ctx.database.close()


def picture(browser: Browser, url: str, out: Path, width: int, height: int, scheme: str) -> None:
    """One picture of the page, as a browser of this size shows it."""
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=2 if phone else 1,
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_text("Live", exact=True).wait_for()
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(COLOURS).save(out, optimize=True)
    context.close()
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the federation here; a temporary folder by default")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    options = parser.parse_args()
    images = ROOT / "docs" / "images"
    with (
        tempfile.TemporaryDirectory() as temporary,
        sync_playwright() as playwright,
        playing((options.folder or Path(temporary)).resolve()) as play,
    ):
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        picture(browser, play.federation.url, images / "page-light.png", 1180, 1240, "light")
        picture(browser, play.federation.url, images / "page-dark-phone.png", 390, 844, "dark")
        browser.close()


if __name__ == "__main__":
    main()
