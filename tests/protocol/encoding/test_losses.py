"""Mean losses behind opened sums, of one session and of all that report them."""

from __future__ import annotations

from fedddpm_protocol.agreement.spec import LOSS_UNITS
from fedddpm_protocol.encoding.losses import federation_losses, mean_losses


def sums(before: float, after: float) -> tuple[int, int, int]:
    return (1000, int(before * LOSS_UNITS), int(after * LOSS_UNITS))


def test_the_mean_of_one_sum() -> None:
    assert mean_losses(sums(3.0, 1.5), 3) == (1.0, 0.5)


def test_shards_count_by_their_survivors() -> None:
    opened = [("full.0", sums(4.0, 2.0), 4), ("full.1", sums(4.0, 4.0), 2)]
    assert federation_losses(opened) == (8 / 6, 1.0)
    assert federation_losses([*opened, ("full.2", (), 0)]) == (8 / 6, 1.0)  # was not opened


def test_only_sessions_that_report_losses_count() -> None:
    decoder = ("decoder", sums(3.0, 1.5), 3)
    assert federation_losses([("encoder", sums(0.0, 0.0), 3), ("bottleneck", sums(0.0, 0.0), 6), decoder]) == (1.0, 0.5)
    assert federation_losses([("encoder", sums(0.0, 0.0), 3)]) is None
    assert federation_losses([]) is None
