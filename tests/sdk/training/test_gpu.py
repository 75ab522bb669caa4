"""What only a CUDA device can show: training, resuming and sampling there."""

import pytest
import torch

from fedddpm.compute.device import pick_device
from fedddpm.data.image_set import ImageSet
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.training.batches import Batches
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.methods import MODEL_PARTS

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


def squares(count: int) -> ImageSet:
    """Images of two classes: dark, or with a bright square."""
    images = torch.zeros((count, 1, 16, 16), dtype=torch.uint8)
    images[::2, :, 4:12, 4:12] = 255
    return ImageSet(images, torch.arange(count) % 2)


def test_images_that_do_not_fit_travel_ahead_and_are_the_same(monkeypatch):
    device, data = torch.device("cuda"), squares(50)
    resident = Batches(data, 16, device, labelled=True)
    monkeypatch.setattr("fedddpm.training.batches._free_bytes", lambda device: 0)
    travelling = Batches(data, 16, device, labelled=True)
    assert (resident.resident, travelling.resident) == (True, False)
    for epoch in range(3):
        pairs = zip(*(feed.epoch(torch.Generator().manual_seed(epoch)) for feed in (resident, travelling)), strict=True)
        for ours, theirs in pairs:
            assert theirs.x_0.device.type == "cuda"
            assert torch.equal(ours.x_0, theirs.x_0)
            assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.slow
def test_a_compiled_network_learns_what_the_plain_one_learns(tmp_path):
    losses, averages = {}, {}
    for how in (False, True):
        torch.manual_seed(0)
        model = UNet(16, 1, "tiny", classes=2)
        settings = TrainSettings(
            epochs=6, batch_size=32, learning_rate=1e-3, ema_decay=0.9, precision="bfloat16", compile=how
        )
        trainer = Trainer(model, squares(200), torch.device("cuda"), settings, 0)  # the last batch is smaller
        losses[how] = trainer.train(tmp_path / f"{how}").train_loss
        averages[how] = trainer.average_state().vector
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert abs(averages[True] - averages[False]).max() < 0.05


def test_a_training_on_the_card_is_resumed(tmp_path):
    settings = TrainSettings(epochs=4, batch_size=32, learning_rate=1e-3, ema_decay=0.9, checkpoint_every_steps=1)

    class KilledError(Exception):
        pass

    def kill(epochs):
        if epochs == 2:
            raise KilledError

    def trainer():
        torch.manual_seed(0)
        return Trainer(UNet(16, 1, "tiny"), squares(64), torch.device("cuda"), settings, 0)

    with pytest.raises(KilledError):
        trainer().train(tmp_path / "c", on_epoch=kill)
    resumed, through = trainer(), trainer()
    told = []
    resumed.train(tmp_path / "c", on_epoch=told.append)
    through.train()
    assert told == [2, 3, 4]
    assert abs(resumed.average_state().vector - through.average_state().vector).max() < 0.02
