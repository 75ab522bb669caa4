"""What everybody agrees on before training (RoundSpec) and what came out of it (RoundResult).

Both are frozen records with one canonical byte form, signed by the aggregator's key that the roster names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.methods import Method, part_of
from fedddpm_protocol.agreement.terms import TrainingTerms
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import PROTOCOL, added_later, tagged_hash
from fedddpm_protocol.primitives.ring import MAX_BITS, MIN_BITS
from fedddpm_protocol.wire.messages import MAX_CHUNKS, MAX_COHORT

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PRESETS = ("paper", "fast", "tiny")
WEIGHTINGS = ("hidden", "equal", "disclosed")
MAX_COORDINATES = 2**32
RINGS = (4, 6, 8, 12, 16, 20, 24, 32)  # bits of a values segment
WIDEST_ROTATED = 24  # float64 decodes a rotated sum exactly up to here
LARGEST_BLOCK = 65536  # coordinates that are rotated together
ROWS = 4096  # of a block's slab, at most
CHUNK_COORDINATES = 2**18  # words of a chunk, unless a run chooses otherwise
_PADDING_SHARE, _PADDING_WORDS = 100, 64  # padding stays below one in a hundred words, or 64 of them
MIN_CLIP_NORM, MAX_CLIP_NORM = 1e-9, 1e9  # far outside training, well inside float64
MIN_REFERENCE_NORM = 1e-12  # of a mean update that a scale may follow from; what is smaller tells nothing
HASH_BYTES = 32
WEIGHT_UNITS = 65535  # a full weight; weights travel as integers in [1, 65535]
LOSS_UNITS = 2**20  # one unit of loss; losses travel as integers, clipped to [0, 16)
LOSS_LIMIT = 16.0
MAX_CLASSES = 1000  # of a network that is told what to draw
SUM_FIELDS = ("weight", "loss_before", "loss_after")  # coordinates of a weights segment


def require_name(kind: str, value: str) -> None:
    """ValueError unless ``value`` is a short name that is safe in URLs, file names and logs."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{kind} {value!r} must be 1 to 64 letters, digits, dots, dashes or underscores")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Architecture:
    """The network everybody trains."""

    preset: str
    image_size: int  # pixels, square
    channels: int
    base_dim: int
    multipliers: tuple[int, ...]
    classes: int = 0  # labels that an image can have; 0: the network is told none

    def __post_init__(self) -> None:
        _require(self.preset in PRESETS, f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        _require(8 <= self.image_size <= 1024, f"image size {self.image_size} is outside 8 to 1024 pixels")
        _require(1 <= self.channels <= 16, f"{self.channels} channels are outside 1 to 16")
        _require(0 <= self.classes <= MAX_CLASSES, f"{self.classes} classes are outside 0 to {MAX_CLASSES}")

    @property
    def hash(self) -> bytes:
        """32 bytes that name this architecture."""
        return tagged_hash("architecture", canonical.encode(self))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a manifest."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(0 < len(self.name) <= 256, "a tensor name must have 1 to 256 characters")
        _require(len(self.shape) <= 8 and all(side > 0 for side in self.shape), f"bad shape {self.shape}")

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


Manifest = tuple[TensorSpec, ...]


def coordinates(manifest: Manifest) -> int:
    """How many float32 values the tensors of ``manifest`` hold together."""
    return sum(tensor.size for tensor in manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical form of a manifest."""
    return canonical.lp(*(canonical.encode(tensor) for tensor in manifest))


def model_hash(manifest: Manifest, vector: npt.NDArray[np.float32]) -> bytes:
    """Hash over manifest and raw little-endian float32 values [coordinates], independent of any file format."""
    if vector.dtype != np.float32 or vector.shape != (coordinates(manifest),):
        raise ValueError(
            f"a model of {coordinates(manifest)} float32 values expected, got {vector.dtype}{vector.shape}"
        )
    raw: npt.NDArray[np.float32] = np.ascontiguousarray(vector).astype("<f4", copy=False)
    return tagged_hash("model", manifest_bytes(manifest), raw.data.cast("B"))


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
        _require(MIN_BITS <= self.bits <= MAX_BITS, f"a ring of {self.bits} bits is outside {MIN_BITS} to {MAX_BITS}")
        _require(0 < self.coordinates <= MAX_COORDINATES, f"{self.coordinates} coordinates are out of range")
        _require(self.encoding in (ROTATED, FIXED_POINT, INTEGERS), f"unknown encoding {self.encoding!r}")
        if self.encoding != ROTATED:
            _require(self.block == 0, f"a segment that is {self.encoding} has no blocks")
            return
        _require(self.bits <= WIDEST_ROTATED, f"a ring of {self.bits} bits is too wide to be rotated exactly")
        _require(8 <= self.block <= LARGEST_BLOCK and self.block.bit_count() == 1, f"no blocks of {self.block}")
        _require(self.coordinates % self.block == 0, "a rotated segment must hold whole blocks")

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
        _require(0 <= self.norm < math.inf, f"a norm of {self.norm} is no norm")
        if self.norm == 0:
            _require(self.survivors == self.weight == 0, "a reference without a norm must be empty")
        else:
            _require(self.norm >= MIN_REFERENCE_NORM, f"no scale can follow from a norm of {self.norm:.3g}")
            _require(2 <= self.survivors <= MAX_COHORT, f"no sum has {self.survivors} survivors")
            _require(self.survivors <= self.weight <= self.survivors * WEIGHT_UNITS, "weights do not fit the survivors")


NOTHING_KNOWN = ScaleReference(0.0, 0, 0)


@dataclass(frozen=True)
class PartSpec:
    """One secure sum: the tensors it carries, and its segments (values first, then the weights)."""

    name: str
    manifest: tuple[TensorSpec, ...]
    segments: tuple[SegmentSpec, ...]
    reference: ScaleReference = NOTHING_KNOWN

    def __post_init__(self) -> None:
        _require(len(self.segments) == 2, "a part has a values segment and a weights segment")
        values, weights = self.segments
        _require(values.name == self.name and weights.name == f"{self.name}.weights", "segments are misnamed")
        _require(values.encoding != INTEGERS and weights.encoding == INTEGERS, "segments are misencoded")
        _require(
            values.bits in RINGS, f"values have no ring of {values.bits} bits; known: {', '.join(map(str, RINGS))}"
        )
        words = -(-self.parameters // values.block) * values.block if values.block else self.parameters
        _require(values.coordinates == words, "the values segment and the manifest differ in size")
        _require(weights.coordinates == len(SUM_FIELDS), f"the weights segment must hold {len(SUM_FIELDS)} sums")
        _require(weights.bits >= 32, "weights need a ring of at least 32 bits")

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

    def __post_init__(self) -> None:
        _require(self.protocol == PROTOCOL, f"protocol {self.protocol!r} is not {PROTOCOL}")
        require_name("federation", self.federation)
        require_name("run", self.run)
        method = Method(self.method)
        _require(tuple(part.name for part in self.parts) == tuple(method.sessions), "parts do not fit the method")
        names = [tensor.name for tensor in self.base_manifest]
        _require(len(names) == len(set(names)), "a tensor stands in two places of the manifest")
        _require(0 <= self.round < self.rounds, f"round {self.round} is not one of {self.rounds}")
        _require(self.weighting in WEIGHTINGS, f"unknown weighting {self.weighting!r}")
        _require(
            not (method is Method.USPLIT and self.weighting == "hidden"),
            "USPLIT cannot hide sample counts: sums over parts that differ by one member would reveal one count",
        )
        _require(MIN_CLIP_NORM <= self.clip_norm <= MAX_CLIP_NORM, f"clip norm {self.clip_norm} is out of range")
        _require(0 < self.learning_rate < math.inf, f"learning rate {self.learning_rate} must be positive and finite")
        _require(
            2 <= self.largest_cohort <= MAX_COHORT,
            f"a largest cohort of {self.largest_cohort} is outside 2 to {MAX_COHORT}",
        )
        _require(self.weight_cap > 0, "the weight cap must be positive")
        _require(self.chunk_coordinates > 0 and self.chunk_coordinates % 8 == 0, "chunks must be multiples of 8")
        for part in self.parts:
            self._check_ring(part)
        _require(self.epochs > 0 and self.batch_size > 0, "epochs and batch size must be positive")
        _require(min(self.durations_s) > 0 and math.isfinite(sum(self.durations_s)), "durations must be positive")
        for digest in (self.roster_hash, self.initial_model_hash, self.base_model_hash, self.encoding_seed):
            _require(len(digest) == HASH_BYTES, "a hash or seed field must have 32 bytes")
        _require(len(self.initial_seed) in (0, HASH_BYTES), "the seed of theta_0 must have 32 bytes, or none")
        _require(len(self.previous_result) == (HASH_BYTES if self.round else 0), "round 0 alone has no previous result")
        _require(self.terms_hash in (b"", self.terms.hash), "the terms of training do not have the hash beside them")

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
        )

    def with_terms_hash(self, **changes: Any) -> Self:
        """The same specification with ``changes``, and with the hash of the terms that it then has."""
        changed = replace(self, **{**changes, "terms_hash": b""})
        return replace(changed, terms_hash=changed.terms.hash)

    def _check_ring(self, part: PartSpec) -> None:
        values, chunks = part.values, -(-part.values.coordinates // self.chunk_coordinates)
        _require(
            values.encoding == ROTATED or 2 ** (values.bits - 1) > 2 * self.largest_cohort,
            f"a ring of {values.bits} bits has no room for the sum of {self.largest_cohort} institutions",
        )
        largest_sum = self.largest_cohort * max(WEIGHT_UNITS, int(LOSS_LIMIT * LOSS_UNITS))
        _require(
            largest_sum < 2**part.weights.bits,
            f"a ring of {part.weights.bits} bits cannot hold the weights of {self.largest_cohort} institutions",
        )
        _require(
            not values.block or self.chunk_coordinates % values.block == 0,
            f"chunks of {self.chunk_coordinates} words do not hold whole blocks of {values.block}",
        )
        _require(chunks <= MAX_CHUNKS, f"{chunks} chunks of one segment are more than {MAX_CHUNKS}; make them larger")

    @property
    def durations_s(self) -> tuple[float, float, float, float, float]:
        """Durations of join, shares, masked, confirm and unmask in seconds."""
        return (self.join_s, self.shares_s, self.masked_s, self.confirm_s, self.unmask_s)

    @property
    def hash(self) -> bytes:
        """32 bytes under every JOIN, key and mask of the attempt."""
        return tagged_hash("spec", canonical.encode(self))

    @property
    def base_manifest(self) -> Manifest:
        """All tensors of the shared parts in order."""
        return tuple(tensor for part in self.parts for tensor in part.manifest)

    def part(self, name: str) -> PartSpec:
        """The part called ``name``, or that of a session (see ``methods``); KeyError if the method has none."""
        wanted = part_of(name)
        return next((part for part in self.parts if part.name == wanted), None) or _no_part(name)


def _no_part(name: str) -> PartSpec:
    raise KeyError(f"no part {name!r} in this round")


@dataclass(frozen=True)
class PartResult:
    """What one session opened; a part whose session failed keeps its base value (``opened`` is False)."""

    part: str
    opened: bool
    session_id: bytes
    hu3: bytes
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    sums: tuple[int, ...]  # opened weights segment, as SUM_FIELDS
    opened_digest: bytes  # segment digest of the opened values
    norm: float  # L2 norm of the mean update, or more where it is concentrated: the next scale follows from it

    def __post_init__(self) -> None:
        _require(
            not self.opened or (len(self.sums) == len(SUM_FIELDS) and len(self.survivors) > 1 and self.sums[0] > 0),
            "an opened part needs its sums and at least two survivors",
        )
        _require(0 <= self.norm < math.inf, f"a norm of {self.norm} is no norm")
        for digest in (self.session_id, self.hu3, self.opened_digest):
            _require(not self.opened or len(digest) == HASH_BYTES, "a digest of an opened part must have 32 bytes")
        for ids in (self.cohort, self.survivors):
            _require(list(ids) == sorted(set(ids)), "cohort and survivors must be sorted and distinct")
        _require(set(self.survivors) <= set(self.cohort), "survivors must come from the cohort")

    @classmethod
    def not_opened(cls, part: str) -> PartResult:
        """A part whose session gave no sum."""
        return cls(part, False, b"", b"", cohort=(), survivors=(), sums=(), opened_digest=b"", norm=0.0)

    @property
    def reference(self) -> ScaleReference:
        """What the next round's scale follows from; nothing where the sum was not opened or zero."""
        return ScaleReference.after(self.norm, len(self.survivors), self.sums[0]) if self.opened else NOTHING_KNOWN


@dataclass(frozen=True)
class RoundResult:
    """One finished round; results form a chain by ``previous_result``."""

    protocol: str
    federation: str
    run: str
    round: int
    attempt: int
    spec_hash: bytes
    base_model_hash: bytes
    parts: tuple[PartResult, ...]
    model_hash: bytes
    previous_result: bytes

    @classmethod
    def of(cls, spec: RoundSpec, parts: tuple[PartResult, ...], model_hash: bytes) -> RoundResult:
        """What came out of an attempt; ``model_hash`` is that of the next shared model."""
        return cls(
            protocol=spec.protocol,
            federation=spec.federation,
            run=spec.run,
            round=spec.round,
            attempt=spec.attempt,
            spec_hash=spec.hash,
            base_model_hash=spec.base_model_hash,
            parts=parts,
            model_hash=model_hash,
            previous_result=spec.previous_result,
        )

    def __post_init__(self) -> None:
        _require(self.protocol == PROTOCOL, f"protocol {self.protocol!r} is not {PROTOCOL}")
        _require(any(part.opened for part in self.parts), "a result needs at least one opened part")
        names = [part.part for part in self.parts]
        _require(len(names) == len(set(names)), "a result holds the same part twice")
        for digest in (self.spec_hash, self.base_model_hash, self.model_hash):
            _require(len(digest) == HASH_BYTES, "a hash field must have 32 bytes")
        _require(len(self.previous_result) == (HASH_BYTES if self.round else 0), "round 0 alone has no previous result")

    @property
    def hash(self) -> bytes:
        """32 bytes that the next round's spec names."""
        return tagged_hash("result", canonical.encode(self))
