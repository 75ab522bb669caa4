"""What a message repeats of a value that somebody gave: names and paths, and nothing that may be a secret."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedddpm_protocol.untrusted.redaction import may_be_shown, named, quoted, shown, shown_url

KEY = hashlib.sha256(b"a key").hexdigest()
PEM = f"-----BEGIN CERTIFICATE-----\n{KEY}\n-----END CERTIFICATE-----"


@pytest.mark.parametrize("text", ["keys/root.pub", "/srv/fedddpm/site a/server.key", "proxy", "10.0.0.0/40", ""])
def test_a_name_is_repeated(text: str) -> None:
    assert may_be_shown(text)
    assert (shown(text), quoted(text), named("the key", text)) == (text, repr(text), f"the key {text}")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"seed": "00"}', "the content of a private key file"),
        ("-----BEGIN PRIVATE KEY-----", "the content of a private key file"),
        ('{"id": "a"}', "the content of a JSON file"),
        (PEM, "the content of a PEM file"),
        ("-----END CERTIFICATE-----", "the content of a PEM file"),
        (KEY, "what may be the digits of a key"),
        (f"keys/{KEY}.key", "what may be the digits of a key"),
        ("a\nb", "a text of 3 characters"),
        ("a/" * 100, "a text of 200 characters"),
    ],
)
def test_what_may_be_a_secret_is_told_by_its_kind(text: str, kind: str) -> None:
    assert not may_be_shown(text)
    assert shown(text) == quoted(text) == f"{kind} (not shown)"
    assert named("the key", text) == f"the key, given as {kind} (not shown)"


def test_a_file_that_is_there_may_have_a_secret_as_its_name(tmp_path: Path) -> None:
    path = tmp_path / KEY
    path.touch()
    assert KEY[:10] not in shown(path) + quoted(path) + named("the key", path)


@pytest.mark.parametrize(
    ("url", "rest"),
    [
        ("https://host:443/x?y=1", "https://host:443/x?y=1"),
        ("https://us:hush@host:443/x", "https://host:443/x"),
        ("postgresql+psycopg://us:hu@sh@host/name", "postgresql+psycopg://host/name"),
        ("us:hush@host", "host"),
        ("us:hu//sh@host", "host"),  # no scheme, but a part of a password
        ("//us:hush@host", "host"),
    ],
)
def test_a_url_is_shown_without_user_and_password(url: str, rest: str) -> None:
    assert shown_url(url) == rest
