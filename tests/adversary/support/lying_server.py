"""A lying aggregator: the real one, served over HTTP with its real database, that deviates by script.

Everything about it is real but what a script says: routes, signatures under requests, long polls, phases, SQL. What
it signs, it signs with its own key, and its books agree with its lies. Scripts have three places:

* ``lies.spec``: what it signs as the specification of an attempt, any field of it;
* ``lies.opened``: what it opens a sum to;
* ``proxy(member)``: what one institution alone is told, or never hears (see ``tests.e2e.proxy``).

Beside them it serves any model, and gives up an attempt and begins the next. Institutions are real clients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tests.e2e.federation import Federation

import fedddpm_aggregator.app
from fedddpm.model.partition import MODEL_PARTS, flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.reduction.threads import ThreadReducer
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.service.rounds import attempts
from fedddpm_aggregator.service.rounds.publishing import remember_model, store_model
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.spec import FIXED_POINT, WEIGHT_UNITS, RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart, add_mean
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.primitives import ring


@dataclass(frozen=True, eq=False)
class OpenSum:
    """A sum that the aggregator has opened: all that it learns of the updates in it."""

    spec: RoundSpec
    part: str
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    words: ring.Words

    @property
    def mean(self) -> Vector:
        """The mean update [parameters of the part]; all weigh the same."""
        return self.added_to(np.zeros(self.spec.part(self.part).parameters, np.float32))

    def added_to(self, base: Vector) -> Vector:
        """The model [parameters of the part] that follows from ``base``."""
        part, chunks = self.spec.part(self.part), self.spec.chunk_coordinates

        def chunk(index: int) -> ring.Words:
            start, count = chunk_span(part.values, chunks, index)
            return self.words[start : start + count]

        opened = OpenedPart(chunk, (WEIGHT_UNITS * len(self.survivors), 0, 0), self.cohort, self.survivors)
        model = base.copy()
        add_mean(self.spec, part, [opened], model)
        return model

    def words_for(self, mean: Vector) -> ring.Words:
        """The words that would be opened if the mean update were ``mean``; in a fixed-point ring of 32 bits only."""
        part = self.spec.part(self.part)
        assert part.values.encoding == FIXED_POINT
        factor = step_of(self.spec, part, len(self.cohort)) / len(self.survivors)
        return np.rint(mean.astype(np.float64) / factor).astype(np.int64).astype(ring.word_dtype(part.values.bits))


@dataclass
class Lies:
    """What is said instead of the truth; by default the truth."""

    spec: Callable[[RoundSpec], RoundSpec] = lambda spec: spec
    opened: Callable[[OpenSum], ring.Words] = lambda opened: opened.words


@dataclass
class LyingFederation(Federation):
    """A federation whose aggregator works inside this process, and lies."""

    lies: Lies = field(default_factory=Lies)
    opened: list[OpenSum] = field(default_factory=list)  # true sums

    def serve(self, wait_s: float = 30) -> None:
        """Serve until :meth:`stop`, on the port that the others know."""
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(fedddpm_aggregator.app, "ThreadReducer", lambda threads: _LyingReducer(self, threads))
        settings = Settings(data=self.data, database_url=self.database_url, tick_s=0.1)
        self.served_url = self.stack.enter_context(served_here(settings))

    @property
    def url(self) -> str:
        """Where the aggregator answers."""
        return self.served_url

    def begin(self, method: str = "FULL", rounds: int = 1, *, seeded: bool = True, **options: object) -> None:
        """As ever, and what it signs is what ``lies.spec`` makes of the truth."""
        patch, honest = self.stack.enter_context(pytest.MonkeyPatch.context()), attempts.round_spec
        patch.setattr(attempts, "round_spec", lambda *arguments: self.lies.spec(honest(*arguments)))
        super().begin(method, rounds, seeded=seeded, **options)

    def offer(self, model: UNet) -> bytes:
        """Let ``model``, whole, be downloaded from now on; its hash, to be named in a specification."""
        with self.context.transaction() as db:
            run = db.get_one(RunRow, 1)
            remember_model(db, store_model(self.context, run, flatten(model, MODEL_PARTS), MODEL_PARTS))
        return model_hash(manifest(model, MODEL_PARTS), flatten(model, MODEL_PARTS))

    def again(self, **fields: Any) -> None:
        """Give up the attempt and begin the next one on the same base model, which has other ``fields``."""
        self.lies.spec = lambda spec: spec.with_terms_hash(**{"join_s": 6.0, **fields})
        with self.context.transaction() as db:
            run = db.get_one(RunRow, 1)
            attempt = queries.newest_attempt(db, run.id, lock=True)
            assert attempt is not None
            attempts.close_attempt(self.context, db, attempt, "nobody came")
            attempts.start_attempt(self.context, db, run)
            queries.bump_version(db)


class _LyingReducer(ThreadReducer):
    """Opens what was summed, keeps it, and writes down what the script makes of it."""

    def __init__(self, fed: LyingFederation, threads: int) -> None:
        super().__init__(threads)
        self._fed = fed

    def open_segment(self, masks, segment, chunk_coordinates, chunks, write_at, look):  # type: ignore[no-untyped-def]
        indices = range(chunk_count(segment, chunk_coordinates))
        sizes = [chunk_bytes(segment, chunk_coordinates, index) for index in indices]
        packed = bytearray(sum(sizes))

        def keep(offset: int, data: bytes) -> None:
            packed[offset : offset + len(data)] = data

        super().open_segment(masks, segment, chunk_coordinates, chunks, keep, lambda _: None)
        words = ring.unpack(bytes(packed), segment.bits, segment.coordinates)
        spec, survivors = self._fed.spec(), masks.survivors
        opened = OpenSum(spec, segment.name, survivors.sharing.cohort.ids, survivors.ids, words)
        self._fed.opened.append(opened)
        said, digests = self._fed.lies.opened(opened), []
        for index in indices:
            start, count = chunk_span(segment, chunk_coordinates, index)
            look(said[start : start + count])
            data = ring.pack(said[start : start + count], segment.bits)
            write_at(index * sizes[0], data)
            digests.append(hashlib.sha256(data).digest())
        return segment_digest(segment, chunk_coordinates, digests)
