"""Seed -> uniform ring words, seekable by chunk.

key = HKDF-Expand-SHA256(seed, label, 32 bytes); keystream = AES-256-CTR from a zero block, read as an LSB-first
stream of b-bit words. Every segment has a key of its own and starts at keystream bit 0.

GCM under a zero 96-bit nonce encrypts with the same counter from block 2 on (NIST SP 800-38D, section 7.1), and OpenSSL
has by far the faster code for it where the processor has wide AES instructions. So a stream that is read from its start
on takes its first two blocks from CTR and the rest from GCM; elsewhere it is CTR. The bytes are the same.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.base import CipherContext
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.canonical import label

_BLOCK = 16
_GCM_FIRST = 2 * _BLOCK  # byte where GCM's keystream begins
_GCM_LIMIT = (2**32 - 2) * _BLOCK  # byte where its 32-bit counter would wrap
_PIECE = 2**18  # bytes of keystream at a time, so that they are added while they are in the cache
_ZEROS = memoryview(bytes(_PIECE))


class Scratch:
    """The memory that keystream passes through; one for each thread, whatever the number of streams."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_PIECE + _BLOCK))


class MaskStream:
    """The uniform words that one seed gives to one segment. Not for use by two threads at once."""

    def __init__(self, seed: bytes, segment: str, bits: int) -> None:
        info = label("prg", segment.encode(), bytes([bits]))
        self._algorithm = AES256(HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(seed))
        self._bits = bits
        self._context: CipherContext | None = None
        self._offset = -1  # byte of the keystream that the context gives next

    def words(self, start: int, count: int) -> ring.Words:
        """Words ``start .. start + count`` of the stream; ``start * bits`` must fall on a byte."""
        size = ring.packed_bytes(count, self._bits)
        raw = memoryview(bytearray(size + _BLOCK))
        self._seek(self._byte(start))
        for first in range(0, size, _PIECE):
            self._read(min(_PIECE, size - first), raw[first:])
        used = count * self._bits % 8
        if used:
            raw[size - 1] &= (1 << used) - 1
        return ring.unpack(raw[:size], self._bits, count)

    def combine(self, total: ring.Words, start: int, sign: int, scratch: Scratch) -> None:
        """``total += sign * words`` from word ``start`` on, in place; not reduced where the ring is no native one.

        Every stretch but the last ends on a byte of the keystream where chunks are multiples of 8 words.
        """
        self._seek(self._byte(start))
        step = _PIECE * 8 // self._bits // 8 * 8
        operation = np.add if sign > 0 else np.subtract
        for first in range(0, len(total), step):
            piece = total[first : first + step]
            size = ring.packed_bytes(len(piece), self._bits)
            self._read(size, scratch.buffer)
            used = len(piece) * self._bits % 8
            if used:
                scratch.buffer[size - 1] &= (1 << used) - 1
            operation(piece, ring.unpack(scratch.buffer[:size], self._bits, len(piece)), out=piece)

    def _byte(self, start: int) -> int:
        if start * self._bits % 8:
            raise ValueError("a mask can only be read from a whole byte on")
        return start * self._bits // 8

    def _seek(self, offset: int) -> None:
        """Make ``offset`` the byte that is read next; reading on from where the last call ended costs nothing."""
        if offset == self._offset:
            return
        block, skip = divmod(offset, _BLOCK)
        self._context = Cipher(self._algorithm, CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        self._context.update(bytes(skip))
        self._offset = offset

    def _read(self, size: int, out: memoryview) -> None:
        """``size`` bytes of keystream into ``out``, which has a block to spare; at most one piece."""
        if self._offset == 0 and size > _GCM_FIRST:
            self._run(_GCM_FIRST, out)
            self._context = Cipher(self._algorithm, GCM(bytes(12))).encryptor()
            out, size = out[_GCM_FIRST:], size - _GCM_FIRST
        elif self._offset + size > _GCM_LIMIT:
            self._context = Cipher(self._algorithm, CTR((self._offset // _BLOCK).to_bytes(_BLOCK, "big"))).encryptor()
            self._context.update(bytes(self._offset % _BLOCK))
        self._run(size, out)

    def _run(self, size: int, out: memoryview) -> None:
        if self._context is None:
            raise ValueError("a stream is read before it was placed")
        self._context.update_into(_ZEROS[:size], out)
        self._offset += size
