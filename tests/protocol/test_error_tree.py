"""The protocol's errors: all drawn, each with a code of its own."""

from __future__ import annotations

from tests.support.error_trees import defined, drawn, parents_of, shared_codes

import fedddpm_protocol
from fedddpm_protocol import errors

KINDS = defined(errors.ProtocolError, fedddpm_protocol)


def test_every_error_is_drawn_below_its_parent() -> None:
    assert drawn(errors, errors.ProtocolError) == parents_of(KINDS)


def test_all_errors_live_in_one_file() -> None:
    assert {kind.__module__ for kind in KINDS.values()} == {errors.__name__}


def test_no_two_errors_share_a_code() -> None:
    assert shared_codes(KINDS) == {}
