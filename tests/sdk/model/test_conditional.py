"""Networks that are told what to draw: where the label's embedding lives, how labels are hidden, what guidance is."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError, ModelError
from fedddpm.generation.sampling import sample_images
from fedddpm.model.diffusion import guided, hide_labels
from fedddpm.model.partition import PARTS, flatten, manifest, parameters_of, unflatten
from fedddpm.model.unet import UNet
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method

LABEL = "encoder.label.weight"
CPU = torch.device("cpu")


def conditional(classes: int = 3, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, 1, "tiny", classes=classes)


def told(model: UNet, labels: list[int] | None) -> Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps: Tensor = model(x, torch.tensor([10, 500]), None if labels is None else torch.tensor(labels))
    return eps


@pytest.mark.parametrize("preset", ["paper", "fast", "tiny", "lean"])
def test_the_embedding_is_one_tensor_of_the_encoder(preset: str) -> None:
    model = UNet(28, 1, preset, classes=10)
    plain = UNet(28, 1, preset)
    holders = [part for part in PARTS if LABEL in dict(parameters_of(model, part))]
    assert holders == ["encoder"]
    factor = 2 if preset == "lean" else 4
    assert tuple(model.get_parameter(LABEL).shape) == (11, factor * model.architecture.base_dim)
    assert set(dict(model.named_parameters())) - set(dict(plain.named_parameters())) == {LABEL}
    assert model.architecture.classes == 10
    assert UNet.from_architecture(model.architecture).get_parameter(LABEL).shape == model.get_parameter(LABEL).shape


@pytest.mark.parametrize("method", list(Method))
def test_it_is_shared_with_the_encoder_and_stays_with_it(method: Method) -> None:
    model = conditional()
    local = [part for part in MODEL_PARTS if part not in method.shared_parts]
    assert (LABEL in {spec.name for spec in manifest(model, method.shared_parts)}) == ("encoder" not in local)
    if local:
        assert LABEL in {spec.name for spec in manifest(model, local)}
    sent, taken = conditional(seed=1), conditional(seed=2)
    unflatten(taken, method.shared_parts, flatten(sent, method.shared_parts))
    came = torch.equal(taken.get_parameter(LABEL), sent.get_parameter(LABEL))
    assert came == ("encoder" in method.shared_parts)


def test_no_label_is_the_last_row_and_every_row_counts() -> None:
    model = conditional(classes=3)
    torch.testing.assert_close(told(model, None), told(model, [3, 3]))
    answers = [told(model, [label, label]) for label in range(4)]
    for first in range(4):
        for second in range(first):
            assert (answers[first] - answers[second]).abs().max() > 1e-3
    mixed = told(model, [2, 0])
    torch.testing.assert_close(mixed, torch.stack((answers[2][0], answers[0][1])))


def test_a_network_without_classes_takes_no_label() -> None:
    with pytest.raises(ModelError, match="no classes"):
        told(UNet(8, 1, "tiny"), [0, 0])
    for classes in (-1, 1001):
        with pytest.raises(ModelError, match="classes are outside 0 to 1000"):
            conditional(classes)


def test_the_asked_share_of_labels_is_hidden() -> None:
    labels = torch.arange(20_000) % 10
    hidden = hide_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    gone = hidden == 10
    assert gone.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(hidden[~gone], labels[~gone])
    assert torch.equal(hidden, hide_labels(labels, 10, 0.1, torch.Generator().manual_seed(0)))
    assert not torch.equal(hidden, hide_labels(labels, 10, 0.1, torch.Generator().manual_seed(1)))
    assert torch.equal(hide_labels(labels, 10, 0, torch.Generator()), labels)
    assert (hide_labels(labels, 10, 1, torch.Generator()) == 10).all()
    assert labels.max() == 9  # the caller's labels stay
    with pytest.raises(ConfigError, match=r"share of 1\.5"):
        hide_labels(labels, 10, 1.5, torch.Generator())


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_its_formula(scale: float) -> None:
    batches: list[int] = []

    def network(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        batches.append(len(x_t))
        return x_t * (labels + 1)[:, None, None, None] + t[:, None, None, None]

    x, t = torch.randn(2, 1, 4, 4), torch.tensor([5, 7])
    got = guided(network, torch.tensor([0, 2]), 9, scale)(x, t)
    null = x * 10 + t[:, None, None, None]
    with_label = x * torch.tensor([1, 3])[:, None, None, None] + t[:, None, None, None]
    torch.testing.assert_close(got, null + scale * (with_label - null))
    assert batches == ([2] if scale == 1 else [4])  # one call, of twice the size where there are two answers


def test_a_trained_network_draws_what_it_is_told() -> None:
    labels = torch.arange(64) % 2
    images = (labels * 255).to(torch.uint8)[:, None, None, None].expand(64, 1, 8, 8).contiguous()  # black and white
    model = conditional(classes=2)
    settings = TrainSettings(epochs=30, batch_size=32, learning_rate=3e-3, label_dropout=0.2)
    Trainer(model, ImageSet(images, labels), CPU, settings, 0).train()
    asked = torch.tensor([0, 1] * 4)
    drawn = sample_images(model, 8, sampler="dpm", steps=10, seed=0, device=CPU, labels=asked, guidance=1.5)
    brightness = drawn.float().mean(dim=(1, 2, 3))
    assert brightness[asked == 1].mean() - brightness[asked == 0].mean() > 100


def test_a_federation_trains_it_with_the_labels_of_its_institutions(federation) -> None:  # type: ignore[no-untyped-def]
    fed = federation("abc")
    for member in fed.members:
        images = np.load(fed.folder / f"{member}.npz")["images"]
        np.savez(fed.folder / f"{member}.npz", images=images, labels=np.arange(len(images)) % 3)
    theta_0 = conditional(classes=3)
    before = theta_0.get_parameter(LABEL).detach().clone()
    fed.start_run(Method.FULL, rounds=1, network=theta_0)
    fed.together()
    vectors = [fed.shared_vector(member, Method.FULL) for member in fed.members]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
    unflatten(theta_0, MODEL_PARTS, vectors[0])
    assert (theta_0.get_parameter(LABEL) - before).abs().max() > 0
