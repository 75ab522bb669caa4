"""Updates that members opened to the auditor: whether each is what was sent, and within the agreed norm. Offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.encoding.decoder import check_single
from fedddpm_protocol.encoding.scale import Energy
from fedddpm_protocol.errors import MalformedError, OtherUpdateError, ResultError
from fedddpm_protocol.primitives.keys import SealingKey
from fedddpm_protocol.session.opened_update import OpenedUpdate, open_update
from fedddpm_protocol.wire.sum_proofs import SealedUpdate


@dataclass(frozen=True)
class Finding:
    """What the auditor may tell of one member's part in a sum; nothing of the update but its norm."""

    member: str
    run: str
    round: int  # from 0
    attempt: int  # from 0
    session: str  # the part, or its shard
    part: str
    base_model_hash: str  # hex
    hu3: str  # hex; names the sum and all uploads in it
    survivors: tuple[str, ...]
    norm: float | None  # of what it added, None where it is not known to be that
    limit: float | None  # the largest norm that clipping and rounding allow
    fault: str  # which rule it broke; empty: none


def judge_update(paper: SealedUpdate, key: SealingKey, root_public_key: bytes) -> Finding:
    """Hold one member's update against what it sent and what was agreed.

    Raises PeerProtocolError where the file proves nothing about anybody: papers that do not hold, another auditor.
    """
    opened = open_update(paper, key, root_public_key)
    norm = limit = None
    fault = ""
    try:
        opened.require_sent()
        norm, limit = _measured(opened)
        if norm > limit:
            fault = f"its update has norm {norm:.4g}, {limit:.4g} is the most"
    except (OtherUpdateError, ResultError) as error:
        fault = str(error)
    spec, survivors = opened.spec, opened.survivors
    return Finding(
        member=paper.member,
        run=spec.run,
        round=spec.round,
        attempt=spec.attempt,
        session=paper.confirmed.session,
        part=opened.part.name,
        base_model_hash=spec.base_model_hash.hex(),
        hu3=survivors.hu3.hex(),
        survivors=survivors.ids,
        norm=norm,
        limit=limit,
        fault=fault,
    )


def require_one_sum(findings: Sequence[Finding]) -> None:
    """MalformedError where updates are of different sums, or one member's is there twice."""
    if len({finding.hu3 for finding in findings}) > 1:
        sums = sorted({f"part {one.session} of round {one.round + 1}, attempt {one.attempt + 1}" for one in findings})
        raise MalformedError(f"these updates are of different sums ({', '.join(sums)}): judge each sum by itself")
    members = [finding.member for finding in findings]
    if len(set(members)) != len(members):
        raise MalformedError("two of these updates are of one member")


def _measured(opened: OpenedUpdate) -> tuple[float, float]:
    spec, part = opened.spec, opened.part
    energy = Energy(part)
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        energy.add(opened.words(part.values, index))
    sums = [int(word) for word in opened.words(part.weights, 0)]
    return check_single(spec, part, energy, sums, len(opened.survivors.sharing.cohort.ids))
