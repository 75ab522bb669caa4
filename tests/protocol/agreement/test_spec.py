"""Specifications that cannot work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.protocol.support.sessions import SERVER, make_roster
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.documents import open_result, open_spec
from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.spec import (
    LOSS_LIMIT,
    LOSS_UNITS,
    PartSpec,
    SegmentSpec,
    part_spec,
)
from fedddpm_protocol.encoding.encoder import (
    Place,
)
from fedddpm_protocol.errors import EncodingError, OtherVersionError
from fedddpm_protocol.primitives.canonical import lp
from fedddpm_protocol.wire.messages import SignedDocument


def test_unknown_encodings_and_rings_are_refused() -> None:
    manifest = (TensorSpec("w", (4096,)),)
    for bits in (2, 5, 7, 10, 33, 64):
        with pytest.raises(ValueError):
            part_spec("full", manifest, bits)
    with pytest.raises(ValueError, match="unknown encoding"):
        SegmentSpec("full", 8, 4096, "sparse")
    with pytest.raises(ValueError, match="too wide"):
        SegmentSpec("full", 32, 4096, "rotated", 4096)
    for block in (0, 4, 100, 2**17):
        with pytest.raises(ValueError):
            SegmentSpec("full", 8, 8192, "rotated", block)
    with pytest.raises(ValueError, match="whole blocks"):
        SegmentSpec("full", 8, 4097, "rotated", 4096)
    with pytest.raises(ValueError, match="no blocks"):
        SegmentSpec("full", 32, 4096, "fixed-point", 4096)
    good = part_spec("full", manifest, 8)
    with pytest.raises(ValueError, match="differ in size"):
        PartSpec("full", manifest, (replace(good.values, coordinates=8192), good.weights))


def test_a_ring_that_cannot_hold_the_weights_is_refused() -> None:
    spec = make_spec(bits=8, coordinates=4096, largest_cohort=128)
    narrow = replace(spec.parts[0].weights, bits=32)
    assert 128 * int(LOSS_LIMIT) * LOSS_UNITS < 2**narrow.bits
    with pytest.raises(ValueError, match="weights"):
        replace(spec.parts[0], segments=(spec.parts[0].values, replace(narrow, bits=24)))
    fixed = replace(spec.parts[0], segments=(SegmentSpec("full", 8, 4096, "fixed-point"), narrow))
    with pytest.raises(ValueError, match="room"):
        replace(spec, parts=(fixed,))


def test_chunks_that_split_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        replace(make_spec(bits=8, coordinates=8192), chunk_coordinates=2048)
    assert make_spec(bits=8, coordinates=8192, chunk_coordinates=2048).parts[0].values.block == 2048


@pytest.mark.parametrize("seed", [b"", b"\x01" * 31, b"\x01" * 33])
def test_seeds_have_32_bytes(seed: bytes) -> None:
    with pytest.raises(ValueError):
        make_spec(encoding_seed=seed)
    if seed:
        with pytest.raises(ValueError):
            make_spec(initial_seed=seed)


def test_a_place_is_that_in_the_cohort() -> None:
    assert Place.of("b", ("a", "b", "c")) == Place(1, 3)
    assert Place.of("b", ("a", "b", "c"), 1).hiding == 2
    assert Place(0, 2, 5).hiding == 1
    with pytest.raises(EncodingError):
        Place.of("x", ("a", "b"))


def test_another_version_of_the_protocol_is_refused_in_one_line() -> None:
    """Not as a wrong signature: whoever reads it has to know that one side is to be updated."""
    roster = make_roster(3)
    old = lp(b"fedddpm/sa/1", b"whatever it was")
    for opened, tag in ((open_spec, "spec"), (open_result, "result")):
        document = SignedDocument(body=old, signature=SERVER.sign(tag, old))
        with pytest.raises(OtherVersionError, match=r"is of fedddpm/sa/1, and this release speaks fedddpm/sa/2"):
            opened(document, roster)
