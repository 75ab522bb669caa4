"""Masking needs room for chunks, not for vectors and not for members."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from tests.protocol.support.sessions import inbox_of, make_participants, make_plan, make_roster

from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.session.coordinator import recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog

CHUNK = 2**18  # coordinates; 1 MiB at 32 bits
CHUNK_BYTES = 4 * CHUNK
SMALL = 64 * 2**10


def masking_machines(n: int, coordinates: int) -> dict[str, Participant]:
    segments = (SegmentSpec("part", 32, coordinates, "fixed-point"), SegmentSpec("part.weights", 32, 3, "integers"))
    roster = make_roster(n)
    machines = make_participants(roster, make_plan(roster, segments=segments, chunk_coordinates=CHUNK))
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    for name, machine in machines.items():
        machine.receive_shares(*inbox_of(name, shares.values()))
    return machines


def peak_of_one_chunk(machine: Participant, index: int) -> int:
    words = np.ones(CHUNK, np.uint32)
    machine.mask_chunk("part", index, words.copy())  # imports and caches are not what is measured
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        machine.mask_chunk("part", index, words)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("n", "chunks"), [(3, 2), (10, 2), (10, 64)], ids=["few", "many", "long"])
def test_masking_one_chunk_takes_less_than_two_more(n: int, chunks: int) -> None:
    machine = masking_machines(n, chunks * CHUNK)["site-1"]
    for index in (0, chunks - 1):
        peak = peak_of_one_chunk(machine, index)
        assert CHUNK_BYTES < peak < 2 * CHUNK_BYTES + SMALL


def test_opening_one_chunk_takes_less_than_four() -> None:
    """The aggregator reads one member's chunk after another."""
    machines = masking_machines(6, 2 * CHUNK)
    plan = next(iter(machines.values())).plan
    uploads = {}
    digests = {}
    for name, machine in machines.items():
        uploads[name] = [machine.mask_chunk("part", index, np.ones(CHUNK, np.uint32)) for index in range(2)]
        machine.mask_chunk("part.weights", 0, np.ones(3, np.uint32))
        machine.finish_upload()
        digests[name] = machine._upload_digest
    sharing = machines["site-0"]._sharing
    assert sharing is not None
    survivors = sharing.survivors(digests)
    confirmations = [machine.receive_survivors(survivors.message.survivors) for machine in machines.values()]
    unmasks = [machine.receive_confirmations(confirmations, SpentLog().commit) for machine in machines.values()]
    masks = recover(survivors, unmasks)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        opened = masks.open_chunk(plan.segment("part"), 1, (uploads[name][1] for name in machines))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (opened == 6).all()
    assert peak < 4 * CHUNK_BYTES
