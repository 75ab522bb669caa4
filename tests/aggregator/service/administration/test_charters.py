"""Which charters are installed, which are refused, and what becomes of the run before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from tests.aggregator.support.federations import ARCHITECTURE, MANIFESTS, Federation, theta_0, with_metadata

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.first_models import findings, first_model_of
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import end_run, first_model, next_charter, start_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.vectors.model_files import Network
from fedddpm_protocol.agreement.charter import Charter, sign_charter
from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.messages import SignedDocument

SETTINGS = RunSettings("run-1", "UDEC", 2, bits=32, chunk_coordinates=16)
OTHER = replace(SETTINGS, name="run-2")
DURATIONS = OperatorSettings()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def refused(federation: Federation, document: SignedDocument, match: str, model: Path | None = None) -> None:
    with federation.context() as ctx:
        with ctx.database.read() as db:
            before = [run.name for run in db.scalars(select(RunRow)).all()]
        with pytest.raises(OperatorError, match=match):
            start_run(ctx, document, DURATIONS, model or federation.write_theta_0())
        with ctx.database.read() as db:
            assert [run.name for run in db.scalars(select(RunRow)).all()] == before


def changed(document: SignedDocument, root: SigningKey, **changes: object) -> SignedDocument:
    """The same charter with changes, signed by the root too."""
    charter = canonical.decode(Charter, document.body)
    return sign_charter(replace(charter, **changes), root)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prediction", "asked", "got"),
    [
        ("noise", {}, ("paper", "epsilon-huber", "constant", 1e-4, 10.0)),
        ("preconditioned", {}, ("modern", "edm", "over-steps", 4e-3, 100.0)),
        ("preconditioned", {"recipe": "paper"}, ("paper", "edm", "constant", 1e-4, 10.0)),
        ("noise", {"recipe": "modern", "clip_norm": 60.0}, ("modern", "epsilon-huber", "over-steps", 4e-3, 60.0)),
    ],
)
def test_a_recipe_follows_from_the_network_and_other_settings_from_the_recipe(
    federation: Federation, prediction: str, asked: dict[str, object], got: tuple[object, ...]
) -> None:
    network = first_model(federation.write_theta_0())
    network = replace(network, architecture=replace(network.architecture, prediction=prediction))
    charter = draft_charter(replace(SETTINGS, **asked), federation.roster, network, 1)  # type: ignore[arg-type]
    training = charter.training
    made = (training.recipe, training.objective, training.schedule, training.learning_rate, charter.travel.clip_norm)
    assert made == got


def test_charters_that_the_root_did_not_sign(federation: Federation) -> None:
    charter = federation.signed(SETTINGS, federation.write_theta_0())
    refused(federation, SignedDocument(body=charter.body, signature=bytes(64)), "not signed by the pinned root key")
    by_another = sign_charter(canonical.decode(Charter, charter.body), SigningKey.generate())
    refused(federation, by_another, "the charter is not signed by the pinned root key or not valid")
    roster_signature = federation.root.sign("roster", charter.body)
    refused(federation, SignedDocument(body=charter.body, signature=roster_signature), "not signed by the pinned")
    nothing = SignedDocument(body=b"nothing", signature=federation.root.sign("charter", b"nothing"))
    refused(federation, nothing, "or not valid: the signed charter is not valid")


def test_charters_of_something_else(federation: Federation) -> None:
    charter = federation.signed(SETTINGS, federation.write_theta_0())
    north = changed(charter, federation.root, federation="north")
    refused(federation, north, "is one of federation 'north', this is federation 'test'")
    another = federation.write_theta_0(2.0)
    refused(federation, charter, r"holds model [0-9a-f]+, the charter of run 'run-1' begins", another)
    seeded = with_metadata(federation.write_theta_0(), initial_seed="5c" * 32)
    refused(federation, charter, "names another seed or architecture", seeded)
    five = changed(charter, federation.root, min_cohort=5)
    refused(federation, five, "the roster has 4 members and 5 must take part")


def test_numbers_only_grow(federation: Federation) -> None:
    model = federation.write_theta_0()
    first = federation.signed(SETTINGS, model, number=3)
    with federation.context() as ctx:
        charter, is_new = start_run(ctx, first, DURATIONS, model)
        assert (charter.number, is_new) == (3, True)
        assert start_run(ctx, first, DURATIONS, model) == (charter, False)  # the same again
        with pytest.raises(OperatorError, match="has been started with other durations"):
            start_run(ctx, first, OperatorSettings(join_s=1.0), model)
    other = federation.write_theta_0(2.0)
    ending = federation.signed(OTHER, other, number=3, ends=("run-1",))
    refused(federation, ending, "another charter of number 3 is installed, that of run 'run-1'.*--number 4", other)
    older = federation.signed(OTHER, other, number=2, ends=("run-1",))
    refused(federation, older, "charter 2 is older than charter 3, which is installed; charters never go back", other)
    with federation.context() as ctx, ctx.database.read() as db:
        assert [run.status for run in queries.open_runs(db)] == ["running"]  # nothing was ended on the way


def test_one_run_at_a_time_unless_the_next_charter_ends_it(federation: Federation) -> None:
    federation.start_run()
    other = federation.write_theta_0(2.0)
    with federation.context() as ctx, ctx.transaction() as db:
        start_attempt(ctx, db, queries.open_runs(db)[0])
    beside = federation.signed(OTHER, other, number=2)
    refused(federation, beside, "run 'run-1' goes on; .*federation sign-run --ends run-1", other)
    with federation.context() as ctx:
        start_run(ctx, federation.signed(OTHER, other, number=2, ends=("run-1",)), DURATIONS, other)
        with ctx.database.read() as db:
            runs = {run.name: (run.status, run.reason) for run in db.scalars(select(RunRow)).all()}
            attempts = [attempt.status for attempt in db.scalars(select(AttemptRow)).all()]
            told = [(row.action, row.details) for row in audit.all_entries(db)]
        assert runs == {
            "run-1": ("ended", "ended by charter 2, which begins run run-2"),
            "run-2": ("running", None),
        }
        assert attempts == ["failed"]
        assert [action for action, _ in told[-3:]] == ["run ended", "attempt failed", "run started"]
        assert '"number":2' in told[-1][1]
        assert next_charter(ctx)[::2] == (3, ("run-1",))


def test_the_end_of_a_run_is_known_to_institutions(federation: Federation) -> None:
    """They begin another run only where its charter ends one that was cut short."""
    federation.start_run()
    with federation.context() as ctx:
        end_run(ctx)
    other = federation.write_theta_0(2.0)
    refused(
        federation,
        federation.signed(OTHER, other, number=2),
        "run 'run-1' was ended before its last round.*federation sign-run --ends run-1",
        other,
    )
    with federation.context() as ctx:
        assert start_run(ctx, federation.signed(OTHER, other, number=2, ends=("run-1",)), DURATIONS, other)[1]


def test_two_operators_at_once_start_one_run(federation: Federation) -> None:
    """The second finds what the first has done, between its look and its transaction."""
    model = federation.write_theta_0()
    charter = federation.signed(SETTINGS, model)
    with federation.context() as ctx, federation.context() as other:
        outcomes: list[bool] = []

        def overtaken(db: object, **_: object) -> None:
            ctx.database.write = write  # type: ignore[method-assign]
            outcomes.append(start_run(other, charter, DURATIONS, model)[1])

        write = ctx.database.write

        def first_the_other() -> object:
            overtaken(None)
            return write()

        ctx.database.write = first_the_other  # type: ignore[method-assign, assignment]
        outcomes.append(start_run(ctx, charter, DURATIONS, model)[1])
    assert outcomes == [True, False]


def test_findings_name_what_is_unusual_in_given_weights() -> None:
    manifests = {
        "encoder": (TensorSpec("encoder.w", (8, 4)), TensorSpec("encoder.bias", (8,))),
        "bottleneck": (TensorSpec("bottleneck.w", (2, 4)),),
        "decoder": (TensorSpec("decoder.w", (10, 4)), TensorSpec("decoder.last", (1, 4))),
    }
    values = np.ones(32 + 8 + 8 + 40 + 4, np.float32)
    values[4:8] = 0.0  # a dead row of the encoder
    values[48:52] = 1000.0  # a row of the decoder that imprints
    values[-4:] = 1e-8  # the last layer, scaled away
    manifest = tuple(tensor for part in manifests.values() for tensor in part)
    said = findings(manifest, values)
    assert said == (
        "5 tensors, all finite; root mean square of the 4 layers from 1e-08 (decoder.last) over 1 in the middle to 316"
        " (decoder.w); last layer 1e-08 (decoder.last); 1 rows are dead (next to zero): 1 in encoder.w; 1 rows are"
        " blown (over 10 times their layer's median): 1 in decoder.w"
    )
    signed = first_model_of(Network(ARCHITECTURE, manifests, values))
    assert (signed.seed, signed.findings) == (b"", said)
    seeded = first_model_of(Network(ARCHITECTURE, MANIFESTS, theta_0(), b"\x5c" * 32))
    assert (seeded.seed, seeded.findings) == (b"\x5c" * 32, "")


def test_the_first_model_of_a_file_is_that_of_the_rounds(federation: Federation) -> None:
    signed = first_model_of(first_model(federation.write_theta_0()))
    federation.start_run()
    with federation.context() as ctx, ctx.database.read() as db:
        assert queries.open_runs(db)[0].initial_model == signed.model_hash.hex()


def test_a_server_without_a_root_key_installs_nothing(federation: Federation) -> None:
    charter = federation.signed(SETTINGS, federation.write_theta_0())
    with federation.context() as ctx:
        forget_root(ctx)
    refused(federation, charter, "no root key is pinned")


def forget_root(ctx: Context) -> None:
    with ctx.transaction() as db:
        row = queries.federation(db)
        assert row is not None
        row.root_public_key = None
