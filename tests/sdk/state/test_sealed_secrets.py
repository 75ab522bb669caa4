"""What opens an update to the auditor is kept until the round has its result, and read without the folder's lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedddpm.errors import StateError
from fedddpm.state.confirmed_sums import CONFIRMED, ConfirmedSums
from fedddpm.state.folder import StateFolder
from fedddpm.state.sealed_secrets import SealedSecrets, SealedSecretsBook, held_sums
from fedddpm.state.secret import training_seed
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum

ROOT = b"\x11" * 32
SEALED = SealedSecrets(b"\x01" * 32, b"\x02" * 112, b"\x03" * 32)


@pytest.fixture
def state(tmp_path: Path):  # type: ignore[no-untyped-def]
    with StateFolder(tmp_path, ROOT, "hospital-a") as folder:
        document = SignedDocument(body=b"1", signature=bytes(64))
        folder.accept_roster(1, b"\x05" * 32, document)
        folder.bind_member()
        training_seed(folder)
        yield folder


def confirmed(state: StateFolder, session: str) -> None:
    document = SignedDocument(body=b"1", signature=bytes(64))
    empty: dict[str, tuple[()]] = {"joins": (), "deals": (), "survivors": (), "confirmations": ()}
    ConfirmedSums(state).keep(ConfirmedSum(roster=document, spec=document, session=session, **empty))


def holding(folder: Path, sealed: SealedSecrets) -> list[str]:
    """The files that hold sealed secrets."""
    return [
        path.name for path in folder.iterdir() if path.is_file() and sealed.secrets.hex().encode() in path.read_bytes()
    ]


def test_each_session_has_the_newest_until_the_round_is_over(state: StateFolder) -> None:
    book = SealedSecretsBook(state)
    assert held_sums(state.path, ROOT) == []
    for session in ("decoder", "bottleneck"):
        confirmed(state, session)
        book.keep(session, SEALED)
    held = held_sums(state.path, ROOT)
    assert [(one.confirmed.session, one.sealed) for one in held] == [("bottleneck", SEALED), ("decoder", SEALED)]
    assert {one.member for one in held} == {"hospital-a"}
    newer = SealedSecrets(b"\x04" * 32, b"\x05" * 112, b"\x06" * 32)
    book.keep("decoder", newer)  # of another attempt: nothing of the one before is left
    assert [(one.confirmed.session, one.sealed) for one in held_sums(state.path, ROOT)] == [("decoder", newer)]
    assert holding(state.path, newer)
    book.clear()
    assert held_sums(state.path, ROOT) == []
    assert holding(state.path, newer) == holding(state.path, SEALED) == [], "in no page and no log of the database"
    assert state.fact(CONFIRMED + "decoder") is not None, "the sum is still to be checked"


def test_a_folder_that_is_wrong_is_told(state: StateFolder, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="another federation"):
        held_sums(state.path, b"\x12" * 32)
    with pytest.raises(StateError, match="no state of an institution"):
        held_sums(tmp_path / "nothing", ROOT)
    confirmed(state, "decoder")
    for damaged in (b"{}", b"[]", b"not json", b'{"spec": "zz", "secrets": "", "words": ""}', b'{"spec": 1}'):
        state.remember("sealed-secrets/decoder", damaged)
        with pytest.raises(StateError, match="sealed secrets is damaged"):
            held_sums(state.path, ROOT)
