"""A specification follows from its charter and the results before it in every field that decides anything."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from tests.protocol.support.charters import chartered, following
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_part_result, make_result, make_spec

from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.clipping import ADAPTIVE
from fedddpm_protocol.agreement.lineage import NO_RESULTS, Lineage, require_chartered, require_follows
from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.roster import Roster, Sharding
from fedddpm_protocol.agreement.spec import RoundSpec, ScaleReference, part_spec
from fedddpm_protocol.agreement.terms import OuterOptimizer
from fedddpm_protocol.errors import CharterError
from fedddpm_protocol.primitives import canonical

CHARTER, SPEC = chartered()
ROSTER = make_roster(5, 1)
ONE_RESULT = replace(NO_RESULTS, results=1)
OTHERS: dict[str, Any] = {
    "federation": "elsewhere",
    "run": "run-2",
    "charter_hash": b"c" * 32,
    "method": None,  # parts follow it: below
    "rounds": 4,
    "architecture": Architecture("tiny", 32, 1, 8, (1, 2)),
    "initial_model_hash": b"x" * 32,
    "initial_seed": b"x" * 32,
    "weighting": "equal",
    "weight_cap": 999,
    "chunk_coordinates": 16,
    "epochs": 2,
    "max_steps": 11,
    "batch_size": 5,
    "learning_rate": 1e-30,
    "recipe": "modern",
    "encoding_seed": b"x" * 32,
    "clip_norm": 1.9,
    "round": 2,
    "draw": 1,
    "outer": OuterOptimizer(1.0, 0.5),
    "turn": None,  # with TURN alone: in test_turns.py
}
# Fields that no charter names, and why: who takes part is the roster's, time is the operator's, the base and the
# result before it are the chain's (the institution holds them against its own), and parts are compared as rings.
FREE = {
    "protocol", "attempt", "roster_version", "roster_hash", "base_model_hash", "parts", "largest_cohort", "join_s",
    "shares_s", "masked_s", "confirm_s", "unmask_s", "previous_result", "terms_hash",
}  # fmt: skip


def test_every_field_of_a_specification_is_held_against_something() -> None:
    assert {field.name for field in fields(RoundSpec)} == set(OTHERS) | FREE


@pytest.mark.parametrize("name", [name for name, value in OTHERS.items() if value is not None])
def test_no_field_is_the_aggregators_choice(name: str) -> None:
    require_follows(SPEC, CHARTER, ONE_RESULT, ROSTER)
    with pytest.raises(CharterError, match=name.replace("_", " ") if name != "clip_norm" else "norm"):
        require_follows(SPEC.with_terms_hash(**{name: OTHERS[name]}), CHARTER, ONE_RESULT, ROSTER)


def test_another_method_is_refused() -> None:
    charter = replace(CHARTER, method="UDEC")
    with pytest.raises(CharterError, match="as method"):
        require_chartered(following(charter, SPEC), charter)


def test_a_clip_norm_above_the_charters_needs_no_results_to_be_refused() -> None:
    with pytest.raises(CharterError, match=r"norm of 2\.1, the charter of run run-1 2 at most"):
        require_chartered(SPEC.with_terms_hash(clip_norm=2.1), CHARTER)


def test_a_learning_rate_follows_its_schedule() -> None:
    charter = replace(CHARTER, training=replace(CHARTER.training, schedule="linear"))
    spec = following(charter, SPEC)
    assert spec.learning_rate == 1e-3 * (2 / 3)
    require_follows(spec, charter, ONE_RESULT, ROSTER)
    with pytest.raises(CharterError, match="learning rate"):
        require_follows(following(charter, SPEC, learning_rate=1e-3), charter, ONE_RESULT, ROSTER)


def adaptive(bits: int = 8, first_bits: int = 24) -> Charter:
    charter, _ = chartered(make_spec(bits=8))
    return replace(
        charter, travel=replace(charter.travel, clip=ADAPTIVE, clip_norm=10.0, bits=bits, first_bits=first_bits)
    )


def spec_with(charter: Charter, lineage: Lineage, bits: int, reference: ScaleReference, **changes: Any) -> RoundSpec:
    spec = make_spec(bits=8)
    (part,) = spec.parts
    new = part_spec(part.name, part.manifest, bits, reference, spec.chunk_coordinates)
    return following(charter, spec, parts=(new,), clip_norm=lineage.clip_norm(charter), **changes)


def test_clip_norm_and_ring_follow_from_the_results() -> None:
    charter = adaptive()
    lineage = NO_RESULTS.after(make_result(make_spec(bits=8)))
    known = make_part_result().reference
    assert lineage.clip_norm(charter) == pytest.approx(3**0.5 * 1.5)
    require_follows(spec_with(charter, lineage, 8, known), charter, lineage, ROSTER)
    require_follows(
        spec_with(charter, lineage, 32, ScaleReference(0.0, 0, 0)), charter, lineage, ROSTER
    )  # a sum wrapped
    for bits, reference in ((8, ScaleReference(0.1, 3, 3)), (4, known), (8, ScaleReference(0.0, 0, 0)), (24, known)):
        with pytest.raises(CharterError, match="travels in"):
            require_follows(spec_with(charter, lineage, bits, reference), charter, lineage, ROSTER)
    with pytest.raises(CharterError, match="clip norm"):
        require_follows(spec_with(charter, lineage, 8, known).with_terms_hash(clip_norm=9.9), charter, lineage, ROSTER)


def test_before_any_result_the_wider_ring_is_asked_for() -> None:
    charter = adaptive()
    nothing = ScaleReference(0.0, 0, 0)
    first = {"round": 0, "previous_result": b"", "encoding_seed": charter.encoding_seed(0, b"")}
    assert NO_RESULTS.clip_norm(charter) == 10.0
    require_follows(spec_with(charter, NO_RESULTS, 24, nothing, **first), charter, NO_RESULTS, ROSTER)
    with pytest.raises(CharterError, match="travels in 8 bits"):
        require_follows(spec_with(charter, NO_RESULTS, 8, nothing, **first), charter, NO_RESULTS, ROSTER)


def test_parts_that_did_not_open_keep_what_was_known() -> None:
    spec = make_spec()
    first = NO_RESULTS.after(make_result(spec))
    later = make_result(spec, parts=(replace(make_part_result(), part="decoder", norm=7.0),))
    second = first.after(later)
    assert [one.part for one in second.references] == ["decoder", "full"]
    assert second.reference("full") == make_part_result().reference
    assert second.results == 2
    assert {one.part: one.norm for one in second.first_norms}["full"] == first.first_norms[0].norm
    third = second.after(make_result(spec, parts=(replace(make_part_result(), norm=0.5),)))
    assert third.first_norms == second.first_norms
    assert third.newest_norms != second.newest_norms
    assert canonical.decode(Lineage, canonical.encode(third)) == third


# --- draws ------------------------------------------------------------------------------------------------------------


def with_redraws(redraws: int) -> Roster:
    rules = Sharding(3, 0, bytes(32), "a test", redraws=redraws)
    return make_roster(6, sharding=(rules,))


def test_each_result_that_lacks_a_spoiled_sum_moves_on_to_the_next_draw() -> None:
    good = make_part_result()
    spoiled = make_result(SPEC, parts=(good, PartResult.not_opened("x"), PartResult.not_opened("y", spoiled=True)))
    silent = make_result(SPEC, parts=(good, PartResult.not_opened("x")))
    lineage, numbers = NO_RESULTS, []
    for result in (silent, spoiled, silent, spoiled, spoiled):
        lineage = lineage.after(result)
        numbers.append(lineage.draw(with_redraws(2)))
    assert numbers == [0, 1, 1, 2, 0], "after the last draw the first one again"
    assert lineage.draw(with_redraws(0)) == lineage.draw(make_roster(5, 1)) == 0
    assert canonical.decode(Lineage, canonical.encode(lineage)) == lineage


def test_no_draw_is_the_aggregators_choice() -> None:
    roster, lineage = with_redraws(4), replace(ONE_RESULT, spoiled=1)
    require_follows(SPEC.with_terms_hash(draw=1), CHARTER, lineage, roster)
    for wrong in (0, 2):
        with pytest.raises(CharterError, match="draw"):
            require_follows(SPEC.with_terms_hash(draw=wrong), CHARTER, lineage, roster)


def test_what_was_opened_was_not_spoiled() -> None:
    with pytest.raises(ValueError, match="an opened part is not spoiled"):
        make_part_result(spoiled=True)
