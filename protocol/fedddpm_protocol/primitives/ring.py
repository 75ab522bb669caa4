"""Vectors modulo 2^b: words in memory, packed little-endian bits on the wire.

A word is held in the smallest NumPy type with room for it; rings of 8, 16, 32 and 64 bits are that type's own
arithmetic. 2^b divides the type's own modulus, so other widths may be reduced after any number of operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.errors import MalformedError

Words = npt.NDArray[np.unsignedinteger[Any]]
MIN_BITS, MAX_BITS = 4, 64
_PADDING = "the padding bits of a packed vector are not zero"
_NATIVE: dict[int, np.dtype[Any]] = {8: np.dtype("<u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4"), 64: np.dtype("<u8")}


def word_dtype(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned type that holds words of ``bits`` bits (4 to 64)."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"a ring of {bits} bits is outside {MIN_BITS} to {MAX_BITS}")
    width: int = next(width for width in _NATIVE if bits <= width)
    return _NATIVE[width]


def is_native(bits: int) -> bool:
    """Whether the ring is a machine type's own arithmetic."""
    return bits in _NATIVE


def packed_bytes(coordinates: int, bits: int) -> int:
    """Bytes of ``coordinates`` packed words (the last byte may be partly used)."""
    return (coordinates * bits + 7) // 8


def zeros(coordinates: int, bits: int) -> Words:
    """The neutral vector [coordinates]."""
    return np.zeros(coordinates, word_dtype(bits))


def reduce_in_place(words: Words, bits: int) -> None:
    """``words`` mod 2^bits."""
    if not is_native(bits):
        np.bitwise_and(words, words.dtype.type(2**bits - 1), out=words)


def add_in_place(total: Words, words: Words, bits: int) -> None:
    """``total += words`` mod 2^bits; same shape and type."""
    np.add(total, words, out=total)
    reduce_in_place(total, bits)


def subtract_in_place(total: Words, words: Words, bits: int) -> None:
    """``total -= words`` mod 2^bits; same shape and type."""
    np.subtract(total, words, out=total)
    reduce_in_place(total, bits)


def pack(words: Words, bits: int) -> bytes:
    """Words, each below 2^bits, to a little-endian bit stream of ``bits`` bits each."""
    if is_native(bits):
        return words.astype(_NATIVE[bits], copy=False).tobytes()
    together, size = _group(bits)
    if size > 8:
        return _pack_bits(words, bits)
    groups = np.zeros(-(-len(words) // together), np.uint64)
    for place in range(together):
        column = words[place::together]
        groups[: len(column)] |= column.astype(np.uint64) << np.uint64(place * bits)
    raw = groups.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :size]
    return raw.tobytes()[: packed_bytes(len(words), bits)]


def unpack(data: bytes | memoryview, bits: int, coordinates: int) -> Words:
    """Inverse of :func:`pack`; a read-only view where the width allows. MalformedError for a wrong length."""
    if len(data) != packed_bytes(coordinates, bits):
        expected = packed_bytes(coordinates, bits)
        raise MalformedError(f"{coordinates} words of {bits} bits take {expected} bytes, got {len(data)}")
    if is_native(bits):
        return np.frombuffer(data, _NATIVE[bits])
    together, size = _group(bits)
    if size > 8:
        return _unpack_bits(data, bits, coordinates)
    count = -(-coordinates // together)
    raw = np.zeros((count, 8), np.uint8)
    whole = len(data) // size
    raw[:whole, :size] = np.frombuffer(data, np.uint8, whole * size).reshape(whole, size)
    if whole < count:
        raw[whole, : len(data) - whole * size] = np.frombuffer(data, np.uint8, offset=whole * size)
    groups = raw.view("<u8").reshape(-1)
    words = np.empty(count * together, word_dtype(bits))
    mask = np.uint64(2**bits - 1)
    for place in range(together):
        words[place::together] = (groups >> np.uint64(place * bits)) & mask
    if words[coordinates:].any():
        raise MalformedError(_PADDING)
    return words[:coordinates]


def _group(bits: int) -> tuple[int, int]:
    """Words and bytes of the smallest group of words that fills whole bytes."""
    whole = math.lcm(bits, 8)
    return whole // bits, whole // 8


def _pack_bits(words: Words, bits: int) -> bytes:
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), words.itemsize)
    stream = np.unpackbits(raw, axis=1, bitorder="little")[:, :bits]
    return np.packbits(stream.reshape(-1), bitorder="little").tobytes()


def _unpack_bits(data: bytes | memoryview, bits: int, coordinates: int) -> Words:
    dtype = word_dtype(bits)
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stream[coordinates * bits :].any():
        raise MalformedError(_PADDING)
    padded = np.zeros((coordinates, dtype.itemsize * 8), np.uint8)
    padded[:, :bits] = stream[: coordinates * bits].reshape(coordinates, bits)
    return np.packbits(padded, axis=1, bitorder="little").reshape(-1).view(dtype)


def signed(words: Words, bits: int) -> npt.NDArray[np.signedinteger[Any]]:
    """Two's complement reading, in the signed type of the words' width: ``v >= 2^(b-1)`` stands for ``v - 2^b``."""
    spare = 8 * words.itemsize - bits
    if not spare:
        return words.view(words.dtype.str.replace("u", "i"))
    top = (words << words.dtype.type(spare)).view(words.dtype.str.replace("u", "i"))
    values: npt.NDArray[np.signedinteger[Any]] = top >> top.dtype.type(spare)
    return values


def signed_floats(words: Words, bits: int) -> npt.NDArray[np.float64]:
    """The two's complement reading as float64, exact up to 53 bits."""
    return signed(words, bits).astype(np.float64)
