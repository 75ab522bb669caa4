"""The aggregator's rules: which members form the cohort, and how the masks of a sum are removed.

The aggregator holds no secret here. It can open a sum only with shares from a threshold of survivors, and every secret
it rebuilds is checked against the commitment or public key in that member's signed JOIN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import CohortTooSmallError, CommitmentError, MalformedError, MisdealtError, ProtocolError
from fedddpm_protocol.primitives import keys, ring
from fedddpm_protocol.primitives.keystream import MaskStream, Scratch
from fedddpm_protocol.primitives.shamir import combine
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session.cohort import Cohort, SessionPlan, SurvivorSet, open_cohort, verify_join
from fedddpm_protocol.wire.messages import Join, JoinBody, MaskKind, RevealedShare, Unmask, UnmaskBody


def form_cohort(plan: SessionPlan, roster: Roster, joins: Sequence[Join]) -> Cohort:
    """The largest admissible cohort out of ``joins`` (one a member, each already verified).

    A member spent on this base model is admitted only into a cohort of exactly the survivors it names, so members
    whose recorded sets cannot be met are left out. Raises CohortTooSmallError if no admissible cohort is left.
    """
    bodies = {join: verify_join(plan, roster, join) for join in joins}
    recorded = sorted({body.recorded_u3 for body in bodies.values() if body.recorded_u3}, key=len, reverse=True)
    unspent = [join for join, body in bodies.items() if not body.recorded_u3]
    candidates = [unspent]
    for wanted in recorded:
        exact = [join for join, body in bodies.items() if body.id in wanted and body.recorded_u3 in ((), wanted)]
        if len(exact) == len(wanted):
            candidates.append(exact)
    candidates.sort(key=len, reverse=True)
    failure: ProtocolError | None = None
    for candidate in candidates:
        try:
            return open_cohort(plan, roster, candidate)
        except CohortTooSmallError as error:
            failure = failure or error
    raise failure or CohortTooSmallError("nobody joined")


@dataclass(frozen=True, repr=False)
class MaskPlan:
    """The seeds whose masks stand in a sum, with the sign to remove them."""

    survivors: SurvivorSet
    seeds: tuple[tuple[bytes, int], ...]  # (seed, sign)

    def opener(self, segment: SegmentSpec) -> SegmentOpener:
        """Opens the chunks of a segment; one for each thread."""
        chunk_coordinates = self.survivors.sharing.cohort.plan.chunk_coordinates
        return SegmentOpener(self.seeds, len(self.survivors.ids), segment, chunk_coordinates)

    def open_chunk(self, segment: SegmentSpec, index: int, chunks: Iterable[bytes | memoryview]) -> ring.Words:
        """A single chunk, see :meth:`SegmentOpener.open`."""
        return self.opener(segment).open(index, chunks)


class SegmentOpener:
    """Sums and unmasks the chunks of one segment, in any order, in order fastest. Not for two threads at once.

    ``seeds`` as in :class:`MaskPlan`, for the sum over ``members`` survivors.
    """

    def __init__(
        self, seeds: Iterable[tuple[bytes, int]], members: int, segment: SegmentSpec, chunk_coordinates: int
    ) -> None:
        self._segment, self._members, self._chunk_coordinates = segment, members, chunk_coordinates
        self._streams = [(MaskStream(seed, segment.name, segment.bits), sign) for seed, sign in seeds]
        self._scratch = Scratch()

    def open(self, index: int, chunks: Iterable[bytes | memoryview]) -> ring.Words:
        """Sum of the survivors' packed chunks minus all masks: ring words [coordinates of the chunk].

        MalformedError unless there is exactly one chunk of the exact size for every survivor.
        """
        bits = self._segment.bits
        start, count = chunk_span(self._segment, self._chunk_coordinates, index)
        total = ring.zeros(count, bits)
        added = 0
        for packed in chunks:
            np.add(total, ring.unpack(packed, bits, count), out=total)
            added += 1
        if added != self._members:
            raise MalformedError(f"{added} chunks for {self._members} survivors")
        for stream, sign in self._streams:
            stream.combine(total, start, -sign, self._scratch)
        ring.reduce_in_place(total, bits)
        return total


def recover(survivors: SurvivorSet, unmasks: Sequence[Unmask]) -> MaskPlan:
    """Rebuild the secrets that the survivors released, from those shares that are as their dealers committed to.

    Raises CommitmentError while too few such shares are there, MisdealtError where they do not make up a secret, and
    what :meth:`SurvivorSet.verify_unmask` raises.
    """
    cohort = survivors.sharing.cohort
    bodies = {unmask.id: survivors.verify_unmask(unmask) for unmask in unmasks}
    if not survivors.enough(len(bodies)):
        raise CommitmentError(f"{len(bodies)} survivors answered, {cohort.threshold} are needed")
    seeds: list[tuple[bytes, int]] = []
    for member in survivors.sharing.ids:
        secret = _secret(survivors, member, bodies)
        if member in survivors.ids:
            seeds.append((mask_seeds.self_seed(secret, cohort.session_id, member, survivors.sharing.hu2), 1))
        else:
            seeds += _pair_seeds(survivors, member, secret)
    return MaskPlan(survivors, tuple(seeds))


def right_shares(survivors: SurvivorSet, dealer: str, bodies: Mapping[str, UnmaskBody]) -> dict[str, RevealedShare]:
    """The revealed shares of a dealer that are as it committed to, by who revealed them, in order."""
    revealed = {holder: bodies[holder].revealed[dealer] for holder in sorted(bodies, key=str.encode)}
    is_as_dealt = survivors.sharing.is_as_dealt
    return {holder: share for holder, share in revealed.items() if is_as_dealt(dealer, holder, share)}


def is_secret_of(body: JoinBody, kind: MaskKind, secret: bytes) -> bool:
    """Whether ``secret`` is what a JOIN commits to: its self mask, or its mask key."""
    if kind == "self_mask":
        return mask_seeds.self_mask_commitment(body.id, secret) == body.self_mask_commitment
    return keys.x25519_public(secret) == body.mask_public_key


def _secret(survivors: SurvivorSet, member: str, bodies: Mapping[str, UnmaskBody]) -> bytes:
    cohort = survivors.sharing.cohort
    right = right_shares(survivors, member, bodies)
    if not survivors.enough(len(right)):
        wrong = ", ".join(sorted(set(bodies) - set(right)))
        raise CommitmentError(
            f"{len(right)} of {cohort.threshold} needed shares of {member!r} are as they were dealt; wrong: {wrong}"
        )
    first = list(right.items())[: cohort.threshold]
    secret = combine({cohort.point(holder): revealed.share for holder, revealed in first})
    if not is_secret_of(cohort.body(member), first[0][1].kind, secret):
        raise MisdealtError(f"the shares of {member!r} are as committed and do not make up its secret", member)
    return secret


def _pair_seeds(survivors: SurvivorSet, dropped: str, private: bytes) -> list[tuple[bytes, int]]:
    cohort, hu2 = survivors.sharing.cohort, survivors.sharing.hu2
    seeds = []
    for survivor in survivors.ids:
        peer = cohort.body(survivor).mask_public_key
        seed = mask_seeds.pair_seed(private, peer, cohort.session_id, dropped, survivor, hu2)
        seeds.append((seed, 1 if survivor.encode() < dropped.encode() else -1))
    return seeds
