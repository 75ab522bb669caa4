"""Evidence that the adversary can put together from sessions, and sums without those whom it convicts.

What it holds: every deal and item that was sent, what honest members signed, and the keys of its accomplices. What
honest members would have to sign is tried under another key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, product

from tests.adversary.search import messages
from tests.adversary.search.honest import Durable, Federation, Node, Offer, fork
from tests.adversary.search.knowledge import Party
from tests.adversary.search.messages import Accomplices
from tests.adversary.search.outcomes import OPEN, Facts, ends, fresh
from tests.adversary.search.sessions import PLAIN, Outcome, Sessions
from tests.protocol.support.sessions import SERVER
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.errors import AccusationError, ProtocolError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session import verdicts
from fedddpm_protocol.session.cohort import Cohort, SurvivorSet
from fedddpm_protocol.session.commitments import deal_hash
from fedddpm_protocol.session.dealing import deal_shares
from fedddpm_protocol.session.sealed import channel_key
from fedddpm_protocol.session.session_secrets import SessionSecrets
from fedddpm_protocol.wire.evidence import (
    AccusersProof,
    AnswerProof,
    Evidence,
    ItemProof,
    Opening,
    Proof,
    SecretProof,
    Sharer,
)
from fedddpm_protocol.wire.messages import (
    Accusation,
    AccusationBody,
    Accused,
    Deal,
    RevealedShare,
    Shares,
    SignedDocument,
    Unmask,
    UnmaskBody,
)

Told = tuple[bytes, str, str]  # base, part, member
KEY = b"\x05" * 32  # of no channel


@dataclass(frozen=True)
class Court:
    """One session of which ``nodes`` are known, the newest of each honest member; its cohort has everybody in it."""

    hands: Accomplices
    nodes: Sequence[Node]

    @cached_property
    def cohort(self) -> Cohort:
        return messages.cohort_of(self.nodes[0])

    @cached_property
    def accomplices(self) -> list[str]:
        return [f"site-{member}" for member in self.hands.members]

    @cached_property
    def honest(self) -> dict[str, Shares]:
        """What each honest member sent to all."""
        sent = {}
        for node in self.nodes:
            here: Node | None = node
            while here is not None and not isinstance(here.sent, Shares):
                here = here.parent
            if here is not None:
                sent[node.id] = here.sent
        return sent

    def evidence(self) -> Iterator[Evidence]:
        offer = self.nodes[0].offer
        document = SignedDocument(body=offer.document, signature=SERVER.sign("spec", offer.document))
        for proof in self.proofs():
            yield Evidence(spec=document, session=offer.part, joins=self.cohort.joins, proof=proof)

    def proofs(self) -> Iterator[Proof]:
        accusations = [*self._made_up(), *self._provoked()]
        for accusation, sent in accusations:
            for shares, other in product(sent, sent):
                parcel = messages.parcel_to(other, accusation.id)
                sealed = [parcel.item.sealed] if parcel else []
                for item in (*sealed, b"\x03" * 156):
                    yield ItemProof(deal=shares.deal, sealed=item, accusation=accusation)
        for dealer, shares in self.honest.items():
            against = [accusation for accusation, sent in self._made_up() if sent == (shares,)]
            signed = [accusation for accusation in against if accusation.id in self.accomplices]
            for accusations in (against, signed, signed * 2, signed * 3):
                if accusations:
                    yield AccusersProof(deal=shares.deal, accusations=tuple(accusations))
            yield from self._secret_proofs(dealer, shares.deal)
        yield from self._answer_proofs()

    # --- accusations ------------------------------------------------------------------------------------------------

    def _made_up(self) -> Iterator[tuple[Accusation, tuple[Shares, ...]]]:
        """Accusations against honest dealers, in the name of everybody else, with the right key and another one."""
        sid = self.cohort.session_id
        for (dealer, shares), accuser in product(self.honest.items(), self.cohort.ids):
            if dealer == accuser:
                continue
            keys = [KEY]
            if accuser in self.accomplices:
                secrets = self._secrets(accuser)
                public = self.cohort.body(dealer).channel_public_key
                keys.append(channel_key(bytes(secrets.channel_private), public, sid, dealer, accuser))
            for key in keys:
                body = AccusationBody(sid, accuser, (Accused(dealer, deal_hash(shares.deal), key),))
                yield self._signed(accuser, body), (shares,)

    def _signed(self, accuser: str, body: AccusationBody) -> Accusation:
        raw = canonical.encode(body)
        return Accusation(id=accuser, body=raw, signature=self._sign(accuser, "accusation", raw))

    def _provoked(self) -> Iterator[tuple[Accusation, tuple[Shares, ...]]]:
        """What honest members sign who get a wrong item, with this deal of its sender and another, better one."""
        for node, liar in product(self.nodes, self.accomplices):
            if node.label[0] != "cohort":
                continue  # this machine has gone on
            good, bad = self.dealt(liar), self.spoiled(liar, node.id)
            sent = {name: shares for name, shares in self.honest.items() if name != node.id}
            sent |= {name: self.dealt(name) for name in self.accomplices} | {liar: bad}
            parcels = [messages.parcel_to(shares, node.id) for shares in sent.values()]
            twin = fork(node.machine)
            try:
                own = messages.own_deal_of(node)
                twin.receive_shares([p.item for p in parcels if p], [own, *(p.deal for p in parcels if p)])
            except AccusationError:
                assert twin.accusation is not None
                yield twin.accusation, (bad, good)

    # --- deals of accomplices ---------------------------------------------------------------------------------------

    def _secrets(self, member: str) -> SessionSecrets:
        held = self.hands.secrets(int(member.split("-")[1]), self.nodes[0].offer, "own")
        return SessionSecrets(bytearray(held.channel), bytearray(held.mask), bytearray(held.self_mask))

    def dealt(self, member: str, filler: bytes = bytes(1)) -> Shares:
        """A deal that is well made; another one for another ``filler``."""
        identity = self.hands.identity(int(member.split("-")[1]))
        return deal_shares(self.cohort, member, identity, self._secrets(member), lambda size: filler * size)

    def spoiled(self, member: str, victim: str) -> Shares:
        """A deal with an item for ``victim`` that holds other shares than it commits to."""
        identity = self.hands.identity(int(member.split("-")[1]))
        return messages.spoiled(self.cohort, self.dealt(member, b"\x02"), identity, self._secrets(member), (victim,))

    def _sign(self, member: str, tag: str, raw: bytes) -> bytes:
        return self.hands.identity(int(member.split("-")[1])).sign(tag, raw)

    # --- answers and secrets ----------------------------------------------------------------------------------------

    def _answers(self) -> Iterator[tuple[Unmask, SurvivorSet]]:
        """What honest members revealed, and what accomplices and others could be said to have."""
        for node in self.nodes:
            if isinstance(node.sent, Unmask):
                survivors = messages.survivors_of(node)
                yield node.sent, survivors
                body = node.sent.parse()
                wrong = {owner: RevealedShare(one.kind, KEY, KEY) for owner, one in body.revealed.items()}
                raw = UnmaskBody(body.session_id, body.hu3, wrong).encode()
                for member in survivors.ids:
                    yield Unmask(id=member, body=raw, signature=self._sign(member, "unmask", raw)), survivors

    def _answer_proofs(self) -> Iterator[Proof]:
        for unmask, survivors in self._answers():
            sharing = survivors.sharing
            for dealer in sharing.ids:
                deals = [sharing.deal(dealer)]
                deals += [self.dealt(dealer, b"\x04").deal] if dealer in self.accomplices else []
                for deal, named in product(deals, deals):
                    sharers = tuple(
                        Sharer(id=member, deal_hash=deal_hash(named) if member == dealer else digest)
                        for member, digest in sharing.deal_hashes
                    )
                    uploads = survivors.message.survivors
                    yield AnswerProof(deal=deal, unmask=unmask, sharers=sharers, survivors=uploads)

    def _secret_proofs(self, dealer: str, deal: Deal) -> Iterator[Proof]:
        """Shares of an honest dealer, as they were revealed: too few, and with others that nobody was dealt."""
        t = self.cohort.threshold
        for kind in ("self_mask", "mask_sk"):
            opened = []
            for node in self.nodes:
                one = node.sent.parse().revealed.get(dealer) if isinstance(node.sent, Unmask) else None
                if one is not None and one.kind == kind:
                    opened.append(Opening(recipient=node.id, share=one.share, nonce=one.nonce))
            others = [Opening(recipient=name, share=KEY, nonce=KEY) for name in self.cohort.ids]
            names = {one.recipient for one in opened}
            filled = [*opened[: t - 1], *(one for one in others if one.recipient not in names)][:t]
            for openings in (opened[:t], opened[: t - 1], filled, others[:t]):
                if openings:
                    yield SecretProof(deal=deal, kind=kind, openings=tuple(openings))


@cache
def judged(federation: Federation, attempt: int, base: int = 0) -> Offer:
    """An offer with a specification that evidence can be about."""
    offer, roster = Offer(attempt, base, "full"), federation.roster()
    spec = make_spec(roster, chunk_coordinates=8, attempt=attempt, base_model_hash=offer.base_hash)
    return replace(offer, document=canonical.encode(spec))


def everybody(sessions: Sessions, offer: Offer, durables: Sequence[Durable]) -> list[Node]:
    """A session with everybody in its cohort; nobody was given shares yet."""
    cohorts = sessions.cohorts(sessions.joined(offer, durables), offer, PLAIN, ())
    wanted = (list(shown.values()) for shown in cohorts)
    return max(wanted, key=lambda nodes: (len(messages.cohort_of(nodes[0]).ids), len(nodes)), default=[])


def courts(sessions: Sessions, facts: Iterable[Node]) -> Iterator[Court]:
    """One for each session of everybody."""
    groups: dict[bytes, dict[int, Node]] = {}
    for node in facts:
        groups.setdefault(node.machine.session_id or b"", {})[node.member] = node
    for group in groups.values():
        court = Court(sessions.hands, [group[member] for member in sorted(group)])
        if len(court.cohort.ids) == sessions.federation.n:
            yield court


def guilty(sessions: Sessions, facts: Iterable[Node]) -> set[Told]:
    """Whom institutions hold for convicted, of all evidence that can be made of this; they check it themselves."""
    roster, found = sessions.federation.roster(), set()
    for court in courts(sessions, facts):
        for evidence in court.evidence():
            try:
                conviction = verdicts.verify_evidence(roster, evidence)
            except ProtocolError:
                continue
            found.add((conviction.base_model_hash, conviction.part, conviction.verdict.member))
    return found


def left_out(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """A sum; evidence from it, and from a session that was given up before it; and a sum without some."""
    for spoil in (False, True) if sessions.hands.members else (False,):
        yield from _left_out(Sessions(sessions.federation, spoil), party)


def _left_out(sessions: Sessions, party: Party) -> Iterator[Facts]:
    federation = sessions.federation
    before = guilty(sessions, everybody(sessions, judged(federation, 9), fresh(sessions)))
    found = ends(sessions, party, sessions.explore(judged(federation, 0), fresh(sessions), OPEN))
    for end in sorted(found, key=_most_answers):
        yield end.facts
        for told in _some_of(sorted(before | guilty(sessions, end.facts))):
            for outcome in _afterwards(sessions, end, told):
                yield end.facts | outcome.facts


def _most_answers(end: Outcome) -> tuple[int, int]:
    """Sorts sums of everybody first."""
    answers = [node for node in end.facts if node.label[0] == "answer"]
    return -max((len(messages.cohort_of(node).ids) for node in answers), default=0), -len(answers)


def _some_of(told: Sequence[Told]) -> Iterator[tuple[Told, ...]]:
    """Each by itself, and all together."""
    yield from combinations(told, 1)
    if len(told) > 1:
        yield tuple(told)


def _afterwards(sessions: Sessions, end: Outcome, told: tuple[Told, ...]) -> Iterator[Outcome]:
    """One more session, when all were shown the evidence, and when all but one were."""
    honest = sessions.federation.honest
    for spared in (None, *honest):
        durables = tuple(
            durable if member == spared else replace(durable, convicted=told)
            for member, durable in zip(honest, end.durables, strict=True)
        )
        yield from sessions.explore(judged(sessions.federation, 1), durables, PLAIN)
