"""A lying aggregator wants the images: one step on one image of everybody, on weights that it made, by real clients.

It lays the trap in the first model, or plants it after an honest round by a false sum. With every defence switched off
it recovers all images by name out of one secure sum. Each defence on its own leaves it with nothing: the round is
refused, or what it finds is no more like the images than unrelated ones are.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.attack.scenario import REPEATS, SOLVES, Scenario
from tests.adversary.conftest import NewLyingFederation
from tests.adversary.support.defences import AGAINST_PLANTED, AT_ONCE, SECRET_DRAWS, Defence, all_but
from tests.adversary.support.inversion import PlantedTrap, Reached, Trap, few_images

from fedddpm import LocalPolicyOptions
from fedddpm.errors import FedDDPMError

CLIP_NORM = 2.0  # of which the planted trap needs a quarter
RECOVERED, CHANCE = 0.9, 0.45  # correlation by name; of three images of 64 unrelated pixels, none comes near the second


def attacked(
    new: NewLyingFederation, policy: LocalPolicyOptions, kind: type[Trap] = Trap, adversary: Scenario = REPEATS
) -> tuple[Trap, Reached | FedDDPMError]:
    """What the adversary reaches, or the error with which an institution refused to send what it waits for."""
    fed = new()
    few_images(fed, each=1)
    fed.begin("FULL", rounds=kind.rounds, bits=32, clip_norm=CLIP_NORM)
    trap = kind(fed, each=1)
    trap.lay()
    fed.serve()
    fed.join_here(rounds=kind.rounds, policy=policy)
    for member in fed.members:
        fed.here[member].join(90)
        if isinstance(fed.failures.get(member), FedDDPMError):
            assert len(fed.opened) < kind.rounds, "refused, when the sum was open already"
            return trap, fed.failures[member]
    fed.end()
    return trap, trap.spring(adversary)


def test_without_defences_every_image_is_recovered_by_name(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reached = attacked(new_lying_federation, all_but(None, monkeypatch))
    assert isinstance(reached, Reached), reached
    assert reached.score.worst_by_name > RECOVERED
    assert reached.chance.by_name < 0.1


@pytest.mark.parametrize("on", AT_ONCE, ids=lambda defence: defence.name)
def test_each_defence_alone_leaves_nothing(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch, on: Defence
) -> None:
    _, reached = attacked(new_lying_federation, all_but(on, monkeypatch))
    require_nothing(on, reached)


def require_nothing(on: Defence, reached: Reached | FedDDPMError) -> None:
    if on.said:
        assert isinstance(reached, FedDDPMError), "it refuses"
        assert on.said in str(reached)
    else:
        assert isinstance(reached, Reached), reached
        assert reached.score.by_name < CHANCE
        assert reached.score.best_match < CHANCE


@pytest.mark.soak  # half a minute each
def test_a_false_sum_plants_the_trap_after_an_honest_round(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, reached = attacked(new_lying_federation, all_but(None, monkeypatch), PlantedTrap)
    assert isinstance(reached, Reached), reached
    assert reached.score.worst_by_name > RECOVERED
    assert np.linalg.norm(trap.moved) < CLIP_NORM / 3


@pytest.mark.soak
@pytest.mark.parametrize("on", AGAINST_PLANTED, ids=lambda defence: defence.name)
def test_each_defence_alone_leaves_nothing_of_the_planted_trap(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch, on: Defence
) -> None:
    _, reached = attacked(new_lying_federation, all_but(on, monkeypatch), PlantedTrap)
    require_nothing(on, reached)


@pytest.mark.soak  # a minute of solving, for what secret draws alone do not stop
def test_secret_draws_alone_do_not_stop_who_solves_for_them(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reached = attacked(new_lying_federation, all_but(SECRET_DRAWS, monkeypatch), adversary=SOLVES)
    assert isinstance(reached, Reached), reached
    assert reached.score.best_match > 2 * reached.chance.best_match
