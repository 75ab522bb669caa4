"""The order of a session's phases, which both sides and the operator's page go by."""

from __future__ import annotations

import pytest

from fedddpm_protocol.wire.phases import NEXT_PHASE, PHASES, TERMINAL, Phase, has_reached, place_of


def test_every_phase_has_its_place() -> None:
    assert [str(phase) for phase in PHASES] == ["join", "shares", "masked", "confirm", "unmask", "opening", "done"]
    assert {*PHASES, Phase.FAILED} == {*Phase}
    assert sorted(Phase, key=place_of) == [*PHASES, Phase.FAILED]
    assert set(PHASES[:-1]) == set(NEXT_PHASE) == {*Phase} - TERMINAL


def test_each_phase_leads_to_the_one_after_it() -> None:
    way = [Phase.JOIN]
    while way[-1] not in TERMINAL:
        way.append(NEXT_PHASE[way[-1]])
    assert tuple(way) == PHASES


@pytest.mark.parametrize("phase", [*Phase])
def test_a_session_reached_what_lies_behind_it(phase: Phase) -> None:
    behind = {other for other in Phase if has_reached(phase, other)}
    assert behind == ({*Phase} if phase is Phase.FAILED else set(PHASES[: PHASES.index(phase) + 1]))
