"""From the sum of a cohort's first step back to the images, for attacks.py.

The first model is made so that it predicts next to nothing: the weights of its last convolution are tiny. Then the
gradient of the loss with respect to all weights before it is tiny too, far below Adam's epsilon, and the first step is
not the gradient's sign but -lr / epsilon times the gradient: the sum of the updates is the gradient of all images of
all institutions at once. What is left is an ordinary inversion of gradients (Zhu 2019, arXiv 1906.08935).

Two adversaries share the code. :func:`reconstruct` knows timesteps and noise, or believes so, and looks for images.
:func:`reconstruct_blind` knows nothing and looks for the noisy images and the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from benchmarks.attack.training import Draws
from torch import Tensor

from fedddpm.model.diffusion import Diffusion
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Architecture, Vector

LEARNING_RATE = 0.1  # so that updates stand out of the float32 weights they are added to
_LAST = 1e-9  # of the last convolution's weights: gradients below 1e-10
_ADAM_EPSILON = 1e-8
_HISTORY, _INNER = 100, 20  # of L-BFGS
_STANDSTILL = 0.999  # of the misfit of 20 iterations before: rounding is all that is left
_SATURATED = 0.97  # pull beyond which the Huber loss hides how large the noise was
_DIFFUSION = Diffusion()


def crafted(architecture: Architecture, seed: int = 0) -> UNet:
    """A first model whose gradient Adam passes on as it is, and which does not look at the timestep."""
    model = silenced(initial_network(architecture, seed_of(seed)))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(".time.1.weight"):
                weights.zero_()
    return model


def silenced(model: UNet) -> UNet:
    """``model``, changed in place so that it predicts next to nothing: a small move, in the last convolution alone."""
    with torch.no_grad():
        model.get_parameter("decoder.to_image.weight").mul_(_LAST)
        model.get_parameter("decoder.to_image.bias").zero_()
    return model


def _tells(name: str) -> bool:
    """Whether a tensor's update is its gradient: not those of the last convolution, nor of what is switched off."""
    return not name.startswith("decoder.to_image") and ".time." not in name


class Inversion:
    """Compares the gradient of supposed inputs with the one that the mean update [P] shows."""

    def __init__(self, base: UNet, mean: Vector, learning_rate: float) -> None:
        self._base = base
        named = list(base.named_parameters())
        gradient = torch.from_numpy(mean * (-_ADAM_EPSILON / learning_rate))
        pieces = torch.split(gradient, [p.numel() for _, p in named])
        told = [(p, piece.reshape(p.shape)) for (name, p), piece in zip(named, pieces, strict=True) if _tells(name)]
        self._weights, self._seen = [p for p, _ in told], [piece for _, piece in told]

    def misfit(self, x_t: Tensor, pull: Tensor, t: Tensor | None = None) -> Tensor:
        """Mean over the tensors of the squared relative distance between both gradients; 0 at the truth.

        ``pull`` [B, C, H, W] is the noise as the Huber loss feels it: cut to [-1, 1]. The network predicts nothing, so
        the loss has the gradient of -mean(prediction * pull). ``t`` [B] does not matter to a :func:`crafted` network.
        """
        prediction = self._base(x_t, torch.zeros(len(x_t), dtype=torch.int64) if t is None else t)
        gradients = torch.autograd.grad(-(prediction * pull).mean(), self._weights, create_graph=True)
        parts = [
            (mine - seen).square().sum() / seen.square().sum()
            for mine, seen in zip(gradients, self._seen, strict=True)
            if seen.any()
        ]
        return torch.stack(parts).mean()

    def fit(self, unknown: list[Tensor], inputs: Callable[[], tuple[Tensor, ...]], evaluations: int) -> float:
        """Change ``unknown`` in place until ``inputs()``, of :meth:`misfit`, explain the update; the misfit then."""
        search = torch.optim.LBFGS(
            unknown,
            max_iter=_INNER,
            history_size=_HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        spent, before, misfit = 0, float("inf"), float("inf")

        def closure() -> float:
            nonlocal spent
            spent += 1
            search.zero_grad()
            loss = self.misfit(*inputs())
            loss.backward(inputs=unknown)  # type: ignore[no-untyped-call]  # torch
            return loss.item()

        while spent < evaluations and (before == float("inf") or misfit < _STANDSTILL * before):
            before, misfit = misfit, float(search.step(closure))  # type: ignore[no-untyped-call]  # torch
        return misfit


def reconstruct(
    base: UNet, mean: Vector, learning_rate: float, draws: Sequence[Draws], seed: int = 0, evaluations: int = 600
) -> Tensor:
    """The images behind the mean update of as many institutions as there are ``draws``, one after the other.

    Returns float32 [institutions * B, C, H, W] around [-1, 1]; within an institution in the order of its own images.
    """
    t, noise = torch.cat([one.t for one in draws]), torch.cat([one.noise for one in draws])
    images, pull = _start(noise.shape, seed), noise.clamp(-1, 1)
    inversion = Inversion(base, mean, learning_rate)
    inversion.fit([images], lambda: (_DIFFUSION.q_sample(images, t, noise), pull, t), evaluations)
    rows = torch.split(images.detach(), [len(one.order) for one in draws])
    return torch.cat([part[one.order.argsort()] for part, one in zip(rows, draws, strict=True)])


def _start(shape: Sequence[int], seed: int) -> Tensor:
    """Where a search begins: noise, since a network with norms tells little about what is all of one colour."""
    return (torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) / 2).requires_grad_()


@dataclass(frozen=True, eq=False)
class Blind:
    """What was found without knowing anything of timesteps and noise."""

    x_t: Tensor  # float32 [B, C, H, W]
    pull: Tensor  # the noise cut to [-1, 1]
    images: Tensor  # made of both, in [-1, 1]


def reconstruct_blind(
    base: UNet, mean: Vector, learning_rate: float, rows: int, seed: int = 0, evaluations: int = 2000
) -> Blind:
    """The ``rows`` noisy images, their noise and the images behind a mean update, in no order."""
    a = base.architecture
    shape = (rows, a.channels, a.image_size, a.image_size)
    x_t, pull = _start(shape, seed), _start(shape, seed + 1)
    Inversion(base, mean, learning_rate).fit([x_t, pull], lambda: (x_t, pull), evaluations)
    found = x_t.detach(), pull.detach().clamp(-1, 1)
    return Blind(*found, torch.stack([_image(*row) for row in zip(*found, strict=True)]))


def _image(x_t: Tensor, pull: Tensor) -> Tensor:
    """x_0 [C, H, W] from one noisy image and the noise in it, whose timestep is tried out.

    At the right one what remains has nothing of the noise in it and lies in [-1, 1]. Where the noise was cut, pixels
    come from their neighbours.
    """
    plain = pull.abs() < _SATURATED
    spreads = (1 - _DIFFUSION.abars).sqrt().float()
    tried = (x_t - spreads[:, None, None, None] * pull) / _DIFFUSION.abars.sqrt().float()[:, None, None, None]
    pixels, noise = tried[:, plain], pull[plain]  # [timesteps, n], [n]
    left = torch.stack([torch.corrcoef(torch.stack((one, noise)))[0, 1].square() for one in pixels])
    left = left.nan_to_num(1)  # of pixels that are all the same
    outside = (pixels.abs() - 1).clamp(min=0).square().mean(dim=1)
    return _filled(tried[(left + 10 * outside).argmin()].clamp(-1, 1), plain)


def _filled(image: Tensor, known: Tensor) -> Tensor:
    """Put the mean of the known neighbours where a pixel is not known, three pixels far."""
    for _ in range(3):
        near, share = (F.avg_pool2d(one[None], 3, 1, 1)[0] for one in (image * known, known.float()))
        image = torch.where(known | (share == 0), image, near / share.clamp(min=1e-6))
        known = known | (share > 0)
    return image
