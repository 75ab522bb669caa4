"""A second implementation of the session, from docs/protocol.md alone: bytes, hashes, field and ring.

It shares no code with the package, and is plain on purpose: whole numbers, lists and loops. Only X25519, Ed25519, AES
and HKDF come from a library.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

VERSION = b"fedddpm/sa/2/"
LASTING = b"fedddpm/sa/1/"  # of the tags whose meaning outlives a version; a session needs one of them


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def framed(*fields: bytes) -> bytes:
    out = b""
    for field in fields:
        out += u64(len(field)) + field
    return out


def unframed(data: bytes) -> list[bytes]:
    fields = []
    while data:
        size = int.from_bytes(data[:8], "big")
        if len(data) < 8 + size:
            raise ValueError("a field is cut off")
        fields.append(data[8 : 8 + size])
        data = data[8 + size :]
    return fields


def labelled(tag: str, *fields: bytes) -> bytes:
    return framed((LASTING if tag == "prg" else VERSION) + tag.encode(), *fields)


def hashed(tag: str, *fields: bytes) -> bytes:
    return hashlib.sha256(labelled(tag, *fields)).digest()


def derived(secret: bytes, salt: bytes, tag: str, *fields: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, labelled(tag, *fields)).derive(secret)


def signed(identity: bytes, tag: str, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(identity).sign(labelled(tag, message))


def public_identity(identity: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(identity).public_key().public_bytes_raw()


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


# --- GF(2^8) with x^8 + x^4 + x^3 + x + 1 ----------------------------------------------------------------------------


def times(left: int, right: int) -> int:
    product = 0
    while right:
        if right & 1:
            product ^= left
        left <<= 1
        if left & 0x100:
            left ^= 0x11B
        right >>= 1
    return product


def inverse(value: int) -> int:
    return next(other for other in range(1, 256) if times(value, other) == 1)


def share_at(point: int, secret: bytes, coefficients: list[bytes]) -> bytes:
    """The polynomial ``secret + coefficients[0] x + coefficients[1] x^2 ...`` at ``point``, byte by byte."""
    share, power = list(secret), 1
    for coefficient in coefficients:
        power = times(power, point)
        share = [byte ^ times(power, c) for byte, c in zip(share, coefficient, strict=True)]
    return bytes(share)


def secret_of(shares: dict[int, bytes]) -> bytes:
    """Lagrange's interpolation at 0."""
    total = [0] * 32
    for point, share in shares.items():
        weight = 1
        for other in shares:
            if other != point:
                weight = times(weight, times(other, inverse(other ^ point)))
        total = [byte ^ times(weight, s) for byte, s in zip(total, share, strict=True)]
    return bytes(total)


# --- rings of b bits, packed little-endian ---------------------------------------------------------------------------


def packed(words: list[int], bits: int) -> bytes:
    stream = sum(word << (place * bits) for place, word in enumerate(words))
    return stream.to_bytes((len(words) * bits + 7) // 8, "little")


def unpacked(data: bytes, bits: int, count: int) -> list[int]:
    stream = int.from_bytes(data, "little")
    return [stream >> (place * bits) & (2**bits - 1) for place in range(count)]


def mask_words(seed: bytes, segment: str, bits: int, count: int) -> list[int]:
    """The first ``count`` words of the stream that ``seed`` gives to a segment."""
    key = HKDFExpand(SHA256(), 32, labelled("prg", segment.encode(), bytes([bits]))).derive(seed)
    size = (count * bits + 7) // 8
    return unpacked(Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(size)), bits, count)
