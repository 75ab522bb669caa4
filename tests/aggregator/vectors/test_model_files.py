"""Model files as the coordinator hands them in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy
from safetensors import safe_open
from tests.aggregator.support.federations import ARCHITECTURE, MANIFESTS, theta_0, to_safetensors, with_metadata

from fedddpm_aggregator.vectors.model_files import ModelFileError, read_network
from fedddpm_protocol.agreement.model_metadata import ARCHITECTURE_KEY


def rewrite(path: Path, **changes: object) -> None:
    """The same tensors with other fields of the architecture; None takes a field away."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    fields = {**json.loads(metadata[ARCHITECTURE_KEY]), **changes}
    metadata[ARCHITECTURE_KEY] = json.dumps({name: value for name, value in fields.items() if value is not None})
    path.write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(path), metadata))


def test_classes_are_read_and_old_files_have_none(tmp_path: Path) -> None:
    path = tmp_path / "theta_0.safetensors"
    path.write_bytes(to_safetensors(replace(ARCHITECTURE, classes=10), MANIFESTS, theta_0()))
    assert read_network(path).architecture == replace(ARCHITECTURE, classes=10)
    rewrite(path, classes=None)
    assert read_network(path).architecture == ARCHITECTURE
    rewrite(path, classes=1001)
    with pytest.raises(ModelFileError, match="1001 classes are outside"):
        read_network(path)


def test_the_seed_of_a_first_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theta_0.safetensors"
    path.write_bytes(to_safetensors(ARCHITECTURE, MANIFESTS, theta_0()))
    assert read_network(path).initial_seed == b""
    assert read_network(with_metadata(path, initial_seed="0a" * 32)).initial_seed == b"\x0a" * 32


@pytest.mark.parametrize("seed", ["", "0a" * 31, "0a" * 33, "0A" * 32, "zz" * 32, "0a" * 31 + " a"])
def test_a_malformed_seed_is_refused(tmp_path: Path, seed: str) -> None:
    path = tmp_path / "theta_0.safetensors"
    path.write_bytes(to_safetensors(ARCHITECTURE, MANIFESTS, theta_0()))
    with pytest.raises(ModelFileError, match="initial_seed is not 64 hex digits"):
        read_network(with_metadata(path, initial_seed=seed))
