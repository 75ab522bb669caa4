"""A round specification for benchmarks of sums: one part, and nothing about training that would matter."""

from __future__ import annotations

from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.primitives.canonical import PROTOCOL

_HASH = bytes(32)


def sum_spec(
    method: Method,
    part: PartSpec,
    *,
    clip_norm: float,
    largest_cohort: int,
    chunk_coordinates: int,
    encoding_seed: bytes,
    roster: Roster | None = None,
) -> RoundSpec:
    """A first round of ``method`` whose one part is ``part``; ``roster`` where members check it."""
    return RoundSpec(
        protocol=PROTOCOL,
        federation="benchmark" if roster is None else roster.federation,
        run="benchmark",
        method=method.value,
        round=0,
        rounds=1,
        attempt=0,
        roster_version=1 if roster is None else roster.version,
        roster_hash=_HASH if roster is None else roster.hash,
        architecture=Architecture("tiny", 28, 1, 8, (1, 2)),
        initial_model_hash=_HASH,
        initial_seed=b"",
        base_model_hash=_HASH,
        parts=(part,),
        weighting="hidden",
        clip_norm=clip_norm,
        weight_cap=1000,
        largest_cohort=largest_cohort,
        chunk_coordinates=chunk_coordinates,
        encoding_seed=encoding_seed,
        epochs=1,
        max_steps=0,
        batch_size=1,
        learning_rate=1e-4,
        join_s=1.0,
        shares_s=1.0,
        masked_s=1.0,
        confirm_s=1.0,
        unmask_s=1.0,
        previous_result=b"",
    ).with_terms_hash()
