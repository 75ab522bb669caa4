"""The command ``fedddpm evaluate``: scores of images, or of a network's images, against real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedddpm.cli.choices import SamplerName, WeightsName
from fedddpm.errors import CheckpointError, ConfigError
from fedddpm.monitoring.terminal import PlainConsole

if TYPE_CHECKING:
    from torch import Tensor

    from fedddpm.data.image_set import ImageSet
    from fedddpm.evaluation.features import FeatureNet, OnProgress
    from fedddpm.evaluation.inputs import RealImages
    from fedddpm.evaluation.reference import Reference
    from fedddpm.evaluation.scores import Scores

    Watch = Callable[[str], OnProgress]

_DEFAULT_COUNT = 1000  # images drawn from a network where nobody says how many


class Net(StrEnum):
    """What looks at the images."""

    INCEPTION = "inception"
    CLASSIFIER = "classifier"


class SavingName(StrEnum):
    """How a network's floats become bytes."""

    RESCALED = "rescaled"
    CLIPPED = "clipped"


def evaluate(
    reference: Annotated[str, typer.Option(help="real images: fashion-mnist, cifar10, celeba, a folder or an .npz")],
    images: Annotated[Path | None, typer.Option(help="score these: a folder of images or an .npz")] = None,
    model: Annotated[Path | None, typer.Option(help="score images drawn from this model file")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="score images drawn from an institution's network")] = None,
    net: Annotated[list[Net] | None, typer.Option(help="inception gives FID, classifier FD; repeatable")] = None,
    count: Annotated[list[str] | None, typer.Option(help="numbers of images, as 1000 or 1000,5000; repeatable")] = None,
    saving: Annotated[list[SavingName] | None, typer.Option(help="clipped: as the paper's code; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the scores")] = None,
    classifier_steps: Annotated[int | None, typer.Option(min=1, help="how long the classifier is trained")] = None,
    companions: Annotated[bool, typer.Option(help="KID, precision and recall too")] = True,
    weights: Annotated[Path | None, typer.Option(help="weights of FID's Inception, if not found by themselves")] = None,
    cache: Annotated[Path | None, typer.Option(help="feature nets and statistics of real images")] = None,
    data_root: Annotated[Path, typer.Option(help="where the named data sets lie")] = Path("data"),
    image_size: Annotated[int | None, typer.Option(help="pixels, for folders and CelebA")] = None,
    channels: Annotated[int | None, typer.Option(help="1 grey, 3 colour")] = None,
    sampler: Annotated[SamplerName, typer.Option(help="how images are drawn")] = SamplerName.DPM,
    steps: Annotated[int | None, typer.Option(min=1, help="steps of ddim or dpm")] = None,
    guidance: Annotated[float, typer.Option(help="of classifier-free guidance")] = 1.0,
    network_weights: Annotated[WeightsName | None, typer.Option(help="default: ema where there is one")] = None,
    seed: Annotated[int, typer.Option(help="decides the drawn images")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Score images against real ones: FID or FD with its N and floor, KID, precision and recall."""
    from fedddpm.data.grey_summary import grey_line
    from fedddpm.evaluation.cache import default_cache
    from fedddpm.evaluation.inputs import open_real_images, read_scored
    from fedddpm.evaluation.optional_packages import require_extra
    from fedddpm.evaluation.scorecard import print_scores, write_scores

    require_extra()
    counts = _counts(count)
    if sum(given is not None for given in (images, model, state_dir)) != 1:
        raise ConfigError("exactly one of --images, --model and --state-dir is needed", "Give one of them")
    if out is not None and not out.parent.is_dir():
        raise CheckpointError(f"there is no folder {out.parent} for {out.name}", f"Run: mkdir -p {out.parent}")
    real = open_real_images(reference, data_root, image_size, channels)
    given = None if images is None else read_scored(images, real.test)
    counts = counts or [_DEFAULT_COUNT if given is None else len(given)]
    if given is not None and counts[-1] > len(given):
        raise ConfigError(f"{counts[-1]} images cannot be scored: there are {len(given)}", "Lower --count")
    with _bars() as watch:
        judges = _Judges(real, cache or default_cache(), weights, classifier_steps, device, watch)
        nets = [judges.open(one, counts) for one in net or [Net.INCEPTION]]  # what is missing shows before drawing
        drawing = _Drawing(state_dir, model, network_weights, sampler, steps, guidance, seed, device)
        floats, how_drawn = (given, "") if given is not None else drawing.draw(counts[-1], real.test, watch)
        scores = [
            judges.score(one, floats, n, how, companions)
            for one in nets
            for how in saving or [SavingName.RESCALED]
            for n in counts
        ]
    greys = grey_line(real.test)
    held = (f"reference: {greys.sentence}", greys.concern)
    notes = [note for note in (how_drawn, real.note, *held, *(f"{one.name}: {one.source}" for one in nets)) if note]
    print_scores(PlainConsole(soft_wrap=False), scores, notes)
    if out is not None:
        write_scores(out, scores, str(images or model or state_dir), reference, notes)
        typer.echo(str(out))


def _counts(given: list[str] | None) -> list[int]:
    try:
        counts = sorted({int(part) for item in given or [] for part in item.split(",")})
    except ValueError as error:
        raise ConfigError(f"--count {' '.join(given or [])}: {error}", "Give numbers, as 1000 or 1000,5000") from error
    if counts and counts[0] < 2:
        raise ConfigError(f"{counts[0]} images cannot be scored", "Score two at least; a thousand say something")
    return counts


@dataclass(frozen=True)
class _Drawing:
    """Where drawn images come from."""

    state_dir: Path | None
    model: Path | None
    which: WeightsName | None
    sampler: SamplerName
    steps: int | None
    guidance: float
    seed: int
    device: str

    def draw(self, count: int, real: ImageSet, watch: Watch) -> tuple[Tensor, str]:
        """``count`` images as floats in [-1, 1] and how they came about; ConfigError if they would not fit ``real``."""
        from fedddpm.compute.device import pick_device
        from fedddpm.generation.networks import chosen_file, chosen_weights, load_network
        from fedddpm.generation.sampling import sample_images_raw

        path = chosen_file(self.state_dir, self.model)
        which = chosen_weights(path, None if self.which is None else self.which.value)
        network = load_network(path, which)
        kind = network.architecture
        if (kind.image_size, kind.channels) != (real.image_size, real.channels):
            raise ConfigError(
                f"the network draws {kind.image_size}x{kind.image_size}x{kind.channels}, the reference has "
                f"{real.image_size}x{real.image_size}x{real.channels}",
                "Use the reference that it was trained on, or --image-size and --channels",
            )
        drawn = sample_images_raw(
            network,
            count,
            sampler=self.sampler.value,
            steps=self.steps,
            seed=self.seed,
            device=pick_device(self.device),
            guidance=self.guidance,
            on_progress=watch("drawing images"),
        )
        weights = "the moving average of the weights" if which == "ema" else "the weights as trained"
        steps = "" if self.steps is None else f", {self.steps} steps"
        return drawn, f"drawn from {weights} by {self.sampler.value}{steps}, seed {self.seed}"


class _Judges:
    """The feature nets and their references."""

    def __init__(
        self, real: RealImages, cache: Path, weights: Path | None, steps: int | None, device: str, watch: Watch
    ) -> None:
        self._real, self._cache, self._device, self._watch = real, cache, device, watch
        self._weights, self._steps = weights, steps
        self._references: dict[str, Reference] = {}

    def open(self, which: Net, counts: Sequence[int]) -> FeatureNet:
        """The net, with its reference and floors made ready."""
        from fedddpm.evaluation.classifier import DEFAULT_STEPS, open_classifier
        from fedddpm.evaluation.inception import open_inception
        from fedddpm.evaluation.reference import open_reference

        train, test = self._real.train, self._real.test
        net: FeatureNet
        if which is Net.INCEPTION:
            net = open_inception(self._weights, self._device)
        else:
            steps, heard = self._steps or DEFAULT_STEPS, self._watch("training the classifier")
            net = open_classifier(train, test, self._cache, steps=steps, device=self._device, on_progress=heard)
        progress = self._watch(f"real images in {net.name}")
        reference = open_reference(net, train, test, self._cache, on_progress=progress)
        for n in counts:
            reference.floor(n, self._watch(f"floor at N = {n}"))
        self._references[net.name] = reference
        return net

    def score(self, net: FeatureNet, floats: Tensor, n: int, how: SavingName, companions: bool) -> Scores:
        """The scores of ``n`` of the images, evenly spread over all."""
        from fedddpm.data.image_set import spread
        from fedddpm.evaluation.pixel_rescaling import as_saved
        from fedddpm.evaluation.scores import score

        saved = as_saved(floats[spread(len(floats), n)], how.value)
        return score(
            net,
            self._references[net.name],
            saved,
            companions=companions,
            saving=how.value,
            on_progress=self._watch(f"{n} images in {net.name}"),
        )


@contextmanager
def _bars() -> Iterator[Watch]:
    """Bars on a terminal, nothing elsewhere: a function from what happens to what hears how far it is."""
    console = PlainConsole(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:

        def watch(what: str) -> OnProgress:
            task = progress.add_task(what, total=None, visible=False)
            return lambda done, total: progress.update(task, completed=done, total=total, visible=done < total)

        yield watch
