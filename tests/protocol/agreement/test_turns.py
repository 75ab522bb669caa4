"""Parts in turn: the charter names whose turn it is, nobody else does, and no part is left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.support.charters import chartered, following
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_part_result, make_result, make_spec

from fedddpm_protocol.agreement.charter import Charter, charter_rows
from fedddpm_protocol.agreement.clipping import ADAPTIVE
from fedddpm_protocol.agreement.lineage import NO_RESULTS, PartReference, require_follows
from fedddpm_protocol.agreement.methods import TURNS, Method, reports_losses, stretch
from fedddpm_protocol.agreement.shards import sessions_of
from fedddpm_protocol.agreement.spec import ScaleReference
from fedddpm_protocol.errors import CharterError, SpecError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.cohort import session_plan

ENCODER, BOTTLENECK, DECODER = TURNS
ROSTER = make_roster(5, 1)
UNEVEN = (DECODER, ENCODER, DECODER, BOTTLENECK)


def in_turn(**changes: Any) -> Charter:
    return chartered(make_spec(scheme=Method.TURN), **{"turns": TURNS, **changes})[0]


def test_turns_follow_each_other_from_the_start_again() -> None:
    charter = in_turn(turns=UNEVEN, rounds=9)
    assert [charter.turn_in(number) for number in range(9)] == [*UNEVEN, *UNEVEN, DECODER]
    assert chartered()[0].turn_in(3) == ""
    shown = dict(charter_rows(charter))["turns"]
    assert shown == "turn-decoder, turn-encoder, turn-decoder, turn-bottleneck, and again"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"turns": (ENCODER, DECODER)}, "never the turn of turn-bottleneck, so no whole model would come of them"),
        ({"turns": ()}, "never the turn of turn-encoder, turn-bottleneck, turn-decoder"),
        ({"rounds": 2}, "in 2 rounds it is never the turn of turn-decoder"),
        ({"turns": (*TURNS, "decoder")}, "unknown turn 'decoder'; known: turn-encoder"),
        ({"turns": TURNS * 22}, "66 turns are more than 64"),
        ({"turns": (DECODER, *TURNS), "rounds": 4}, "turn-decoder waits 1 to 3 rounds for its turn"),
    ],
)
def test_turns_that_leave_a_part_out_are_no_charter(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        in_turn(**changes)


def test_other_methods_have_no_turns() -> None:
    with pytest.raises(ValueError, match="UDEC has no turns"):
        chartered(make_spec(scheme=Method.UDEC), turns=TURNS)


def test_charters_without_turns_keep_their_bytes() -> None:
    assert len(canonical.unlp(canonical.encode(in_turn()))) == 1 + len(canonical.unlp(canonical.encode(chartered()[0])))


@pytest.mark.parametrize("wrong", [BOTTLENECK, DECODER])
def test_whose_turn_it_is_is_not_the_aggregators_choice(wrong: str) -> None:
    charter, spec = chartered(make_spec(scheme=Method.TURN), turns=(BOTTLENECK, ENCODER, DECODER))
    lineage = replace(NO_RESULTS, results=1)  # the second round
    require_follows(spec, charter, lineage, ROSTER)
    with pytest.raises(CharterError, match="turn"):
        require_follows(following(charter, spec, turn=wrong), charter, lineage, ROSTER)


@pytest.mark.parametrize(("method", "turn"), [(Method.TURN, ""), (Method.TURN, "decoder"), (Method.UDEC, DECODER)])
def test_a_round_has_a_turn_with_turn_alone(method: Method, turn: str) -> None:
    with pytest.raises(ValueError, match="is no part whose turn it can be"):
        make_spec(scheme=method, turn=turn)


@pytest.mark.parametrize("turn", TURNS)
def test_one_part_is_summed_and_its_losses_with_it(turn: str) -> None:
    spec = make_spec(scheme=Method.TURN, turn=turn)
    assert spec.summed == sessions_of(Method.TURN, ROSTER, turn) == (turn,)
    assert reports_losses(turn)
    assert session_plan(spec, ROSTER, turn).reporters == ROSTER.ids
    for other in set(TURNS) - {turn}:
        with pytest.raises(SpecError, match="has no session"):
            session_plan(spec, ROSTER, other)


def test_a_part_that_waited_longer_moves_further() -> None:
    def found(part: str, turns: tuple[str, ...] = TURNS) -> list[float]:
        return [stretch(turns, part, number) for number in range(9)]

    assert found(ENCODER) == [1, 1, 1, 3, 1, 1, 1, 1, 1], "once after one round, then after three each time"
    assert found(BOTTLENECK) == [1, 1, 1, 1, 1.5, 1, 1, 1, 1]
    assert found(DECODER) == [1] * 9
    assert found(DECODER, UNEVEN) == [1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert found("decoder", ()) == [1] * 9
    lineage = replace(NO_RESULTS, results=3, references=(PartReference(ENCODER, 0.5, 3, 9),))
    assert lineage.reference(ENCODER, TURNS) == ScaleReference(1.5, 3, 9)
    assert replace(lineage, results=4).reference(ENCODER, TURNS) == ScaleReference(0.5, 3, 9)


def test_a_clip_norm_follows_the_part_whose_turn_it_is() -> None:
    """Another part's mean says nothing of it, and its own one how far it came in the rounds that it waited."""
    charter = in_turn(rounds=9)
    charter = replace(charter, travel=replace(charter.travel, clip=ADAPTIVE, clip_norm=10.0))
    lineage, found = NO_RESULTS, []
    for number in range(9):
        found.append(lineage.clip_norm(charter))
        part = replace(make_part_result(), part=charter.turn_in(number), norm=1.0)
        lineage = lineage.after(make_result(make_spec(), parts=(part,)))
    own = math.sqrt(3)  # what three at right angles had, behind a mean of norm 1
    assert found == pytest.approx([10, 10, 10, 3 * own, 1.5 * own, own, own, own, own])
