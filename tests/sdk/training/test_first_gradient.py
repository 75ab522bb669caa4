"""A first gradient that Adam would pass on as it is ends a training before its first step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedddpm.config import LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import PolicyError
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet, architecture_of
from fedddpm.training.first_gradient import require_ordinary
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer

EPSILON, MOST = 1e-8, LocalPolicyOptions().max_small_gradients
CPU = torch.device("cpu")


def pictures(kind: str, count: int = 16) -> ImageSet:
    noise = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageSet({"noise": noise, "black": noise * 0, "one": noise[:1].repeat(count, 1, 1, 1)}[kind])


def trainer(model: UNet, kind: str = "noise", most: float = MOST, **settings) -> Trainer:
    return Trainer(model, pictures(kind), CPU, TrainSettings(batch_size=8, max_small_gradients=most, **settings), 5)


def network(preset: str = "tiny") -> UNet:
    return initial_network(architecture_of(8, 1, preset), seed_of(0))


@pytest.mark.parametrize("preset", ["tiny", "fast", "paper"])
@pytest.mark.parametrize("kind", ["noise", "black", "one"])
def test_honest_networks_are_far_from_it(preset: str, kind: str) -> None:
    model = network(preset)
    trainer(model, kind, MOST / 50, max_steps=1).train()
    trainer(model, kind, MOST / 50, max_steps=1, precision="bfloat16").train()  # and after a step


@pytest.mark.parametrize("scale", [1e-5, 1e-6, 1e-8, 1e-10])
def test_a_last_layer_of_next_to_nothing_is_found_before_the_first_step(scale: float) -> None:
    model = network()
    with torch.no_grad():
        model.decoder.to_image.weight.mul_(scale)
    before = flatten(model)
    with pytest.raises(
        PolicyError, match=r"below Adam's epsilon.*allows 50 % .max_small_gradients.*Nothing was trained"
    ):
        trainer(model).train()
    assert (flatten(model) == before).all()
    trainer(model, most=1.0, max_steps=1).train()
    assert (flatten(model) != before).any()


def test_one_layer_that_passes_its_gradient_on_is_named() -> None:
    """A layer before a norm may have any scale: what it computes stays, and its gradient shrinks."""
    model = network()
    with torch.no_grad():
        model.get_submodule("bottleneck.block1.first.0").weight.mul_(1e5)
    with pytest.raises(PolicyError, match=r"bottleneck.block1.first.0.weight"):
        trainer(model).train()


def test_a_training_that_goes_on_is_not_asked_again(tmp_path) -> None:
    model = network()
    with torch.no_grad():
        model.decoder.to_image.weight.mul_(1e-6)
    begun = copy.deepcopy(model)
    trainer(model, most=1.0, max_seconds=1e-9).train(tmp_path / "training.safetensors")
    assert trainer(begun).train(tmp_path / "training.safetensors").steps == 2


def parameter(gradient: torch.Tensor) -> nn.Parameter:
    made = nn.Parameter(torch.zeros_like(gradient))
    made.grad = gradient
    return made


def test_exact_zeros_say_nothing() -> None:
    gradient = torch.ones(1000)
    gradient[10:] = 0
    require_ordinary({"a": parameter(gradient), "b": parameter(torch.zeros(1000))}, EPSILON, MOST)
    require_ordinary({"a": parameter(torch.zeros(1000))}, EPSILON, MOST)


def test_one_tensor_may_have_more_than_all_together() -> None:
    large, layer = parameter(torch.ones(9000)), torch.ones(1000)
    layer[:890] = 1e-9
    require_ordinary({"large": large, "layer": parameter(layer)}, EPSILON, MOST)
    layer[:910] = -1e-9
    with pytest.raises(PolicyError, match="91 % of those of layer"):
        require_ordinary({"large": large, "layer": parameter(layer)}, EPSILON, MOST)
    with pytest.raises(PolicyError, match="51 % of its"):
        require_ordinary({"large": parameter(torch.cat((torch.full((510,), 1e-9), torch.ones(490))))}, EPSILON, MOST)
    few = torch.ones(64)
    few[:63] = 0
    few[0] = 1e-9  # one of one: no share
    require_ordinary({"large": large, "few": parameter(few)}, EPSILON, MOST)
