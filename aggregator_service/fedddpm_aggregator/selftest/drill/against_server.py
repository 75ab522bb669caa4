"""What strangers and members try on the server: no signatures, replays, other members' names, second content, documents
that nobody signed. The verdicts are those of the server that is served here, over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import httpx

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.drill.attack import NOBODY, SERVER, Attack, Verdict, refused
from fedddpm_aggregator.selftest.institution import STEPS, Institution, ProblemError, Seat
from fedddpm_aggregator.selftest.running import Throwaway, compare, opened, seats_of
from fedddpm_aggregator.service.administration.rosters import install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_aggregator.service.administration.runs import start_run
from fedddpm_aggregator.service.rounds.attempts import close_attempt, start_attempt
from fedddpm_protocol.agreement.charter import Charter, open_charter, sign_charter
from fedddpm_protocol.agreement.roster import sign_roster
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.api import ShareInbox, UploadStatus
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.phases import Phase

READ = "a stranger reads what is for members"


class Besieged:
    """A served federation and everybody's connection to it; each attack gets an attempt of its own."""

    def __init__(self, federation: Throwaway, institutions: Sequence[Institution], url: str) -> None:
        self.federation, self.institutions, self.url = federation, institutions, url
        self._past = b""

    @property
    def one(self) -> Institution:
        """A member."""
        return self.institutions[0]

    def seats(self) -> list[Seat]:
        """Everybody in a new attempt but who sits out; what is left of the one before is given up."""
        if self._past:
            with opened(self.federation) as ctx, ctx.transaction() as db:
                run = db.get_one(RunRow, 1)
                attempt = queries.newest_attempt(db, run.id, lock=True)
                if attempt is not None and attempt.spec_hash == self._past.hex() and attempt.status == "active":
                    close_attempt(ctx, db, attempt, "the next attack of the drill")
                    start_attempt(ctx, db, run)
        seats = seats_of(self.federation, self.institutions, self._past)
        self._past = seats[0].spec.hash
        out = {one.member for one in self.one.state().excluded}
        return [seat for seat in seats if seat.name not in out]

    def seats_after(self, last: str) -> list[Seat]:
        """As :meth:`seats`, when everybody has taken the steps up to ``last``."""
        seats = self.seats()
        take(seats, STEPS[: STEPS.index(last) + 1])
        return seats


def take(seats: Sequence[Seat], steps: Sequence[str]) -> None:
    """Let all seats take the steps, each step by everybody before the next."""
    for step in steps:
        for seat in seats:
            getattr(seat, step)()


@contextlib.contextmanager
def _stranger(besieged: Besieged, name: str) -> Iterator[Institution]:
    """A connection in the name ``name`` with a key that the roster does not hold."""
    stranger = Institution(besieged.url, name, SigningKey.generate())
    try:
        yield stranger
    finally:
        stranger.close()


def _sent(institution: Institution, request: httpx.Request) -> httpx.Response:
    response = institution.http.send(request)
    if response.status_code >= httpx.codes.BAD_REQUEST:
        raise ProblemError(response)
    return response


# --- requests ---------------------------------------------------------------------------------------------------------


def unsigned(besieged: Besieged) -> Verdict:
    """A request without a signature."""
    one = besieged.one
    return refused(SERVER, lambda: _sent(one, one.http.build_request("GET", "/v1/state")), READ)


def a_strangers_key(besieged: Besieged) -> Verdict:
    """A member's name under a stranger's signature."""
    with _stranger(besieged, besieged.one.name) as stranger:
        return refused(SERVER, lambda: stranger.send("GET", "/v1/state"), READ)


def replayed(besieged: Besieged) -> Verdict:
    """A member's request, sent once more as it is."""
    one = besieged.one
    request = one.signed("GET", "/v1/state")
    _sent(one, request)
    return refused(SERVER, lambda: _sent(one, request), "a recorded request works again")


def changed_on_the_way(besieged: Besieged) -> Verdict:
    """A member's JOIN with another body under the signature of the request."""
    seat = besieged.seats()[0]
    again = Seat(seat.institution, seat.roster, seat.spec, seat.session, seed=0)
    message, other = (one.machine.join(1).model_dump_json().encode() for one in (seat, again))
    kind = {"content-type": "application/json"}
    signed = seat.institution.signed("POST", f"{seat.path}/joins", message, kind)
    altered = httpx.Request("POST", signed.url, headers=signed.headers, content=other)  # of the same length
    return refused(SERVER, lambda: _sent(seat.institution, altered), "a request can be changed on the way")


def oversized(besieged: Besieged) -> Verdict:
    """A chunk larger than any may be."""
    seat = besieged.seats_after("share")[0]
    seat.wait_for(Phase.MASKED)
    large = bytes(besieged.federation.settings.max_chunk_bytes + 1)
    return refused(SERVER, lambda: seat.put(seat.part.values.name, 0, large), "one member can fill the memory")


def operators_work(besieged: Besieged) -> Verdict:
    """A member asks for what operators may."""
    path = f"/v1/operator/runs/{besieged.seats()[0].spec.run}/end"
    return refused(SERVER, lambda: besieged.one.send("POST", path), "a member can end runs")


def unsigned_roster(besieged: Besieged) -> Verdict:
    """A roster that the root did not sign, for the server."""
    signed = sign_roster(besieged.federation.roster, SigningKey.generate())

    def install(document: SignedDocument) -> None:
        with opened(besieged.federation) as ctx:
            install_roster(ctx, document)

    return refused(SERVER, lambda: install(signed), "whoever reaches the server decides who is a member")


def foreign_charter(besieged: Besieged) -> Verdict:
    """A charter that the root did not sign, for the server."""
    signed = sign_charter(_next_charter(besieged, 1), SigningKey.generate())
    return refused(SERVER, lambda: _start(besieged, signed), "whoever reaches the server decides what is trained")


def older_charter(besieged: Besieged) -> Verdict:
    """A charter that the root signed before that of the run which goes on, and which would end it."""
    signed = sign_charter(_next_charter(besieged, -1), besieged.federation.root_key)
    return refused(SERVER, lambda: _start(besieged, signed), "a run that was called off comes back")


def _next_charter(besieged: Besieged, after: int) -> Charter:
    """The charter of another run in the place of this one, whose number is so much higher."""
    document = besieged.one.state().charter
    if document is None:
        raise SelftestError("the server shows no charter")
    charter = open_charter(document, besieged.federation.root_key.public_key)
    return dataclasses.replace(charter, number=charter.number + after, run="other", ends=(charter.run,))


def _start(besieged: Besieged, charter: SignedDocument) -> None:
    with opened(besieged.federation) as ctx:
        start_run(ctx, charter, OperatorSettings(), besieged.federation.first_model)


# --- one member against another ---------------------------------------------------------------------------------------


def anothers_name(besieged: Besieged) -> Verdict:
    """One member sends another's JOIN."""
    one, other = besieged.seats()[:2]
    message = other.machine.join(1)
    return refused(SERVER, lambda: one.post("joins", message), "one member speaks for another")


def anothers_shares(besieged: Besieged) -> Verdict:
    """A member looks for shares that are not for it."""
    seat = besieged.seats_after("share")[0]
    seat.wait_for(Phase.MASKED)
    items = ShareInbox.model_validate_json(seat.get("shares")).items
    others = sorted({item.recipient for item in items} - {seat.name})
    if others:
        return Verdict(NOBODY, f"shares for {', '.join(others)}, and with them their masks")
    return Verdict(f"{SERVER}: gives {len(items)} shares, all of them for the member that asks")


def anothers_upload(besieged: Besieged) -> Verdict:
    """A member looks for what another one uploaded."""
    first, second = besieged.seats_after("share")[:2]
    first.upload()
    second.wait_for(Phase.MASKED)
    status = UploadStatus.model_validate_json(second.get("upload"))
    if status.complete or any(status.chunks.values()):
        return Verdict(NOBODY, f"the upload of {first.name}")
    chunk = f"chunks/{first.part.values.name}/0"
    return refused(SERVER, lambda: second.get(chunk), f"a masked chunk of {first.name}")


def second_content(besieged: Besieged) -> Verdict:
    """A member sends a chunk again with other bytes."""
    seat = besieged.seats_after("share")[0]
    seat.mask()
    name, first = seat.part.values.name, seat.chunks[seat.part.values.name, 0]
    seat.put(name, 0)
    changed = first[:-1] + bytes([first[-1] ^ 1])
    return refused(SERVER, lambda: seat.put(name, 0, changed), "an update can be changed after it was sent")


def altered_manifest(besieged: Besieged) -> Verdict:
    """A member names other chunks than those it sent."""
    seat = besieged.seats_after("share")[0]
    seat.mask()
    for segment, index in seat.chunks:
        seat.put(segment, index)
    manifest = seat.machine.finish_upload()
    chunks = {name: (bytes(32), *digests[1:]) for name, digests in manifest.chunks.items()}
    altered = manifest.model_copy(update={"chunks": chunks})
    return refused(SERVER, lambda: seat.post("upload", altered), "an upload that is not there counts as one")


# --- sums -------------------------------------------------------------------------------------------------------------


def dropped(besieged: Besieged) -> Verdict:
    """One member shares, and is never heard of again."""
    seats = besieged.seats_after("share")
    lost, survivors = seats[-1], seats[:-1]
    again = Seat(lost.institution, lost.roster, lost.spec, lost.session, seed=0)
    with contextlib.suppress(ProblemError):  # its JOIN says that its secrets are lost: nobody waits for it
        again.join(seq=2)
    take(survivors, STEPS[2:])
    return exact(besieged, survivors, f"{lost.name} is left out")


def exact(besieged: Besieged, survivors: Sequence[Seat], words: str) -> Verdict:
    """The sum that was published is exactly that of ``survivors``, or something is wrong."""
    try:
        compare(besieged.federation, survivors)
    except SelftestError as error:
        return Verdict(NOBODY, f"a wrong sum was published: {error}")
    return Verdict(f"{SERVER}: {words}, and the sum of {len(survivors)} is exact")


ATTACKS: tuple[Attack[Besieged], ...] = (
    Attack("no signature", "a request that nobody signed", unsigned),
    Attack("stranger's signature", "a member's name under another key", a_strangers_key),
    Attack("replayed request", "a recorded request, sent again", replayed),
    Attack("changed request", "another body under a member's signature", changed_on_the_way),
    Attack("oversized body", "a chunk that is larger than any", oversized),
    Attack("operator's work", "a member asks to end the run", operators_work),
    Attack("unsigned roster", "a roster that the root did not sign", unsigned_roster),
    Attack("foreign charter, at the server", "a run that the root did not sign", foreign_charter),
    Attack("older charter", "a run from before the one that goes on", older_charter),
    Attack("another's name", "one member sends another's JOIN", anothers_name),
    Attack("another's shares", "a member looks for shares of others", anothers_shares),
    Attack("another's upload", "a member looks for a masked update", anothers_upload),
    Attack("second content", "a chunk is sent again with other bytes", second_content),
    Attack("altered manifest", "chunks are named that were not sent", altered_manifest),
    Attack("a member drops", "one is lost between its shares and its upload", dropped),
)
