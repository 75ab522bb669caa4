"""Weakenings of deals and of verdicts about them: who could be convicted, and what it would let be summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.adversary.search.mutants import around, blind, swap

from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.errors import EvidenceError
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.session import cohort as cohort_module
from fedddpm_protocol.session import dealing, verdicts
from fedddpm_protocol.session import spent as spent_module
from fedddpm_protocol.session.cohort import Sharing
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.sealed import open_sealed
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.session.verdicts import Conviction, Offence, Verdict


class Same:
    """Equal to everything: in the place of one side of a comparison."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


# --- deals -----------------------------------------------------------------------------------------------------------


def _any_own_deal(step: Callable[..., Any]) -> Callable[..., Any]:
    def weak(self: Participant, items: Any, deals: Any) -> Any:
        kept, self._own_deal = self._own_deal, next(iter(deals), self._own_deal)
        try:
            return step(self, items, deals)
        finally:
            self._own_deal = kept

    return weak


def _opened(session_id: bytes, dealer: str, line: Any, item: bytes, key: bytes) -> Any:
    try:
        return open_sealed(item, key, session_id, dealer, line.recipient)
    except dealing.ShareError:
        return None


def _names_only(session_id: bytes, deal_hashes: Any) -> bytes:
    return tagged_hash("u2", session_id, *(member.encode() for member, _ in deal_hashes))


def deals_not_in_hu2(patch: pytest.MonkeyPatch) -> None:
    for module in (cohort_module, verdicts):
        patch.setattr(module, "hash_of_u2", _names_only)


def revealed_unchecked(patch: pytest.MonkeyPatch) -> None:
    """The machine does not look at what it reveals."""

    def make(step: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: Participant, *given: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(Sharing, "is_as_dealt", lambda *_: True)
                return step(self, *given)

        return weak

    patch.setattr(Participant, "receive_confirmations", make(Participant.receive_confirmations))


OWN_DEAL = around(Participant, "receive_shares", _any_own_deal)
UNCOMMITTED = swap(dealing, "opened_as_dealt", _opened)

# --- verdicts --------------------------------------------------------------------------------------------------------


def _believed(roster: Any, evidence: Any) -> Conviction:
    spec = open_spec(evidence.spec, roster)
    verdict = Verdict(evidence.proof.deal.parse().dealer, Offence.WRONG_SHARE)
    return Conviction(verdict, spec.run, spec.round, spec.attempt, spec.base_model_hash, evidence.session)


def _dealer_is_guilty(about: Callable[..., Verdict]) -> Callable[..., Verdict]:
    def weak(cohort: Any, body: Any, proof: Any) -> Verdict:
        found = about(cohort, body, proof)
        return found if found.offence.convicts else Verdict(found.others[0], Offence.WRONG_SHARE, (found.member,))

    return weak


def _by_messages(cohort: Any, deal: Any, proof: Any) -> Verdict:
    against = [one.id for one in proof.accusations if verdicts._contradicts(cohort, proof.deal, one)]
    if len(against) <= verdicts.most_accusers(cohort.roster):
        raise EvidenceError("too few")
    return Verdict(deal.dealer, Offence.ACCUSED_BY_MANY, tuple(against))


def _of_any_deal(body: Any, deal: Any) -> Any:
    return next((one for one in body.accused if one.dealer == deal.parse().dealer), None)


def _of_few(cohort: Any, deal: Any, proof: Any) -> Verdict:
    shares = {}
    for one in proof.openings:
        opened = verdicts.share_commitment(
            cohort.session_id, deal.dealer, one.recipient, proof.kind, one.nonce, one.share
        )
        if opened != verdicts._line(deal, one.recipient).of(proof.kind):
            raise EvidenceError("not as committed")
        shares[cohort.point(one.recipient)] = one.share
    if verdicts.is_secret_of(cohort.body(deal.dealer), proof.kind, verdicts.combine(shares)):
        raise EvidenceError("the shares make up the secret")
    return Verdict(deal.dealer, Offence.WRONG_SECRET)


BELIEVED = swap(verdicts, "verify_evidence", _believed)
CONTRADICTED = around(verdicts, "_about_item", _dealer_is_guilty)
ACCUSER_UNSIGNED, ANSWER_UNSIGNED = blind(verdicts, "accusation"), blind(verdicts, "unmask")
ONE_ACCUSER = swap(verdicts, "most_accusers", lambda roster: 0)
BY_MESSAGES = swap(verdicts, "_verify_accusers", _by_messages)
OF_ANY_DEAL = swap(verdicts, "_accused", _of_any_deal)
OVER_ANY_DEAL = swap(verdicts, "Sharer", Same)
OVER_ANYTHING = swap(verdicts, "hash_of_u3", Same)
UNDEALT = swap(verdicts, "share_commitment", Same)
OF_FEW = swap(verdicts, "_verify_secret", _of_few)

# --- what a conviction frees for --------------------------------------------------------------------------------------


def frees_for_anybody(patch: pytest.MonkeyPatch) -> None:
    recorded, check = SpentLog.recorded, spent_module.check_spent

    def any_survivors(self: SpentLog, base: bytes, part: str) -> tuple[str, ...]:
        return () if self._convicted.get((base, part)) else recorded(self, base, part)

    def unless_convicted(old: Any, used: Any, record: Any, answers: int = 0, convicted: Any = ()) -> None:
        if not convicted:
            check(old, used, record, answers, convicted)

    patch.setattr(SpentLog, "recorded", any_survivors)
    patch.setattr(spent_module, "check_spent", unless_convicted)


def lets_as_many_others(patch: pytest.MonkeyPatch) -> None:
    """For each of the convicted somebody may be missing, and not only the convicted."""
    recorded, check = SpentLog.recorded, spent_module.check_spent

    def others(self: SpentLog, base: bytes, part: str) -> tuple[str, ...]:
        return () if self._convicted.get((base, part)) else recorded(self, base, part)

    def weak(old: Any, used: Any, record: Any, answers: int = 0, convicted: Any = ()) -> None:
        if not (set(record.u3) <= set(old) and len(record.u3) + len(convicted) >= len(old)):
            check(old, used, record, answers, convicted)

    patch.setattr(SpentLog, "recorded", others)
    patch.setattr(spent_module, "check_spent", weak)


def counts_on_every_base(patch: pytest.MonkeyPatch) -> None:
    def convict(self: SpentLog, base: bytes, part: str, member: str) -> None:
        for place in {*self._survivors, (base, part)}:
            self._convicted.setdefault(place, set()).add(member)

    patch.setattr(SpentLog, "convict", convict)
