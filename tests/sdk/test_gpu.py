"""What only a CUDA device can show: training, resuming and sampling there."""

import pytest
import torch

from fedddpm.device import pick_device
from fedddpm.diffusion import Diffusion
from fedddpm.image_set import ImageSet
from fedddpm.partition import flatten
from fedddpm.trainer import Trainer, TrainSettings
from fedddpm.unet import UNet
from fedddpm_protocol.methods import MODEL_PARTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_auto_takes_the_card_and_the_loss_falls():
    device = pick_device("auto")
    assert device.type == "cuda"
    images = torch.zeros((256, 1, 16, 16), dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = 255
    data = ImageSet(images)
    torch.manual_seed(0)
    model = UNet(16, 1, "tiny")
    trainer = Trainer(model, data, device, TrainSettings(4, None, 32, 1e-3, None), 0)
    before = trainer.score(data)
    trainer.train(None, lambda progress: None)
    assert trainer.score(data) < before
    vector = flatten(model, MODEL_PARTS)  # from the card to one numpy vector
    assert len(vector) == sum(parameter.numel() for parameter in model.parameters())


def test_samples_are_made_on_the_card():
    device = torch.device("cuda")
    model = UNet(16, 1, "tiny").to(device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        drawn = Diffusion().sample(model, (2, 1, 16, 16), generator, sampler="ddim", steps=5)
    assert drawn.device.type == "cuda"
    assert torch.isfinite(drawn).all()
