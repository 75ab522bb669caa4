"""Opening this institution's own update of a round without a result to the federation's auditor, and to nobody else.

The words are made again from the stored update, as every attempt does, and are known to be those that were sent; the
secrets of their masks were sealed to the auditor while the session had them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedddpm.errors import StateError
from fedddpm.state.sealed_secrets import HeldSum, held_sums
from fedddpm.state.secret import rounding_seed_of
from fedddpm.updates.contribution import Contribution, scaled_pieces
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.agreement.roster import Auditor, Roster, open_roster
from fedddpm_protocol.agreement.spec import RoundSpec, SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.checked_sum import confirmed_survivors
from fedddpm_protocol.session.cohort import open_cohort, session_plan
from fedddpm_protocol.session.opened_update import seal_words, sign_paper
from fedddpm_protocol.wire.sum_proofs import SealedUpdate


@dataclass(frozen=True)
class OpenRound:
    """A sum that was answered for and has no result yet."""

    held: HeldSum
    spec: RoundSpec
    roster: Roster
    auditor: Auditor

    @property
    def session(self) -> str:
        """The part, or its shard."""
        return self.held.confirmed.session

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum."""
        return tuple(survivor.id for survivor in self.held.confirmed.survivors)


def open_rounds(folder: Path, root_public_key: bytes) -> list[OpenRound]:
    """The sums whose part could be shown to the auditor; StateError if there is none, PeerProtocolError as papers."""
    rounds = []
    for held in held_sums(folder, root_public_key):
        roster = open_roster(held.confirmed.roster, root_public_key)
        spec = open_spec(held.confirmed.spec, roster)
        if roster.auditor is not None and spec.hash == held.sealed.spec_hash:
            if open_roster(held.newest_roster, root_public_key).auditor != roster.auditor:
                raise StateError(
                    f"{roster.auditor.id}, whom this update could be shown to, is the auditor no more",
                    "Ask the coordinator why; what is sealed to the old key opens to nobody else",
                )
            rounds.append(OpenRound(held, spec, roster, roster.auditor))
    if not rounds:
        raise StateError(
            f"{folder} holds nothing that could be opened: no sum without a result was answered for here, or its roster"
            " names no auditor, or keep_for_auditor = false",
            "Nothing has to be done where the round has its result. Otherwise tell the coordinator that this update"
            " cannot be opened, and why",
        )
    return rounds


def seal_update(folder: Path, round_: OpenRound, identity: SigningKey) -> SealedUpdate:
    """This institution's words in a sum, sealed to the auditor and signed by it.

    Raises:
        StateError: the stored update is gone, or does not give the words that were sent.
        PeerProtocolError: what is on record of the sum does not hold.
    """
    spec, held = round_.spec, round_.held
    survivors = confirmed_survivors(held.confirmed, round_.roster, spec)
    session_id = survivors.sharing.cohort.session_id
    digest, words = hashlib.sha256(), defaultdict[str, list[bytes]](list)
    for segment, index, chunk in words_again(folder, round_):
        digest.update(chunk.data)
        packed = ring.pack(chunk, segment.bits)
        place = (session_id, held.member, segment.name, index)
        sealed = seal_words(round_.auditor.sealing_key, *place, packed, secrets.token_bytes)
        words[segment.name].append(sealed)
    if digest.digest() != held.sealed.words:
        raise StateError(
            f"the words of round {spec.round + 1} cannot be made again as they were sent: rounding gave others",
            "Run this on the machine that took part, with the same number of threads (OMP_NUM_THREADS) and the same"
            " release; otherwise tell the coordinator that this update cannot be opened, and why",
        )
    chunks = {name: tuple(sealed) for name, sealed in words.items()}
    signature = sign_paper(survivors, held.member, identity, held.sealed.secrets, chunks)
    return SealedUpdate(
        confirmed=held.confirmed,
        member=held.member,
        secrets=held.sealed.secrets,
        signature=signature,
        words=chunks,
    )


def words_again(folder: Path, round_: OpenRound) -> Iterator[tuple[SegmentSpec, int, ring.Words]]:
    """Segment, index and words of each chunk that the stored update gives, in the order in which they are masked.

    StateError if the update is gone; PeerProtocolError if what is on record of the sum does not hold.
    """
    spec, held = round_.spec, round_.held
    update = UpdateStore(folder).load(spec.base_model_hash, spec.terms_hash)
    if update is None:
        raise StateError(
            f"the update of round {spec.round + 1} is not in {folder} any more",
            "Tell the coordinator that it cannot be opened, and why",
        )
    part = spec.part(round_.session)
    rounding = rounding_seed_of(held.secret, spec.base_model_hash, part.name)
    contribution = Contribution(spec, part.name, update, scaled_pieces(spec, update.sent), rounding)
    cohort = open_cohort(session_plan(spec, round_.roster, round_.session), round_.roster, held.confirmed.joins)
    contribution.take_place(held.member, cohort.ids, round_.roster.c_max)
    for segment in part.segments:
        for index in range(chunk_count(segment, spec.chunk_coordinates)):
            yield segment, index, contribution.words(segment, index)
