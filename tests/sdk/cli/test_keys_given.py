"""A key that was given in the wrong place, with whatever around it, is repeated by no command."""

import base64
import hashlib
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.errors import FedDDPMError
from fedddpm_protocol.untrusted.redaction import may_be_shown, named, quoted, shown

KEYS = st.integers(0, 2**64).map(lambda seed: hashlib.sha256(b"%d" % seed).digest())  # as a real one: random
PREFIXES = st.sampled_from(
    ["", "key=", "seed:", "keys/", "/etc/fedddpm/", "https://", "file://h/", "a b ", "K9", "0x", "--"]
)
SUFFIXES = st.sampled_from(["", ".key", "/", "/a.pub", "?x=1", " ", ":443", "\n", "=", "ff"])
GOOD = {
    "aggregator_url": "https://a.example",
    "identity": "no.key",
    "federation_root": "no.pub",
    "data": "no",
    "state_dir": "s",
}
OPTIONS = {
    "aggregator_url": "--aggregator-url",
    "identity": "--identity",
    "federation_root": "--root-key",
    "data": "--data",
    "state_dir": "--state-dir",
    "device": "--device",
    "member_id": "--member-id",
}


def forms(key):
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


given_key = st.tuples(KEYS, st.integers(0, 5), PREFIXES, SUFFIXES)
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])


def hides(output, key, written):
    for secret in (written, key.hex(), base64.b64encode(key).decode()):
        for start in range(0, len(secret) - 20):
            piece = secret[start : start + 20]
            if not piece.startswith("-") and "PRIVATE KEY" not in piece and len(set(piece)) > 3:
                assert piece.lower() not in output.lower(), output


def run(*arguments, env=None):
    return CliRunner().invoke(app, list(arguments), env=env)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("by_file", [False, True])
def test_participate_repeats_no_key(tmp_path, name, by_file):
    @FEW
    @given(given_key)
    def one(drawn):
        key, form, before, after = drawn
        written = forms(key)[form]
        text = before + written + after
        fields = {**GOOD, name: text}
        config = tmp_path / "site.toml"
        if by_file:
            literal = {key: value.replace("\n", "\\n") for key, value in fields.items()}
            config.write_text("".join(f'{key} = "{value}"\n' for key, value in literal.items()))
            done = run("participate", "--config", str(config))
        else:
            config.write_text("".join(f'{key} = "{value}"\n' for key, value in GOOD.items()))
            done = run("participate", "--config", str(config), f"{OPTIONS[name]}={text}")
        assert done.exit_code != 0
        assert "Traceback" not in done.output
        hides(done.output, key, written)

    one()


@pytest.mark.parametrize(
    "arguments",
    [
        ("{}",),
        ("participate", "{}"),
        ("participate", "--{}"),
        ("participate", "--rounds={}"),
        ("participate", "--config={}"),
        ("status", "--config={}"),
        ("status", "--state-dir={}"),
        ("keygen", "--id={}", "--out=x"),
        ("keygen", "--id=a", "--out=/nowhere/{}"),
        ("init-model", "--out={}/{}"),
        ("sample", "--model={}", "--out=x.png"),
        ("experiment", "{}"),
    ],
    ids=" ".join,
)
def test_no_command_repeats_a_key(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)

    @FEW
    @given(given_key)
    def one(drawn):
        key, form, before, after = drawn
        written = forms(key)[form]
        done = run(*(part.replace("{}", before + written + after) for part in arguments))
        assume(done.exit_code != 0)
        hides(done.output, key, written)

    one()


def test_the_content_of_the_settings_is_not_repeated(tmp_path):
    @FEW
    @given(
        given_key, st.sampled_from(['"{}" = 1', "{} = 1", "[{}]", "seed = '{}'", "[policy]\n'{}' = 2", "{}", "a = {}"])
    )
    def one(drawn, line):
        key, form, before, after = drawn
        written = forms(key)[form]
        config = tmp_path / "site.toml"
        config.write_text(line.replace("{}", before + written + after))
        done = run("status", "--config", str(config))
        assert done.exit_code == 2
        hides(done.output, key, written)

    one()


@FEW
@given(given_key)
def test_a_value_with_a_key_in_it_is_shown_by_its_kind(drawn):
    key, form, before, after = drawn
    written = forms(key)[form]
    text = before + written + after
    assert not may_be_shown(text)
    for said in (
        shown(text),
        quoted(text),
        named("the identity", text),
        str(FedDDPMError(f"{text} is wrong", f"Run: x {text}")),
    ):
        hides(said, key, written)
