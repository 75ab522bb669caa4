"""Made updates with heavy tails for encoding_accuracy.py: what n institutions send in two successive rounds.

Every update is a part that all have in common and a part of its own. Both rounds are drawn alike but anew, so that the
norm of the second round's mean is near that of the first, as a scale from the previous round needs it, and not equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.model_layout import Manifest, coordinates
from fedddpm_protocol.agreement.spec import WEIGHT_UNITS

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

COMMON_ENERGY = 0.3  # of an update: about the cosine of two institutions' updates
_FREEDOM = 3  # degrees of it: the fourth moment is infinite
_TENSOR_SPREAD = 1.5  # standard deviation of the logarithm of a tensor's magnitude
_HUGE, _HUGE_ENERGY = 8, 0.01  # so many coordinates, each with so much of an update's energy


@dataclass(frozen=True)
class UpdateSet:
    """Updates of norm one or so; ``draw(round)`` makes those of round 0 or 1, ``len(units)`` of [coordinates]."""

    name: str
    manifest: Manifest
    units: tuple[int, ...]  # weights in units of 1/65535
    draw: Callable[[int], list[Vector]]

    @property
    def members(self) -> int:
        """How many institutions send an update."""
        return len(self.units)


def weighted_mean(deltas: Sequence[Vector], units: Sequence[int]) -> Wide:
    """The mean [coordinates] that is to be found, in float64."""
    total = np.zeros(deltas[0].shape)
    for delta, weight in zip(deltas, units, strict=True):
        total += delta.astype(np.float64) * weight
    return total / sum(units)


def nmse(decoded: npt.NDArray[np.floating], exact: Wide) -> float:
    """Squared error over squared norm."""
    error = decoded.astype(np.float64) - exact
    return float(np.dot(error, error) / np.dot(exact, exact))


def uneven_weights(members: int, seed: int = 0) -> tuple[int, ...]:
    """Weights between a fifth of the cap and all of it."""
    drawn = np.random.default_rng([seed, members]).uniform(0.2, 1.0, members)
    return tuple(int(weight) for weight in np.rint(drawn * WEIGHT_UNITS))


def student_t(manifest: Manifest, members: int, seed: int = 0) -> UpdateSet:
    """Every coordinate from Student's t distribution with three degrees of freedom."""
    size = coordinates(manifest)
    scale = np.full(size, 1 / np.sqrt(_variance() * size))
    return UpdateSet("student-t", manifest, uneven_weights(members, seed), _drawing(scale, members, seed))


def log_normal(manifest: Manifest, members: int, seed: int = 0) -> UpdateSet:
    """Student's t again, but tensors of very different magnitudes, and a handful of huge coordinates that all share."""
    random = np.random.default_rng([seed, 1])
    magnitudes = np.exp(_TENSOR_SPREAD * random.standard_normal(len(manifest)))
    scale = np.repeat(magnitudes, [tensor.size for tensor in manifest])
    scale *= np.sqrt((1 - _HUGE * _HUGE_ENERGY) / _variance() / np.dot(scale, scale))
    huge = np.zeros(len(scale), np.float32)
    places = random.choice(len(scale), _HUGE, replace=False)
    huge[places] = np.sqrt(_HUGE_ENERGY) * random.choice([-1, 1], _HUGE)
    return UpdateSet("log-normal", manifest, uneven_weights(members, seed), _drawing(scale, members, seed, huge))


def _variance() -> float:
    return _FREEDOM / (_FREEDOM - 2)


def _drawing(scale: Wide, members: int, seed: int, shared: Vector | float = 0.0) -> Callable[[int], list[Vector]]:
    common_scale = (scale * np.sqrt(COMMON_ENERGY)).astype(np.float32)
    own_scale = (scale * np.sqrt(1 - COMMON_ENERGY)).astype(np.float32)

    def drawn(*what: int) -> Vector:
        return np.random.default_rng([seed, 2, *what]).standard_t(_FREEDOM, len(scale)).astype(np.float32)

    def draw(round_: int) -> list[Vector]:
        common = drawn(round_, 0) * common_scale + shared
        return [common + drawn(round_, 1 + member) * own_scale for member in range(members)]

    return draw
