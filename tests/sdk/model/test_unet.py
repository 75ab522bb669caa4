"""The network: published parameter counts, parts, presets, shapes."""

import pytest
import torch

from fedddpm.errors import ModelError
from fedddpm.model.attention import HEAD_WIDTH, HEADS, LinearAttention
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Architecture

PARTS = ("encoder", "bottleneck", "decoder")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "channels", "parts"),
    [
        (28, 1, (1_280_642, 999_376, 716_297)),
        (32, 3, (1_654_356, 1_293_696, 924_419)),
        (64, 3, (6_339_770, 5_012_224, 3_540_483)),
    ],
)
def test_the_published_parameter_counts(size: int, channels: int, parts: tuple[int, ...]) -> None:
    model = UNet(size, channels)
    assert tuple(count(getattr(model, part)) for part in PARTS) == parts
    assert count(model) == sum(parts)


@pytest.mark.parametrize("preset", ["paper", "fast", "tiny", "lean"])
def test_every_parameter_is_in_exactly_one_part_and_nothing_else_is_state(preset: str) -> None:
    model = UNet(28, 1, preset)
    below = [id(p) for part in PARTS for p in getattr(model, part).parameters()]
    assert len(below) == len(set(below))
    assert set(below) == {id(p) for p in model.parameters()}
    assert [name for name, _ in model.named_children()] == list(PARTS)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]  # no buffers
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("preset", ["paper", "fast", "tiny", "lean"])
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_noise_has_the_shape_of_the_image_and_every_parameter_learns(preset: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = UNet(size, channels, preset)
    x = torch.randn(2, channels, size, size)
    eps = model(x, torch.tensor([0, 999]))
    assert eps.shape == x.shape
    eps.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_the_network_knows_the_time_and_treats_images_apart() -> None:
    torch.manual_seed(1)
    model = UNet(28, 1, "tiny")
    x = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        both = model(torch.cat((x, x)), torch.tensor([3, 700]))
        alone = model(x, torch.tensor([700]))
    assert (both[0] - both[1]).abs().max() > 1e-3
    torch.testing.assert_close(both[1:], alone)


def test_channels_last_changes_nothing_but_speed() -> None:
    torch.manual_seed(2)
    model = UNet(28, 1)
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([5, 500])
    with torch.no_grad():
        plain = model(x, t)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last), t), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (2, 3)])  # more pixels than channels, and less
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_linear_attention_is_its_formula(rows: int, columns: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(3)
    layer = LinearAttention(8).to(torch.float64).to(memory_format=memory_format)  # type: ignore[call-overload]
    torch.nn.init.normal_(layer.norm.weight)
    x = torch.randn(2, 8, rows, columns, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    q, k, v = layer.qkv(layer.norm(x)).reshape(2, 3, HEADS, HEAD_WIDTH, rows * columns).unbind(1)
    weights = q.softmax(2).mT @ k.softmax(3) / HEAD_WIDTH**0.5  # [pixels, pixels], the quadratic form
    expected = x + layer.project((v @ weights.mT).reshape(2, HEADS * HEAD_WIDTH, rows, columns))
    result, inputs = layer(x), (x, *layer.parameters())
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)
    )


def test_the_architecture_rebuilds_the_network() -> None:
    model = UNet(32, 3, "fast", base_dim=24, multipliers=(1, 2), classes=5)
    assert model.architecture == Architecture("fast", 32, 3, 24, (1, 2), 5)
    again = UNet.from_architecture(model.architecture)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((30, 1), "cannot be halved 2 times. Use a multiple of 4, for instance 28"),
        ((28, 0), "channels"),
        ((28, 1, "huge"), "unknown preset 'huge'"),
        ((28, 1, "paper", 30), "base width 30"),
        ((28, 1, "paper", 28, ()), "multipliers"),
    ],
)
def test_impossible_networks_are_refused_with_advice(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        UNet(*arguments)  # type: ignore[arg-type]  # wrong on purpose
