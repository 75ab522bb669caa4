"""Honest institutions of the search: the production machine and log, whose every state can be gone on from twice.

A :class:`Node` is one state of one member's machine, with the message that it sent on its way there. Randomness follows
from member, offer and life, so the same messages lead to the same bytes and no step is taken twice.
"""

from __future__ import annotations

import copy
import gc
import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
from tests.protocol.support.sessions import identity_of, make_roster

from fedddpm_protocol.agreement.roster import Release, Roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import EncodingError, ProtocolError
from fedddpm_protocol.primitives import canonical, keys, ring
from fedddpm_protocol.primitives.keystream import MaskStream
from fedddpm_protocol.session import masking, verdicts
from fedddpm_protocol.session.cohort import SessionPlan
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.messages import Deal, Join

WORDS = 8
NOTHING = 255  # terms under which nothing is learned
Content = tuple[int, int, int]  # whose training, on which base, under which terms or made for which time


@dataclass(frozen=True)
class Federation:
    """Who is there. ``corrupt``: how many of the members stand with the aggregator (the last of the roster)."""

    n: int
    c_max: int
    n_min: int = 3
    floor: int = 0
    corrupt: int | None = None

    @property
    def conspirators(self) -> int:
        return self.c_max if self.corrupt is None else self.corrupt

    @property
    def honest(self) -> range:
        return range(self.n - self.conspirators)

    @property
    def least(self) -> int:
        """The smallest sum that a member may ever help to open, whatever the cohort."""
        return max(self.n_min, self.floor)

    def quorum(self, cohort: int) -> int:
        """What the protocol promises, written down a second time: mutants change the first."""
        return max((cohort + self.c_max) // 2 + 1, self.least)

    @property
    def alone(self) -> bool:
        """Whether too few members are left for a second sum when one was opened with as few answers as may be."""
        answers = (self.least + self.c_max) // 2 + 1 - self.c_max
        return self.n - answers < self.least

    def roster(self, releases: tuple[Release, ...] = ()) -> Roster:
        return make_roster(self.n, self.c_max, self.n_min, version=2 if releases else 1, releases=releases)

    def __str__(self) -> str:
        return f"n={self.n} c_max={self.c_max} n_min={self.n_min} floor={self.floor} corrupt={self.conspirators}"


@dataclass(frozen=True)
class Offer:
    """One attempt at a secure sum, as the aggregator announces it. Two equal ones are one specification."""

    attempt: int
    base: int = 0
    part: str = "part"
    terms: int = 0
    releases: tuple[Release, ...] = ()
    document: bytes = b""  # the specification, where somebody reads it; else its hash is enough

    @property
    def base_hash(self) -> bytes:
        return bytes([7, self.base]) * 16

    @property
    def terms_hash(self) -> bytes:
        return bytes([self.terms]) * 32

    @property
    def spec_hash(self) -> bytes:
        if self.document:
            return canonical.tagged_hash("spec", self.document)
        return hashlib.sha256(repr((self.attempt, self.base, self.terms, self.releases)).encode()).digest()

    def plan(self, roster: Roster) -> SessionPlan:
        return SessionPlan(
            spec_hash=self.spec_hash,
            base_model_hash=self.base_hash,
            part=self.part,
            segments=(SegmentSpec(self.part, 32, WORDS, "fixed-point"),),
            chunk_coordinates=WORDS,
            largest_cohort=16,
            discloses_samples=False,
            reporters=roster.ids,
        )


@dataclass(frozen=True)
class Durable:
    """What outlives a process: the log's records, and the update that is stored."""

    records: tuple[SpentRecord, ...] = ()
    terms: tuple[tuple[bytes, bytes], ...] = ()
    given: tuple[tuple[bytes, bytes], ...] = ()
    stored: tuple[Content, ...] = ()  # the one update that is kept
    convicted: tuple[tuple[bytes, str, str], ...] = ()  # base, part, member: whose evidence was checked

    def log(self) -> SpentLog:
        """The production log, as a process that starts finds it."""
        log = SpentLog(self.records)
        for base, terms in self.terms:
            log.agree(base, terms)
        for base, digest in self.given:
            log.give(base, digest)
        for base, part, member in self.convicted:
            log.convict(base, part, member)
        return log

    def profile(self) -> Hashable:
        """What of it decides what the member does next."""
        records = tuple((r.base_model_hash, r.part, r.u3, r.release) for r in self.records)
        return records, self.terms, self.given, self.stored, self.convicted


@dataclass(eq=False)
class Node:
    """A member's machine in one state, and what it sent to get there."""

    member: int
    offer: Offer
    machine: Participant
    durable: Durable
    label: tuple[Any, ...]  # what it was shown, by places of members; two members' nodes compare by it
    sent: Any
    parent: Node | None = None
    children: dict[Hashable, Node | None] = field(default_factory=dict)
    seeds: tuple[tuple[bytes, int], ...] = ()  # of the masks in its upload, with their signs
    content: Content | None = None  # what is in its upload; None: zeros
    words: ring.Words | None = None
    tags: dict[str, str] = field(default_factory=dict)  # what stands in each place of the cohort it was shown

    @property
    def id(self) -> str:
        return self.machine.member_id

    def follow(self, key: Hashable, act: Callable[[Node], None]) -> Node | None:
        """The node after one more message, made once; None where the machine refuses it."""
        if key not in self.children:
            child = Node(self.member, self.offer, fork(self.machine), self.durable, self.label, None, self)
            child.content, child.seeds, child.words, child.tags = self.content, self.seeds, self.words, self.tags
            try:
                act(child)
            except EncodingError:
                if self.label[0] != "confirm":  # there it found a wrong share; elsewhere this file is wrong
                    raise
                self.children[key] = None
            except ProtocolError:
                self.children[key] = None
            else:
                self.children[key] = child
        return self.children[key]


def fork(machine: Participant) -> Participant:
    """A second machine in the same state; neither sees what happens to the other."""
    twin = copy.copy(machine)
    twin._secrets = copy.copy(machine._secrets)
    if twin._secrets is not None:
        twin._secrets.shares = dict(twin._secrets.shares)
        for name in ("channel_private", "mask_private", "self_mask"):
            setattr(twin._secrets, name, bytearray(getattr(twin._secrets, name)))
    twin._streams = dict(machine._streams)
    twin._chunks = {name: dict(chunks) for name, chunks in machine._chunks.items()}
    return twin


def values(content: Content | None, part: str) -> ring.Words:
    """What a member puts in: eight words that follow from what it trained."""
    if content is None:
        return ring.zeros(WORDS, 32)
    raw = hashlib.sha256(repr((content, part)).encode()).digest()
    return np.frombuffer(raw, np.uint32).astype(ring.word_dtype(32))


def trained(durable: Durable, member: int, offer: Offer, making: int = 0) -> Durable:
    """After an offer was accepted: bound to its terms, with an update in store. Raises TermsError."""
    durable.log().agree(offer.base_hash, offer.terms_hash)
    kept = durable.stored[0] if durable.stored else None
    if kept is None or kept[:2] != (member, offer.base):
        kept = (member, offer.base, offer.terms + 1000 * making)
    terms = dict(durable.terms)
    terms.setdefault(offer.base_hash, offer.terms_hash)
    return replace(durable, terms=tuple(terms.items()), stored=(kept,))


def join(
    federation: Federation, member: int, offer: Offer, durable: Durable, life: int = 0, making: int = 0
) -> Node | None:
    """A process that starts, knows what is durable, trains if it has to, and joins; None where it refuses to."""
    try:
        durable = trained(durable, member, offer, making)
        roster = federation.roster(offer.releases)
        log, plan = durable.log(), offer.plan(roster)
        machine = Participant(
            identity=identity_of(member),
            member_id=roster.ids[member],
            roster=roster,
            plan=plan,
            floor=federation.floor,
            recorded_u3=log.recorded(plan.base_model_hash, plan.part),
            release=log.release(roster, plan.base_model_hash, plan.part),
            answers=log.answers(plan.base_model_hash, plan.part),
            random_bytes=randomness(member, (offer, life)),
        )
        sent = machine.join(life + 1)
    except ProtocolError:
        return None
    return Node(member, offer, machine, durable, (), sent)


def roots(nodes: Sequence[Node]) -> list[Node]:
    """The machines at JOIN that these came from."""
    found: dict[int, Node] = {}
    for node in nodes:
        while node.parent is not None:
            node = node.parent
        found[id(node)] = node
    return list(found.values())


def join_of(node: Node) -> Join:
    own = node.machine._own_join
    assert own is not None
    return own


def randomness(member: int, occasion: Hashable) -> Callable[[int], bytes]:
    """Fresh for every occasion, and the same each time it is repeated."""
    stream: Iterator[bytes] = _blocks(repr((member, occasion)).encode())
    return lambda size: next(stream)[:size]


def _blocks(seed: bytes) -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield hashlib.sha256(seed + number.to_bytes(8, "big")).digest()


def upload(node: Node) -> None:
    """Mask and send what is stored, once the log lets it."""
    (content,) = node.durable.stored
    digest = hashlib.sha256(repr(content).encode()).digest()
    node.durable.log().give(node.offer.base_hash, digest)
    given = dict(node.durable.given)
    given.setdefault(node.offer.base_hash, digest)
    node.durable = replace(node.durable, given=tuple(given.items()))
    node.content = None if content[2] % 1000 == NOTHING else content
    node.seeds = tuple((stream.seed, sign) for stream, sign in node.machine._streams[node.offer.part])  # type: ignore[attr-defined]
    packed = node.machine.mask_chunk(node.offer.part, 0, values(node.content, node.offer.part))
    node.words = ring.unpack(packed, 32, WORDS)
    node.sent = node.machine.finish_upload()


def committing(node: Node) -> Callable[[SpentRecord], None]:
    """What the machine calls before it answers: the log's check, and then the disk."""

    def commit(record: SpentRecord) -> None:
        log = node.durable.log()
        log.commit(record)
        node.durable = replace(node.durable, records=(*node.durable.records, record))

    return commit


class Watched(MaskStream):
    """A mask's stream that tells which seed it is made of."""

    def __init__(self, seed: bytes, segment: str, bits: int) -> None:
        super().__init__(seed, segment, bits)
        self.seed = seed


@contextmanager
def watched() -> Iterator[pytest.MonkeyPatch]:
    """Streams that can be told apart; and no signature, key exchange or JOIN that was computed is computed again."""
    gc.disable()  # there are many objects, and all of them are kept
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "MaskStream", Watched)
        for name, function in CACHED.items():
            patch.setattr(keys, name, function)
        patch.setattr(keys.SigningKey, "sign", _sign)
        for name in ("open_spec", "session_plan"):
            patch.setattr(verdicts, name, lru_cache(maxsize=100)(getattr(verdicts, name)))
        for message in (Join, Deal):
            patch.setattr(message, "parse", lru_cache(maxsize=10_000)(message.parse))
        try:
            yield patch
        finally:
            gc.enable()


CACHED = {
    name: lru_cache(maxsize=200_000)(getattr(keys, name)) for name in ("x25519_public", "x25519_shared", "verify")
}
_production_sign = keys.SigningKey.sign


@cache
def _signed(seed: bytes, tag: str, message: bytes) -> bytes:
    return _production_sign(keys.SigningKey(seed), tag, message)


def _sign(key: keys.SigningKey, tag: str, message: bytes) -> bytes:
    return _signed(key.seed, tag, message)
