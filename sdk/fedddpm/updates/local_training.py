"""From a round's base model to this institution's update, by training at home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.model.ema import AverageState
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.training.ranks import ALONE, RankShare
from fedddpm.training.settings import Progress, TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm.updates.local_update import LocalUpdate, kept_parts, require_finite
from fedddpm.updates.work_floor import WorkDone, step_limit
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives.canonical import tagged_hash


def train_update(
    model: UNet,
    spec: RoundSpec,
    images: tuple[ImageSet, ImageSet],
    device: torch.device,
    options: LocalPolicyOptions,
    seed: int,
    checkpoint: Path,
    on_progress: Callable[[Progress], None],
    *,
    learning: LearningOptions = LearningOptions(),  # noqa: B008  # frozen
    average: AverageState | None = None,
    base: Vector | None = None,
    share: RankShare = ALONE,
    on_sign_of_life: Callable[[], None] = lambda: None,
) -> LocalUpdate:
    """Train ``model``, which holds the round's base, in place on the first of ``images``; the second measures loss.

    ``seed`` is the institution's, of as many bits as it should have: whoever knows it knows all that was drawn.
    Continues from ``checkpoint`` if a training of this very base left it. ``average`` is that of the base's weights,
    as ``adopt_round`` left it; None lets it begin with them. ``base`` [coordinates of the base manifest] is what the
    update is measured against; None: what ``model`` holds. ``share``: rank 0 of those who train together.
    ``on_sign_of_life`` is told now and then where there is no progress to tell: while the held-out loss is measured.

    Raises:
        PolicyError: the first gradient is as a model that somebody made has it.
        TrainingError: the update holds NaN or infinity; DataError: images or labels do not fit the network.
    """
    method = Method(spec.method)
    settings = _settings(spec, options, learning)
    trainer = Trainer(model, images[0], device, settings, _round_seed(seed, spec), average, share)
    before = flatten(model, method.shared_parts) if base is None else base
    loss_before = trainer.score(images[1], on_sign_of_life)
    outcome = trainer.train(checkpoint, on_progress)
    kept = kept_parts(method)
    work = WorkDone.of(outcome.steps, outcome.samples, spec.batch_size)
    update = LocalUpdate(
        run=spec.run,
        round=spec.round,
        base_model_hash=spec.base_model_hash,
        terms_hash=spec.terms.hash,
        delta=_of_this_round(spec, flatten(model, method.shared_parts) - before),
        local=flatten(model, kept) if kept else np.zeros(0, np.float32),
        samples=outcome.samples,
        loss_before=loss_before,
        loss_after=trainer.score(images[1], on_sign_of_life),
        seconds=outcome.seconds,
        average=trainer.average_state(),
        steps=work.steps,
        images_seen=work.images_seen,
        train_loss=outcome.train_loss,
    )
    require_finite(update)
    return update


def _of_this_round(spec: RoundSpec, delta: Vector) -> Vector:
    """``delta`` with zeros for the parts that are not summed in this round."""
    for part, here in spec.places:
        if part.name not in spec.summed:
            delta[here] = 0
    return delta


def _settings(spec: RoundSpec, options: LocalPolicyOptions, learning: LearningOptions) -> TrainSettings:
    return TrainSettings(
        epochs=spec.epochs,
        max_steps=step_limit(spec, options),
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        max_seconds=options.max_seconds,
        ema_decay=learning.ema_decay or None,
        label_dropout=learning.label_dropout,
        precision=learning.precision,
        compile=learning.compile,
        recipe=spec.recipe,
        round=spec.round,
        rounds=spec.rounds,
        flips=learning.flips,
        max_small_gradients=options.max_small_gradients,
    )


def _round_seed(seed: int, spec: RoundSpec) -> int:
    """256 bits, the same whenever this base is trained on under these terms, and others for everything else."""
    own = seed.to_bytes(max(8, (seed.bit_length() + 7) // 8), "big")
    return int.from_bytes(tagged_hash("training", own, spec.base_model_hash, spec.terms.hash), "big")
