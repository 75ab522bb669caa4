"""One update out of a secure sum, by offering others other terms on the same base model; for attacks.py.

Institutions keep the update of a base model and send it again in every later attempt at it. The aggregator lets one
train alone, then calls everybody to an attempt on terms that leave the others next to nothing to send. Each scenario is
played twice: without the rule that a base model is trained on under one set of terms, and with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.attack import scenario
from benchmarks.attack.scenario import Scenario
from benchmarks.attack.training import Terms, institution_seed, offer, secure_sum, train

from fedddpm.data.image_set import ImageSet
from fedddpm.model.unet import UNet
from fedddpm.updates.local_update import LocalUpdate
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import TermsError
from fedddpm_protocol.session.spent import SpentLog

TERMS = Terms(learning_rate=1e-3, batch_size=8)
_NOTHING = 1e-30  # a learning rate that moves no float32 weight


class Site:
    """An institution: its images, its seed, and the one update that it keeps."""

    def __init__(self, member: str, images: ImageSet, folder: Path, *, bound: bool) -> None:
        self._images, self._seed = images, institution_seed(member, secret=False)
        folder.mkdir()
        self._store, self._log, self._bound = UpdateStore(folder), SpentLog(), bound

    def update(self, base: UNet, spec: RoundSpec) -> LocalUpdate:
        """The stored update of the same base model, or a new training, which is stored.

        Where terms are not bound, what was stored in the same run is used whatever the terms.

        Raises:
            TermsError: the base model was trained on under others.
        """
        if self._bound:
            self._log.agree(spec.base_model_hash, spec.terms_hash)
        stored = self._store.load(spec.base_model_hash)
        if stored is not None and (self._bound or stored.run == spec.run):
            return stored
        made = train(base, spec, self._images, self._seed)
        self._store.save(made)
        return made


class Federation:
    """Honest sites, the first of which is the victim, and what a malicious aggregator has them do."""

    def __init__(self, base: UNet, shares: Sequence[ImageSet], folder: Path, *, bound: bool) -> None:
        self._base = base
        self._sites = [Site(f"site-{k}", share, folder / f"site-{k}", bound=bound) for k, share in enumerate(shares)]

    def alone(self, terms: Terms, run: str = "run") -> LocalUpdate:
        """An attempt that reaches the victim only: no sum is opened, its update lies in its store."""
        return self._sites[0].update(self._base, self._offer(terms, run, 0))

    def sum(self, terms: Terms, attempt: int) -> Vector:
        """The mean update [P] of an attempt with everybody."""
        spec = self._offer(terms, "run", attempt)
        return secure_sum(spec, [site.update(self._base, spec) for site in self._sites])

    def _offer(self, terms: Terms, run: str, attempt: int) -> RoundSpec:
        return offer(self._base, run, len(self._sites), terms, attempt)


def honest(federation: Federation) -> tuple[Vector, Vector]:
    """One attempt, the same terms for all; (victim's update, what the aggregator takes for it)."""
    return federation.alone(TERMS).delta, federation.sum(TERMS, 0)


def others_at(**terms: float) -> Callable[[Federation], tuple[Vector, Vector]]:
    """The victim trains on the usual terms, then all are called to changed ones on the same base model."""

    def attack(federation: Federation) -> tuple[Vector, Vector]:
        return federation.alone(TERMS).delta, federation.sum(replace(TERMS, **terms), 1)  # type: ignore[arg-type]

    return attack


def trained_again(federation: Federation) -> tuple[Vector, Vector]:
    """Two sums of the same survivors; in between another run takes the place of the victim's stored update."""
    first = federation.sum(TERMS, 0)
    victim = federation.alone(TERMS).delta
    federation.alone(TERMS, run="another")
    return victim, first - federation.sum(replace(TERMS, learning_rate=_NOTHING), 1)


ATTACKS: dict[Scenario, Callable[[Federation], tuple[Vector, Vector]]] = {
    scenario.HONEST: honest,
    scenario.NOTHING: others_at(learning_rate=_NOTHING),
    scenario.LITTLE: others_at(learning_rate=1e-4),
    scenario.ONE_STEP: others_at(max_steps=1),
    scenario.AGAIN: trained_again,
}


@dataclass(frozen=True)
class Row:
    """What one scenario came to."""

    scenario: str
    cosine: float  # between the victim's update and what the aggregator takes for it, where terms are not bound
    bound: float | None  # the same where they are; None: the attempt is refused


def measure(base: UNet, shares: Sequence[ImageSet], only: Collection[Scenario] = tuple(ATTACKS)) -> Iterator[Row]:
    """Scenario by scenario, each with institutions that have not trained yet."""
    for tried in only:
        before, after = (_played(ATTACKS[tried], base, shares, bound=bound) for bound in (False, True))
        if before is not None:
            yield Row(tried.name, before, after)


def _played(
    attack: Callable[[Federation], tuple[Vector, Vector]], base: UNet, shares: Sequence[ImageSet], *, bound: bool
) -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return cosine(*attack(Federation(base, shares, Path(folder), bound=bound)))
        except TermsError:
            return None


def cosine(a: Vector, b: Vector) -> float:
    """Of the angle between two updates."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
