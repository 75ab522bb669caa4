"""What a coordinator decides about a run, which the root signs, and what the operator does: the two lists of settings.

Options of the command line follow from them by name, the run's charter from the one, columns and an operator's request
from the other: a new setting of a run is a field here and a place in the charter. Bounds of the fields are what the
database can hold; what no round can have is refused when the run is signed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.setting_errors import first_error
from fedddpm_aggregator.service.alarms import ON_ALARM, TELL
from fedddpm_aggregator.service.rounds.chartered import Durations
from fedddpm_protocol.agreement.charter import SCHEDULES
from fedddpm_protocol.agreement.clipping import ADAPTIVE
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.spec import CHUNK_COORDINATES, EQUAL, RINGS
from fedddpm_protocol.agreement.terms import MODERN, MOST_MOMENTUM, PLAIN_MEAN, RECIPES
from fedddpm_protocol.wire.api import MAX_COUNT, MAX_INT32

RING_CHOICES = ", ".join(map(str, RINGS))
DEFAULT_BITS = 8  # ring of the values, where the coordinator does not choose
DEFAULT_FIRST_BITS = 24  # where nothing is known of their size either


@dataclass(frozen=True)
class Asked:
    """How the command line asks for a setting: in which words, and for which number at least."""

    help: str
    least: int | None = None


def _of_each(field: str) -> str:
    """The recipes' values of a field, in words."""
    return ", ".join(f"{getattr(recipe, field):g} ({name})" for name, recipe in RECIPES.items())


Number = Annotated[int, Field(ge=0, le=MAX_INT32)]
Word = Annotated[str, Field(max_length=16)]


@dataclass(frozen=True)
class RunSettings:
    """What a coordinator decides about a run: all of it stands in the charter."""

    name: Annotated[str, Field(max_length=64), Asked("name of the run")]
    method: Annotated[Word, Asked(f"one of {', '.join(Method)}")]
    rounds: Annotated[Number, Asked("rounds of the run", least=1)]
    turns: Annotated[
        str | None,
        Field(max_length=1000),
        Asked(f"with TURN: parts in their order, again and again; by default {','.join(MODEL_PARTS)}"),
    ] = None
    epochs: Annotated[Number, Asked("local epochs a round", least=1)] = 1
    min_steps: Annotated[Number, Asked("fewest local steps behind an update", least=1)] = 4
    max_steps: Annotated[Number, Asked("most local steps a round; 0: no limit", least=0)] = 0
    batch_size: Annotated[Number, Asked("images in a local step", least=1)] = 128
    recipe: Annotated[
        Word | None, Asked(f"how institutions train: {' or '.join(RECIPES)}; by default {MODERN} for the network lean")
    ] = None
    learning_rate: Annotated[
        float | None, Asked(f"of the local optimizer; by default the recipe's: {_of_each('learning_rate')}")
    ] = None
    schedule: Annotated[
        Word | None,
        Asked(f"of the learning rate: {', '.join(SCHEDULES)} (by round, to 1/rounds of it); by default the recipe's"),
    ] = None
    outer_learning_rate: Annotated[
        float, Asked("with FULL and TURN: the mean update moves the model by so many times itself, 1 at most")
    ] = PLAIN_MEAN.learning_rate
    outer_momentum: Annotated[
        float,
        Asked(f"with FULL and TURN: Nesterov momentum of the mean updates over the rounds, 0 to {MOST_MOMENTUM:g}"),
    ] = PLAIN_MEAN.momentum
    min_images: Annotated[Number, Asked("fewest images that an institution takes part with", least=1)] = 32
    clip_norm: Annotated[
        float | None,
        Asked(f"largest L2 norm of one institution's update; by default the recipe's: {_of_each('clip_norm')}"),
    ] = None
    clip: Annotated[
        Word, Asked("adaptive: from round 2 on the clip norm follows the last mean; fixed: --clip-norm it is")
    ] = ADAPTIVE
    weighting: Annotated[Word, Asked("equal weights for all, or by sample counts: hidden or disclosed ones")] = EQUAL
    weight_cap: Annotated[
        int, Field(ge=0, le=MAX_COUNT), Asked("samples that count as a full weight by samples", least=1)
    ] = 65535
    min_cohort: Annotated[Number, Asked("joins to wait for; 0: the roster's n_min", least=0)] = 0
    chunk_coordinates: Annotated[Number, Asked("coordinates in a chunk; a multiple of 4096 fits all", least=8)] = (
        CHUNK_COORDINATES
    )
    bits: Annotated[Number, Asked(f"ring in which updates travel: {RING_CHOICES} bits")] = DEFAULT_BITS
    first_bits: Annotated[
        Number | None,
        Asked(
            "ring of the first round, and wherever nothing is known of a part's size; "
            f"by default {DEFAULT_FIRST_BITS}, with equal weights the recipe's: {_of_each('first_bits')}; or --bits"
            " where that is more"
        ),
    ] = None

    def require_bounds(self) -> None:
        """OperatorError where a value is none that the database can hold."""
        _require_bounds(_SETTINGS, self, "the run cannot be signed")


@dataclass(frozen=True)
class OperatorSettings:
    """What the operator decides when a run is installed: it says nothing of the training."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # where they come as JSON

    join_s: Annotated[float, Asked("seconds for training and joining")] = 3600.0
    shares_s: Annotated[float, Asked("seconds for exchanging key shares")] = 60.0
    masked_s: Annotated[float, Asked("seconds for uploading")] = 600.0
    confirm_s: Annotated[float, Asked("seconds for confirming who uploaded")] = 60.0
    unmask_s: Annotated[float, Asked("seconds for the answers that open the sum")] = 120.0
    on_alarm: Annotated[
        Word, Asked("when a round did harm, or a mean is very large: tell; or hold, a pause until the run is resumed")
    ] = TELL

    def require_bounds(self) -> None:
        """OperatorError where a phase would last no time, or for ever."""
        _require_bounds(_DURATIONS, self, "the run cannot be started")
        if min(self.seconds) <= 0 or not math.isfinite(sum(self.seconds)):
            raise OperatorError("the run cannot be started: durations must be positive and finite")
        if self.on_alarm not in ON_ALARM:
            raise OperatorError(f"unknown --on-alarm {self.on_alarm!r}; choose one of {', '.join(ON_ALARM)}")

    @property
    def seconds(self) -> Durations:
        """As a specification has them."""
        return (self.join_s, self.shares_s, self.masked_s, self.confirm_s, self.unmask_s)


_SETTINGS, _DURATIONS = TypeAdapter(RunSettings), TypeAdapter(OperatorSettings)


def _require_bounds(kind: TypeAdapter[Any], settings: RunSettings | OperatorSettings, otherwise: str) -> None:
    try:
        kind.validate_python(dataclasses.asdict(settings))
    except ValidationError as error:
        raise OperatorError(f"{otherwise}: {first_error(error, '', '')}") from None
