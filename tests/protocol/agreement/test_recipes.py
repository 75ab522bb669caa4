"""Recipes: which optimizer and schedule go together, and how the learning rate moves within rounds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.protocol.support.charters import charter_for, chartered
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.charter import charter_rows
from fedddpm_protocol.agreement.lineage import require_chartered
from fedddpm_protocol.agreement.model_layout import NOISE, PRECONDITIONED, Architecture
from fedddpm_protocol.agreement.model_metadata import architecture_from_json, architecture_json
from fedddpm_protocol.agreement.terms import LINEAR, MODERN, OVER_STEPS, PAPER, RECIPES
from fedddpm_protocol.errors import CharterError
from fedddpm_protocol.primitives import canonical

CHARTER = charter_for(make_spec())
MODERN_RULES = replace(CHARTER.training, optimizer="muon-adamw", schedule=OVER_STEPS)


def test_the_papers_rate_is_the_same_in_all_steps_of_a_round() -> None:
    assert {RECIPES[PAPER].rate(index, 5, done / 10) for index in range(5) for done in range(10)} == {1.0}


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_the_modern_rate_rises_once_and_falls_evenly_to_nothing(rounds: int) -> None:
    """As one line over the run: what a round ends with is what the next begins with."""
    steps = 40
    rates = [
        MODERN_RULES.learning_rate_in(index, rounds) * RECIPES[MODERN].rate(index, rounds, step / steps)
        for index in range(rounds)
        for step in range(steps)
    ]
    warm = RECIPES[MODERN].warm_up * rounds * steps
    rising, falling = rates[: round(warm)], rates[round(warm) :]
    assert rising == sorted(rising)
    assert rates[0] == 0.0
    assert falling == sorted(falling, reverse=True)
    drops = {round((a - b) / MODERN_RULES.learning_rate, 9) for a, b in pairwise(falling)}
    assert drops == {round(1 / (rounds * steps), 9)}
    assert max(rates) == pytest.approx(MODERN_RULES.learning_rate * (1 - RECIPES[MODERN].warm_up), rel=0.05)


def test_a_charter_names_what_goes_together() -> None:
    modern = replace(CHARTER, training=MODERN_RULES)
    assert (modern.training.recipe, CHARTER.training.recipe) == (MODERN, PAPER)
    words = dict(charter_rows(modern))["learning rate"]
    assert words == "0.001 at most, rising and falling evenly over the steps of the run (muon-adamw, epsilon-huber)"
    with pytest.raises(ValueError, match="adam has no schedule 'over-steps'"):
        replace(CHARTER.training, schedule=OVER_STEPS)
    with pytest.raises(ValueError, match="muon-adamw has no schedule 'linear'"):
        replace(MODERN_RULES, schedule=LINEAR)
    architecture = replace(CHARTER.architecture, prediction=PRECONDITIONED)
    with pytest.raises(ValueError, match="a network that predicts preconditioned is trained by 'edm'"):
        replace(CHARTER, architecture=architecture)
    other = replace(CHARTER, architecture=architecture, training=replace(CHARTER.training, objective="edm"))
    assert dict(charter_rows(other))["network"].endswith("predicts preconditioned")
    with pytest.raises(ValueError, match="unknown prediction"):
        replace(CHARTER.architecture, prediction="velocity")


def test_an_institution_trains_by_the_charters_recipe_alone() -> None:
    charter, spec = chartered(training=MODERN_RULES)
    require_chartered(spec, charter)
    other = spec.with_terms_hash(recipe=PAPER)
    with pytest.raises(CharterError, match="paper as recipe"):
        require_chartered(other, charter)
    assert other.terms.hash != spec.terms.hash, "another recipe is another training"
    with pytest.raises(ValueError, match="unknown recipe"):
        spec.with_terms_hash(recipe="mine")


def test_what_was_signed_before_there_were_recipes_keeps_its_bytes() -> None:
    plain = Architecture("tiny", 16, 1, 16, (1, 2))
    assert canonical.encode(plain) == canonical.encode(replace(plain, prediction=NOISE))
    assert "prediction" not in architecture_json(plain)
    told = replace(plain, prediction=PRECONDITIONED)
    assert architecture_from_json(architecture_json(told)) == told
    assert plain.hash != told.hash
    spec = make_spec()
    assert canonical.encode(spec) == canonical.encode(replace(spec, recipe=PAPER))
    assert PAPER.encode() not in canonical.encode(spec)
