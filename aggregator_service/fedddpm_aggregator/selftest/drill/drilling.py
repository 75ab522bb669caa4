"""The drill: every attack on a throwaway federation inside the installation, one after the other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.drill import against_institutions, against_server, spoiling
from fedddpm_aggregator.selftest.drill.against_institutions import Lied
from fedddpm_aggregator.selftest.drill.against_server import Besieged
from fedddpm_aggregator.selftest.drill.attack import Attack, T, Verdict
from fedddpm_aggregator.selftest.drill.lying_table import LyingTable
from fedddpm_aggregator.selftest.institution import Institution, ProblemError, Seat
from fedddpm_aggregator.selftest.leftovers import Warn
from fedddpm_aggregator.selftest.running import CHUNK, PART, Throwaway, founded, institutions_of, seats_of
from fedddpm_aggregator.selftest.scratch import own_storage
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.service.administration.run_settings import RunSettings
from fedddpm_protocol.agreement.charter import open_charter
from fedddpm_protocol.errors import ProtocolError

# More rounds than there are attacks that end one, and the ring in which a base model may be summed again.
RUN = RunSettings(name="drill", method="UDEC", rounds=100, bits=32, chunk_coordinates=CHUNK)


ON_SERVER = (*against_server.ATTACKS, *spoiling.ATTACKS)
NAMES = (*(lie.name for lie in against_institutions.ATTACKS), *(attempt.name for attempt in ON_SERVER))


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    attack: str
    tried: str
    noticed: str
    leaked: str  # empty: nothing


def run_drill(
    database_url: str | None,
    blobs_url: str | None,
    warn: Warn,
    on_outcome: Callable[[Outcome], object],
    only: Collection[str] = (),
) -> None:
    """Play all attacks (or those of these names) over this database and blob store.

    ``on_outcome`` hears of each as soon as it is over; ``warn`` of what an earlier drill left behind.

    Raises:
        SelftestError: an unknown name, storage that cannot be used, or an honest sum that is refused.
    """
    unknown = set(only) - set(NAMES)
    if unknown:
        raise SelftestError(f"no attack is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedddpm-drill-")))
        storage = stack.enter_context(own_storage(database_url, blobs_url, folder, warn))
        federation = founded(storage, folder, RUN, charter_number=2)
        url = stack.enter_context(served_here(federation.settings))
        institutions = institutions_of(federation, url, stack)
        lied = _lied(federation, institutions)
        _honest(lied)
        besieged = Besieged(federation, institutions, url)
        for lie in against_institutions.ATTACKS:
            if not only or lie.name in only:
                on_outcome(_played(lie, lied))
        for attempt in ON_SERVER:
            if not only or attempt.name in only:
                on_outcome(_played(attempt, besieged))


def _lied(federation: Throwaway, institutions: list[Institution]) -> Lied:
    """What a liar has, from the specification that the server signed for the first attempt."""
    spec = seats_of(federation, institutions)[0].spec
    state = institutions[0].state()
    document = state.spec
    if document is None or state.charter is None:
        raise SelftestError("the server offers no round with a charter")

    def seats(**machine: object) -> list[Seat]:
        return [Seat(one, federation.roster, spec, PART, seed, **machine) for seed, one in enumerate(institutions)]

    charter = open_charter(state.charter, federation.root_key.public_key)
    return Lied(federation.root_key, federation.roster, charter, document, spec, seats)


def _honest(lied: Lied) -> None:
    """Without a lie a sum is answered for by everybody, or the verdicts below would mean nothing; SelftestError."""
    table = LyingTable(lied.seats())
    try:
        table.join()
        table.share()
        table.mask()
        table.confirm()
        table.unmask(lied.logs())
    except ProtocolError as error:
        raise SelftestError(f"an honest sum is refused: {error}") from error


def _played(attack: Attack[T], on: T) -> Outcome:
    """What came of one attack; one that could not be tried counts as a leak, since nobody knows."""
    try:
        verdict = attack.play(on)
    except (ProtocolError, ProblemError, SelftestError) as error:
        verdict = Verdict("", f"unknown, because the attack could not be tried: {error}")
    words = (" ".join(text.split()) for text in (verdict.noticed, verdict.leaked))
    return Outcome(attack.name, attack.tried, *words)
