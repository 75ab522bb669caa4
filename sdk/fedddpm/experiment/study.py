"""A whole study: everything is checked and made ready first, then the runs one after the other, then the report.

The folder belongs to one set of settings. Each round is written down when it is done, so the same command goes on after
a kill, and a finished study only makes its report again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fedddpm.compute.device import pick_device, usable_cores
from fedddpm.data.grey_summary import GreySummary, grey_line
from fedddpm.data.splits import Indices
from fedddpm.errors import ConfigError
from fedddpm.evaluation.features import digest_tensors
from fedddpm.evaluation.optional_packages import require_extra
from fedddpm.experiment.design.images import ImageSource, count_classes, open_source, share_out
from fedddpm.experiment.design.plan import RunPlan, plan_runs
from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.report.pages import write_report
from fedddpm.experiment.results import CENTRALISED, FILE, RunRecord, StudyResults, read_results, write_results
from fedddpm.experiment.runs.centralised import CentralisedRun, epochs_in_all
from fedddpm.experiment.runs.federated import FederatedRun
from fedddpm.experiment.runs.run_context import RunContext
from fedddpm.experiment.runs.scoring import Meter
from fedddpm.experiment.runs.workers import LocalWorkers, Workers
from fedddpm.model.unet import UNet
from fedddpm.state.lock import lock_folder
from fedddpm_protocol.agreement.terms import PLAIN_MEAN

_NOT_THE_OUTCOME = ("name", "data_root")  # settings that may differ between two starts of one study
_WITHOUT_SAYING = {  # what a study did before there was the setting
    **{"weighting": "samples", "flips": False},
    **{"outer_learning_rate": PLAIN_MEAN.learning_rate, "outer_momentum": PLAIN_MEAN.momentum},
}
_VERSIONS = ("fedddpm-sdk", "torch", "torchvision", "numpy", "pytorch-fid", "torch-fidelity")
_Shares = Mapping[tuple[str, int, int], list[Indices]]  # by split, institutions and seed


class Watcher(Protocol):
    """Who is told how far a study is; every number counts rounds, a centralised run's E epochs as one."""

    def images(self, greys: GreySummary) -> None:
        """The images are open; what they hold."""

    def step(self, what: str, done: int, total: int) -> None:
        """Something before the first run."""

    def run(self, plan: RunPlan, number: int, total: int) -> None:
        """A run begins."""

    def progress(self, rounds_done: float, rounds_total: int, what: str, share: float) -> None:
        """The study stands at ``rounds_done``, and is ``share`` through ``what``."""


@dataclass(frozen=True)
class RayPlace:
    """A Ray cluster, and what one institution gets of it."""

    address: str  # as ray.init takes it: auto, host:port, ray://host:port or local
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where and how a study is computed; none of it changes what comes out."""

    folder: Path
    cache: Path  # for feature nets and reference statistics, shared by all studies
    workers: int = 1
    device: str = "auto"
    weights: Path | None = None  # of the Inception
    command: str = ""
    ray: RayPlace | None = None  # a cluster instead of this machine's processes


def default_workers(settings: StudySettings, device: str) -> int:
    """One process a core, as far as there are institutions for them: threads of one small network wait for each other.

    A GPU gets one process.
    """
    if pick_device(device).type != "cpu" or not settings.federated:
        return 1
    return min(usable_cores(), max(settings.institutions))


def run_study(settings: StudySettings, place: Place, watcher: Watcher) -> StudyResults:
    """Do all runs that are not done, and write ``results.json``, the pictures and ``report.html``.

    Raises:
        ConfigError: secure aggregation refuses a run, the folder holds another study, or FID has no weights.
        DataError, ModelError: images that do not go round, or that the networks cannot take. All before any training.
        TrainingError: a training diverged, or a worker died.
    """
    plans = plan_runs(settings)
    require_extra()
    device = str(pick_device(place.device))
    watcher.images(grey_line(open_source(ImageSource.of(settings))[0]))
    networks = _networks(settings)
    shares = _shares(settings, plans)
    with lock_folder(place.folder), _workers(settings, place) as workers:
        results = _begin(settings, place, plans, device)
        meter = Meter(settings, workers, device)
        meter.open(place.cache, place.weights, watcher.step)
        if results.runs and results.nets != meter.notes:
            raise ConfigError(
                f"{place.folder} was scored by other feature nets than there are now",
                "Use the same --cache and --weights as at its start, or a new --out",
            )
        results = results.model_copy(update={"nets": meter.notes})
        write_results(place.folder, results)  # from here on the folder belongs to these settings
        around = RunContext(settings, place.folder.resolve(), workers, meter, device, networks)
        return _Runs(around, plans, shares, results, watcher).all()


def _workers(settings: StudySettings, place: Place) -> contextlib.AbstractContextManager[Workers]:
    if place.ray is None:
        return LocalWorkers(place.workers)
    from fedddpm.experiment.runs.ray_workers import RayWorkers

    return RayWorkers(place.ray.address, place.folder, ImageSource.of(settings), place.ray.cpus, place.ray.gpus)


class _Runs:
    """The loop over runs, with the results as they grow."""

    def __init__(
        self, around: RunContext, plans: list[RunPlan], shares: _Shares, results: StudyResults, watcher: Watcher
    ) -> None:
        self._around, self._plans, self._shares, self._watcher = around, plans, shares, watcher
        self._results = results
        self._began = time.monotonic() - results.seconds
        self._lengths = [_rounds(plan, around.settings) for plan in plans]

    def all(self) -> StudyResults:
        known = {record.name: record for record in self._results.runs}
        for number, plan in enumerate(self._plans):
            record = known.get(plan.name)
            if record is not None and record.done:
                continue
            self._watcher.run(plan, number + 1, len(self._plans))
            tell = self._teller(number, plan)
            if plan.method == CENTRALISED:
                CentralisedRun(self._around, plan, record).run(tell, self._save)
            else:
                shares = self._shares[plan.split, plan.institutions, plan.seed]
                FederatedRun(self._around, plan, shares, record).run(tell, self._save)
            write_report(self._around.folder, self._results)
        write_report(self._around.folder, self._results)
        return self._results

    def _teller(self, number: int, plan: RunPlan) -> Callable[[str, float], None]:
        before, total = sum(self._lengths[:number]), sum(self._lengths)

        def tell(what: str, share: float) -> None:
            record = next((run for run in self._results.runs if run.name == plan.name), None)
            done = 0 if record is None else len(record.rounds)
            inside = share if "training" in what and plan.method != CENTRALISED else 0.0
            self._watcher.progress(min(before + done + inside, total), total, f"{plan.name}, {what}", share)

        return tell

    def _save(self, record: RunRecord) -> None:
        runs = {run.name: run for run in self._results.runs} | {record.name: record}
        ordered = [runs[plan.name] for plan in self._plans if plan.name in runs]
        self._results = self._results.model_copy(update={"runs": ordered, "seconds": time.monotonic() - self._began})
        write_results(self._around.folder, self._results)


def _rounds(plan: RunPlan, settings: StudySettings) -> int:
    return settings.rounds if plan.method != CENTRALISED else -(-epochs_in_all(settings) // settings.epochs)


def _networks(settings: StudySettings) -> dict[str, UNet]:
    train, _ = open_source(ImageSource.of(settings))
    classes = count_classes(train) if settings.conditional else 0
    with torch.device("meta"):
        return {preset: UNet(train.image_size, train.channels, preset, classes=classes) for preset in settings.networks}


def _shares(settings: StudySettings, plans: list[RunPlan]) -> _Shares:
    train, _ = open_source(ImageSource.of(settings))
    keys = {(plan.split, plan.institutions, plan.seed) for plan in plans if plan.method != CENTRALISED}
    return {
        (split, institutions, seed): share_out(train, split, institutions, seed, settings.concentration)
        for split, institutions, seed in sorted(keys)
    }


def _begin(settings: StudySettings, place: Place, plans: list[RunPlan], device: str) -> StudyResults:
    """The results so far, or new ones; ConfigError if the folder belongs to another study."""
    train, test = open_source(ImageSource.of(settings))
    greys = grey_line(train)
    fresh = StudyResults(
        name=settings.name,
        command=place.command,
        settings=settings.model_dump(mode="json"),
        machine=_machine(device),
        versions=_versions(),
        images=digest_tensors({"train": train.images, "test": test.images}),
        planned=[plan.name for plan in plans],
        greys=greys.sentence,
        notes=_notes(settings, plans, train.left_out, greys.concern),
    )
    if not (place.folder / FILE).exists():
        return fresh
    before = read_results(place.folder)
    begun_with = _WITHOUT_SAYING | before.settings
    differing = [
        name
        for name in sorted({*begun_with, *fresh.settings})
        if name not in _NOT_THE_OUTCOME and begun_with.get(name) != fresh.settings.get(name)
    ]
    if differing:
        some = "; ".join(
            f"{name} was {begun_with.get(name)!r}, is {fresh.settings.get(name)!r}" for name in differing[:3]
        )
        raise ConfigError(
            f"{place.folder} holds a study with other settings ({some})",
            "Give another --out, or the same settings to go on with that one",
        )
    if before.images != fresh.images:
        raise ConfigError(
            f"the images are not those that {place.folder} was begun with",
            "Give back the images as they were, or another --out",
        )
    return before


def _notes(settings: StudySettings, plans: list[RunPlan], *of_images: str) -> list[str]:
    notes = [note for note in of_images if note]
    plain = sorted({f"{plan.method} with K = {plan.institutions}" for plan in plans if plan.aggregation == "plain"})
    if plain:
        notes.append(
            f"INSECURE: {', '.join(plain)} ran with a plain average, without masks. Whoever sums sees every update;"
            " these runs are for comparison only."
        )
    if settings.ema_decay and settings.draws_images:
        notes.append(
            "Images are drawn from averaged weights. Averages stay in the institutions, so with FULL and USPLIT too the"
            " pooled images come from all institutions in equal shares."
        )
    if any(plan.method == "USPLIT" for plan in plans):
        notes.append(
            "USPLIT discloses sample counts (its overlapping sums would reveal them anyway), and who reports what is"
            " drawn from fresh keys: two studies with the same seed draw differently."
        )
    return notes


def _machine(device: str) -> str:
    name = f"{platform.machine()}, {platform.system()}, {usable_cores()} cores"
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else name


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
