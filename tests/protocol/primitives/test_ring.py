"""Rings: packed words, masks added and taken away again, and lengths that must be exact."""

from __future__ import annotations

import numpy as np
import pytest

from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keystream import MaskStream

ODD_RINGS = (9, 11, 12, 17, 33)


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8, *ODD_RINGS, 16, 20, 24, 31, 32, 48, 63, 64])
def test_rings_pack_unpack_and_mask(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for count in (1, 7, 8, 24, 33):
        raw = np.frombuffer(generator.bytes(8 * count), "<u8")
        words = (raw & np.uint64(2**bits - 1)).astype(ring.word_dtype(bits))
        packed = ring.pack(words, bits)
        assert len(packed) == ring.packed_bytes(count, bits) == -(-count * bits // 8)
        np.testing.assert_array_equal(ring.unpack(packed, bits, count), words)
        stream = int.from_bytes(packed, "little")  # the definition: an LSB-first stream of b-bit words
        assert [stream >> bits * k & (2**bits - 1) for k in range(count)] == [int(word) for word in words]
        mask = MaskStream(b"\x05" * 32, "part", bits).words(0, count)
        masked = words.copy()
        ring.add_in_place(masked, mask, bits)
        assert [int(word) for word in masked] == [
            (int(word) + int(added)) % 2**bits for word, added in zip(words, mask, strict=True)
        ]
        ring.subtract_in_place(masked, mask, bits)
        np.testing.assert_array_equal(masked, words)
        half: int = 2 ** (bits - 1)
        signs = [int(word) - 2**bits if int(word) >= half else int(word) for word in words]
        assert [int(value) for value in ring.signed(words, bits)] == signs


@pytest.mark.parametrize("bits", [4, 6, 8, *ODD_RINGS, 20, 24, 32, 64])
def test_packed_vectors_have_one_length_and_zero_padding(bits: int) -> None:
    packed = ring.pack(ring.zeros(9, bits), bits)
    for wrong in (packed + b"\0", packed[:-1], b""):
        with pytest.raises(MalformedError):
            ring.unpack(wrong, bits, 9)
    if 9 * bits % 8:
        with pytest.raises(MalformedError, match="padding"):
            ring.unpack(packed[:-1] + b"\x80", bits, 9)


@pytest.mark.parametrize("bits", [3, 65, 0])
def test_rings_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError):
        ring.word_dtype(bits)
