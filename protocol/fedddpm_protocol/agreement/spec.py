"""What everybody agrees on before a round: a frozen record with one canonical byte form, which the aggregator signs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from fedddpm_protocol.agreement.methods import Method, part_of
from fedddpm_protocol.agreement.model_layout import (
    HASH_BYTES,
    MAX_COORDINATES,
    Architecture,
    Manifest,
    TensorSpec,
    coordinates,
    require,
    require_name,
)
from fedddpm_protocol.agreement.terms import PAPER, PLAIN_MEAN, RECIPES, OuterOptimizer, TrainingTerms
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import PROTOCOL, added_later, tagged_hash
from fedddpm_protocol.primitives.ring import MAX_BITS, MIN_BITS
from fedddpm_protocol.wire.messages import MAX_CHUNKS, MAX_COHORT

ONE_MODEL = (Method.FULL, Method.TURN)  # all parts are everybody's, from one sum each
HIDDEN, EQUAL = "hidden", "equal"
WEIGHTINGS = (HIDDEN, EQUAL, "disclosed")
RINGS = (4, 6, 8, 12, 16, 20, 24, 32)  # bits of a values segment
WIDEST_ROTATED = 24  # float64 decodes a rotated sum exactly up to here
LARGEST_BLOCK = 65536  # coordinates that are rotated together
ROWS = 4096  # of a block's slab, at most
CHUNK_COORDINATES = 2**18  # words of a chunk, unless a run chooses otherwise
_PADDING_SHARE, _PADDING_WORDS = 100, 64  # padding stays below one in a hundred words, or 64 of them
MIN_CLIP_NORM, MAX_CLIP_NORM = 1e-9, 1e9  # far outside training, well inside float64
MIN_REFERENCE_NORM = 1e-12  # of a mean update that a scale may follow from; what is smaller tells nothing
WEIGHT_UNITS = 65535  # a full weight; weights travel as integers in [1, 65535]
LOSS_UNITS = 2**20  # one unit of loss; losses travel as integers, clipped to [0, 16)
LOSS_LIMIT = 16.0
SUM_FIELDS = ("weight", "loss_before", "loss_after")  # coordinates of a weights segment


ROTATED, FIXED_POINT, INTEGERS = "rotated", "fixed-point", "integers"


@dataclass(frozen=True)
class SegmentSpec:
    """One masked vector of a session, in its own ring of ``bits`` bits."""

    name: str
    bits: int
    coordinates: int  # words on the wire, padding included
    encoding: str  # ROTATED or FIXED_POINT: the weighted update; INTEGERS: sums that are opened as they are
    block: int = 0  # coordinates that are rotated together, a power of two; 0: none are

    def __post_init__(self) -> None:
        require_name("segment", self.name)
        require(MIN_BITS <= self.bits <= MAX_BITS, f"a ring of {self.bits} bits is outside {MIN_BITS} to {MAX_BITS}")
        require(0 < self.coordinates <= MAX_COORDINATES, f"{self.coordinates} coordinates are out of range")
        require(self.encoding in (ROTATED, FIXED_POINT, INTEGERS), f"unknown encoding {self.encoding!r}")
        if self.encoding != ROTATED:
            require(self.block == 0, f"a segment that is {self.encoding} has no blocks")
            return
        require(self.bits <= WIDEST_ROTATED, f"a ring of {self.bits} bits is too wide to be rotated exactly")
        require(8 <= self.block <= LARGEST_BLOCK and self.block.bit_count() == 1, f"no blocks of {self.block}")
        require(self.coordinates % self.block == 0, "a rotated segment must hold whole blocks")

    @property
    def rows(self) -> int:
        """Rows of a rotated segment's slabs: a block fills one column of them, or several neighbouring ones."""
        return min(self.block, ROWS)


@dataclass(frozen=True)
class ScaleReference:
    """How large the last accepted sum of a part was: from it follows the scale of the next one."""

    norm: float  # L2 norm of its mean update, as in the signed result; 0.0: nothing is known
    survivors: int
    weight: int  # sum of their weights, in units

    @classmethod
    def after(cls, norm: float, survivors: int, weight: int) -> ScaleReference:
        """What follows from an accepted sum; nothing, if it was zero or next to it."""
        return cls(norm, survivors, weight) if norm >= MIN_REFERENCE_NORM else NOTHING_KNOWN

    def __post_init__(self) -> None:
        require(0 <= self.norm < math.inf, f"a norm of {self.norm} is no norm")
        if self.norm == 0:
            require(self.survivors == self.weight == 0, "a reference without a norm must be empty")
        else:
            require(self.norm >= MIN_REFERENCE_NORM, f"no scale can follow from a norm of {self.norm:.3g}")
            require(2 <= self.survivors <= MAX_COHORT, f"no sum has {self.survivors} survivors")
            require(self.survivors <= self.weight <= self.survivors * WEIGHT_UNITS, "weights do not fit the survivors")


NOTHING_KNOWN = ScaleReference(0.0, 0, 0)


@dataclass(frozen=True)
class PartSpec:
    """One secure sum: the tensors it carries, and its segments (values first, then the weights)."""

    name: str
    manifest: tuple[TensorSpec, ...]
    segments: tuple[SegmentSpec, ...]
    reference: ScaleReference = NOTHING_KNOWN

    def __post_init__(self) -> None:
        require(len(self.segments) == 2, "a part has a values segment and a weights segment")
        values, weights = self.segments
        require(values.name == self.name and weights.name == f"{self.name}.weights", "segments are misnamed")
        require(values.encoding != INTEGERS and weights.encoding == INTEGERS, "segments are misencoded")
        require(values.bits in RINGS, f"values have no ring of {values.bits} bits; known: {', '.join(map(str, RINGS))}")
        words = -(-self.parameters // values.block) * values.block if values.block else self.parameters
        require(values.coordinates == words, "the values segment and the manifest differ in size")
        require(weights.coordinates == len(SUM_FIELDS), f"the weights segment must hold {len(SUM_FIELDS)} sums")
        require(weights.bits >= 32, "weights need a ring of at least 32 bits")

    @property
    def parameters(self) -> int:
        """Values of the model that the part carries, without padding."""
        return coordinates(self.manifest)

    @property
    def values(self) -> SegmentSpec:
        """The segment with the encoded update."""
        return self.segments[0]

    @property
    def weights(self) -> SegmentSpec:
        """The segment with the sums of :data:`SUM_FIELDS`."""
        return self.segments[1]


def part_spec(
    name: str,
    manifest: Manifest,
    bits: int = 32,
    reference: ScaleReference = NOTHING_KNOWN,
    chunk_coordinates: int = CHUNK_COORDINATES,
) -> PartSpec:
    """The session of ``manifest``: values in a ring of ``bits`` bits, rotated up to 24 of them, and weights in 32.

    ``reference`` is that of the part's last accepted sum, where there is one; chunks of ``chunk_coordinates`` hold
    whole blocks.
    """
    parameters = coordinates(manifest)
    if bits > WIDEST_ROTATED:
        values = SegmentSpec(name, bits, parameters, FIXED_POINT)
    else:
        block = rotation_block(parameters, chunk_coordinates)
        values = SegmentSpec(name, bits, -(-parameters // block) * block, ROTATED, block)
    return PartSpec(name, manifest, (values, SegmentSpec(f"{name}.weights", 32, len(SUM_FIELDS), INTEGERS)), reference)


def rotation_block(parameters: int, chunk_coordinates: int = CHUNK_COORDINATES) -> int:
    """The largest block, a power of two, that fits chunks with little padding: 1 % of the words or 64."""
    block = min(LARGEST_BLOCK, chunk_coordinates & -chunk_coordinates)
    while block > 8 and -parameters % block > max(parameters // _PADDING_SHARE, _PADDING_WORDS):
        block //= 2
    return block


@dataclass(frozen=True)
class RoundSpec:
    """One attempt at one round, agreed before training; every field is covered by the aggregator's signature."""

    protocol: str
    federation: str
    run: str
    method: str
    round: int  # from 0
    rounds: int  # in the run
    attempt: int  # from 0
    roster_version: int
    roster_hash: bytes
    architecture: Architecture
    initial_model_hash: bytes  # theta_0: the whole network, given at first contact
    initial_seed: bytes  # 32 public bytes that theta_0 follows from; empty: it is downloaded
    base_model_hash: bytes  # the shared parts that this round's updates are measured against
    parts: tuple[PartSpec, ...]
    weighting: str  # "hidden" sample counts, "equal" weights, or "disclosed" counts
    clip_norm: float  # largest L2 norm of one institution's update
    weight_cap: int  # samples that count as a full weight
    largest_cohort: int
    chunk_coordinates: int
    encoding_seed: bytes  # 32 public bytes behind rotation and dither
    epochs: int
    max_steps: int  # 0: no limit
    batch_size: int
    learning_rate: float
    join_s: float  # phase durations, seconds of the aggregator's uptime
    shares_s: float
    masked_s: float
    confirm_s: float
    unmask_s: float
    previous_result: bytes  # hash of the result this round builds on; empty in round 0
    terms_hash: bytes = added_later(b"")  # that of ``terms``; empty in specifications from before there was one
    charter_hash: bytes = added_later(b"")  # of the run's charter, which the root signed; empty in studies
    draw: int = added_later(0)  # which of the roster's draws says who is in which shard
    recipe: str = added_later(PAPER)  # how institutions train
    turn: str = added_later("")  # with TURN: the part that is summed in this round
    outer: OuterOptimizer = added_later(PLAIN_MEAN)  # what becomes of the mean update

    def __post_init__(self) -> None:
        require(self.protocol == PROTOCOL, f"protocol {self.protocol!r} is not {PROTOCOL}")
        require_name("federation", self.federation)
        require_name("run", self.run)
        method = Method(self.method)
        require(tuple(part.name for part in self.parts) == tuple(method.sessions), "parts do not fit the method")
        require(
            self.turn in method.sessions if method is Method.TURN else not self.turn,
            f"{self.turn!r} is no part whose turn it can be with {method}",
        )
        require_outer(self.outer, method)
        names = [tensor.name for tensor in self.base_manifest]
        require(len(names) == len(set(names)), "a tensor stands in two places of the manifest")
        require(0 <= self.round < self.rounds, f"round {self.round} is not one of {self.rounds}")
        require(self.weighting in WEIGHTINGS, f"unknown weighting {self.weighting!r}")
        require(
            not (method is Method.USPLIT and self.weighting == HIDDEN),
            "USPLIT cannot hide sample counts: sums over parts that differ by one member would reveal one count",
        )
        require(MIN_CLIP_NORM <= self.clip_norm <= MAX_CLIP_NORM, f"clip norm {self.clip_norm} is out of range")
        require(self.recipe in RECIPES, f"unknown recipe {self.recipe!r}; known: {', '.join(RECIPES)}")
        require(0 < self.learning_rate < math.inf, f"learning rate {self.learning_rate} must be positive and finite")
        require(
            2 <= self.largest_cohort <= MAX_COHORT,
            f"a largest cohort of {self.largest_cohort} is outside 2 to {MAX_COHORT}",
        )
        require(self.weight_cap > 0, "the weight cap must be positive")
        require(self.chunk_coordinates > 0 and self.chunk_coordinates % 8 == 0, "chunks must be multiples of 8")
        for part in self.parts:
            self._check_ring(part)
        require(self.epochs > 0 and self.batch_size > 0, "epochs and batch size must be positive")
        require(min(self.durations_s) > 0 and math.isfinite(sum(self.durations_s)), "durations must be positive")
        for digest in (self.roster_hash, self.initial_model_hash, self.base_model_hash, self.encoding_seed):
            require(len(digest) == HASH_BYTES, "a hash or seed field must have 32 bytes")
        require(len(self.initial_seed) in (0, HASH_BYTES), "the seed of theta_0 must have 32 bytes, or none")
        require(len(self.previous_result) == (HASH_BYTES if self.round else 0), "round 0 alone has no previous result")
        require(len(self.charter_hash) in (0, HASH_BYTES), "the hash of the charter must have 32 bytes, or none")
        require(self.terms_hash in (b"", self.terms.hash), "the terms of training do not have the hash beside them")

    @property
    def terms(self) -> TrainingTerms:
        """All that decides an update on this base model."""
        return TrainingTerms(
            method=self.method,
            architecture_hash=self.architecture.hash,
            initial_model_hash=self.initial_model_hash,
            weighting=self.weighting,
            weight_cap=self.weight_cap,
            clip_norm=self.clip_norm,
            epochs=self.epochs,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            charter_hash=self.charter_hash,
            recipe=self.recipe,
        )

    def with_terms_hash(self, **changes: Any) -> Self:
        """The same specification with ``changes``, and with the hash of the terms that it then has."""
        changed = replace(self, **{**changes, "terms_hash": b""})
        return replace(changed, terms_hash=changed.terms.hash)

    def _check_ring(self, part: PartSpec) -> None:
        values, chunks = part.values, -(-part.values.coordinates // self.chunk_coordinates)
        require(
            values.encoding == ROTATED or 2 ** (values.bits - 1) > 2 * self.largest_cohort,
            f"a ring of {values.bits} bits has no room for the sum of {self.largest_cohort} institutions",
        )
        largest_sum = self.largest_cohort * max(WEIGHT_UNITS, int(LOSS_LIMIT * LOSS_UNITS))
        require(
            largest_sum < 2**part.weights.bits,
            f"a ring of {part.weights.bits} bits cannot hold the weights of {self.largest_cohort} institutions",
        )
        require(
            not values.block or self.chunk_coordinates % values.block == 0,
            f"chunks of {self.chunk_coordinates} words do not hold whole blocks of {values.block}",
        )
        require(chunks <= MAX_CHUNKS, f"{chunks} chunks of one segment are more than {MAX_CHUNKS}; make them larger")

    @property
    def durations_s(self) -> tuple[float, float, float, float, float]:
        """Durations of join, shares, masked, confirm and unmask in seconds."""
        return (self.join_s, self.shares_s, self.masked_s, self.confirm_s, self.unmask_s)

    @cached_property
    def hash(self) -> bytes:
        """32 bytes under every JOIN, key and mask of the attempt."""
        return tagged_hash("spec", canonical.encode(self))

    @property
    def is_last(self) -> bool:
        """Whether the run ends with this round."""
        return self.round + 1 == self.rounds

    @property
    def summed(self) -> tuple[str, ...]:
        """The parts that are summed in this round; the others keep their base values in its result."""
        return Method(self.method).summed_in(self.turn)

    @property
    def base_manifest(self) -> Manifest:
        """All tensors of the shared parts in order."""
        return tuple(tensor for part in self.parts for tensor in part.manifest)

    @property
    def places(self) -> Iterator[tuple[PartSpec, slice]]:
        """Each part with its place in a vector [coordinates of the base manifest]."""
        start = 0
        for part in self.parts:
            yield part, slice(start, start + part.parameters)
            start += part.parameters

    def part(self, name: str) -> PartSpec:
        """The part called ``name``, or that of a session (see ``methods``); KeyError if the method has none."""
        wanted = part_of(name)
        return next((part for part in self.parts if part.name == wanted), None) or _no_part(name)


def require_outer(outer: OuterOptimizer, method: Method) -> None:
    """ValueError for an outer optimizer with a method that does not end with one model."""
    require(
        outer == PLAIN_MEAN or method in ONE_MODEL,
        f"an outer optimizer moves one model: it goes with {' or '.join(ONE_MODEL)}, not with {method}",
    )


def _no_part(name: str) -> PartSpec:
    raise KeyError(f"no part {name!r} in this round")
