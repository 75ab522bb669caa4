"""Grey values of every depth: mapped by what the file states, or refused with the numbers; and said at the start."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sdk.support.image_writers import DOUBLE, FLOAT, LONG, SHORT, SLONG, SSHORT, pgm, png, tiff

from fedddpm.data.deep_files import stored
from fedddpm.data.opening import ImageSet, open_images
from fedddpm.errors import DataError

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) ** 2  # black to white; a straight one has two equal bytes
EXPECTED = np.rint(255 * RAMP)


def up_to(white: float, kind: type = np.uint16, picture: np.ndarray = RAMP, black: float = 0) -> np.ndarray:
    """The picture in numbers from black to white."""
    values = black + picture * (white - black)
    return (values if kind is np.float32 else np.rint(values)).astype(kind)


def colours(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, 2)


def folder(place: Path, *files: bytes, suffix: str = "tif") -> Path:
    place.mkdir(exist_ok=True)
    for i, data in enumerate(files):
        (place / f"{i:03}.{suffix}").write_bytes(data)
    return place


def opened(place: Path, *files: bytes, suffix: str = "tif", channels: int = 1) -> ImageSet:
    return open_images(folder(place, *files, suffix=suffix), image_size=SIDE, channels=channels, cache=False)


LOW, HIGH = -(2**31), 2**31 - 1
FILES = {
    "8-bit.png": png(up_to(255, np.uint8)),
    "16-bit.png": png(up_to(65535)),
    "12 of 16 bits, as they were.png": png(up_to(4095), significant=b"\x0c"),
    "12 of 16 bits, spread.png": png(up_to(4095) << 4 | up_to(4095) >> 8, significant=b"\x0c"),
    "16-bit colour.png": png(colours(up_to(65535)), significant=b"\x10\x10\x10"),
    "8-bit.pgm": pgm(up_to(255), 255),
    "12-bit.pgm": pgm(up_to(4095), 4095),
    "16-bit.pgm": pgm(up_to(65535), 65535),
    "16-bit colour.ppm": pgm(colours(up_to(65535)), 65535),
    "8-bit.tif": tiff(up_to(255, np.uint8)),
    "8-bit, white is 0.tif": tiff(255 - up_to(255, np.uint8), 0),
    "8-bit that names what it uses.tif": tiff(up_to(255, np.uint8), tags={280: (SHORT, 9), 281: (SHORT, 99)}),
    "8-bit signed.tif": tiff(up_to(127, np.int8, black=-128)),
    "12-bit.tif": tiff(up_to(4095), bits=12),
    "16-bit.tif": tiff(up_to(65535)),
    "16-bit of a Mac.tif": tiff(up_to(65535), order=">"),
    "16-bit, white is 0.tif": tiff(65535 - up_to(65535), 0),
    "16-bit signed.tif": tiff(up_to(32767, np.int16, black=-32768)),
    "16-bit signed of a Mac.tif": tiff(up_to(32767, np.int16, black=-32768), order=">"),
    "16-bit with MaxSampleValue.tif": tiff(up_to(4095), tags={281: (SHORT, 4095)}),
    "16-bit with an offset.tif": tiff(up_to(32968, black=32568), tags={280: (SHORT, 32568), 281: (SHORT, 32968)}),
    "16-bit, white is 0, with SMaxSampleValue.tif": tiff(4095 - up_to(4095), 0, tags={341: (SHORT, 4095)}),
    "16-bit colour.tif": tiff(colours(up_to(65535)), 2),
    "CT.tif": tiff(up_to(3071, np.int16, black=-1024), tags={340: (SSHORT, -1024), 341: (SSHORT, 3071)}),
    "32-bit.tif": tiff(up_to(2**32 - 1, np.uint32)),
    "32-bit signed.tif": tiff(up_to(HIGH, np.int32, black=LOW)),
    "32-bit with SMaxSampleValue.tif": tiff(up_to(4095, np.uint32), tags={340: (LONG, 0), 341: (LONG, 4095)}),
    "32-bit signed CT.tif": tiff(up_to(200, np.int32, black=-100), tags={340: (SLONG, -100), 341: (SLONG, 200)}),
    "float.tif": tiff(up_to(1.5, np.float32, black=-0.5), tags={340: (FLOAT, -0.5), 341: (FLOAT, 1.5)}),
    "float of a Mac.tif": tiff(up_to(1, np.float32), order=">", tags={340: (DOUBLE, 0), 341: (DOUBLE, 1)}),
    "float, white is 0.tif": tiff(1 - up_to(1, np.float32), 0, tags={340: (FLOAT, 0), 341: (FLOAT, 1)}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_ramp_is_the_same_ramp_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    data = opened(tmp_path, FILES[name], suffix=name.rpartition(".")[2])
    assert np.abs(data.images[0, 0].numpy() - EXPECTED).max() <= 1
    plain = name.startswith("8-bit") and "signed" not in name
    assert data.scaling.endswith(" mapped to 0..255") != plain
    assert bool(data.scaling) != plain


def test_what_is_compressed_or_turned_is_mapped_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name, options in {
        "lzw.tif": {"compression": "tiff_lzw"},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
        "turned.tif": {"exif": exif},
    }.items():
        Image.fromarray(up_to(65535)).save(tmp_path / name, **options)  # type: ignore[arg-type]
    data = open_images(tmp_path, image_size=SIDE, channels=1)
    turned = EXPECTED[::-1, ::-1]
    for image, expected in zip(data.images[:, 0].numpy(), (EXPECTED, EXPECTED, turned), strict=True):
        assert np.abs(image - expected).max() <= 1
    black, white = (struct.pack("<HHII", 262, SHORT, 1, value) for value in (1, 0))
    lzw = (tmp_path / "lzw.tif").read_bytes()
    assert lzw.count(black) == 1
    data = opened(tmp_path / "white", lzw.replace(black, white))
    assert np.abs(data.images[0, 0].numpy() - (255 - EXPECTED)).max() <= 1


TWELVE = {281: (SHORT, 4095)}
REFUSED = {
    "12 bits in 16": (png(up_to(4095)), "png", r"16-bit, 0 to 65535 by their depth, but hold 0 to 4095: 6\.2 %"),
    "14 bits in 16": (tiff(up_to(16383)), "tif", "hold 0 to 16383: 25 % of the range"),
    "8 bits in 16": (tiff(up_to(255)), "tif", r"hold 0 to 255: 0\.39 %"),
    "8 bits in 16, white is 0": (tiff(up_to(255), 0), "tif", "16-bit min-is-white, 0 to 65535 .* 0 to 255"),
    "10 bits in 12": (tiff(up_to(1023), bits=12), "tif", "12-bit, 0 to 4095 by their depth, but hold 0 to 1023"),
    "12 bits of 65535": (pgm(up_to(4095), 65535), "pgm", "0 to 65535 by their depth, but hold 0 to 4095"),
    "8 of 12 bits": (png(up_to(255), significant=b"\x0c"), "png", "0 to 4095 by their sBIT, but hold 0 to 255"),
    "offset": (png(up_to(32968, black=32568)), "png", r"hold 32568 to 32968: 0\.61 %.*black = 32568 and white = 32968"),
    "CT": (tiff(up_to(3071, np.int16, black=-1024)), "tif", "-32768 to 32767 .* hold -1024 to 3071"),
    "signed without negatives": (tiff(up_to(32767, np.int16)), "tif", "hold no value below 0 .* 0 or -32768"),
    "signed bytes": (tiff(up_to(127, np.int8)), "tif", "8-bit signed, -128 to 127 .* hold no value below 0"),
    "32 bits": (tiff(up_to(4095, np.int32)), "tif", "32-bit signed, .* hold 0 to 4095"),
    "32 bits, masks": (tiff(up_to(255, np.uint32)), "tif", "32-bit, 0 to 4294967295 by their depth, but hold 0 to 255"),
    "beyond what is named": (tiff(up_to(9000), tags=TWELVE), "tif", "0 to 4095 by their Min.*hold 0 to 9000"),
    "part of what is named": (tiff(up_to(500), tags=TWELVE), "tif", "0 to 4095 by .*hold 0 to 500: 12 %"),
    "float": (tiff(up_to(1, np.float32)), "tif", "32-bit float, which says nothing .*, and hold 0 to 1"),
    "one end of a float": (tiff(up_to(1, np.float32), tags={341: (FLOAT, 1)}), "tif", "float, which says nothing"),
    "colour": (png(colours(up_to(4095))), "png", "16-bit colour, 0 to 65535 by their depth, but hold 0 to 38"),
    "colour TIFF": (tiff(colours(up_to(4095)), 2), "tif", "16-bit colour, 0 to 65535 by their depth"),
    "colour PPM": (pgm(colours(up_to(4095)), 65535), "ppm", "16-bit colour, 0 to 65535 by their depth"),
    "grey with alpha": (png(np.stack([up_to(4095), up_to(4095) * 0 + 65535], 2)), "png", "16-bit colour, 0 to 65535"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_its_stated_range_is_refused_with_the_numbers(tmp_path: Path, name: str) -> None:
    data, suffix, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as told:
        opened(tmp_path, *[data] * 5, suffix=suffix)
    assert f"5 of 5 files in {tmp_path} (000.{suffix}, 001.{suffix}, 002.{suffix}, ...) are " in str(told.value)
    assert "round(255 * (value - black) / (white - black))" in told.value.advice
    assert "PNG: sBIT, TIFF: tags 340 and 341" in told.value.advice
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("white", [16384 + 16, 20000, 65535])
def test_more_than_a_quarter_is_what_it_is(tmp_path: Path, white: int) -> None:
    assert abs(int(opened(tmp_path, tiff(up_to(white))).images.max()) - 255 * white / 65535) <= 1


def test_eight_bits_are_never_stretched_nor_refused(tmp_path: Path) -> None:
    data = opened(tmp_path, png(up_to(7, np.uint8), significant=b"\x03"), suffix="png")
    assert (int(data.images.max()), data.scaling) == (7, "")


def test_a_dark_picture_among_bright_ones_is_dark(tmp_path: Path) -> None:
    data = opened(tmp_path, tiff(up_to(4095)), *[tiff(up_to(65535))] * 4)
    assert [int(image.max()) for image in data.images] == [16, 255, 255, 255, 255]
    few = "16-bit files (5), 0 to 65535 by their depth mapped to 0..255 (1 of them use no more than a quarter of it)"
    assert data.scaling == few
    alone = [np.full((SIDE, SIDE), 65535 * i // 9, np.uint16) for i in range(10)]  # constant, and together the range
    assert opened(tmp_path / "levels", *(tiff(one) for one in alone)).images.amax((1, 2, 3)).tolist()[::9] == [0, 255]


def test_one_bright_file_does_not_vouch_for_dark_ones(tmp_path: Path) -> None:
    dead = up_to(4095)
    dead[3, 3] = 65535
    with pytest.raises(DataError, match=r"hold 0 to 65535 \(nine files in ten: 0 to 4095\): 6\.2 % of the range"):
        opened(tmp_path, tiff(dead), *[tiff(up_to(4095))] * 19)


def test_files_of_several_kinds_are_judged_each_with_its_kind(tmp_path: Path) -> None:
    data = opened(tmp_path, tiff(up_to(65535)), tiff(up_to(255, np.uint8)), tiff(up_to(4095), bits=12))
    assert np.abs(data.images[:, 0].numpy() - EXPECTED).max() <= 1
    assert data.scaling == (
        "16-bit files (1), 0 to 65535 by their depth mapped to 0..255; 12-bit files (1), 0 to 4095 by their depth"
        " mapped to 0..255; 1 of 8 bits or fewer as they are"
    )
    with pytest.raises(DataError, match=r"1 of 4 files in .*\(003\.tif\) are 32-bit float"):
        opened(tmp_path, *[tiff(up_to(255, np.uint8))] * 3, tiff(up_to(1, np.float32)))


def test_what_significant_bits_mean_is_decided_by_the_set(tmp_path: Path) -> None:
    bright = up_to(4095) << 4 | up_to(4095) >> 8  # spread over 16 bits, as the words of PNG want it
    dark = bright // 17  # alone it could be 12 bits as they were
    data = opened(tmp_path, *(png(one, significant=b"\x0c") for one in (dark, bright)), suffix="png")
    assert np.abs(data.images[0, 0].numpy() - EXPECTED / 17).max() <= 1
    assert np.abs(data.images[1, 0].numpy() - EXPECTED).max() <= 1
    for odd in (b"\0", b"\x10", b"\xff"):  # no bits, all bits, more than all
        assert opened(tmp_path / "odd", png(up_to(65535), significant=odd), suffix="png").images.max() == 255


def test_sample_values_that_differ_are_no_scale(tmp_path: Path) -> None:
    named = [tiff(up_to(white), tags={280: (SHORT, 0), 281: (SHORT, white)}) for white in (30000, 60000)]
    data = opened(tmp_path, *named)
    assert [round(int(image.max()) * 65535 / 255, -4) for image in data.images] == [30000, 60000]
    assert "0 to 65535 by their depth, as their Min- and MaxSampleValue differ" in data.scaling
    floats = [tiff(up_to(w, np.float32), tags={340: (FLOAT, 0), 341: (FLOAT, w)}) for w in (1, 2)]
    with pytest.raises(DataError, match=r"they name different Min- and MaxSampleValues \(0 to 1, 0 to 2, \.\.\.\)"):
        opened(tmp_path, *floats)
    for low, high in ((5, 5), (9, 5)):  # says nothing
        odd = tiff(up_to(65535), tags={280: (SHORT, low), 281: (SHORT, high)})
        assert opened(tmp_path / "odd", odd).images.max() == 255


def test_numbers_in_the_order_of_another_machine_are_put_in_order() -> None:
    swapped = Image.frombytes("I;16B", (SIDE, SIDE), up_to(65535).astype(">u2").tobytes())
    how = stored(swapped, Path())
    assert how is not None
    image, greys = how.unfold(swapped, None)
    assert np.abs(np.asarray(image) - EXPECTED).max() <= 1
    assert greys.held == (0, 65535)


def test_a_tiff_that_cannot_be_read_is_told_as_one(tmp_path: Path) -> None:
    cases = [
        (tiff(up_to(4095), 0, bits=12), r"BitsPerSample 12, SampleFormat 1, PhotometricInterpretation 0\)"),
        (tiff(up_to(255, np.uint8), None), "lacks the tag that says whether its smallest value is black or white"),
        (tiff(up_to(65535), None), "lacks the tag that says whether"),
        (tiff(up_to(1, np.float32) + np.float32(np.inf)), "holds values that are no numbers"),
        (b"II*\0", "not an image"),
    ]  # fmt: skip
    for data, message in cases:
        with pytest.raises(DataError, match=f"1 of 1 images in .*{message}"):
            opened(tmp_path, data)


def arrays(place: Path, images: np.ndarray) -> ImageSet:
    np.savez(place / "x.npz", images=images)
    return open_images(place / "x.npz")


@pytest.mark.parametrize(
    "images",
    [up_to(255, np.uint8), up_to(65535), up_to(65535).astype(">u2"), up_to(32767, np.int16, black=-32768),
     up_to(127, np.int8, black=-128), up_to(HIGH, np.int32, black=LOW), up_to(2**32 - 1, np.uint32)],
    ids=lambda images: images.dtype.str,
)  # fmt: skip
def test_arrays_that_use_the_range_of_their_type_are_mapped(tmp_path: Path, images: np.ndarray) -> None:
    data = arrays(tmp_path, np.stack([images] * 3))
    assert np.abs(data.images[:, 0].numpy() - EXPECTED).max() <= 1
    assert data.scaling == ("" if images.dtype == np.uint8 else data.scaling)
    assert (" mapped to 0..255" in data.scaling) == (images.dtype != np.uint8)


def test_truth_values_are_black_and_white(tmp_path: Path) -> None:
    data = arrays(tmp_path, np.stack([RAMP > 0.5] * 2))
    assert (data.images.unique().tolist(), data.scaling) == ([0, 255], "truth values mapped to 0 and 255")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (up_to(4095), r"3 of 3 images in .* \(0, 1, 2\) are uint16, 0 to 65535 by their depth, but hold 0 to 4095"),
        (up_to(3071, np.int16, black=-1024), "int16, -32768 to 32767 .* hold -1024 to 3071"),
        (up_to(32767, np.int16), "int16, .*hold no value below 0"),
        (up_to(255, np.int32), "int32, .* hold 0 to 255"),
        (up_to(255, np.int64), "int64, .* hold 0 to 255"),
        (up_to(1, np.float32), "float32, which says nothing of black and white, and hold 0 to 1"),
        (up_to(1, np.float32) * 2 - 1, "float32, .* hold -1 to 1"),
        (RAMP * 255, "float64, which says nothing"),
        (RAMP * np.nan, "float64 and hold values that are no numbers"),
        (RAMP + 1j, "are complex128"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_are_refused(tmp_path: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as told:
        arrays(tmp_path, np.stack([images] * 3))
    assert "uint8" in told.value.advice
    assert len(str(told.value)) < 600
