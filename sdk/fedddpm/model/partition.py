"""The only door between a network's weights (torch) and the vectors that travel (NumPy).

A *part* is a child module of the UNet. A vector of parts is all their parameters as float32, one after the other, in
the order of :func:`manifest`.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedddpm.errors import ModelError
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.methods import MODEL_PARTS
from fedddpm_protocol.agreement.model_layout import Manifest, TensorSpec, Vector

PARTS = MODEL_PARTS  # in the order of every manifest


def parameters_of(model: UNet, part: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The named parameters of one part, as ("decoder.levels.0...", parameter), in the order of the manifest.

    Raises:
        ModelError: there is no such part.
    """
    if part not in PARTS:
        raise ModelError(f"the network has no part {part!r}", f"Its parts are {', '.join(PARTS)}")
    return model.get_submodule(part).named_parameters(prefix=part)


def manifest(model: UNet, parts: Iterable[str] = PARTS) -> Manifest:
    """Names and shapes of the tensors of ``parts``, in the order in which :func:`flatten` lays them out."""
    return tuple(
        TensorSpec(name, tuple(p.shape)) for part in _in_order(parts) for name, p in parameters_of(model, part)
    )


def flatten(model: UNet, parts: Iterable[str] = PARTS) -> Vector:
    """All parameters of ``parts`` as one C-contiguous float32 vector [P]: a copy.

    Raises:
        ModelError: an unknown part, a weight that is no finite number, or weights that are not float32.
    """
    pieces = []
    for part in _in_order(parts):
        for name, parameter in parameters_of(model, part):
            if parameter.dtype != torch.float32:
                raise ModelError(f"{name} is {parameter.dtype}", "Keep the weights in float32 (use autocast for speed)")
            pieces.append(parameter.detach().cpu().contiguous().reshape(-1))
    vector = torch.cat(pieces).numpy()
    require_finite_values(vector, "the network's weights")
    return vector


@torch.no_grad()
def unflatten(model: UNet, parts: Iterable[str], vector: Vector) -> None:
    """Write a vector [P] into the parameters of ``parts``, in place; the inverse of :func:`flatten`.

    Raises:
        ModelError: an unknown part, a wrong length or type, or a number that is not finite. Nothing is written then.
    """
    chosen = [entry for part in _in_order(parts) for entry in parameters_of(model, part)]
    size = sum(parameter.numel() for _, parameter in chosen)
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise ModelError(
            f"a vector of {size} float32 values was expected, not {vector.dtype} of shape {vector.shape}",
            "The other side trains another architecture: compare image size, channels and preset",
        )
    require_finite_values(vector, "the vector")
    start = 0
    for _, parameter in chosen:
        piece = torch.from_numpy(vector[start : start + parameter.numel()].copy())
        parameter.copy_(piece.reshape(parameter.shape))
        start += parameter.numel()


def _in_order(parts: Iterable[str]) -> list[str]:
    """The parts in manifest order, whatever the order they were named in; ModelError for an unknown or repeated one."""
    named = list(parts)
    if not named or len(set(named)) != len(named) or not set(named) <= set(PARTS):
        raise ModelError(f"{named} does not name parts of the network", f"Its parts are {', '.join(PARTS)}")
    return [part for part in PARTS if part in named]


def require_finite_values(values: npt.NDArray[np.float32], what: str) -> None:
    """ModelError where one of ``values`` (of ``what``) is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ModelError(
            f"{what} hold {np.count_nonzero(~np.isfinite(values))} values that are not finite numbers",
            "Training diverged or the file is damaged: go back to the last good model, and lower the learning rate",
        )
