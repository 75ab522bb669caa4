"""Coming back: after a kill, an outage, a restore, a failed opening; and coming late as a new member."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tests.sdk.support.federation import aggregator, make_network
from tests.support.low_floors import IN_TOML
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.generation.networks import newest_network
from fedddpm.identity import Identity
from fedddpm.model.partition import flatten
from fedddpm.state.report import read_state
from fedddpm.transport.endpoints import SessionApi
from fedddpm_protocol.agreement.methods import Method

A, B, C, D = (f"hospital-{letter}" for letter in "abcd")
PROGRAM = [sys.executable, "-c", "from fedddpm.cli.app import main; main()"]


def same_models(fed, members, method=Method.UDEC):
    vectors = [fed.shared_vector(member, method) for member in members]
    return all(np.array_equal(vector, vectors[0]) for vector in vectors)


def network_file(fed, member):
    return read_state(fed.folder / f"state-{member}").runs[-1].model


def in_background(target, *arguments, **named):
    thread = threading.Thread(target=target, args=arguments, kwargs=named)
    thread.start()
    return thread


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_a_killed_process_goes_on_with_its_stored_update(federation):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1)
    (fed.folder / "site.toml").write_text(
        f'aggregator_url = "{fed.url}"\nidentity = "{A}.key"\nfederation_root = "{fed.root}"\n'
        f'data = "{A}.npz"\nstate_dir = "state-{A}"\ndevice = "cpu"\n[network]\npoll_s = 1\n{IN_TOML}'
    )
    command = [*PROGRAM, "participate", "--config", "site.toml", "--rounds", "1"]
    update = fed.folder / f"state-{A}" / "update.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(command, cwd=fed.folder, env=environment) as process:
        wait_until(update.exists)
        process.send_signal(signal.SIGKILL)
    written = update.stat().st_mtime_ns
    others = in_background(fed.together, members=[B, C])
    seen = []
    again = subprocess.Popen(command, cwd=fed.folder, env=environment, stderr=subprocess.PIPE, text=True)
    while again.poll() is None:
        if update.exists():
            seen.append(update.stat().st_mtime_ns)
        time.sleep(0.05)
    with again:
        shown = again.stderr.read()
    others.join(30)
    assert again.returncode == 0
    assert set(seen) == {written}  # not trained again
    assert "round 1: 3 of 3 institutions" in shown
    assert same_models(fed, fed.members)
    status = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["status", "--config", str(fed.folder / "site.toml")])
    for text in (
        r"run-udec \(UDEC\), finished",
        "roster version",
        r"round 1 of 1, attempt \d",
        "phase of decoder.*done",
    ):
        assert re.search(text, status.stdout)


def test_nothing_of_an_institution_lies_open_in_its_state(federation):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1)
    fed.together()
    for member in fed.members:
        seed = Identity.load(fed.folder / f"{member}.key").key.seed
        written = [path for path in (fed.folder / f"state-{member}").rglob("*") if path.is_file()]
        written.append(fed.folder / "aggregator.log")
        assert len(written) >= 4
        for file in written:
            content = file.read_bytes()
            assert seed not in content
            assert seed.hex().encode() not in content


def test_an_aggregator_that_dies_in_the_middle_is_waited_for(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 2)
    port = int(fed.url.rsplit(":", 1)[1])
    first = threading.Event()
    original = SessionApi.put_chunk

    def put_chunk(api, *arguments):
        if not first.is_set():
            first.set()
            fed.kill()
            threading.Timer(1.5, fed.serve, (port,)).start()
        return original(api, *arguments)

    monkeypatch.setattr(SessionApi, "put_chunk", put_chunk)
    summaries = fed.together()
    assert [summary.attempt for summary in summaries[A]] == [0, 0]
    assert all(summary.took_part for rounds in summaries.values() for summary in rounds)
    assert same_models(fed, fed.members)


def test_a_new_member_starts_from_theta_0_and_the_newest_base(federation):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 3)
    fed.together(1)
    newcomer = Identity.generate(D)
    newcomer.save(fed.folder / f"{D}.key")
    shutil.copy(fed.folder / f"{A}.npz", fed.folder / f"{D}.npz")
    enrolled = f"{D}={newcomer.public_key.hex()}"
    aggregator("federation", "roster", "add", fed.roster, *fed.rooted, "--member", enrolled)
    fed.install()
    summaries = fed.together(members=[*fed.members, D])
    assert [summary.round for summary in summaries[D]] == [1, 2]
    assert all(D in summary.survivors for summary in summaries[A])
    assert same_models(fed, [*fed.members, D])
    initial = summaries[D][0].traffic
    assert initial.parameters_down > sum(p.numel() for p in make_network().parameters())


def test_a_lost_network_is_fetched_again(federation):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 2)
    fed.together(1)
    network_file(fed, A).unlink()
    fed.together()
    assert same_models(fed, fed.members)


def test_a_network_lost_while_rounds_went_by_is_fetched_again(federation):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.ULATDEC, 3, join_s=4)
    fed.together(1)
    network_file(fed, D).unlink()
    fed.together(1, members=[A, B, C])
    late = in_background(fed.together, members=[D])
    fed.wait_for_join(2)
    fed.together(members=[A, B, C])
    late.join(60)
    assert [line["took_part"] for line in fed.rounds_of(D)] == [True, False, True]
    assert same_models(fed, fed.members, Method.ULATDEC)


def test_local_parts_stay_and_grow(federation):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1)
    fed.together()
    encoders = [flatten(newest_network(fed.folder / f"state-{member}"), ("encoder",)) for member in fed.members]
    start = flatten(make_network(), ("encoder",))
    assert all(not np.array_equal(encoder, start) for encoder in encoders)
    assert not np.array_equal(encoders[0], encoders[1])


def test_after_a_restore_the_first_base_is_sat_out(federation):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 4, join_s=4)
    fed.together(1)
    backup = fed.folder / "backup"
    shutil.copytree(fed.folder / f"state-{D}", backup)
    fed.together(1)
    shutil.rmtree(fed.folder / f"state-{D}")
    backup.rename(fed.folder / f"state-{D}")
    restored = in_background(fed.together, members=[D], after_restore=True)
    third = fed.together(1, members=[A, B, C])
    fed.wait_for_join(3)  # now D takes part again
    fourth = fed.together(members=[A, B, C])
    restored.join(60)
    assert D not in third[A][0].survivors
    assert D in fourth[A][0].survivors
    assert same_models(fed, fed.members)


def lose_answers_of_the_first_session(monkeypatch):
    """Answers leave the institutions but never arrive, as long as they are about the first session."""
    original, sessions, asked = SessionApi.unmask, [], threading.Lock()

    def unmask(api, message):
        session = message.parse().session_id
        with asked:
            sessions.append(session)
        if session != sessions[0]:
            original(api, message)

    monkeypatch.setattr(SessionApi, "unmask", unmask)


def test_a_sum_that_failed_after_the_answers_is_repeated_with_the_same_survivors(federation, monkeypatch):
    fed = federation("abc")
    lose_answers_of_the_first_session(monkeypatch)
    fed.start_run(Method.UDEC, 1, unmask_s=1)
    finished = fed.together()
    assert finished[A][0].attempt > 0
    assert all(finished[member][0].survivors == (A, B, C) for member in fed.members)
    assert same_models(fed, fed.members)


def ask_state(fed, member, query):
    """One value of a member's state, also while it runs; None if there is none yet."""
    path = fed.folder / f"state-{member}" / "state.sqlite"
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        try:
            row = db.execute(query).fetchone()
        except sqlite3.OperationalError:  # the tables are just being made
            return None
    return None if row is None else row[0]


def spent_on(fed, member):
    return tuple(json.loads(ask_state(fed, member, "SELECT u3 FROM spent") or "[]"))


class Crash(BaseException):
    """The process is gone."""


def test_a_release_of_the_root_lets_another_take_the_place_of_the_lost(federation, monkeypatch):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 1, join_s=1, unmask_s=1)

    def die(api, message):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(SessionApi, "unmask", die)
        with pytest.raises(Crash):
            fed.together(members=[A, B, C])
    assert [spent_on(fed, member) for member in (A, B, C)] == [(A, B, C)] * 3
    rest = {}
    running = in_background(lambda: rest.update(fed.together(members=[A, B, D])))
    time.sleep(4)  # C is gone for good: the base model is spent on it, and the federation stands still on purpose
    assert not fed.rounds_of(A)
    base = ask_state(fed, A, "SELECT base_model_hash FROM runs").hex()
    step = ("--base", base, "--part", "decoder", "--old", f"{A},{B},{C}", "--new", f"{A},{B},{D}")
    aggregator("federation", "roster", "release", fed.roster, *fed.rooted, *step)
    fed.install()
    running.join(60)
    assert rest[A][0].survivors == (A, B, D)
    assert spent_on(fed, A) == (A, B, D)
    assert ask_state(fed, A, "SELECT COUNT(*) FROM releases_used") == 1
    assert ask_state(fed, D, "SELECT COUNT(*) FROM releases_used") == 0
    assert same_models(fed, [A, B, D])
