"""What opened sums tell of the institutions' held-out losses: means, over the survivors of one sum or of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedddpm_protocol.agreement.methods import reports_losses
from fedddpm_protocol.agreement.spec import LOSS_UNITS


def mean_losses(sums: Sequence[int], survivors: int) -> tuple[float, float]:
    """Mean loss before and after training behind opened sums (as SUM_FIELDS) of ``survivors`` institutions."""
    _, before, after = sums
    return before / (survivors * LOSS_UNITS), after / (survivors * LOSS_UNITS)


def federation_losses(opened: Iterable[tuple[str, Sequence[int], int]]) -> tuple[float, float] | None:
    """As :func:`mean_losses` over the sessions of a round that report losses, as if all stood in one sum.

    ``opened``: of each session its name, its opened sums (none where it has none) and the number of its survivors. None
    where no session that reports losses was opened.
    """
    telling = [(sums, survivors) for session, sums, survivors in opened if sums and reports_losses(session)]
    if not telling:
        return None
    totals = [sum(column) for column in zip(*(sums for sums, _ in telling), strict=True)]
    return mean_losses(totals, sum(survivors for _, survivors in telling))
