"""That the aggregator went back is believed only when a second, fresh answer says so as well.

One answer may have been kept by a cache on the way, or put together while a round was published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedddpm.errors import FedDDPMError, PolicyError
from fedddpm_protocol.errors import ProtocolError, SpecError, StaleRosterError

PAUSE_S = 1.0


class WentBackError(PolicyError):
    """The aggregator speaks of something older than what is known here."""


class UnknownGroundError(SpecError):
    """A specification stands on a result that is not known here."""


class RollbackCheck:
    """Lets one such answer pass, and believes the next; ``tell`` hears of the first."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.is_open = False  # whether the next answer has to be a fresh one, and decides

    @contextmanager
    def once(self) -> Iterator[None]:
        """Go on behind the block after a first doubtful answer, after a pause; raise what a second one raises."""
        try:
            yield
        except (WentBackError, UnknownGroundError, StaleRosterError) as error:
            if self.is_open:
                raise
            self.is_open = True
            self.ask_again(error)
        else:
            self.is_open = False

    def ask_again(self, why: FedDDPMError | ProtocolError | str) -> None:
        """Say so, and give the aggregator a moment."""
        happened = why.happened if isinstance(why, FedDDPMError) else str(why)
        self._tell(f"{happened}. That may be an old answer: asking the aggregator again")
        time.sleep(PAUSE_S)
