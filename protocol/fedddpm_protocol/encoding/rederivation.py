"""Following a signed result: its model is derived again from what was opened, and never just believed.

Institutions go from round to round so, and whoever verifies a history goes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedddpm_protocol.agreement.methods import sessions_by_part
from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import NextModel, OpenedPart, check_move, derive_model
from fedddpm_protocol.encoding.outer import step_outward
from fedddpm_protocol.errors import ResultError

_SAME_NORM = 1e-9  # sums of float64 squares may differ by the machine in their last digits


def follow_result(
    spec: RoundSpec,
    result: RoundResult,
    base: Vector,
    opened: Mapping[str, OpenedPart],
    averaged: Vector | None = None,
) -> NextModel:
    """The next base model [coordinates of the base manifest], which is the one that ``result`` names.

    ``opened`` is by session and holds every sum that the result says was opened; that these are the signed ones is for
    the caller to see, by their digests. ``averaged``: with outer momentum, the averaged model of the round before.

    Raises:
        ResultError: an opened sum that clipped updates cannot give, or a norm or a model that is not the signed one.
    """
    following = derive_model(spec, base, opened, averaged)
    for part in result.parts:  # the next round's scale follows from the signed norm
        if part.opened and not math.isclose(following.norms[part.part], part.norm, rel_tol=_SAME_NORM):
            raise ResultError(
                f"the signed norm {part.norm:.6g} of part {part.part!r} is not the {following.norms[part.part]:.6g} of"
                " its opened sum",
                "aggregator",
            )
    _require_signed(spec, result, following, "sums")
    return following


def follow_fetched(
    spec: RoundSpec, result: RoundResult, base: Vector, fetched: Vector, averaged: Vector | None = None
) -> NextModel:
    """What follows where the opened sums are not at hand, and a signed model was ``fetched`` instead of them.

    That is the next base model; with outer momentum it is the averaged model, from which and from the ``averaged`` one
    of the round before the base model follows.

    Raises:
        ResultError: clipped updates cannot have moved a model so far, or another model was signed.
    """
    check_move(spec, result, base, fetched, averaged)
    if not spec.outer.momentum:
        following = NextModel(fetched, None, {})
        _require_signed(spec, result, following, "fetched one")
        return following
    model, mean = base.copy(), (base if averaged is None else averaged).copy()
    opened = sessions_by_part([part.part for part in result.parts if part.opened])
    for part, here in spec.places:
        if part.name in opened:
            model[here] = fetched[here]
        step_outward(spec, model[here], mean[here], opened=part.name in opened)
    following = NextModel(model, mean, {})
    _require_signed(spec, result, following, "averaged models")
    return following


def averaged_hash(spec: RoundSpec, following: NextModel) -> bytes:
    """What a result names the averaged model by; empty without outer momentum."""
    return b"" if following.averaged is None else model_hash(spec.base_manifest, following.averaged)


def _require_signed(spec: RoundSpec, result: RoundResult, following: NextModel, source: str) -> None:
    if model_hash(spec.base_manifest, following.base) != result.model_hash:
        raise ResultError(
            f"the model that follows from the {source} of round {result.round} is not the one the aggregator signed",
            "aggregator",
        )
    if averaged_hash(spec, following) != result.averaged_hash:
        raise ResultError(
            f"the averaged model that follows from the {source} of round {result.round} is not the one the aggregator"
            " signed",
            "aggregator",
        )
