"""``fedddpm approve`` shows what the root signed, and agrees to exactly that."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.protocol.support.charters import chartered
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.state.charter_book import CharterBook, read_newest
from fedddpm.state.folder import StateFolder
from fedddpm_protocol.agreement.charter import sign_charter
from fedddpm_protocol.primitives.keys import SigningKey

CHARTER, _ = chartered()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = SigningKey.generate()
    with StateFolder(tmp_path / "state", root.public_key, "a") as state:
        CharterBook(state).write(sign_charter(CHARTER, root), CHARTER, approved=False)
    return tmp_path / "state"


def approve(folder: Path, *options: str, said: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["approve", "--state-dir", str(folder), *options], input=said)
    return result.exit_code, result.output


def approved(folder: Path) -> bool:
    known = read_newest(folder)
    assert known is not None
    return known.is_approved


def test_it_is_shown_and_a_no_is_a_no(folder: Path) -> None:
    code, shown = approve(folder, said="n\n")
    assert code == 1
    assert not approved(folder)
    for words in ("run-1, 3 rounds of FULL", "0.001 in every round", "L2 norm 2", "3 institutions"):
        assert words in shown


def test_a_yes_is_kept(folder: Path) -> None:
    assert approve(folder, said="y\n")[0] == 0
    assert approved(folder)
    assert "charter 1 is approved" in approve(folder)[1]


def test_a_script_names_the_number_that_somebody_read(folder: Path) -> None:
    code, shown = approve(folder, "--yes", "2")
    assert (code, approved(folder)) == (2, False)
    assert "the newest charter is number 1" in shown
    assert approve(folder, "--yes", "1")[0] == 0
    assert approved(folder)


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    code, shown = approve(tmp_path)
    assert code == 5
    assert "no state of an institution" in shown
