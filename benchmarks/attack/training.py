"""Both sides of attacks.py: how an institution trains, and what an aggregator can say and predict of it.

Two functions hold all that is known of an institution's randomness: :func:`institution_seed`, from which its training
draws, and :func:`predicted`, which repeats these draws from public words alone.
"""

from __future__ import annotations

import copy
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.aggregation.sum_spec import sum_spec
from benchmarks.encoding.ring import RingSum
from torch import Tensor

from fedddpm.compute.seeds import derived_seed, generator_for
from fedddpm.config import LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.partition import PARTS, flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm.training.settings import silent
from fedddpm.updates.local_training import _round_seed, train_update
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.spec import CHUNK_COORDINATES, WEIGHT_UNITS, RoundSpec, part_spec

_CPU = torch.device("cpu")
_METHOD = Method.FULL
_BITS = 32  # what the aggregator asks for who wants to see small numbers
_PUBLIC_SEED = 0  # the setting that nobody changes
_DIFFUSION = Diffusion()
_NO_FLOORS = LocalPolicyOptions(max_small_gradients=1.0)  # what is attacked trains on whatever it is given


@dataclass(frozen=True)
class Terms:
    """What an aggregator may choose freely about a round's training."""

    learning_rate: float
    batch_size: int
    max_steps: int = 0  # 0: no limit
    epochs: int = 1
    clip_norm: float = 100.0  # far above all updates here: the attacks need no clipping


def offer(base: UNet, run: str, members: int, terms: Terms, attempt: int = 0) -> RoundSpec:
    """The first round of ``run`` on ``base`` for ``members`` institutions that share the whole network."""
    tensors = manifest(base)
    spec = sum_spec(
        _METHOD,
        part_spec(next(iter(_METHOD.sessions)), tensors, _BITS),
        clip_norm=terms.clip_norm,
        largest_cohort=members,
        chunk_coordinates=CHUNK_COORDINATES,
        encoding_seed=bytes(32),
    )
    return spec.with_terms_hash(
        run=run,
        attempt=attempt,
        architecture=base.architecture,
        base_model_hash=model_hash(tensors, flatten(base, PARTS)),
        epochs=terms.epochs,
        max_steps=terms.max_steps,
        batch_size=terms.batch_size,
        learning_rate=terms.learning_rate,
    )


def institution_seed(member: str, *, secret: bool) -> int:
    """What an institution's random choices follow from: public words, or 256 bits that it alone has."""
    return secrets.randbits(256) if secret else derived_seed(_PUBLIC_SEED, member)


def train(base: UNet, spec: RoundSpec, images: ImageSet, seed: int) -> LocalUpdate:
    """One institution's local training, by the code that institutions run; ``base`` stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "training.safetensors"
        both = (images, images.subset([0]))  # the held-out part only measures a loss
        return train_update(copy.deepcopy(base), spec, both, _CPU, _NO_FLOORS, seed, checkpoint, silent)


def secure_sum(spec: RoundSpec, updates: Sequence[LocalUpdate]) -> Vector:
    """The mean update [P] that everybody learns, through the protocol's own encoding; all weigh the same."""
    total = RingSum(spec, len(updates))
    for update in updates:
        total.add(update.delta, WEIGHT_UNITS)
    return total.open().mean


class Draws(NamedTuple):
    """The random choices of a first step on all images of an institution."""

    order: Tensor  # int64 [B]: which image is in which row
    t: Tensor  # int64 [B]
    noise: Tensor  # float32 [B, C, H, W]


def predicted(spec: RoundSpec, member: str, images: int) -> Draws:
    """What a member draws in its first step if all follows from public words: its name, base model and terms."""
    seed = _round_seed(institution_seed(member, secret=False), spec)
    order = torch.randperm(images, generator=generator_for(_CPU, seed, "order", 0))
    shape = (images, spec.architecture.channels, spec.architecture.image_size, spec.architecture.image_size)
    _, t, noise = _DIFFUSION.draw(torch.zeros(shape), generator_for(_CPU, seed, "noise", 0))
    return Draws(order, t, noise)


def telling_offer(spec: RoundSpec, members: Sequence[str], images: int, tries: int) -> RoundSpec:
    """Among ``tries`` offers the one whose latest predicted timestep is earliest: least noise on images.

    They differ in the weight cap, which is a term of the training and changes nothing where all weigh the same.
    """
    offers = (spec.with_terms_hash(weight_cap=cap) for cap in range(1, tries + 1))
    return min(offers, key=lambda one: max(int(predicted(one, member, images).t.max()) for member in members))
