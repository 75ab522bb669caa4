"""Narrow rings over real HTTP: the scale follows from the round before, and a sum that wraps is asked for again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.aggregator.support.driver import STEPS, ProblemError, Seat, drive, spec_of, take_seats
from tests.aggregator.support.federations import WIDER, Federation
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import base_of, check_part, first_state, opened_of, opened_part, result_of, until

from fedddpm_aggregator.background import opening_threads
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.service.history.traffic import RoundTraffic, round_traffic
from fedddpm_aggregator.service.rounds import sum_opening
from fedddpm_aggregator.vectors.opened_values import OpenedValues, opened_blob
from fedddpm_protocol.agreement.model_layout import coordinates, model_hash
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, ROTATED, RoundSpec
from fedddpm_protocol.encoding.decoder import check_opened, next_model
from fedddpm_protocol.wire.phases import Phase

WHOLE = 4 * sum(coordinates(manifest) for manifest in WIDER.values())
SUMS_BYTES = 12


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, manifests=WIDER)


def begin(federation: Federation, serve: Serve, **changes: object) -> Site:
    fields = {"rounds": 2, "bits": 8, "first_bits": 16, "chunk_coordinates": 128, "clip_norm": 2.0, "weight_cap": 103}
    fields["clip"] = "fixed"  # updates grow from one round to the next here, whatever the mean
    federation.start_run(**{**fields, **changes})  # type: ignore[arg-type]
    return serve(federation)


def seats_of(site: Site, size: float = 1.0, names: str = "abcd", spent: tuple[str, ...] = ()) -> list[Seat]:
    """Seats of the current attempt, whose updates are ``size`` of the usual; ``spent`` ones name each other."""
    state, roster = first_state(site), site.federation.roster
    seats = []
    for seed, name in enumerate(names):
        recorded = spent if name in spent else ()
        (seat,) = take_seats([site[name]], roster, state, "decoder", recorded_u3=recorded)
        norm_1 = np.random.default_rng(seed).normal(0, 1 / 700**0.5, 700)
        seat.delta = (norm_1 * size).astype(np.float32)
        seats.append(seat)
    return seats


def spec_now(site: Site) -> RoundSpec:
    return spec_of(first_state(site), site.federation.roster)


def mean_of(seats: list[Seat]) -> np.ndarray:
    weights = np.array([seat.samples for seat in seats], float)
    return sum(w * seat.delta.astype(float) for w, seat in zip(weights, seats, strict=True)) / weights.sum()


def test_the_first_round_is_wide_and_sizes_the_second(federation: Federation, serve: Serve) -> None:
    site = begin(federation, serve)
    reference, seeds = NOTHING_KNOWN, set()
    for round_index, (bits, error) in enumerate([(16, 2e-3), (8, 0.1)]):
        first_state(site, round_index)
        spec, seats = spec_now(site), seats_of(site)
        part = spec.part("decoder")
        assert (part.values.bits, part.values.encoding, part.values.block) == (bits, ROTATED, 64)
        assert part.reference == reference
        seeds.add(spec.encoding_seed)
        drive(seats)
        check_part(site, round_index, seats)
        result, base = result_of(site, round_index), base_of(site, spec)
        following = next_model(spec, base, {"decoder": opened_part(result.parts[0], spec, seats)})
        assert result.model_hash == model_hash(spec.base_manifest, following)
        mean = mean_of(seats)
        assert np.linalg.norm(following - base - mean) < error * np.linalg.norm(mean)
        assert result.parts[0].norm == pytest.approx(np.linalg.norm(mean), rel=0.1)
        reference = result.parts[0].reference
    assert len(seeds) == 2
    with site.federation.context() as ctx:
        check_traffic(ctx)
        check_measured_again(ctx, site, spec)


def check_traffic(ctx: Context) -> None:
    assert [(line.bits, line.upload_bytes) for line in overview(ctx)] == [
        (16, 2 * 704 + SUMS_BYTES),
        (8, 704 + SUMS_BYTES),
    ]
    first = RoundTraffic(0, (16,), up=4 * (2 * 704 + SUMS_BYTES), down=4 * WHOLE, float32=8 * WHOLE)
    second = RoundTraffic(1, (8,), up=4 * (704 + SUMS_BYTES), down=4 * 2 * 704, float32=8 * WHOLE)
    assert round_traffic(ctx) == [first, second]
    assert second.saved == pytest.approx(1 - (716 + 1408) / (2 * WHOLE))


def check_measured_again(ctx: Context, site: Site, spec: RoundSpec) -> None:
    """What the file of opened values gives is what was measured while they were opened."""
    result, part = result_of(site, 1).parts[0], spec.part("decoder")
    digest, energy = OpenedValues(ctx.blobs, spec, "decoder").measure()
    assert digest == result.opened_digest
    assert check_opened(spec, part, energy, result.sums, 4, 4) == pytest.approx(result.norm, rel=1e-12)


def test_a_sum_that_wraps_is_asked_for_again_in_the_widest_ring(new_federation: NewFederation, serve: Serve) -> None:
    site = begin(new_federation(manifests=WIDER), serve, rounds=3)
    drive(seats_of(site, 0.05))
    first_state(site, 1)
    spec, seats = spec_now(site), seats_of(site)
    drive(seats, STEPS[:2])
    (lost,) = seats_of(site, names="d")
    with pytest.raises(ProblemError, match="join the next attempt"):
        lost.join(seq=2)  # d has lost its secrets: a, b and c will be spent together
    drive(seats[:3], STEPS[2:])
    state = until(site, lambda state: state.attempt == 1)
    assert (state.status, state.round, state.results) == ("running", 1, 1)
    with pytest.raises(ProblemError) as refusal:
        opened_of(site, 1, spec.part("decoder"))
    assert refusal.value.status == 404
    again = spec_now(site)
    assert again.part("decoder").values.bits == 32
    assert again.base_model_hash == spec.base_model_hash
    assert again.encoding_seed == spec.encoding_seed  # attempts share it, or it could be searched by failing some
    seats = seats_of(site, spent=("a", "b", "c"))
    drive(seats, STEPS[:1])
    drive(seats[:3], STEPS[1:])
    check_part(site, 1, seats[:3])
    first_state(site, 2)
    last = spec_now(site).part("decoder")
    assert (last.values.bits, last.reference) == (8, result_of(site, 1).parts[0].reference)
    with site.federation.context() as ctx:
        until(site, lambda state: not ctx.blobs.exists(opened_blob(spec.hash.hex(), "decoder")))
        assert ctx.blobs.exists(opened_blob(again.hash.hex(), "decoder"))
        wrapped = overview(ctx)[1]
    assert (wrapped.phase, wrapped.opened_bytes) == (Phase.FAILED, 0)
    assert "larger than its ring of 8 bits" in (wrapped.reason or "")


def test_a_forged_update_is_held_in_the_widest_ring(federation: Federation, serve: Serve) -> None:
    site = begin(federation, serve)
    forge(seats_of(site, 0.05), 2**15)
    state = until(site, lambda state: state.attempt == 1)
    assert state.status == "running"
    forge(seats_of(site, 0.05, spent=tuple("abcd")), 2**29)
    state = until(site, lambda state: state.status == "stalled")
    assert "did not clip" in (state.reason or "")
    site.federation.install()
    until(site, lambda state: state.attempt == 2)
    assert spec_now(site).part("decoder").values.bits == 32  # nothing was opened since the sum that wrapped


def forge(seats: list[Seat], most: int) -> None:
    """A session in which d sends noise of ring units up to ``most``."""
    drive(seats, STEPS[:2])
    drive(seats[:3], STEPS[2:3])
    values = seats[3].part.values
    noise = np.random.default_rng(0).integers(-most, most, values.coordinates)
    seats[3].encode_unchecked(noise.astype(f"<u{values.bits // 8}"))
    for segment, index in seats[3].chunks:
        seats[3].put(segment, index)
    seats[3].finish()
    drive(seats, STEPS[3:])


def test_a_process_killed_after_the_values_were_opened_measures_them_anew(
    federation: Federation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def dies_once(*arguments: object) -> float:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("killed")
        return check_opened(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(opening_threads, "RETRY_S", 0.2)
    monkeypatch.setattr(sum_opening, "check_opened", dies_once)
    site = begin(federation, serve, rounds=1)
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)
    assert len(calls) == 2
    assert result_of(site, 0).parts[0].norm == pytest.approx(np.linalg.norm(mean_of(seats)), rel=0.1)
