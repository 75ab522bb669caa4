"""What a round's specification must be, given the charter of its run and the results so far.

Institutions hold every specification against it before they train; the aggregator makes its specifications from it. It
reads nothing but what is signed, so whoever has these computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.clipping import next_clip_norm, norms_allowed
from fedddpm_protocol.agreement.methods import stretch
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.rings import largest_references, next_ring
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import most_redraws
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RoundSpec, ScaleReference
from fedddpm_protocol.errors import CharterError, ResultError
from fedddpm_protocol.primitives.canonical import added_later


@dataclass(frozen=True)
class PartReference:
    """The reference that a part's newest opened sum left."""

    part: str
    norm: float
    survivors: int
    weight: int


@dataclass(frozen=True)
class PartNorm:
    """The norm that follows from an opened part (see ``clipping.norms_allowed``)."""

    part: str
    norm: float


@dataclass(frozen=True)
class Lineage:
    """What the specification of the next round follows from, beside the charter; it grows with every result."""

    results: int = 0
    first_norms: tuple[PartNorm, ...] = ()  # of the results that first opened each part
    newest_norms: tuple[PartNorm, ...] = ()
    references: tuple[PartReference, ...] = ()
    spoiled: int = added_later(0)  # results that lack a sum because it was spoiled
    averaged_hash: bytes = added_later(b"")  # with outer momentum: of the newest averaged model

    def after(self, result: RoundResult) -> Self:
        """With the next result of the run."""
        norms = norms_allowed(result)
        opened = largest_references({part.part: part.reference for part in result.parts if part.opened})
        references = {**{one.part: one for one in self.references}, **_stored(opened)}
        return replace(
            self,
            results=self.results + 1,
            first_norms=_sorted({**norms, **_by_part(self.first_norms)}),
            newest_norms=_sorted({**_by_part(self.newest_norms), **norms}),
            references=tuple(references[part] for part in sorted(references)),
            spoiled=self.spoiled + any(part.spoiled for part in result.parts),
            averaged_hash=result.averaged_hash,
        )

    def clip_norm(self, charter: Charter) -> float:
        """Of every attempt at the next round."""
        if not charter.travel.is_adaptive:
            return charter.travel.clip_norm
        first, newest = _by_part(self.first_norms), _by_part(self.newest_norms)
        turn = charter.turn_in(self.results)
        if turn:  # of this part alone; at its first turn nothing is known of it
            longer = stretch(charter.turns, turn, self.results)
            first = {turn: first[turn]} if turn in first else {}
            newest = {turn: newest[turn] * longer} if turn in newest else {}
        return next_clip_norm(charter.travel.clip_norm, first, newest)

    def draw(self, roster: Roster) -> int:
        """Which draw of ``roster`` says who is in which shard of the next round; after the last one the first again."""
        return self.spoiled % (1 + most_redraws(roster))

    def reference(self, part: str, turns: tuple[str, ...] = ()) -> ScaleReference:
        """What the scale of a part follows from in the next round; NOTHING_KNOWN before it was opened.

        ``turns`` are the charter's: a part that waited longer for its turn than the last time moves further.
        """
        for one in self.references:
            if one.part == part and one.norm:
                return ScaleReference(one.norm * stretch(turns, part, self.results), one.survivors, one.weight)
        return NOTHING_KNOWN


NO_RESULTS = Lineage()


def _stored(references: Mapping[str, ScaleReference]) -> dict[str, PartReference]:
    return {part: PartReference(part, one.norm, one.survivors, one.weight) for part, one in references.items()}


def _by_part(norms: tuple[PartNorm, ...]) -> dict[str, float]:
    return {one.part: one.norm for one in norms}


def _sorted(norms: Mapping[str, float]) -> tuple[PartNorm, ...]:
    return tuple(PartNorm(part, norms[part]) for part in sorted(norms))


def require_chartered(spec: RoundSpec, charter: Charter) -> None:
    """CharterError unless ``spec`` asks for what the charter says, as far as that does not depend on results."""
    training, travel = charter.training, charter.travel
    said = {
        "federation": charter.federation,
        "run": charter.run,
        "charter_hash": charter.hash,
        "method": charter.method,
        "rounds": charter.rounds,
        "architecture": charter.architecture,
        "initial_model_hash": charter.first_model.model_hash,
        "initial_seed": charter.first_model.seed,
        "weighting": travel.weighting,
        "weight_cap": travel.weight_cap,
        "chunk_coordinates": travel.chunk_coordinates,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
        "batch_size": training.batch_size,
        "recipe": training.recipe,
        "learning_rate": training.learning_rate_in(spec.round, charter.rounds),
        "turn": charter.turn_in(spec.round),
        "outer": charter.outer,
        "encoding_seed": charter.encoding_seed(spec.round, spec.previous_result),
    }
    for name, wanted in said.items():
        _require_same(charter, name, getattr(spec, name), wanted)
    if spec.clip_norm > travel.clip_norm:
        raise CharterError(
            f"the round lets updates have a norm of {spec.clip_norm:.6g}, the charter of run {charter.run}"
            f" {travel.clip_norm:.6g} at most",
            "aggregator",
        )


def require_follows(spec: RoundSpec, charter: Charter, lineage: Lineage, roster: Roster) -> None:
    """CharterError unless ``spec`` is what follows from charter, results and roster; see :func:`require_chartered`."""
    require_chartered(spec, charter)
    _require_same(charter, "round", spec.round, lineage.results)
    _require_same(charter, "clip_norm", spec.clip_norm, lineage.clip_norm(charter))
    _require_same(charter, "draw", spec.draw, lineage.draw(roster))
    for part in spec.parts:
        reference = lineage.reference(part.name, charter.turns)
        rings = [
            next_ring(charter.travel.bits, charter.travel.first_bits, reference, widest=widest)
            for widest in (False, True)
        ]
        if all((part.values.bits, part.reference) != (ring.bits, ring.reference) for ring in rings):
            raise CharterError(
                f"part {part.name!r} travels in {part.values.bits} bits for a mean of norm {part.reference.norm:.6g};"
                f" from the charter of run {charter.run} and its results follow {rings[0].bits} bits for one of"
                f" {reference.norm:.6g}, or {rings[1].bits} bits",
                "aggregator",
            )


def require_averaged(result: RoundResult, charter: Charter) -> None:
    """ResultError unless ``result`` names an averaged model exactly with momentum; in the last round it is the base."""
    wanted = bool(charter.outer.momentum)
    if bool(result.averaged_hash) != wanted:
        raise ResultError(
            f"the result of round {result.round} names {'no' if wanted else 'an'} averaged model, with an outer"
            f" momentum of {charter.outer.momentum:g} in the charter of run {charter.run}",
            "aggregator",
        )
    if wanted and result.round + 1 == charter.rounds and result.averaged_hash != result.model_hash:
        raise ResultError(f"run {charter.run} does not end with its averaged model", "aggregator")


def _require_same(charter: Charter, name: str, found: object, wanted: object) -> None:
    if found != wanted:
        shown = [value.hex()[:16] if isinstance(value, bytes) else value for value in (found, wanted)]
        raise CharterError(
            f"the round has {shown[0]} as {name.replace('_', ' ')}, from the charter of run {charter.run} follows"
            f" {shown[1]}",
            "aggregator",
        )
