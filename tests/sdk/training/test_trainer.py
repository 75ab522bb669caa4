"""Training: it learns, it can be killed, it stops where it must."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddpm.data.opening import ImageSet
from fedddpm.errors import CheckpointError, ConfigError, DataError, TrainingError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.partition import flatten, unflatten
from fedddpm.model.unet import UNet
from fedddpm.training.settings import Progress, TrainOutcome, TrainSettings
from fedddpm.training.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=3, batch_size=8, learning_rate=1e-3)


def images(count: int = 20, seed: int = 0) -> ImageSet:
    """Bright squares of two sizes on black."""
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    sides = torch.randint(1, 3, (count,), generator=torch.Generator().manual_seed(seed))
    for i, side in enumerate(sides.tolist()):
        pixels[i, :, side:-side, side:-side] = 220
    return ImageSet(pixels)


def model(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, 1, "tiny")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Such small networks gain nothing from threads, and lose much where others compute on the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class KilledError(Exception):
    pass


def kill_at(step: int) -> object:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return on_progress


def trained(settings: TrainSettings = SETTINGS, seed: int = 5) -> tuple[np.ndarray, TrainOutcome]:
    network = model()
    outcome = Trainer(network, images(), CPU, settings, seed).train()
    return flatten(network), outcome


def test_training_lowers_the_held_out_loss() -> None:
    network, held = model(), images(16, seed=9)
    trainer = Trainer(network, images(64), CPU, replace(SETTINGS, epochs=15), seed=1)
    before = trainer.score(held)
    outcome = trainer.train()
    assert trainer.score(held) < 0.7 * before
    assert (outcome.samples, outcome.steps, outcome.stopped_by) == (64, 120, "epochs")
    assert outcome.train_loss < before


def test_the_seed_decides_the_result_bit_by_bit() -> None:
    torch.manual_seed(1)
    first = trained()[0]
    torch.manual_seed(2)
    assert np.array_equal(first, trained()[0])
    assert not np.array_equal(first, trained(seed=6)[0])


@pytest.mark.parametrize("killed_at", [1, 4, 5, 8])  # 3 steps an epoch
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    expected, outcome = trained()
    path, settings = tmp_path / "round.safetensors", replace(SETTINGS, checkpoint_every_steps=1)
    with pytest.raises(KilledError):
        Trainer(model(), images(), CPU, settings, 5).train(path, kill_at(killed_at))  # type: ignore[arg-type]
    steps: list[int] = []
    network = model()  # a new process: the round's starting weights again
    resumed = Trainer(network, images(), CPU, settings, 5).train(path, lambda progress: steps.append(progress.step))
    assert steps == list(range(killed_at, 10))  # the last step was done but not yet written
    assert np.array_equal(flatten(network), expected)
    assert (resumed.steps, resumed.train_loss) == (outcome.steps, outcome.train_loss)


def test_a_process_killed_by_the_kernel_is_continued_by_the_next_one(tmp_path: Path) -> None:
    path, code = tmp_path / "round.safetensors", tmp_path / "institution.py"
    code.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from fedddpm.data import ImageSet\n"
        "from fedddpm.training.settings import TrainSettings\n"
        "from fedddpm.training.trainer import Trainer\n"
        "from fedddpm.model.unet import UNet\n"
        "torch.manual_seed(0)\n"
        "torch.set_num_threads(1)\n"
        "images = ImageSet(torch.arange(20 * 64).reshape(20, 1, 8, 8).to(torch.uint8))\n"
        "settings = TrainSettings(epochs=int(sys.argv[2]), batch_size=8, checkpoint_every_steps=1)\n"
        "trainer = Trainer(UNet(8, 1, 'tiny'), images, torch.device('cpu'), settings, 5)\n"
        "print(trainer.train(Path(sys.argv[1]), lambda p: print(p.step, flush=True)).steps)\n"
    )
    command = [sys.executable, str(code)]
    subprocess.run([*command, tmp_path / "uninterrupted", "6"], check=True, capture_output=True)
    with subprocess.Popen([*command, path, "6"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "7\n":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    run = subprocess.run([*command, path, "6"], check=True, capture_output=True, text=True)
    assert int(run.stdout.split()[0]) > 6  # it did go on, not start again
    ours, expected = load_tensors(path)[0], load_tensors(tmp_path / "uninterrupted")[0]
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_training_can_be_resumed_many_times_and_in_the_same_process(tmp_path: Path) -> None:
    path, network = tmp_path / "c", model()
    trainer = Trainer(network, images(), CPU, replace(SETTINGS, checkpoint_every_steps=2), 5)
    for step in (3, 5, 6, 9):
        with pytest.raises(KilledError):
            trainer.train(path, kill_at(step))  # type: ignore[arg-type]
    trainer.train(path)
    assert np.array_equal(flatten(network), trained()[0])


def test_without_a_checkpoint_a_repetition_starts_from_the_start() -> None:
    network = model()
    trainer = Trainer(network, images(), CPU, SETTINGS, 5)
    with pytest.raises(KilledError):
        trainer.train(None, kill_at(4))  # type: ignore[arg-type]
    trainer.train()
    assert np.array_equal(flatten(network), trained()[0])


def test_a_finished_round_is_not_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "c"
    outcome = Trainer(model(), images(), CPU, SETTINGS, 5).train(path)
    network = model()
    again = Trainer(network, images(), CPU, SETTINGS, 5).train(path, kill_at(10))  # type: ignore[arg-type]
    assert again == outcome
    assert np.array_equal(flatten(network), trained()[0])


def test_the_checkpoint_of_another_round_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c"
    others = [
        (model(1), images(), SETTINGS, 5),
        (model(), images(seed=3), SETTINGS, 5),
        (model(), images(), replace(SETTINGS, learning_rate=1e-4), 5),
        (model(), images(), SETTINGS, 6),
    ]
    for network, data, settings, seed in others:
        Trainer(network, data, CPU, settings, seed).train(path)
        mine = model()
        Trainer(mine, images(), CPU, SETTINGS, 5).train(path)
        assert np.array_equal(flatten(mine), trained()[0])
    save_tensors(path, {"x": torch.zeros(1)}, {})
    assert Trainer(model(), images(), CPU, SETTINGS, 5).train(path).steps == 9


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    path, trainer = tmp_path / "c", Trainer(model(), images(), CPU, SETTINGS, 5)
    trainer.train(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {n: t for n, t in tensors.items() if "exp_avg_sq" not in n}, metadata)
    with pytest.raises(CheckpointError, match="Delete it"):
        trainer.train(path)
    path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="delete it"):
        trainer.train(path)


def test_adam_starts_afresh_every_round() -> None:
    network = model()
    trainer = Trainer(network, images(), CPU, SETTINGS, 5)
    trainer.train()
    second = Trainer(network, images(), CPU, SETTINGS, 6)
    fresh = model(1)
    unflatten(fresh, ("encoder", "bottleneck", "decoder"), flatten(network))
    second.train()
    Trainer(fresh, images(), CPU, SETTINGS, 6).train()
    assert np.array_equal(flatten(network), flatten(fresh))


def test_the_optimizer_is_adam_as_torch_writes_it_plainly() -> None:
    settings = replace(SETTINGS, epochs=1)
    network, plain = model(), model()
    trainer = Trainer(network, images(), CPU, settings, 5)
    trainer.train()
    reference = Trainer(plain, images(), CPU, settings, 5)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=False, foreach=False)
    for step, (_, x_0) in enumerate(reference._batches_from(0)):
        reference._step(adam, x_0, step)
    np.testing.assert_allclose(flatten(network), flatten(plain), atol=2e-5)


def test_the_step_limit() -> None:
    outcome = trained(replace(SETTINGS, max_steps=4))[1]
    assert (outcome.steps, outcome.stopped_by) == (4, "max_steps")
    assert trained(replace(SETTINGS, max_steps=99))[1].steps == 9


def test_the_time_limit_counts_the_time_before_a_resumption(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", replace(SETTINGS, epochs=10**6, max_seconds=0.4)
    outcome = Trainer(model(), images(), CPU, settings, 5).train(path)
    assert outcome.stopped_by == "max_seconds"
    assert 0.4 <= outcome.seconds < 2
    again = Trainer(model(), images(), CPU, settings, 5).train(path)
    assert (again.steps, again.stopped_by) == (outcome.steps, "max_seconds")
    assert Trainer(model(), images(), CPU, replace(settings, max_seconds=1e-9), 5).train().steps == 1


def test_progress_is_told() -> None:
    told: list[Progress] = []
    Trainer(model(), images(), CPU, SETTINGS, 5).train(None, told.append)
    assert [(p.epoch, p.epochs, p.step, p.steps_total) for p in told] == [(i // 3, 3, i + 1, 9) for i in range(9)]
    assert all(p.images_per_s > 0 and 0 < p.loss < 5 for p in told)


def test_scores_are_the_same_for_the_same_weights_whatever_the_seed() -> None:
    network = model()
    scores = {Trainer(network, images(), CPU, SETTINGS, seed).score(images(20)) for seed in (1, 2)}
    assert len(scores) == 1
    assert Trainer(model(1), images(), CPU, SETTINGS, 1).score(images(20)) not in scores


def test_divergence_is_told_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    wild = replace(SETTINGS, learning_rate=1e30, checkpoint_every_steps=1)
    with pytest.raises(TrainingError, match=r"Lower the learning rate \(it is 1e\+30\)"):
        Trainer(model(), images(), CPU, wild, 5).train(path)
    assert not path.exists() or all(t.isfinite().all() for t in load_tensors(path)[0].values())
    overflow = replace(SETTINGS, learning_rate=1e39, max_steps=1)  # the one loss is fine, the weights after it are not
    with pytest.raises(TrainingError, match="weights became infinite"):
        Trainer(model(), images(), CPU, overflow, 5).train()
    broken = model()
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match="the loss became nan at step 1"):
        Trainer(broken, images(), CPU, SETTINGS, 5).train()


def test_divergence_between_two_reports_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(model(), images(), CPU, SETTINGS, 5)
    real = trainer._step

    def one_bad_step(adam: torch.optim.Adam, x_0: torch.Tensor, step: int) -> torch.Tensor:
        return real(adam, x_0, step) * (float("nan") if step == 4 else 1)

    monkeypatch.setattr(trainer, "_step", one_bad_step)
    monkeypatch.setattr(trainer, "_progress", lambda *position: None)  # an accelerator is asked every tenth step only
    with pytest.raises(TrainingError, match="the loss became infinite or no number"):
        trainer.train()


def test_memory_that_does_not_suffice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(model(), images(), CPU, SETTINGS, 5)

    def out_of_memory(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "_step", out_of_memory)
    with pytest.raises(TrainingError, match="Lower batch_size"):
        trainer.train()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="images are 8x8 with 1 channels, the network is for 28x28 with 1"):
        Trainer(UNet(28, 1, "tiny"), images(), CPU, SETTINGS, 0)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": -1}, {"learning_rate": float("nan")}, {"max_steps": 0}]
)
def test_settings_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)
