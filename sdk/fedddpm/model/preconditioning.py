"""Denoising by noise level instead of timestep: EDM's preconditioning, training loss and samplers over sigma (Karras
et al. 2022, arXiv 2206.00364; the samplers of Lu et al. 2022, arXiv 2211.01095, and Heun's method).

y = x_0 + sigma n is an image with noise. The network F answers to c_in y at noise level sigma, and the denoised image
is D = c_skip y + c_out F, where the three factors keep input, answer and target of F at unit variance for all sigma:

    c_in = 1 / sqrt(sigma^2 + s^2)    c_skip = s^2 / (sigma^2 + s^2)    c_out = sigma s / sqrt(sigma^2 + s^2)

with ``s = SIGMA_DATA``. F is trained on its own target by the squared error, which weighs all noise levels alike
(lambda = 1 / c_out^2 there). ``sigma`` is told to the network as 1000 * (2 / pi) * atan(sigma), from 0 to 1000.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedddpm.errors import ConfigError
from fedddpm.model.diffusion import Network, Sampler

SIGMA_DATA = 0.7  # root mean square of pixels in [-1, 1] about their mean, as pictures on a dark ground have it
SIGMA_MIN, SIGMA_MAX, RHO = 0.02, 60.0, 7.0  # of the samplers: noise of the last and first step, and their spacing
LOG_MEAN, LOG_SPREAD = -0.8, 1.4  # of ln(sigma) in training, normal
_STEPS = {"ddim": 50, "dpm": 18, "heun": 18}
_EDGE = 1e-4  # quantiles nearer to 0 and 1 are not drawn: their sigma has no bound


class Preconditioned:
    """The process of a network that predicts F; same use as :class:`~fedddpm.model.diffusion.Diffusion`."""

    def draw(self, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What one step trains on: (input c_in y [B, C, H, W], noise level as the network is told it [B], target).

        Quantiles of the noise levels are stratified: one in each of B equal parts, in the order of the batch, all
        shifted by one number that is drawn.
        """
        count = len(x_0)
        shift = torch.rand(1, generator=generator, device=x_0.device)
        quantiles = ((torch.arange(count, device=x_0.device) + shift) / count).clamp(_EDGE, 1 - _EDGE)
        sigma = torch.exp(LOG_MEAN + LOG_SPREAD * math.sqrt(2) * torch.erfinv(2 * quantiles - 1))
        noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        c_in, c_skip, c_out = (factor[:, None, None, None] for factor in _factors(sigma))
        y = x_0 + sigma[:, None, None, None] * noise
        return c_in * y, told(sigma), (x_0 - c_skip * y) / c_out

    @staticmethod
    def error(answer: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Squared error of F."""
        return torch.nn.functional.mse_loss(answer, target, reduction=reduction)

    def loss(self, network: Network, x_0: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of F over noise levels that the generator draws."""
        given, level, target = self.draw(x_0, generator)
        return self.error(network(given, level), target)

    def visited(self, sampler: Sampler, steps: int | None = None) -> list[float]:
        """The noise levels a sampler visits, first the noisiest (Karras 2022, eq. 5); the image comes after the last.

        Raises:
            ConfigError: a sampler that there is none of over noise levels, or a number of steps it cannot do.
        """
        if sampler not in _STEPS:
            raise ConfigError(
                f"there is no sampler {sampler!r} for a preconditioned network", f"Use one of {', '.join(_STEPS)}"
            )
        count = _STEPS[sampler] if steps is None else steps
        if not 2 <= count <= 1000:
            raise ConfigError(f"{count} steps are not possible with the {sampler} sampler", "Use from 2 to 1000")
        first, last = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
        return [float((first + i / (count - 1) * (last - first)) ** RHO) for i in range(count)]

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        shape: tuple[int, int, int, int],
        generator: torch.Generator,
        sampler: Sampler = "dpm",
        steps: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw images [B, C, H, W] in [-1, 1] on the generator's device, where the network must be too.

        Raises:
            ConfigError: an unknown sampler, or a number of steps it cannot do.
        """
        path = self.visited(sampler, steps)
        x = torch.randn(shape, generator=generator, device=generator.device) * path[0]
        before: tuple[float, Tensor] | None = None
        for done, (sigma, following) in enumerate(zip(path, [*path[1:], 0.0], strict=True), start=1):
            x_0 = denoised(network, x, sigma)
            if sampler == "heun" and following:
                x = _heun(network, x, x_0, sigma, following)
            else:
                x = _multistep(x, x_0, sigma, following, before if sampler == "dpm" else None)
            before = (sigma, x_0)
            if on_step is not None:
                on_step(done, len(path))
        return x.clamp(-1, 1)


def told(sigma: Tensor) -> Tensor:
    """How the network is told noise levels [B]: from 0 (clean) to 1000 (noise)."""
    return 1000 * (2 / math.pi) * torch.atan(sigma)


def denoised(network: Network, y: Tensor, sigma: float) -> Tensor:
    """D(y, sigma), held inside [-1, 1], where every image is."""
    levels = torch.full((len(y),), sigma, device=y.device, dtype=torch.float32)
    c_in, c_skip, c_out = (float(factor[0]) for factor in _factors(levels))
    return (c_skip * y + c_out * network(c_in * y, told(levels)).float()).clamp(-1, 1)


def _multistep(x: Tensor, x_0: Tensor, sigma: float, following: float, before: tuple[float, Tensor] | None) -> Tensor:
    """DPM-Solver++(2M) over lambda = -ln(sigma); of first order without ``before`` and to the clean image."""
    if not following:
        return x_0
    h = math.log(sigma / following)
    if before is not None:
        ratio = math.log(before[0] / sigma) / h
        x_0 = x_0 + (x_0 - before[1]) / (2 * ratio)
    return following / sigma * x - math.expm1(-h) * x_0


def _heun(network: Network, x: Tensor, x_0: Tensor, sigma: float, following: float) -> Tensor:
    """Karras 2022, algorithm 1 without churn: a step along the slope here, then along the mean of both slopes."""
    slope = (x - x_0) / sigma
    there = x + (following - sigma) * slope
    other = (there - denoised(network, there, following)) / following
    return x + (following - sigma) * (slope + other) / 2


def _factors(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    squares = sigma**2 + SIGMA_DATA**2
    return squares.rsqrt(), SIGMA_DATA**2 / squares, sigma * SIGMA_DATA * squares.rsqrt()
