"""One round in memory, from signed specification to signed result, with the protocol's own machines.

These are the classes that run in hospitals and behind the aggregator's routes; only the network between them is left
out. ``masked=False`` adds the same ring words without masks, for cohorts that secure aggregation refuses: it is the
same encoding, the same sum and the same decoding, so the two give the same model to the last bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedddpm.experiment.aggregation.memory_session import Federation, Session, opened_sums
from fedddpm.updates.contribution import Contribution, scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.documents import open_result, open_spec, sign_result, sign_spec
from fedddpm_protocol.agreement.methods import Method, part_of
from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.policy import require_more_than_two
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.rings import largest_references
from fedddpm_protocol.agreement.shards import sessions_of
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RoundSpec, ScaleReference
from fedddpm_protocol.encoding.decoder import NextModel, OpenedPart, check_opened, derive_model, measure
from fedddpm_protocol.encoding.rederivation import averaged_hash
from fedddpm_protocol.errors import WrappedSumError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.cohort import session_plan


@dataclass(frozen=True, eq=False)
class Opened:
    """What a round opened."""

    model: Vector  # the next shared parts [coordinates of the base manifest]
    averaged: Vector | None  # with outer momentum: the averaged model, which these are beyond
    sums: dict[str, tuple[int, ...]]  # session -> opened sums of weights and losses, as SUM_FIELDS
    survivors: dict[str, tuple[str, ...]]  # session -> institutions in the sum
    references: dict[str, ScaleReference]  # part -> what the next round's scale follows from
    wrapped: tuple[str, ...]  # sessions whose sum was too large for its ring and is not used
    result_hash: bytes  # of the signed result; of the model where nothing is signed
    clipped: int  # institutions whose update was scaled down to the clip norm
    seconds: float


def aggregate(
    federation: Federation,
    spec: RoundSpec,
    updates: Mapping[str, LocalUpdate],
    base: Vector,
    rounding: str,
    averaged: Vector | None = None,
    *,
    masked: bool = True,
) -> Opened:
    """Sum everybody's update over ``base``, part by part and shard by shard, and derive the next model.

    ``averaged``: with outer momentum, the averaged model of the round before.
    ``rounding`` names the stream of stochastic rounding, so that a round done again gives the same bits.

    Raises:
        WrappedSumError: every sum was too large for its ring; the round needs another attempt with wider ones.
        PolicyError: the roster lets two parties sum.
        ProtocolError: the protocol's own rules refuse something, for instance a cohort that is too small.
    """
    began = time.monotonic()
    if masked:  # what is summed is what an institution would have read, where it would have taken part
        require_more_than_two(federation.roster)
        spec = open_spec(sign_spec(spec, federation.server), federation.roster)
    pieces = {member: scaled_pieces(spec, update.sent) for member, update in updates.items()}
    opened: dict[str, OpenedPart] = {}
    norms, results, wrapped = {}, [], []
    for name in sessions_of(Method(spec.method), federation.roster, spec.turn):
        reporters, part = session_plan(spec, federation.roster, name).reporters, part_of(name)
        contributions = {
            member: Contribution(spec, part, updates[member], pieces[member], _rounding(rounding, member, part))
            for member in reporters
        }
        session = Session(federation, spec, name, contributions)
        words, result = session.run() if masked else (session.run_plain(), None)
        one = _opened_part(spec, name, words, reporters)
        try:
            norms[name] = _norm(spec, name, one)
        except WrappedSumError:
            # As behind the aggregator's routes: the other parts are used, and this one's next ring is the widest.
            wrapped.append(name)
            results.append(PartResult.not_opened(name))
            continue
        opened[name] = one
        if result is not None:
            results.append(replace(result, norm=norms[name]))
    if not opened:
        raise WrappedSumError("the sum of every part was too large for its ring")
    following = derive_model(spec, base, opened, averaged)
    return Opened(
        following.base,
        following.averaged,
        {name: tuple(part.sums) for name, part in opened.items()},
        {name: tuple(part.survivors) for name, part in opened.items()},
        _references(norms, opened, wrapped),
        tuple(wrapped),
        _result_hash(federation, spec, tuple(results), following, masked=masked),
        sum(one.factor < 1 for one in pieces.values()),
        time.monotonic() - began,
    )


def _opened_part(spec: RoundSpec, name: str, words: Mapping[str, ring.Words], reporters: tuple[str, ...]) -> OpenedPart:
    values = spec.part(name).values

    def chunk(index: int) -> ring.Words:
        start, count = chunk_span(values, spec.chunk_coordinates, index)
        return words[values.name][start : start + count]

    return OpenedPart(chunk, opened_sums(spec, name, words), reporters, reporters)


def _norm(spec: RoundSpec, name: str, opened: OpenedPart) -> float:
    part = spec.part(name)
    count = len(opened.survivors)
    return check_opened(spec, part, measure(spec, part, opened), opened.sums, len(opened.cohort), count)


def _references(
    norms: Mapping[str, float], opened: Mapping[str, OpenedPart], wrapped: Sequence[str]
) -> dict[str, ScaleReference]:
    """By part, that of the largest norm among its shards; nothing of a part of which a sum did not fit."""
    spoilt = {part_of(name) for name in wrapped}
    return largest_references(
        {name: _reference(norms[name], one) for name, one in opened.items() if part_of(name) not in spoilt}
    )


def _reference(norm: float, opened: OpenedPart) -> ScaleReference:
    """As a signed result tells it; one institution without masks is no sum that such a result could be of."""
    count = len(opened.survivors)
    return ScaleReference.after(norm, count, opened.sums[0]) if count > 1 else NOTHING_KNOWN


def _result_hash(
    federation: Federation, spec: RoundSpec, parts: tuple[PartResult, ...], following: NextModel, *, masked: bool
) -> bytes:
    """Sign the result as the aggregator and read it as an institution; its hash, or that of the model without masks."""
    hashed = model_hash(spec.base_manifest, following.base)
    if not masked:
        return hashed
    result = RoundResult.of(spec, parts, hashed, averaged_hash(spec, following))
    return open_result(sign_result(result, federation.server), federation.roster).hash


def _rounding(stream: str, member: str, part: str) -> bytes:
    return hashlib.sha256(f"{stream}/{member}/{part}".encode()).digest()
