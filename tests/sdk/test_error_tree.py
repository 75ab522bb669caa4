"""The SDK's errors: all drawn, also those that live beside what raises them."""

from __future__ import annotations

from tests.support.error_trees import defined, drawn, parents_of

import fedddpm
from fedddpm import errors


def test_every_error_is_drawn_below_its_parent() -> None:
    assert drawn(errors, errors.FedDDPMError) == parents_of(defined(errors.FedDDPMError, fedddpm))
