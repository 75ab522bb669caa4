"""torchvision beside any torch, and the choice of a device."""

import subprocess
import sys

import pytest
import torch

from fedddpm.compute.device import pick_device
from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.errors import ConfigError, DataError, FedDDPMError


def test_torchvision_loads_with_what_is_needed_of_it() -> None:
    torchvision = load_torchvision()
    assert load_torchvision() is torchvision
    from torchvision.datasets import CelebA, FashionMNIST  # noqa: F401
    from torchvision.utils import make_grid

    assert make_grid(torch.zeros(4, 1, 8, 8)).shape == (3, 12, 42)


def test_nothing_of_the_learning_half_imports_torchvision_by_itself() -> None:
    modules = "fedddpm.training.trainer, fedddpm.model.partition, fedddpm.data"
    code = f"import sys, {modules}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "failure",
    ["RuntimeError('operator torchvision::nms does not exist')", "RuntimeError('other')", "ImportError('none')"],
)
def test_only_the_known_symptom_is_cured(failure: str) -> None:
    code = f"""
import importlib, fedddpm.compute.torchvision_compat as vision
from fedddpm.errors import ConfigError
real, calls = importlib.import_module, []
def fake(name):
    calls.append(name)
    if len(calls) == 1:
        raise {failure}
    return "module"
importlib.import_module = fake
vision._declare_missing_operators = lambda: calls.append("declared")
try:
    print(vision.load_torchvision(), calls)
except ConfigError as error:
    print(error, calls)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if "nms" in failure:
        assert out == "module ['torchvision', 'declared', 'torchvision']\n"
    else:
        assert "Install the torchvision release" in out or "pip install torchvision" in out
        assert out.endswith("['torchvision']\n")


def test_auto_takes_cuda_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="2 CUDA devices are visible"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "mps", "", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="Use auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_errors_say_what_happened_and_what_to_do() -> None:
    error = DataError("the folder is empty.", "Put images there")
    assert str(error) == "the folder is empty. Put images there"
    assert (error.happened, error.advice) == ("the folder is empty", "Put images there")
    assert isinstance(error, FedDDPMError)
