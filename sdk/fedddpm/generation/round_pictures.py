"""Pictures of a run: after a round the same images as after the last, drawn from the same noise by newer weights.

They are drawn from a copy that is read from the state folder, with random numbers of their own, and show what the
network remembers of the images here: as private as those weights, they stay in the state folder, for its user alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from fedddpm.config import SamplesOptions
from fedddpm.files.atomic import write_atomic
from fedddpm.generation.image_files import grid_png, require_showable
from fedddpm.generation.networks import chosen_weights, load_network
from fedddpm.generation.sampling import sample_images
from fedddpm.model.diffusion import Sampler
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.round_entry import RoundEntry
from fedddpm.state.folder import StateFolder

FOLDER = "samples"
CHEAP_S = 2.0  # what takes no longer is drawn, however short the round was
_SAMPLER: Sampler = "dpm"  # of fedddpm sample: the fewest steps
_SEED = 0  # the same noise, and labels in turn, after every round
_PRIVATE, _PRIVATE_FOLDER = 0o600, 0o700
_RUN_FACT = "samples-run"  # the fact that holds whose pictures lie in the folder


class _TooLongError(Exception):
    """Drawing would take more time than it may."""


class RoundPictures:
    """Draws ``round-0001.png`` and so on into ``samples`` of the state folder; those of an earlier run move aside."""

    def __init__(self, state: StateFolder, options: SamplesOptions, device: torch.device, reporter: Reporter) -> None:
        self._state, self._options, self._device, self._reporter = state, options, device, reporter
        self._takes_s = 0.0  # the whole drawing, as far as was seen
        self._said = False

    def draw(self, entry: RoundEntry, train_seconds: float | None) -> Path | None:
        """The PNG of a round whose network is the newest, None where none is due or it would take too long.

        Too long is more than the set share of ``train_seconds``, and nothing is drawn before any training is known.

        Raises:
            FedDDPMError, OSError, RuntimeError: the network cannot be read or drawn from, or the file not written.
        """
        position = self._state.position(entry.run)
        if position is None or position.next_round != entry.round or train_seconds is None:
            return None
        if entry.round % self._options.every and not position.finished:
            return None
        allowed = max(CHEAP_S, self._options.max_share * train_seconds)
        try:
            images = self._images(self._state.path / position.model_file, allowed)
        except _TooLongError:
            self._say_too_long(entry, train_seconds)
            return None
        path = self._folder_for(entry.run) / f"round-{entry.round:04d}.png"
        write_atomic(path, grid_png(images), _PRIVATE)
        return path

    def _images(self, model_file: Path, allowed: float) -> torch.Tensor:
        """uint8 [count, C, H, W]; _TooLongError as soon as it is seen that ``allowed`` seconds are not enough."""
        if self._takes_s > allowed:
            raise _TooLongError
        began = time.monotonic()

        def watch(done: int, total: int) -> None:
            self._reporter.vitals.beat()
            spent = time.monotonic() - began
            # The first step also sets up what the others use again: it is judged by its own time alone.
            takes = spent if done == 1 else spent / done * total
            if takes > allowed:
                self._takes_s = max(takes, spent * total / done)
                raise _TooLongError

        with torch.random.fork_rng(devices=[]):  # making a network draws first weights, which nobody else may notice
            network = load_network(model_file, chosen_weights(model_file, None))
            require_showable(network.architecture.channels)
            began = time.monotonic()
            return sample_images(
                network,
                self._options.count,
                sampler=_SAMPLER,
                steps=self._options.steps,
                seed=_SEED,
                device=self._device,
                on_progress=watch,
            )

    def _say_too_long(self, entry: RoundEntry, train_seconds: float) -> None:
        if not self._said:
            self._said = True
            self._reporter.notice(
                f"round {entry.round}: no pictures: drawing {self._options.count} takes about {self._takes_s:.0f} s,"
                f" more than {100 * self._options.max_share:g} % of the round's training ({train_seconds:.0f} s);"
                " for some, set a smaller count or fewer steps below [samples], or a larger max_share"
            )

    def _folder_for(self, run: str) -> Path:
        """The folder of pictures, without those of another run: they go into a folder of that run's name."""
        folder, held = self._state.path / FOLDER, (self._state.fact(_RUN_FACT) or b"").decode()
        folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
        if held != run:
            for picture in sorted(folder.glob("round-*.png")) if held else ():
                (folder / held).mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
                picture.replace(folder / held / picture.name)
            self._state.remember(_RUN_FACT, run.encode())
        return folder
