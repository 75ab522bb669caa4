"""Round specifications and results for tests, valid unless a field is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.protocol.support.sessions import make_roster

from fedddpm_protocol.agreement.methods import TURNS, Method
from fedddpm_protocol.agreement.model_layout import Architecture, TensorSpec
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import LARGEST_BLOCK, WIDEST_ROTATED, RoundSpec, part_spec
from fedddpm_protocol.primitives.canonical import PROTOCOL

ARCHITECTURE = Architecture("tiny", 28, 1, 8, (1, 2))
MANIFESTS = {
    "encoder": (TensorSpec("encoder.w", (3, 4)), TensorSpec("encoder.b", (5,))),
    "bottleneck": (TensorSpec("bottleneck.w", (7,)),),
    "decoder": (TensorSpec("decoder.w", (2, 3, 2)),),
}


def manifest_of(method: Method, session: str) -> tuple[TensorSpec, ...]:
    return tuple(tensor for part in method.sessions[session] for tensor in MANIFESTS[part])


def make_spec(
    roster: Roster | None = None,
    scheme: Method = Method.FULL,
    bits: int = 32,
    coordinates: int | None = None,
    **changes: Any,
) -> RoundSpec:
    """A valid spec; ``coordinates`` swaps the FULL manifest for one tensor of that size."""
    roster = roster or make_roster(5, 1)
    chunk = changes.get("chunk_coordinates", 8 if bits > WIDEST_ROTATED else LARGEST_BLOCK)
    parts = tuple(part_spec(name, manifest_of(scheme, name), bits, chunk_coordinates=chunk) for name in scheme.sessions)
    if coordinates is not None:
        parts = (part_spec("full", (TensorSpec("encoder.w", (coordinates,)),), bits, chunk_coordinates=chunk),)
    fields: dict[str, Any] = {
        "protocol": PROTOCOL,
        "federation": roster.federation,
        "run": "run-1",
        "method": scheme.value,
        "round": 1,
        "rounds": 3,
        "attempt": 0,
        "roster_version": roster.version,
        "roster_hash": roster.hash,
        "architecture": ARCHITECTURE,
        "initial_model_hash": b"\x01" * 32,
        "initial_seed": b"\x09" * 32,
        "base_model_hash": b"\x02" * 32,
        "parts": parts,
        "weighting": "equal" if scheme is Method.USPLIT else "hidden",
        "clip_norm": 2.0,
        "weight_cap": 1000,
        "largest_cohort": min(5, len(roster.members)),
        "chunk_coordinates": chunk,
        "encoding_seed": b"\x08" * 32,
        "epochs": 1,
        "max_steps": 10,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "join_s": 10.0,
        "shares_s": 10.0,
        "masked_s": 10.0,
        "confirm_s": 10.0,
        "unmask_s": 10.0,
        "previous_result": b"\x03" * 32,
        "turn": TURNS[0] if scheme is Method.TURN else "",
    }
    return RoundSpec(**{**fields, **changes}).with_terms_hash()


def changed(spec: RoundSpec, **changes: Any) -> RoundSpec:
    """The same spec with other fields, under the hash of the terms that it then has."""
    return spec.with_terms_hash(**changes)


def make_part_result(**changes: Any) -> PartResult:
    ids = ("site-0", "site-1", "site-2")
    part = PartResult("full", True, b"\x04" * 32, b"\x05" * 32, ids, ids, (3 * 65535, 100, 90), b"\x06" * 32, 1.5)
    return replace(part, **changes)


def make_result(spec: RoundSpec, **changes: Any) -> RoundResult:
    fields: dict[str, Any] = {
        "protocol": PROTOCOL,
        "federation": spec.federation,
        "run": spec.run,
        "round": spec.round,
        "attempt": spec.attempt,
        "spec_hash": spec.hash,
        "base_model_hash": spec.base_model_hash,
        "parts": (make_part_result(),),
        "model_hash": b"\x07" * 32,
        "previous_result": spec.previous_result,
    }
    return RoundResult(**{**fields, **changes})
