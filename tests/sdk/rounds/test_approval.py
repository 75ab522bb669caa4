"""Where an institution approves runs at home, a round begins only after somebody there has."""

import sqlite3
import threading
import time
from contextlib import closing

from typer.testing import CliRunner

from fedddpm import LocalPolicyOptions
from fedddpm.cli.app import app
from fedddpm.state.charter_book import read_newest
from fedddpm_protocol.agreement.methods import Method


def until(happened, why):
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError(why)


def charters_at(folder):
    return (folder / "state.sqlite").is_file() and read_newest(folder) is not None


def test_nothing_is_trained_before_somebody_here_agrees(federation):
    fed = federation("abc")
    fed.start_run("UDEC", rounds=1)
    folders = {member: fed.folder / f"state-{member}" for member in fed.members}
    results, policy = {}, LocalPolicyOptions(approve_runs=True)
    thread = threading.Thread(target=lambda: results.update(fed.together(1, policy=policy)))
    thread.start()
    until(lambda: all(charters_at(folder) for folder in folders.values()), "no charter arrived")
    time.sleep(3)  # longer than the pause between two looks
    for folder in folders.values():
        with closing(sqlite3.connect(folder / "state.sqlite")) as db:
            assert db.execute("SELECT COUNT(*) FROM trainings").fetchone() == (0,)
        done = CliRunner().invoke(app, ["approve", "--state-dir", str(folder), "--yes", "1"])
        assert "run-udec, 1 rounds of UDEC" in done.output
        assert done.exit_code == 0
    thread.join(120)
    assert {member: len(rounds) for member, rounds in results.items()} == dict.fromkeys(fed.members, 1)
    vectors = [fed.shared_vector(member, Method.UDEC) for member in fed.members]
    assert all((vector == vectors[0]).all() for vector in vectors)
