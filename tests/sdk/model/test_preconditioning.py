"""EDM's process: its factors, what a step trains on, and samplers that find a distribution that is known."""

from __future__ import annotations

import math

import pytest
import torch

from fedddpm.errors import ConfigError
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.preconditioning import LOG_MEAN, LOG_SPREAD, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, Preconditioned, told
from fedddpm.model.process import process_of
from fedddpm.model.unet import UNet, architecture_of

SHAPE = (512, 1, 4, 4)
MEAN, SPREAD = 0.2, 0.1


def ideal(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """F of the best denoiser of pixels that are normal around MEAN: D = (sigma^2 MEAN + SPREAD^2 y) / (sum of both)."""
    sigma = torch.tan(level * math.pi / 2000)[:, None, None, None]
    squares = sigma**2 + SIGMA_DATA**2
    y = x * squares.sqrt()
    best = (sigma**2 * MEAN + SPREAD**2 * y) / (sigma**2 + SPREAD**2)
    return (best - SIGMA_DATA**2 / squares * y) / (sigma * SIGMA_DATA / squares.sqrt())


@pytest.mark.parametrize(("sampler", "steps"), [("dpm", None), ("heun", None), ("ddim", 200)])
def test_samplers_draw_a_distribution_whose_denoiser_is_known(sampler: str, steps: int | None) -> None:
    drawn = Preconditioned().sample(ideal, SHAPE, torch.Generator().manual_seed(1), sampler, steps)  # type: ignore[arg-type]
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.15)


def test_a_second_order_step_is_worth_more_than_a_first_order_one() -> None:
    """With the same few steps: the spread of what is drawn is nearer to the true one."""
    errors = {}
    for sampler in ("ddim", "dpm", "heun"):
        drawn = Preconditioned().sample(ideal, SHAPE, torch.Generator().manual_seed(1), sampler, 12)  # type: ignore[arg-type]
        errors[sampler] = abs(drawn.std().item() - SPREAD)
    assert errors["dpm"] < errors["ddim"]
    assert errors["heun"] < errors["ddim"]


def test_what_a_step_trains_on() -> None:
    process, x_0 = Preconditioned(), torch.rand((4096, 1, 2, 2)) * 2 - 1
    given, level, target = process.draw(x_0, torch.Generator().manual_seed(3))
    sigma = torch.tan(level.double() * math.pi / 2000)
    assert sigma.log().mean().item() == pytest.approx(LOG_MEAN, abs=0.02)
    assert sigma.log().std().item() == pytest.approx(LOG_SPREAD, rel=0.02)
    # The factors undo each other: what the network is to answer gives the image back.
    squares = (sigma**2 + SIGMA_DATA**2)[:, None, None, None]
    y = given * squares.sqrt()
    back = SIGMA_DATA**2 / squares * y + sigma[:, None, None, None] * SIGMA_DATA / squares.sqrt() * target
    assert torch.allclose(back.float(), x_0, atol=2e-3)
    assert process.loss(lambda x, t: target.float(), x_0, torch.Generator().manual_seed(3)).item() < 1e-9
    assert (process.draw(x_0, torch.Generator().manual_seed(3))[0] == given).all()


def test_noise_levels_of_a_batch_are_spread_evenly() -> None:
    """One in each part of equal probability: quantiles never leave a gap wider than two parts."""
    for seed in range(5):
        level = Preconditioned().draw(torch.zeros((16, 1, 2, 2)), torch.Generator().manual_seed(seed))[1]
        logs = torch.tan(level.double() * math.pi / 2000).log()
        quantiles = (1 + torch.erf((logs - LOG_MEAN) / LOG_SPREAD / math.sqrt(2))) / 2
        assert torch.equal((quantiles * 16).floor().clamp(0, 15).long(), torch.arange(16))


def test_input_and_target_have_unit_variance_at_every_noise_level() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn((20_000, 1, 1, 1), generator=generator) * SIGMA_DATA
    given, _, target = Preconditioned().draw(x_0, generator)
    for piece in range(4):  # from the cleanest quarter to the noisiest
        rows = slice(piece * 5000, (piece + 1) * 5000)
        assert given[rows].std().item() == pytest.approx(1, abs=0.05)
        assert target[rows].std().item() == pytest.approx(1, abs=0.05)


def test_the_levels_a_sampler_visits() -> None:
    levels = Preconditioned().visited("dpm", 18)
    assert (len(levels), levels[0], levels[-1]) == (18, pytest.approx(SIGMA_MAX), pytest.approx(SIGMA_MIN))
    assert levels == sorted(levels, reverse=True)
    seen: list[tuple[int, int]] = []
    Preconditioned().sample(ideal, (1, 1, 2, 2), torch.Generator(), "heun", 3, on_step=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for sampler, steps in (("ancestral", None), ("dpm", 1), ("heun", 1001), ("euler", None)):
        with pytest.raises(ConfigError):
            Preconditioned().visited(sampler, steps)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no sampler 'heun'"):
        Diffusion().visited("heun")


def test_which_process_a_network_belongs_to() -> None:
    assert isinstance(process_of(UNet(8, 1, "tiny").architecture), Diffusion)
    assert isinstance(process_of(architecture_of(28, 1, "lean")), Preconditioned)
    assert isinstance(process_of(architecture_of(28, 1, "fast", prediction="preconditioned")), Preconditioned)
    assert told(torch.tensor([0.0, 1.0, 1e9])).tolist() == pytest.approx([0, 500, 1000], abs=1e-3)
