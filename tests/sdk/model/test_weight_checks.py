"""Weights that somebody made to read updates are told from those of initialisation and honest training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import PolicyError
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.unet import UNet, architecture_of
from fedddpm.model.weight_checks import BANDS, Figure, figures, require_honest_weights
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.terms import MODERN

TINY = architecture_of(16, 1, "tiny")


def network(preset: str = "tiny", size: int = 16, channels: int = 1, classes: int = 0, seed: int = 0) -> UNet:
    return initial_network(architecture_of(size, channels, preset, classes=classes), seed_of(seed))


@pytest.mark.parametrize("preset", ["tiny", "fast", "paper", "lean"])
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 0), (16, 3, 10)])
def test_a_network_of_a_seed_is_far_inside_every_band(preset: str, size: int, channels: int, classes: int) -> None:
    for seed in range(3):
        found = list(figures(network(preset, size, channels, classes, seed)))
        assert {figure.what for figure in found} == set(BANDS)
        for figure in found:
            band = BANDS[figure.what]
            assert figure.value <= band.most / 2, figure  # halfway is nobody
            assert figure.value >= 2 * band.least, figure


def test_a_trained_network_is_honest() -> None:
    """At a learning rate that is ten times what is used, on one kind of noise: the hardest drift in a second."""
    torch.manual_seed(0)
    model = network()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        x, t, noise = torch.randn(4, 1, 16, 16), torch.randint(0, 300, (4,)), torch.randn(4, 1, 16, 16)
        adam.zero_grad()
        nn.functional.huber_loss(model(x, t), noise).backward()
        adam.step()
    require_honest_weights(model)


def test_a_lean_network_stays_inside_the_bands_at_the_full_rate_of_the_modern_recipe() -> None:
    """In a run without an end, so that the rate never falls; Muon's weight decay holds its matrices."""
    model = network("lean", 8)
    settings = TrainSettings(batch_size=4, learning_rate=4e-3, recipe=MODERN, round=10**5, rounds=10**6)
    images = ImageSet(torch.randint(0, 256, (800, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    Trainer(model, images, torch.device("cpu"), settings, 0).train()
    require_honest_weights(model, slack=0.75)


def layer(model: UNet) -> nn.Conv2d:
    found = model.get_submodule("decoder.levels.0.block1.first.0")
    assert isinstance(found, nn.Conv2d)
    return found


def last_layer_of_next_to_nothing(model: UNet) -> None:
    model.decoder.to_image.weight.mul_(1e-8)


def scaled_down(model: UNet) -> None:
    layer(model).weight.mul_(1e-3)


def scaled_up(model: UNet) -> None:
    layer(model).weight.mul_(1e3)


def imprint(model: UNet) -> None:
    """Fowl et al. 2022: every unit measures the same thing, the brightness, and fires above a threshold of its own."""
    rows = layer(model).weight
    rows.copy_(rows[:1].expand_as(rows))
    layer(model).bias.copy_(torch.linspace(-1, 1, len(rows)))


def imprint_in_a_quarter(model: UNet) -> None:
    rows = layer(model).weight
    many = len(rows) // 4
    rows[:many] = rows[0] * torch.linspace(0.5, 2, many)[:, None, None, None]


def never_fire(model: UNet) -> None:
    """Boenisch et al. 2021, carried to the end: a unit fires for next to no image."""
    layer(model).bias.fill_(-10 * float(layer(model).weight.flatten(1).norm(dim=1).amax()))


def one_fires_seldom(model: UNet) -> None:
    layer(model).bias[3] = -8 * layer(model).weight[3].norm()


def dead_units(model: UNet) -> None:
    layer(model).weight[::2] = 0


def dead_units_by_their_norm(model: UNet) -> None:
    model.get_submodule("decoder.levels.0.block1.first.1").weight[:-2] *= 1e-4


def dead_inputs(model: UNet) -> None:
    layer(model).weight[:, ::2] *= 1e-3


def quiet_norm(model: UNet) -> None:
    model.get_submodule("decoder.last_block.second.2").weight.mul_(1e-6)


def shifted_norm(model: UNet) -> None:
    model.get_submodule("decoder.last_block.second.2").bias.fill_(-20)


def one_class_outweighs(model: UNet) -> None:
    """Wen et al. 2022: the gradient of one class drowns that of all others."""
    model.encoder.label.weight[3] *= 1e3


def one_output_outweighs(model: UNet) -> None:
    layer(model).weight[2] *= 1e3


TRAPS: list[Callable[[UNet], None]] = [
    *(last_layer_of_next_to_nothing, scaled_down, scaled_up, imprint, imprint_in_a_quarter, never_fire),
    *(one_fires_seldom, dead_units, dead_units_by_their_norm, dead_inputs, quiet_norm, shifted_norm),
    *(one_class_outweighs, one_output_outweighs),
]


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.__name__ for trap in TRAPS])
def test_what_the_literature_makes_is_refused(trap: Callable[[UNet], None]) -> None:
    model = network(classes=10)
    require_honest_weights(model)
    with torch.no_grad():
        trap(model)
    with pytest.raises(PolicyError, match=r"honest is .* to .*Nothing was trained or sent.*coordinator.*weight_slack"):
        require_honest_weights(model)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(wrong: float) -> None:
    model = network()
    with torch.no_grad():
        layer(model).weight[0, 0, 0, 0] = wrong
    with pytest.raises(PolicyError):
        require_honest_weights(model)


def test_slack_widens_the_bands_on_both_sides() -> None:
    model = network()
    with torch.no_grad():
        layer(model).weight.mul_(0.02)
    with pytest.raises(PolicyError, match=r"block1.first.0.weight: gain 0.0\d+, honest is 0.05 to 30"):
        require_honest_weights(model)
    require_honest_weights(model, 5)
    assert Figure("a", "gain", 100.0).is_honest(4)
    assert not Figure("a", "gain", 100.0).is_honest()
    assert not Figure("a", "gain", float("nan")).is_honest(1e9)
