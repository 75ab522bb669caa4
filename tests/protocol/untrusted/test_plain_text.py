"""Text from elsewhere: seen as it is, on one line, of a bounded length, and without keys."""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.untrusted.host_names import may_be_asked_as
from fedddpm_protocol.untrusted.json_reading import read_json, record_of
from fedddpm_protocol.untrusted.plain_text import (
    MOST_SHOWN,
    holds_key,
    message,
    plain,
    plain_lines,
    plain_values,
    without_keys,
)

ODD = st.text(st.characters(), max_size=300)  # surrogates and unassigned characters, too
KEYS = st.integers(0, 2**64).map(lambda seed: hashlib.sha256(b"%d" % seed).digest())  # as a real one: random
AROUND = st.text(st.sampled_from("key=:/ .-_&?'\"[]{}()seedK9aZ\t"), max_size=30)


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J",
        "a\nb",
        "a\rb",
        "\x9b31m",
        "\x7f",
        "\u202e",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\U000e0041",
        "\u3164",
        "\ud800",
    ],
)
def test_what_moves_a_terminal_or_is_not_seen_becomes_an_escape(text: str) -> None:
    shown = plain(f"before {text} after")
    assert shown.isprintable()
    assert text not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "\\" in shown


@given(ODD, st.integers(30, 400))
def test_plain_text_is_bounded_and_stays_as_it_is(text: str, most: int) -> None:
    shown = plain(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert plain(shown, most) == shown
    shown.encode()
    assert all(line.startswith("  | ") and line.isprintable() for line in plain_lines(text).split("\n"))


@pytest.mark.parametrize("text", ["", "all is well", "Größe, naïve, “quoted”", "東京", "a\\nb [bold]x[/bold]"])
def test_what_is_plain_already_is_not_touched(text: str) -> None:
    assert plain(text) == text == message(text)


def test_what_is_cut_is_said() -> None:
    shown = plain("x" * 10**7)
    assert len(shown) == MOST_SHOWN
    assert shown.endswith("x.. (10000000 characters)")
    assert plain("\x1b" * 300, 100).endswith("\\x1b.. (1200 characters)") or len(plain("\x1b" * 300, 100)) == 100


def test_values_for_json_are_plain_through_and_through() -> None:
    found = plain_values({"a\n": ["\x1b", ("\u202e", 1, None, 2.5, True)], "b": object()})
    assert all(text.isprintable() for text in json.loads(json.dumps(found)))
    assert isinstance(found, dict)
    assert found["a\\n"] == ["\\x1b", ["\\u202e", 1, None, 2.5, True]]


def forms(key: bytes) -> list[str]:
    standard, safe = base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{standard}\n-----END PRIVATE KEY-----"
    return [key.hex(), key.hex().upper(), standard, safe, quote(standard, safe=""), pem, pem.replace("\n", " ")]


@settings(max_examples=400, deadline=None)
@given(KEYS, AROUND, AROUND, st.integers(0, 6))
def test_no_text_with_a_key_in_it_repeats_the_key(key: bytes, before: str, after: str, form: int) -> None:
    written = forms(key)[form]
    text = f"{before}{written}{after}"
    assert holds_key(text)
    for shown in (without_keys(text), message(text), without_keys(quote(text)), message(f"'{text}' is no path")):
        assert written not in shown
        assert key.hex() not in shown.lower()
        for start in range(0, len(written) - 16, 4):
            assert written[start : start + 16] not in shown or written[start : start + 16].startswith("-----")


def test_base64_without_its_padding_is_recognised() -> None:
    """By how often its characters change their kind, which is a guess: two keys in 10,000 look like words."""
    missed = 0
    for key in (hashlib.sha256(b"%d" % number).digest() for number in range(5000)):
        for text in (base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()):
            for bare in (text.rstrip("="), f"--{text.rstrip('=')} is no option"):
                recognised = holds_key(bare)
                missed += not recognised
                assert not recognised or text[10:30] not in message(bare)
    assert missed <= 10, "of 20,000"


@pytest.mark.parametrize(
    "text",
    [
        "/home/hospital/federation/keys/institution-a/identity.key",
        "/var/pytest-of-root/pytest-0/test_the_thing_that_is_tested0/data/state",
        "C:/Users/Public/Documents/images 2024/train",
        "https://aggregator.example.org:8750/v1/roster",
        "postgresql://user@db.example.org:5432/federation",
        "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "1f9e 2b3c 4d5e 6f70",
    ],
)
def test_paths_and_addresses_are_shown(text: str) -> None:
    assert message(text) == text


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**6, "9" * 10**5, "", "nonsense", '"\ud800"', b"\xff", b"[1,", "[" * 300 + "]" * 300],
)
def test_json_from_elsewhere_is_read_or_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        read_json(text)


def test_a_record_from_json_has_the_fields_and_types_of_the_record() -> None:
    good = {"preset": "tiny", "image_size": 8, "channels": 1, "base_dim": 8, "multipliers": [1, 2]}
    assert record_of(Architecture, good) == Architecture("tiny", 8, 1, 8, (1, 2))
    for change in ({"extra": 1}, {"multipliers": ["x"]}, {"multipliers": 3}, {"base_dim": [[]]}, {"preset": "other"}):
        with pytest.raises(ValueError, match="no Architecture"):
            record_of(Architecture, {**good, **change})
    for fields in (None, [], "x", {}):
        with pytest.raises(ValueError, match="no Architecture"):
            record_of(Architecture, fields)


def test_hosts() -> None:
    assert may_be_asked_as(None)
    assert not may_be_asked_as("")
    assert not may_be_asked_as("[")
