"""Image files written number by number: Pillow writes few of the kinds that scanners write."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
_TIFF_KINDS = {"u": 1, "i": 2, "f": 3}
SHORT, LONG, FLOAT, DOUBLE, SSHORT, SLONG = 3, 4, 11, 12, 8, 9
_LETTERS = {SHORT: "H", LONG: "I", FLOAT: "f", DOUBLE: "d", SSHORT: "h", SLONG: "i"}
Tags = Mapping[int, tuple[int, float]]  # by number: type and value


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(values: np.ndarray, *, significant: bytes = b"") -> bytes:
    """[H, W] or [H, W, C], uint8 or uint16; ``significant``: the bytes of an sBIT chunk."""
    height, width, channels = (*values.shape, 1)[:3]
    header = struct.pack(">2I5B", width, height, 8 * values.itemsize, _PNG_COLOURS[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    chunks = [(b"IHDR", header)] + ([(b"sBIT", significant)] if significant else [])
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def pgm(values: np.ndarray, white: int) -> bytes:
    """[H, W] or, as PPM, [H, W, 3] with values up to ``white``."""
    magic = "P6" if values.ndim == 3 else "P5"
    form = ">u2" if white > 255 else "u1"
    return f"{magic} {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.astype(form).tobytes()


def _twelve_bits(values: np.ndarray) -> bytes:
    """Two values in three bytes, the upper bits first; rows of an even width."""
    first, second = values.reshape(-1, 2).astype(np.uint16).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def tiff(
    values: np.ndarray, photometric: int | None = 1, *, bits: int = 0, order: str = "<", tags: Tags | None = None
) -> bytes:
    """[H, W] or [H, W, 3] of any number type in one strip, without compression. ``photometric`` 0: 0 is white."""
    height, width, samples = (*values.shape, 1)[:3]
    bits = bits or 8 * values.itemsize
    data = _twelve_bits(values) if bits == 12 else values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries: dict[int, tuple[int, list[float]]] = {
        256: (SHORT, [width]), 257: (SHORT, [height]), 258: (SHORT, [bits] * samples), 259: (SHORT, [1]),
        273: (LONG, [8]), 277: (SHORT, [samples]), 278: (SHORT, [height]), 279: (LONG, [len(data)]),
        339: (SHORT, [_TIFF_KINDS[values.dtype.kind]] * samples),
    }  # fmt: skip
    entries |= {} if photometric is None else {262: (SHORT, [photometric])}
    entries |= {number: (kind, [value]) for number, (kind, value) in (tags or {}).items()}
    data += b"\0" * (len(data) % 2)
    end = 8 + len(data) + 2 + 12 * len(entries) + 4
    directory, beyond = struct.pack(f"{order}H", len(entries)), b""
    for number, (kind, numbers) in sorted(entries.items()):
        form = f"{order}{len(numbers)}{_LETTERS[kind]}"
        field = struct.pack(form, *(int(v) if kind not in (FLOAT, DOUBLE) else v for v in numbers))
        if len(field) > 4:
            field, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + field
        directory += struct.pack(f"{order}HHI", number, kind, len(numbers)) + field.ljust(4, b"\0")
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return start + data + directory + bytes(4) + beyond
