"""Updates that members opened to the auditor: whether each is what was sent, and within the agreed norm. Offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.encoding.decoder import check_single
from fedddpm_protocol.encoding.scale import Energy
from fedddpm_protocol.errors import OtherUpdateError, ResultError
from fedddpm_protocol.primitives.keys import SealingKey
from fedddpm_protocol.session.opened_update import OpenedUpdate, open_update
from fedddpm_protocol.wire.sum_proofs import SealedUpdate


@dataclass(frozen=True)
class Finding:
    """What the auditor may tell of one member's part in a sum; nothing of the update but its norm and weight."""

    member: str
    run: str
    method: str
    round: int  # from 0
    attempt: int  # from 0
    session: str  # the part, or its shard
    part: str
    base_model_hash: str  # hex
    hu3: str  # hex; names the sum and all uploads in it
    survivors: tuple[str, ...]
    norm: float | None  # of what it added, None where it is not known to be that
    limit: float | None  # the largest norm that clipping and rounding allow
    clip_norm: float
    weight: int | None  # in units; where counts are disclosed it must be that of the member's count
    is_disclosed: bool
    fault: str  # which rule it broke; empty: none
    roster: Roster = field(repr=False, compare=False)


def judge_update(paper: SealedUpdate, key: SealingKey, root_public_key: bytes) -> Finding:
    """Hold one member's update against what it sent and what was agreed.

    Raises PeerProtocolError where the file proves nothing about anybody: papers that do not hold, another auditor, or
    not signed by the member.
    """
    opened = open_update(paper, key, root_public_key)
    norm = limit = weight = None
    fault = ""
    try:
        opened.require_sent()
        sums = [int(word) for word in opened.words(opened.part.weights, 0)]
        weight = sums[0]
        norm, limit = _measured(opened, sums)
        if norm > limit:
            fault = f"its update has norm {norm:.6g}, {limit:.6g} is the most"
    except OtherUpdateError:
        fault = "it shows other words than it sent"
    except ResultError as error:
        fault = str(error)
    spec, survivors = opened.spec, opened.survivors
    return Finding(
        member=paper.member,
        run=spec.run,
        method=spec.method,
        round=spec.round,
        attempt=spec.attempt,
        session=paper.confirmed.session,
        part=opened.part.name,
        base_model_hash=spec.base_model_hash.hex(),
        hu3=survivors.hu3.hex(),
        survivors=survivors.ids,
        norm=norm,
        limit=limit,
        clip_norm=spec.clip_norm,
        weight=weight,
        is_disclosed=spec.weighting == "disclosed",
        fault=fault,
        roster=survivors.sharing.cohort.roster,
    )


def may_be_released(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Who of one sum can be summed once more without those at fault; empty where that cannot be.

    It cannot where too few are left for a sum, and where the members of a sum are drawn: another roster draws others.
    """
    first = findings[0]
    guilty = {finding.member for finding in findings if finding.fault}
    others = tuple(member for member in first.survivors if member not in guilty)
    is_drawn = bool(first.roster.sharding) or Method(first.method) is Method.USPLIT
    enough = bool(others) and len(others) >= first.roster.quorum(len(others))
    return others if guilty and enough and not is_drawn else ()


def _measured(opened: OpenedUpdate, sums: Sequence[int]) -> tuple[float, float]:
    spec, part = opened.spec, opened.part
    energy = Energy(part)
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        energy.add(opened.words(part.values, index))
    return check_single(spec, part, energy, sums, len(opened.survivors.sharing.cohort.ids))
