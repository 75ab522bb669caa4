"""What all runs of a study share, and how they tell of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.results import RunRecord
from fedddpm.experiment.runs.scoring import Meter
from fedddpm.experiment.runs.workers import Workers
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.partition import PARTS, parameters_of
from fedddpm.model.unet import UNet

Save = Callable[[RunRecord], None]  # makes a step of a run durable


@dataclass(frozen=True)
class RunContext:
    """What all runs of a study share."""

    settings: StudySettings
    folder: Path  # of the study
    workers: Workers
    meter: Meter
    device: str
    networks: Mapping[str, UNet]  # by preset; on the meta device, for their shapes

    def first_network(self, preset: str, seed: int) -> UNet:
        """theta_0: the same for every method with this network and seed."""
        return initial_network(self.networks[preset].architecture, seed_of(seed))

    def part_sizes(self, preset: str) -> dict[str, int]:
        """Parameters of each part of a network."""
        model = self.networks[preset]
        return {part: sum(parameter.numel() for _, parameter in parameters_of(model, part)) for part in PARTS}

    def run_folder(self, name: str) -> Path:
        """Where a run keeps its files."""
        return self.folder / "runs" / name
