"""What a run will move, planned: parameters and bytes by round, member and method.

As arXiv 2406.12575 counts: ``N`` is parameters up and down over a run, without the download of the final model; bytes
are counted the same way. Client and plan decide by the same function (``reporters_by_session``) who reports what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedddpm.transport.traffic import FLOAT_BYTES
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method, reporters_by_session
from fedddpm_protocol.agreement.spec import PartSpec
from fedddpm_protocol.primitives.ring import packed_bytes


@dataclass(frozen=True)
class RoundPlan:
    """Parameters that one member moves in one round when nothing fails."""

    first_contact: int  # theta_0, in the first round only, and not where it follows from a seed
    up: int
    result: int  # what the round opened: the way to the next round's base


@dataclass(frozen=True)
class RoundBytes:
    """Payload of one member in one round when nothing fails, without keys, shares and headers."""

    first_contact: int  # theta_0 in float32
    up: int  # packed words of the parts it reports, each with its sums of weights and losses
    down: int  # packed words of all opened parts: the way to the next round's base


def plan_round(
    method: Method,
    sizes: Mapping[str, int],
    spec_hash: bytes,
    members: Sequence[str],
    *,
    first: bool,
    seeded: bool = False,
    turn: str = "",
) -> dict[str, RoundPlan]:
    """The round's plan for each member; ``sizes`` holds the coordinates of each model part.

    ``seeded``: theta_0 follows from a seed and nobody downloads it. ``turn``: as in the round's specification.
    """
    session_size = {name: sum(sizes[part] for part in parts) for name, parts in method.sessions.items()}
    session_size = {name: session_size[name] for name in method.summed_in(turn)}
    reporters = reporters_by_session(method, spec_hash, members)
    whole, shared = sum(sizes[part] for part in MODEL_PARTS), sum(session_size.values())
    return {
        member: RoundPlan(
            first_contact=whole if first and not seeded else 0,
            up=sum(size for name, size in session_size.items() if member in reporters[name]),
            result=shared,
        )
        for member in members
    }


def plan_bytes(
    method: Method, parts: Sequence[PartSpec], spec_hash: bytes, members: Sequence[str], *, first_contact: int = 0
) -> dict[str, RoundBytes]:
    """The round's payload for each member; ``parts`` are those of its specification and say how many bits a word has.

    ``first_contact``: parameters of theta_0 where this round's members download it.
    """
    reporters = reporters_by_session(method, spec_hash, members)
    values = {part.name: packed_bytes(part.values.coordinates, part.values.bits) for part in parts}
    sums = {part.name: packed_bytes(part.weights.coordinates, part.weights.bits) for part in parts}
    return {
        member: RoundBytes(
            first_contact=FLOAT_BYTES * first_contact,
            up=sum(values[name] + sums[name] for name in values if member in reporters[name]),
            down=sum(values.values()),
        )
        for member in members
    }


def paper_parameters(
    method: Method,
    sizes: Mapping[str, int],
    members: Sequence[str],
    spec_hashes: Sequence[bytes],
    turns: Sequence[str] = (),
) -> int:
    """``N`` of a run with one spec a round: everything up and down but the final model. ``turns``: of its rounds."""
    total = 0
    for round_, spec_hash in enumerate(spec_hashes):
        last = round_ == len(spec_hashes) - 1
        turn = turns[round_] if turns else ""
        for plan in plan_round(method, sizes, spec_hash, members, first=round_ == 0, turn=turn).values():
            total += plan.first_contact + plan.up + (0 if last else plan.result)
    return total


def run_bytes(rounds: Sequence[Mapping[str, RoundBytes]]) -> int:
    """Payload of a run with one :func:`plan_bytes` a round, counted as ``N`` is: all but the final model."""
    moved = sum(plan.first_contact + plan.up + plan.down for round_ in rounds for plan in round_.values())
    return moved - sum(plan.down for plan in rounds[-1].values()) if rounds else 0
