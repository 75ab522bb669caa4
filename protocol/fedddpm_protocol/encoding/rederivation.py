"""Following a signed result: its model is derived again from what was opened, and never just believed.

Institutions go from round to round so, and whoever verifies a history goes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart, derive_model
from fedddpm_protocol.errors import ResultError

_SAME_NORM = 1e-9  # sums of float64 squares may differ by the machine in their last digits


def follow_result(spec: RoundSpec, result: RoundResult, base: Vector, opened: Mapping[str, OpenedPart]) -> Vector:
    """The next base model [coordinates of the base manifest], which is the one that ``result`` names.

    ``opened`` is by session and holds every sum that the result says was opened; that these are the signed ones is for
    the caller to see, by their digests.

    Raises:
        ResultError: an opened sum that clipped updates cannot give, or a norm or a model that is not the signed one.
    """
    vector, norms = derive_model(spec, base, opened)
    for part in result.parts:  # the next round's scale follows from the signed norm
        if part.opened and not math.isclose(norms[part.part], part.norm, rel_tol=_SAME_NORM):
            raise ResultError(
                f"the signed norm {part.norm:.6g} of part {part.part!r} is not the {norms[part.part]:.6g} of its"
                " opened sum",
                "aggregator",
            )
    if model_hash(spec.base_manifest, vector) != result.model_hash:
        raise ResultError(
            f"the model that follows from the sums of round {result.round} is not the one the aggregator signed",
            "aggregator",
        )
    return vector
