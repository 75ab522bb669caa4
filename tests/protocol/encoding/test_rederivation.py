"""A signed result is followed only where its norms and its model are those of the sums that were opened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.protocol.support.specs import make_part_result, make_result, make_spec
from tests.protocol.support.sums import opened_part, summed

from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart, derive_model
from fedddpm_protocol.encoding.rederivation import follow_result
from fedddpm_protocol.errors import ResultError

WEIGHTS = [40000, 50000, 60000]


def finished_round() -> tuple[RoundSpec, RoundResult, Vector, dict[str, OpenedPart]]:
    """A round of three institutions as an honest aggregator signs it, with its base model and its opened sum."""
    spec = make_spec(bits=8)
    generator = np.random.default_rng(5)
    base = generator.standard_normal(spec.parts[0].parameters).astype(np.float32)
    deltas = [generator.normal(0, 0.1 * spec.clip_norm / len(base) ** 0.5, len(base)).astype(np.float32)] * 3
    one = opened_part(spec, summed(spec, deltas, WEIGHTS), (sum(WEIGHTS), 10, 10), 3)
    opened = {"full": one}
    following = derive_model(spec, base, opened)
    part = make_part_result(cohort=one.cohort, survivors=one.survivors, sums=one.sums, norm=following.norms["full"])
    result = make_result(spec, parts=(part,), model_hash=model_hash(spec.base_manifest, following.base))
    return spec, result, base, opened


def with_norm(result: RoundResult, factor: float) -> RoundResult:
    return replace(result, parts=(replace(result.parts[0], norm=result.parts[0].norm * factor),))


def test_the_model_of_an_honest_result_follows() -> None:
    spec, result, base, opened = finished_round()
    model = follow_result(spec, result, base, opened).base
    assert model_hash(spec.base_manifest, model) == result.model_hash
    other_machine = follow_result(spec, with_norm(result, 1 + 1e-12), base, opened).base  # summed in another order
    assert other_machine.tobytes() == model.tobytes()


@pytest.mark.parametrize("factor", [1 + 1e-6, 0.5, 123.0])
def test_another_norm_than_that_of_the_sum_is_refused(factor: float) -> None:
    spec, result, base, opened = finished_round()
    with pytest.raises(ResultError, match=r"the signed norm .* of part 'full' is not the") as refused:
        follow_result(spec, with_norm(result, factor), base, opened)
    assert refused.value.blame == "aggregator"


def test_another_model_than_that_of_the_sums_is_refused() -> None:
    spec, result, base, opened = finished_round()
    with pytest.raises(ResultError, match="is not the one the aggregator signed") as refused:
        follow_result(spec, replace(result, model_hash=bytes(32)), base, opened)
    assert refused.value.blame == "aggregator"
    moved = base.copy()
    moved[0] += 1
    with pytest.raises(ResultError, match="is not the one the aggregator signed"):
        follow_result(spec, result, moved, opened)
