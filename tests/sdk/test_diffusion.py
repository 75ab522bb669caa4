"""The schedule, the loss and the samplers against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from fedddpm.diffusion import Diffusion, Sampler
from fedddpm.errors import ConfigError

SHAPE = (2, 1, 8, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_schedule_is_the_papers() -> None:
    d = Diffusion()
    assert d.betas.dtype == d.abars.dtype == torch.float64
    assert len(d.betas) == 1000
    assert d.betas[0].item() == pytest.approx(1e-4)
    assert d.betas[-1].item() == pytest.approx(0.02)
    running = 1.0
    for t in range(1000):
        assert d.abars_before[t].item() == pytest.approx(running, rel=1e-12)
        running *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert d.abars[t].item() == pytest.approx(running, rel=1e-12)
    assert d.abars[-1] < 5e-5  # nothing of the image is left (Ho 2020, section 4)


def test_noising_step_by_step_has_the_variance_of_the_closed_form() -> None:
    d = Diffusion()
    signal, variance = 1.0, 0.0
    for t in range(400):  # q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t) (Ho 2020, eq. 2)
        signal *= math.sqrt(1 - d.betas[t])
        variance = (1 - d.betas[t].item()) * variance + d.betas[t].item()
    x_0, noise = torch.full((4096, 1, 4, 4), 0.7), torch.randn(4096, 1, 4, 4, generator=generator())
    x_t = d.q_sample(x_0, torch.full((4096,), 399), noise)
    torch.testing.assert_close(x_t, (signal * x_0 + math.sqrt(variance) * noise), rtol=1e-5, atol=1e-6)
    assert x_t.mean().item() == pytest.approx(0.7 * signal, abs=0.01)
    assert x_t.var().item() == pytest.approx(variance, rel=0.02)


def test_every_image_gets_its_own_timestep() -> None:
    d = Diffusion()
    x_t = d.q_sample(torch.ones(3, 2, 4, 4), torch.tensor([0, 500, 999]), torch.zeros(3, 2, 4, 4))
    expected = d.abars[[0, 500, 999]].sqrt().float()
    torch.testing.assert_close(x_t, expected[:, None, None, None].expand(3, 2, 4, 4))


def test_the_posterior_follows_from_bayes() -> None:
    d, x_0, x_t = Diffusion(), 0.3, -0.8
    for t in (1, 10, 500, 999):
        beta, before = d.betas[t].item(), d.abars_before[t].item()
        # Product of two Gaussians in x_t-1: the prior N(sqrt(before) x_0, 1 - before) and the likelihood of x_t.
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean = (math.sqrt(before) * x_0 / (1 - before) + math.sqrt(1 - beta) * x_t / beta) / precision
        got = d.posterior_mean(torch.tensor(x_0, dtype=torch.float64), torch.tensor(x_t, dtype=torch.float64), t)
        assert got.item() == pytest.approx(mean, rel=1e-9)
        assert d.posterior_variances[t].item() == pytest.approx(1 / precision, rel=1e-9)
    assert d.posterior_variances[0] == 0


def test_an_ancestral_step_is_algorithm_2() -> None:
    d, t = Diffusion(), 300
    x_t, eps, noise = (torch.randn(SHAPE, generator=generator(s), dtype=torch.float64) for s in range(3))
    beta, abar = d.betas[t], d.abars[t]
    expected = (x_t - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt() + d.posterior_variances[t].sqrt() * noise
    torch.testing.assert_close(d.ancestral_step(x_t, t, eps, noise, clip=False), expected)


def true_noise(d: Diffusion, x_0: Tensor) -> Tensor:
    """A perfect network for a data set of one image."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        abar = d.abars[t].to(x_t.dtype)[:, None, None, None]
        return (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()

    return network  # type: ignore[return-value]


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1), ("ddim", 7), ("ddim", None), ("ancestral", None)])
def test_with_the_true_noise_both_samplers_end_at_the_image(sampler: Sampler, steps: int | None) -> None:
    d, x_0 = Diffusion(), torch.rand(SHAPE, generator=generator(5)) * 2 - 1
    images = d.sample(true_noise(d, x_0), SHAPE, generator(6), sampler, steps)  # type: ignore[arg-type]
    torch.testing.assert_close(images, x_0, atol=2e-3, rtol=0)


def test_ddim_keeps_the_noise_it_was_told() -> None:
    d, x_0, eps = Diffusion(), torch.rand(SHAPE) * 2 - 1, torch.randn(SHAPE)
    x_t = d.q_sample(x_0, torch.tensor([800, 800]), eps)
    got = d.ddim_step(x_t, 800, 200, eps, clip=False)
    torch.testing.assert_close(got, d.q_sample(x_0, torch.tensor([200, 200]), eps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_both_samplers_draw_a_known_distribution(sampler: Sampler) -> None:
    d, mean, spread = Diffusion(), 0.2, 0.1

    def network(x_t: Tensor, t: Tensor) -> Tensor:  # the exact score of data ~ N(mean, spread^2), pixel by pixel
        abar = d.abars[t].float()[:, None, None, None]
        return (1 - abar).sqrt() * (x_t - abar.sqrt() * mean) / (abar * spread**2 + 1 - abar)

    pixels = d.sample(network, (256, 1, 8, 8), generator(7), sampler, 1000)
    assert pixels.mean().item() == pytest.approx(mean, abs=0.005)
    assert pixels.std().item() == pytest.approx(spread, rel=0.05)


def test_the_loss_is_the_huber_distance_of_true_and_predicted_noise() -> None:
    d, x_0 = Diffusion(), torch.zeros(64, 1, 8, 8)
    assert d.loss(true_noise(d, x_0), x_0, generator()).item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    silent = d.loss(lambda x, t: torch.zeros_like(x), x_0, generator()).item()
    noise = torch.randn(1_000_000, generator=generator(1))
    expected = torch.where(noise.abs() < 1, noise**2 / 2, noise.abs() - 0.5).mean().item()
    assert silent == pytest.approx(expected, rel=0.05)


def test_the_generator_decides_everything() -> None:
    d, x_0 = Diffusion(), torch.rand(SHAPE)
    seen: list[Tensor] = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.cat((x_t.flatten(), t)))
        return x_t

    first, again, other = (d.loss(network, x_0, generator(s)) for s in (1, 1, 2))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(first, again)
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(first, other)


def test_the_visited_timesteps() -> None:
    d = Diffusion(10)
    assert d.visited("ancestral") == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert d.visited("ddim", 4) == [9, 6, 3, 0]
    assert Diffusion().visited("ddim")[0] == 999
    assert len(set(Diffusion().visited("ddim", 1000))) == 1000


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    Diffusion().sample(lambda x, t: x, SHAPE, generator(), "ddim", 3, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 5), ("ddim", 0), ("ddim", 1001), ("ancestral", 50)])
def test_impossible_samplers_are_refused(sampler: Sampler, steps: int) -> None:
    with pytest.raises(ConfigError):
        Diffusion().visited(sampler, steps)


def test_a_schedule_needs_steps() -> None:
    with pytest.raises(ConfigError, match="1 timesteps"):
        Diffusion(1)
