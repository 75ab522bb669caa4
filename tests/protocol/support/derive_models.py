"""Prints the hashes of models derived from fixed sums; run in processes of its own, with other threads and kernels."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import numpy as np


def main() -> None:
    package = types.ModuleType("tests")  # other installed packages may have a folder of this name
    package.__path__ = [str(Path(__file__).parents[2])]
    sys.modules["tests"] = package
    from tests.protocol.support.specs import make_spec
    from tests.protocol.support.sums import opened_part

    from fedddpm_protocol.encoding.decoder import next_model
    from fedddpm_protocol.primitives import ring

    size = 325_000  # five blocks of 65536, each in 16 lanes
    base = (np.arange(size) % 1999 - 999).astype(np.float32) / np.float32(1000)
    for bits in (8, 16, 24):
        spec = make_spec(bits=bits, coordinates=size, chunk_coordinates=2**16, clip_norm=10.0)
        words = np.arange(spec.parts[0].values.coordinates, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(7)
        small = (words % 2 ** (bits - 3)).astype(ring.word_dtype(bits))
        ring.subtract_in_place(small, np.full_like(small, 2 ** (bits - 4)), bits)
        model = next_model(spec, base, {"full": opened_part(spec, small, (300_000, 0, 0), 5)})
        print(hashlib.sha256(model.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
