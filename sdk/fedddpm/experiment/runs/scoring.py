"""The scores of a run: images from its networks, against the real test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedddpm.compute.seeds import derived_seed
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError
from fedddpm.evaluation.classifier import open_classifier
from fedddpm.evaluation.features import FeatureNet, Features
from fedddpm.evaluation.inception import open_inception
from fedddpm.evaluation.pixel_rescaling import Saving
from fedddpm.evaluation.reference import Reference, open_reference
from fedddpm.evaluation.scores import Scores, score, score_features
from fedddpm.experiment.design.images import ImageSource, open_source
from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.results import Measured
from fedddpm.experiment.runs.site import DrawJob, draw, model_file
from fedddpm.experiment.runs.workers import OnProgress, Workers
from fedddpm.generation.image_files import save_grid
from fedddpm.generation.sampling import BATCH

Bytes = npt.NDArray[np.uint8]
Pictures = Mapping[str, Mapping[Saving, Bytes]]  # institution -> way of saving -> images
Step = Callable[[str, int, int], None]  # what, done, in all
Tell = Callable[[str, float], None]  # what is done now, the share of it
_FINAL_SEED = 1_000_000  # of the images at the end: other ones than those of the rounds


@dataclass(frozen=True)
class Scorer:
    """A feature net and the real images as it sees them."""

    net: FeatureNet
    reference: Reference


@dataclass(frozen=True)
class Where:
    """The networks of a run at one moment."""

    folders: Mapping[str, Path]  # institution -> folder; one entry where all hold the same network
    rounds: int  # done
    epochs: int
    local: bool  # whether the institutions' networks differ in parts that are never shared
    seed: int  # of the run


@dataclass
class Meter:
    """Draws and scores for a whole study; ``rulers[0]`` is the quick one."""

    settings: StudySettings
    workers: Workers
    device: str
    rulers: list[Scorer] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Which nets score, with which weights, how proven."""
        return [ruler.net.source for ruler in self.rulers]

    def open(self, cache: Path, weights: Path | None, step: Step) -> None:
        """Make the rulers ready, before any training; the first time on a machine this takes minutes.

        Raises:
            ConfigError: the extra or the weights of the Inception are missing.
        """
        if not self.settings.draws_images:
            return
        s = self.settings
        inception = open_inception(weights, self.device) if s.inception else None
        train, test = open_source(ImageSource.of(s.model_copy(update={"subset": None})))
        if _has_classes(train):
            classifier = open_classifier(
                train,
                test,
                cache,
                steps=s.classifier_steps,
                device=self.device,
                on_progress=lambda done, total: step("training the feature net", done, total),
            )
            self.rulers.append(self._ruler(classifier, train, test, cache, step))
        if inception is not None:
            self.rulers.append(self._ruler(inception, train, test, cache, step))
        if not self.rulers:
            raise ConfigError(
                "these images have no classes, so no small classifier can score what is drawn",
                "Add --fid, or set round_samples = 0 and final_samples = []",
            )

    def _ruler(self, net: FeatureNet, train: ImageSet, test: ImageSet, cache: Path, step: Step) -> Scorer:
        reference = open_reference(
            net, train, test, cache, on_progress=lambda done, total: step(f"real images in {net.name}", done, total)
        )
        for count in self._counts(net):
            reference.floor(count, lambda done, total: step(f"floor of {net.name}", done, total))
        return Scorer(net, reference)

    def _counts(self, net: FeatureNet) -> list[int]:
        s = self.settings
        counts = set(s.final_samples)
        if any(method in ("ULATDEC", "UDEC") for method in s.methods):  # scored by institution as well
            counts |= {s.client_share(count, k) for count in s.final_samples for k in s.institutions}
        if not net.is_inception and self.settings.round_samples:
            counts.add(self.settings.round_samples)
        return sorted(counts)

    def after_round(self, where: Where, grid: Path, on_progress: OnProgress) -> Measured | None:
        """Write the picture of a round and score it with the quick net, as far as the settings ask for it."""
        s, began, sites = self.settings, time.monotonic(), len(where.folders)
        scored = s.round_samples if self.rulers and not self.rulers[0].net.is_inception else 0
        each = max(-(-s.grid // sites), -(-scored // sites))
        if each == 0:
            return None
        pictures = self._draw(where, each, 0, ("rescaled",), on_progress)
        if s.grid:
            save_grid(torch.from_numpy(_pool(pictures, "rescaled", s.grid)), grid)
        if not scored:
            return None
        ruler = self.rulers[0]
        pooled = torch.from_numpy(_pool(pictures, "rescaled", scored))
        scores = score(ruler.net, ruler.reference, pooled, companions=False, seed=s.seeds[0])
        return Measured(epochs=where.epochs, pooled=scores, seconds=time.monotonic() - began)

    def at_the_end(self, where: Where, tell: Tell) -> list[Measured]:
        """Score the networks at the end of a run: every net, number of images and way of saving.

        Each image goes through each net once: smaller numbers are the first of the largest, and an institution's own
        are among the pooled ones as far as these reach.
        """
        if not self.settings.final_samples:
            return []
        began, sites = time.monotonic(), len(where.folders)
        each = max(-(-max(self.settings.final_samples) // sites), self.settings.client_samples if where.local else 0)
        savings = self.settings.saving
        pictures = self._draw(where, each, _FINAL_SEED, savings, lambda _, share: tell("final images", share))
        drawn = time.monotonic() - began
        return [
            one
            for ruler in self.rulers
            for how in savings
            for one in self._measure(ruler, where, pictures, how, drawn, tell)
        ]

    def _measure(
        self, ruler: Scorer, where: Where, pictures: Pictures, how: Saving, drawn: float, tell: Tell
    ) -> list[Measured]:
        began, s, sites = time.monotonic(), self.settings, len(pictures)
        most = sites * len(next(iter(pictures.values()))[how]) if where.local else max(s.final_samples)
        features = ruler.net.extract(
            torch.from_numpy(_pool(pictures, how, most)),
            lambda done, total: tell(f"scoring by {ruler.net.name}", done / total),
        )
        seconds, found = drawn + time.monotonic() - began, []
        for count in s.final_samples:
            own = s.client_share(count, len(where.folders))
            clients = {
                name: self._score(ruler, features[number::sites][:own], how, companions=False)
                for number, name in enumerate(pictures if where.local else ())
            }
            pooled = self._score(ruler, features[:count], how, companions=True)
            found.append(Measured(epochs=where.epochs, pooled=pooled, clients=clients, seconds=seconds))
        return found

    def _score(self, ruler: Scorer, features: Features, how: Saving, *, companions: bool) -> Scores:
        seed = self.settings.seeds[0]
        return score_features(ruler.net, ruler.reference, features, companions=companions, seed=seed, saving=how)

    def _draw(
        self, where: Where, each: int, seed: int, savings: Sequence[Saving], on_progress: OnProgress
    ) -> dict[str, dict[Saving, Bytes]]:
        """``each`` images from every network; the same noise after every round."""
        s = self.settings
        jobs = [
            DrawJob(
                path=model_file(folder, where.rounds),
                start=start,
                count=min(BATCH, each - start),
                averaged=s.ema_decay > 0,
                sampler=s.sampler,
                steps=s.sampler_steps,
                seed=derived_seed(where.seed, seed, number),
                guidance=s.guidance,
                savings=tuple(savings),
                device=self.workers.device(self.device),
            )
            for number, folder in enumerate(where.folders.values())
            for start in range(0, each, BATCH)
        ]
        drawn = self.workers.map(draw, jobs, on_progress)
        batches = len(jobs) // len(where.folders)
        return {
            name: {
                how: np.concatenate([one[how] for one in drawn[number * batches : (number + 1) * batches]])
                for how in savings
            }
            for number, name in enumerate(where.folders)
        }


def _pool(pictures: Pictures, how: Saving, count: int) -> Bytes:
    """``count`` images in equal shares from all institutions, one after the other."""
    stacked = np.stack([images[how] for images in pictures.values()], axis=1)  # [each, institutions, C, H, W]
    return np.ascontiguousarray(stacked.reshape(-1, *stacked.shape[2:])[:count])


def _has_classes(images: ImageSet) -> bool:
    return images.labels is not None and int(images.labels.min()) != int(images.labels.max())
