"""An institution without training: the real machine of the protocol, speaking signed HTTP.

Its update is made up from a seed, so that everybody can compute what the sum must be. The tests of the aggregator
drive whole cohorts of these as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import httpx
import numpy as np
from pydantic import BaseModel

from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.security.client_signing import message_signer, sign_request
from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec, SegmentSpec
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder, sums_words, weight_units
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.api import CohortReply, RunState, ShareInbox
from fedddpm_protocol.wire.messages import Confirmations, Join, Survivors, Unmask
from fedddpm_protocol.wire.phases import Phase, has_reached

STEPS = ("join", "share", "upload", "confirm", "unmask")
_LOSSES = 0.5, 0.25  # before and after, of everybody


class ProblemError(Exception):
    """A problem document (RFC 9457) as an exception."""

    def __init__(self, response: httpx.Response) -> None:
        document = response.json()
        super().__init__(document["detail"])
        said = (response.headers["content-type"], document["status"], document["type"])
        code = str(document["code"])
        if said != ("application/problem+json", response.status_code, f"urn:fedddpm:problem:{code}"):
            raise SelftestError(f"a refusal with status {response.status_code} is no problem document: {document}")
        self.status, self.code, self.document = response.status_code, code, document


class Institution:
    """A member's connection. Requests are tried again while the server is away."""

    def __init__(self, url: str, name: str, key: SigningKey, patience_s: float = 60.0) -> None:
        self.name, self.key, self._patience_s = name, key, patience_s
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self.signer = message_signer(name, key)

    def signed(
        self, method: str, path: str, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Request:
        """A request with this member's signature."""
        request = self.http.build_request(method, path, content=content, headers=headers)
        sign_request(self.signer, self.name, request)
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
        """The run as the server tells it: now, or when there is news after version ``after``, ``wait`` seconds long."""
        path = f"/v1/state?after={after}&wait={wait}" if wait else "/v1/state"
        return RunState.model_validate_json(self.send("GET", path).content)

    def close(self) -> None:
        """Give up the connection."""
        self.http.close()


class Seat:
    """One institution in one session, with a made-up update of ``seed``. Its steps are methods, in ``STEPS``' order."""

    def __init__(
        self, institution: Institution, roster: Roster, spec: RoundSpec, part: str, seed: int, **participant: object
    ) -> None:
        self.institution, self.roster, self.spec = institution, roster, spec
        self.session, self.part = part, spec.part(part)
        self.machine = Participant(
            identity=institution.key,
            member_id=institution.name,
            roster=roster,
            plan=session_plan(spec, roster, part),
            floor=roster.n_min,
            **participant,  # type: ignore[arg-type]
        )
        self.samples = 100 + seed
        size = self.part.parameters
        scale = min(0.1, 0.5 * spec.clip_norm / size**0.5)
        self.delta = np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)
        self.path = f"/v1/sessions/{spec.hash.hex()}/{part}"
        self.words: dict[str, list[ring.Words]] = {}  # before the masks, by segment and chunk
        self.chunks: dict[tuple[str, int], bytes] = {}  # masked
        self.join_message: Join
        self.unmask_message: Unmask

    @property
    def name(self) -> str:
        """The member's id."""
        return self.institution.name

    def wait_for(self, phase: Phase, timeout_s: float = 60.0) -> None:
        """Until the session is in ``phase`` or past it; SelftestError if it failed or takes longer."""
        deadline = time.monotonic() + timeout_s
        version = 0
        while time.monotonic() < deadline:
            state = self.institution.state(version, 2.0 if version else 0.0)
            session = state.sessions[self.session]
            if state.spec is None or state.spec.body != canonical.encode(self.spec):
                return  # a later attempt or round: this session is over
            if has_reached(session.phase, phase):
                if session.phase is Phase.FAILED and phase is not Phase.FAILED:
                    raise SelftestError(f"the session failed before {phase.value}: {session.reason}")
                return
            version = state.version
        raise SelftestError(f"{self.name} waited for {phase.value} for {timeout_s:.0f} s in vain")

    def join(self, seq: int = 1) -> str:
        """Ask to take part; the server's word for it."""
        self.join_message = self.machine.join(seq)
        return str(self.post("joins", self.join_message).json()["outcome"])

    def share(self) -> None:
        """Share this session's secrets with the cohort."""
        self.wait_for(Phase.SHARES)
        cohort = CohortReply.model_validate_json(self.get("cohort"))
        self.shares_message = self.machine.receive_cohort(cohort.joins)
        self.post("shares", self.shares_message)

    def mask(self) -> None:
        """Receive shares and mask everything, without uploading."""
        self.wait_for(Phase.MASKED)
        self.mask_after(ShareInbox.model_validate_json(self.get("shares")))

    def mask_after(self, inbox: ShareInbox) -> None:
        """Mask everything once these shares are here."""
        self.machine.receive_shares(inbox.items, inbox.deals)
        weight = weight_units(self.samples, self.spec)
        place = Place.of(self.name, self.machine.cohort_ids, self.roster.c_max)
        encoder = ValuesEncoder(self.spec, self.part, self.delta, weight, place)
        sums = sums_words(self.part, weight, *_LOSSES)
        for segment in self.part.segments:
            count = chunk_count(segment, self.spec.chunk_coordinates)
            plain = [encoder.chunk(index) if segment is self.part.values else sums for index in range(count)]
            self.words[segment.name] = [words.copy() for words in plain]
            for index, words in enumerate(plain):
                self.chunks[segment.name, index] = self.machine.mask_chunk(segment.name, index, words)

    def put(self, segment: str, index: int, data: bytes | None = None) -> None:
        """Upload one masked chunk, or other bytes in its place."""
        content = self.chunks[segment, index] if data is None else data
        self.institution.send("PUT", f"{self.path}/chunks/{segment}/{index}", content)

    def finish(self) -> None:
        """Say what was uploaded."""
        disclosed = self.samples if self.spec.weighting == "disclosed" else None
        self.manifest = self.machine.finish_upload(disclosed)
        self.post("upload", self.manifest)

    def upload(self) -> None:
        """Mask and upload everything."""
        self.mask()
        for segment, index in self.chunks:
            self.put(segment, index)
        self.finish()

    def confirm(self) -> None:
        """Sign who is in the sum."""
        self.wait_for(Phase.CONFIRM)
        survivors = Survivors.model_validate_json(self.get("survivors"))
        self.confirmation = self.machine.receive_survivors(survivors.survivors)
        self.post("confirmations", self.confirmation)

    def unmask(self) -> None:
        """Release the shares that open this sum."""
        self.wait_for(Phase.UNMASK)
        confirmations = Confirmations.model_validate_json(self.get("confirmations"))
        self.unmask_message = self.machine.receive_confirmations(confirmations.confirmations, lambda record: None)
        self.post("unmask", self.unmask_message)

    def post(self, step: str, message: BaseModel) -> httpx.Response:
        """Send a message of the session."""
        return self.institution.send("POST", f"{self.path}/{step}", message)

    def get(self, step: str) -> bytes:
        """Fetch what the session has for this member."""
        return self.institution.send("GET", f"{self.path}/{step}").content


def spec_of(state: RunState, roster: Roster) -> RoundSpec:
    """The specification of the attempt that is open, checked as every institution checks it."""
    if state.spec is None:
        raise SelftestError("the server offers no round")
    return open_spec(state.spec, roster)


def expected_sum(seats: Sequence[Seat], segment: SegmentSpec) -> ring.Words:
    """The integer sum of what the seats encoded, in the ring."""
    total = ring.zeros(segment.coordinates, segment.bits)
    for seat in seats:
        ring.add_in_place(total, np.concatenate(seat.words[segment.name]), segment.bits)
    return total
