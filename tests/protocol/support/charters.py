"""Charters for tests, and specifications that follow from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.charter import CONSTANT, Charter, FirstModel, TrainingRules, Travel
from fedddpm_protocol.agreement.clipping import FIXED
from fedddpm_protocol.agreement.methods import TURNS
from fedddpm_protocol.agreement.spec import RoundSpec


def charter_for(spec: RoundSpec, **changes: Any) -> Charter:
    """The charter that ``spec`` could have been made from, but for its seed."""
    bits = max(part.values.bits for part in spec.parts)
    charter = Charter(
        federation=spec.federation,
        number=1,
        run=spec.run,
        ends=(),
        method=spec.method,
        rounds=spec.rounds,
        architecture=spec.architecture,
        first_model=FirstModel(spec.initial_model_hash, spec.initial_seed, "" if spec.initial_seed else "3 tensors"),
        training=TrainingRules(
            objective="epsilon-huber",
            optimizer="adam",
            learning_rate=spec.learning_rate,
            schedule=CONSTANT,
            epochs=spec.epochs,
            min_steps=1,
            max_steps=spec.max_steps,
            batch_size=spec.batch_size,
            min_images=1,
        ),
        travel=Travel(spec.weighting, spec.weight_cap, FIXED, spec.clip_norm, bits, bits, spec.chunk_coordinates),
        min_cohort=3,
        turns=TURNS if spec.turn else (),
    )
    return replace(charter, **changes)


def following(charter: Charter, spec: RoundSpec, **changes: Any) -> RoundSpec:
    """``spec`` under the charter, as the aggregator would have made it; ``changes`` are its own."""
    seed = charter.encoding_seed(spec.round, spec.previous_result)
    follows = {
        "charter_hash": charter.hash,
        "encoding_seed": seed,
        "recipe": charter.training.recipe,
        "turn": charter.turn_in(spec.round),
        "outer": charter.outer,
        "learning_rate": charter.training.learning_rate_in(spec.round, charter.rounds),
    }
    return spec.with_terms_hash(**{**follows, **changes})


def chartered(spec: RoundSpec | None = None, **changes: Any) -> tuple[Charter, RoundSpec]:
    """A charter with ``changes``, and a specification that follows from it."""
    spec = spec or make_spec()
    charter = charter_for(spec, **changes)
    return charter, following(charter, spec)
