"""Who is to blame for wrong shares: verdicts from signed messages, and evidence that anybody can check with the roster.

A member that follows the protocol cannot be convicted: each proof but one takes its own signature under two things that
contradict each other. That one (:class:`AccusersProof`) counts accusers, of whom at least one is honest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import CommitmentError, EvidenceError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.shamir import combine
from fedddpm_protocol.session.cohort import (
    Cohort,
    Sharing,
    SurvivorSet,
    hash_of_u2,
    hash_of_u3,
    open_cohort,
    session_plan,
)
from fedddpm_protocol.session.commitments import deal_hash, share_commitment
from fedddpm_protocol.session.coordinator import is_secret_of, right_shares
from fedddpm_protocol.session.dealing import key_is_as_committed, opened_as_dealt
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
    Commitments,
    Deal,
    DealBody,
    SignedDocument,
    Unmask,
    UnmaskBody,
)


class Offence(StrEnum):
    """What somebody did, or what two of them say of each other."""

    WRONG_SHARE = "wrong-share"
    WRONG_SECRET = "wrong-secret"  # noqa: S105 - a word
    WRONG_ANSWER = "wrong-answer"
    FALSE_ACCUSATION = "false-accusation"
    ACCUSED_BY_MANY = "accused-by-many"
    CONTRADICTION = "contradiction"

    @property
    def convicts(self) -> bool:
        """Whether it is proven who it was."""
        return self is not Offence.CONTRADICTION


_WORDS = {
    Offence.WRONG_SHARE: "{member} dealt a share to {others} that is not the one that it committed to",
    Offence.WRONG_SECRET: "{member} dealt shares that do not make up the secret that it committed to",
    Offence.WRONG_ANSWER: "{member} released a share of {others} that is not the one that it was dealt",
    Offence.FALSE_ACCUSATION: "{member} accused {others} of a wrong share, which is right",
    Offence.ACCUSED_BY_MANY: "{member} is accused of wrong shares by {others}, more than may conspire",
    Offence.CONTRADICTION: "{member} and {others} contradict each other about a share; nobody can tell who is right",
}


@dataclass(frozen=True)
class Verdict:
    """Who did what to whom, and the proof; a contradiction has none."""

    member: str
    offence: Offence
    others: tuple[str, ...] = ()
    proof: Proof | None = None

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self.offence].format(member=self.member, others=", ".join(self.others))


def most_accusers(roster: Roster) -> int:
    """Accusers whom nobody has to believe: those who may conspire, and one in any case, whose word stands alone."""
    return max(1, roster.c_max)


# --- in a session ----------------------------------------------------------------------------------------------------


def verify_accusation(sharing: Sharing, accusation: Accusation) -> AccusationBody:
    """The content of an accusation; raises unless a member of U2 signed it, about others of U2 and for this session."""
    body = _accusation(sharing.cohort, accusation)
    for dealer in (body.accuser, *(one.dealer for one in body.accused)):
        sharing.deal(dealer)
    return body


def judge_accusation(sharing: Sharing, accusation: Accusation, items: Mapping[str, bytes]) -> tuple[Verdict, ...]:
    """What follows from an accusation; ``items`` are the sealed bytes that the accuser got, by dealer.

    For each dealer: it is convicted, or the accuser is, or the two contradict each other.
    """
    body = verify_accusation(sharing, accusation)
    verdicts = []
    for one in body.accused:
        proof = ItemProof(deal=sharing.deal(one.dealer), sealed=items[one.dealer], accusation=accusation)
        verdicts.append(_about_item(sharing.cohort, body, proof))
    return tuple(verdicts)


def judge_accusers(sharing: Sharing, dealer: str, accusations: Iterable[Accusation]) -> Verdict | None:
    """The verdict over a dealer whom more members accuse than may conspire; None while they are fewer."""
    deal = sharing.deal(dealer)
    against = {one.id: one for one in accusations if _contradicts(sharing.cohort, deal, one)}
    if len(against) <= most_accusers(sharing.cohort.roster):
        return None
    proof = AccusersProof(deal=deal, accusations=tuple(against.values()))
    return Verdict(dealer, Offence.ACCUSED_BY_MANY, tuple(sorted(against)), proof)


def judge_answer(survivors: SurvivorSet, unmask: Unmask) -> Verdict | None:
    """The verdict over who revealed a share that is not as it was dealt; None if all are.

    Whoever masked has accepted what it was dealt, so a share that is wrong now was changed by who reveals it.
    """
    body, sharing = survivors.verify_unmask(unmask), survivors.sharing
    wrong = [m for m, share in body.revealed.items() if not sharing.is_as_dealt(m, unmask.id, share)]
    if not wrong:
        return None
    sharers = tuple(Sharer(id=member, deal_hash=digest) for member, digest in sharing.deal_hashes)
    proof = AnswerProof(
        deal=sharing.deal(wrong[0]), unmask=unmask, sharers=sharers, survivors=survivors.message.survivors
    )
    return Verdict(unmask.id, Offence.WRONG_ANSWER, (wrong[0],), proof)


def judge_secrets(survivors: SurvivorSet, unmasks: Sequence[Unmask]) -> tuple[Verdict, ...]:
    """The verdicts over dealers whose shares are as committed and do not make up their secret."""
    cohort, found = survivors.sharing.cohort, []
    bodies: dict[str, UnmaskBody] = {unmask.id: survivors.verify_unmask(unmask) for unmask in unmasks}
    for dealer in survivors.sharing.ids:
        right = list(right_shares(survivors, dealer, bodies).items())[: cohort.threshold]
        if len(right) < cohort.threshold:
            continue
        kind = right[0][1].kind
        secret = combine({cohort.point(holder): revealed.share for holder, revealed in right})
        if not is_secret_of(cohort.body(dealer), kind, secret):
            openings = tuple(Opening(recipient=h, share=one.share, nonce=one.nonce) for h, one in right)
            proof = SecretProof(deal=survivors.sharing.deal(dealer), kind=kind, openings=openings)
            found.append(Verdict(dealer, Offence.WRONG_SECRET, (), proof))
    return tuple(found)


def evidence_of(spec: SignedDocument, session: str, cohort: Cohort, proof: Proof) -> Evidence:
    """A proof together with what identifies its session."""
    return Evidence(spec=spec, session=session, joins=cohort.joins, proof=proof)


# --- anywhere --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conviction:
    """A verdict that was checked from its evidence alone, and the sum that it is about."""

    verdict: Verdict
    run: str
    round: int
    attempt: int
    base_model_hash: bytes
    part: str


def verify_evidence(roster: Roster, evidence: Evidence) -> Conviction:
    """Whom ``evidence`` convicts of what, checked from nothing but ``roster``, which its specification must name.

    Raises EvidenceError if it convicts nobody, and what opening its specification, JOINs and messages raises.
    """
    spec = open_spec(evidence.spec, roster)
    plan = session_plan(spec, roster, evidence.session)
    cohort = open_cohort(plan, roster, evidence.joins)
    proof = evidence.proof
    deal = cohort.verify_deal(proof.deal)
    if isinstance(proof, ItemProof):
        verdict = _verify_item(cohort, proof)
    elif isinstance(proof, AccusersProof):
        verdict = _verify_accusers(cohort, deal, proof)
    elif isinstance(proof, AnswerProof):
        verdict = _verify_answer(cohort, deal, proof)
    else:
        verdict = _verify_secret(cohort, deal, proof)
    return Conviction(verdict, spec.run, spec.round, spec.attempt, spec.base_model_hash, plan.part)


def _verify_item(cohort: Cohort, proof: ItemProof) -> Verdict:
    verdict = _about_item(cohort, _accusation(cohort, proof.accusation), proof)
    if not verdict.offence.convicts:
        raise EvidenceError("the key is not the one that the dealer committed to: this convicts neither of the two")
    return verdict


def _verify_accusers(cohort: Cohort, deal: DealBody, proof: AccusersProof) -> Verdict:
    accusers = {one.id for one in proof.accusations if _contradicts(cohort, proof.deal, one)}
    if len(accusers) <= most_accusers(cohort.roster):
        raise EvidenceError(f"{len(accusers)} accusers are not more than may conspire")
    return Verdict(deal.dealer, Offence.ACCUSED_BY_MANY, tuple(sorted(accusers)), proof)


def _verify_answer(cohort: Cohort, deal: DealBody, proof: AnswerProof) -> Verdict:
    unmask = proof.unmask
    cohort.body(unmask.id)
    keys.verify(cohort.roster.public_key(unmask.id), "unmask", unmask.body, unmask.signature, unmask.id)
    body = unmask.parse()
    hu2 = hash_of_u2(cohort.session_id, [(one.id, one.deal_hash) for one in proof.sharers])
    hu3 = hash_of_u3(cohort.session_id, hu2, [(one.id, one.upload_digest) for one in proof.survivors])
    if (body.session_id, body.hu3) != (cohort.session_id, hu3):
        raise EvidenceError("the UNMASK is for another session, or over other deals or survivors")
    if Sharer(id=deal.dealer, deal_hash=deal_hash(proof.deal)) not in proof.sharers:
        raise EvidenceError("the deal is not one of those that the UNMASK is over")
    revealed = body.revealed.get(deal.dealer)
    if revealed is None:
        raise EvidenceError("the UNMASK reveals no share of this dealer")
    opened = (revealed.kind, revealed.nonce, revealed.share)
    commitment = share_commitment(cohort.session_id, deal.dealer, unmask.id, *opened)
    if commitment == _line(deal, unmask.id).of(revealed.kind):
        raise EvidenceError("the revealed share is as it was dealt")
    return Verdict(unmask.id, Offence.WRONG_ANSWER, (deal.dealer,), proof)


def _verify_secret(cohort: Cohort, deal: DealBody, proof: SecretProof) -> Verdict:
    shares = {}
    for one in proof.openings:
        opened = share_commitment(cohort.session_id, deal.dealer, one.recipient, proof.kind, one.nonce, one.share)
        if opened != _line(deal, one.recipient).of(proof.kind):
            raise EvidenceError(f"the share of {one.recipient!r} is not as committed")
        shares[cohort.point(one.recipient)] = one.share
    if len(shares) != cohort.threshold:
        raise EvidenceError(f"{len(shares)} shares are not the threshold {cohort.threshold}")
    if is_secret_of(cohort.body(deal.dealer), proof.kind, combine(shares)):
        raise EvidenceError("the shares make up the secret")
    return Verdict(deal.dealer, Offence.WRONG_SECRET, (), proof)


# --- common to both --------------------------------------------------------------------------------------------------


def _accusation(cohort: Cohort, accusation: Accusation) -> AccusationBody:
    cohort.body(accusation.id)
    public_key = cohort.roster.public_key(accusation.id)
    keys.verify(public_key, "accusation", accusation.body, accusation.signature, accusation.id)
    body = accusation.parse()
    if (body.session_id, body.accuser) != (cohort.session_id, accusation.id):
        raise EvidenceError("an accusation is for another session, or in another member's name", accusation.id)
    if any(one.dealer == body.accuser for one in body.accused):
        raise EvidenceError("an accusation is against its own signer", accusation.id)
    return body


def _about_item(cohort: Cohort, body: AccusationBody, proof: ItemProof) -> Verdict:
    deal = proof.deal.parse()
    line, accused = _line(deal, body.accuser), _accused(body, proof.deal)
    if accused is None:
        raise EvidenceError("the accusation is against another dealer, or over another deal of it", body.accuser)
    if hashlib.sha256(proof.sealed).digest() != line.sealed:
        raise EvidenceError("the sealed item is not the one that the deal names")
    key = accused.channel_key
    if not key_is_as_committed(cohort.session_id, deal.dealer, line, key):
        return Verdict(body.accuser, Offence.CONTRADICTION, (deal.dealer,))
    if opened_as_dealt(cohort.session_id, deal.dealer, line, proof.sealed, key) is None:
        return Verdict(deal.dealer, Offence.WRONG_SHARE, (body.accuser,), proof)
    return Verdict(body.accuser, Offence.FALSE_ACCUSATION, (deal.dealer,), proof)


def _contradicts(cohort: Cohort, deal: Deal, accusation: Accusation) -> bool:
    """Whether an accusation against the dealer of ``deal`` is one that nobody can decide."""
    body, dealt = _accusation(cohort, accusation), deal.parse()
    accused = _accused(body, deal)
    if accused is None:
        return False
    line = _line(dealt, body.accuser)
    return not key_is_as_committed(cohort.session_id, dealt.dealer, line, accused.channel_key)


def _accused(body: AccusationBody, deal: Deal) -> Accused | None:
    """What an accusation says of this very deal; None if it does not speak of it."""
    dealer, digest = deal.parse().dealer, deal_hash(deal)
    return next((one for one in body.accused if (one.dealer, one.deal_hash) == (dealer, digest)), None)


def _line(deal: DealBody, recipient: str) -> Commitments:
    for line in deal.lines:
        if line.recipient == recipient:
            return line
    raise CommitmentError(f"the deal has no line for {recipient!r}", deal.dealer)
