"""The only place where bytes are framed.

``LP(x1..xm)`` is the concatenation of (u64 big-endian length, bytes). Everything hashed or signed carries a purpose
label under a prefix: that of this version of the protocol, or, for what outlives a version (:data:`LASTING`), that of
the first. A record has exactly one byte form: the LP of its fields in declaration order; decoding refuses missing,
unknown and trailing bytes, and re-encodes to prove that the form was the only one. Fields that came later stand at the
end, marked :func:`added_later`: while they and all behind them have their default they are left out, so that what was
signed before them keeps its bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import typing
from collections.abc import Callable, Sequence
from functools import cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedddpm_protocol.errors import MalformedError

PROTOCOL = "fedddpm/sa/2"
PREFIX = PROTOCOL.encode() + b"/"
LASTING_PREFIX = b"fedddpm/sa/1/"
# What the root signed, what models are called, what an institution bound a base model to, and streams under a seed mean
# the same in every version. A model that was spent under one version would otherwise be unspent under the next.
LASTING = frozenset(
    {
        *("architecture", "audit-entry", "dither", "initial-model", "model", "prg", "roster", "rotation"),
        *("redraw", "rounding", "shard", "study", "terms", "training", "update"),
    }
)
MAX_U64 = 2**64 - 1
MAX_INT = 2**63 - 1  # of a record's whole number

T = typing.TypeVar("T")


def u64(value: int) -> bytes:
    """Eight bytes, big-endian; ValueError outside [0, 2^64)."""
    if not 0 <= value <= MAX_U64:
        raise ValueError(f"{value} does not fit an unsigned 64-bit field")
    return value.to_bytes(8, "big")


def read_u64(data: bytes) -> int:
    """Inverse of :func:`u64`."""
    if len(data) != 8:
        raise MalformedError(f"a u64 field has {len(data)} bytes instead of 8")
    return int.from_bytes(data, "big")


def lp(*fields: bytes) -> bytes:
    """Length-prefixed concatenation: injective, so no two field lists share a form."""
    return b"".join(part for field in fields for part in (u64(len(field)), field))


def unlp(data: bytes, count: int | None = None) -> list[bytes]:
    """Split :func:`lp` bytes; MalformedError unless they are whole and hold ``count`` fields (any, when None)."""
    fields: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 8 > len(data):
            raise MalformedError("a length-prefixed list ends inside a length")
        end = offset + 8 + int.from_bytes(data[offset : offset + 8], "big")
        if end > len(data):
            raise MalformedError("a length-prefixed list ends inside a field")
        fields.append(data[offset + 8 : end])
        offset = end
    if count is not None and len(fields) != count:
        raise MalformedError(f"a length-prefixed list has {len(fields)} fields instead of {count}")
    return fields


def purpose(tag: str) -> bytes:
    """``prefix + tag``, the first field under every hash, key derivation and signature."""
    return (LASTING_PREFIX if tag in LASTING else PREFIX) + tag.encode()


def label(tag: str, *fields: bytes) -> bytes:
    """``LP(prefix + tag, fields..)``: the message under every hash, key derivation and signature."""
    return lp(purpose(tag), *fields)


def tagged_hash(tag: str, *fields: bytes | memoryview) -> bytes:
    """``H(tag, x..)`` = SHA-256 over the labelled fields, 32 bytes; a long field may be a memoryview of bytes."""
    digest = hashlib.sha256()
    for field in (purpose(tag), *fields):
        digest.update(u64(len(field)))
        digest.update(field)
    return digest.digest()


def kdf(key_material: bytes, salt: bytes, tag: str, *fields: bytes) -> bytes:
    """``KDF(ikm, salt, tag, x..)`` = HKDF-SHA256 with the labelled fields as info, 32 bytes (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=label(tag, *fields)).derive(key_material)


# --- records -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Codec:
    encode: Callable[[typing.Any], bytes]
    decode: Callable[[bytes], typing.Any]


def _decode_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("a text field is not UTF-8") from error


def _decode_bool(data: bytes) -> bool:
    if data not in (b"\x00", b"\x01"):
        raise MalformedError("a flag is neither 0 nor 1")
    return data == b"\x01"


def _decode_float(data: bytes) -> float:
    if len(data) != 8:
        raise MalformedError(f"a float64 field has {len(data)} bytes instead of 8")
    return float(struct.unpack(">d", data)[0])


def _encode_int(value: int) -> bytes:
    """Below 2^63, so that every database and every language can hold what was signed."""
    if value > MAX_INT:
        raise ValueError(f"{value} does not fit a signed 64-bit field")
    return u64(value)


def _decode_int(data: bytes) -> int:
    value = read_u64(data)
    if value > MAX_INT:
        raise MalformedError(f"a whole number is {value}, which is 2^63 or more")
    return value


_SCALARS: dict[type, _Codec] = {
    str: _Codec(str.encode, _decode_text),
    bytes: _Codec(bytes, bytes),
    bool: _Codec(lambda flag: b"\x01" if flag else b"\x00", _decode_bool),
    int: _Codec(_encode_int, _decode_int),
    float: _Codec(lambda value: struct.pack(">d", value), _decode_float),
}


def _sequence_codec(item: _Codec) -> _Codec:
    def encode_items(values: Sequence[typing.Any]) -> bytes:
        return lp(*(item.encode(value) for value in values))

    def decode_items(data: bytes) -> tuple[typing.Any, ...]:
        return tuple(item.decode(field) for field in unlp(data))

    return _Codec(encode_items, decode_items)


@cache
def _codec_of(kind: typing.Any) -> _Codec:
    if kind in _SCALARS:
        return _SCALARS[kind]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _Codec(encode, lambda data: _decode_record(kind, data))
    if typing.get_origin(kind) is tuple:
        item, rest = typing.get_args(kind)
        if rest is Ellipsis:
            return _sequence_codec(_codec_of(item))
    raise TypeError(f"{kind!r} has no canonical form; use str, bytes, bool, int, float, tuple[X, ...] or a record")


_LATER = "fedddpm_added_later"


def added_later(default: T) -> T:
    """The default of a record's field that older byte forms do not have; only fields of this kind may follow it."""
    field: T = dataclasses.field(default=default, metadata={_LATER: True})
    return field


@cache
def _fields_of(record: typing.Any) -> tuple[tuple[str, _Codec], ...]:
    hints = typing.get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    return tuple((name, _codec_of(hints[name])) for name in names)


@cache
def _always(record: typing.Any) -> int:
    """How many fields every byte form of a record has."""
    return sum(_LATER not in field.metadata for field in dataclasses.fields(record))


def _written(record: typing.Any) -> int:
    """How many fields the byte form of this record has."""
    fields = dataclasses.fields(record)
    count = len(fields)
    while count > _always(record.__class__) and getattr(record, fields[count - 1].name) == fields[count - 1].default:
        count -= 1
    return count


def encode(record: typing.Any) -> bytes:
    """The one byte form of a frozen dataclass: LP of its fields in declaration order."""
    fields = _fields_of(record.__class__)[: _written(record)]
    return lp(*(codec.encode(getattr(record, name)) for name, codec in fields))


def _decode_record(record: type, data: bytes) -> typing.Any:
    fields, values = _fields_of(record), unlp(data)
    if not _always(record) <= len(values) <= len(fields):
        raise MalformedError(f"a length-prefixed list has {len(values)} fields instead of {len(fields)}")
    decoded = {name: codec.decode(value) for (name, codec), value in zip(fields, values, strict=False)}
    try:
        return record(**decoded)
    except ValueError as error:
        raise MalformedError(f"a {record.__name__} is not valid: {error}") from error


def decode(record: type[T], data: bytes) -> T:
    """Inverse of :func:`encode`; MalformedError unless ``data`` is exactly the canonical form of a valid record."""
    decoded: T = _decode_record(record, data)
    if encode(decoded) != data:
        raise MalformedError(f"a {record.__name__} is not in its canonical form")
    return decoded
