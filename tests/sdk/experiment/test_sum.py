"""The aggregation of a study: real machines and rules in memory, and the same words without masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedddpm.experiment.aggregation.memory_round import aggregate
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.updates.contribution import Pieces, scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import MODEL_PARTS, TURNS, Method, reporters_by_session
from fedddpm_protocol.agreement.model_layout import Architecture, TensorSpec
from fedddpm_protocol.agreement.shards import draw, largest_cohort
from fedddpm_protocol.agreement.spec import WEIGHT_UNITS, RoundSpec, ScaleReference, part_spec
from fedddpm_protocol.encoding.encoder import capped_weight
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.errors import CohortTooSmallError, PolicyError, RingOverflowError, WrappedSumError
from fedddpm_protocol.primitives.canonical import PROTOCOL

SIZES = {"encoder": 700, "bottleneck": 250, "decoder": 330}
MEMBERS = tuple(f"site-{index}" for index in range(7))
SAMPLES = dict(zip(MEMBERS, (100, 30, 1, 77, 55, 100, 12), strict=True))
MANY = tuple(f"site-{index:03d}" for index in range(130))  # two shards
SAMPLES |= {name: 1 + index % 100 for index, name in enumerate(MANY)}


def found(members: tuple[str, ...], n_min: int = 3) -> Federation:
    return Federation.found("study", members, 0, n_min)


def make_spec(federation: Federation, method: Method, bits: int = 32) -> RoundSpec:
    parts = tuple(
        part_spec(name, tuple(TensorSpec(f"{part}.w", (SIZES[part],)) for part in carried), bits)
        for name, carried in method.sessions.items()
    )
    return RoundSpec(
        protocol=PROTOCOL,
        federation="study",
        run="run",
        method=method.value,
        round=0,
        rounds=2,
        attempt=0,
        roster_version=1,
        roster_hash=federation.roster.hash,
        architecture=Architecture("tiny", 28, 1, 16, (1, 2, 4)),
        initial_model_hash=b"\x01" * 32,
        initial_seed=b"",
        base_model_hash=b"\x02" * 32,
        parts=parts,
        weighting="disclosed" if method is Method.USPLIT else "hidden",
        clip_norm=15.0,
        weight_cap=100,
        largest_cohort=largest_cohort(federation.roster),
        chunk_coordinates=256,
        encoding_seed=b"\x03" * 32,
        epochs=1,
        max_steps=0,
        batch_size=4,
        learning_rate=1e-3,
        join_s=1.0,
        shares_s=1.0,
        masked_s=1.0,
        confirm_s=1.0,
        unmask_s=1.0,
        previous_result=b"",
        turn=TURNS[0] if method is Method.TURN else "",
    ).with_terms_hash()


def make_updates(members: tuple[str, ...], method: Method) -> dict[str, LocalUpdate]:
    size = sum(SIZES[part] for part in MODEL_PARTS if part in method.shared_parts)
    rng = np.random.default_rng(3)
    return {
        member: LocalUpdate(
            run="run",
            round=0,
            base_model_hash=b"\x02" * 32,
            terms_hash=b"\x09" * 32,
            delta=rng.normal(0, 0.4, size).astype(np.float32),
            local=np.zeros(0, np.float32),
            samples=SAMPLES[member],
            loss_before=0.5,
            loss_after=0.25 + 0.01 * index,
            seconds=1.0,
            average=None,
        )
        for index, member in enumerate(members)
    }


def weighted_mean(spec: RoundSpec, updates: dict[str, LocalUpdate], members: tuple[str, ...]) -> np.ndarray:
    """What the scheme is meant to give, in float64 and by part."""
    reporters = reporters_by_session(Method(spec.method), spec.hash, members)
    means = []
    for part in spec.parts:
        if part.name not in spec.summed:
            means.append(np.zeros(part.parameters))
            continue
        weights = [capped_weight(SAMPLES[member], spec.weight_cap) for member in reporters[part.name]]
        all_pieces = [scaled_pieces(spec, updates[member].delta) for member in reporters[part.name]]
        pieces = [one.by_part[part.name].astype(np.float64) * one.factor for one in all_pieces]
        means.append(np.average(pieces, axis=0, weights=weights))
    return np.concatenate(means)


def rounding(spec: RoundSpec, members: tuple[str, ...]) -> float:
    """L2 norm that the rounding of all institutions keeps below: each of them is off by a unit at most."""
    reporters, squares = reporters_by_session(Method(spec.method), spec.hash, members), 0.0
    for part in map(spec.part, spec.summed):
        count = len(reporters[part.name])
        weight = sum(capped_weight(SAMPLES[member], spec.weight_cap) for member in reporters[part.name])
        unit = step_of(spec, part, count) * WEIGHT_UNITS / weight
        squares += part.values.coordinates * count * unit**2
    return float(np.sqrt(squares))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("method", list(Method))
def test_masked_and_plain_give_the_same_bits_and_the_weighted_mean(method: Method, bits: int) -> None:
    federation = found(MEMBERS)
    spec, updates = make_spec(federation, method, bits), make_updates(MEMBERS, method)
    base = np.linspace(-1, 1, len(next(iter(updates.values())).delta)).astype(np.float32)
    masked = aggregate(federation, spec, updates, base, "stream")
    plain = aggregate(federation, spec, updates, base, "stream", masked=False)
    assert masked.model.tobytes() == plain.model.tobytes()
    assert masked.sums == plain.sums
    assert masked.references == plain.references
    assert masked.result_hash != plain.result_hash  # a signed result names the session; without masks there is none
    mean = weighted_mean(spec, updates, MEMBERS)
    error = float(np.linalg.norm(masked.model - base - mean))
    assert error < rounding(spec, MEMBERS) + 1e-5
    assert bits == 8 or error < 0.01 * np.linalg.norm(mean)
    for part in map(spec.part, spec.summed):
        assert masked.references[part.name].norm > 0


@pytest.mark.parametrize("masked", [True, False])
def test_a_sum_that_is_too_large_for_its_ring_is_not_used(masked: bool) -> None:
    federation = found(MEMBERS)
    spec, updates = make_spec(federation, Method.USPLIT, 8), make_updates(MEMBERS, Method.USPLIT)
    small = ScaleReference(1e-3, 3, 3 * WEIGHT_UNITS)
    parts = tuple(replace(part, reference=small) if part.name == "decoder" else part for part in spec.parts)
    spec, base = replace(spec, parts=parts), np.ones(sum(SIZES.values()), np.float32)
    opened = aggregate(federation, spec, updates, base, "s", masked=masked)
    assert opened.wrapped == ("decoder",)
    assert set(opened.references) == set(opened.survivors) == {"encoder", "bottleneck"}
    assert (opened.model[-SIZES["decoder"] :] == 1).all()
    assert (opened.model[: -SIZES["decoder"]] != 1).any()
    nothing = replace(spec, parts=tuple(replace(part, reference=small) for part in parts))
    federation.forget_spent()  # another specification draws other reporters
    with pytest.raises(WrappedSumError):
        aggregate(federation, nothing, updates, base, "s", masked=masked)


def test_a_round_done_again_gives_the_same_bits_and_another_stream_does_not() -> None:
    federation = found(MEMBERS)
    spec, updates = make_spec(federation, Method.UDEC), make_updates(MEMBERS, Method.UDEC)
    base = np.zeros(SIZES["decoder"], np.float32)
    first, again = (aggregate(federation, spec, updates, base, "a").model for _ in range(2))
    other = aggregate(federation, spec, updates, base, "b").model
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    np.testing.assert_allclose(first, other, atol=1e-5)


def test_losses_and_weights_come_out_of_the_sum() -> None:
    federation = found(MEMBERS)
    spec, updates = make_spec(federation, Method.FULL), make_updates(MEMBERS, Method.FULL)
    opened = aggregate(federation, spec, updates, np.zeros(sum(SIZES.values()), np.float32), "s")
    weight, before, after = opened.sums["full"]
    assert weight == sum(max(1, round(count * WEIGHT_UNITS / 100)) for count in map(SAMPLES.__getitem__, MEMBERS))
    assert before == len(MEMBERS) * 2**19
    assert after == sum(round((0.25 + 0.01 * index) * 2**20) for index in range(len(MEMBERS)))
    assert opened.survivors == {"full": MEMBERS}


def test_two_institutions_are_refused_with_masks_and_summed_without() -> None:
    members = MEMBERS[:2]
    updates = make_updates(members, Method.UDEC)
    base = np.zeros(SIZES["decoder"], np.float32)
    strict = found(members)
    with pytest.raises(CohortTooSmallError):
        aggregate(strict, make_spec(strict, Method.UDEC), updates, base, "s")
    open_ = found(members, n_min=2)
    spec = make_spec(open_, Method.UDEC)
    with pytest.raises(PolicyError, match="two parties only"):
        aggregate(open_, spec, updates, base, "s")
    plain = aggregate(open_, spec, updates, base, "s", masked=False)
    np.testing.assert_allclose(plain.model, weighted_mean(spec, updates, members), atol=2e-4)


def test_one_reporter_a_part_is_summed_without_masks() -> None:
    members = MEMBERS[:2]
    federation = found(members, n_min=2)
    spec, updates = make_spec(federation, Method.USPLIT), make_updates(members, Method.USPLIT)
    plain = aggregate(federation, spec, updates, np.zeros(sum(SIZES.values()), np.float32), "s", masked=False)
    assert [len(plain.survivors[part]) for part in MODEL_PARTS] == [1, 1, 1]
    np.testing.assert_allclose(plain.model, weighted_mean(spec, updates, members), atol=2e-4)


def test_an_update_that_nobody_clipped_is_never_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = found(MEMBERS)
    spec, updates = make_spec(federation, Method.UDEC), make_updates(MEMBERS, Method.UDEC)
    monkeypatch.setattr(
        "fedddpm.experiment.aggregation.memory_round.scaled_pieces",
        lambda spec, delta: Pieces({"decoder": 100 * delta}, 1.0, 0.0),
    )
    with pytest.raises(RingOverflowError, match="exceeds the agreed"):
        aggregate(federation, spec, updates, np.zeros(SIZES["decoder"], np.float32), "s")


@pytest.mark.soak  # 130 institutions
def test_more_than_one_sum_holds_are_averaged_over_shards() -> None:
    federation = found(MANY)
    shards = draw(federation.roster)
    assert [len(shard) for shard in shards] == [65, 65]
    assert draw(found(MANY).roster) == shards  # a study that goes on draws the same
    spec, updates = make_spec(federation, Method.UDEC, 32), make_updates(MANY, Method.UDEC)
    base = np.linspace(-1, 1, SIZES["decoder"]).astype(np.float32)
    masked = aggregate(federation, spec, updates, base, "stream")
    plain = aggregate(federation, spec, updates, base, "stream", masked=False)
    assert masked.model.tobytes() == plain.model.tobytes()
    assert masked.survivors == {f"decoder.{number}": shard for number, shard in enumerate(shards)}
    assert set(masked.references) == {"decoder"}
    mean = weighted_mean(spec, updates, MANY)
    assert np.linalg.norm(masked.model - base - mean) < 0.01 * np.linalg.norm(mean)
