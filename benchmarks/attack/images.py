"""Images out of one secure sum of several institutions, for attacks.py: who knows what of their randomness."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from benchmarks.attack.inversion import LEARNING_RATE, crafted, reconstruct, reconstruct_blind
from benchmarks.attack.scenario import REPEATS, SOLVES, Scenario
from benchmarks.attack.scores import Score, as_floats, chance, score
from benchmarks.attack.training import Terms, institution_seed, offer, predicted, secure_sum, telling_offer, train
from torch import Tensor

from fedddpm.data.image_set import ImageSet
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Architecture, Vector
from fedddpm_protocol.agreement.spec import RoundSpec

PUBLIC, SECRET = "public", "secret"


@dataclass(frozen=True)
class Case:
    """Where the institutions' randomness comes from, and what the adversary makes of it."""

    randomness: str
    adversary: Scenario


CASES = (Case(PUBLIC, REPEATS), Case(SECRET, REPEATS), Case(SECRET, SOLVES))


@dataclass(frozen=True, eq=False)
class Attack:
    """One reconstruction beside the truth."""

    case: Case
    score: Score
    chance: Score  # of unrelated images
    seconds: float  # of one core, for the adversary's search
    found: Tensor  # [N, C, H, W]


@dataclass(frozen=True)
class Setting:
    """What all attacks have in common."""

    architecture: Architecture
    names: int  # of runs that are tried for early timesteps
    evaluations: int  # of a search, at most
    blind_evaluations: int


def attack_all(
    setting: Setting, shares: Sequence[ImageSet], others: ImageSet, cases: Sequence[Case] = CASES
) -> Iterator[Attack]:
    """One attack after the other on the same ``shares``, all of one size; ``others`` are images that nobody has."""
    base, images = crafted(setting.architecture), len(shares[0])
    members = [f"site-{number}" for number in range(len(shares))]
    terms = Terms(LEARNING_RATE, batch_size=images, max_steps=1, clip_norm=1.0)
    spec = telling_offer(offer(base, "run", len(members), terms), members, images, setting.names)
    truth, unrelated = torch.cat([as_floats(share) for share in shares]), as_floats(others)
    for case in cases:
        mean = opened(base, spec, shares, members, secret=case.randomness == SECRET)
        start = time.process_time()
        found = search(setting, base, spec, mean, members, images, case.adversary)
        seconds = time.process_time() - start
        reached = score(found, truth, unrelated.mean(dim=0), named=case.adversary != SOLVES)
        yield Attack(case, reached, chance(truth, unrelated), seconds, found)


def opened(base: UNet, spec: RoundSpec, shares: Sequence[ImageSet], members: Sequence[str], *, secret: bool) -> Vector:
    """The mean update [P] of institutions that train honestly as ``spec`` says: all that the adversary sees."""
    seeds = [institution_seed(member, secret=secret) for member in members]
    return secure_sum(spec, [train(base, spec, share, seed) for share, seed in zip(shares, seeds, strict=True)])


def search(
    setting: Setting,
    base: UNet,
    spec: RoundSpec,
    mean: Vector,
    members: Sequence[str],
    images: int,
    adversary: Scenario,
) -> Tensor:
    """The adversary's images [N, C, H, W]: of one member after the other, or in no order where it solves for noise."""
    if adversary == SOLVES:
        rows = len(members) * images
        return reconstruct_blind(base, mean, spec.learning_rate, rows, evaluations=setting.blind_evaluations).images
    draws = [predicted(spec, member, images) for member in members]
    return reconstruct(base, mean, spec.learning_rate, draws, evaluations=setting.evaluations)
