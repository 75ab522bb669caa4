"""What a coordinator decides about a run, with the defaults, at the command line and in a request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.setting_errors import first_error
from fedddpm_protocol.agreement.clipping import ADAPTIVE
from fedddpm_protocol.agreement.spec import (
    CHUNK_COORDINATES,
    RINGS,
)
from fedddpm_protocol.wire.api import MAX_COUNT, MAX_INT32

RING_CHOICES = ", ".join(map(str, RINGS))
DEFAULT_BITS = 8  # ring of the values, where the coordinator does not choose
DEFAULT_FIRST_BITS = 24  # where nothing is known of their size either
Number = Annotated[int, Field(ge=0, le=MAX_INT32)]


@dataclass(frozen=True)
class RunSettings:
    """What a coordinator decides about a run."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # where they come as JSON

    name: Annotated[str, Field(max_length=64)]
    method: Annotated[str, Field(max_length=16)]
    rounds: Number
    epochs: Number = 1
    max_steps: Number = 0  # 0: no limit
    batch_size: Number = 128
    learning_rate: float = 1e-4
    clip_norm: float = 10.0  # the largest, in any round
    clip: Annotated[str, Field(max_length=16)] = ADAPTIVE  # or FIXED: the same in all rounds
    weighting: Annotated[str, Field(max_length=16)] = "equal"
    weight_cap: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 65535
    min_cohort: Number = 0  # 0: the roster's n_min
    chunk_coordinates: Number = CHUNK_COORDINATES
    bits: Number = DEFAULT_BITS  # ring of the values
    first_bits: Number | None = None  # ring where nothing is known of their size; None: 24, or bits where that is more
    join_s: float = 3600.0
    shares_s: float = 60.0
    masked_s: float = 600.0
    confirm_s: float = 60.0
    unmask_s: float = 120.0

    def require_bounds(self) -> None:
        """OperatorError where a value is none that the database can hold; requests are refused before."""
        try:
            _SETTINGS.validate_python(dataclasses.asdict(self))
        except ValidationError as error:
            raise OperatorError(f"the run cannot be started: {first_error(error, '', '')}") from None


_SETTINGS = TypeAdapter(RunSettings)
