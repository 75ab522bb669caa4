"""The state folder: locked, pinned, and never going back."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from fedddpm.errors import StateError
from fedddpm.identity import Identity
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.traffic import Traffic
from fedddpm_protocol.errors import OlderRosterError, RosterError
from fedddpm_protocol.wire.messages import SignedDocument

ROOT = bytes(range(32))
DOCUMENT = SignedDocument(body=b"roster", signature=bytes(64))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def open_state(folder, root=ROOT, member="a"):
    return StateFolder(folder, root, member)


def position(next_round, run="run-1", finished=False):
    return RunPosition(
        run, "UDEC", next_round, b"r" * 32, b"i" * 32, bytes([next_round]) * 32, "m.safetensors", finished
    )


def test_a_second_process_is_told_who_works_here(folder):
    with open_state(folder), pytest.raises(StateError, match=f"another process \\(number {os.getpid()}\\)"):
        open_state(folder)
    with open_state(folder):
        pass


def test_the_lock_of_a_killed_process_is_free(folder):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from fedddpm.state.folder import StateFolder
        state = StateFolder(Path({str(folder)!r}), bytes(range(32)), "a")
        state.next_seq()
        print("ready", flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StateError, match=str(process.pid)):
            open_state(folder)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open_state(folder) as state:
        assert state.next_seq() == 2  # the first was on the disk before it was given out


def test_the_folder_belongs_to_one_federation_and_one_member(folder):
    with open_state(folder, root=bytes(32), member="b"):
        pass  # perhaps a typing mistake: no roster was accepted under it
    with open_state(folder) as state:
        state.accept_roster(1, b"one", DOCUMENT)
    with open_state(folder, member="typing-mistake"):
        pass
    with open_state(folder) as state:
        state.bind_member()
    with pytest.raises(StateError, match="another federation"):
        open_state(folder, root=bytes(32))
    with pytest.raises(StateError, match="another institution"):
        open_state(folder, member="b")
    with open_state(folder):
        pass  # the refusals gave the lock back


def test_every_commit_is_synced_to_the_disk(folder):
    with open_state(folder) as state, state.transaction() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_rosters_never_go_back_nor_differ(folder):
    with open_state(folder) as state:
        state.accept_roster(3, b"three", DOCUMENT)
        state.accept_roster(3, b"three", DOCUMENT)
        with pytest.raises(RosterError, match="two different"):
            state.accept_roster(3, b"other", DOCUMENT)
        with pytest.raises(OlderRosterError):
            state.accept_roster(2, b"two", DOCUMENT)
    with open_state(folder) as state:
        assert state.roster_version == 3
        assert state.roster_document == DOCUMENT
        with pytest.raises(OlderRosterError):
            state.accept_roster(2, b"two", DOCUMENT)


def test_rounds_never_go_back(folder):
    with open_state(folder) as state:
        assert state.newest_position() is None
        state.move_to(position(2))
        with pytest.raises(StateError, match="go back"):
            state.move_to(position(1))
        state.move_to(position(0, run="run-2"))
        assert state.newest_position() == position(0, run="run-2")
    with open_state(folder) as state:
        assert state.position("run-1") == position(2)
        state.move_to(position(3, finished=True))
        assert state.position("run-1").finished
        state.see_base(bytes([2]) * 32)
        assert state.has_seen_base(bytes([2]) * 32)
        assert not state.has_seen_base(bytes([9]) * 32)


def test_traffic_adds_up_in_one_record_a_round(folder):
    with open_state(folder) as state:
        state.add_traffic("run-1", 0, Traffic(parameters_up=5, bytes_down=7))
        state.add_traffic("run-1", 0, Traffic(parameters_up=5))
        state.add_traffic("run-1", 1, Traffic(parameters_up=1))
        with state.transaction() as db:
            assert db.execute("SELECT COUNT(*) FROM traffic").fetchone() == (2,)
    with open_state(folder) as state:
        assert state.traffic("run-1", 0) == Traffic(parameters_up=10, bytes_down=7)
        assert state.traffic("run-1") == Traffic(parameters_up=11, bytes_down=7)
        assert state.traffic("run-9") == Traffic()


def test_a_damaged_database_says_what_to_do(folder):
    folder.mkdir()
    (folder / "state.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match="after-restore"):
        open_state(folder)


def fill_the_disk(state):
    with state.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        db.execute("INSERT INTO facts VALUES ('big', zeroblob(1000000))")


def break_off(state, error):
    with state.transaction() as db:
        db.execute("INSERT INTO facts VALUES ('half', x'00')")
        raise error


def test_a_full_disk_is_said_as_such(folder):
    with open_state(folder) as state:
        with pytest.raises(StateError, match="disk is full"):
            fill_the_disk(state)
        assert state.fact("big") is None


def test_a_failed_transaction_leaves_nothing(folder):
    with open_state(folder) as state:
        with pytest.raises(KeyError):
            break_off(state, KeyError())
        with pytest.raises(StateError, match="unusable"):
            break_off(state, sqlite3.OperationalError("no such table"))
        assert state.fact("half") is None


def test_the_state_holds_no_secret(folder, tmp_path):
    identity = Identity.generate("a")
    identity.save(tmp_path / "a.key")
    with open_state(folder) as state:
        state.accept_roster(1, b"one", DOCUMENT)
        state.move_to(position(1))
        for file in folder.iterdir():
            content = file.read_bytes()
            assert identity.key.seed not in content
            assert identity.key.seed.hex().encode() not in content


def test_an_empty_or_own_folder_is_closed_to_others(tmp_path):
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    for folder in (own, foreign):
        folder.mkdir()
        folder.chmod(0o755)
    (foreign / "notes.txt").write_text("of somebody else")
    open_state(own).close()
    open_state(foreign).close()
    assert (own.stat().st_mode & 0o777, foreign.stat().st_mode & 0o777) == (0o700, 0o755)
    open_state(foreign).close()  # by now it is a state folder
    assert foreign.stat().st_mode & 0o777 == 0o700
