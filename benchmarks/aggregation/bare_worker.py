"""The limit: a loop that makes keystream with AES-256-CTR and adds it, in pieces that stay in the processor's cache.

No keys are agreed on, nothing is encoded, sent, checked or hashed. ``masks`` streams are added, after ``vectors``
vectors that stand ready; words have ``bits`` bits.
"""

from __future__ import annotations

import numpy as np
from benchmarks.aggregation.cost import Job, PeakMemory, Stopwatch, answer
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

PIECE = 2**17  # bytes
BLOCK = 16


def measure(job: Job) -> dict[str, object]:
    """The loop over all pieces of one vector."""
    watch, word = Stopwatch(), np.dtype(f"<u{job.bits // 8}")
    encryptors = [Cipher(AES256(key.to_bytes(32)), CTR(bytes(BLOCK))).encryptor() for key in range(job.masks)]
    zeros, keystream = bytes(PIECE), bytearray(PIECE + BLOCK)
    upload = np.ones(PIECE // word.itemsize, word)
    with PeakMemory() as memory, watch.step("loop"):
        total = np.zeros(PIECE // word.itemsize, word)
        left = job.coordinates * word.itemsize
        while left > 0:
            size = min(left, PIECE) // word.itemsize
            piece = total[:size]
            for _ in range(job.vectors):
                np.add(piece, upload[:size], out=piece)
            for encryptor in encryptors:
                encryptor.update_into(zeros[: size * word.itemsize], keystream)
                np.add(piece, np.frombuffer(keystream, word, size), out=piece)
            left -= size * word.itemsize
    return {"cpu_s": watch.seconds, "kernel_s": watch.kernel_s(watch.seconds), "extra_bytes": memory.extra_bytes}


if __name__ == "__main__":
    answer(measure)
