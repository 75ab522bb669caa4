"""The baseline: all images in one place, one training without rounds.

The paper's baseline has 15 epochs, while each of its federated runs does R * E local epochs. One training of the longer
time gives both: it is looked at on the way.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fedddpm.compute.device import pick_device
from fedddpm.experiment.design.images import ImageSource, class_counts, open_source
from fedddpm.experiment.design.plan import RunPlan
from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.results import CENTRALISED, InstitutionRecord, RoundRecord, RunRecord
from fedddpm.experiment.runs.run_context import RunContext, Save
from fedddpm.experiment.runs.scoring import Tell, Where
from fedddpm.experiment.runs.site import measure_loss, model_file
from fedddpm.model.ema import average_file, save_average
from fedddpm.model.model_files import save_model
from fedddpm.training.settings import Progress, TrainSettings
from fedddpm.training.trainer import Trainer

_EVERYBODY = "all-images"


def epochs_in_all(settings: StudySettings) -> int:
    """How long the baseline trains: R * E epochs, or longer if asked for."""
    return max(looks(settings))


def looks(settings: StudySettings) -> tuple[int, ...]:
    """After how many epochs it is scored as at the end of a run."""
    return tuple(sorted({settings.rounds * settings.epochs, *settings.centralised_epochs}))


class CentralisedRun:
    """Runs the baseline, from the start or from where ``record`` and the last checkpoint are."""

    def __init__(self, around: RunContext, plan: RunPlan, record: RunRecord | None) -> None:
        self._around, self._plan, self._settings = around, plan, around.settings
        self._folder = around.run_folder(plan.name)
        images, test = open_source(ImageSource.of(self._settings))
        self._images = images
        self._test = test.subset(np.arange(min(self._settings.loss_images, len(test))))
        member = InstitutionRecord(
            name=_EVERYBODY, images=len(images), labels=class_counts(images, np.arange(len(images)))
        )
        self.record = record or RunRecord(
            name=plan.name,
            method=CENTRALISED,
            institutions=1,
            split=plan.split,
            network=plan.network,
            seed=plan.seed,
            aggregation="none",
            parameters=around.part_sizes(plan.network),
            members=[member],
        )
        self._run_began = time.monotonic() - self.record.seconds

    def run(self, tell: Tell, save: Save) -> RunRecord:
        """Train to the end; ``save`` makes each look at the network durable.

        Raises:
            TrainingError: the training diverged.
        """
        s, total = self._settings, epochs_in_all(self._settings)
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = TrainSettings(
            epochs=total,
            batch_size=s.batch_size,
            learning_rate=s.rate_for(self._plan.network),
            ema_decay=s.ema_decay or None,
            recipe=s.recipe_for(self._plan.network),
            flips=s.flips,
        )
        model = self._around.first_network(self._plan.network, self._plan.seed)
        trainer = Trainer(model, self._images, pick_device(self._around.device), settings, self._plan.seed)

        def on_progress(progress: Progress) -> None:
            tell(f"epoch {progress.epoch + 1} of {total}: training", progress.step / progress.steps_total)

        def on_epoch(epochs: int) -> None:
            if epochs % s.epochs == 0 or epochs in looks(s):
                self._look(trainer, epochs, tell, save)

        trainer.train(self._folder / "training.safetensors", on_progress, on_epoch)
        self._keep(save, done=True)
        return self.record

    def _look(self, trainer: Trainer, epochs: int, tell: Tell, save: Save) -> None:
        """Store, draw and score the network as it is after ``epochs``; nothing if that was done before a kill."""
        if any(record.epochs == epochs for record in self.record.rounds):
            return
        path = model_file(self._folder, epochs)
        average = trainer.average_state()
        if average is not None:
            save_average(average_file(path), trainer.model, average)
        save_model(path, trainer.model)
        where = Where({_EVERYBODY: self._folder}, epochs, epochs, local=False, seed=self._plan.seed)
        grid = self._grid(epochs)
        measured = self._around.meter.after_round(where, grid, lambda at, share: tell("drawing images", share))
        record = RoundRecord(
            round=len(self.record.rounds),
            epochs=epochs,
            train_loss=None,
            loss_before=None,
            loss=measure_loss(trainer.model, self._test, self._around.device),
            measured=measured,
            grid=str(grid.relative_to(self._around.folder)) if grid.exists() else None,
        )
        final = list(self.record.final)
        if epochs in looks(self._settings):
            final += self._around.meter.at_the_end(where, tell)
        self._keep(save, rounds=[*self.record.rounds, record], final=final)

    def _grid(self, epochs: int) -> Path:
        return self._folder / f"epoch-{epochs:03d}.png"

    def _keep(self, save: Save, **changes: object) -> None:
        self.record = self.record.model_copy(update={**changes, "seconds": time.monotonic() - self._run_began})
        save(self.record)
