"""What users of the SDK import and start: it stays where it is, however the rooms behind it change."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import fedddpm
from fedddpm.client import ClientSettings
from fedddpm.errors import FedDDPMError

FACE = {
    "fedddpm": (
        "Client",
        "FedDDPMError",
        "LearningOptions",
        "LocalPolicyOptions",
        "MetricsOptions",
        "NetworkOptions",
        "ObserveOptions",
        "RoundSummary",
        "SamplesOptions",
    ),
    "fedddpm.client": ("Client",),
    "fedddpm.config": (
        "ClientConfig",
        "LearningOptions",
        "LocalPolicyOptions",
        "MetricsOptions",
        "NetworkOptions",
        "ObserveOptions",
        "SamplesOptions",
        "Setting",
        "load_config",
    ),
    "fedddpm.data": ("ImageSet", "Split", "open_images", "split_holdout", "to_floats", "to_uint8"),
    "fedddpm.errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "FedDDPMError",
        "ModelError",
        "PolicyError",
        "StateError",
        "TrainingError",
        "TransportError",
    ),
    "fedddpm.identity": ("Identity", "load_public_key", "root_id"),
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in FACE.items() for name in names])
def test_a_public_name_is_where_it_was(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", ["fedddpm", "fedddpm.data"])
def test_a_package_says_what_is_public(module):
    assert sorted(importlib.import_module(module).__all__) == sorted(FACE[module])


def test_every_error_of_the_sdk_is_one_of_its_errors():
    for name in FACE["fedddpm.errors"]:
        assert issubclass(getattr(fedddpm.errors, name), FedDDPMError)


def test_the_help_of_the_client_says_what_each_setting_does():
    shown = fedddpm.Client.__doc__
    for name in ClientSettings.__annotations__:
        assert f"        {name}" in shown
    assert "holdout (0.1): share of images that only measures the loss" in shown


def test_a_setting_of_the_command_is_none_of_the_client():
    needed = dict.fromkeys(("aggregator_url", "identity", "federation_root", "data", "state_dir"), "x")
    with pytest.raises(fedddpm.errors.ConfigError, match="log_format is a setting of the command"):
        fedddpm.Client(**needed, log_format="json")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        fedddpm.Server  # noqa: B018


@pytest.mark.parametrize("command", ["fedddpm", "fedddpm-aggregator"])
def test_both_commands_are_installed_and_load(command):
    (entry,) = entry_points(group="console_scripts", name=command)
    assert callable(entry.load())


@pytest.mark.parametrize("module", ["fedddpm", "fedddpm_aggregator"])
def test_a_package_can_be_run(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
