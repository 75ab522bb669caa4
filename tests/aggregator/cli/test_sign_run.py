"""Signing a run offline: what is shown, how charters are numbered, and what the operator does with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.aggregator.support.federations import Federation, with_metadata
from typer.testing import CliRunner

from fedddpm_aggregator.cli.app import app
from fedddpm_aggregator.security.key_files import ROOT_PURPOSE, write_key
from fedddpm_protocol.agreement.charter import open_charter
from fedddpm_protocol.agreement.roster import sign_roster
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.messages import SignedDocument

RUN = ("--method", "udec", "--rounds", "15", "--learning-rate", "0.002", "--schedule", "linear", "--bits", "32")
WORDS = {
    "run": "run-1, 15 rounds of UDEC",
    "ends": "no other run",
    "training a round": "2 epochs of batches of 16 images; 500 steps at most",
    "least work": "20 steps behind an update, 100 images at an institution",
    "learning rate": "0.002 in the first round, falling evenly to the last (adam, epsilon-huber)",
    "largest update": "L2 norm 3.5, following the last mean",
    "weights": "hidden, 900 samples count in full",
    "smallest cohort": "4 institutions",
}
CHOSEN = [
    *("--epochs", "2", "--batch-size", "16", "--max-steps", "500", "--min-steps", "20", "--min-images", "100"),
    *("--clip-norm", "3.5", "--weighting", "hidden", "--weight-cap", "900", "--min-cohort", "4"),
    *("--chunk-coordinates", "64"),
]


class Desk:
    """Where the root key lies, and beside it an aggregator's folder."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.folder = federation, federation.folder / "desk"
        self.folder.mkdir()
        write_key(self.folder / "root.key", federation.root, ROOT_PURPOSE)
        (self.folder / "roster.json").write_text(sign_roster(federation.roster, federation.root).model_dump_json())
        self.model = federation.write_theta_0()

    def run(self, *arguments: object, fails: bool = False) -> str:
        result = CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "400"})
        assert (result.exception is not None) is fails, result.output
        return str(result.exception) if fails else " ".join(result.output.split())

    def sign(
        self, file: str, *options: object, name: str = "run-1", fails: bool = False, root: str = "root.key"
    ) -> str:
        who = ("--root", self.folder / root, "--roster", self.folder / "roster.json")
        what = ("--name", name, "--initial-model", self.model, *RUN)
        return self.run("federation", "sign-run", self.folder / file, *who, *what, *options, fails=fails)

    def install(self, file: str, *options: object, fails: bool = False) -> str:
        here = ("--data", self.federation.settings.data)
        return self.run("federation", "install", self.folder / file, *here, *options, fails=fails)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(Federation(tmp_path))


def test_it_shows_what_it_signs(desk: Desk) -> None:
    shown = desk.sign("run-1.json", *CHOSEN)
    assert "number 1: no charter of this federation lies in" in shown
    for what, words in WORDS.items():
        assert f"{what} │ {words}" in shown
    assert "found in its weights │ 5 tensors, all finite" in shown
    assert "signed by" in shown
    document = SignedDocument.model_validate_json((desk.folder / "run-1.json").read_text())
    charter = open_charter(document, desk.federation.root.public_key)
    assert (charter.number, charter.training.min_steps, charter.training.min_images) == (1, 20, 100)
    again = desk.run("federation", "charter", "show", desk.folder / "run-1.json")
    assert again in shown
    assert {path.name for path in desk.folder.iterdir()} == {"roster.json", "root.key", "root.pub", "run-1.json"}


def test_a_seed_needs_no_findings(desk: Desk) -> None:
    with_metadata(desk.model, initial_seed="5c" * 32)
    shown = desk.sign("run-1.json")
    assert f"from the public seed {'5c' * 32}" in shown
    assert "found in its weights" not in shown


def test_numbers_only_grow_and_are_never_guessed_in_silence(desk: Desk) -> None:
    desk.sign("a.json", "--number", "4")
    assert "exists; a charter is never changed" in desk.sign("a.json", fails=True)
    assert "must end in .json" in desk.sign("charter", fails=True)
    shown = desk.sign("b.json", "--ends", "run-1", name="run-2")
    assert f"number 5: one above that of {desk.folder / 'a.json'}" in shown
    assert "ends │ run run-1, whatever came of it" in shown
    assert "--number 5 is not above 5, that of" in desk.sign("c.json", "--number", "5", name="run-3", fails=True)
    previous = ("--previous", desk.folder / "b.json")
    elsewhere = "../c.json"
    assert "number 6: one above that of" in desk.sign(elsewhere, *previous, name="run-3")
    assert "ends │ run run-1," in desk.run("federation", "charter", "show", desk.folder / elsewhere)  # still
    write_key(desk.folder / "other.key", SigningKey.generate(), ROOT_PURPOSE)
    assert "not signed by this root key" in desk.sign("d.json", root="other.key", fails=True)
    (desk.folder / "roster.json").rename(desk.folder / "kept.json")
    assert "cannot be read" in desk.sign("d.json", fails=True)
    assert not (desk.folder / "d.json").exists()


def test_a_run_that_cannot_be_is_not_signed(desk: Desk) -> None:
    for options, why in (
        (("--min-cohort", "5"), "the roster has 4 members and 5 must take part"),
        (("--max-steps", "2"), "4 steps at least and 2 at most leave none"),
        (("--schedule", "cosine"), "unknown schedule 'cosine'; known: constant, linear"),
        (("--ends", "run-1"), "a charter does not end its own run"),
        (("--learning-rate", "-1"), "must be positive and finite"),
        (("--recipe", "mine"), "unknown recipe 'mine'; choose one of paper, modern"),
        (("--recipe", "modern", "--schedule", "linear"), "muon-adamw has no schedule 'linear'; known: over-steps"),
    ):
        assert why in desk.sign("x.json", *options, fails=True)
        assert not (desk.folder / "x.json").exists()


def test_a_recipe_brings_its_optimizer_and_schedule(desk: Desk) -> None:
    shown = desk.sign("run-1.json", "--recipe", "modern", "--schedule", "over-steps")
    assert "rising and falling evenly over the steps of the run (muon-adamw, epsilon-huber)" in shown
    document = SignedDocument.model_validate_json((desk.folder / "run-1.json").read_text())
    charter = open_charter(document, desk.federation.root.public_key)
    assert (charter.training.recipe, charter.training.schedule) == ("modern", "over-steps")
    desk.install("roster.json")
    desk.install("run-1.json", "--initial-model", desk.model)


def test_the_operator_installs_what_the_root_signed(desk: Desk) -> None:
    desk.sign("run-1.json")
    assert "version 1 of test is in force: 4 members" in desk.install("roster.json")
    assert "is the charter of run run-1; give the first model" in desk.install("run-1.json", fails=True)
    model = ("--initial-model", desk.model, "--join-s", "7200")
    assert "run run-1 starts: 15 rounds of UDEC (charter 1)" in desk.install("run-1.json", *model)
    assert "run run-1 was started before" in desk.install("run-1.json", *model)
    forged = json.loads((desk.folder / "run-1.json").read_text())
    forged["body"] = json.loads((desk.folder / "roster.json").read_text())["signature"]
    (desk.folder / "junk.json").write_text(json.dumps(forged))
    assert "is neither a signed roster nor a signed charter" in desk.install("junk.json", *model, fails=True)
    assert "is a roster; show it with" in desk.run(
        "federation", "charter", "show", desk.folder / "roster.json", fails=True
    )


def test_a_rehearsal_does_both_where_the_root_key_lies_beside(desk: Desk) -> None:
    data = desk.federation.settings.data
    start = ("federation", "start-run", "--data", data, "--initial-model", desk.model, *RUN, "--name")
    assert "Let the root sign the run where its key is kept (federation sign-run)" in desk.run(*start, "r", fails=True)
    write_key(data.parent / "root.key", desk.federation.root, ROOT_PURPOSE)
    assert "run run-1 starts: 15 rounds of UDEC (charter 1)" in desk.run(*start, "run-1")
    desk.run("federation", "end-run", "--data", data)
    desk.model = desk.federation.write_theta_0(2.0)
    assert "(charter 2)" in desk.run(*start, "run-2")  # it ends run-1 too, for institutions
    stranger = data.parent / "stranger.key"
    write_key(stranger, SigningKey.generate(), ROOT_PURPOSE)
    refusal = desk.run(*start, "run-3", "--root-key", stranger, "--ends", "run-2", fails=True)
    assert "not signed by the pinned root key" in refusal
