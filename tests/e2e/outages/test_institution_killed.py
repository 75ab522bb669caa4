"""SIGKILL of an institution at every moment that matters; the same command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, sitecustomize, wait_until

from fedddpm import LocalPolicyOptions
from fedddpm_protocol.wire.api import JoinReceipt
from fedddpm_protocol.wire.phases import Phase

EVERY_STEP = """
import time
import fedddpm.training.trainer as trainer
defaults = trainer.TrainSettings.__init__.__defaults__
trainer.TrainSettings.__init__.__defaults__ = (*defaults[:5], 1, *defaults[6:])  # a checkpoint at every step
save = trainer.Trainer._save
def save_and_rest(*arguments):
    save(*arguments)
    time.sleep(0.1)
trainer.Trainer._save = save_and_rest
"""


def step_of(checkpoint: Path) -> int:
    """Steps in a training's checkpoint; 0 before the first."""
    try:
        with safe_open(checkpoint, framework="np") as file:
            return int(json.loads(file.metadata()["fedddpm.training"])["step"])
    except FileNotFoundError:
        return 0


def exact(fed: Federation, round_: int, survivors: Sequence[str]) -> None:
    """The round holds exactly these institutions, and everybody has the same published model."""
    fed.check_round(round_, survivors)
    fed.check_models()


def test_in_the_middle_of_an_epoch(new_federation: NewFederation, tmp_path: Path) -> None:
    fed = new_federation()
    fed.start(epochs=12)
    victim, others = fed.members[0], fed.members[1:]
    checkpoint = fed.site(victim) / "state" / "training.safetensors"
    often = sitecustomize(tmp_path / "often", EVERY_STEP)
    fed.join_here(*others, policy=LocalPolicyOptions(max_steps=4))
    fed.join_in(victim, environment=often)
    wait_until(lambda: step_of(checkpoint) > 5, "some steps of training")
    fed.kill(victim)
    reached = step_of(checkpoint)
    assert 5 < reached < 24
    fed.join_in(victim, environment=often)
    wait_until(lambda: step_of(checkpoint) != reached, "the next step")
    assert step_of(checkpoint) > reached
    fed.end()
    exact(fed, 0, fed.members)


def test_after_join_before_the_cohort_closes(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.start()
    victim, late = fed.members[0], fed.members[3]
    hold = fed.proxy(late).hold("POST .*/joins")
    fed.join_here(*fed.members[1:])
    fed.join_in(victim)
    wait_until(lambda: any(victim in line.joined for line in fed.lines()), "the victim's JOIN")
    hold.wait()
    fed.kill(victim)
    update = fed.site(victim) / "state" / "update.safetensors"
    written = update.stat().st_mtime_ns
    fed.proxy(victim)
    fed.join_in(victim)
    wait_until(lambda: fed.proxy(victim).requests("POST .*/joins"), "the second JOIN")
    assert update.stat().st_mtime_ns == written, "the stored update is used again, without training"
    wait_until(lambda: fed.proxy(victim).requests("POST .*/joins")[0].reply, "the receipt")
    assert JoinReceipt.model_validate_json(fed.proxy(victim).requests("POST .*/joins")[0].reply).outcome == "replaced"
    hold.go_on.set()
    fed.end()
    exact(fed, 0, fed.members)


def test_after_join_when_the_cohort_is_closed(new_federation: NewFederation) -> None:
    """Killed as in the demo: the others do not wait for it, and it is back in the next round."""
    fed = new_federation("abcd", c_max=1)
    fed.start(rounds=2, shares_s=60)
    victim, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(victim).hold("GET .*/cohort")
    fed.join_in(victim)
    fed.join_here(*others)
    hold.wait()
    fed.kill(victim)
    fed.join_in(victim)
    hold.go_on.set()
    fed.end()
    fed.check_round(0, others)
    exact(fed, 1, fed.members)
    assert [entry["took_part"] for entry in fed.site_rounds(victim)] == [False, True]


def test_during_upload_others_go_on(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.start(rounds=2, masked_s=60)
    victim, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(victim).hold("PUT .*/chunks/decoder/", skip=3)
    fed.join_in(victim)
    fed.join_here(*others)
    hold.wait()
    fed.kill(victim)
    assert len(fed.proxy(victim).requests("PUT .*/chunks/")) == 4
    fed.join_in(victim)
    hold.go_on.set()
    fed.end()
    fed.check_round(0, others)
    exact(fed, 1, fed.members)


def test_during_upload_when_all_are_needed(new_federation: NewFederation) -> None:
    """The attempt fails at once when the member comes back without secrets; the next takes the stored update."""
    fed = new_federation("abc", c_max=1)
    fed.start(masked_s=60)
    victim, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(victim).hold("POST .*/upload")
    fed.join_in(victim)
    fed.join_here(*others)
    hold.wait()
    stored = {member: (fed.site(member) / "state" / "update.safetensors").stat().st_mtime_ns for member in fed.members}
    fed.kill(victim)
    again = fed.proxy(victim).hold("POST .*/unmask")
    fed.join_in(victim)
    again.wait()
    for member, written in stored.items():
        assert (fed.site(member) / "state" / "update.safetensors").stat().st_mtime_ns == written, member
    again.go_on.set()
    fed.end()
    assert [(line.attempt, line.phase) for line in fed.lines(0)] == [(0, Phase.FAILED), (1, Phase.DONE)]
    exact(fed, 0, fed.members)


@pytest.mark.parametrize("delivered", [False, True], ids=["before-it-arrives", "before-the-acknowledgement"])
def test_between_confirm_and_the_acknowledged_unmask(new_federation: NewFederation, delivered: bool) -> None:
    """The answer is durable before it leaves; the same bytes are sent again, and the sum needs them."""
    fed = new_federation("abc", c_max=1)
    fed.start(unmask_s=60)
    victim, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(victim).hold("POST .*/unmask", after_reply=delivered)
    fed.join_in(victim)
    fed.join_here(*others)
    hold.wait()
    fed.kill(victim)
    assert delivered or fed.lines(0)[-1].phase == Phase.UNMASK
    fed.join_in(victim)
    wait_until(lambda: len(fed.proxy(victim).requests("POST .*/unmask")) == 2, "the answer sent again")
    fed.end()
    first, second = fed.proxy(victim).requests("POST .*/unmask")
    assert first.body == second.body
    assert second.status == 200
    exact(fed, 0, fed.members)
