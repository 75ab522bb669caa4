"""Files from elsewhere are read or refused, whatever is in them."""

import pytest
import torch
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.config import load_config
from fedddpm.errors import ConfigError, ModelError
from fedddpm.files.atomic import save_tensors
from fedddpm.identity import Identity, load_public_key
from fedddpm.model.model_files import read_architecture


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"multipliers":' * 10**5, "9" * 10**4, '{"multipliers":[[[1]]]}', "null", '"x"']
)
def test_metadata_of_a_model_file_is_read_or_refused(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_tensors(path, {"x": torch.zeros(1)}, {"fedddpm.architecture": text})
    with pytest.raises(ModelError, match="no model file"):
        read_architecture(path)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"public_key":' * 10**5, "9" * 10**4])
def test_key_files_are_read_or_refused(tmp_path, text):
    path = tmp_path / "a.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        load_public_key(path)
    with pytest.raises(ConfigError):
        Identity.load(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "9" * 10**5, "a = '\x1b'", "a" * 10**5])
def test_settings_files_are_read_or_refused(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="TOML") as refusal:
        load_config(path)
    assert str(refusal.value).isprintable()
    done = CliRunner().invoke(app, ["participate", "--config", str(path)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
