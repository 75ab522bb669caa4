"""Images out of one opened sum: the traps of ``benchmarks.attack`` laid by a lying server for real clients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from benchmarks.attack.images import Setting, search
from benchmarks.attack.inversion import crafted, silenced
from benchmarks.attack.scenario import REPEATS, Scenario
from benchmarks.attack.scores import Score, as_floats, chance, score
from benchmarks.attack.training import telling_offer
from tests.adversary.support.lying_server import LyingFederation, OpenSum

from fedddpm.data.image_set import ImageSet, split_holdout
from fedddpm.generation.networks import load_network
from fedddpm.model.partition import MODEL_PARTS, flatten, unflatten
from fedddpm.model.unet import UNet, architecture_of
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import ring

TINY = architecture_of(8, 1, "tiny")
LEARNING_RATE = 0.01  # what institutions allow by themselves
SETTING = Setting(TINY, names=1000, evaluations=100, blind_evaluations=600)


@dataclass(frozen=True)
class Reached:
    """How far an adversary came."""

    score: Score
    chance: Score  # of unrelated images


def pictures(count: int, seed: int) -> ImageSet:
    """Every pixel at random: no picture is like another."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet(torch.from_numpy(values))


def few_images(fed: LyingFederation, each: int) -> None:
    """Give every institution ``each`` images to train on, and one that it holds out."""
    for number, member in enumerate(fed.members):
        np.savez(fed.images(member), images=pictures(each + 1, number).images[:, 0].numpy())


def truth_of(fed: LyingFederation, each: int) -> torch.Tensor:
    """What the institutions train on [members * each, 1, 8, 8], in their order."""
    shares = (split_holdout(pictures(each + 1, number), 0.1, 0)[0] for number in range(len(fed.members)))
    return torch.cat([as_floats(share) for share in shares])


class Trap:
    """One step on ``each`` images of everybody, from weights that make Adam's first step the gradient itself."""

    rounds = 1  # that it takes
    evaluations = SETTING.evaluations  # of the search for images, at most
    moved = np.zeros(0, np.float32)  # how a false sum moves the model, where there is one

    def __init__(self, fed: LyingFederation, each: int, base: UNet | None = None) -> None:
        self._fed, self._each = fed, each
        self.base = crafted(TINY) if base is None else base
        self._cap = 0

    def lay(self) -> None:
        """Whatever attempt begins after this is the trap, under the aggregator's signature."""
        self._hash = self._fed.offer(self.base)
        self._fed.lies.spec = self.first

    def first(self, spec: RoundSpec) -> RoundSpec:
        """The first round as the aggregator wants it."""
        place = {"initial_model_hash": self._hash, "base_model_hash": self._hash, "initial_seed": b""}
        return self.terms(spec.with_terms_hash(**place))

    def terms(self, spec: RoundSpec) -> RoundSpec:
        """Any round as it wants it: one step, under a weight cap that makes predictable timesteps early ones."""
        one_step = {"epochs": 1, "max_steps": 1, "batch_size": self._each, "learning_rate": LEARNING_RATE}
        spec = spec.with_terms_hash(**one_step)
        if not self._cap:
            self._cap = telling_offer(spec, self._fed.members, self._each, SETTING.names).weight_cap
        return spec.with_terms_hash(weight_cap=self._cap)

    def spring(self, adversary: Scenario = REPEATS) -> Reached:
        """Solve the newest opened sum for the images."""
        opened, truth = self._fed.opened[-1], truth_of(self._fed, self._each)
        setting = replace(SETTING, evaluations=self.evaluations)
        found = search(setting, self.base, opened.spec, opened.mean, self._fed.members, self._each, adversary)
        others = as_floats(pictures(60, 1000))
        reached = score(found, truth, others.mean(dim=0), named=adversary == REPEATS)
        return Reached(reached, chance(truth, others))


class PlantedTrap(Trap):
    """The same after an honest round on an honest first model: the sum of that round is said to be another one."""

    rounds = 2
    evaluations = 400  # a network that looks at timesteps takes longer to solve

    def lay(self) -> None:
        """Sign what is honest in the first round, and lie about its sum."""
        self._fed.lies.spec = lambda spec: self.terms(spec) if spec.round else spec
        self._fed.lies.opened = lambda opened: opened.words if opened.spec.round else self._planted(opened)

    def _planted(self, opened: OpenSum) -> ring.Words:
        before = load_network(self._fed.folder / "theta0.safetensors", "theta_0")
        base = flatten(before, MODEL_PARTS)
        self.moved = flatten(silenced(before), MODEL_PARTS) - base
        words = opened.words_for(self.moved)
        unflatten(before, MODEL_PARTS, replace(opened, words=words).added_to(base))
        self.base = before
        return words
