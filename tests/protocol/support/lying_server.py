"""An aggregator that lies, the members it corrupted, and what it can compute from all that honest members revealed.

Masks are treated as unknowns: an upload is the member's input plus its self mask plus or minus its pair masks. A mask
is known once a threshold of its shares is. Every sum that the adversary can compute is a linear combination of uploads
in which all unknown masks cancel; that is linear algebra, here modulo a large prime.

What a member puts in depends on what it was asked to do: each training is an unknown of its own, and one under terms
that leave nothing to learn (a learning rate of 1e-30) is zero, which the adversary knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count

from tests.protocol.support.sessions import identity_of, inbox_of, inputs_for, make_plan, make_roster, mask_all
from tests.support.elimination import echelon

from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import Cohort
from fedddpm_protocol.session.dealing import deal_shares
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.session_secrets import SessionSecrets
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Confirmation, Join, JoinBody, Shares, Survivor
from fedddpm_protocol.wire.phases import ClientState

NOTHING = 255  # terms under which nothing is learned
SEGMENTS = (SegmentSpec("part", 32, 1, "fixed-point"), SegmentSpec("part.weights", 32, 3, "integers"))


@dataclass(frozen=True)
class Upload:
    """A masked input that the aggregator holds."""

    member: str
    session_id: bytes
    hu2: bytes
    u2: tuple[str, ...]
    content: tuple[str, int] | None = None  # whose training, under which terms; None: zero


class Corrupt:
    """A member whose identity the adversary holds: it signs whatever helps."""

    def __init__(self, member: str, identity: SigningKey) -> None:
        self.member, self._identity = member, identity
        self._dealt: dict[bytes, Shares] = {}
        self._private = {name: bytes([len(member), index]) * 16 for index, name in enumerate(("c", "m", "b"))}
        self._salt = canonical.tagged_hash("test", member.encode())

    def _key(self, name: str) -> bytes:
        return canonical.tagged_hash("test", self._salt, self._private[name])

    def join(self, spec_hash: bytes) -> Join:
        public = [keys.x25519_public(self._key(name)) for name in ("c", "m")]
        body = canonical.encode(JoinBody(spec_hash, self.member, 1, public[0], public[1], bytes(32), bytes(32), ()))
        return Join(body=body, signature=self._identity.sign("join", body))

    def shares(self, cohort: Cohort) -> Shares:
        """Shares of nothing, as well made as honest ones, and the same whoever asks."""
        if cohort.session_id not in self._dealt:
            held = SessionSecrets(bytearray(self._key("c")), bytearray(self._key("m")), bytearray(32))
            self._dealt[cohort.session_id] = deal_shares(cohort, self.member, self._identity, held, bytes)
        return self._dealt[cohort.session_id]

    def confirm(self, hu3: bytes) -> Confirmation:
        return Confirmation(id=self.member, signature=self._identity.sign("confirm", hu3))


@dataclass
class World:
    """Honest machines on one base model, and an aggregator that chooses what each of them gets to see."""

    n: int
    c_max: int
    n_min: int
    new_log: Callable[[], SpentLog] = SpentLog
    refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.roster = make_roster(self.n, self.c_max, self.n_min)
        ids = self.roster.ids
        self.corrupt = {ids[i]: Corrupt(ids[i], identity_of(i)) for i in range(self.c_max)}
        self.honest = ids[self.c_max :]
        self.logs = {member: self.new_log() for member in self.honest}
        self.machines: dict[str, Participant] = {}
        self.joins: dict[bytes, dict[str, Join]] = defaultdict(dict)  # newest JOIN by spec and member
        self.old_joins: list[Join] = []
        self.cohorts: dict[bytes, Cohort] = {}
        self.outboxes: dict[tuple[bytes, str], Shares] = {}
        self.uploads: list[Upload] = []
        self.digests: dict[tuple[bytes, str], bytes] = {}
        self.confirmations: dict[bytes, dict[str, Confirmation]] = defaultdict(dict)
        self.old_confirmations: list[Confirmation] = []
        self.holders: dict[tuple[bytes, str, str], set[str]] = defaultdict(set)  # who revealed a share of which secret
        self.sequence = count(1)
        self.trained: dict[str, int] = {}  # under which terms a member made the update that it has now
        self.columns: set[tuple[str, int]] = {(member, 0) for member in self.honest}

    # --- what the aggregator makes honest members do ---------------------------------------------------------------

    def start(self, member: str, attempt: int, terms: int = 0) -> None:
        """A new attempt under ``terms``; the member forgets the session that it was in, trains if it has to, joins."""
        if member in self.machines:
            self.machines[member].abort()
        spec_hash = bytes([attempt]) * 31 + bytes([terms])
        plan = make_plan(self.roster, attempt, segments=SEGMENTS, spec_hash=spec_hash)
        log = self.logs[member]
        try:
            log.agree(plan.base_model_hash, bytes([terms]) * 32)
        except ProtocolError as error:
            self.refusals[error.code] += 1
            return
        self.trained.setdefault(member, terms)  # what is stored is used again
        self.machines[member] = Participant(
            identity=identity_of(self.roster.ids.index(member)),
            member_id=member,
            roster=self.roster,
            plan=plan,
            floor=self.roster.n_min,
            recorded_u3=log.recorded(plan.base_model_hash, plan.part),
            answers=log.answers(plan.base_model_hash, plan.part),
        )
        try:
            join = self.machines[member].join(next(self.sequence))
        except ProtocolError as error:
            self.refusals[error.code] += 1
            return
        if member in self.joins[plan.spec_hash]:
            self.old_joins.append(self.joins[plan.spec_hash][member])
        self.joins[plan.spec_hash][member] = join

    def forget(self, member: str) -> None:
        """Offer the member a run on another base: its one stored update is that of the other base now."""
        if member in self.machines:
            self.machines[member].abort()
        self.trained.pop(member, None)

    def step(self, member: str, view: Collection[str], lie: bool = False) -> bool:
        """Give ``member`` its next message, made of what ``view`` sent; whether the machine accepted it."""
        machine = self.machines.get(member)
        if machine is None or machine.state in (ClientState.DONE, ClientState.ABORTED):
            return False
        deliver = {
            ClientState.JOINED: self._cohort,
            ClientState.SHARED: self._shares,
            ClientState.MASKING: self._upload,
            ClientState.UPLOADED: self._survivors,
            ClientState.CONFIRMED: self._confirmations,
        }[machine.state]
        try:
            deliver(machine, {*view, member}, lie)
        except ProtocolError as error:
            self.refusals[error.code] += 1
            if self.machines[member].state is not ClientState.ABORTED:
                raise AssertionError(f"{error!r} left the machine in state {machine.state}") from error
            return False
        return True

    def _cohort(self, machine: Participant, view: set[str], lie: bool) -> None:
        spec_hash = machine.plan.spec_hash
        known = dict(self.joins[spec_hash])
        known |= {member: corrupt.join(spec_hash) for member, corrupt in self.corrupt.items()}
        if lie:
            others = [*self.old_joins, *(join for joins in self.joins.values() for join in joins.values())]
            known |= {join.parse().id: join for join in others if join.parse().id != machine.member_id}
        shares = machine.receive_cohort([known[member] for member in sorted(view) if member in known])
        cohort = machine._cohort
        assert cohort is not None
        self.cohorts[cohort.session_id] = cohort
        self.outboxes[cohort.session_id, machine.member_id] = shares
        for member in self.corrupt.keys() & set(cohort.ids):
            for kind in ("self_mask", "mask_sk"):
                self.holders[cohort.session_id, machine.member_id, kind].add(member)

    def _shares(self, machine: Participant, view: set[str], lie: bool) -> None:
        cohort = machine._cohort
        assert cohort is not None
        outboxes = [self.corrupt[m].shares(cohort) for m in view & self.corrupt.keys() & set(cohort.ids)]
        stale = {}
        for sender in view - {machine.member_id}:
            kept = [items for (_, by), items in self.outboxes.items() if by == sender]
            now = self.outboxes.get((cohort.session_id, sender))
            if lie and kept:  # from the oldest session, and for whomever it was
                stale[sender] = kept[0].items[0]
            if now is not None:
                outboxes.append(now)
        own = self.outboxes[cohort.session_id, machine.member_id]
        items, deals = inbox_of(machine.member_id, [*outboxes, own])
        fresh = [item for item in items if item.sender not in stale]
        machine.receive_shares([*fresh, *stale.values()], deals)

    def _upload(self, machine: Participant, view: set[str], lie: bool) -> None:
        sharing = machine._sharing
        assert sharing is not None
        terms = self.trained[machine.member_id]
        try:
            self.logs[machine.member_id].give(machine.plan.base_model_hash, bytes([terms]) * 32)
        except ProtocolError:
            machine.abort()
            raise
        content = None if terms == NOTHING else (machine.member_id, terms)
        if content is not None:
            self.columns.add(content)
        mask_all(machine, inputs_for(machine.member_id, SEGMENTS))
        machine.finish_upload()
        session_id = sharing.cohort.session_id
        self.digests[session_id, machine.member_id] = machine._upload_digest
        self.uploads.append(Upload(machine.member_id, session_id, sharing.hu2, sharing.ids, content))

    def _survivors(self, machine: Participant, view: set[str], lie: bool) -> None:
        session_id = machine.session_id
        assert session_id is not None
        digests = {member: self.digests.get((session_id, member), bytes(32)) for member in view}
        if lie:
            digests |= dict.fromkeys(sorted(view - {machine.member_id})[:1], b"\x01" * 32)
        ids = set(self.roster.ids) if lie else set(self.cohorts[session_id].ids)
        listed = [Survivor(id=member, upload_digest=digest) for member, digest in digests.items() if member in ids]
        confirmation = machine.receive_survivors(listed)
        survivors = machine._survivors
        assert survivors is not None
        self.confirmations[survivors.hu3][machine.member_id] = confirmation
        self.old_confirmations.append(confirmation)

    def _confirmations(self, machine: Participant, view: set[str], lie: bool) -> None:
        survivors = machine._survivors
        assert survivors is not None
        known = self.confirmations[survivors.hu3]
        given = [known[member] for member in view & known.keys()]
        given += [self.corrupt[m].confirm(survivors.hu3) for m in view & self.corrupt.keys() & set(survivors.ids)]
        if lie:
            given += given + self.old_confirmations
        unmask = machine.receive_confirmations(given, self.logs[machine.member_id].commit)
        body = unmask.parse()
        for owner, share in body.revealed.items():
            self.holders[body.session_id, owner, share.kind].add(machine.member_id)

    # --- what the aggregator can compute ---------------------------------------------------------------------------

    def is_known(self, session_id: bytes, owner: str, kind: str) -> bool:
        threshold = self.cohorts[session_id].threshold
        return owner in self.corrupt or len(self.holders[session_id, owner, kind]) >= threshold

    def violations(self) -> list[str]:
        """Everything that must never be possible, and is."""
        found = [
            f"both secrets of {member} are known in one session"
            for session_id, cohort in self.cohorts.items()
            for member in set(cohort.ids) & set(self.honest)
            if all(self.is_known(session_id, member, kind) for kind in ("self_mask", "mask_sk"))
        ]
        sums, columns = self.openable_sums(), sorted(self.columns)
        for member in self.honest:
            others = [index for index, (whose, _) in enumerate(columns) if whose != member]
            own = [index for index, (whose, _) in enumerate(columns) if whose == member]
            alone = echelon([row[index] for index in (*others, *own)] for row in sums)
            if any(not any(row[: len(others)]) for row in alone):
                found.append(f"something of {member} alone can be computed")
        return found

    def openable_sums(self) -> list[list[int]]:
        """Generators of all sums free of unknown masks: coefficients of what honest members learned, by column."""
        open_uploads = [u for u in self.uploads if self.is_known(u.session_id, u.member, "self_mask")]
        masks = sorted({mask for upload in open_uploads for mask in self._unknown_masks(upload)})
        rows = []
        for upload in open_uploads:
            signs = self._unknown_masks(upload)
            row = [signs.get(mask, 0) for mask in masks]
            rows.append(row + [int(column == upload.content) for column in sorted(self.columns)])
        return [row[len(masks) :] for row in echelon(rows) if not any(row[: len(masks)])]

    def _unknown_masks(self, upload: Upload) -> dict[tuple[bytes, str, str], int]:
        signs = {}
        for peer in upload.u2:
            if peer == upload.member or peer in self.corrupt:
                continue
            if any(self.is_known(upload.session_id, m, "mask_sk") for m in (peer, upload.member)):
                continue
            low, high = sorted((peer, upload.member))
            signs[upload.session_id + upload.hu2, low, high] = 1 if upload.member == low else -1
        return signs
