"""One measurement of this package's secure sum: an institution's upload, or the aggregator's opening of one.

The classes are those that run in hospitals and behind the aggregator's routes; between them is no network and no
database. Memory beyond the model vectors themselves (update, base, next model) is what counts as extra.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

import numpy as np
import xxhash
from benchmarks.aggregation.cost import Job, PeakMemory, Stopwatch, answer
from benchmarks.aggregation.session import PART, Machines, Session, Vector, mask_plan, words_of

from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.encoding.decoder import OpenedPart, check_opened, next_model
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder, fit_to_norm, sums_words, weight_units
from fedddpm_protocol.encoding.scale import Energy
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.coordinator import MaskPlan
from fedddpm_protocol.session.participant import Participant

SAMPLES = 1000  # of every institution
LOSS = 0.5
FEW = 2**12  # parameters of a session that goes before, so that nothing is loaded while time counts


def upload(session: Session, machines: Machines, watch: Stopwatch) -> int:
    """Everything from the others' shares to the digests of the upload; its packed bytes."""
    member, sent = session.members[0], 0
    machine = machines.participants[member]
    with watch.step("keys"):
        machine.receive_shares(machines.items[member], machines.deals)
    with watch.step("encode"):
        encoder = _encoder(session, machine)
    for index in range(chunk_count(session.part.values, session.plan.chunk_coordinates)):
        with watch.step("encode"):
            words = encoder.chunk(index)
        sent += len(_masked(machine, session.part.values, index, words, watch))
    for index in range(chunk_count(session.part.weights, session.plan.chunk_coordinates)):
        words = words_of(session.part.weights, session.plan, _sums(session), index)
        sent += len(_masked(machine, session.part.weights, index, words, watch))
    with watch.step("finish"):
        machine.finish_upload()
    return sent


def _encoder(session: Session, machine: Participant) -> ValuesEncoder:
    spec, part = session.spec, session.part
    factor, _ = fit_to_norm(session.delta, spec.clip_norm)
    place = Place.of(machine.member_id, machine.cohort_ids)
    return ValuesEncoder(spec, part, session.delta, weight_units(SAMPLES, spec), place, factor=factor)


def _sums(session: Session) -> ring.Words:
    return sums_words(session.part, weight_units(SAMPLES, session.spec), LOSS, LOSS)


def _masked(machine: Participant, segment: SegmentSpec, index: int, words: ring.Words, watch: Stopwatch) -> bytes:
    """Mask a chunk; its digest is a part of that, and is told apart by making it once more."""
    with watch.step("mask"):
        packed = machine.mask_chunk(segment.name, index, words)
    with watch.step("digest"):
        hashlib.sha256(packed).digest()
    return packed


def client(job: Job) -> dict[str, object]:
    """The costs of one institution."""
    watch, session = Stopwatch(), Session(job)
    machines = session.machines(session.plan, watch)
    exchange_s = watch.seconds["exchange, client"]
    watch.seconds.clear()
    watch.kernel.clear()
    with PeakMemory() as memory:
        sent = upload(session, machines, watch)
    costs = watch.seconds
    costs["mask"] -= costs["digest"]
    return {
        "cpu_s": costs,
        "kernel_s": watch.kernel_s(costs),
        "exchange_s": exchange_s,
        "extra_bytes": memory.extra_bytes,
        "bytes_up": sent,
    }


def send_uploads(job: Job) -> None:
    """Stand for all surviving institutions: their chunks to stdout, in the order in which they are summed."""
    watch, session = Stopwatch(), Session(job)
    machines, survivors = session.machines(session.plan, watch), _survivors(session, job)
    for member in survivors:
        machines.participants[member].receive_shares(machines.items[member], machines.deals)
    encoders = {member: _encoder(session, machines.participants[member]) for member in survivors}
    sums = _sums(session)
    for segment in session.plan.segments:
        for index in range(chunk_count(segment, session.plan.chunk_coordinates)):
            for member in survivors:
                if segment == session.part.values:
                    words = encoders[member].chunk(index)
                else:
                    words = words_of(segment, session.plan, sums, index)
                sys.stdout.buffer.write(machines.participants[member].mask_chunk(segment.name, index, words))


def _survivors(session: Session, job: Job) -> list[str]:
    return session.members[: len(session.members) - job.drops]


class Aggregator:
    """Opens the sum from a pipe of uploads, chunk by chunk, as the aggregator does from its disk."""

    def __init__(self, session: Session, masks: MaskPlan, uploads: IO[bytes], opened: IO[bytes]) -> None:
        self._session, self._masks, self._uploads, self._opened = session, masks, uploads, opened
        self.survivors = masks.survivors.ids
        self.watch = Stopwatch()

    def open(self) -> tuple[tuple[int, ...], bytes, Energy]:
        """Opened sums, digest and energy of the opened values, which are in their file afterwards."""
        part, chunk = self._session.part, self._session.plan.chunk_coordinates
        energy, digests = Energy(part), []
        for words in self._chunks(part.values):
            with self.watch.step("measure"):
                energy.add(words)
            with self.watch.step("write"):
                packed = ring.pack(words, part.values.bits)
                self._opened.write(packed)
            with self.watch.step("digests"):
                digests.append(hashlib.sha256(packed).digest())
        sums = np.concatenate(list(self._chunks(part.weights)))
        return tuple(map(int, sums)), segment_digest(part.values, chunk, digests), energy

    def _chunks(self, segment: SegmentSpec) -> Iterator[ring.Words]:
        with self.watch.step("open"):
            opener = self._masks.opener(segment)
        for index in range(chunk_count(segment, self._session.plan.chunk_coordinates)):
            with self.watch.step("open"):
                words = opener.open(index, self._received(segment, index))
            yield words

    def _received(self, segment: SegmentSpec, index: int) -> Iterator[bytes]:
        size = chunk_bytes(segment, self._session.plan.chunk_coordinates, index)
        for _ in self.survivors:
            with self.watch.step("network"):
                packed = self._uploads.read(size)
            with self.watch.step("digests"):  # on arrival
                hashlib.sha256(packed).digest()
            with self.watch.step("checksums"):  # before it is summed
                xxhash.xxh3_128_digest(packed)
            yield packed


def server(job: Job) -> dict[str, object]:
    """The costs of the aggregator, and how far its model is from the known mean."""
    exchange, session = Stopwatch(), Session(job)
    machines = session.machines(session.plan, exchange)
    short, answers = session.answers(_survivors(session, job))
    command = [sys.executable, "-m", __spec__.name, replace(job, role="uploads").text]
    with tempfile.TemporaryFile() as opened, subprocess.Popen(command, stdout=subprocess.PIPE) as institutions:
        if institutions.stdout is None:
            raise SystemExit("there is no pipe to the institutions")
        with PeakMemory() as memory:
            recovery = Stopwatch()
            with recovery.step("recover"):
                masks = mask_plan(machines.cohort, short, answers)
            aggregator = Aggregator(session, masks, institutions.stdout, opened)
            model = _publish(session, aggregator, opened)
    costs = recovery.seconds | aggregator.watch.seconds
    del costs["network"]
    return {
        "cpu_s": costs,
        "kernel_s": sum(one.kernel_s(set(costs) & set(one.kernel)) for one in (recovery, aggregator.watch)),
        "exchange_s": exchange.seconds["exchange, server"],
        "extra_bytes": memory.extra_bytes - model.nbytes,
        "bytes_down": ring.packed_bytes(session.part.values.coordinates, session.part.values.bits),
        "error": _error(model, session.delta),
    }


def _publish(session: Session, aggregator: Aggregator, opened: IO[bytes]) -> Vector:
    """The next model, from the sum that is opened; the updates stand for the base model as well."""
    spec, part, watch = session.spec, session.part, aggregator.watch
    sums, _, energy = aggregator.open()
    cohort, survivors = session.members, aggregator.survivors
    with watch.step("measure"):
        check_opened(spec, part, energy, sums, len(cohort), len(survivors))

    def read(index: int) -> ring.Words:
        opened.seek(index * chunk_bytes(part.values, spec.chunk_coordinates, 0))
        packed = opened.read(chunk_bytes(part.values, spec.chunk_coordinates, index))
        return ring.unpack(packed, part.values.bits, chunk_span(part.values, spec.chunk_coordinates, index)[1])

    with watch.step("next model"):
        model = next_model(spec, session.delta, {PART: OpenedPart(read, sums, cohort, survivors)})
        model_hash(part.manifest, model)
    return model


def _error(model: Vector, delta: Vector) -> float:
    """Squared error of the mean over its squared norm, and no vector beside the two."""
    wrong = total = 0.0
    for start in range(0, len(delta), FEW):
        mean = delta[start : start + FEW].astype(np.float64)
        got = model[start : start + FEW] - mean  # the base model is the update itself
        wrong += float(np.square(got - mean).sum())
        total += float(np.square(mean).sum())
    return wrong / total


def work(job: Job) -> dict[str, object]:
    """What the job asks for, after a small one of its kind."""
    measure = client if job.role == "client" else server
    measure(replace(job, coordinates=FEW, cohort=5, drops=0))
    return measure(job)


if __name__ == "__main__":
    if (asked := Job.of_command_line()).role == "uploads":
        send_uploads(asked)
    else:
        answer(work)
