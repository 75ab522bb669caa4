"""One secure sum from this institution's side: what the aggregator's phase allows, the protocol's machine does."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedddpm.errors import TransportError
from fedddpm.identity import Identity
from fedddpm.rounds.trust import AcceptedSpec
from fedddpm.state.confirmed_sums import ConfirmedSums
from fedddpm.state.evidence import keep_evidence
from fedddpm.state.folder import StateFolder
from fedddpm.state.sealed_secrets import SealedSecrets, SealedSecretsBook
from fedddpm.state.secret import rounding_seed
from fedddpm.state.spent_ledger import OwedUnmask, SpentLedger
from fedddpm.transport.endpoints import FederationApi, SessionApi
from fedddpm.transport.problems import ProblemError, SecondClientError
from fedddpm.updates.contribution import Contribution, Pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import CohortTooSmallError, PeerProtocolError, SpentError
from fedddpm_protocol.primitives.ring import packed_bytes
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentRecord
from fedddpm_protocol.wire.messages import Confirmation, Deal, Join, Message, Survivor
from fedddpm_protocol.wire.phases import ClientState, Phase, has_reached
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum

_UPLOAD_PASSES = 3


@dataclass(frozen=True)
class Seat:
    """Who takes part, and with which durable memory."""

    identity: Identity
    member_id: str
    state: StateFolder
    ledger: SpentLedger
    on_upload: Callable[[str, int, int], None]  # what, bytes so far, bytes in all
    keeps_for_auditor: bool  # what opens an update to the roster's auditor


class SessionDriver:
    """Drives one participant through one session.

    ``left`` says why this institution is out of the session; the update stays and the next attempt may use it.
    """

    def __init__(
        self,
        seat: Seat,
        transport: FederationApi,
        accepted: AcceptedSpec,
        session: str,
        update: LocalUpdate,
        pieces: Pieces,
    ) -> None:
        self.left: str | None = None
        spec = accepted.spec
        self._seat, self._accepted, self._spec = seat, accepted, spec
        self._session, self._part = session, spec.part(session)
        self._api: SessionApi = transport.session(spec.hash, session)
        rounding = rounding_seed(seat.state, spec.base_model_hash, self._part.name)
        self._contribution = Contribution(spec, self._part.name, update, pieces, rounding)
        self._digest = update.digest
        self._auditor = accepted.roster.auditor if seat.keeps_for_auditor else None
        self._words = hashlib.sha256()  # of all that was masked, where an auditor may be shown it
        self._join: Join | None = None
        self._roster_document = seat.state.roster_document  # the one that the specification was accepted under
        self._joins: Sequence[Join] = ()
        self._deals: tuple[Deal, ...] = ()
        self._survivors: Sequence[Survivor] = ()
        self._received: Message | None = None  # what the aggregator said last, kept if it breaks the protocol
        self._participant = self._new_participant()

    @property
    def done(self) -> bool:
        """Whether nothing is left to do in this session."""
        return self.left is not None or self._participant.state is ClientState.DONE

    @property
    def joined(self) -> bool:
        """Whether this institution has offered itself for the cohort."""
        return self._join is not None

    @property
    def uploaded(self) -> bool:
        """Whether the aggregator has this institution's whole masked update."""
        return self._participant.state in (ClientState.UPLOADED, ClientState.CONFIRMED, ClientState.DONE)

    @property
    def upload_bytes(self) -> int:
        """Size of the masked update."""
        return sum(packed_bytes(segment.coordinates, segment.bits) for segment in self._part.segments)

    def advance(self, phase: Phase) -> None:
        """Take every step that ``phase`` allows.

        Raises:
            SecondClientError: somebody else uses this identity.
            TransportError: the aggregator refused or is unreachable.
            LocalProtocolError: this institution would have broken its own rules.
        """
        steps: dict[ClientState, tuple[Phase, Callable[[], None]]] = {
            ClientState.TRAINED: (Phase.JOIN, self._send_join),
            ClientState.JOINED: (Phase.SHARES, self._send_shares),
            ClientState.SHARED: (Phase.MASKED, self._upload),
            ClientState.UPLOADED: (Phase.CONFIRM, self._confirm),
            ClientState.CONFIRMED: (Phase.UNMASK, self._unmask),
        }
        try:
            while not self.done:
                if has_reached(phase, Phase.OPENING):
                    return self.leave(f"the session is over ({phase.value})")
                if phase is Phase.UNMASK and self._participant.state is ClientState.TRAINED:
                    return self.leave("the sum is being opened without this process")
                opens, step = steps[self._participant.state]
                if not has_reached(phase, opens):
                    return None
                step()
        except ProblemError as problem:
            if not problem.moved_on:
                raise
            self.leave(problem.happened)
        except (PeerProtocolError, SpentError) as error:
            # Too small a cohort is nobody's lie; whatever else breaks the protocol is kept, to be shown to people.
            if isinstance(error, PeerProtocolError) and not isinstance(error, CohortTooSmallError):
                keep_evidence(self._seat.state.path, self._spec.hash, self._session, error, self._received)
            self._accuse()
            self.leave(str(error))
        return None

    def _accuse(self) -> None:
        """Tell of shares that are not as their dealers committed to: the aggregator can then name who it was."""
        accusation = self._participant.accusation
        if accusation is not None:
            with contextlib.suppress(ProblemError):  # too late, or refused: it is kept here
                self._api.accuse(accusation)

    def leave(self, reason: str) -> None:
        """Forget the session's secrets; the stored update stays for the next attempt."""
        self._participant.abort()
        self.left = reason

    def check_newer_roster(self, roster: Roster) -> None:
        """Leave if a newer roster removes a member of this cohort or allows for more conspirators."""
        if not self.done:
            try:
                self._participant.check_newer_roster(roster)
            except PeerProtocolError as error:
                self.leave(str(error))

    # --- steps -----------------------------------------------------------------------------------------------------

    def _new_participant(self) -> Participant:
        seat, roster, base, part = self._seat, self._accepted.roster, self._spec.base_model_hash, self._part.name
        return Participant(
            identity=seat.identity.key,
            member_id=seat.member_id,
            roster=roster,
            plan=session_plan(self._spec, roster, self._session),
            floor=self._accepted.floor,
            recorded_u3=seat.ledger.recorded(base, part),
            release=seat.ledger.release(roster, base, part),
            answers=seat.ledger.answers(base, part),
        )

    def _send_join(self) -> None:
        # The number is durable before it is sent: what a restarted process sends is newer than all it sent before.
        self._join = self._participant.join(self._seat.state.next_seq())
        receipt = self._api.join(self._join)
        if receipt.outcome == "stale":
            raise SecondClientError(
                f"the aggregator has a newer JOIN (number {receipt.newest_seq}) of {self._seat.member_id!r} than this"
                " one: another process uses this identity, or this state folder is an old copy",
                "Stop the other one; after a restore from a backup start with --after-restore",
            )

    def _send_shares(self) -> None:
        self._received = reply = self._api.cohort()
        joins = reply.joins
        # The participant would refuse these two as well; here they are told apart, with what to do about them.
        own = [join for join in joins if join.parse().id == self._seat.member_id]
        if not own:
            return self.leave("the cohort closed without this institution")
        if self._join is None or own[0].body != self._join.body:
            raise SecondClientError(
                f"the cohort holds a JOIN of {self._seat.member_id!r} that this process did not send",
                "Another process uses this identity: stop one of the two. If there is none, the key is in other hands:"
                " call the coordinator and have it removed from the roster",
            )
        self._api.post_shares(self._participant.receive_cohort(joins))
        self._joins = joins
        return None

    def _upload(self) -> None:
        self._received = inbox = self._api.share_inbox()
        if self._seat.member_id not in inbox.sharers:
            return self.leave("this institution's shares came too late")
        self._participant.receive_shares(inbox.items, inbox.deals)
        self._deals = inbox.deals
        # The scale follows from the size of the cohort, which is fixed now, so nothing was encoded before.
        self._contribution.take_place(self._seat.member_id, self._participant.cohort_ids, self._accepted.roster.c_max)
        # Before the first masked chunk leaves: no other update of this base model may ever follow it.
        self._seat.ledger.give(self._spec.base_model_hash, self._digest)
        # What the aggregator says it has is asked for again after each pass: it may have lost chunks in a crash.
        for _ in range(_UPLOAD_PASSES):
            if not self._upload_missing():
                break
        else:
            raise TransportError(
                "the aggregator keeps losing uploaded chunks", "Its operator must look at its disk; start again later"
            )
        self._api.complete_upload(self._participant.finish_upload(self._contribution.disclosed_samples))
        return None

    def _upload_missing(self) -> int:
        """Encode, mask and send the chunks that are not there yet; how many there were."""
        there = self._api.upload_status().chunks
        total, done, sent = self.upload_bytes, 0, 0  # bytes, bytes, chunks
        self._words = hashlib.sha256()
        for segment in self._part.segments:
            for index in range(chunk_count(segment, self._spec.chunk_coordinates)):
                # Masked anew in every pass instead of being kept, which would take the memory of a second vector: the
                # same words under the same mask give the same bytes.
                words = self._contribution.words(segment, index)
                if self._auditor is not None:
                    self._words.update(words.data)
                data = self._participant.mask_chunk(segment.name, index, words)
                done += len(data)
                if there.get(segment.name, {}).get(index) != hashlib.sha256(data).hexdigest():
                    self._api.put_chunk(segment.name, index, data, self._parameters(segment, index))
                    sent += 1
                self._seat.on_upload(f"uploading {self._session}", done, total)
        return sent

    def _parameters(self, segment: SegmentSpec, index: int) -> int:
        """Parameters of the model in a chunk, without padding; sums of weights and losses are none."""
        if segment != self._part.values:
            return 0
        start, count = chunk_span(segment, self._spec.chunk_coordinates, index)
        return max(0, min(count, self._part.parameters - start))

    def _confirm(self) -> None:
        self._received = reply = self._api.survivors()
        survivors = reply.survivors
        if self._seat.member_id not in {survivor.id for survivor in survivors}:
            return self.leave("this institution's upload came too late")
        self._api.confirm(self._participant.receive_survivors(survivors))
        self._survivors = survivors
        return None

    def _unmask(self) -> None:
        self._received = reply = self._api.confirmations()
        confirmations = reply.confirmations
        spec_hash = self._spec.hash

        def commit(record: SpentRecord) -> None:
            # Once the confirmations hold, and no sooner: what is kept of an earlier attempt goes here. The ledger has
            # the answer on the disk before there is a message: after a crash in between it is owed, and sent at the
            # next start as it is, for a second one over other survivors would give the update away.
            self._remember_sum(confirmations)
            self._seal_secrets()
            self._seat.ledger.commit(spec_hash, record, self._session)

        unmask = self._participant.receive_confirmations(confirmations, commit)
        owed = OwedUnmask(self._spec.base_model_hash, spec_hash, self._part.name, self._session, unmask)
        send_owed(self._api, self._seat.ledger, owed)

    def _seal_secrets(self) -> None:
        """Keep what the auditor needs, should this sum turn out to break the rules and this update be asked for."""
        if self._auditor is not None:
            secrets = self._participant.secrets_for(self._auditor.sealing_key)
            sealed = SealedSecrets(self._spec.hash, secrets, self._words.digest())
            SealedSecretsBook(self._seat.state).keep(self._session, sealed)

    def _remember_sum(self, confirmations: tuple[Confirmation, ...]) -> None:
        """On the disk before the answer leaves, so that what is published can be checked after a kill as well."""
        if self._roster_document is None:
            return
        confirmed = ConfirmedSum(
            roster=self._roster_document,
            spec=self._accepted.document,
            session=self._session,
            joins=tuple(self._joins),
            deals=self._deals,
            survivors=tuple(self._survivors),
            confirmations=confirmations,
        )
        ConfirmedSums(self._seat.state).keep(confirmed)


def send_owed(api: SessionApi, ledger: SpentLedger, owed: OwedUnmask) -> None:
    """Send an answer until the aggregator has it, or has no more use for it."""
    try:
        api.unmask(owed.unmask)
    except ProblemError as problem:
        if problem.code == "conflicting-message":
            ledger.acknowledge(owed)
            raise SecondClientError(
                "the aggregator has another answer of this institution for the same sum",
                "Another process uses this identity: stop one of the two",
            ) from problem
        if not problem.moved_on:
            raise
    ledger.acknowledge(owed)
