"""Error feedback: what rounding took comes later, once, and only where the update was summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.sdk.experiment.test_sum import MEMBERS, SAMPLES, SIZES, found, make_spec, weighted_mean

from fedddpm.config import LearningOptions
from fedddpm.experiment.aggregation.memory_round import Opened, aggregate
from fedddpm.updates.error_feedback import ErrorFeedback, Summed
from fedddpm.updates.local_update import LocalUpdate
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec, ScaleReference, part_spec
from fedddpm_protocol.primitives.canonical import PROTOCOL

US = (MEMBERS[0], MEMBERS[3], MEMBERS[5])  # of similar weight
FILE = "residual.safetensors"


def make_update(member: str, round_: int = 0, size: int = SIZES["decoder"], scale: float = 0.1) -> LocalUpdate:
    """The same every round."""
    rng = np.random.default_rng(MEMBERS.index(member))
    return LocalUpdate(
        run="run",
        round=round_,
        base_model_hash=b"\x02" * 32,
        terms_hash=b"\x09" * 32,
        delta=(rng.normal(0, scale, size) + scale).astype(np.float32),
        local=np.zeros(0, np.float32),
        samples=SAMPLES[member],
        loss_before=0.5,
        loss_after=0.25,
        seconds=1.0,
    )


def next_spec(spec: RoundSpec, round_: int, bits: int, references: dict[str, ScaleReference]) -> RoundSpec:
    parts = tuple(part_spec(part.name, part.manifest, bits, references[part.name]) for part in spec.parts)
    previous = b"\x04" * 32 if round_ else b""
    seed = bytes([round_]) * 32
    return replace(spec, round=round_, rounds=99, parts=parts, encoding_seed=seed, previous_result=previous)


def test_errors_of_rounding_do_not_add_up(tmp_path: Path) -> None:
    def run(*, feedback: bool) -> list[float]:
        """How far the model is from the sum of true means, after each round."""
        federation, errors = found(US), []
        spec = make_spec(federation, Method.UDEC, 16)  # while nothing is known of an update's size
        sites = {member: ErrorFeedback(tmp_path / member, member) for member in US}
        model = true = np.zeros(SIZES["decoder"], np.float32)
        for round_ in range(16):
            updates = {member: make_update(member, round_) for member in US}
            true = true + weighted_mean(spec, updates, US)
            if feedback:
                updates = {member: sites[member].added_to(update, spec.parts) for member, update in updates.items()}
            opened: Opened = aggregate(federation, spec, updates, model, "s", masked=False)
            model = opened.model
            for member, site in sites.items() if feedback else ():
                site.after("run", round_, round_ + 1, updates[member], spec, {"decoder": Summed(US, US)})
            errors.append(float(np.linalg.norm(model - true)))
            spec = next_spec(spec, round_ + 1, 8, opened.references)
        return errors

    for member in US:
        (tmp_path / member).mkdir()
    without, with_ = run(feedback=False), run(feedback=True)
    assert without[0] == with_[0]
    assert without[-1] > 2 * without[2]
    assert with_[-1] < 0.5 * without[-1]
    assert max(with_[4:]) < 1.5 * min(with_[4:])


@pytest.fixture
def site(tmp_path: Path) -> ErrorFeedback:
    return ErrorFeedback(tmp_path, US[0])


def summed(*survivors: str) -> dict[str, Summed]:
    return {"decoder": Summed(US, survivors or US)}


def udec(bits: int = 16) -> RoundSpec:
    return make_spec(found(US), Method.UDEC, bits)


def kept(folder: Path) -> np.ndarray:
    return load_file(folder / FILE)["residual"]


def test_it_outlives_the_process_and_belongs_to_one_round(site: ErrorFeedback, tmp_path: Path) -> None:
    spec = udec()
    site.after("run", 0, 1, make_update(US[0]), spec, summed())
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    residual = kept(tmp_path)
    assert np.linalg.norm(residual) > 0
    update = make_update(US[0], 1, scale=10)
    again = ErrorFeedback(tmp_path, US[0]).added_to(update, spec.parts)
    assert np.array_equal(again.sent, update.delta + residual)
    assert again.delta is update.delta
    others = (make_update(US[0], 0), make_update(US[0], 2), replace(update, run="another"))
    assert all(site.added_to(other, spec.parts) is other for other in others)
    full = make_spec(found(US), Method.FULL, 16)
    whole = make_update(US[0], 1, sum(SIZES.values()))
    assert site.added_to(whole, full.parts) is whole


@pytest.mark.parametrize("damage", [b"", b"no tensors", b"\x00" * 4096])
def test_a_damaged_file_begins_again_at_zero(site: ErrorFeedback, tmp_path: Path, damage: bytes) -> None:
    site.after("run", 0, 1, make_update(US[0]), udec(), summed())
    (tmp_path / FILE).write_bytes(damage)
    update = make_update(US[0], 1)
    assert site.added_to(update, udec().parts) is update
    site.after("run", 1, 2, update, None, summed())  # nor is anything kept that nobody can read


def test_without_being_summed_it_stays_as_it_was(site: ErrorFeedback, tmp_path: Path) -> None:
    spec = udec()
    site.after("run", 0, 1, make_update(US[0]), spec, summed())
    residual = kept(tmp_path)
    update = site.added_to(make_update(US[0], 1, scale=10), spec.parts)
    site.after("run", 1, 2, update, spec, summed(*US[1:]))
    assert np.array_equal(kept(tmp_path), residual)
    site.after("run", 2, 5, None, None, {})  # sat out, and away for two rounds
    late = site.added_to(make_update(US[0], 5, scale=10), spec.parts)
    assert late.feedback is not None
    assert np.array_equal(late.feedback, residual)
    site.after("run", 5, 6, late, spec, summed())
    assert not np.array_equal(kept(tmp_path), residual)


@pytest.mark.parametrize("lost", ["specification", "update"])
def test_what_cannot_be_measured_is_forgotten_and_not_sent_twice(
    site: ErrorFeedback, tmp_path: Path, lost: str
) -> None:
    spec = udec()
    site.after("run", 0, 1, make_update(US[0]), spec, summed())
    update = site.added_to(make_update(US[0], 1), spec.parts)
    assert update.feedback is not None
    if lost == "update":
        site.after("run", 1, 2, None, spec, summed())
    else:
        site.after("run", 1, 2, update, None, summed())
    assert not kept(tmp_path).any()
    fresh = make_update(US[0], 2)
    assert site.added_to(fresh, spec.parts) is fresh


def test_each_part_has_its_own(site: ErrorFeedback, tmp_path: Path) -> None:
    spec = make_spec(found(MEMBERS), Method.USPLIT, 16)
    update = make_update(US[0], 0, sum(SIZES.values()))
    site.after("run", 0, 1, update, spec, {"encoder": Summed(US, US), "decoder": Summed(US, US[1:])})
    encoder, rest = np.split(kept(tmp_path), [SIZES["encoder"]])
    assert encoder.any()
    assert not rest.any()
    second = site.added_to(make_update(US[0], 1, sum(SIZES.values()), scale=10), spec.parts)
    site.after("run", 1, 2, second, spec, {"bottleneck": Summed(US, US)})
    after, rest = np.split(kept(tmp_path), [SIZES["encoder"]])
    assert np.array_equal(after, encoder)
    assert rest[: SIZES["bottleneck"]].any()


def test_the_widest_ring_leaves_nothing(site: ErrorFeedback, tmp_path: Path) -> None:
    site.after("run", 0, 1, make_update(US[0]), udec(32), summed())
    assert not kept(tmp_path).any()


def test_no_more_comes_back_than_the_update_itself(site: ErrorFeedback, tmp_path: Path) -> None:
    spec = udec()
    site.after("run", 0, 1, make_update(US[0]), spec, summed())
    small = make_update(US[0], 1, scale=1e-6)
    update = site.added_to(small, spec.parts)
    assert update.feedback is not None
    assert np.linalg.norm(kept(tmp_path)) > 10 * np.linalg.norm(small.delta)
    assert np.linalg.norm(update.feedback) == pytest.approx(np.linalg.norm(small.delta), rel=1e-5)


def test_a_clipped_update_feeds_back_what_was_lost_of_it(site: ErrorFeedback, tmp_path: Path) -> None:
    spec = udec()
    update = make_update(US[0], scale=100)
    site.after("run", 0, 1, update, spec, summed())
    assert np.linalg.norm(update.delta) > 100 * spec.clip_norm
    assert 0 < np.linalg.norm(kept(tmp_path)) < 2 * spec.clip_norm * len(US)


def test_the_stored_update_holds_it_apart_from_what_was_learned(tmp_path: Path) -> None:
    update = replace(make_update(US[0]), feedback=np.full(SIZES["decoder"], 0.25, np.float32))
    store = UpdateStore(tmp_path)
    store.save(update)
    loaded = store.load(b"\x02" * 32, b"\x09" * 32)
    assert loaded is not None
    assert np.array_equal(loaded.delta, update.delta)
    assert np.array_equal(loaded.sent, update.delta + np.float32(0.25))


def result_of(spec: RoundSpec, survivors: Sequence[str]) -> RoundResult:
    digest = b"\x05" * 32
    part = PartResult("decoder", True, digest, digest, US, tuple(survivors), (9000, 1, 1), digest, 1.0)
    heads = (PROTOCOL, spec.federation, spec.run, spec.round, spec.attempt, spec.hash, spec.base_model_hash)
    return RoundResult(*heads, (part,), digest, spec.previous_result)


def test_results_say_which_specification_was_opened(site: ErrorFeedback, tmp_path: Path) -> None:
    spec, update = udec(), make_update(US[0])
    site.after("run", 0, 1, update, spec, summed())
    expected = kept(tmp_path)
    site.after_results("run", 0, [result_of(spec, US)], {spec.hash: spec}, update)
    assert np.array_equal(kept(tmp_path), expected)
    other = replace(spec, attempt=1)
    site.after_results("run", 0, [result_of(other, US)], {spec.hash: spec}, update)
    assert not kept(tmp_path).any()


def test_institutions_of_a_federation_make_up_for_it(federation) -> None:
    fed = federation("abc")
    fed.start_run(Method.UDEC, 3, bits=8)
    learning = LearningOptions(error_feedback=True)
    fed.together(2, learning=learning)
    residuals = {member: kept(fed.folder / f"state-{member}") for member in fed.members}
    assert all(residual.any() for residual in residuals.values())
    stored = [path.read_bytes() for path in fed.data.rglob("*") if path.is_file()]
    for residual in residuals.values():
        assert not any(residual[100:108].tobytes() in file for file in stored)
    fed.together(1, learning=learning)  # new processes would find the same files
    last = {member: kept(fed.folder / f"state-{member}") for member in fed.members}
    assert all(not np.array_equal(last[member], residuals[member]) for member in fed.members)
    vectors = [fed.shared_vector(member, Method.UDEC) for member in fed.members]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
