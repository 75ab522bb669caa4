"""Denoising diffusion: the schedule, the training loss and three samplers (Ho 2020, arXiv 2006.11239; Song 2020,
arXiv 2010.02502; Lu 2022, arXiv 2211.01095). Everything takes any callable network (x_t [B, C, H, W], t [B] int64) ->
eps [B, C, H, W].

Notation: beta_t is the variance added at step t, alpha_t = 1 - beta_t, abar_t = alpha_0 ... alpha_t, and abar_-1 = 1.
Timesteps count from 0 (almost clean) to ``timesteps - 1`` (almost noise).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedddpm.errors import ConfigError

Network = Callable[[Tensor, Tensor], Tensor]
Conditional = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t [B, C, H, W], t [B], labels [B] -> eps [B, C, H, W]
Sampler = Literal["ancestral", "ddim", "dpm", "heun"]

BETA_FIRST = 1e-4
BETA_LAST = 0.02
_FEWER_STEPS = {"ddim": 50, "dpm": 20}  # samplers that need not visit every timestep, and how many they take


def huber(eps: Tensor, noise: Tensor) -> Tensor:
    """Mean Huber distance (delta = 1) of predicted from true noise, both [B, C, H, W]."""
    return F.huber_loss(eps, noise)


def hide_labels(labels: Tensor, null: int, share: float, generator: torch.Generator) -> Tensor:
    """Labels [B] int64, each replaced by ``null`` with probability ``share`` (Ho and Salimans 2022, arXiv 2207.12598,
    algorithm 1): the network learns to draw with a label and without.

    ``generator`` must live on the device of ``labels``.

    Raises:
        ConfigError: the share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share of {share} of the labels cannot be hidden", "Use a number from 0 to 1, such as 0.1")
    hidden = torch.rand(labels.shape, generator=generator, device=labels.device) < share
    return labels.masked_fill(hidden, null)


def guided(network: Conditional, labels: Tensor, null: int, scale: float) -> Network:
    """A network that draws what ``labels`` [B] say, ``scale`` times as far away from the answer without labels.

    eps = eps_null + scale (eps_label - eps_null): Ho and Salimans 2022, eq. 6 with w = scale - 1. Both answers come
    from one batch of twice the size; at scale 1 the plain conditional network is evaluated alone.
    """
    if scale == 1:
        return lambda x_t, t: network(x_t, t, labels)
    both = torch.cat((labels, torch.full_like(labels, null)))

    def combined(x_t: Tensor, t: Tensor) -> Tensor:
        told, untold = network(torch.cat((x_t, x_t)), torch.cat((t, t)), both).chunk(2)
        return untold + scale * (told - untold)

    return combined


class Diffusion:
    """The linear schedule of Ho 2020, section 4, in float64 tables of ``timesteps`` entries.

    Raises:
        ConfigError: ``timesteps`` is below 2.
    """

    def __init__(self, timesteps: int = 1000) -> None:
        if timesteps < 2:
            raise ConfigError(f"{timesteps} timesteps make no schedule", "Use 1000, as the paper does")
        self.timesteps = timesteps
        self.betas = torch.linspace(BETA_FIRST, BETA_LAST, timesteps, dtype=torch.float64)
        self.abars = torch.cumprod(1 - self.betas, dim=0)
        self.abars_before = torch.cat((torch.ones(1, dtype=torch.float64), self.abars[:-1]))
        self.posterior_variances = self.betas * (1 - self.abars_before) / (1 - self.abars)  # Ho 2020, eq. 7
        self._on_device: dict[torch.device, Tensor] = {}

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise x_0 [B, C, H, W] up to t [B]: sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho 2020, eq. 4)."""
        signal, spread = self._scales(x_0.device)[:, t].to(x_0.dtype)[..., None, None, None].unbind()
        return signal * x_0 + spread * noise

    def loss(self, network: Network, x_0: Tensor, generator: torch.Generator) -> Tensor:
        """Mean Huber distance (delta = 1) of predicted from true noise, at uniform timesteps (Ho 2020, eq. 14).

        ``generator`` must live on the device of ``x_0`` and decides timesteps and noise.
        """
        x_t, t, noise = self.draw(x_0, generator)
        return huber(network(x_t, t), noise)

    @staticmethod
    def error(answer: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Huber distance (delta = 1) of predicted from true noise."""
        return F.huber_loss(answer, target, reduction=reduction)

    def draw(self, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noise images for one step of training: (x_t [B, C, H, W], uniform t [B] int64, the noise that is in x_t)."""
        t = torch.randint(self.timesteps, (len(x_0),), generator=generator, device=x_0.device)
        noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        return self.q_sample(x_0, t, noise), t, noise

    def predict_x_0(self, x_t: Tensor, t: int, eps: Tensor, *, clip: bool = False) -> Tensor:
        """Solve eq. 4 for x_0, given the noise; ``clip`` holds it inside [-1, 1], where every image is."""
        abar = float(self.abars[t])
        x_0 = (x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        return x_0.clamp(-1, 1) if clip else x_0

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: int) -> Tensor:
        """Mean of q(x_t-1 | x_t, x_0) (Ho 2020, eq. 7); its variance is ``posterior_variances[t]``."""
        beta, abar, before = float(self.betas[t]), float(self.abars[t]), float(self.abars_before[t])
        return (math.sqrt(before) * beta * x_0 + math.sqrt(1 - beta) * (1 - before) * x_t) / (1 - abar)

    def ancestral_step(self, x_t: Tensor, t: int, eps: Tensor, noise: Tensor, *, clip: bool = True) -> Tensor:
        """Draw x_t-1 (Ho 2020, algorithm 2, in the form of eq. 7); at t = 0 no noise is added."""
        x_0 = self.predict_x_0(x_t, t, eps, clip=clip)
        return self.posterior_mean(x_0, x_t, t) + math.sqrt(self.posterior_variances[t]) * noise

    def ddim_step(self, x_t: Tensor, t: int, t_next: int, eps: Tensor, *, clip: bool = True) -> Tensor:
        """Go from t to t_next < t without noise (Song 2020, eq. 12, sigma = 0); t_next = -1 means clean."""
        x_0 = self.predict_x_0(x_t, t, eps, clip=clip)
        if clip:
            eps = (x_t - math.sqrt(self.abars[t]) * x_0) / math.sqrt(1 - self.abars[t])
        abar_next = float(self.abars[t_next]) if t_next >= 0 else 1.0
        return math.sqrt(abar_next) * x_0 + math.sqrt(1 - abar_next) * eps

    def dpm_step(
        self, x_t: Tensor, t: int, t_next: int, x_0: Tensor, before: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """Go from t to t_next < t by DPM-Solver++(2M) (Lu 2022, algorithm 2); t_next = -1 means clean.

        ``x_0`` is the network's prediction at t, ``before`` (the timestep before t, the prediction there). A line
        through the two, over lambda = log(sqrt(abar) / sqrt(1 - abar)), is what makes the step one of second order;
        without ``before`` and to the clean image it is of first order, the same as that of DDIM.
        """
        if t_next < 0:
            return x_0
        h = self._lambda(t_next) - self._lambda(t)
        if before is not None:
            ratio = (self._lambda(t) - self._lambda(before[0])) / h
            x_0 = x_0 + (x_0 - before[1]) / (2 * ratio)
        abar, abar_next = float(self.abars[t]), float(self.abars[t_next])
        return math.sqrt((1 - abar_next) / (1 - abar)) * x_t - math.sqrt(abar_next) * math.expm1(-h) * x_0

    def _lambda(self, t: int) -> float:
        abar = float(self.abars[t])
        return (math.log(abar) - math.log1p(-abar)) / 2

    def visited(self, sampler: Sampler, steps: int | None = None) -> list[int]:
        """The timesteps a sampler visits, first the noisiest: all of them, or ``steps`` evenly spread ones.

        "dpm" leaves out timestep 0: its last step goes from the noise that is left at one even stride to the image.

        Raises:
            ConfigError: an unknown sampler, or a number of steps it cannot do.
        """
        if sampler not in ("ancestral", *_FEWER_STEPS):
            raise ConfigError(f"there is no sampler {sampler!r}", "Use 'ancestral', 'ddim' or 'dpm'")
        most = self.timesteps - 1 if sampler == "dpm" else self.timesteps
        count = steps if steps is not None else min(_FEWER_STEPS.get(sampler, most), most)
        if not 1 <= count <= most or (sampler == "ancestral" and count != most):
            raise ConfigError(
                f"{count} steps are not possible with the {sampler} sampler",
                f"Ancestral sampling takes all {self.timesteps} steps; 'ddim' and 'dpm' take from 1 to {most}",
            )
        points = count + 1 if sampler == "dpm" else count
        stops = torch.linspace(self.timesteps - 1, 0, points, dtype=torch.float64).tolist()
        return [round(t) for t in stops[:count]]

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        shape: tuple[int, int, int, int],
        generator: torch.Generator,
        sampler: Sampler = "ancestral",
        steps: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw images [B, C, H, W] in [-1, 1] on the generator's device, where the network must be too.

        ``on_step`` is told (steps done, steps in all). Use ``network.eval()`` beforehand if it matters to the network.

        Raises:
            ConfigError: an unknown sampler, or a number of steps it cannot do.
        """
        path = self.visited(sampler, steps)
        x = torch.randn(shape, generator=generator, device=generator.device)
        before: tuple[int, Tensor] | None = None
        for done, (t, t_next) in enumerate(zip(path, [*path[1:], -1], strict=True), start=1):
            eps = network(x, torch.full((shape[0],), t, device=x.device))
            if sampler == "ddim":
                x = self.ddim_step(x, t, t_next, eps)
            elif sampler == "dpm":
                x_0 = self.predict_x_0(x, t, eps, clip=True)
                x, before = self.dpm_step(x, t, t_next, x_0, before), (t, x_0)
            else:
                x = self.ancestral_step(x, t, eps, torch.randn(shape, generator=generator, device=x.device))
            if on_step is not None:
                on_step(done, len(path))
        return x.clamp(-1, 1)

    def _scales(self, device: torch.device) -> Tensor:
        """(sqrt(abar), sqrt(1 - abar)) [2, timesteps] float64, copied to each device once."""
        if device not in self._on_device:
            self._on_device[device] = torch.stack((self.abars.sqrt(), (1 - self.abars).sqrt())).to(device)
        return self._on_device[device]
