"""What the rounds of a run follow from: its charter, the lineage of its results, and how long phases last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm_aggregator.db.tables import RunRow
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.lineage import NO_RESULTS, Lineage
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Manifest
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.rings import ValuesRing
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import largest_cohort
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec, part_spec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import PROTOCOL
from fedddpm_protocol.wire.messages import SignedDocument

Durations = tuple[float, float, float, float, float]  # of join, shares, masked, confirm and unmask, in seconds


@dataclass(frozen=True)
class Place:
    """Where in its run an attempt stands."""

    attempt: int
    base_model: bytes
    previous_result: bytes  # empty in round 0


def charter_document(run: RunRow) -> SignedDocument | None:
    """The charter of a run as the root signed it; None for a run from before charters."""
    if run.charter is None or run.charter_signature is None:
        return None
    return SignedDocument(body=run.charter, signature=run.charter_signature)


def charter_of(run: RunRow) -> Charter | None:
    """The charter of a run, verified when it was installed; None for a run from before charters."""
    return None if run.charter is None else canonical.decode(Charter, run.charter)


def lineage_of(run: RunRow) -> Lineage:
    """What the next specification of a run follows from, beside its charter."""
    return NO_RESULTS if run.lineage is None else canonical.decode(Lineage, run.lineage)


def follow_result(run: RunRow, result: RoundResult) -> None:
    """The next result of the run is published; in the transaction that does it."""
    run.lineage = canonical.encode(lineage_of(run).after(result))


def averaged_of(run: RunRow, spec: RoundSpec) -> str | None:
    """With outer momentum, the averaged model (hash in hex) that a round of the run starts from; else None.

    Before the first result it is the base model.
    """
    if not spec.outer.momentum:
        return None
    return (lineage_of(run).averaged_hash or spec.base_model_hash).hex()


def durations_of(run: RunRow) -> Durations:
    """How long the phases of a run's rounds last."""
    return (run.join_s, run.shares_s, run.masked_s, run.confirm_s, run.unmask_s)


def parts_of(
    method: Method, manifests: Mapping[str, Manifest], rings: Mapping[str, ValuesRing], chunk_coordinates: int
) -> tuple[PartSpec, ...]:
    """The sessions of a method over the model's parts, each in its ring."""
    return tuple(
        part_spec(
            name,
            tuple(tensor for part in parts for tensor in manifests[part]),
            rings[name].bits,
            rings[name].reference,
            chunk_coordinates,
        )
        for name, parts in method.sessions.items()
    )


def round_spec(
    charter: Charter,
    lineage: Lineage,
    place: Place,
    roster: Roster,
    manifests: Mapping[str, Manifest],
    rings: Mapping[str, ValuesRing],
    durations: Durations,
) -> RoundSpec:
    """The specification of one attempt at the round after the results in ``lineage``.

    Raises:
        ValueError: what no round may have.
    """
    training, travel, round_index = charter.training, charter.travel, lineage.results
    join_s, shares_s, masked_s, confirm_s, unmask_s = durations
    return RoundSpec(
        protocol=PROTOCOL,
        federation=charter.federation,
        run=charter.run,
        method=charter.method,
        round=round_index,
        rounds=charter.rounds,
        attempt=place.attempt,
        roster_version=roster.version,
        roster_hash=roster.hash,
        architecture=charter.architecture,
        initial_model_hash=charter.first_model.model_hash,
        initial_seed=charter.first_model.seed,
        base_model_hash=place.base_model,
        parts=parts_of(Method(charter.method), manifests, rings, travel.chunk_coordinates),
        weighting=travel.weighting,
        clip_norm=lineage.clip_norm(charter),
        weight_cap=travel.weight_cap,
        largest_cohort=largest_cohort(roster),
        chunk_coordinates=travel.chunk_coordinates,
        encoding_seed=charter.encoding_seed(round_index, place.previous_result),
        epochs=training.epochs,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate_in(round_index, charter.rounds),
        join_s=join_s,
        shares_s=shares_s,
        masked_s=masked_s,
        confirm_s=confirm_s,
        unmask_s=unmask_s,
        previous_result=place.previous_result,
        charter_hash=charter.hash,
        draw=lineage.draw(roster),
        turn=charter.turn_in(round_index),
        recipe=training.recipe,
        outer=charter.outer,
    ).with_terms_hash()
