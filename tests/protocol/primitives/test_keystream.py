"""Mask streams: one seed and segment give one stream, however it is read."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.canonical import label
from fedddpm_protocol.primitives.keystream import MaskStream, Scratch

SEED = bytes(range(32))


def by_definition(seed: bytes, segment: str, bits: int, count: int) -> list[int]:
    """The stream in one piece, as the protocol's text has it, with Python integers."""
    info = label("prg", segment.encode(), bytes([bits]))
    key = HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(seed)
    size = ring.packed_bytes(count, bits)
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(size))
    number = int.from_bytes(stream, "little")
    return [number >> bits * index & (2**bits - 1) for index in range(count)]


@pytest.mark.parametrize("bits", [8, 9, 12, 16, 17, 24, 32, 33, 48, 64])
def test_the_stream_is_the_definition(bits: int) -> None:
    words = MaskStream(SEED, "part", bits).words(0, 75)
    assert words.dtype == ring.word_dtype(bits)
    assert [int(word) for word in words] == by_definition(SEED, "part", bits, 75)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([8, 9, 12, 16, 17, 32, 33, 64]),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 7),
    st.integers(0, 2**40),
)
def test_any_split_gives_the_same_stream(bits: int, blocks: list[int], tail: int, far: int) -> None:
    """Chunks are multiples of 8 words, so that they start on a byte at any width; the last may be short."""
    stream = MaskStream(SEED, "part", bits)
    sizes = [8 * block for block in blocks] + ([tail] if tail else [])
    for start in (0, 8 * far):
        whole = stream.words(start, sum(sizes))
        at, pieces = start, []
        for size in sizes:
            pieces.append(stream.words(at, size))
            at += size
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_streams_differ_by_seed_segment_and_width() -> None:
    streams = {
        bytes(MaskStream(seed, segment, bits).words(0, 64).astype("<u8").tobytes())
        for seed in (SEED, bytes(32))
        for segment in ("part", "part.weights")
        for bits in (32, 33, 64)
    }
    assert len(streams) == 12


def test_a_read_from_within_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole byte"):
        MaskStream(SEED, "part", 9).words(3, 8)


def keystream(seed: bytes, segment: str, bits: int, size: int) -> bytes:
    info = label("prg", segment.encode(), bytes([bits]))
    key = HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(seed)
    return Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(size))


@pytest.mark.parametrize("bits", [4, 6, 8, 12, 16, 20, 24, 32])
def test_long_streams_are_those_of_counter_mode(bits: int) -> None:
    """From the start on most of the stream comes from GCM, elsewhere from CTR."""
    count = 2**19 + 8 * 77
    wanted = ring.unpack(keystream(SEED, "part", bits, ring.packed_bytes(count, bits)), bits, count)
    for chunk in (8 * 5001, 2**18, count):
        stream, other = MaskStream(SEED, "part", bits), MaskStream(SEED, "part", bits)
        total, scratch = wanted.copy(), Scratch()
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            np.testing.assert_array_equal(stream.words(start, size), wanted[start : start + size])
            other.combine(total[start : start + size], start, -1, scratch)
        assert not total.any()
        for start in (count - count % chunk if count % chunk else 0, 0):  # back to the start
            piece = np.zeros(min(chunk, count - start), wanted.dtype)
            other.combine(piece, start, 1, scratch)
            np.testing.assert_array_equal(piece, wanted[start : start + len(piece)])


def test_the_stream_goes_on_where_the_counter_of_gcm_would_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedddpm_protocol.primitives.keystream._GCM_LIMIT", 4096 + 48)
    stream = MaskStream(SEED, "part", 8)
    pieces = [stream.words(start, 1000) for start in range(0, 8000, 1000)]
    assert np.concatenate(pieces).tobytes() == keystream(SEED, "part", 8, 8000)
