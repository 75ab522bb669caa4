"""Muon for matrices, AdamW for the rest; resumed bit for bit; the paper's Adam as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.sdk.training.test_trainer_options import KilledError, images, kill_at
from tests.support.one_thread import one_thread
from torch import nn

from fedddpm.errors import PolicyError
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.partition import PARTS, flatten
from fedddpm.model.unet import UNet, architecture_of
from fedddpm.training.optimizers import MUON_RATE, MuonAdamW, is_matrix, make_optimizer, orthogonal
from fedddpm.training.settings import TrainSettings
from fedddpm.training.train_step import mirrored
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.terms import MODERN

__all__ = ["one_thread"]
CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=2, batch_size=4, learning_rate=4e-3, recipe=MODERN, rounds=3, flips=True)


def lean(seed: int = 0, classes: int = 0) -> UNet:
    return initial_network(architecture_of(8, 1, "lean", classes=classes), seed_of(seed))


def trainer(settings: TrainSettings = SETTINGS, seed: int = 7) -> Trainer:
    return Trainer(lean(), images(), CPU, settings, seed)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_singular_values_come_near_to_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.6
    assert torch.equal(orthogonal(matrices[:1]), orthogonal(matrices)[:1])  # one alone moves as it does among others


def test_which_parameters_are_matrices() -> None:
    """Layers between features; embeddings, first and last layer, norms and biases are AdamW's."""
    for preset in ("lean", "fast", "paper"):
        names = {name for name, p in UNet(28, 1, preset, classes=3).named_parameters() if is_matrix(name, p)}
        assert len(names) >= 10
        assert all(name.endswith(".weight") for name in names)
        assert not [
            name for name in names if {"time", "label", "initial", "to_image", "depthwise"} & set(name.split("."))
        ]


def test_a_step_of_each_kind_has_the_size_that_it_should() -> None:
    weight, bias = nn.Parameter(torch.zeros(32, 64)), nn.Parameter(torch.zeros(32))
    optimizer = make_optimizer({"a.weight": weight, "a.bias": bias}, 1e-2, MODERN)
    weight.grad, bias.grad = torch.randn(32, 64) * 1e-4, torch.randn(32) * 1e-4
    optimizer.step()
    assert bias.abs().median().item() == pytest.approx(1e-2, rel=0.01)  # AdamW's first step, whatever the gradient
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * MUON_RATE * 1e-2, rel=0.3)


def test_modern_training_lowers_the_loss_of_every_preset() -> None:
    for preset in ("lean", "tiny", "fast"):
        network = initial_network(architecture_of(8, 1, preset, prediction="preconditioned"), seed_of(1))
        one = Trainer(network, images(48), CPU, replace(SETTINGS, epochs=6, rounds=1), 3)
        before = one.score(images(12, 1))
        one.train()
        assert one.score(images(12, 1)) < 0.8 * before


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    whole = trainer()
    whole.train()
    settings = replace(SETTINGS, checkpoint_every_steps=1)
    broken = trainer(settings)
    with pytest.raises(KilledError):
        broken.train(tmp_path / "c", on_progress=kill_at(killed_at))
    resumed = trainer(settings)
    outcome = resumed.train(tmp_path / "c")
    assert outcome.steps == 6
    assert (flatten(resumed.model, PARTS) == flatten(whole.model, PARTS)).all()


def test_round_recipe_and_flips_decide_the_result_and_whose_checkpoint_it_is(tmp_path: Path) -> None:
    trainer().train(tmp_path / "c")
    results = [flatten(trainer().model, PARTS)]
    for other in ({"round": 1}, {"rounds": 4}, {"flips": False}, {"recipe": "paper"}):
        one = trainer(replace(SETTINGS, **other))  # type: ignore[arg-type]
        assert one.train(tmp_path / "c").steps == 6
        fresh = trainer(replace(SETTINGS, **other))  # type: ignore[arg-type]
        fresh.train()
        assert (flatten(one.model, PARTS) == flatten(fresh.model, PARTS)).all(), "it began anew"
        assert not any((flatten(one.model, PARTS) == known).all() for known in results)
        results.append(flatten(one.model, PARTS))


def test_long_gradients_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = MuonAdamW.step

    def watched(self: MuonAdamW, closure: None = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()))
        step(self, closure)

    monkeypatch.setattr(MuonAdamW, "step", watched)
    one = trainer()
    with torch.no_grad():
        one.model.decoder.to_image.weight.mul_(100)
    Trainer(one.model, images(), CPU, SETTINGS, 7).train()
    assert max(norms) <= 1.0 + 1e-5
    assert max(norms) > 0.99, "there was something to cut"


def test_a_gradient_too_small_for_muon_is_found_before_the_first_step() -> None:
    """Below 1e-7 of norm Newton-Schulz is linear and would pass a matrix's gradient on as it is."""
    network = lean()
    with torch.no_grad():
        network.decoder.to_image.weight.mul_(1e-9)
    one = Trainer(network, images(), CPU, replace(SETTINGS, max_small_gradients=0.5), 0)
    before = flatten(network, PARTS)
    with pytest.raises(PolicyError, match="below Adam's epsilon"):
        one.train()
    assert (flatten(network, PARTS) == before).all()


def test_mirrored_images_are_mirrored_left_to_right_half_of_the_time() -> None:
    pictures = torch.arange(4 * 3).reshape(1, 1, 4, 3).repeat(1000, 1, 1, 1)
    turned = mirrored(pictures, torch.Generator().manual_seed(0))
    same = (turned == pictures).flatten(1).all(dim=1)
    other = (turned == pictures.flip(3)).flatten(1).all(dim=1)
    assert (same ^ other).all()
    assert 430 < int(other.sum()) < 570
