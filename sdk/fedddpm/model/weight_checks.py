"""Whether weights look as initialisation and honest training leave them, or as somebody made them to read updates.

A network can be made so that its updates show the images behind them: a last layer so small that Adam passes gradients
on as they are; weights scaled, so that one image outweighs the others (Wen et al. 2022, arXiv 2202.00580); many copies
of one unit with graded biases, each of which fires for a few images only (Fowl et al. 2022, arXiv 2110.13057); units
that never fire, or nearly never (Boenisch et al. 2021, arXiv 2112.02918). Each leaves a figure of some tensor outside
what honest networks have. Traps within all bands there may be; the first gradient and the least work are other floors.

The bands are absolute and hold for networks that are new, trained and averaged alike; ``docs/adr/0021`` says over which
networks they were measured, and how far the next honest one is from each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedddpm.errors import PolicyError
from fedddpm.model.unet import UNet

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_LEAST_WIDTH = 8  # of rows and of what they see: of fewer, honest rows come to be alike, or next to nothing, by chance
_TWINS = 0.99  # cosine, up to its sign, of rows that are copies
_DEAD = 0.01  # of the tensor's median: what is smaller does nothing
_ROUNDS = 20  # of the power iteration: enough for a direction that rules, and no other matters


@dataclass(frozen=True)
class Band:
    """Where a figure of an honest network lies."""

    least: float
    most: float
    means: str  # what is wrong outside it


BANDS = {
    "gain": Band(0.05, 30.0, "the layer is scaled"),
    "strongest unit": Band(0.0, 20.0, "one unit outweighs the others"),
    "strongest input": Band(0.0, 20.0, "one input outweighs the others"),
    "dead units": Band(0.0, 0.25, "units are switched off"),
    "dead inputs": Band(0.0, 0.25, "inputs are switched off"),
    "copied units": Band(0.0, 0.1, "units are copies of each other"),
    "first direction": Band(0.0, 0.9, "all units see one and the same thing"),
    "bias": Band(0.0, 5.0, "units fire for next to no image, or for all"),
}


@dataclass(frozen=True)
class Figure:
    """One property of one tensor, as a number that does not depend on the size of the layer."""

    tensor: str
    what: str  # a key of ``BANDS``
    value: float

    def is_honest(self, slack: float = 1.0) -> bool:
        """Whether it lies in its band, made wider by ``slack`` on both sides; what is no number lies in none."""
        band = BANDS[self.what]
        return band.least / slack <= self.value <= band.most * slack

    def __str__(self) -> str:
        band = BANDS[self.what]
        return f"{self.tensor}: {self.what} {self.value:.3g}, honest is {band.least:g} to {band.most:g} ({band.means})"


@torch.no_grad()
def figures(model: UNet) -> Iterator[Figure]:
    """All figures of all layers, in the order of the modules; a copy of no layer but one at a time."""
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            yield from _layer(name, module)
        elif isinstance(module, nn.GroupNorm):
            yield from _norm(name, module)
        elif isinstance(module, nn.Embedding):
            weight = module.weight
            yield Figure(f"{name}.weight", "gain", _rms(weight))
            yield from _rows(f"{name}.weight", "unit", weight)


def require_honest_weights(model: UNet, slack: float = 1.0) -> None:
    """PolicyError where a figure of ``model`` lies in no honest band, with the tensor, the figure and the band."""
    outside = [figure for figure in figures(model) if not figure.is_honest(slack)]
    if outside:
        more = f" (and {len(outside) - 1} more like it)" if outside[1:] else ""
        raise PolicyError(
            f"the model of this round has weights as somebody makes them to see images in updates: {outside[0]}{more}."
            " Nothing was trained or sent",
            "Stop, and call the federation's coordinator; if training led there, raise your policy's weight_slack",
        )


def _layer(name: str, module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Iterator[Figure]:
    """Of a layer with units; the gain is 1 as ``initialization`` leaves it."""
    weight, tensor = module.weight, f"{name}.weight"
    yield Figure(tensor, "gain", _rms(weight) * math.sqrt(3 * weight[0].numel()))
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    units = weight.flatten(1)  # [units, what each sees]
    yield from _rows(tensor, "unit", units)
    if weight.shape[1] > 1:
        yield from _rows(tensor, "input", weight.transpose(0, 1).flatten(1))
        if min(units.shape) >= _LEAST_WIDTH:
            yield Figure(tensor, "copied units", _copied(units))
            yield Figure(tensor, "first direction", _first_direction(units))
    if module.bias is not None:
        yield Figure(f"{name}.bias", "bias", _largest(module.bias / units.norm(dim=1)))


def _norm(name: str, module: nn.GroupNorm) -> Iterator[Figure]:
    weight = module.weight
    yield Figure(f"{name}.weight", "gain", _rms(weight))
    yield from _rows(f"{name}.weight", "unit", weight[:, None])
    yield Figure(f"{name}.bias", "bias", _largest(module.bias) / _rms(weight))


def _rows(tensor: str, kind: str, rows: Tensor) -> Iterator[Figure]:
    """How the lengths of ``rows`` differ."""
    lengths = rows.norm(dim=1)
    lengths = lengths / lengths.median()
    yield Figure(tensor, f"strongest {kind}", _largest(lengths))
    if len(rows) >= _LEAST_WIDTH and (rows.shape[1] >= _LEAST_WIDTH or kind == "unit"):
        yield Figure(tensor, f"dead {kind}s", float((~(lengths >= _DEAD)).double().mean()))


def _copied(units: Tensor) -> float:
    """The share of rows that have a twin, of either sign and any length."""
    unit = nn.functional.normalize(units, dim=1)
    alike = (unit @ unit.T).abs().fill_diagonal_(0)
    return float((alike.amax(dim=1) > _TWINS).double().mean())


def _first_direction(units: Tensor) -> float:
    """The share of the matrix, in squares, that its first singular vector has: 1 where all rows are parallel."""
    vector = units.sum(dim=0) + units[units.norm(dim=1).argmax()]
    for _ in range(_ROUNDS):
        vector = nn.functional.normalize(units.T @ (units @ vector), dim=0)
    return float((units @ vector).square().sum() / units.square().sum())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _largest(values: Tensor) -> float:
    """The largest absolute value; NaN where there is one (of a unit without weights and without a bias it is 0 / 0)."""
    return float(values.abs().amax())
