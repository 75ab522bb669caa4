"""A whole session in memory: the institutions' machines and the aggregator's rules, message by message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.roster import Member, Roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import SessionPlan
from fedddpm_protocol.session.coordinator import form_cohort, recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.messages import Deal, Join, ShareItem, Shares, Unmask

CHUNK = 8
SEGMENTS = (SegmentSpec("part", 32, 20, "fixed-point"), SegmentSpec("part.weights", 32, 3, "integers"))
SERVER = SigningKey(bytes(range(32)))


def identity_of(index: int) -> SigningKey:
    return SigningKey(bytes([index + 1]) * 32)


def make_roster(n: int, c_max: int = 0, n_min: int = 3, version: int = 1, **changes: object) -> Roster:
    members = tuple(Member(f"site-{index}", identity_of(index).public_key) for index in range(n))
    fields = {"federation": "test", "version": version, "c_max": c_max, "n_min": n_min, "members": members}
    return Roster(**{**fields, "server_public_key": SERVER.public_key, **changes})  # type: ignore[arg-type]


def make_plan(roster: Roster, attempt: int = 0, base: bytes = b"\x07" * 32, **changes: object) -> SessionPlan:
    fields: dict[str, object] = {
        "spec_hash": bytes([attempt]) * 32,
        "base_model_hash": base,
        "part": "part",
        "segments": SEGMENTS,
        "chunk_coordinates": CHUNK,
        "largest_cohort": 16,
        "discloses_samples": False,
        "reporters": roster.ids,
    }
    return SessionPlan(**{**fields, **changes})  # type: ignore[arg-type]


def make_participants(
    roster: Roster,
    plan: SessionPlan,
    logs: Mapping[str, SpentLog] | None = None,
    floor: int = 0,
    kind: type[Participant] = Participant,
) -> dict[str, Participant]:
    participants = {}
    for index, member in enumerate(roster.members):
        log = (logs or {}).get(member.id, SpentLog())
        participants[member.id] = kind(
            identity=identity_of(index),
            member_id=member.id,
            roster=roster,
            plan=plan,
            floor=floor,
            recorded_u3=log.recorded(plan.base_model_hash, plan.part),
            release=log.release(roster, plan.base_model_hash, plan.part),
        )
    return participants


def inputs_for(member: str, segments: Iterable[SegmentSpec]) -> dict[str, ring.Words]:
    """Distinct, large values, so that a missing or doubled member shows in the sum."""
    index = int(member.split("-")[1]) + 1
    return {
        segment.name: (
            (np.arange(segment.coordinates, dtype=np.uint64) * 2654435761 + index * 97_003_001) % 2**segment.bits
        ).astype(ring.word_dtype(segment.bits))
        for segment in segments
    }


def inbox_of(member: str, outboxes: Iterable[Shares]) -> tuple[list[ShareItem], list[Deal]]:
    """What a member receives when ``outboxes`` were sent, its own among them: the items for it, and all deals."""
    sent = list(outboxes)
    items = [item for shares in sent for item in shares.items if item.recipient == member]
    return items, [shares.deal for shares in sent]


def mask_all(participant: Participant, inputs: Mapping[str, ring.Words]) -> dict[str, list[bytes]]:
    plan = participant.plan
    uploads: dict[str, list[bytes]] = {}
    for segment in plan.segments:
        uploads[segment.name] = []
        for index in range(chunk_count(segment, plan.chunk_coordinates)):
            start, count = chunk_span(segment, plan.chunk_coordinates, index)
            words = inputs[segment.name][start : start + count].copy()
            uploads[segment.name].append(participant.mask_chunk(segment.name, index, words))
    return uploads


@dataclass
class Outcome:
    survivors: tuple[str, ...]
    opened: dict[str, ring.Words]


@dataclass
class Session:
    """Drives machines and rules; ``drops`` says after which step a member falls silent."""

    roster: Roster
    plan: SessionPlan
    participants: dict[str, Participant]
    logs: dict[str, SpentLog] = field(default_factory=dict)
    drops: dict[str, str] = field(default_factory=dict)  # member -> "join" | "shares" | "upload" | "confirm"
    seen: dict[str, Any] = field(default_factory=dict)  # what the aggregator had in the end
    spec: Any = None  # that the plan was made from, where there is one

    def alive(self, members: Iterable[str], step: str) -> list[str]:
        order = ("join", "shares", "upload", "confirm", "unmask")
        limit = order.index(step)
        return [m for m in members if m not in self.drops or order.index(self.drops[m]) >= limit]

    def run(self, commit: Callable[[SpentRecord], None] | None = None) -> Outcome:
        joins: list[Join] = [p.join(1) for p in self.participants.values()]
        cohort = form_cohort(self.plan, self.roster, joins)
        outboxes: dict[str, Shares] = {}
        senders = self.alive(cohort.ids, "shares")
        for member in senders:
            outboxes[member] = self.participants[member].receive_cohort(cohort.joins)
            cohort.verify_shares(member, outboxes[member])
        sharing = cohort.sharing(shares.deal for shares in outboxes.values())
        uploads, digests = {}, {}
        for member in self.alive(senders, "upload"):
            machine = self.participants[member]
            machine.receive_shares(*inbox_of(member, outboxes.values()))
            uploads[member] = mask_all(machine, inputs_for(member, self.plan.segments))
            digests[member] = sharing.verify_manifest(member, machine.finish_upload())
        survivors = sharing.survivors(digests)
        confirmations = []
        for member in self.alive(survivors.ids, "confirm"):
            confirmation = self.participants[member].receive_survivors(survivors.message.survivors)
            survivors.verify_confirmation(confirmation)
            confirmations.append(confirmation)
        unmasks: list[Unmask] = []
        for member in self.alive([c.id for c in confirmations], "unmask"):
            log = self.logs.setdefault(member, SpentLog())
            unmasks.append(self.participants[member].receive_confirmations(confirmations, commit or log.commit))
        mask_plan = recover(survivors, unmasks)
        opened = {}
        for segment in self.plan.segments:
            pieces = [
                mask_plan.open_chunk(segment, index, [uploads[m][segment.name][index] for m in survivors.ids])
                for index in range(chunk_count(segment, self.plan.chunk_coordinates))
            ]
            opened[segment.name] = np.concatenate(pieces)
        self.seen = {"survivors": survivors, "uploads": uploads, "confirmations": confirmations, "unmasks": unmasks}
        return Outcome(survivors.ids, opened)


def expected_sum(members: Iterable[str], segment: SegmentSpec) -> list[int]:
    totals = [0] * segment.coordinates
    for member in members:
        words = inputs_for(member, [segment])[segment.name]
        totals = [(total + int(word)) % 2**segment.bits for total, word in zip(totals, words, strict=True)]
    return totals


def masking_machine(**plan: Any) -> Participant:
    roster = make_roster(3)
    machines = make_participants(roster, make_plan(roster, **plan))
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    machines["site-0"].receive_shares(*inbox_of("site-0", shares.values()))
    return machines["site-0"]
