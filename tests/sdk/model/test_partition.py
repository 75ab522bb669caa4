"""Weights <-> vectors and model files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddpm.errors import CheckpointError, ModelError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.model_files import load_model_into, read_architecture, save_model
from fedddpm.model.partition import flatten, manifest, parameters_of, unflatten
from fedddpm.model.unet import UNet


def tiny(seed: int = 0, image_size: int = 28, channels: int = 1) -> UNet:
    torch.manual_seed(seed)
    return UNet(image_size, channels, "tiny")


def strided(seed: int) -> UNet:
    """A network whose convolutions do not lie in memory in the order of their indices."""
    model = tiny(seed)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return model


def test_the_vector_is_the_parameters_in_the_order_of_the_manifest() -> None:
    model = strided(0)
    vector, start = flatten(model), 0
    weights = dict(model.named_parameters())
    for spec in manifest(model):
        here = torch.from_numpy(vector[start : start + spec.size]).reshape(spec.shape)
        assert torch.equal(here, weights.pop(spec.name))
        start += spec.size
    assert (start, weights) == (vector.size, {})
    assert vector.dtype == np.float32
    assert vector.flags.c_contiguous


def test_parts_come_in_the_order_of_the_network_however_they_are_named() -> None:
    model = tiny()
    names = [spec.name for spec in manifest(model, ("decoder", "bottleneck"))]
    assert names == [n for n, _ in model.named_parameters() if not n.startswith("encoder")]
    np.testing.assert_array_equal(flatten(model, ("decoder", "bottleneck")), flatten(model, ("bottleneck", "decoder")))


def test_the_papers_decoder_has_the_papers_coordinates() -> None:
    model = UNet()
    assert flatten(model, ("decoder",)).shape == (716_297,)
    assert flatten(model, ("bottleneck", "decoder")).shape == (716_297 + 999_376,)


@pytest.mark.parametrize("parts", [("decoder",), ("bottleneck", "decoder"), ("encoder", "bottleneck", "decoder")])
def test_there_and_back_is_exact_and_touches_nothing_else(parts: tuple[str, ...]) -> None:
    source, target, untouched = tiny(0), strided(1), tiny(1)
    vector = flatten(source, parts)
    unflatten(target, parts, vector)
    for part in ("encoder", "bottleneck", "decoder"):
        expected = source if part in parts else untouched
        for (_, got), (_, want) in zip(parameters_of(target, part), parameters_of(expected, part), strict=True):
            assert torch.equal(got, want)
    before = flatten(target)
    vector[:] = 0  # the network holds no view of the caller's vector
    np.testing.assert_array_equal(flatten(target), before)
    assert next(target.decoder.parameters()).requires_grad


def test_vectors_that_do_not_fit_are_refused_and_write_nothing() -> None:
    model = tiny()
    good = flatten(model, ("decoder",))
    bad = good.copy()
    bad[7], bad[9] = np.nan, np.inf
    cases = [(good[:-1], "expected"), (good.astype(np.float64), "float64"), (good.reshape(1, -1), "shape")]
    for vector, message in [*cases, (bad, "2 values that are not finite")]:
        with pytest.raises(ModelError, match=message):
            unflatten(model, ("decoder",), vector)  # type: ignore[arg-type]  # wrong on purpose
    np.testing.assert_array_equal(flatten(model, ("decoder",)), good)


def test_weights_that_nobody_could_add_are_refused() -> None:
    broken = tiny()
    with torch.no_grad():
        next(broken.decoder.parameters())[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        flatten(broken, ("decoder",))
    flatten(broken, ("encoder",))
    with pytest.raises(ModelError, match="float64"):
        flatten(tiny().double())


@pytest.mark.parametrize("parts", [("head",), (), ("decoder", "decoder")])
def test_unknown_parts_are_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="encoder, bottleneck, decoder"):
        flatten(tiny(), parts)
    with pytest.raises(ModelError, match="no part 'head'"):
        parameters_of(tiny(), "head")


def test_a_model_file_reads_back_and_says_what_it_holds(tmp_path: Path) -> None:
    model, other, path = strided(0), tiny(1), tmp_path / "theta.safetensors"
    save_model(path, model)
    load_model_into(path, other)
    np.testing.assert_array_equal(flatten(model), flatten(other))
    assert read_architecture(path) == model.architecture
    tensors, metadata = load_tensors(path)
    assert json.loads(metadata["fedddpm.architecture"])["preset"] == "tiny"
    listed = json.loads(metadata["fedddpm.manifest"])
    assert list(listed) == ["encoder", "bottleneck", "decoder"]
    assert listed["decoder"] == [[s.name, list(s.shape)] for s in manifest(model, ("decoder",))]
    assert {name for part in listed.values() for name, _ in part} == set(tensors)


def test_files_from_before_there_were_classes_name_none(tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", tiny()
    save_model(path, model)
    tensors, metadata = load_tensors(path)
    fields = json.loads(metadata["fedddpm.architecture"])
    assert fields.pop("classes") == 0
    save_tensors(path, tensors, {**metadata, "fedddpm.architecture": json.dumps(fields)})
    assert read_architecture(path) == model.architecture
    load_model_into(path, tiny(1))


def test_classes_are_part_of_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, UNet(8, 1, "tiny", classes=10))
    assert read_architecture(path).classes == 10
    with pytest.raises(ModelError, match="classes=10"):
        load_model_into(path, UNet(8, 1, "tiny", classes=9))


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", tiny(1)
    save_model(path, tiny(0, image_size=32, channels=3))
    before = flatten(model)
    with pytest.raises(ModelError, match="image_size=32"):
        load_model_into(path, model)
    np.testing.assert_array_equal(flatten(model), before)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", tiny()
    save_model(path, model)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(ModelError, match="no model file"):
        load_model_into(path, model)
    with pytest.raises(ModelError, match="no model file"):
        read_architecture(path)
    save_tensors(path, {**tensors, "extra": torch.zeros(1)}, metadata)
    with pytest.raises(ModelError, match="not those of its architecture"):
        load_model_into(path, model)
    first = next(iter(tensors))
    save_tensors(path, {**tensors, first: tensors[first] * float("nan")}, metadata)
    with pytest.raises(ModelError, match="not finite"):
        load_model_into(path, model)
    save_tensors(path, tensors, {**metadata, "fedddpm.architecture": '{"preset": "tiny"}'})
    with pytest.raises(ModelError, match="no model file"):
        read_architecture(path)
    path.write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model_into(path, model)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model_into(tmp_path / "absent", model)
