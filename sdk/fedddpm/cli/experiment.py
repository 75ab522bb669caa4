"""The commands ``fedddpm experiment`` and ``fedddpm report``: argument parsing and progress bars."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedddpm.cli.choices import Preset
from fedddpm.cli.setting_options import place_among, setting_option, settings_given
from fedddpm.monitoring.terminal import PlainConsole

if TYPE_CHECKING:
    from fedddpm.data.grey_summary import GreySummary
    from fedddpm.experiment.design.plan import RunPlan
    from fedddpm.experiment.design.settings import StudySettings

_WHOLE_STUDY_S = 24 * 3600.0  # over how long the speed is averaged: rounds of different runs differ
_LINE_EVERY_S = 30.0  # where no bars are drawn


class Method(StrEnum):
    """What to run."""

    FULL = "FULL"
    USPLIT = "USPLIT"
    ULATDEC = "ULATDEC"
    UDEC = "UDEC"
    TURN = "TURN"
    CENTRALISED = "centralised"


class Split(StrEnum):
    """How images are shared out."""

    IID = "iid"
    LABEL = "label-skew"
    QUANTITY = "quantity-skew"


_SETTINGS = (
    setting_option("methods", list[Method], "repeat for several", "--method"),
    setting_option("institutions", list[int], "K; repeatable", "--institutions", "-k"),
    setting_option("splits", list[Split], "who gets which images; repeatable", "--split"),
    setting_option("networks", list[Preset], "repeatable", "--network"),
    setting_option("bits", list[int], "of the ring in which updates travel; repeatable"),
    setting_option("first_bits", int, "the same while nothing is known of their size"),
    setting_option("seeds", list[int], "repeatable", "--seed"),
    setting_option("rounds", int, "R"),
    setting_option("epochs", int, "E, local epochs a round"),
    setting_option("batch_size", int, "images a step"),
    setting_option("recipe", str, "how institutions train: paper or modern; by default modern for the network lean"),
    setting_option("learning_rate", float, "of the local optimizer; by default the recipe's"),
    setting_option("flips", bool, "mirror training images left to right, each by chance"),
    setting_option("ema_decay", float, "draw images from averaged weights; 0: no average"),
    setting_option("outer_learning_rate", float, "of the mean update, with FULL and TURN"),
    setting_option("outer_momentum", float, "Nesterov momentum of the mean updates, with FULL and TURN"),
    setting_option("error_feedback", bool, "add to an update what rounding took from the last one"),
    setting_option("weighting", str, "of institutions: equal, or samples as FedAvg; presets take samples"),
    setting_option("data", str, "fashion-mnist, cifar10, celeba, a folder or an .npz"),
    setting_option("data_root", Path, "where the named data sets lie"),
    setting_option("image_size", int, "pixels, for folders and CelebA"),
    setting_option("channels", int, "1 grey, 3 colour"),
    setting_option("subset", int, "training images of all institutions together"),
    setting_option("conditional", bool, "train with class labels"),
    setting_option("guidance", float, "of classifier-free guidance"),
    setting_option("final_samples", list[int], "images for the scores at the end; repeatable", "--samples"),
    setting_option("sampler", str, "ancestral, ddim or dpm"),
    setting_option("sampler_steps", int, "steps of ddim or dpm"),
    setting_option("inception", bool, "score the end by FID too", "--fid/--no-fid"),
)


def experiment(
    out: Annotated[Path, typer.Option(help="folder of the study; the same command goes on after a stop")],
    preset: Annotated[
        str | None, typer.Option(help="paper-fmnist, paper-celeba, cpu-small, quality, rings or smoke")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options win over it")] = None,
    weights: Annotated[Path | None, typer.Option(help="weights of FID's Inception, if not found by themselves")] = None,
    insecure_plain_average: Annotated[
        bool, typer.Option("--insecure-plain-average", help="run what secure aggregation refuses without masks")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes in which institutions train; default: one a core, one on a GPU")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="train on a Ray cluster instead: auto, host:port, ray://host:port or local")
    ] = None,
    cpus_per_institution: Annotated[float, typer.Option(min=0.01, help="of the Ray cluster")] = 1.0,
    gpus_per_institution: Annotated[float, typer.Option(min=0.0, help="of the Ray cluster; 0.1: ten on one GPU")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="feature nets and statistics of real images")] = None,
    **given: object,
) -> None:
    """Run a study: institutions, rounds with the real secure aggregation, baselines, scores, a report."""
    from fedddpm.evaluation.cache import default_cache
    from fedddpm.experiment.report.tables import print_tables
    from fedddpm.experiment.study import Place, RayPlace, default_workers, run_study

    options = settings_given(_SETTINGS, given)
    options["insecure_plain_average"] = "below-floor" if insecure_plain_average else None
    settings = _study(preset, config, options)
    command = shlex.join(["fedddpm", *sys.argv[1:]])
    cluster = RayPlace(ray, cpus_per_institution, gpus_per_institution) if ray is not None else None
    count = workers or default_workers(settings, device)
    place = Place(out, cache or default_cache(), count, device, weights, command, cluster)
    console = PlainConsole(soft_wrap=False)
    with _Watching(settings) as watching:
        results = run_study(settings, place, watching)
    print_tables(console, results)
    typer.echo(f"report: {out / 'report.html'}")


place_among(experiment, _SETTINGS, after="config")


def _study(preset: str | None, config: Path | None, options: Mapping[str, object]) -> StudySettings:
    """The study of the options, over those of a file, over those of a preset that either names."""
    from fedddpm.experiment.design.presets import preset as preset_named
    from fedddpm.experiment.design.settings import build, read_settings

    file = {} if config is None else read_settings(config)
    named = preset or file.pop("preset", None)
    return build({} if named is None else preset_named(str(named)), file, options)


def report(folder: Annotated[Path, typer.Argument(help="folder of a study")]) -> None:
    """Make the report of a study again, also of one that is half done."""
    from fedddpm.experiment.report.pages import write_report
    from fedddpm.experiment.report.tables import print_tables
    from fedddpm.experiment.results import read_results

    results = read_results(folder)
    page = write_report(folder, results)
    print_tables(PlainConsole(soft_wrap=False), results)
    typer.echo(f"report: {page}")


class _Watching:
    """Two bars on a terminal: the study with the time left, and what happens now; elsewhere a line now and then."""

    def __init__(self, settings: StudySettings) -> None:
        self._console = PlainConsole(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=_WHOLE_STUDY_S,
            disable=not self._console.is_terminal,
        )
        self._study = self._bars.add_task(f"study {settings.name}", total=None)
        self._now = self._bars.add_task("getting ready", total=None)
        self._what, self._told_at = "", 0.0

    def __enter__(self) -> _Watching:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def images(self, greys: GreySummary) -> None:
        """What the images hold, and what is doubtful of them."""
        text = f"{greys.count} images to train on; {greys.sentence}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        if greys.concern:
            self._console.print(f"Warning: {greys.concern}", style="yellow", markup=False, soft_wrap=True)

    def step(self, what: str, done: int, total: int) -> None:
        """Something before the first run."""
        self._show(what, done / max(total, 1))

    def run(self, plan: RunPlan, number: int, total: int) -> None:
        """A run begins."""
        kind = " (INSECURE plain average)" if plan.aggregation == "plain" else ""
        self._console.print(f"run {number} of {total}: {plan.name}{kind}", highlight=False, markup=False)

    def progress(self, rounds_done: float, rounds_total: int, what: str, share: float) -> None:
        """The study moves on."""
        self._bars.update(self._study, completed=rounds_done, total=rounds_total)
        self._show(what, share)

    def _show(self, what: str, share: float) -> None:
        if what != self._what:
            self._bars.reset(self._now, description=what, total=1.0)
            self._what = what
        self._bars.update(self._now, completed=share)
        if not self._console.is_terminal and time.monotonic() - self._told_at >= _LINE_EVERY_S:
            self._told_at = time.monotonic()
            self._console.print(f"{time.strftime('%H:%M:%S')} {what}: {100 * share:.0f} %", highlight=False)
