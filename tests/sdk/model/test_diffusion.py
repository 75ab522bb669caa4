"""The schedule, the loss and the samplers against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fedddpm.errors import ConfigError
from fedddpm.model.diffusion import Diffusion, Sampler, huber

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


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("ddim", 1), ("ddim", 7), ("ddim", None), ("dpm", 1), ("dpm", 7), ("dpm", None), ("ancestral", None)],
)
def test_with_the_true_noise_every_sampler_ends_at_the_image(sampler: Sampler, steps: int | None) -> None:
    d, x_0 = Diffusion(), torch.rand(SHAPE, generator=generator(5)) * 2 - 1
    images = d.sample(true_noise(d, x_0), SHAPE, generator(6), sampler, steps)  # type: ignore[arg-type]
    torch.testing.assert_close(images, x_0, atol=2e-3, rtol=0)


def test_ddim_keeps_the_noise_it_was_told() -> None:
    d, x_0, eps = Diffusion(), torch.rand(SHAPE) * 2 - 1, torch.randn(SHAPE)
    x_t = d.q_sample(x_0, torch.tensor([800, 800]), eps)
    got = d.ddim_step(x_t, 800, 200, eps, clip=False)
    torch.testing.assert_close(got, d.q_sample(x_0, torch.tensor([200, 200]), eps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1000), ("dpm", 200), ("ancestral", 1000)])
def test_every_sampler_draws_a_known_distribution(sampler: Sampler, steps: int) -> None:
    d, mean, spread = Diffusion(), 0.2, 0.1

    def network(x_t: Tensor, t: Tensor) -> Tensor:  # the exact score of data ~ N(mean, spread^2), pixel by pixel
        abar = d.abars[t].float()[:, None, None, None]
        return (1 - abar).sqrt() * (x_t - abar.sqrt() * mean) / (abar * spread**2 + 1 - abar)

    pixels = d.sample(network, (256, 1, 8, 8), generator(7), sampler, steps)
    assert pixels.mean().item() == pytest.approx(mean, abs=0.005)
    assert pixels.std().item() == pytest.approx(spread, rel=0.05)


def exact_path(d: Diffusion, path: list[int], *, second_order: bool) -> float:
    """Error at the end of ``path`` for data ~ N(0.3, 0.4^2), whose every noisy image is known in closed form."""
    mean, spread = 0.3, 0.4
    z = torch.tensor([[[[-1.0, 0.5, 2.0]]]], dtype=torch.float64)

    def at(t: int) -> Tensor:  # the flow keeps the rank of a value: x_t is always z deviations from its mean
        abar = d.abars[t]
        return abar.sqrt() * mean + (abar * spread**2 + 1 - abar).sqrt() * z

    x, before = at(path[0]), None
    for t, t_next in pairwise(path):
        abar = d.abars[t]
        x_0 = mean + abar.sqrt() * spread**2 * (x - abar.sqrt() * mean) / (abar * spread**2 + 1 - abar)
        x, before = d.dpm_step(x, t, t_next, x_0, before), (t, x_0) if second_order else None
    return (x - at(path[-1])).abs().max().item()


def test_dpm_is_of_second_order_and_ddim_of_first() -> None:
    d = Diffusion()
    paths = [list(range(800, 199, -stride)) for stride in (40, 20, 10, 5)]
    for second_order, order in ((True, 2), (False, 1)):
        errors = [exact_path(d, path, second_order=second_order) for path in paths]
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_without_a_step_before_dpm_is_ddim() -> None:
    d = Diffusion()
    x_t, eps = (torch.randn(SHAPE, generator=generator(s), dtype=torch.float64) for s in range(2))
    for t_next in (600, -1):
        got = d.dpm_step(x_t, 700, t_next, d.predict_x_0(x_t, 700, eps))
        torch.testing.assert_close(got, d.ddim_step(x_t, 700, t_next, eps, clip=False))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5, (-0.8982952752219211, 0.5754789157373047, 0.8925616005224054)),
        (10, (-0.8982863068421931, 0.8488094483964393, 0.8960124188171386)),
        (20, (-0.8970099297641287, 0.8816366789982559, 0.8951240740488596)),
        (50, (-0.8950209508416473, 0.887652166274914, 0.8937173282003535)),
    ],
)
def test_dpm_gives_the_numbers_of_diffusers(steps: int, expected: tuple[float, ...]) -> None:
    """Recorded with diffusers 0.42.1, whose tables are float32: DPMSolverMultistepScheduler(beta_schedule="linear",
    algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero") on the data prediction below."""
    d, before = Diffusion(), None
    x, path = torch.tensor([[[[-1.3, 0.2, 0.9]]]], dtype=torch.float64), d.visited("dpm", steps)
    for t, t_next in zip(path, [*path[1:], -1], strict=True):
        x_0 = 0.9 * torch.tanh(3 * d.abars[t].sqrt() * x)
        x, before = d.dpm_step(x, t, t_next, x_0, before), (t, x_0)
    torch.testing.assert_close(x.flatten(), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=0)


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


def test_the_loss_is_huber_of_what_was_drawn() -> None:
    d, x_0 = Diffusion(), torch.rand(SHAPE)
    x_t, t, noise = d.draw(x_0, generator(3))
    torch.testing.assert_close(x_t, d.q_sample(x_0, t, noise))
    assert torch.equal(t, torch.randint(1000, (2,), generator=generator(3)))  # the first thing that is drawn
    assert torch.equal(d.loss(lambda x, t: x / 2, x_0, generator(3)), huber(x_t / 2, noise))


def test_the_visited_timesteps() -> None:
    d = Diffusion(10)
    assert d.visited("ancestral") == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert d.visited("ddim", 4) == [9, 6, 3, 0]
    assert d.visited("dpm", 3) == [9, 6, 3]
    assert d.visited("dpm") == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert Diffusion().visited("ddim")[0] == 999
    assert len(Diffusion().visited("dpm")) == 20
    assert len(set(Diffusion().visited("dpm", 999))) == 999
    assert len(set(Diffusion().visited("ddim", 1000))) == 1000


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    Diffusion().sample(lambda x, t: x, SHAPE, generator(), "ddim", 3, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("sampler", "steps"), [("euler", 5), ("ddim", 0), ("ddim", 1001), ("dpm", 1000), ("ancestral", 50)]
)
def test_impossible_samplers_are_refused(sampler: Sampler, steps: int) -> None:
    with pytest.raises(ConfigError):
        Diffusion().visited(sampler, steps)


def test_a_schedule_needs_steps() -> None:
    with pytest.raises(ConfigError, match="1 timesteps"):
        Diffusion(1)
