"""What came out of a round: one record, which the aggregator signs, in a chain with those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedddpm_protocol.agreement.model_layout import HASH_BYTES, require
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, SUM_FIELDS, RoundSpec, ScaleReference
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import PROTOCOL, added_later, tagged_hash


@dataclass(frozen=True)
class PartResult:
    """What one session opened; a part whose session failed keeps its base value (``opened`` is False).

    ``spoiled`` says of one that its sum came out and was refused, or wrapped: the next round may be in another draw.
    """

    part: str
    opened: bool
    session_id: bytes
    hu3: bytes
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    sums: tuple[int, ...]  # opened weights segment, as SUM_FIELDS
    opened_digest: bytes  # segment digest of the opened values
    norm: float  # L2 norm of the mean update, or more where it is concentrated: the next scale follows from it
    spoiled: bool = added_later(False)

    def __post_init__(self) -> None:
        require(
            not self.opened or (len(self.sums) == len(SUM_FIELDS) and len(self.survivors) > 1 and self.sums[0] > 0),
            "an opened part needs its sums and at least two survivors",
        )
        require(not (self.opened and self.spoiled), "an opened part is not spoiled")
        require(0 <= self.norm < math.inf, f"a norm of {self.norm} is no norm")
        for digest in (self.session_id, self.hu3, self.opened_digest):
            require(not self.opened or len(digest) == HASH_BYTES, "a digest of an opened part must have 32 bytes")
        for ids in (self.cohort, self.survivors):
            require(list(ids) == sorted(set(ids)), "cohort and survivors must be sorted and distinct")
        require(set(self.survivors) <= set(self.cohort), "survivors must come from the cohort")

    @classmethod
    def not_opened(cls, part: str, *, spoiled: bool = False) -> PartResult:
        """A part whose session gave no sum, or none that can be used."""
        return cls(part, False, b"", b"", (), (), sums=(), opened_digest=b"", norm=0.0, spoiled=spoiled)

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
    model_hash: bytes  # the next base model
    previous_result: bytes
    averaged_hash: bytes = added_later(b"")  # with outer momentum: the averaged model, which the base lies beyond

    @classmethod
    def of(
        cls, spec: RoundSpec, parts: tuple[PartResult, ...], model_hash: bytes, averaged_hash: bytes = b""
    ) -> RoundResult:
        """What came out of an attempt; the hashes are those of the next shared model, and of the averaged one."""
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
            averaged_hash=averaged_hash,
        )

    def __post_init__(self) -> None:
        require(self.protocol == PROTOCOL, f"protocol {self.protocol!r} is not {PROTOCOL}")
        require(any(part.opened for part in self.parts), "a result needs at least one opened part")
        names = [part.part for part in self.parts]
        require(len(names) == len(set(names)), "a result holds the same part twice")
        for digest in (self.spec_hash, self.base_model_hash, self.model_hash):
            require(len(digest) == HASH_BYTES, "a hash field must have 32 bytes")
        require(
            len(self.averaged_hash) in (0, HASH_BYTES), "the hash of the averaged model must have 32 bytes, or none"
        )
        require(len(self.previous_result) == (HASH_BYTES if self.round else 0), "round 0 alone has no previous result")

    @property
    def hash(self) -> bytes:
        """32 bytes that the next round's spec names."""
        return tagged_hash("result", canonical.encode(self))
