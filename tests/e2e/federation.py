"""A small federation for the tests: institutions and aggregator are the two commands, each a process of its own.

Those processes are forked from one that has imported the command, and the operator's short commands (keys, roster,
start-run) run inside the test process, which saves seconds a test; ``test_methods`` and ``test_examples`` start the
installed programs.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_federation import BIN, CommandError, LocalFederation, run
from sqlalchemy import select
from tests.e2e.proxy import Proxy
from tests.support import fork_server
from tests.support.low_floors import LOW_FLOORS, with_low_floors
from typer.testing import CliRunner

from fedddpm import Client, NetworkOptions, SamplesOptions
from fedddpm.cli.app import app as sdk_app
from fedddpm.generation.networks import load_network, newest_network
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten, manifest
from fedddpm.rounds.summary import RoundSummary
from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.cli.app import app as aggregator_app
from fedddpm_aggregator.db.tables import AttemptRow, ResultRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import SessionLine, overview
from fedddpm_aggregator.service.rounds.reading import run_state
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.encoder import loss_units, weight_units
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.phases import Phase

SIZE = 8
NETWORK = {"poll_s": 1.0, "patience_s": 60.0}
FEW = {"min_steps": 1, "min_images": 1}  # as many as these institutions have
TRAINING: dict[str, object] = {"batch_size": 8, "learning_rate": 1e-3, "chunk_coordinates": 16384, **FEW}


def blobs(path: Path, seed: int, count: int, size: int = SIZE) -> Path:
    """Write ``count`` grey images of one soft spot each to an .npz."""
    random = np.random.default_rng(seed)
    centres = random.uniform(1, size - 1, (count, 2, 1, 1))
    grid = np.mgrid[:size, :size]
    distance = ((grid - centres) ** 2).sum(axis=1)
    np.savez(path, images=(255 * np.exp(-distance / 4)).astype(np.uint8))
    return path


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 90.0) -> None:
    """Look again and again; AssertionError with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(0.03)


class Federation(LocalFederation):
    """A :class:`LocalFederation` with images, quick commands and looks into what came out."""

    processes: dict[str, fork_server.Process]  # type: ignore[assignment]
    stack: ExitStack
    proxies: dict[str, Proxy]
    here: dict[str, threading.Thread]
    summaries: dict[str, list[RoundSummary]]
    failures: dict[str, Exception]

    @classmethod
    def make(cls, folder: Path, members: str = "abc", **fields: Any) -> Federation:
        """Enrolled institutions with 12, 13, 14... images, of which a few are held out."""
        federation = cls(folder, [f"hospital-{name}" for name in members], **fields)
        federation.stack, federation.proxies = ExitStack(), {}
        federation.here, federation.summaries, federation.failures = {}, {}, {}
        federation.enrol()
        for number, member in enumerate(federation.members):
            blobs(federation.images(member), number, 12 + number)
        return federation

    def images(self, member: str) -> Path:
        """The .npz of an institution."""
        return self.folder / f"{member}.npz"

    # --- commands -----------------------------------------------------------------------------------------------------

    def aggregator(self, *arguments: str | Path) -> str:
        """A command of the aggregator, in this process; raises what the command raised."""
        return _invoke(aggregator_app, arguments)

    def fedddpm(self, *arguments: str | Path, timeout_s: float = 300) -> str:
        """A command of the SDK, in this process."""
        return _invoke(sdk_app, arguments)

    def name_auditor(self, auditor: str) -> Path:
        """A new auditor's key, in a roster that is in force; the file of the key."""
        key = self.folder / f"{auditor}.key"
        shown = self.aggregator("auditor", "keygen", "--out", key, "--auditor", auditor)
        public = key.with_suffix(".pub").read_text().strip()
        assert f"{auditor}={public}" in shown
        self.sign_roster("add", "--auditor", f"{auditor}={public}")
        self.install_roster()
        return key

    def start(self, method: str = "UDEC", rounds: int = 1, *, seeded: bool = True, **options: object) -> None:
        """theta_0 and a run, and the aggregator's process."""
        self.begin(method, rounds, seeded=seeded, **options)
        self.serve()

    def begin(self, method: str = "UDEC", rounds: int = 1, *, seeded: bool = True, **options: object) -> None:
        """theta_0 and a run; unless ``seeded``, everybody downloads theta_0."""
        model = self.init_model(SIZE, 1, "tiny")
        if not seeded:
            save_model(model, load_network(model, "theta_0"))
        self.start_run("run-1", method, model, rounds=rounds, **{**TRAINING, **options})

    def proxy(self, member: str) -> Proxy:
        """The proxy between an institution and the aggregator; it uses it from its next start on."""
        if member not in self.proxies:
            self.proxies[member] = self.stack.enter_context(Proxy(self.url))
        return self.proxies[member]

    def join_in(self, *members: str, environment: Mapping[str, str] | None = None, **settings: object) -> None:
        """Start the processes of institutions (all by default), or start them again with the same command."""
        for member in members or tuple(self.members):
            through = {"aggregator_url": self.proxies[member].url} if member in self.proxies else {}
            network = NETWORK | dict(settings.get("network") or {})  # type: ignore[call-overload]
            policy = LOW_FLOORS | dict(settings.get("policy") or {})  # type: ignore[call-overload]
            cheap = {"device": "cpu", "samples": {"count": 0}}  # pictures after each round are tested elsewhere
            options = {**cheap, **through, **settings, "network": network, "policy": policy}
            with _environment(environment or {}):
                self.start_site(member, self.images(member), options)

    def join_here(self, *members: str, rounds: int | None = None, **changes: Any) -> None:
        """Let institutions (all by default) take part in threads of this process, which costs no start-up."""
        for member in members or tuple(self.members):

            def take_part(member: str = member) -> None:
                try:
                    self.summaries[member] = self.client(member, **changes).participate(rounds)
                except Exception as error:
                    self.failures[member] = error

            self.failures.pop(member, None)
            self.here[member] = threading.Thread(target=take_part, name=member, daemon=True)
            self.here[member].start()

    def end(self, *members: str, timeout_s: float = 120) -> None:
        """Wait until these institutions (all by default) ended well, and nobody showed a stack trace."""
        deadline = time.monotonic() + timeout_s
        for member in members or self.members:
            left = max(0.1, deadline - time.monotonic())
            if member in self.processes:
                self.wait_for_sites([member], left)
            else:
                self.here[member].join(left)
                assert not self.here[member].is_alive(), f"{member} is still there: {self.lines()[-1]}"
                if member in self.failures:
                    raise self.failures[member]
        self.require_no_trace()

    def failure_of(self, member: str, timeout_s: float = 90) -> Exception:
        """The error with which an institution in a thread is expected to end."""
        self.here[member].join(timeout_s)
        assert not self.here[member].is_alive(), f"{member} is still there: {self.lines()[-1]}"
        return self.failures[member]

    def exit_of(self, member: str, timeout_s: float = 90) -> tuple[int, str]:
        """Exit code and output of a process that is expected to end by itself, the output on one line."""
        code = self.processes[member].wait(timeout_s)
        self.require_no_trace()
        return code, " ".join(self.log(member).split())

    def require_no_trace(self) -> None:
        """No process ever shows a user a stack trace."""
        for path in (self.folder / "logs").glob("*.log"):
            assert "Traceback" not in path.read_text(), f"{path.name}:\n{path.read_text()[-4000:]}"

    def client(self, member: str, **changes: Any) -> Client:
        """An institution inside this process."""
        settings: dict[str, Any] = {
            "aggregator_url": self.proxies[member].url if member in self.proxies else self.url,
            "identity": self.site(member) / "identity.key",
            "federation_root": self.root_public,
            "data": self.images(member),
            "state_dir": self.site(member) / "state",
            "device": "cpu",
            "network": NetworkOptions(**NETWORK),
            "progress": False,
            "samples": SamplesOptions(count=0),
            **changes,
            "policy": with_low_floors(changes.get("policy")),
        }
        return Client(**settings)

    def stop(self) -> None:
        """End processes, proxies and the look into the database."""
        self.stack.close()
        super().stop()

    def start_process(self, name: str, *command: str | Path) -> None:
        program, *arguments = command
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self.processes[name] = fork_server.start(
                Path(program).name,
                *arguments,
                environment=os.environ | {"OMP_NUM_THREADS": str(self.threads), "COLUMNS": "140"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    # --- what came out ------------------------------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """A look into the aggregator's database and folder beside the running server."""
        if not hasattr(self, "_context"):
            self._context = open_context(Settings(data=self.data, database_url=self.database_url))
            self.stack.callback(self._context.database.close)
        return self._context

    def lines(self, round_: int | None = None) -> list[SessionLine]:
        """Sessions so far, of one round or of all."""
        return [line for line in overview(self.context) if round_ in (None, line.round)]

    def wait_for(self, *phases: Phase, round_: int = 0, timeout_s: float = 90) -> SessionLine:
        """Wait until a session of a round, whichever attempt, is in one of ``phases``."""
        found: list[SessionLine] = []

        def reached() -> bool:
            found[:] = [line for line in self.lines(round_) if line.phase in phases]
            return bool(found)

        wait_until(reached, f"round {round_} in {[str(phase) for phase in phases]}", timeout_s)
        return found[0]

    def state(self) -> RunState:
        """The run as the aggregator tells it to institutions."""
        return run_state(self.context)

    def spec(self) -> RoundSpec:
        """The specification of the newest attempt."""
        document = self.state().spec
        assert document is not None
        return canonical.decode(RoundSpec, document.body)

    def spec_of(self, result: RoundResult) -> RoundSpec:
        """The specification that a result is of."""
        with self.context.database.read() as db:
            bodies = db.scalars(select(AttemptRow.spec)).all()
        return next(spec for spec in (canonical.decode(RoundSpec, b) for b in bodies) if spec.hash == result.spec_hash)

    def results(self) -> list[RoundResult]:
        """The signed results in order."""
        with self.context.database.read() as db:
            rows = db.scalars(select(ResultRow).order_by(ResultRow.run_id, ResultRow.round)).all()
        return [canonical.decode(RoundResult, row.body) for row in rows]

    def model_hash_of(self, member: str, method: str) -> bytes:
        """Hash of the shared parts of an institution's newest network."""
        model, parts = newest_network(self.site(member) / "state"), Method(method).shared_parts
        return model_hash(manifest(model, parts), flatten(model, parts))

    def check_models(self, method: str = "UDEC", members: Iterable[str] = ()) -> None:
        """Every institution ends with exactly the shared parts that the aggregator published last."""
        published = self.results()[-1].model_hash
        for member in members or self.members:
            assert self.model_hash_of(member, method) == published, member

    def check_round(self, round_: int, survivors: Iterable[str]) -> SessionLine:
        """A round was opened over exactly ``survivors``: the opened weights and losses are the sum of theirs."""
        line = next(line for line in self.lines(round_) if line.phase == Phase.DONE)
        assert set(line.survivors) == set(survivors)
        own = [entry for member in line.survivors for entry in self.site_rounds(member) if entry["round"] == round_]
        assert len(own) == len(line.survivors)
        spec = self.spec_of(next(result for result in reversed(self.results()) if result.round == round_))
        weights = [weight_units(entry["samples"], spec) for entry in own]
        before, after = (sum(loss_units(entry[name]) for entry in own) for name in ("loss_before", "loss_after"))
        assert line.sums == (sum(weights), before, after)
        return line


class InstalledFederation(Federation):
    """A :class:`Federation` whose processes are started as people start them."""

    _start = LocalFederation.start_process


def command_error(*command: str | Path) -> str:
    """The output, on one line, of an installed command that must end with an error for users."""
    with pytest.raises(CommandError) as caught:
        run(BIN / command[0], *command[1:])
    assert "Traceback" not in str(caught.value)
    return " ".join(str(caught.value).split())


def sitecustomize(folder: Path, code: str) -> dict[str, str]:
    """Environment that lets a process run ``code`` before everything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@contextmanager
def _environment(values: Mapping[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _invoke(app: Any, arguments: Iterable[str | Path]) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise CommandError(result.output) from result.exception
    return result.stdout
