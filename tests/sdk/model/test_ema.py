"""The average of the weights: its formula, its moves, its file."""

import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddpm.errors import CheckpointError, ModelError
from fedddpm.files.atomic import save_tensors
from fedddpm.model.ema import (
    AverageState,
    WeightAverage,
    average_file,
    follow,
    load_average,
    load_average_into,
    save_average,
)
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.updates.adoption import adopt_round
from fedddpm.updates.local_update import LocalUpdate, local_parts
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method


def model(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, 1, "tiny")


def step(network: UNet, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def random_vector(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def an_update(base: np.ndarray, local: np.ndarray, average: AverageState | None) -> LocalUpdate:
    delta = random_vector(1, len(base)) * np.float32(0.01)
    return LocalUpdate("run", 0, bytes(32), bytes(32), delta, local, 10, 0.5, 0.4, 1.0, average)


def test_the_average_is_the_formula_s() -> None:
    network, generator = model(), torch.Generator().manual_seed(1)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    average = WeightAverage(network, 0.5)
    expected = flatten(network).astype(np.float64)
    for n in range(12):
        step(network, generator)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))  # below 0.5 while n < 8
        expected = decay * expected + (1 - decay) * flatten(network)
    np.testing.assert_allclose(average.state().vector, expected, atol=1e-6)
    assert average.state().updates == 12


def test_an_average_goes_on_where_it_was() -> None:
    first, second = model(), model()
    through = WeightAverage(first, 0.9)
    state = AverageState.fresh(second)
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for _ in range(3):
        for _ in range(4):
            step(first, one)
            through.update()
        parted = WeightAverage(second, 0.9, state)
        for _ in range(4):
            step(second, two)
            parted.update()
        state = parted.state()
    assert state.updates == 12
    assert np.array_equal(state.vector, through.state().vector)


def test_the_state_is_a_copy() -> None:
    network = model()
    average = WeightAverage(network, 0.9)
    state = average.state()
    before = state.vector.copy()
    step(network, torch.Generator().manual_seed(0))
    average.update()
    assert np.array_equal(state.vector, before)


def test_an_average_of_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match="holds 3 weights"):
        WeightAverage(model(), 0.9, AverageState(np.zeros(3, np.float32), 1))


def test_the_average_makes_the_move_of_the_weights() -> None:
    vectors = [random_vector(seed, 50) for seed in range(3)]
    moved = follow(AverageState(vectors[0], 7), vectors[1], vectors[2])
    np.testing.assert_allclose(moved.vector - vectors[2], vectors[0] - vectors[1], atol=1e-6)
    assert moved.updates == 7
    assert moved.vector.dtype == np.float32


@pytest.mark.parametrize("method", [Method.FULL, Method.UDEC])
def test_a_round_is_adopted(method: Method) -> None:
    network = model()
    kept = local_parts(method)
    base = flatten(network, method.shared_parts)
    local = random_vector(2, flatten(network, kept).size) if kept else np.zeros(0, np.float32)
    update = an_update(base, local, AverageState(random_vector(3, flatten(network).size), 40))
    following = random_vector(4, len(base))
    moved = adopt_round(network, method, following, update)
    assert np.array_equal(flatten(network, method.shared_parts), following)
    assert not kept or np.array_equal(flatten(network, kept), local)
    trained, reference = model(), model()
    adopt_round(trained, method, base + update.delta, update)  # the network as training left it
    adopt_round(reference, method, following, update)
    assert moved is not None
    assert update.average is not None
    distance = update.average.vector - flatten(trained)
    np.testing.assert_allclose(moved.vector - flatten(reference), distance, atol=1e-5)
    assert moved.updates == 40


def test_a_round_that_was_sat_out_moves_the_average_by_the_base() -> None:
    network = model()
    state = AverageState(random_vector(3, flatten(network).size), 5)
    before = flatten(network)
    following = random_vector(4, flatten(network, Method.UDEC.shared_parts).size)
    moved = adopt_round(network, Method.UDEC, following, None, state)
    assert moved is not None
    np.testing.assert_allclose(moved.vector - state.vector, flatten(network) - before, atol=1e-5)
    assert np.array_equal(flatten(network, Method.UDEC.shared_parts), following)


def test_without_an_average_none_comes_out() -> None:
    network = model()
    base = flatten(network)
    update = an_update(base, np.zeros(0, np.float32), None)
    assert adopt_round(network, Method.FULL, base, update) is None
    assert adopt_round(network, Method.FULL, base, None) is None


def test_the_file_is_a_model_file_of_its_own(tmp_path: Path) -> None:
    network, path = model(), average_file(tmp_path / "model-run-1-2.safetensors")
    assert path.name == "model-run-1-2.ema.safetensors"
    state = AverageState(random_vector(0, flatten(network).size), 123)
    before = flatten(network)
    save_average(path, network, state)
    assert np.array_equal(flatten(network), before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = load_average(path, network)
    assert np.array_equal(read.vector, state.vector)
    assert read.updates == 123
    assert load_average_into(path, network) == 123
    assert np.array_equal(flatten(network, MODEL_PARTS), state.vector)


def test_files_that_hold_no_average_of_this_network(tmp_path: Path) -> None:
    path, network = tmp_path / "x.safetensors", model()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_average(path, network)
    path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="damaged"):
        load_average(path, network)
    save_model(path, network)
    with pytest.raises(ModelError, match="holds no average"):
        load_average(path, network)
    save_average(path, network, AverageState.fresh(network))
    with pytest.raises(ModelError, match="holds the architecture"):
        load_average(path, UNet(8, 3, "tiny"))
    save_tensors(path, {"x": torch.zeros(1)}, {"fedddpm.ema_updates": "many"})
    with pytest.raises(ModelError, match="holds no average"):
        load_average(path, network)
    with pytest.raises(ModelError, match="not finite"):
        save_average(path, network, AverageState(np.full(flatten(network).size, np.nan, np.float32), 1))
