"""Canonical bytes: one form for each record, no two records with the same form, everything else refused."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.support.specs import make_result, make_spec

from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import (
    MAX_INT,
    MAX_U64,
    decode,
    encode,
    kdf,
    label,
    lp,
    read_u64,
    tagged_hash,
    u64,
    unlp,
)
from fedddpm_protocol.wire.messages import JoinBody, RevealedShare, UnmaskBody

FIELDS = st.lists(st.binary(max_size=20), max_size=6)


@dataclass(frozen=True)
class Leaf:
    name: str
    flag: bool


@dataclass(frozen=True)
class Record:
    text: str
    raw: bytes
    number: int
    ratio: float
    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
RECORDS = st.builds(
    Record,
    text=TEXT,
    raw=st.binary(max_size=12),
    number=st.integers(0, MAX_INT),
    ratio=st.floats(allow_nan=False),
    names=st.lists(TEXT, max_size=4).map(tuple),
    leaves=st.lists(st.builds(Leaf, TEXT, st.booleans()), max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(FIELDS, FIELDS)
def test_length_prefixes_are_injective(one: list[bytes], other: list[bytes]) -> None:
    assert unlp(lp(*one)) == one
    assert (lp(*one) == lp(*other)) == (one == other)
    assert (tagged_hash("spec", *one) == tagged_hash("spec", *other)) == (one == other)


@settings(max_examples=150, deadline=None)
@given(RECORDS, RECORDS)
def test_records_round_trip_and_are_injective(one: Record, other: Record) -> None:
    assert decode(Record, encode(one)) == one
    assert (encode(one) == encode(other)) == (repr(one) == repr(other))  # repr: 0.0 and -0.0 are different forms


@settings(max_examples=150, deadline=None)
@given(RECORDS, st.data())
def test_no_other_bytes_decode_to_a_record(record: Record, data: st.DataObject) -> None:
    """Cut, extended or changed bytes are refused or stand for another record."""
    raw = encode(record)
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + data.draw(st.binary(min_size=1, max_size=17))):
        with pytest.raises(MalformedError):
            decode(Record, wrong)
    changed = bytearray(raw)
    changed[cut] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(Record, bytes(changed))
    except MalformedError:
        return
    assert encode(other) == bytes(changed) != raw


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([Record, JoinBody, RoundSpec, RoundResult, Architecture]))
def test_noise_is_refused_with_one_error(noise: bytes, record: type) -> None:
    with pytest.raises(MalformedError):
        decode(record, noise)
    with pytest.raises(MalformedError):
        UnmaskBody.decode(noise)


def test_specs_and_results_have_one_form() -> None:
    spec = make_spec()
    assert decode(RoundSpec, encode(spec)) == spec
    result = make_result(spec)
    assert decode(RoundResult, encode(result)) == result
    fields = unlp(encode(spec))
    assert len(
        {tagged_hash("spec", lp(*fields[:k], fields[k] + b"\0", *fields[k + 1 :])) for k in range(len(fields))}
    ) == len(fields)
    older = decode(RoundSpec, lp(*fields[:-1]))  # without the hash of its terms, which came later
    assert older.terms_hash == b""
    assert older.with_terms_hash() == spec
    most = len(dataclasses.fields(RoundSpec))
    for count in (len(fields) - 2, most + 1):
        with pytest.raises(MalformedError, match="fields instead of"):
            decode(RoundSpec, lp(*[*fields, *[b""] * most][:count]))


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 7,
        u64(1),
        u64(2) + b"x",
        u64(2**63) + b"x",
        u64(MAX_U64),
        lp(b"x") + b"\0",
        lp(b"x", b"y")[:-1],
    ],
)
def test_framing_that_does_not_add_up(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        unlp(raw)


def test_integers() -> None:
    assert [u64(value) for value in (0, 1, MAX_U64)] == [bytes(8), bytes(7) + b"\1", b"\xff" * 8]
    for value in (-1, 2**64):
        with pytest.raises(ValueError):
            u64(value)
    for raw in (b"", bytes(7), bytes(9)):
        with pytest.raises(MalformedError):
            read_u64(raw)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, b"\xff\xfe"),  # not UTF-8
        (2, bytes(7)),
        (2, bytes(9)),
        (3, bytes(7)),
        (3, struct.pack("<f", 1.0)),
        (4, b"x"),
        (5, lp(lp(b"n", b"\2"))),  # a flag that is neither 0 nor 1
        (5, lp(lp(b"n", b""))),
        (5, lp(lp(b"n", b"\1", b""))),
        (5, lp(b"n", b"\1")),
    ],
)
def test_fields_of_the_wrong_form(index: int, value: bytes) -> None:
    fields = unlp(encode(Record("t", b"r", 1, 0.5, ("a",), (Leaf("n", True),))))
    fields[index] = value
    with pytest.raises(MalformedError):
        decode(Record, lp(*fields))


def test_types_without_a_canonical_form_are_a_mistake_of_the_programmer() -> None:
    @dataclass(frozen=True)
    class Loose:
        anything: dict[str, int]

    with pytest.raises(TypeError, match="no canonical form"):
        encode(Loose({}))


def test_labels_separate_purposes() -> None:
    assert label("join", b"x") == lp(b"fedddpm/sa/2/join", b"x")
    assert len({tagged_hash(tag, b"x") for tag in ("spec", "session", "u2", "u3", "join", "")}) == 6
    keys = [
        kdf(b"k", b"s", "chan", b"a", b"b"),
        kdf(b"k", b"s", "chan", b"b", b"a"),
        kdf(b"k", b"s", "chan", b"ab", b""),
    ]
    assert len({*keys, kdf(b"k", b"s", "mask", b"a", b"b"), kdf(b"k", b"t", "chan", b"a", b"b")}) == 5


# --- the UNMASK body, which is a list of its own ---------------------------------------------------------------------

SHARES = {
    "b": RevealedShare("self_mask", bytes(32), bytes(32)),
    "a": RevealedShare("mask_sk", b"\1" * 32, b"\2" * 32),
}
GOOD = UnmaskBody(bytes(32), bytes(32), SHARES)


def test_unmask_bodies_are_sorted() -> None:
    fields = unlp(GOOD.encode())
    assert [fields[2], fields[6]] == [b"a", b"b"]
    assert UnmaskBody.decode(GOOD.encode()) == GOOD


def unmask_fields(change: Any) -> bytes:
    fields = unlp(GOOD.encode())
    change(fields)
    return lp(*fields)


BAD_UNMASKS = {
    "short-sid": lambda f: f.__setitem__(0, bytes(31)),
    "long-hu3": lambda f: f.__setitem__(1, bytes(33)),
    "kind": lambda f: f.__setitem__(3, b"both"),
    "short-share": lambda f: f.__setitem__(4, bytes(31)),
    "long-share": lambda f: f.__setitem__(4, bytes(33)),
    "short-nonce": lambda f: f.__setitem__(5, bytes(31)),
    "unsorted": lambda f: f.__setitem__(slice(2, 10), [*f[6:10], *f[2:6]]),
    "twice": lambda f: f.extend(f[2:6]),
    "not-ascii": lambda f: f.__setitem__(2, b"\xc3\xa4"),
    "missing": lambda f: f.pop(),
    "trailing": lambda f: f.append(b""),
    "header-only": lambda f: f.__delitem__(slice(1, None)),
}


@pytest.mark.parametrize("change", BAD_UNMASKS.values(), ids=BAD_UNMASKS)
def test_unmask_bodies_of_another_form(change: Any) -> None:
    with pytest.raises(MalformedError):
        UnmaskBody.decode(unmask_fields(change))


def test_unmask_body_with_trailing_or_missing_bytes() -> None:
    for raw in (GOOD.encode() + b"\0", GOOD.encode()[:-1], b""):
        with pytest.raises(MalformedError):
            UnmaskBody.decode(raw)


def test_the_protocol_names_its_version() -> None:
    assert canonical.PREFIX == b"fedddpm/sa/2/"


def test_what_outlives_a_version_keeps_the_label_of_the_first() -> None:
    """A roster that is signed stays so, and a model that is spent is not unspent under another name."""
    kept = {tag for tag in ("roster", "model", "terms", "update", "prg", "join", "deal", "spec", "result", "chan")
            if label(tag) == lp(b"fedddpm/sa/1/" + tag.encode())}  # fmt: skip
    assert kept == {"roster", "model", "terms", "update", "prg"}


@pytest.mark.parametrize("number", [MAX_INT + 1, MAX_U64])
def test_whole_numbers_of_records_fit_every_database(number: int) -> None:
    fields = [b"", b"", u64(MAX_INT), struct.pack(">d", 0.0), b"", b""]
    assert decode(Record, lp(*fields)).number == MAX_INT
    fields[2] = u64(number)
    with pytest.raises(MalformedError, match="2\\^63"):
        decode(Record, lp(*fields))
    with pytest.raises(ValueError, match="64-bit"):
        encode(Record("", b"", number, 0.0, (), ()))
