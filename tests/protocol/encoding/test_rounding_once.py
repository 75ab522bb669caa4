"""A base model that was answered for is never rounded again with public dither."""

from __future__ import annotations

import pytest
from tests.protocol.support.sessions import make_participants, make_plan, make_roster

from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.spec import SegmentSpec, part_spec
from fedddpm_protocol.errors import SpentError
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.messages import Unmask
from fedddpm_protocol.wire.phases import ClientState

WEIGHTS = SegmentSpec("part.weights", 32, 3, "integers")


@pytest.mark.parametrize("bits", [4, 8, 16, 24, 32])
@pytest.mark.parametrize("rotated", [True, False])
def test_a_spent_base_is_summed_again_in_32_bits_only(bits: int, rotated: bool) -> None:
    """Whatever else the specification calls its encoding: coarse rounding tells of single values in either."""
    roster = make_roster(3)
    segments = part_spec("part", (TensorSpec("w", (64,)),), bits, chunk_coordinates=8).segments
    if not rotated:
        segments = (SegmentSpec("part", bits, 64, "fixed-point"), WEIGHTS)
    plan = make_plan(roster, segments=segments)
    unspent = make_participants(roster, plan)["site-1"]
    unspent.join(1)
    log = SpentLog()
    answer = Unmask(id="site-1", body=b"\x00", signature=b"\x00" * 64)
    log.commit(SpentRecord(plan.base_model_hash, plan.part, roster.ids, b"\x01" * 32, answer, None))
    machine = make_participants(roster, plan, {"site-1": log})["site-1"]
    if bits == 32:
        assert machine.join(2).parse().recorded_u3 == roster.ids
    else:
        with pytest.raises(SpentError, match="32 bits"):
            machine.join(2)
        assert machine.state is ClientState.ABORTED
