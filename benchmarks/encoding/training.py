"""Real updates for encoding_accuracy.py: the decoder's change after a local epoch of UDEC on small shares of images.

The first round starts from random weights and is opened by a ring of 24 bits, as a run does; the updates of the second
round, from the model that came of it, are kept in a file. So a second measurement trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.encoding.measuring import Case
from benchmarks.encoding.ring import FIRST_BITS, whole_round
from benchmarks.encoding.updates import Vector

from fedddpm.compute.seeds import derived_seed
from fedddpm.data.image_set import ImageSet, spread
from fedddpm.data.opening import open_images
from fedddpm.experiment.design.images import share_out
from fedddpm.model.partition import flatten, manifest, unflatten
from fedddpm.model.unet import UNet
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.methods import DECODER, MODEL_PARTS
from fedddpm_protocol.agreement.model_layout import Manifest, TensorSpec
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, WEIGHT_UNITS, ScaleReference, part_spec

Tell = Callable[[str], None]
_KEPT = tuple(part for part in MODEL_PARTS if part != DECODER)


@dataclass(frozen=True)
class Training:
    """How the updates come about."""

    members: int
    data: str
    root: str
    images: int  # of all institutions together, shared out unevenly by label
    batch_size: int
    preset: str = "tiny"
    learning_rate: float = 2e-4
    seed: int = 0


def real_updates(training: Training, folder: Path, tell: Tell) -> Case:
    """The second round, from the file in ``folder``, if these very settings made it; else trained now, and kept there.

    Raises:
        DataError: the images are not there, or cannot be shared out.
    """
    path = folder / f"encoding_deltas_{training.preset}_{training.members}.npz"
    opened_by = repr(part_spec(DECODER, (TensorSpec("w", (2**20,)),), FIRST_BITS).values)
    settings = json.dumps({**asdict(training), "root": "", "opened_by": opened_by})  # images lie wherever they lie
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["settings"]) == settings:
                return _case(kept["deltas"], kept["units"].tolist(), json.loads(str(kept["facts"])))
    deltas, units, facts = _two_rounds(training, tell)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, deltas=deltas, units=np.array(units), facts=json.dumps(facts), settings=settings)
    return _case(deltas, units, facts)


Facts = dict[str, Any]  # as JSON: what is kept beside the updates


def _case(deltas: Vector, units: list[int], facts: Facts) -> Case:
    tensors: Manifest = tuple(TensorSpec(name, tuple(shape)) for name, shape in facts["manifest"])
    reference = ScaleReference(*facts["reference"])
    return Case("real", tensors, tuple(units), list(deltas), reference, has_targets=False)


def _two_rounds(training: Training, tell: Tell) -> tuple[Vector, list[int], Facts]:
    """Updates [members, coordinates] of the second round, everybody's weight, and what else is kept of it."""
    shares = _shares(training)
    units = [max(1, round(WEIGHT_UNITS * len(share) / max(map(len, shares)))) for share in shares]
    torch.manual_seed(training.seed)
    model = UNet(shares[0].image_size, shares[0].channels, training.preset)
    shared, local = flatten(model, (DECODER,)), [flatten(model, _KEPT)] * len(shares)
    tensors = manifest(model, (DECODER,))
    first = _train_all(model, training, shares, shared, local, 0, tell)
    opened = whole_round(tensors, FIRST_BITS, NOTHING_KNOWN, first, units, "first round")
    shared = shared + opened.mean
    second = _train_all(model, training, shares, shared, local, 1, tell)
    facts: Facts = {
        "manifest": [[tensor.name, list(tensor.shape)] for tensor in tensors],
        "reference": list(astuple(opened.reference)),
    }
    return np.stack(second), units, facts


def _shares(training: Training) -> list[ImageSet]:
    images = open_images(training.data, root=training.root)
    images = images.subset(spread(len(images), training.images))
    split = "quantity-skew" if images.labels is None else "label-skew"
    return [images.subset(share) for share in share_out(images, split, training.members, training.seed, 0.5)]


def _train_all(
    model: UNet,
    training: Training,
    shares: list[ImageSet],
    shared: Vector,
    local: list[Vector],
    round_: int,
    tell: Tell,
) -> list[Vector]:
    """Everybody's update of one round; ``local`` then holds what everybody keeps."""
    settings = TrainSettings(batch_size=training.batch_size, learning_rate=training.learning_rate)
    deltas = []
    for number, share in enumerate(shares):
        unflatten(model, (DECODER,), shared)
        unflatten(model, _KEPT, local[number])
        seed = derived_seed("encoding accuracy", training.seed, round_, number)
        Trainer(model, share, torch.device("cpu"), settings, seed).train()
        deltas.append(flatten(model, (DECODER,)) - shared)
        local[number] = flatten(model, _KEPT)
        tell(f"round {round_ + 1}: institution {number + 1} of {len(shares)} has trained on {len(share)} images")
    return deltas
