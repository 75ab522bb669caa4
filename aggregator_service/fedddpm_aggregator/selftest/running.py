"""The selftest: five simulated institutions, one of which drops out, and a sum that must be exact."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic_settings import BaseSettings
from pydantic_settings import PydanticBaseSettingsSource as Source

from fedddpm_aggregator.app import KEY_PURPOSE, open_context
from fedddpm_aggregator.errors import HistoryError, SelftestError
from fedddpm_aggregator.security.key_files import write_key
from fedddpm_aggregator.selftest.institution import Institution, ProblemError, Seat, expected_sum, spec_of
from fedddpm_aggregator.selftest.scratch import Storage, own_storage
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.selftest.steps import Steps
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.rosters import initialise, install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import first_model, start_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_aggregator.settings import Settings
from fedddpm_aggregator.vectors.model_files import write_safetensors
from fedddpm_protocol.agreement.charter import sign_charter
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.model_layout import Architecture, TensorSpec, coordinates
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.roster import Member, Roster, sign_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.api import ResultsPage

NAMES = ("a", "b", "c", "d", "e")
PART, RUN = "decoder", "selftest"
WAIT_S = 60.0
_ARCHITECTURE = Architecture("tiny", 8, 1, 8, (1, 2))
_MANIFESTS = {
    "encoder": (TensorSpec("encoder.a", (64,)),),
    "bottleneck": (TensorSpec("bottleneck.a", (64,)),),
    "decoder": (TensorSpec("decoder.a", (100, 90)), TensorSpec("decoder.b", (1000,))),
}
CHUNK = 4096  # coordinates, so that the vector has a few


class _Settings(Settings):
    """Settings of the throwaway server: nothing of the environment, which sets up the real one."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Source, *_others: Source, **_more: Source
    ) -> tuple[Source, ...]:
        """Arguments only."""
        return (init_settings,)


@dataclass(frozen=True)
class Throwaway:
    """A root, a server and members that exist for this test only."""

    settings: Settings
    root_key: SigningKey
    roster: Roster
    identities: dict[str, SigningKey]
    first_model: Path  # theta_0


def run_selftest(database_url: str | None, blobs_url: str | None, steps: Steps) -> None:
    """A whole round over this database and blob store; SelftestError and what commands raise if anything is wrong."""
    with tempfile.TemporaryDirectory(prefix="fedddpm-selftest-") as name:
        folder = Path(name)
        with contextlib.ExitStack() as stack:
            with steps.step("storage") as step:
                storage = stack.enter_context(own_storage(database_url, blobs_url, folder, steps.warn))
                step.result = storage.words
            _run_over(storage, folder, steps)
            with steps.step("tidying up"):
                stack.close()


def _run_over(storage: Storage, folder: Path, steps: Steps) -> None:
    with steps.step("schema, keys, roster, run") as step:
        federation = founded(storage, folder, RunSettings(name=RUN, method="UDEC", rounds=1, chunk_coordinates=CHUNK))
        step.result = f"{len(NAMES)} institutions"
    with contextlib.ExitStack() as stack:
        with steps.step("server"):
            url = stack.enter_context(served_here(federation.settings))
            seats = seats_of(federation, institutions_of(federation, url, stack))
        survivors = _take_part(seats, steps)
        with steps.step("sum") as step:
            coordinates_compared = compare(federation, survivors)
            step.result = f"{coordinates_compared:,} coordinates equal the plain sum"
    with steps.step("verify") as step, opened(federation) as ctx:
        counts = verify_history(ctx, federation.root_key.public_key)
        if counts["results"] != 1:
            raise HistoryError(f"one round was published, but verify found {counts['results']}")
        step.result = f"{counts['audit entries']} audit entries, {counts['results']} result"


def founded(storage: Storage, folder: Path, run: RunSettings, charter_number: int = 1) -> Throwaway:
    """Keys, a roster, and a run in an empty place."""
    settings = _Settings(
        data=folder / "data",
        database_url=storage.database_url,
        blobs=storage.blobs_url,
        port=0,
        page="off",
        metrics="off",
        tick_s=0.1,
    )
    settings.data.mkdir(mode=0o700)
    server, root = SigningKey.generate(), SigningKey.generate()
    identities = {name: SigningKey.generate() for name in NAMES}
    write_key(settings.key_path, server, KEY_PURPOSE)
    members = tuple(Member(name, key.public_key) for name, key in identities.items())
    roster = Roster("selftest", 1, c_max=1, n_min=3, server_public_key=server.public_key, members=members)
    model = folder / "theta_0.safetensors"
    federation = Throwaway(settings, root, roster, identities, model)
    with model.open("wb") as file:
        size = sum(coordinates(manifest) for manifest in _MANIFESTS.values())
        write_safetensors(file, _ARCHITECTURE, _MANIFESTS, np.linspace(-1, 1, size, dtype=np.float32))
    with opened(federation) as ctx:
        initialise(ctx, root.public_key)
        install_roster(ctx, sign_roster(roster, root))
        charter = draft_charter(run, roster, first_model(model), charter_number)
        start_run(ctx, sign_charter(charter, root), OperatorSettings(), model)
    return federation


@contextlib.contextmanager
def opened(federation: Throwaway) -> Iterator[Context]:
    """The database and the keys of the throwaway server, beside it."""
    ctx = open_context(federation.settings)
    try:
        yield ctx
    finally:
        ctx.database.close()


def institutions_of(federation: Throwaway, url: str, stack: contextlib.ExitStack) -> list[Institution]:
    """A connection to the server for every member, closed with ``stack``."""
    institutions = [Institution(url, name, key) for name, key in federation.identities.items()]
    for institution in institutions:
        stack.callback(institution.close)
    return institutions


def seats_of(federation: Throwaway, institutions: Sequence[Institution], past: bytes = b"") -> list[Seat]:
    """Everybody at the table of the attempt that is open, once it is another than that of the specification ``past``.

    SelftestError where the server opens none.
    """
    deadline, state = time.monotonic() + WAIT_S, institutions[0].state()
    while state.spec is None or (spec := spec_of(state, federation.roster)).hash == past:
        if time.monotonic() > deadline:
            raise SelftestError(f"the server opened no round within {WAIT_S:.0f} s")
        state = institutions[0].state(state.version, 2.0)
    return [Seat(one, federation.roster, spec, PART, seed) for seed, one in enumerate(institutions)]


def _take_part(seats: list[Seat], steps: Steps) -> list[Seat]:
    """All steps of the protocol; whoever is in the sum."""
    for name in ("join", "share"):
        with steps.step(name) as step:
            for seat in seats:
                getattr(seat, name)()
            step.result = f"{len(seats)} institutions"
    with steps.step("drop") as step:
        lost, survivors = seats[-1], seats[:-1]
        _start_over(lost)
        step.result = f"1 of {len(seats)} lost its secrets"
    for name in ("upload", "confirm", "unmask"):
        with steps.step(name) as step:
            for seat in survivors:
                getattr(seat, name)()
            step.result = f"{len(survivors)} institutions"
    return survivors


def _start_over(seat: Seat) -> None:
    """As a process that was killed after its shares and started again: the cohort goes on without it."""
    fresh = Seat(seat.institution, seat.roster, seat.spec, seat.session, seed=0)
    try:
        fresh.join(seq=2)
    except ProblemError as problem:
        if problem.code == "phase-over":
            return
        raise
    raise SelftestError("an institution that lost its secrets was let into a closed cohort")


def compare(federation: Throwaway, survivors: Sequence[Seat]) -> int:
    """The published sums are the survivors' integer sums, exactly; how many coordinates were compared. SelftestError"""
    one, part = survivors[0].institution, survivors[0].part
    result = _published(federation, one, survivors[0].spec)
    names = tuple(seat.name for seat in survivors)
    if result.survivors != names:
        raise SelftestError(f"the sum is of {result.survivors}, not of {names}")
    place = f"{survivors[0].spec.run}/{survivors[0].spec.round}"
    words = ring.unpack(
        one.send("GET", f"/v1/results/{place}/opened/{PART}").content, part.values.bits, part.values.coordinates
    )
    if not np.array_equal(words, expected_sum(survivors, part.values)):
        raise SelftestError("the opened sum is not the sum of what the institutions encoded")
    if result.sums != tuple(int(word) for word in expected_sum(survivors, part.weights)):
        raise SelftestError("the opened sum of the weights is not the sum of the institutions' weights")
    return part.values.coordinates + part.weights.coordinates


def _published(federation: Throwaway, one: Institution, spec: RoundSpec) -> PartResult:
    deadline, state = time.monotonic() + WAIT_S, one.state()
    while state.results <= spec.round:
        if time.monotonic() > deadline:
            raise SelftestError(f"the server published no result within {WAIT_S:.0f} s")
        state = one.state(state.version, 2.0)
    page = one.send("GET", f"/v1/results?run={spec.run}&from={spec.round}").content
    (part,) = open_result(ResultsPage.model_validate_json(page).results[0], federation.roster).parts
    return part
