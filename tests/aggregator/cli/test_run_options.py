"""The settings of a run at the command line: what it asks for, and what arrives in the charter and the database."""

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
from fedddpm_aggregator.security.key_files import OPERATOR_PURPOSE, ROOT_PURPOSE, write_key
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.run_settings import Asked, Number, OperatorSettings, RunSettings
from fedddpm_aggregator.service.rounds.chartered import charter_of
from fedddpm_aggregator.vectors.model_files import read_network
from fedddpm_protocol.agreement.roster import Member, sign_roster
from fedddpm_protocol.agreement.terms import RECIPES

OLGA = identity_of("olga")
OPTIONS = {
    "name": "name of the run [required]",
    "method": "one of FULL, USPLIT, ULATDEC, UDEC, TURN [required]",
    "rounds": "[x>=1] rounds of the run [required]",
    "turns": "with TURN: parts in their order, again and again; by default encoder,bottleneck,decoder",
    "epochs": "[x>=1] local epochs a round [default: 1]",
    "min-steps": "[x>=1] fewest local steps behind an update [default: 4]",
    "max-steps": "[x>=0] most local steps a round; 0: no limit [default: 0]",
    "batch-size": "[x>=1] images in a local step [default: 128]",
    "recipe": "how institutions train: paper or modern; by default modern for the network lean",
    "learning-rate": "of the local optimizer; by default the recipe's: 0.0001 (paper), 0.004 (modern)",
    "schedule": "of the learning rate: constant, linear, over-steps (by round, to 1/rounds of it); by default the "
    "recipe's",
    "outer-learning-rate": "with FULL and TURN: the mean update moves the model by so many times itself, 1 at most "
    "[default: 1.0]",
    "outer-momentum": "with FULL and TURN: Nesterov momentum of the mean updates over the rounds, 0 to 0.9 "
    "[default: 0.0]",
    "min-images": "[x>=1] fewest images that an institution takes part with [default: 32]",
    "clip-norm": "largest L2 norm of one institution's update; by default the recipe's: 10 (paper), 100 (modern)",
    "clip": "adaptive: from round 2 on the clip norm follows the last mean; fixed: --clip-norm it is "
    "[default: adaptive]",
    "weighting": "equal weights for all, or by sample counts: hidden or disclosed ones [default: equal]",
    "weight-cap": "[x>=1] samples that count as a full weight by samples [default: 65535]",
    "min-cohort": "[x>=0] joins to wait for; 0: the roster's n_min [default: 0]",
    "chunk-coordinates": "[x>=8] coordinates in a chunk; a multiple of 4096 fits all [default: 262144]",
    "bits": "ring in which updates travel: 4, 6, 8, 12, 16, 20, 24, 32 bits [default: 8]",
    "first-bits": "ring of the first round, and wherever nothing is known of a part's size; by default 24, with equal "
    "weights the recipe's: 24 (paper), 16 (modern); or --bits where that is more",
}
DURATIONS = {
    "join-s": "seconds for training and joining [default: 3600.0]",
    "shares-s": "seconds for exchanging key shares [default: 60.0]",
    "masked-s": "seconds for uploading [default: 600.0]",
    "confirm-s": "seconds for confirming who uploaded [default: 60.0]",
    "unmask-s": "seconds for the answers that open the sum [default: 120.0]",
    "on-alarm": "when a round did harm, or a mean is very large: tell; or hold, a pause until the run is resumed "
    "[default: tell]",
}
CHOSEN = {  # none of them is a default, and no two are alike
    "name": "run-7",
    "method": "TURN",
    "rounds": 4,
    "turns": "decoder,encoder,decoder,bottleneck",
    "epochs": 2,
    "min_steps": 6,
    "max_steps": 7,
    "batch_size": 5,
    "recipe": "modern",
    "learning_rate": 0.002,
    "schedule": "over-steps",
    "outer_learning_rate": 0.7,
    "outer_momentum": 0.3,
    "min_images": 40,
    "clip_norm": 3.5,
    "clip": "fixed",
    "weighting": "disclosed",
    "weight_cap": 900,
    "min_cohort": 4,
    "chunk_coordinates": 8192,
    "bits": 12,
    "first_bits": 16,
}
LASTING = {
    "join_s": 61.5,
    "shares_s": 62.5,
    "masked_s": 63.5,
    "confirm_s": 64.5,
    "unmask_s": 65.5,
    "on_alarm": "hold",
}


def invoke(command: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert result.exception is None, result.output
    return result.output


def told(help_text: str) -> dict[str, str]:
    """By option: its bounds, words and default, in the order of the help; types are shown as the library likes."""
    lines = re.findall(r"^│ [ *] +--(\S+) +<[a-z \[\]]+> *(.*?) *│$", help_text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in lines}


def options_of(settings: dict[str, object]) -> list[object]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize(
    ("command", "before", "asked"),
    [
        ("federation sign-run", ["root", "roster", "initial-model", "number", "previous", "ends"], OPTIONS),
        ("federation install", ["data", "initial-model", "database-url", "blobs"], DURATIONS),
        ("operator start-run", ["url", "key", "initial-model", "operator"], DURATIONS),
        (
            "federation start-run",
            ["data", "initial-model", "root-key", "ends", "database-url", "blobs"],
            OPTIONS | DURATIONS,
        ),
    ],
)
def test_what_the_command_line_asks_for(command: str, before: list[str], asked: dict[str, str]) -> None:
    shown = told(invoke(app, *command.split(), "--help"))
    assert list(shown) == [*before, *asked, "help"]
    assert {name: shown[name] for name in asked} == asked


def started(federation: Federation) -> tuple[dict[str, object], dict[str, object]]:
    """The settings that the charter of the one run holds, and the durations of its phases."""
    with federation.context() as ctx, ctx.database.read() as db:
        row = db.scalars(select(RunRow)).one()
        charter = charter_of(row)
    assert charter is not None
    training = {**vars(charter.training), "recipe": charter.training.recipe}
    turns = ",".join(part.removeprefix("turn-") for part in charter.turns) or None
    outer = {f"outer_{name}": value for name, value in vars(charter.outer).items()}
    places = [{"name": charter.run, "turns": turns}, outer, vars(charter), training, vars(charter.travel)]
    return (
        {name: next(place[name] for place in places if name in place) for name in CHOSEN},
        {name: getattr(row, name) for name in LASTING},
    )


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_each_option_arrives_in_its_place(new_federation: NewFederation) -> None:
    assert set(CHOSEN) == {field.name for field in dataclasses.fields(RunSettings)}
    assert set(LASTING) == {field.name for field in dataclasses.fields(OperatorSettings)}
    federation = new_federation()
    here = ("--data", federation.settings.data, "--initial-model", federation.write_theta_0())
    invoke(app, "federation", "start-run", *here, *rooted(federation), *options_of(CHOSEN), *options_of(LASTING))
    assert started(federation) == (CHOSEN, LASTING)


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_each_option_arrives_from_root_and_operator(
    new_federation: NewFederation, serve: Serve, tmp_path: Path
) -> None:
    site = serve(new_federation(operators=(Member("olga", OLGA.public_key),)))
    key, charter, roster = tmp_path / "olga.key", tmp_path / "run-7.json", tmp_path / "roster.json"
    write_key(key, OLGA, OPERATOR_PURPOSE, "olga")
    roster.write_text(sign_roster(site.federation.roster, site.federation.root).model_dump_json())
    model = ("--initial-model", site.federation.write_theta_0())
    who = ("--root", rooted(site.federation)[1], "--roster", roster)
    invoke(app, "federation", "sign-run", charter, *who, *model, *options_of(CHOSEN))
    invoke(app, "operator", "start-run", charter, "--url", site.url, "--key", key, *model, *options_of(LASTING))
    assert started(site.federation) == (CHOSEN, LASTING)


def rooted(federation: Federation) -> tuple[str, Path]:
    """The root key in a file."""
    path = federation.folder / "the-root.key"
    if not path.exists():
        write_key(path, federation.root, ROOT_PURPOSE)
    return "--root-key", path


def test_left_out_options_are_the_defaults_of_the_settings(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    here = ("--data", federation.settings.data, "--initial-model", federation.write_theta_0(), *rooted(federation))
    invoke(app, "federation", "start-run", *here, "--name", "run-1", "--method", "udec", "--rounds", "2")
    defaults = dataclasses.asdict(RunSettings("run-1", "UDEC", 2))
    recipe = RECIPES["paper"]  # that of a network that predicts the noise
    settled = {  # what "as the roster, the ring and the recipe say" comes to
        "min_cohort": federation.n_min,
        "first_bits": 24,
        "recipe": "paper",
        "learning_rate": recipe.learning_rate,
        "schedule": recipe.schedules[0],
        "clip_norm": recipe.clip_norm,
    }
    assert started(federation) == ({**defaults, **settled}, dataclasses.asdict(OperatorSettings()))


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


def test_every_duration_has_a_column_of_its_name() -> None:
    assert {field.name for field in dataclasses.fields(OperatorSettings)} <= {
        column.key for column in RunRow.__table__.c
    }


@pytest.mark.parametrize(("weighting", "bits", "first"), [("equal", 8, 16), ("equal", 20, 20), ("hidden", 8, 24)])
def test_the_first_ring_follows_from_recipe_and_weights(tmp_path: Path, weighting: str, bits: int, first: int) -> None:
    """An update of the recipe modern comes near its clip norm, unless weights make it small."""
    federation = Federation(tmp_path)
    settings = RunSettings("run-1", "UDEC", 2, recipe="modern", weighting=weighting, bits=bits)
    charter = draft_charter(settings, federation.roster, read_network(federation.write_theta_0()), 1)
    assert charter.travel.first_bits == first
