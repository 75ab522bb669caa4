"""Seed -> uniform ring words, seekable by chunk.

key = HKDF-Expand-SHA256(seed, label, 32 bytes); keystream = AES-256-CTR from a zero block, read as an LSB-first
stream of b-bit words. Every segment has a key of its own and starts at keystream bit 0.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fedddpm_protocol import ring
from fedddpm_protocol.canonical import label

_BLOCK = 16


class MaskStream:
    """The uniform words that one seed gives to one segment."""

    def __init__(self, seed: bytes, segment: str, bits: int) -> None:
        info = label("prg", segment.encode(), bytes([bits]))
        self._algorithm = AES256(HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(seed))
        self._bits = bits

    def words(self, start: int, count: int) -> ring.Words:
        """Words ``start .. start + count`` of the stream; ``start * bits`` must fall on a byte."""
        if start * self._bits % 8:
            raise ValueError("a mask can only be read from a whole byte on")
        offset = start * self._bits // 8
        size = ring.packed_bytes(count, self._bits)
        block, skip = divmod(offset, _BLOCK)
        # One buffer, encrypted in place: the keystream over zeros. update_into wants a block of head room.
        buffer = bytearray(skip + size + _BLOCK)
        encryptor = Cipher(self._algorithm, CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        encryptor.update_into(memoryview(buffer)[: skip + size], buffer)
        used = count * self._bits % 8
        if used:
            buffer[skip + size - 1] &= (1 << used) - 1
        return ring.unpack(memoryview(buffer)[skip : skip + size], self._bits, count)
