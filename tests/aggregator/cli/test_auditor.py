"""The auditor's key, and the roster that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.aggregator.cli.test_command_line import PUBLIC, Shell

from fedddpm_aggregator.security.key_files import (
    AUDITOR_PURPOSE,
    ROOT_PURPOSE,
    KeyFileError,
    read_key,
    read_sealing_key,
)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shell = Shell(capsys, monkeypatch)
    shell("federation", "root-keygen", "--out", "root.key")
    members = [word for name in "abc" for word in ("--member", f"{name}={PUBLIC[name]}")]
    create = ("federation", "roster", "create", "roster.json", "--root", "root.key", "--federation", "north")
    shell(*create, "--server-key", PUBLIC["e"], *members)
    return shell


def keygen(shell: Shell, name: str) -> str:
    """ID=PUBHEX of a new auditor."""
    return re.findall(rf"{name}=[0-9a-f]{{64}}", shell("auditor", "keygen", "--out", f"{name}.key", "--auditor", name))[
        0
    ]


def test_a_roster_names_an_auditor_another_one_or_none(shell: Shell) -> None:
    change = ("roster.json", "--root", "root.key")
    first, second = keygen(shell, "notary"), keygen(shell, "other")
    assert "auditor notary" in shell("federation", "roster", "add", *change, "--auditor", first)
    assert "nothing would change" in shell.fails("federation", "roster", "add", *change, "--auditor", first)
    shell("federation", "roster", "add", *change, "--member", f"d={PUBLIC['d']}")
    assert "auditor notary" in shell(
        "federation", "roster", "show", "roster.json"
    )  # a new member changes nothing in it
    shown = shell("federation", "roster", "add", *change, "--auditor", second)
    assert "auditor other" in shown
    assert "notary" not in shown
    assert "not in the roster: notary" in shell.fails("federation", "roster", "remove", *change, "--auditor", "notary")
    assert "auditor" not in shell("federation", "roster", "remove", *change, "--auditor", "other")


@pytest.mark.parametrize("wrong", ["notary", "notary=12", "no tary=" + "11" * 32, "notary=" + "00" * 32])
def test_a_wrong_auditor_is_one_line(shell: Shell, wrong: str) -> None:
    add = ("federation", "roster", "add", "roster.json", "--root", "root.key", "--auditor", wrong)
    assert "--auditor" in shell.fails(*add)


def test_its_key_is_no_other_key_and_no_other_is_its(shell: Shell) -> None:
    keygen(shell, "notary")
    path = Path("notary.key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert Path("notary.pub").read_text().strip() == read_sealing_key(path).public_key.hex()
    with pytest.raises(KeyFileError, match="is the auditor's private key"):
        read_key(path, ROOT_PURPOSE)
    with pytest.raises(KeyFileError, match="expected is the auditor's private key"):
        read_sealing_key(Path("root.key"))
    path.write_text(path.read_text().replace("x25519_private", "ed25519_seed"))
    with pytest.raises(KeyFileError, match="is damaged"):
        read_sealing_key(path)
    assert "already" in shell.fails("auditor", "keygen", "--out", "notary.key", "--auditor", "notary")
    assert AUDITOR_PURPOSE in path.read_text()
