"""What a test looks at from outside: state, results, opened vectors."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from tests.aggregator.support.driver import Seat, expected_sum
from tests.aggregator.support.federations import read_safetensors
from tests.aggregator.support.sites import Site

from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.wire.api import ResultsPage, RunState


def first_state(site: Site, rounds_done: int = 0) -> RunState:
    institution = next(iter(site.institutions.values()))
    deadline = time.monotonic() + 60
    state = institution.state()
    while state.spec is None or state.results < rounds_done:
        assert time.monotonic() < deadline, state
        state = institution.state(state.version, 2.0)
    return state


def result_of(site: Site, round_index: int) -> RoundResult:
    first_state(site, round_index + 1)
    institution = next(iter(site.institutions.values()))
    page = institution.send("GET", f"/v1/results?run=run-1&from={round_index}").content
    return open_result(ResultsPage.model_validate_json(page).results[0], site.federation.roster)


def opened_of(site: Site, round_index: int, part: PartSpec, session: str | None = None) -> ring.Words:
    institution = next(iter(site.institutions.values()))
    data = institution.send("GET", f"/v1/results/run-1/{round_index}/opened/{session or part.name}").content
    return ring.unpack(data, part.values.bits, part.values.coordinates)


def check_part(site: Site, round_index: int, survivors: list[Seat]) -> None:
    """The opened vector and sums are the survivors' integer sums, exactly."""
    part, session = survivors[0].part, survivors[0].session
    result = next(r for r in result_of(site, round_index).parts if r.part == session)
    assert result.survivors == tuple(sorted(seat.name for seat in survivors))
    np.testing.assert_array_equal(opened_of(site, round_index, part, session), expected_sum(survivors, part.values))
    assert result.sums == tuple(int(word) for word in expected_sum(survivors, part.weights))


def opened_part(result: PartResult, spec: RoundSpec, seats: list[Seat]) -> OpenedPart:
    """What the seats opened together, as everybody decodes it."""
    values = spec.part(result.part).values
    total = expected_sum(seats, values)

    def chunk(index: int) -> ring.Words:
        start, count = chunk_span(values, spec.chunk_coordinates, index)
        return total[start : start + count]

    return OpenedPart(chunk, result.sums, result.cohort, result.survivors)


def base_of(site: Site, spec: RoundSpec) -> np.ndarray:
    """The base model of a round, downloaded: [parameters of the shared parts]."""
    institution = next(iter(site.institutions.values()))
    data = institution.send("GET", f"/v1/models/{spec.base_model_hash.hex()}").content
    tensors = read_safetensors(data)
    return np.concatenate([tensors[tensor.name].reshape(-1) for tensor in spec.base_manifest])


def until(site: Site, condition: Callable[[RunState], bool], timeout_s: float = 60.0) -> RunState:
    """The first state that meets ``condition``."""
    institution = next(iter(site.institutions.values()))
    deadline = time.monotonic() + timeout_s
    state = institution.state()
    while not condition(state):
        assert time.monotonic() < deadline, state
        state = institution.state(state.version, 2.0)
    return state
