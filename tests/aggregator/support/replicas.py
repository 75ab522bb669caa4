"""Institutions that keep going while replicas are killed, and what the database must say afterwards."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import httpx
import psycopg
from benchmarks.load.postgresql import PostgreSQL
from pydantic import BaseModel
from tests.aggregator.support.driver import STEPS, Institution, ProblemError, Seat, spec_of
from tests.aggregator.support.federations import Federation, ServerProcess, identity_of
from tests.support.balancer import Balancer

from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import CohortError, SpentError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.messages import Confirmations
from fedddpm_protocol.wire.phases import Phase, has_reached

PART = "decoder"
PATIENCE_S = 90.0
PHASE_LOG = """
CREATE TABLE phase_log (id serial PRIMARY KEY, session_id int NOT NULL, was text NOT NULL, now text NOT NULL);
CREATE FUNCTION log_phase() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO phase_log (session_id, was, now) VALUES (OLD.id, OLD.phase, NEW.phase); RETURN NEW; END $$;
CREATE TRIGGER log_phase AFTER UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.phase IS DISTINCT FROM NEW.phase) EXECUTE FUNCTION log_phase();
"""  # in the transaction of the change itself, so that nothing is missed and nothing that was rolled back stands there


class OverError(Exception):
    """The attempt is over for this institution."""


class Steadfast(Institution):
    """Tries again also while the aggregator says that its database is away."""

    def send(self, method: str, path: str, message: BaseModel | bytes | None = None) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return super().send(method, path, message)
            except ProblemError as problem:
                if problem.code == "phase-over":
                    raise OverError from None
                if problem.status != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class Member(Seat):
    """A seat that gives up with its attempt, and tells what it answers for before it does."""

    def __init__(self, seat: Institution, roster: Roster, spec: RoundSpec, seed: int, spent: tuple[str, ...]) -> None:
        super().__init__(seat, roster, spec, PART, seed, recorded_u3=spent)
        self.remember: Callable[[SpentRecord], None]

    def wait_for(self, phase: Phase, timeout_s: float = PATIENCE_S) -> None:
        deadline, version = time.monotonic() + timeout_s, 0
        while time.monotonic() < deadline:
            state = self.institution.state(version, 2.0 if version else 0.0)
            if state.spec is None or state.spec.body != canonical.encode(self.spec):
                raise OverError
            session = state.sessions[PART]
            if session.phase is Phase.FAILED:
                raise OverError
            if has_reached(session.phase, phase):
                return
            version = state.version
        raise AssertionError(f"{self.name} waited in vain for {phase}")

    def unmask(self) -> None:
        self.wait_for(Phase.UNMASK)
        reply = Confirmations.model_validate_json(self.get("confirmations"))
        self.unmask_message = self.machine.receive_confirmations(reply.confirmations, self.remember)
        self.post("unmask", self.unmask_message)


@dataclass
class Book:
    """What the institutions did, by spec hash (hex)."""

    seats: dict[str, dict[str, Seat]] = field(default_factory=lambda: defaultdict(dict))
    dropped: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    spent: set[bytes] = field(default_factory=set)  # base models that somebody answered for
    errors: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


class Actor(threading.Thread):
    """One institution that takes part until the run is finished; with probability ``drops`` it starts over once."""

    def __init__(self, book: Book, url: str, name: str, roster: Roster, seed: int, drops: float) -> None:
        super().__init__(daemon=True)
        self._book, self._roster, self._drops = book, roster, drops
        self._institution = Steadfast(url, name, identity_of(name), patience_s=PATIENCE_S)
        self._dice = random.Random(f"{seed}/{name}")
        self._place = roster.ids.index(name)
        self._spent = SpentLog()

    def _remember(self, record: SpentRecord) -> None:
        self._spent.commit(record)
        self._book.spent.add(record.base_model_hash)

    def run(self) -> None:
        try:
            self._take_part()
        except BaseException as error:
            self._book.errors.append(error)
            self._book.stop.set()
        finally:
            self._institution.close()

    def _take_part(self) -> None:
        version, seen = 0, b""
        while not self._book.stop.is_set():
            state = self._institution.state(version, 2.0 if version else 0.0)
            version = state.version
            if state.status == "finished":
                return
            if state.spec is not None and state.spec.body != seen:
                seen = state.spec.body
                self._attempt(state)

    def _attempt(self, state: RunState) -> None:
        spec = spec_of(state, self._roster)
        dropping = self._dice.choice(STEPS[1:]) if self._dice.random() < self._drops else ""
        seat = self._sit_down(spec)
        try:
            for step in STEPS:
                if step == dropping:
                    seat = self._start_over(seat)
                getattr(seat, step)()
        except OverError:
            pass
        except SpentError:  # a survivor of the spent base is missing: no sum, and nobody should wait for this member
            with contextlib.suppress(OverError):
                self._start_over(seat)
        except CohortError:  # members that are spent on this base stand only with their survivors: not all fit together
            assert spec.base_model_hash in self._book.spent

    def _sit_down(self, spec: RoundSpec) -> Member:
        number = (spec.round * 10 + spec.attempt) % 100 * 10 + self._place  # other values in every attempt
        recorded = self._spent.recorded(spec.base_model_hash, PART)
        seat = Member(self._institution, self._roster, spec, number, recorded)
        seat.remember = self._remember
        self._book.seats[spec.hash.hex()][seat.name] = seat
        return seat

    def _start_over(self, old: Member) -> Member:
        """As a restarted process does: join again with fresh keys; OverError if the cohort is closed."""
        fresh = self._sit_down(old.spec)
        try:
            fresh.join(seq=2)
        except OverError:
            self._book.seats[old.spec.hash.hex()][old.name] = old
            self._book.dropped[old.spec.hash.hex()].add(old.name)
            raise
        return fresh


class Trouble:
    """Does something every so many requests: at requests, not times, so in the middle of rounds on any machine."""

    def __init__(self, balancer: Balancer, seed: str, pause: tuple[int, int], act: Callable[[random.Random], None]):
        self._balancer, self._pause, self._act = balancer, pause, act
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._errors: list[BaseException] = []
        self.count = 0  # of those that have begun: the run may be over before what was killed is back

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self) -> None:
        due = self._dice.randint(*self._pause)
        while not self._stop.wait(0.01):
            if self._balancer.requests < due:
                continue
            self.count += 1
            try:
                self._act(self._dice)
            except BaseException as error:
                self._errors.append(error)
                return
            due = self._balancer.requests + self._dice.randint(*self._pause)


@dataclass
class Cluster:
    """Three replicas behind a balancer."""

    federation: Federation
    servers: list[ServerProcess]
    balancer: Balancer
    troubles: list[Trouble]

    @property
    def kills(self) -> int:
        """How often a replica was killed so far."""
        return sum(trouble.count for trouble in self.troubles)


def outages(running: Cluster, database: PostgreSQL, seed: int, pause: tuple[int, int]) -> Trouble:
    """Stops the database and starts it again every ``pause`` requests (fewest, most); a context manager."""

    def act(dice: random.Random) -> None:
        database.stop_immediately()
        time.sleep(dice.uniform(0, 1))
        database.start()

    return Trouble(running.balancer, f"{seed}/database", pause, act)


@contextlib.contextmanager
def cluster(federation: Federation, seed: int, pause: tuple[int, int] | None) -> Iterator[Cluster]:
    """Three running replicas behind a balancer; two of them are killed every ``pause`` requests (fewest, most)."""
    assert federation.database_url is not None
    with psycopg.connect(federation.database_url) as connection:
        connection.execute(PHASE_LOG.encode())
    servers = [ServerProcess(federation) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(ServerProcess.start, servers))
        balancer = stack.enter_context(Balancer([("127.0.0.1", server.port) for server in servers]))
        troubles = [
            stack.enter_context(Trouble(balancer, f"{seed}/{number}", pause, functools.partial(_kill, server)))
            for number, server in enumerate(servers[1:])
            if pause is not None
        ]
        yield Cluster(federation, servers, balancer, troubles)


def _kill(server: ServerProcess, dice: random.Random) -> None:
    server.kill()
    time.sleep(dice.uniform(0, 0.5))
    for _ in range(30):
        try:
            server.start()
            return
        except AssertionError:  # its database is away; whoever supervises a server tries again
            server.kill()
            time.sleep(0.1)
    raise AssertionError("a killed replica did not start again")


def take_part(running: Cluster, seed: int, drops: float, timeout_s: float) -> Book:
    """All members take part until the run is finished; what they did."""
    book, federation = Book(), running.federation
    members: Sequence[str] = federation.roster.ids
    actors = [Actor(book, running.balancer.url, name, federation.roster, seed, drops) for name in members]
    for actor in actors:
        actor.start()
    deadline = time.monotonic() + timeout_s
    for actor in actors:
        actor.join(max(0.0, deadline - time.monotonic()))
        if actor.is_alive():
            book.stop.set()
            raise AssertionError(f"the run was not finished after {timeout_s:.0f} s")
    if book.errors:
        raise book.errors[0]
    return book
