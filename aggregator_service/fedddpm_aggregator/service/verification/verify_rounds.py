"""Whether published rounds follow from what was opened: results, opened sums, and every model derived anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from safetensors import SafetensorError

from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_aggregator.db.tables import ResultRow
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.vectors.model_files import ModelFileError, read_model
from fedddpm_aggregator.vectors.opened_values import OpenedValues
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.model_layout import Manifest, Vector, model_hash
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart
from fedddpm_protocol.encoding.rederivation import follow_result
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.wire.messages import SignedDocument


@dataclass
class Chain:
    """Where a run's results stand: what the next one has to build on."""

    base: str  # hash (hex) of the newest model
    previous: bytes = b""  # hash of the newest result
    round: int = 0  # of the next result
    vector: Vector | None = None  # the values of ``base``, where they are at hand
    averaged: Vector | None = None  # with outer momentum: those of the newest averaged model


def verify_model(blobs: Blobs, model: str, manifest: Manifest, removed: bool, counts: Counter[str]) -> Vector | None:
    """The values of a stored model, whose hash is recomputed; None if retention removed it."""
    try:
        vector = read_model(blobs, model, manifest)
    except FileNotFoundError:
        if removed:
            counts["models removed by retention"] += 1
            return None
        raise HistoryError(f"model {model} is missing") from None
    except (SafetensorError, ModelFileError, ValueError, OSError) as error:
        raise HistoryError(f"model {model} cannot be read: {error}") from error
    if model_hash(manifest, vector).hex() != model:
        raise HistoryError(f"model {model} holds other values than its hash says")
    counts["models"] += 1
    return vector


def verify_result(
    row: ResultRow, roster: Roster, spec: RoundSpec, parts: tuple[PartResult, ...], chain: Chain
) -> RoundResult:
    """A published result as the aggregator signed it; ``parts`` are what its sessions gave. HistoryError."""
    signed = SignedDocument(body=row.body, signature=row.signature)
    try:
        result = open_result(signed, roster)
    except (ProtocolError, ValueError) as error:
        raise HistoryError(f"the result does not hold: {error}") from error
    expected = RoundResult.of(spec, parts, result.model_hash, result.averaged_hash)
    momentum = bool(spec.outer.momentum)
    for what, holds in (
        ("is stored with another hash", result.hash.hex() == row.hash),
        ("is stored with another model", result.model_hash.hex() == row.model),
        ("is stored under another round", result.round == row.round),
        ("does not follow the result before it", result.previous_result == chain.previous),
        ("is over another base model than the round before gave", result.base_model_hash.hex() == chain.base),
        ("has an averaged model without momentum, or none with it", bool(result.averaged_hash) == momentum),
        ("is not what the attempt's specification and sessions give", result == expected),
    ):
        if not holds:
            raise HistoryError(f"the result {what}")
    return result


def verify_derivation(
    blobs: Blobs, spec: RoundSpec, result: RoundResult, chain: Chain, removed: bool, counts: Counter[str]
) -> Vector | None:
    """Derive the round's models anew from those before and opened sums; None where retention removed one of them."""
    opened, missing = {}, False
    for part in (part for part in result.parts if part.opened):
        values = OpenedValues(blobs, spec, part.part)
        try:
            digest = values.measure()[0]
        except FileNotFoundError:
            if not removed:
                raise HistoryError(f"the opened sum of {part.part!r} is missing") from None
            counts["opened sums removed by retention"] += 1
            missing = True
            continue
        except ProtocolError as error:
            raise HistoryError(f"the opened sum of {part.part!r} cannot be read: {error}") from error
        if digest != part.opened_digest:
            raise HistoryError(f"the opened sum of {part.part!r} is not the one that was signed")
        counts["opened sums"] += 1
        opened[part.part] = OpenedPart(values.chunk, part.sums, part.cohort, part.survivors)
    before = chain.averaged if spec.outer.momentum and spec.round else chain.vector
    if chain.vector is None or before is None or missing:
        return None
    try:
        following = follow_result(spec, result, chain.vector, opened, before)
    except ProtocolError as error:
        raise HistoryError(f"the result does not follow from its opened sums: {error}") from error
    counts["models derived anew"] += 1
    return following.base
