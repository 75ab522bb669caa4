"""theta_0 from a seed: the same bits everywhere, and the distributions of PyTorch's own first weights."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fedddpm.errors import ModelError
from fedddpm.files.atomic import load_tensors
from fedddpm.model.initialization import initial_network, initial_vector, seed_of
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import PARTS, flatten, manifest, parameters_of
from fedddpm.model.unet import UNet, architecture_of
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.model_metadata import INITIAL_SEED_KEY

SMALL = architecture_of(8, 1, "tiny", classes=3)
# Whoever changes these gives every federation that runs another theta_0 than its institutions have.
SMALL_HASH = "122176266f4157c0a2397f8b976207751dac443a2946e0ba55ca95bfa5779e9c"
PAPER_HASH = "c9774b29df3ec5bc5db9aba941469efa6ca48da71458ea69477b7dfce9a34135"
PROGRAM = """
import sys, torch
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import architecture_of
from fedddpm_protocol.agreement.model_layout import model_hash
torch.set_num_threads(int(sys.argv[1]))
torch.set_flush_denormal(sys.argv[1] == "4")
torch.manual_seed(int(sys.argv[1]))
network = initial_network(architecture_of(8, 1, "tiny", classes=3), seed_of(0))
print(model_hash(manifest(network), flatten(network)).hex())
"""


def hash_of(network):
    return model_hash(manifest(network), flatten(network)).hex()


@pytest.mark.parametrize(("architecture", "known"), [(SMALL, SMALL_HASH), (architecture_of(), PAPER_HASH)])
def test_the_weights_of_a_seed_never_change(architecture, known):
    network = initial_network(architecture, seed_of(0))
    assert hash_of(network) == known
    assert np.array_equal(flatten(network), initial_vector(architecture, seed_of(0)))


@pytest.mark.parametrize("threads", ["1", "4"])
def test_threads_and_other_random_numbers_change_nothing(threads):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads)}
    command = [sys.executable, "-c", PROGRAM, threads]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == SMALL_HASH


def test_another_number_gives_other_weights():
    first, second = (initial_vector(SMALL, seed_of(number)) for number in (0, -1))
    norms = [module for module in UNet.from_architecture(SMALL).modules() if isinstance(module, nn.GroupNorm)]
    fixed = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert (first != second).sum() > 0.999 * (len(first) - fixed)
    assert (first == second).sum() >= fixed


def test_the_callers_random_numbers_go_on_as_if_nothing_happened():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_network(SMALL, seed_of(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_each_tensor_is_distributed_as_pytorchs_own(preset):
    """Mean, variance and largest value; by their standard errors where a tensor is large enough to tell."""
    architecture = architecture_of(16, 3, preset, classes=5)
    ours = initial_network(architecture, seed_of(7))
    theirs = UNet.from_architecture(architecture)
    names = [name for part in PARTS for name, _ in parameters_of(theirs, part)]
    assert names == [name for part in PARTS for name, _ in parameters_of(ours, part)]
    seen = set()
    for name in names:
        module = theirs.get_submodule(name.rpartition(".")[0])
        seen.add(type(module))
        one, other = ours.get_parameter(name).detach().double(), theirs.get_parameter(name).detach().double()
        if isinstance(module, nn.GroupNorm):
            assert torch.equal(one, other), name
            continue
        variance = 1.0 if isinstance(module, nn.Embedding) else 1 / (3 * module.weight[0].numel())
        bound = math.sqrt(3 * variance)
        assert one.abs().max() <= bound * (1 + 1e-6), name
        assert (one != 0).all(), name
        error = math.sqrt(variance / one.numel())
        assert abs(one.mean()) < 5 * error, name
        spread = math.sqrt(0.8 / one.numel())  # relative error of a uniform sample's variance: (9/5 - 1) / size
        assert abs(one.square().mean() / variance - 1) < 5 * spread, name
        # PyTorch's have that variance too, the embedding's normal numbers scattering more.
        assert abs(other.square().mean() / variance - 1) < 8 * spread, name
    assert seen == {nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.Embedding}


def test_tensors_of_one_network_are_unrelated():
    """Convolutions of one shape do not start alike, as they would from one stream."""
    network = initial_network(architecture_of(), seed_of(0))
    seen: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for parameter in network.parameters():
        if parameter.numel() > 1000:
            seen.setdefault(tuple(parameter.shape), []).append(parameter.detach().flatten())
    pairs = [pair for same in seen.values() for pair in itertools.pairwise(same)]
    assert len(pairs) > 10
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / math.sqrt(len(a))


def test_a_module_without_a_rule_is_refused(monkeypatch):
    monkeypatch.setattr("fedddpm.model.unet.nn.GroupNorm", nn.BatchNorm2d)
    with pytest.raises(ModelError, match="no rule for the first weights of a BatchNorm2d"):
        initial_vector(SMALL, seed_of(0))


@pytest.mark.parametrize("seed", [b"", b"short", bytes(33)])
def test_a_seed_has_32_bytes(seed):
    with pytest.raises(ModelError, match=f"a seed of {len(seed)} bytes"):
        initial_network(SMALL, seed)


def test_a_model_file_tells_its_seed_where_it_has_one(tmp_path):
    network = initial_network(SMALL, seed_of(3))
    save_model(tmp_path / "seeded.safetensors", network, initial_seed=seed_of(3))
    save_model(tmp_path / "trained.safetensors", network)
    assert load_tensors(tmp_path / "seeded.safetensors")[1][INITIAL_SEED_KEY] == seed_of(3).hex()
    assert INITIAL_SEED_KEY not in load_tensors(tmp_path / "trained.safetensors")[1]
