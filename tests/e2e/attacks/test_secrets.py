"""No private key and no session secret ends up where it does not belong: files, databases, logs."""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, wait_until

import fedddpm.rounds.session
from fedddpm.identity import Identity
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.session.participant import Participant


class Recorder:
    """A random source for one participant that remembers what must stay secret.

    Of its draws of 32 bytes the first four are two private keys, the self mask and the JOIN's public nonce. The
    coefficients of both shared secrets follow, then two nonces for each dealt pair: the self mask's is opened with its
    share, the mask key's stays secret as long as nobody is released. Last comes the ephemeral key that seals secrets to
    the auditor. Draws of 12 bytes are public nonces of seals.
    """

    def __init__(self, kept: list[bytes], threshold: int, members: int) -> None:
        self._kept, self._coefficients, self._nonces, self._draws = kept, 2 * (threshold - 1), 2 * members, 0

    def __call__(self, size: int) -> bytes:
        drawn = secrets.token_bytes(size)
        if size == 32:
            if not self._is_opened(self._draws):
                self._kept.append(drawn)
            self._draws += 1
        return drawn

    def _is_opened(self, number: int) -> bool:
        dealt = number - 4 - self._coefficients
        return number == 3 or (0 <= dealt < self._nonces and dealt % 2 == 0)


def forms(secret: bytes) -> Iterator[bytes]:
    """How a secret could stand in a file: raw, hex, base64 at any offset and in either alphabet."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + secret)
        inner = text[-(-offset * 8 // 6) + (offset > 0) : -4]  # without the characters shared with neighbours
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")


def contents(folders: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Every file, and every database once more as a dump."""
    for folder in folders:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            yield str(path), path.read_bytes()
            if path.suffix == ".sqlite":
                database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                yield f"{path} (dump)", "\n".join(database.iterdump()).lower().encode()
                database.close()


def places(secret: bytes, files: Iterable[tuple[str, bytes]]) -> set[str]:
    """The files that hold a secret in any form."""
    wanted = list(forms(secret))
    return {name for name, content in files if any(form in content for form in wanted)}


def private_keys(fed: Federation) -> dict[str, bytes]:
    """Path of each private key's own file, and its seed."""
    keys = {
        str(path): bytes.fromhex(json.loads(path.read_text())["ed25519_seed"])
        for path in (fed.root_key, fed.data / "server.key")
    }
    for member in fed.members:
        path = fed.site(member) / "identity.key"
        keys[str(path)] = Identity.load(path).key.seed
    return keys


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The check of the check: a secret is found in each of its forms, wherever it stands in a longer text."""
    secret = secrets.token_bytes(32)
    for number, text in enumerate((secret, secret.hex().encode(), *(bytes(n) + secret + bytes(9) for n in range(3)))):
        stored = base64.b64encode(text) if number > 1 else b"..." + text + b"..."
        assert places(secret, [("here", stored)]) == {"here"}, number
    path = tmp_path / "one.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x BLOB)")
        database.execute("INSERT INTO t VALUES (?)", (secret,))
    database.close()
    assert places(secret, contents([tmp_path])) == {str(path), f"{path} (dump)"}
    assert places(secrets.token_bytes(32), contents([tmp_path])) == set()


def sealed_sums(fed: Federation, member: str) -> list[str]:
    """Names of the facts in a state folder that hold sealed secrets."""
    with sqlite3.connect(f"file:{fed.site(member)}/state/state.sqlite?mode=ro", uri=True) as db:
        return [name for (name,) in db.execute("SELECT name FROM facts WHERE name LIKE 'sealed-secrets/%'")]


def check_keys(fed: Federation) -> None:
    """Each private key stands in its own file and nowhere else, and nobody else may open that file."""
    files = list(contents([fed.folder]))
    for path, seed in private_keys(fed).items():
        assert places(seed, files) == {path}
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600, path
    public = bytes.fromhex(fed.public_key(fed.members[0]))
    assert str(fed.roster) in places(public, files), "the roster holds the public key, so the search works"


def test_a_whole_run(new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = new_federation("abc", c_max=1)
    kept: list[bytes] = []
    thresholds: list[int] = []

    def recording(*, roster: Roster, **arguments: object) -> Participant:
        thresholds.append(roster.threshold(len(fed.members)))
        recorder = Recorder(kept, thresholds[-1], len(fed.members))
        return Participant(roster=roster, random_bytes=recorder, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fedddpm.rounds.session, "Participant", recording)
    fed.name_auditor("notary")
    fed.start(rounds=2)
    *here, apart = fed.members
    hold = fed.proxy(apart).hold("POST .*/unmask")
    fed.join_here(*here)
    fed.join_in(apart)
    hold.wait()
    check_keys(fed)
    deltas = [UpdateStore(fed.site(member) / "state") for member in fed.members]
    spec = fed.spec()
    updates = [store.load(spec.base_model_hash, spec.terms_hash) for store in deltas]
    uploads = list(contents([fed.data, fed.folder / "logs"]))
    for update in updates:
        assert update is not None
        assert not places(update.delta[:8].tobytes(), uploads), "an update without its mask"
    wait_until(lambda: all(sealed_sums(fed, member) for member in here), "secrets that are sealed to the auditor")
    everything = list(contents([fed.folder]))
    for secret in kept:
        assert not places(secret, everything), "while sealed secrets are kept"
    hold.go_on.set()
    fed.end()
    check_keys(fed)
    assert len(thresholds) == 2 * 2
    assert min(thresholds) > 1
    assert len(kept) == sum(4 + 2 * (threshold - 1) + len(fed.members) for threshold in thresholds), (
        "keys, coefficients, a nonce of each pair, one seal: two members in two rounds"
    )
    everything = list(contents([fed.folder]))
    for secret in kept:
        assert not places(secret, everything)


@pytest.mark.parametrize(("keep_s", "kept"), [("0", 0), ("3600", 3)])
def test_folders_are_closed_to_others(
    new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch, keep_s: str, kept: int
) -> None:
    """Masked uploads of the last round stay only where they are kept for its sum to be checked, and closed as well."""
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_UPLOADS_S", keep_s)
    fed = new_federation("abc")
    fed.start()
    hold = fed.proxy(fed.members[0]).hold("POST .*/upload")
    fed.join_here()
    hold.wait()
    for folder in (fed.data, *(fed.site(member) / "state" for member in fed.members)):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder
    hold.go_on.set()
    fed.end()
    uploads = [path for path in (fed.data / "blobs" / "uploads").rglob("*") if path.is_file()]
    assert len({path.relative_to(fed.data / "blobs" / "uploads").parts[2] for path in uploads}) == kept
    assert stat.S_IMODE(fed.data.stat().st_mode) & 0o077 == 0
