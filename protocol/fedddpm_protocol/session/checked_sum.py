"""Checking a published sum: a survivor opens some chunks itself, and proves it to others where they are false.

What has to come out is fixed before anything is opened: hU3 covers the digest of every masked chunk, the JOINs under it
commit to every secret. So a signed result whose chunk is another one convicts who signed it, and nobody else's word is
needed (see ``docs/protocol.md``, Checking an opened sum).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedddpm_protocol.agreement.chunks import segment_digest, upload_digest
from fedddpm_protocol.agreement.documents import open_result, open_spec
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import CohortTooSmallError, FalseSumError, MalformedError, ResultError, SurvivorsError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.cohort import SurvivorSet, open_cohort, session_plan
from fedddpm_protocol.session.coordinator import MaskPlan, recover
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum, FalseSum, ShownSum

_PARTS = 2**32  # of certainty, in which a chance is drawn


def draw_chunks(chunks: int, survivors: int, effort: float, below: Callable[[int], int]) -> tuple[int, ...]:
    """Which of ``chunks`` chunks one of ``survivors`` members checks, of whom each fetches the masked words of all.

    Each chunk is drawn with min(1, effort / survivors): on average ``effort`` times the bytes of a sum. Where none was,
    one of all is taken with min(1, effort). ``below(n)`` gives a whole number from 0 to n - 1 that nobody can foresee
    (``secrets.randbelow``).
    """
    chance = int(min(1.0, effort / survivors) * _PARTS)
    drawn = tuple(index for index in range(chunks) if below(_PARTS) < chance)
    if drawn or below(_PARTS) >= int(min(1.0, effort) * _PARTS):
        return drawn
    return (below(chunks),)


def chance_to_find(chunks: int, false: int, survivors: int, effort: float, checking: int) -> float:
    """How likely it is that one of ``checking`` honest survivors draws one of ``false`` false chunks."""
    chance = min(1.0, effort / survivors)
    taken_after_all = (1 - chance) ** chunks * min(1.0, effort) * false / chunks
    missed = (1 - chance) ** false - taken_after_all
    return float(1 - missed**checking)


def confirmed_survivors(confirmed: ConfirmedSum, roster: Roster, spec: RoundSpec) -> SurvivorSet:
    """U3 as t of its members confirmed it.

    PeerProtocolError unless every JOIN, set and signature in ``confirmed`` is right under ``roster`` and ``spec``.
    """
    cohort = open_cohort(session_plan(spec, roster, confirmed.session), roster, confirmed.joins)
    digests = {survivor.id: survivor.upload_digest for survivor in confirmed.survivors}
    survivors = cohort.sharing(confirmed.deals).survivors(digests)
    for confirmation in confirmed.confirmations:
        survivors.verify_confirmation(confirmation)
    if not survivors.enough(len({confirmation.id for confirmation in confirmed.confirmations})):
        raise CohortTooSmallError(f"too few survivors confirmed: {survivors.sharing.cohort.threshold} are needed")
    return survivors


def published_sum(result: RoundResult, spec: RoundSpec, session: str) -> PartResult:
    """What a result says of a session; ResultError where it says nothing, or is of another round."""
    if result.spec_hash != spec.hash:
        raise ResultError("the result is of another attempt")
    for part in result.parts:
        if part.part == session and part.opened:
            return part
    raise ResultError(f"the result has no sum of part {session!r}")


def require_confirmed(survivors: SurvivorSet, part: PartResult) -> None:
    """FalseSumError unless a signed result is about exactly the uploads that were confirmed."""
    cohort = survivors.sharing.cohort
    confirmed = (cohort.session_id, survivors.hu3, cohort.ids, survivors.ids)
    if (part.session_id, part.hu3, part.cohort, part.survivors) != confirmed:
        raise FalseSumError(
            f"the signed result of part {part.part!r} names other uploads than its survivors confirmed", "aggregator"
        )


@dataclass(frozen=True)
class CheckedSum:
    """A published sum with everything that it has to follow from; made by :func:`check_shown`."""

    part: PartResult
    survivors: SurvivorSet
    masks: MaskPlan
    shown: ShownSum

    def require_chunk(self, segment_name: str, index: int, words: Mapping[str, bytes]) -> None:
        """Open a chunk from the survivors' packed masked ``words`` and compare it with the published one.

        Raises:
            FalseSumError: it is another one.
            MalformedError: words are missing, or are not those that were confirmed.
        """
        segment = self.survivors.sharing.cohort.plan.segment(segment_name)
        if set(words) != set(self.survivors.ids):
            raise MalformedError("masked words of other members than the survivors", "aggregator")
        for member, packed in words.items():
            wanted = self.shown.uploads[member][segment_name]
            if not 0 <= index < len(wanted) or hashlib.sha256(packed).digest() != wanted[index]:
                raise MalformedError(
                    f"the words shown for chunk {index} of {member!r} are not those that it sent", "aggregator"
                )
        opened = self.masks.open_chunk(segment, index, (words[member] for member in self.survivors.ids))
        if segment_name == self.values:
            same = hashlib.sha256(ring.pack(opened, segment.bits)).digest() == self.shown.opened[index]
        else:
            same = tuple(int(word) for word in opened) == self.part.sums
        if not same:
            raise FalseSumError(
                f"chunk {index} of {segment_name!r} is not the sum of what the survivors sent", "aggregator"
            )

    @property
    def values(self) -> str:
        """Name of the segment with the update."""
        return self.survivors.sharing.cohort.plan.segments[0].name

    @property
    def weights(self) -> str:
        """Name of the segment with the sums of weights and losses; it is one chunk."""
        return self.survivors.sharing.cohort.plan.segments[1].name

    @property
    def chunks(self) -> int:
        """How many chunks the values have."""
        return len(self.shown.opened)


def check_shown(survivors: SurvivorSet, part: PartResult, shown: ShownSum) -> CheckedSum:
    """What the aggregator shows, held against what was confirmed and signed.

    Raises:
        FalseSumError: as :func:`require_confirmed`.
        PeerProtocolError: the digests shown are not those under hU3 or under the signed sum, or the answers do not
            give the secrets that the JOINs commit to. That proves nothing: what is shown is not signed.
    """
    require_confirmed(survivors, part)
    plan = survivors.sharing.cohort.plan
    for member, digest in zip(survivors.ids, survivors.digests, strict=True):
        chunks = shown.uploads.get(member)
        if chunks is None or upload_digest(member, plan.segments, plan.chunk_coordinates, chunks) != digest:
            raise SurvivorsError(f"the digests shown for the upload of {member!r} are not its own", "aggregator")
    values = plan.segments[0]
    if segment_digest(values, plan.chunk_coordinates, shown.opened) != part.opened_digest:
        raise ResultError("the digests shown for the published sum are not those that were signed", "aggregator")
    return CheckedSum(part, survivors, recover(survivors, shown.unmasks), shown)


@dataclass(frozen=True)
class Verdict:
    """What a proof says, to somebody who knows the root's key and nothing else."""

    federation: str
    server_public_key: bytes
    run: str
    round: int  # from 0
    attempt: int
    false: str  # what does not hold; empty: the evidence convicts nobody
    by_confirmations: bool  # it rests on the members' signatures too: right unless more than c_max of them lie


def judge(evidence: FalseSum, root_public_key: bytes) -> Verdict:
    """Whether ``evidence`` convicts the aggregator that the root-signed roster in it names.

    A false chunk follows from the aggregator's signatures and from hashes alone, whoever shows it.

    Raises:
        PeerProtocolError: it is no evidence: signatures or sets do not hold, or another root signed the roster.
    """
    confirmed = evidence.confirmed
    roster = open_roster(confirmed.roster, root_public_key)
    spec, result = open_spec(confirmed.spec, roster), open_result(evidence.result, roster)
    survivors = confirmed_survivors(confirmed, roster, spec)
    part = published_sum(result, spec, confirmed.session)
    false, by_confirmations = "", False
    try:
        require_confirmed(survivors, part)
    except FalseSumError as error:
        false, by_confirmations = str(error), True
    try:
        if not false and evidence.shown is not None and evidence.segment is not None:
            checked = check_shown(survivors, part, evidence.shown)
            checked.require_chunk(evidence.segment, evidence.index, evidence.words)
    except FalseSumError as error:
        false = str(error)
    return Verdict(
        roster.federation, roster.server_public_key, result.run, result.round, result.attempt, false, by_confirmations
    )
