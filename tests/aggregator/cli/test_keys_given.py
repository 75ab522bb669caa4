"""A key that was given in the wrong place, with whatever around it, is repeated by no command of the aggregator."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import sys
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedddpm_aggregator.cli import app

KEYS = st.integers(0, 2**64).map(lambda seed: hashlib.sha256(b"%d" % seed).digest())
PREFIXES = st.sampled_from(
    ["", "key=", "seed:", "keys/", "/etc/fedddpm/", "https://", "postgresql://u@h/", "a b ", "K9"]
)
SUFFIXES = st.sampled_from(["", ".key", "/", "/a.pub", "?x=1", " ", ":443", "\n", "ff"])
FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
GIVEN = st.tuples(KEYS, st.integers(0, 5), PREFIXES, SUFFIXES)


def forms(key: bytes) -> list[str]:
    standard = base64.b64encode(key).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{standard}\n-----END PRIVATE KEY-----"
    return [
        key.hex(),
        key.hex().upper(),
        standard,
        base64.urlsafe_b64encode(key).decode(),
        quote(standard, safe=""),
        pem,
    ]


def run(*arguments: str, variables: dict[str, str] | None = None) -> tuple[int, str]:
    """The command in this process: its status, and all that it writes."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        patch.object(sys, "argv", ["fedddpm-aggregator", *arguments]),
        patch.dict(os.environ, variables or {}),
    ):
        try:
            app.main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def hides(output: str, key: bytes, written: str) -> None:
    for secret in (written, key.hex(), base64.b64encode(key).decode()):
        for start in range(len(secret) - 20):
            piece = secret[start : start + 20]
            if "-----" not in piece and "PRIVATE KEY" not in piece:
                assert piece.lower() not in output.lower(), output


@pytest.mark.parametrize(
    "arguments",
    [
        ("{}",),
        ("--{}",),
        ("init", "--data={data}", "--root-key={}"),
        ("init", "--data={file}/{}"),
        ("rounds", "--data={}"),
        ("serve", "--data={data}", "--port={}"),
        ("serve", "--data={data}", "--tls-cert={}", "--tls-key={}"),
        ("serve", "--data={data}", "--page={}"),
        ("audit", "--data={data}", "--noted={}"),
        ("federation", "{}"),
        ("federation", "install", "{}", "--data={data}"),
        ("federation", "roster", "show", "{}"),
        ("federation", "roster", "add", "x", "--root={}", "--member={}"),
        ("federation", "root-keygen", "--out={file}/{}"),
        ("operator", "rounds", "--url={}", "--key=x"),
        ("operator", "rounds", "--url=http://127.0.0.1:1", "--key={}"),
        ("operator", "install-roster", "{}", "--url=x", "--key=y"),
        ("healthcheck", "--url={}"),
        ("verify", "--data={data}", "--root-key={}"),
    ],
    ids=" ".join,
)
def test_no_command_repeats_a_key(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    places = {"{data}": str(tmp_path / "data"), "{file}": str(tmp_path / "file")}

    @FEW
    @given(GIVEN)
    def one(drawn: tuple[bytes, int, str, str]) -> None:
        key, form, before, after = drawn
        written = forms(key)[form]
        filled = list(arguments)
        for name, value in ({"{}": before + written + after} | places).items():
            filled = [part.replace(name, value) for part in filled]
        _, output = run(*filled)
        assert "Traceback" not in output
        hides(output, key, written)

    one()


@pytest.mark.parametrize(
    "name",
    [
        *("SERVER_KEY", "ROOT_KEY", "DATABASE_URL", "BLOBS", "PAGE_PASSWORD_FILE", "TRUSTED_PROXIES", "METRICS_PORT"),
        *("TLS_CERT", "LOG_LEVEL", "RAY", "PORT"),
    ],
)
def test_no_variable_is_repeated(tmp_path: Path, name: str) -> None:
    @FEW
    @given(GIVEN)
    def one(drawn: tuple[bytes, int, str, str]) -> None:
        key, form, before, after = drawn
        written = forms(key)[form]
        variables = {f"FEDDDPM_AGGREGATOR_{name}": before + written + after}
        command = "serve" if name in ("TLS_CERT", "RAY", "PORT", "PAGE_PASSWORD_FILE") else "rounds"
        _, output = run(command, f"--data={tmp_path / 'data'}", variables=variables)
        assert "Traceback" not in output
        hides(output, key, written)

    one()
