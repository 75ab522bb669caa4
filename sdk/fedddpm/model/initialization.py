"""theta_0 from a public seed: 32 bytes instead of a download, and the same bits on every machine.

PyTorch's own initialisation promises the same numbers only for one release on one kind of machine. Here every tensor
reads 32-bit words w from a stream of its own (:class:`~fedddpm_protocol.primitives.keystream.MaskStream`), and

    weight = float32( ((2 w + 1) - 2^32) * (bound / 2^32) )

is uniform in (-bound, bound). The integer and its float64 are exact; bound and the product are one correctly rounded
operation each (IEEE 754: multiplication, division, square root); no sine, exponential or order of summation is left
that machines could do differently. The bounds give the distributions of PyTorch's layers:

* convolutions and linear layers: 1 / sqrt(fan in), weights and biases alike (He 2015 with a = sqrt(5), as PyTorch
  calls it), the fan in being the size of the weight's first row;
* embeddings: sqrt(3), so that the variance is 1 as that of PyTorch's normal distribution, whose exact bits would need
  a logarithm;
* norms: ones and zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedddpm.errors import ModelError
from fedddpm.model.partition import PARTS, parameters_of, unflatten
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Architecture, Vector
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keystream import MaskStream

SEED_BYTES = 32
_WORD_BITS = 32
_CHUNK = 2**16  # words at a time, so that a large tensor needs no float64 copy of itself


@dataclass(frozen=True)
class _Rule:
    """Uniform in (-bound, bound); where that is 0, everywhere ``constant``."""

    bound: float = 0.0
    constant: float = 0.0


def _fan_in(module: nn.Module, kind: str) -> _Rule:
    row = module.get_parameter("weight")[0].numel()
    return _Rule(bound=1 / math.sqrt(row))


_RULES: dict[type[nn.Module], Callable[[nn.Module, str], _Rule]] = {
    nn.Conv2d: _fan_in,
    nn.ConvTranspose2d: _fan_in,
    nn.Linear: _fan_in,
    nn.GroupNorm: lambda module, kind: _Rule(constant=1.0 if kind == "weight" else 0.0),
    nn.Embedding: lambda module, kind: _Rule(bound=math.sqrt(3)),
}


def seed_of(number: int) -> bytes:
    """The public seed [32 bytes] that stands for a number which people can type: its tagged SHA-256."""
    return tagged_hash("initial-model", str(number).encode())


def initial_vector(architecture: Architecture, seed: bytes) -> Vector:
    """All first weights as one float32 vector [P], in the order of the manifest.

    Raises:
        ModelError: a seed that is not 32 bytes, impossible sizes, or a network with a module that has no rule.
    """
    return _weights(_shapes(architecture), seed)


def initial_network(architecture: Architecture, seed: bytes) -> UNet:
    """The network, on the CPU, with the weights of :func:`initial_vector`. Torch's random numbers are not touched.

    Raises:
        ModelError: as there.
    """
    model = _shapes(architecture)
    vector = _weights(model, seed)
    model.to_empty(device="cpu")
    unflatten(model, PARTS, vector)
    return model


def _shapes(architecture: Architecture) -> UNet:
    with torch.device("meta"):  # no memory, and no random numbers drawn for weights that are replaced
        return UNet.from_architecture(architecture)


def _weights(model: UNet, seed: bytes) -> Vector:
    if len(seed) != SEED_BYTES:
        raise ModelError(
            f"a seed of {len(seed)} bytes cannot give the first weights", f"Give {SEED_BYTES} bytes, as seed_of does"
        )
    pieces = []
    for part in PARTS:
        for name, parameter in parameters_of(model, part):
            owner, _, kind = name.rpartition(".")
            rule = _rule(model.get_submodule(owner), kind)
            pieces.append(_tensor(rule, MaskStream(seed, name, _WORD_BITS), parameter.numel()))
    return np.concatenate(pieces)


def _rule(module: nn.Module, kind: str) -> _Rule:
    rule = _RULES.get(type(module))
    if rule is None:
        raise ModelError(
            f"there is no rule for the first weights of a {type(module).__name__}",
            "Give it one in fedddpm.model.initialization: two machines must not draw them differently",
        )
    return rule(module, kind)


def _tensor(rule: _Rule, stream: MaskStream, size: int) -> Vector:
    values = np.full(size, rule.constant, np.float32)
    if rule.bound:
        for start in range(0, size, _CHUNK):
            words = stream.words(start, min(_CHUNK, size - start)).astype(np.float64)
            odd = 2 * words - (2.0**_WORD_BITS - 1)  # odd integers of 33 bits: symmetric, and never 0
            values[start : start + len(words)] = odd * (rule.bound / 2.0**_WORD_BITS)
    return values
