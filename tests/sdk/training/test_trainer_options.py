"""Training with labels, with an average of the weights, in bfloat16, compiled; and what is told after each epoch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddpm.compute.acceleration import compiled, resolve_compile, resolve_precision
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError, DataError, ModelError, TrainingError
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.ema import AverageState
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.training.batches import Batch
from fedddpm.training.held_out_loss import held_out_loss
from fedddpm.training.optimizers import make_optimizer
from fedddpm.training.ranks import ALONE
from fedddpm.training.settings import Progress, TrainSettings
from fedddpm.training.train_step import TrainStep
from fedddpm.training.trainer import Trainer

CPU = torch.device("cpu")
CLASSES = 3
SETTINGS = TrainSettings(epochs=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9)  # 3 steps an epoch


def images(count: int = 12, shift: int = 0) -> ImageSet:
    """One shape for each label: a dark image, its upper half bright, all of it bright."""
    labels = (torch.arange(count) + shift) % CLASSES
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    pixels[labels == 1, :, :4] = 255
    pixels[labels == 2] = 255
    return ImageSet(pixels, labels)


def model(classes: int = CLASSES, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, 1, "tiny", classes=classes)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Such small networks gain nothing from threads, and lose much where others compute on the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class KilledError(Exception):
    pass


def kill_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return on_progress


def trained(settings: TrainSettings = SETTINGS, data: ImageSet | None = None) -> tuple[np.ndarray, AverageState | None]:
    network = model()
    trainer = Trainer(network, data or images(), CPU, settings, 5)
    trainer.train()
    return flatten(network), trainer.average_state()


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_network_with_classes_learns_what_labels_mean() -> None:
    network = model()
    settings = replace(SETTINGS, epochs=60, learning_rate=4e-3, batch_size=12)
    trainer = Trainer(network, images(), CPU, settings, 1)
    before = trainer.score(images())
    trainer.train()
    right, wrong = trainer.score(images()), trainer.score(replace_labels(images(), 1))
    assert right < 0.6 * before
    assert right < 0.95 * wrong


def replace_labels(data: ImageSet, shift: int) -> ImageSet:
    assert data.labels is not None
    return ImageSet(data.images, (data.labels + shift) % CLASSES)


def test_labels_decide_the_result_of_a_network_with_classes_only() -> None:
    same = trained(data=replace_labels(images(), 0))[0]
    assert np.array_equal(trained()[0], same)
    assert not np.array_equal(trained(data=replace_labels(images(), 1))[0], same)
    told, untold = model(0), model(0)
    Trainer(told, images(), CPU, SETTINGS, 5).train()
    Trainer(untold, ImageSet(images().images), CPU, SETTINGS, 5).train()
    assert np.array_equal(flatten(told), flatten(untold))


def test_hiding_labels_draws_after_timesteps_and_noise() -> None:
    """A network that ignores labels makes the same step whatever share is hidden."""
    batch = Batch(torch.rand(8, 1, 8, 8), torch.arange(8) % CLASSES)
    losses = []
    for share in (0.0, 0.5, 1.0):
        network = model()
        with torch.no_grad():
            network.encoder.label.weight.zero_()  # type: ignore[union-attr]  # there with classes
        stepper = TrainStep(network, CPU, replace(SETTINGS, label_dropout=share), 8, 1, ALONE)
        generator = torch.Generator().manual_seed(7)
        losses.append(stepper.step(make_optimizer(dict(network.named_parameters()), 1e-3), batch, generator).item())
        x_t, t, noise = Diffusion().draw(batch.x_0, torch.Generator().manual_seed(7))
        with torch.no_grad():
            untouched = model()
            untouched.encoder.label.weight.zero_()  # type: ignore[union-attr]
            expected = torch.nn.functional.huber_loss(untouched(x_t, t), noise).item()
        assert losses[-1] == pytest.approx(expected, rel=1e-5)
    assert len(set(losses)) == 1


def test_a_label_that_is_always_hidden_is_never_learned() -> None:
    network = model()
    start = network.encoder.label.weight.detach().clone()  # type: ignore[union-attr]
    Trainer(network, images(), CPU, replace(SETTINGS, label_dropout=1.0), 5).train()
    learned = network.encoder.label.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(learned[:CLASSES], start[:CLASSES])
    assert not torch.equal(learned[CLASSES], start[CLASSES])


def test_labels_that_do_not_fit_are_refused() -> None:
    cases = [
        (ImageSet(images().images), "3 classes, and these images have no labels"),
        (ImageSet(images().images, torch.arange(12)), "go from 0 to 11, the network knows 0 to 2"),
        (ImageSet(images().images, torch.arange(12) % 3 - 1), "go from -1 to 1"),
    ]
    for data, message in cases:
        with pytest.raises(DataError, match=message):
            Trainer(model(), data, CPU, SETTINGS, 0)
        with pytest.raises(DataError, match=message):
            held_out_loss(model(), data, CPU, 8)


# --- the average ------------------------------------------------------------------------------------------------------


def test_the_average_does_not_change_training_and_lags_behind_it() -> None:
    weights, average = trained()
    assert average is not None
    assert np.array_equal(weights, trained(replace(SETTINGS, ema_decay=None))[0])
    assert average.updates == 6
    start = flatten(model())
    assert 0 < np.linalg.norm(average.vector - weights) < np.linalg.norm(start - weights)


@pytest.mark.parametrize("killed_at", [3, 5])
def test_a_killed_training_ends_with_the_same_average(tmp_path: Path, killed_at: int) -> None:
    expected_weights, expected = trained()
    path, begun = tmp_path / "round.safetensors", AverageState.fresh(model())
    settings = replace(SETTINGS, checkpoint_every_steps=1)
    with pytest.raises(KilledError):
        Trainer(model(), images(), CPU, settings, 5).train(path, kill_at(killed_at))
    network = model()
    resumed = Trainer(network, images(), CPU, settings, 5, begun)  # the same start, said aloud
    steps: list[int] = []
    resumed.train(path, lambda progress: steps.append(progress.step))
    average = resumed.average_state()
    assert steps[0] == killed_at  # it did go on
    assert np.array_equal(flatten(network), expected_weights)
    assert average is not None
    assert expected is not None
    assert np.array_equal(average.vector, expected.vector)
    assert average.updates == expected.updates


def test_a_repeated_training_repeats_its_average() -> None:
    trainer = Trainer(model(), images(), CPU, SETTINGS, 5)
    with pytest.raises(KilledError):
        trainer.train(None, kill_at(4))
    trainer.train()
    average, expected = trainer.average_state(), trained()[1]
    assert average is not None
    assert expected is not None
    assert np.array_equal(average.vector, expected.vector)


def test_the_checkpoint_of_a_training_with_other_labels_or_average_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c"
    older = AverageState(flatten(model()), 100)
    others: list[tuple[TrainSettings, ImageSet, AverageState | None]] = [
        (SETTINGS, replace_labels(images(), 1), None),
        (replace(SETTINGS, label_dropout=0.5), images(), None),
        (replace(SETTINGS, ema_decay=0.5), images(), None),
        (replace(SETTINGS, ema_decay=None), images(), None),
        (replace(SETTINGS, precision="bfloat16"), images(), None),
        (SETTINGS, images(), older),
    ]
    for settings, data, average in others:
        Trainer(model(), data, CPU, replace(settings, max_steps=1), 5, average).train(path)
        mine = Trainer(model(), images(), CPU, replace(SETTINGS, max_steps=1), 5)
        with pytest.raises(KilledError):  # it began anew
            mine.train(path, kill_at(1))


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_each_epoch_s_end_is_told_and_told_again_after_a_resumption(tmp_path: Path) -> None:
    path, told = tmp_path / "c", list[int]()

    def until(last: int) -> Callable[[int], None]:
        def on_epoch(epochs: int) -> None:
            told.append(epochs)
            if epochs == last:
                raise KilledError

        return on_epoch

    settings = replace(SETTINGS, checkpoint_every_steps=3)
    with pytest.raises(KilledError):
        Trainer(model(), images(), CPU, settings, 5).train(path, on_epoch=until(1))
    Trainer(model(), images(), CPU, settings, 5).train(path, on_epoch=until(9))
    assert told == [1, 1, 2]
    Trainer(model(), images(), CPU, settings, 5).train(path, on_epoch=until(9))
    assert told == [1, 1, 2, 2]


def test_a_snapshot_is_of_that_epoch_and_takes_no_time_of_training() -> None:
    snapshots, network = [], model()
    trainer = Trainer(network, images(), CPU, SETTINGS, 5)

    def on_epoch(epochs: int) -> None:
        snapshots.append(flatten(network))
        time.sleep(0.3)

    began = time.monotonic()
    outcome = trainer.train(on_epoch=on_epoch)
    assert outcome.seconds <= time.monotonic() - began - 0.6
    assert np.array_equal(snapshots[0], trained(replace(SETTINGS, epochs=1))[0])
    stopped = Trainer(model(), images(), CPU, replace(SETTINGS, max_steps=4), 5)
    told: list[int] = []
    stopped.train(on_epoch=told.append)
    assert told == [1]


def test_no_snapshot_is_taken_of_weights_that_are_no_numbers() -> None:
    trainer = Trainer(model(), images(4), CPU, replace(SETTINGS, learning_rate=1e39), 5)
    told: list[int] = []
    with pytest.raises(TrainingError, match="weights became infinite"):
        trainer.train(on_epoch=told.append)
    assert told == []


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights() -> None:
    results = {}
    for precision in ("float32", "bfloat16"):
        network = model()
        settings = replace(SETTINGS, precision=precision)
        results[precision] = Trainer(network, images(), CPU, settings, 5).train().train_loss
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert results["bfloat16"] != results["float32"]
    assert results["bfloat16"] == pytest.approx(results["float32"], rel=0.02)


def test_what_auto_means_on_a_cpu() -> None:
    assert resolve_precision("auto", CPU) == "float32"
    assert not resolve_compile(None, CPU, 10**6)
    assert resolve_compile(True, CPU, 1)


def test_a_network_that_cannot_be_compiled(caplog: pytest.LogCaptureFixture) -> None:
    network = model(0)

    def without_compiler(fast: object) -> None:
        raise RuntimeError("no working compiler\nin seven places")

    assert compiled(network, CPU, without_compiler, required=False) is network
    assert caplog.messages == ["the network is not compiled, training is slower: no working compiler"]
    with pytest.raises(ConfigError, match=r"could not be compiled \(RuntimeError: no working compiler\)"):
        compiled(network, CPU, without_compiler, required=True)

    def without_memory(fast: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiled(network, CPU, without_memory, required=False)


@pytest.mark.parametrize(
    "wrong", [{"ema_decay": 1.0}, {"ema_decay": float("nan")}, {"label_dropout": -0.1}, {"precision": "float16"}]
)
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]


def test_an_average_of_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match="the average holds"):
        Trainer(model(), images(), CPU, SETTINGS, 5, AverageState.fresh(model(0)))
