"""Seeds and generators of single purposes, derived from one seed."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch

from fedddpm.errors import ConfigError

_WORDS, _WORD_BYTES = 624, 4  # the state of torch's generator on the CPU, a Mersenne twister of 32-bit words
_FIRST_WORD = 24  # bytes into its serialised form, where each word takes eight
_INIT = 1812433253  # Matsumoto and Nishimura 2002: how the twister fills its state from a seed


def derived_seed(*what: int | str) -> int:
    """A seed for one purpose: 63 bits of a hash, so that neighbouring steps get unrelated generators."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8]) >> 1


def generator_for(device: torch.device, *what: int | str) -> torch.Generator:
    """A generator for one purpose; on the CPU all of its state follows from ``what``, however large that is.

    ``torch.Generator.manual_seed`` uses 32 bits of a seed on the CPU, which anybody can try one after the other. On
    CUDA the generator (Philox) takes 64 bits.
    """
    stream = hashlib.shake_256(repr(what).encode())
    if device.type != "cpu":
        return torch.Generator(device).manual_seed(int.from_bytes(stream.digest(8)))
    words = np.frombuffer(stream.digest(_WORDS * _WORD_BYTES), "<u4").astype("<u8")
    state = _template().clone()
    state[_FIRST_WORD : _FIRST_WORD + words.nbytes] = torch.from_numpy(words.view(np.uint8))
    generator = torch.Generator()
    generator.set_state(state)
    return generator


@cache
def _template() -> torch.Tensor:
    """The serialised state of a fresh generator; ConfigError where its words do not lie where they always did."""
    state = torch.Generator().manual_seed(5).get_state()
    words = state[_FIRST_WORD : _FIRST_WORD + 8 * _WORDS].numpy().view("<u8")
    second = (_INIT * (5 ^ (5 >> 30)) + 1) % 2**32
    if len(words) != _WORDS or words[0] != 5 or words[1] != second or words.max() >= 2**32:
        raise ConfigError(
            f"torch {torch.__version__} keeps the state of its generator in a way that is not known here",
            "Install a release of torch that this package was tested with (see its pyproject.toml)",
        )
    return state
