"""An institution without training: the real machine of the protocol, speaking signed HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519
from pydantic import BaseModel

from fedddpm_protocol import canonical, ring
from fedddpm_protocol.api import SIGNED_COMPONENTS, CohortReply, RunState, ShareInbox
from fedddpm_protocol.chunks import chunk_count, chunk_span
from fedddpm_protocol.cohort import session_plan
from fedddpm_protocol.encoding import Place, ValuesEncoder, sums_words, weight_units
from fedddpm_protocol.keys import SigningKey
from fedddpm_protocol.messages import Confirmations, Join, Survivors, Unmask
from fedddpm_protocol.participant import Participant
from fedddpm_protocol.phases import Phase
from fedddpm_protocol.policy import LocalPolicy, check_spec
from fedddpm_protocol.roster import Roster
from fedddpm_protocol.spec import RoundSpec, SegmentSpec

ORDER = [*Phase]


class ProblemError(Exception):
    """A problem document as an exception."""

    def __init__(self, response: httpx.Response) -> None:
        document = response.json()
        super().__init__(document["detail"])
        assert response.headers["content-type"] == "application/problem+json"
        assert document["status"] == response.status_code
        assert document["type"] == f"urn:fedddpm:problem:{document['code']}"
        self.status, self.code, self.document = response.status_code, str(document["code"]), document


class Institution:
    """A member's connection. Requests are tried again while the server is away."""

    def __init__(self, url: str, name: str, key: SigningKey, patience_s: float = 60.0) -> None:
        self.name, self.key, self._patience_s = name, key, patience_s
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        private = Ed25519PrivateKey.from_private_bytes(key.seed)
        keys = MappingKeyResolver(public_keys={}, private_keys={name: private})
        self.signer = HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=keys)

    def signed(
        self, method: str, path: str, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Request:
        request = self.http.build_request(method, path, content=content, headers=headers)
        self.signer.sign(
            request,
            key_id=self.name,
            label="sig1",
            nonce=secrets.token_urlsafe(18),
            covered_component_ids=SIGNED_COMPONENTS,
            body=content,
        )
        return request

    def send(self, method: str, path: str, message: BaseModel | bytes | None = None) -> httpx.Response:
        """A signed request; raises ProblemError for a refusal."""
        json_body = isinstance(message, BaseModel)
        content = message.model_dump_json().encode() if isinstance(message, BaseModel) else message or b""
        kind = "application/json" if json_body else "application/octet-stream"
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                response = self.http.send(self.signed(method, path, content, {"content-type": kind}))
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if response.status_code >= 400:
            raise ProblemError(response)
        return response

    def state(self, after: int = 0, wait: float = 0.0) -> RunState:
        path = f"/v1/state?after={after}&wait={wait}" if wait else "/v1/state"
        return RunState.model_validate_json(self.send("GET", path).content)

    def close(self) -> None:
        self.http.close()


class Seat:
    """One institution in one session, with a made-up update of ``seed``."""

    def __init__(
        self, institution: Institution, roster: Roster, spec: RoundSpec, part: str, seed: int, **participant: object
    ) -> None:
        self.institution, self.roster, self.spec = institution, roster, spec
        self.session, self.part = part, spec.part(part)
        policy = LocalPolicy(architecture_hash=spec.architecture.hash)
        self.machine = Participant(
            identity=institution.key,
            member_id=institution.name,
            roster=roster,
            plan=session_plan(spec, roster, part),
            policy=policy,
            **participant,  # type: ignore[arg-type]
        )
        self.samples = 100 + seed
        size = self.part.parameters
        scale = min(0.1, 0.5 * spec.clip_norm / size**0.5)
        self.delta = np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)
        self.path = f"/v1/sessions/{spec.hash.hex()}/{part}"
        self.words: dict[str, list[np.ndarray]] = {}
        self.chunks: dict[tuple[str, int], bytes] = {}
        self.join_message: Join
        self.unmask_message: Unmask

    @property
    def name(self) -> str:
        return self.institution.name

    def wait_for(self, phase: Phase, timeout_s: float = 60.0) -> None:
        """Until the session is in ``phase`` or past it; AssertionError if it failed."""
        deadline = time.monotonic() + timeout_s
        version = 0
        while time.monotonic() < deadline:
            state = self.institution.state(version, 2.0 if version else 0.0)
            session = state.sessions[self.session]
            if state.spec is None or state.spec.body != _body(self.spec):
                return  # a later attempt or round: this session is over
            if ORDER.index(session.phase) >= ORDER.index(phase):
                assert session.phase is not Phase.FAILED or phase is Phase.FAILED, session.reason
                return
            version = state.version
        raise AssertionError(f"{self.name} waited in vain for {phase}")

    def join(self, seq: int = 1) -> str:
        self.join_message = self.machine.join(seq)
        return str(self.post("joins", self.join_message).json()["outcome"])

    def share(self) -> None:
        self.wait_for(Phase.SHARES)
        cohort = CohortReply.model_validate_json(self.get("cohort"))
        self.shares_message = self.machine.receive_cohort(cohort.joins)
        self.post("shares", self.shares_message)

    def mask(self) -> None:
        """Receive shares and mask everything, without uploading."""
        self.wait_for(Phase.MASKED)
        inbox = ShareInbox.model_validate_json(self.get("shares"))
        self.machine.receive_shares(inbox.items)
        weight = weight_units(self.samples, self.spec)
        place = Place.of(self.name, self.machine.cohort_ids)
        encoder = ValuesEncoder(self.spec, self.part, self.delta, weight, place)
        sums = sums_words(self.part, weight, 0.5, 0.25)
        for segment in self.part.segments:
            count = chunk_count(segment, self.spec.chunk_coordinates)
            plain = [encoder.chunk(index) if segment is self.part.values else sums for index in range(count)]
            self.words[segment.name] = [words.copy() for words in plain]
            for index, words in enumerate(plain):
                self.chunks[segment.name, index] = self.machine.mask_chunk(segment.name, index, words)

    def encode_unchecked(self, values: np.ndarray) -> None:
        """As :meth:`mask` for ring words that no honest encoder would give."""
        self.wait_for(Phase.MASKED)
        self.machine.receive_shares(ShareInbox.model_validate_json(self.get("shares")).items)
        sums = sums_words(self.part, weight_units(self.samples, self.spec), 0.5, 0.25)
        for segment, words in ((self.part.values, values), (self.part.weights, sums)):
            for index in range(chunk_count(segment, self.spec.chunk_coordinates)):
                start, count = chunk_span(segment, self.spec.chunk_coordinates, index)
                self.chunks[segment.name, index] = self.machine.mask_chunk(
                    segment.name, index, words[start : start + count].copy()
                )

    def put(self, segment: str, index: int, data: bytes | None = None) -> None:
        content = self.chunks[segment, index] if data is None else data
        self.institution.send("PUT", f"{self.path}/chunks/{segment}/{index}", content)

    def finish(self) -> None:
        disclosed = self.samples if self.spec.weighting == "disclosed" else None
        self.manifest = self.machine.finish_upload(disclosed)
        self.post("upload", self.manifest)

    def upload(self) -> None:
        self.mask()
        for segment, index in self.chunks:
            self.put(segment, index)
        self.finish()

    def confirm(self) -> None:
        self.wait_for(Phase.CONFIRM)
        survivors = Survivors.model_validate_json(self.get("survivors"))
        self.confirmation = self.machine.receive_survivors(survivors.survivors)
        self.post("confirmations", self.confirmation)

    def unmask(self) -> None:
        self.wait_for(Phase.UNMASK)
        confirmations = Confirmations.model_validate_json(self.get("confirmations"))
        self.unmask_message = self.machine.receive_confirmations(confirmations.confirmations, lambda record: None)
        self.post("unmask", self.unmask_message)

    def post(self, step: str, message: BaseModel) -> httpx.Response:
        return self.institution.send("POST", f"{self.path}/{step}", message)

    def get(self, step: str) -> bytes:
        return self.institution.send("GET", f"{self.path}/{step}").content


STEPS = ("join", "share", "upload", "confirm", "unmask")


def take_seats(
    institutions: Iterable[Institution], roster: Roster, state: RunState, part: str, **participant: object
) -> list[Seat]:
    """Everybody who reports ``part`` in the current attempt."""
    assert state.spec is not None
    spec = spec_of(state, roster)
    reporters = session_plan(spec, roster, part).reporters
    return [
        Seat(institution, roster, spec, part, seed, **participant)
        for seed, institution in enumerate(institutions)
        if institution.name in reporters
    ]


def spec_of(state: RunState, roster: Roster) -> RoundSpec:
    assert state.spec is not None
    spec = canonical.decode(RoundSpec, state.spec.body)
    return check_spec(state.spec, roster, LocalPolicy(architecture_hash=spec.architecture.hash))


def drive(seats: Iterable[Seat], steps: Iterable[str] = STEPS) -> None:
    """Let all seats take the steps, each step by everybody before the next."""
    seats = list(seats)
    for step in steps:
        for seat in seats:
            getattr(seat, step)()


def expected_sum(seats: Sequence[Seat], segment: SegmentSpec) -> ring.Words:
    """The integer sum of what the seats encoded, in the ring."""
    total = ring.zeros(segment.coordinates, segment.bits)
    for seat in seats:
        ring.add_in_place(total, np.concatenate(seat.words[segment.name]), segment.bits)
    return total


def _body(spec: RoundSpec) -> bytes:
    return canonical.encode(spec)
