"""Simulated institutions of service_load.py: one process, one thread each; prints one line of JSON.

They speak the real protocol over real HTTP with signed requests, each over a connection of its own, and wait for news
by long polls as real ones do. Only the training is missing: the update is random. Started by service_load.py, with its
orders as JSON on the command line; it says "ready", and begins when it is told to.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import resource
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519
from pydantic import BaseModel

from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.shards import session_of
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder, sums_words, weight_units
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.api import NONCE_BYTES, SIGNATURE_LABEL, SIGNED_COMPONENTS, CohortReply, RunState, ShareInbox
from fedddpm_protocol.wire.messages import Confirmations, SignedDocument, Survivors
from fedddpm_protocol.wire.phases import Phase, has_reached

Vector = npt.NDArray[np.float32]
PART = "decoder"
_SAMPLES = 1000
_STACK_BYTES = 2**20
TRIES = 5
AT_WORK = 4  # institutions of a process that compute or wait for an answer; the others are in long polls, or in line


@dataclass(frozen=True)
class Orders:
    """What one client process does."""

    mode: str  # "round" or "idle"
    address: str  # host:port of the aggregator
    names: list[str]
    root: str  # the root's public key, hex
    rounds: int = 1
    poll_s: float = 240.0
    connections: int = 1  # per institution, when idle

    @property
    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))


@dataclass
class Log:
    """What the institutions of this process saw; times in Unix seconds."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # endpoint -> milliseconds
    joined: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # round -> when JOIN was answered
    ended: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # round -> when its end was seen
    up: int = 0
    down: int = 0
    errors: list[str] = field(default_factory=list)


class RefusedError(RuntimeError):
    """The aggregator answered with a problem document."""


@dataclass
class _Request:
    """As much of a request as a signature covers."""

    method: str
    url: str
    headers: dict[str, str]


def identity_of(name: str) -> SigningKey:
    """A member's key: it follows from its name, so that every process knows it."""
    return SigningKey(hashlib.sha256(f"service load: {name}".encode()).digest())


class Line:
    """One institution's connection. Its thread holds ``gate``, but not while a long poll is open."""

    def __init__(self, address: str, name: str, log: Log, gate: threading.Semaphore) -> None:
        self.name, self._address, self._log, self._gate = name, address, log, gate
        host, _, port = address.partition(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=90)
        private = Ed25519PrivateKey.from_private_bytes(identity_of(name).seed)
        keys = MappingKeyResolver(public_keys={}, private_keys={name: private})
        self._signer = HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=keys)

    def send(self, label: str, method: str, path: str, message: BaseModel | bytes = b"", waits: bool = False) -> bytes:
        """The reply's body; RefusedError for a problem document. ``label`` names the endpoint in the log."""
        body = message if isinstance(message, bytes) else message.model_dump_json().encode()
        kind = "application/octet-stream" if isinstance(message, bytes) else "application/json"
        for tries_left in reversed(range(TRIES)):
            try:
                status, reply = self._once(label, method, path, body, kind, waits)
                break
            except (ConnectionError, http.client.HTTPException):
                # Who stood in line for long finds its connection closed, as after any pause; real ones repeat as well.
                self._http.close()
                if not tries_left:
                    raise
        if status >= http.client.BAD_REQUEST:
            raise RefusedError(f"{label}: {status} {reply.decode(errors='replace')[:300]}")
        return reply

    def _once(self, label: str, method: str, path: str, body: bytes, kind: str, waits: bool) -> tuple[int, bytes]:
        request = _Request(method, f"http://{self._address}{path}", {"Host": self._address, "Content-Type": kind})
        self._signer.sign(
            request,
            key_id=self.name,
            label=SIGNATURE_LABEL,
            nonce=secrets.token_urlsafe(NONCE_BYTES),
            covered_component_ids=SIGNED_COMPONENTS,
            body=body,
        )
        started = time.perf_counter()
        self._http.request(method, path, body, request.headers)
        response, reply = self._answer() if not waits else self._answer_later()
        self._log.latencies[label].append((time.perf_counter() - started) * 1e3)
        self._log.up += len(body)
        self._log.down += len(reply)
        return response.status, reply

    def _answer(self) -> tuple[http.client.HTTPResponse, bytes]:
        response = self._http.getresponse()
        return response, response.read()

    def _answer_later(self) -> tuple[http.client.HTTPResponse, bytes]:
        self._gate.release()
        try:
            return self._answer()
        finally:
            self._gate.acquire()

    def state(self, after: int = 0, wait: float = 0.0) -> RunState:
        """The state; with ``wait`` a long poll, which is not logged among the latencies."""
        if wait:
            path, label = f"/v1/state?after={after}&wait={wait}", "long poll"
        else:
            path, label = "/v1/state", "GET state"
        return RunState.model_validate_json(self.send(label, "GET", path, waits=wait > 0))


class Institution:
    """One member, round after round."""

    def __init__(self, orders: Orders, name: str, log: Log, gate: threading.Semaphore) -> None:
        self._orders, self._log, self.line = orders, log, Line(orders.address, name, log, gate)
        self._state = self.line.state()
        document = SignedDocument.model_validate_json(self.line.send("GET roster", "GET", "/v1/roster"))
        self._roster: Roster = open_roster(document, bytes.fromhex(orders.root), 0)
        self._until(lambda state: state.spec is not None)
        self._sit_down()

    def take_part(self) -> None:
        """All rounds of the orders."""
        for index in range(self._orders.rounds):
            if index:
                self._until(lambda state, done=index: state.results >= done and state.spec is not None)  # type: ignore[misc]
                self._sit_down()
            self._round()

    def _sit_down(self) -> None:
        self._spec, self._part = _checked(self._state, self._roster)
        self._session = session_of(self._roster, PART, self.line.name, self._spec.draw)
        self._path = f"/v1/sessions/{self._spec.hash.hex()}/{self._session}"
        self._machine = Participant(
            identity=identity_of(self.line.name),
            member_id=self.line.name,
            roster=self._roster,
            plan=session_plan(self._spec, self._roster, self._session),
            floor=self._roster.n_min,
        )

    def _round(self) -> None:
        number, send, machine = self._spec.round, self.line.send, self._machine
        send("POST joins", "POST", f"{self._path}/joins", machine.join(1))
        self._log.joined[number].append(time.time())
        self._reach(Phase.SHARES)
        cohort = CohortReply.model_validate_json(send("GET cohort", "GET", f"{self._path}/cohort"))
        send("POST shares", "POST", f"{self._path}/shares", machine.receive_cohort(cohort.joins))
        self._reach(Phase.MASKED)
        inbox = ShareInbox.model_validate_json(send("GET shares", "GET", f"{self._path}/shares"))
        machine.receive_shares(inbox.items, inbox.deals)
        self._upload()
        self._reach(Phase.CONFIRM)
        survivors = Survivors.model_validate_json(send("GET survivors", "GET", f"{self._path}/survivors"))
        send(
            "POST confirmations", "POST", f"{self._path}/confirmations", machine.receive_survivors(survivors.survivors)
        )
        self._reach(Phase.UNMASK)
        reply = Confirmations.model_validate_json(send("GET confirmations", "GET", f"{self._path}/confirmations"))
        unmask = machine.receive_confirmations(reply.confirmations, lambda record: None)
        send("POST unmask", "POST", f"{self._path}/unmask", unmask)
        self._until(lambda state: state.results > number)
        self._log.ended[number].append(time.time())
        run = self._spec.run
        send("GET results", "GET", f"/v1/results?run={run}&from={number}")
        send("GET opened", "GET", f"/v1/results/{run}/{number}/opened/{self._session}")

    def _upload(self) -> None:
        weight = weight_units(_SAMPLES, self._spec)
        place = Place.of(self.line.name, self._machine.cohort_ids)
        values, weights = self._part.values, self._part.weights
        encoder = ValuesEncoder(self._spec, self._part, _update(self._part, self._spec.clip_norm), weight, place)
        for segment in (values, weights):
            for index in range(chunk_count(segment, self._spec.chunk_coordinates)):
                words = encoder.chunk(index) if segment is values else sums_words(self._part, weight, 0.5, 0.25)
                masked = self._machine.mask_chunk(segment.name, index, words)
                self.line.send("PUT chunks", "PUT", f"{self._path}/chunks/{segment.name}/{index}", masked)
        self.line.send("POST upload", "POST", f"{self._path}/upload", self._machine.finish_upload(None))

    def _reach(self, phase: Phase) -> None:
        def reached(state: RunState) -> bool:
            session = state.sessions.get(self._session)
            if session is None or session.phase is Phase.FAILED or state.round != self._spec.round:
                raise RefusedError(f"the session ended before {phase}: {session and session.reason}")
            return has_reached(session.phase, phase)

        self._until(reached)

    def _until(self, condition: Callable[[RunState], bool]) -> None:
        while not condition(self._state):
            self._state = self.line.state(self._state.version, self._orders.poll_s)


_UPDATES: dict[int, Vector] = {}
_MAKING = threading.Lock()


def _update(part: PartSpec, clip_norm: float) -> Vector:
    """One random update for all institutions of a process, of half the norm that is allowed: their memory is one."""
    with _MAKING:
        if part.parameters not in _UPDATES:
            vector = np.random.default_rng(part.parameters).standard_normal(part.parameters).astype(np.float32)
            _UPDATES[part.parameters] = vector * np.float32(0.5 * clip_norm / np.linalg.norm(vector))
    return _UPDATES[part.parameters]


_SPECS: dict[bytes, tuple[RoundSpec, PartSpec]] = {}


def _checked(state: RunState, roster: Roster) -> tuple[RoundSpec, PartSpec]:
    """The signed specification, checked once a process and not once an institution."""
    if state.spec is None:
        raise RefusedError("there is no specification yet")
    with _MAKING:
        if state.spec.body not in _SPECS:
            spec = open_spec(state.spec, roster)
            _SPECS[state.spec.body] = (spec, spec.part(PART))
    return _SPECS[state.spec.body]


class Idler:
    """Waits for news that never comes."""

    def __init__(self, orders: Orders, name: str, log: Log, gate: threading.Semaphore) -> None:
        self.line, self._poll_s, self._gate = Line(orders.address, name, log, gate), orders.poll_s, gate
        self._version = self.line.state().version

    def take_part(self) -> None:
        """One long poll after the other, at its own pace."""
        self._gate.release()
        time.sleep(secrets.randbelow(1000) / 1000 * self._poll_s)
        self._gate.acquire()
        while True:
            self._version = self.line.state(self._version, self._poll_s).version


def _in_threads(tasks: Sequence[Callable[[], None]], log: Log, gate: threading.Semaphore) -> None:
    def guarded(task: Callable[[], None]) -> None:
        try:
            with gate:
                task()
        except Exception as error:  # noqa: BLE001 - it goes into the report
            log.errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Orders on the command line."""
    orders, log = Orders(**json.loads(sys.argv[1])), Log()
    threading.stack_size(_STACK_BYTES)
    gate = threading.Semaphore(AT_WORK)
    clients: list[Institution | Idler] = []
    for name in orders.names:
        if orders.mode == "idle":
            clients += [Idler(orders, name, log, gate) for _ in range(orders.connections)]
        else:
            with gate:
                clients.append(Institution(orders, name, log, gate))
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    log.up = log.down = 0
    _in_threads([client.take_part for client in clients], log, gate)
    report = {
        "latencies": log.latencies,
        "joined": log.joined,
        "ended": log.ended,
        "up": log.up,
        "down": log.down,
        "errors": log.errors,
        "cpu_s": time.process_time() - before,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
