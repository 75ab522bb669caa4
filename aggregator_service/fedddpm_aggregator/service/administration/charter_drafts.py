"""A run's settings, its first model and the roster as a charter for the root to sign. Offline: needs no server."""

from __future__ import annotations

from collections.abc import Mapping

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.first_models import first_model_of
from fedddpm_aggregator.service.administration.run_settings import DEFAULT_FIRST_BITS, RING_CHOICES, RunSettings
from fedddpm_aggregator.service.rounds.attempts import cannot_run
from fedddpm_aggregator.service.rounds.chartered import Place, round_spec
from fedddpm_aggregator.vectors.model_files import Network
from fedddpm_protocol.agreement.charter import OBJECTIVES, USUAL_RECIPES, Charter, TrainingRules, Travel
from fedddpm_protocol.agreement.clipping import CLIPPINGS
from fedddpm_protocol.agreement.lineage import NO_RESULTS
from fedddpm_protocol.agreement.methods import TURNS, Method
from fedddpm_protocol.agreement.model_layout import HASH_BYTES, Manifest, require_name
from fedddpm_protocol.agreement.rings import WIDEST_BITS, ValuesRing
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import EQUAL, RINGS, ROTATED, PartSpec, rotation_block
from fedddpm_protocol.agreement.terms import RECIPES, OuterOptimizer, Recipe

_BLOCK = 4096  # coordinates that are rotated together, at least, where a part has as many
_SOME_SECONDS = (1.0, 1.0, 1.0, 1.0, 1.0)  # how long phases last is the operator's


def draft_charter(
    settings: RunSettings, roster: Roster, network: Network, number: int, ends: tuple[str, ...] = ()
) -> Charter:
    """What the root signs for a run under this roster; OperatorError says what cannot be and what to do."""
    recipe = _recipe(settings.recipe or USUAL_RECIPES[network.architecture.prediction])
    _check_rings(settings, recipe)
    settings.require_bounds()
    if settings.clip not in CLIPPINGS:
        raise OperatorError(f"unknown clipping {settings.clip!r}; choose one of {', '.join(CLIPPINGS)}")
    if settings.min_cohort and settings.min_cohort < roster.n_min:
        raise OperatorError(f"--min-cohort {settings.min_cohort} is below the roster's n_min {roster.n_min}")
    try:
        require_name("run", settings.name)
        charter = Charter(
            federation=roster.federation,
            number=number,
            run=settings.name,
            ends=tuple(sorted(set(ends))),
            method=_method(settings),
            rounds=settings.rounds,
            architecture=network.architecture,
            first_model=first_model_of(network),
            training=_training(settings, recipe, OBJECTIVES[network.architecture.prediction]),
            travel=_travel(settings, recipe),
            min_cohort=settings.min_cohort or roster.n_min,
            turns=_turns(settings),
            outer=OuterOptimizer(settings.outer_learning_rate, settings.outer_momentum),
        )
    except ValueError as error:
        raise OperatorError(f"the run cannot be signed: {error}") from error
    require_rounds(charter, roster, network.manifests)
    return charter


def require_rounds(charter: Charter, roster: Roster, manifests: Mapping[str, Manifest]) -> None:
    """OperatorError unless this roster can carry the run, in every ring that it may come to use."""
    obstacle = cannot_run(charter, roster)
    if obstacle is not None:
        raise OperatorError(obstacle)
    place = Place(0, bytes(HASH_BYTES), b"")
    try:
        for bits in (WIDEST_BITS, charter.travel.first_bits, charter.travel.bits):
            rings = dict.fromkeys(Method(charter.method).sessions, ValuesRing(bits))
            spec = round_spec(charter, NO_RESULTS, place, roster, manifests, rings, _SOME_SECONDS)
            for part in spec.parts:
                _require_mixing(part, charter.travel.chunk_coordinates)
    except ValueError as error:
        raise OperatorError(f"no round of the run can be made: {error}") from error


def _method(settings: RunSettings) -> Method:
    try:
        return Method(settings.method.upper())
    except ValueError:
        known = ", ".join(Method)
        raise OperatorError(f"unknown method {settings.method!r}; choose one of {known}") from None


def _turns(settings: RunSettings) -> tuple[str, ...]:
    """As sessions are called; each part once where the coordinator names none."""
    if not settings.turns:
        return TURNS if _method(settings) is Method.TURN else ()
    return tuple(f"turn-{part.strip()}" for part in settings.turns.split(","))


def _recipe(name: str) -> Recipe:
    try:
        return RECIPES[name]
    except KeyError:
        raise OperatorError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}") from None


def _training(settings: RunSettings, recipe: Recipe, objective: str) -> TrainingRules:
    return TrainingRules(
        objective=objective,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate if settings.learning_rate is None else settings.learning_rate,
        schedule=settings.schedule or recipe.schedules[0],
        epochs=settings.epochs,
        min_steps=settings.min_steps,
        max_steps=settings.max_steps,
        batch_size=settings.batch_size,
        min_images=settings.min_images,
    )


def _travel(settings: RunSettings, recipe: Recipe) -> Travel:
    return Travel(
        weighting=settings.weighting,
        weight_cap=settings.weight_cap,
        clip=settings.clip,
        clip_norm=recipe.clip_norm if settings.clip_norm is None else settings.clip_norm,
        bits=settings.bits,
        first_bits=_first_bits(settings, recipe),
        chunk_coordinates=settings.chunk_coordinates,
    )


def _first_bits(settings: RunSettings, recipe: Recipe) -> int:
    if settings.first_bits is not None:
        return settings.first_bits
    # Weights by samples may all be a thousandth of a full one, and the sum as much smaller.
    return max(settings.bits, recipe.first_bits if settings.weighting == EQUAL else DEFAULT_FIRST_BITS)


def _check_rings(settings: RunSettings, recipe: Recipe) -> None:
    for option, bits in (("--bits", settings.bits), ("--first-bits", _first_bits(settings, recipe))):
        if bits not in RINGS:
            raise OperatorError(f"{option} {bits} is no ring that values can travel in; choose one of {RING_CHOICES}")
    if _first_bits(settings, recipe) < settings.bits:
        raise OperatorError(
            f"--first-bits {settings.first_bits} is narrower than --bits {settings.bits}, but less is known of the "
            "first sum than of later ones; leave --first-bits out or choose a wider ring"
        )


def _require_mixing(part: PartSpec, chunk_coordinates: int) -> None:
    """A narrow ring counts on blocks in which every coordinate is mixed with many others, within one chunk."""
    if part.values.encoding == ROTATED and part.values.block < min(_BLOCK, rotation_block(part.parameters)):
        raise ValueError(
            f"chunks of {chunk_coordinates} coordinates leave blocks of {part.values.block} to be rotated together, "
            f"too few for a narrow ring; choose a multiple of {_BLOCK} for --chunk-coordinates, or --bits 32"
        )
