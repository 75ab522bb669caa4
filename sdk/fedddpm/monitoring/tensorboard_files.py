"""Rounds as TensorBoard's event files, a folder a run: ``tensorboard --logdir FOLDER`` draws them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedddpm.monitoring.round_entry import RoundEntry, RoundObserver


class TensorBoardFiles(RoundObserver):
    """Writes below ``folder``; the package is loaded with the first round."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = f"tensorboard {folder}", folder
        self._writers: dict[str, Any] = {}

    def observe(self, entries: Sequence[RoundEntry], new: Sequence[RoundEntry]) -> None:
        """A point of each curve for each new round."""
        for entry in new:
            for name, value in entry.figures.items():
                self._of(entry.run).add_scalar(name, value, entry.round, _when(entry))
        self._flush()

    def show(self, entry: RoundEntry, picture: Path) -> None:
        """The picture of the newest round."""
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._of(entry.run).add_image("samples", pixels, entry.round, _when(entry), dataformats="HWC")
        self._flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _of(self, run: str) -> Any:
        if run not in self._writers:
            for folder in (self._folder, self._folder / run):  # readable by nobody else, whoever made the first
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            package = importlib.import_module("torch.utils.tensorboard")
            self._writers[run] = package.SummaryWriter(str(self._folder / run))
        return self._writers[run]

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _when(entry: RoundEntry) -> float | None:
    return None if entry.ended is None else datetime.fromisoformat(entry.ended).timestamp()
