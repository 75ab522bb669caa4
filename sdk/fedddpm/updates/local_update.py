"""One round of local training, and its outcome as a file that outlives the process.

The stored update is used again by every attempt on the same base model under the same terms; only the masks are fresh
each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import CheckpointError, TrainingError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.ema import AverageState, follow
from fedddpm.model.partition import flatten, unflatten
from fedddpm.model.unet import UNet
from fedddpm.training.ranks import ALONE, Share
from fedddpm.training.settings import Progress, TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.encoder import l2_norm, loss_units
from fedddpm_protocol.errors import NonFiniteError
from fedddpm_protocol.foreign.json_reading import read_json
from fedddpm_protocol.primitives.canonical import tagged_hash, u64

Vector = npt.NDArray[np.float32]
_KEY, _AVERAGE, _HASHES = "fedddpm.update", "average_updates", ("base_model_hash", "terms_hash")
_PRIVATE = 0o600  # an update without its mask is what nobody else may see
_FILE, _CHECKPOINT = "update.safetensors", "training.safetensors"


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What this institution learned from one base model."""

    run: str
    round: int
    base_model_hash: bytes
    terms_hash: bytes
    delta: Vector  # trained minus base, shared parts in manifest order, not clipped
    local: Vector  # trained parts that stay here; empty where all are shared
    samples: int
    loss_before: float  # held-out loss of the base model
    loss_after: float  # held-out loss of the locally trained model
    seconds: float
    average: AverageState | None = None  # of the trained weights, which stays here; None where none is kept
    feedback: Vector | None = (
        None  # what earlier rounding took from the shared parts; None where nothing is made up for
    )

    @property
    def sent(self) -> Vector:
        """What goes into the sum: the delta, and what is made up for."""
        return self.delta if self.feedback is None else self.delta + self.feedback

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name all of it that goes under masks."""
        figures = (self.samples, loss_units(self.loss_before), loss_units(self.loss_after))
        return tagged_hash("update", *map(u64, figures), self.sent.data.cast("B"))


def local_parts(method: Method) -> tuple[str, ...]:
    """The parts that never leave the institution."""
    return tuple(part for part in MODEL_PARTS if part not in method.shared_parts)


class UpdateStore:
    """The one update, and the checkpoint of the training that leads to it, in the state folder."""

    def __init__(self, folder: Path) -> None:
        self._update, self.checkpoint = folder / _FILE, folder / _CHECKPOINT

    def load(self, base_model_hash: bytes, terms_hash: bytes | None = None) -> LocalUpdate | None:
        """The stored update of exactly this base model, under these terms where they are given; None without one."""
        if not self._update.exists():
            return None
        try:
            tensors, metadata = load_tensors(self._update)
            fields = dict(read_json(metadata[_KEY]))
            average_updates = fields.pop(_AVERAGE)
            averaged = None if average_updates is None else AverageState(tensors["average"].numpy(), average_updates)
            update = LocalUpdate(
                **{**fields, **{name: bytes.fromhex(fields[name]) for name in _HASHES}},
                delta=tensors["delta"].numpy(),
                local=tensors["local"].numpy(),
                average=averaged,
                feedback=tensors["feedback"].numpy() if "feedback" in tensors else None,
            )
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None  # a damaged file is as good as none: whether it is made again is the ledger's to say
        wanted = (base_model_hash, update.terms_hash if terms_hash is None else terms_hash)
        return update if (update.base_model_hash, update.terms_hash) == wanted else None

    def save(self, update: LocalUpdate) -> None:
        """Write the update, atomically; CheckpointError if the disk does not take it."""
        fields = {
            "run": update.run,
            "round": update.round,
            **{name: getattr(update, name).hex() for name in _HASHES},
            "samples": update.samples,
            "loss_before": update.loss_before,
            "loss_after": update.loss_after,
            "seconds": update.seconds,
            _AVERAGE: None if update.average is None else update.average.updates,
        }
        tensors = {"delta": torch.from_numpy(update.delta), "local": torch.from_numpy(update.local)}
        if update.average is not None:
            tensors["average"] = torch.from_numpy(update.average.vector)
        if update.feedback is not None:
            tensors["feedback"] = torch.from_numpy(update.feedback)
        save_tensors(self._update, tensors, {_KEY: json.dumps(fields)}, _PRIVATE)
        self.checkpoint.unlink(missing_ok=True)

    def clear(self) -> None:
        """The round is over: forget the update and its checkpoint."""
        self._update.unlink(missing_ok=True)
        self.checkpoint.unlink(missing_ok=True)


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
    share: Share = ALONE,
    on_sign_of_life: Callable[[], None] = lambda: None,
) -> LocalUpdate:
    """Train ``model``, which holds the round's base, in place on the first of ``images``; the second measures loss.

    ``seed`` is the institution's, of as many bits as it should have: whoever knows it knows all that was drawn.
    Continues from ``checkpoint`` if a training of this very base left it. ``average`` is that of the base's weights,
    as :func:`adopt` left it; None lets it begin with them. ``share``: rank 0 of those who train together.
    ``on_sign_of_life`` is told now and then where there is no progress to tell: while the held-out loss is measured.

    Raises:
        TrainingError: the update holds NaN or infinity; DataError: images or labels do not fit the network.
    """
    method = Method(spec.method)
    settings = _settings(spec, options, learning)
    trainer = Trainer(model, images[0], device, settings, _round_seed(seed, spec), average, share)
    before = flatten(model, method.shared_parts)
    loss_before = trainer.score(images[1], on_sign_of_life)
    outcome = trainer.train(checkpoint, on_progress)
    kept = local_parts(method)
    update = LocalUpdate(
        run=spec.run,
        round=spec.round,
        base_model_hash=spec.base_model_hash,
        terms_hash=spec.terms.hash,
        delta=flatten(model, method.shared_parts) - before,
        local=flatten(model, kept) if kept else np.zeros(0, np.float32),
        samples=outcome.samples,
        loss_before=loss_before,
        loss_after=trainer.score(images[1], on_sign_of_life),
        seconds=outcome.seconds,
        average=trainer.average_state(),
    )
    require_finite(update)
    return update


def adopt_round(
    model: UNet, method: Method, shared: Vector, update: LocalUpdate | None, average: AverageState | None = None
) -> AverageState | None:
    """Take the result of a round: put the new ``shared`` parts, and the local parts of ``update``, into ``model``.

    ``model`` holds what the round began with; ``update`` is None where this institution sat it out.
    Returns the average of the weights that goes with the network now: that of ``update``, or else ``average``, moved
    as the shared weights were moved, namely from where training had left them.

    Raises:
        ModelError: a vector of a wrong length, or one that holds NaN or infinity.
    """
    kept = average
    if update is not None:
        kept = update.average
        trained = flatten(model, method.shared_parts) + update.delta
        replace_parts(model, method.shared_parts, trained)
        replace_parts(model, local_parts(method), update.local)
    before = flatten(model)
    replace_parts(model, method.shared_parts, shared)
    return None if kept is None else follow(kept, before, flatten(model))


def replace_parts(model: UNet, parts: tuple[str, ...], vector: Vector) -> None:
    """Write a vector over parts of a network."""
    if parts:
        unflatten(model, parts, vector)


def require_finite(update: LocalUpdate) -> None:
    """Raise TrainingError where an update holds NaN or infinity: it would destroy everybody's sum."""
    try:
        l2_norm(update.sent)
        l2_norm(np.array([update.loss_before, update.loss_after]))
    except NonFiniteError as error:
        raise TrainingError(
            "the update of this round holds NaN or infinity and is not sent",
            "Look for broken images, or ask the coordinator for a lower learning rate",
        ) from error


def _settings(spec: RoundSpec, options: LocalPolicyOptions, learning: LearningOptions) -> TrainSettings:
    limits = [limit for limit in (spec.max_steps, options.max_steps) if limit]
    return TrainSettings(
        epochs=spec.epochs,
        max_steps=min(limits) if limits else None,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        max_seconds=options.max_seconds,
        ema_decay=learning.ema_decay or None,
        label_dropout=learning.label_dropout,
        precision=learning.precision,
        compile=learning.compile,
    )


def _round_seed(seed: int, spec: RoundSpec) -> int:
    """256 bits, the same whenever this base is trained on under these terms, and others for everything else."""
    own = seed.to_bytes(max(8, (seed.bit_length() + 7) // 8), "big")
    return int.from_bytes(tagged_hash("training", own, spec.base_model_hash, spec.terms.hash), "big")
