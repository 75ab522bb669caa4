"""The aggregator's errors: all in one file, all drawn, each with a code of its own."""

from __future__ import annotations

from tests.support.error_trees import defined, drawn, parents_of, shared_codes

import fedddpm_aggregator
import fedddpm_protocol
from fedddpm_aggregator import errors
from fedddpm_protocol.errors import LocalProtocolError, ProtocolError

KINDS = defined(errors.AggregatorError, fedddpm_aggregator)


def test_every_error_is_drawn_below_its_parent() -> None:
    assert drawn(errors, errors.AggregatorError) == parents_of(KINDS)


def test_all_errors_live_in_one_file() -> None:
    assert {kind.__module__ for kind in KINDS.values()} == {errors.__name__}


def test_codes_are_shared_on_purpose_only() -> None:
    assert shared_codes(KINDS) == {
        "error": {"AggregatorError", "PageRefusedError"},  # the latter carries one for each refusal
        "operator": {"OperatorError", "OlderInForceError"},  # for people, both are a command that cannot be done
    }
    answered = {kind.code for kind in defined(ProtocolError, fedddpm_protocol).values() if _goes_out(kind)}
    assert not answered & {kind.code for kind in KINDS.values()}


def _goes_out(kind: type[Exception]) -> bool:
    """Whether the code of this error of the protocol gets into problem documents beside the aggregator's."""
    return not issubclass(kind, LocalProtocolError)
