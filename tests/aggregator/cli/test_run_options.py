"""The settings of a run at the command line: what it asks for, and what arrives in the database."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from sqlalchemy import select
from tests.aggregator.support.federations import Federation, identity_of
from tests.aggregator.support.sites import NewFederation, Serve
from typer.testing import CliRunner

from fedddpm_aggregator.cli.app import app
from fedddpm_aggregator.cli.run_options import with_run_options
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.security.key_files import OPERATOR_PURPOSE, write_key
from fedddpm_aggregator.service.administration.run_settings import Asked, Number, RunSettings
from fedddpm_protocol.agreement.roster import Member

OLGA = identity_of("olga")
OPTIONS = {
    "name": "name of the run [required]",
    "method": "one of FULL, USPLIT, ULATDEC, UDEC [required]",
    "rounds": "[x>=1] rounds of the run [required]",
    "epochs": "[x>=1] local epochs a round [default: 1]",
    "max-steps": "[x>=0] most local steps a round; 0: no limit [default: 0]",
    "batch-size": "[x>=1] images in a local step [default: 128]",
    "learning-rate": "of the local optimizer [default: 0.0001]",
    "clip-norm": "largest L2 norm of one institution's update [default: 10.0]",
    "clip": "adaptive: from round 2 on the clip norm follows the last mean; fixed: --clip-norm it is "
    "[default: adaptive]",
    "weighting": "equal weights for all, or by sample counts: hidden or disclosed ones [default: equal]",
    "weight-cap": "[x>=1] samples that count as a full weight by samples [default: 65535]",
    "min-cohort": "[x>=0] joins to wait for; 0: the roster's n_min [default: 0]",
    "chunk-coordinates": "[x>=8] coordinates in a chunk; a multiple of 4096 fits all [default: 262144]",
    "bits": "ring in which updates travel: 4, 6, 8, 12, 16, 20, 24, 32 bits [default: 8]",
    "first-bits": "ring of the first round, and wherever nothing is known of a part's size; by default 24, or --bits "
    "where that is more",
    "on-alarm": "when a round did harm, or a mean is very large: tell; or hold, a pause until the run is resumed "
    "[default: tell]",
    "join-s": "seconds for training and joining [default: 3600.0]",
    "shares-s": "seconds for exchanging key shares [default: 60.0]",
    "masked-s": "seconds for uploading [default: 600.0]",
    "confirm-s": "seconds for confirming who uploaded [default: 60.0]",
    "unmask-s": "seconds for the answers that open the sum [default: 120.0]",
}
CHOSEN = {  # none of them is a default, and no two are alike
    "name": "run-7",
    "method": "FULL",
    "rounds": 3,
    "epochs": 2,
    "max_steps": 7,
    "batch_size": 5,
    "learning_rate": 0.002,
    "clip_norm": 3.5,
    "clip": "fixed",
    "weighting": "disclosed",
    "weight_cap": 900,
    "min_cohort": 4,
    "chunk_coordinates": 8192,
    "bits": 12,
    "first_bits": 16,
    "on_alarm": "hold",
    "join_s": 61.5,
    "shares_s": 62.5,
    "masked_s": 63.5,
    "confirm_s": 64.5,
    "unmask_s": 65.5,
}


def invoke(command: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert result.exception is None, result.output
    return result.output


def told(help_text: str) -> dict[str, str]:
    """By option: its bounds, words and default, in the order of the help; types are shown as the library likes."""
    lines = re.findall(r"^│ [ *] +--(\S+) +<[a-z ]+> *(.*?) *│$", help_text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in lines}


def options_of(settings: dict[str, object]) -> list[object]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize(
    ("group", "before", "after"),
    [
        ("federation", ["data", "initial-model", "database-url", "blobs"], ["help"]),
        ("operator", ["url", "key", "initial-model", "operator"], ["help"]),
    ],
)
def test_what_the_command_line_asks_for(group: str, before: list[str], after: list[str]) -> None:
    shown = told(invoke(app, group, "start-run", "--help"))
    assert list(shown) == [*before, *OPTIONS, *after]
    assert {name: shown[name] for name in OPTIONS} == OPTIONS


def started(federation: Federation) -> dict[str, object]:
    with federation.context() as ctx, ctx.database.read() as db:
        row = db.scalars(select(RunRow)).one()
        return {name: getattr(row, name) for name in CHOSEN}


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_each_option_arrives_in_its_column(new_federation: NewFederation) -> None:
    assert set(CHOSEN) == {field.name for field in dataclasses.fields(RunSettings)}
    federation = new_federation()
    here = ("--data", federation.settings.data, "--initial-model", federation.write_theta_0())
    invoke(app, "federation", "start-run", *here, *options_of(CHOSEN))
    assert started(federation) == CHOSEN


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_each_option_arrives_from_afar(new_federation: NewFederation, serve: Serve, tmp_path: Path) -> None:
    site = serve(new_federation(operators=(Member("olga", OLGA.public_key),)))
    key = tmp_path / "olga.key"
    write_key(key, OLGA, OPERATOR_PURPOSE, "olga")
    here = ("--url", site.url, "--key", key, "--initial-model", site.federation.write_theta_0())
    invoke(app, "operator", "start-run", *here, *options_of(CHOSEN))
    assert started(site.federation) == CHOSEN


def test_left_out_options_are_the_defaults_of_the_settings(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    here = ("--data", federation.settings.data, "--initial-model", federation.write_theta_0())
    invoke(app, "federation", "start-run", *here, "--name", "run-1", "--method", "udec", "--rounds", "2")
    defaults = dataclasses.asdict(RunSettings("run-1", "UDEC", 2))
    settled = {"min_cohort": federation.n_min, "first_bits": 24}  # what "as the roster and the ring say" comes to
    assert started(federation) == {**defaults, **settled}


def test_a_number_below_the_least_is_refused_before_anything_is_opened() -> None:
    here = ["federation", "start-run", "--data", "nowhere", "--initial-model", "none"]
    refused = CliRunner().invoke(app, [*here, *map(str, options_of({**CHOSEN, "epochs": 0}))])
    assert refused.exit_code == 2
    assert "--epochs" in refused.output


@dataclass(frozen=True)
class LaterSettings(RunSettings):
    """What a later release may ask for."""

    warm_up: Annotated[Number, Asked("steps until the full rate", least=3)] = 5
    note: Annotated[str | None, Asked("for people")] = None


def test_a_new_field_is_an_option_and_arrives_without_another_edit() -> None:
    later, arrived = typer.Typer(), []

    @later.command()
    @with_run_options
    def start(settings: LaterSettings, here: str = "") -> None:
        arrived.append((settings, here))

    shown = told(invoke(later, "--help"))
    assert {name: shown[name] for name in OPTIONS} == OPTIONS
    assert (shown["warm-up"], shown["note"]) == ("[x>=3] steps until the full rate [default: 5]", "for people")
    needed = ("--name", "run-1", "--method", "udec", "--rounds", "2")
    invoke(later, *needed, "--here", "d", "--warm-up", "4", "--note", "new")
    invoke(later, *needed)
    chosen, plain = LaterSettings("run-1", "udec", 2, warm_up=4, note="new"), LaterSettings("run-1", "udec", 2)
    assert arrived == [(chosen, "d"), (plain, "")]


def test_every_setting_has_a_column_of_its_name() -> None:
    assert {field.name for field in dataclasses.fields(RunSettings)} <= {column.key for column in RunRow.__table__.c}
