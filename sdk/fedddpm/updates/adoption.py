"""The result of a round into the network: shared parts from the federation, the others from home."""

from __future__ import annotations

from collections.abc import Collection

from fedddpm.model.ema import AverageState, follow
from fedddpm.model.partition import flatten, manifest, unflatten
from fedddpm.model.unet import UNet
from fedddpm.updates.local_update import LocalUpdate, kept_parts
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Vector, coordinates


def adopt_round(
    model: UNet,
    method: Method,
    shared: Vector,
    update: LocalUpdate | None,
    average: AverageState | None = None,
    summed: Collection[str] = (),
) -> AverageState | None:
    """Take the result of a round: put the new ``shared`` parts, and the local parts of ``update``, into ``model``.

    ``model`` holds what the round began with; ``update`` is None where this institution sat it out. With TURN only
    those of ``shared`` are taken that were ``summed``: the others go on as they were trained here.
    Returns the average of the weights that goes with the network now: that of ``update``, or else ``average``, moved
    as the shared weights were moved, namely from where training had left them.

    Raises:
        ModelError: a vector of a wrong length, or one that holds NaN or infinity.
    """
    kept = average
    if update is not None:
        kept = update.average
        if method is not Method.TURN:  # of which the whole trained network is at hand
            replace_parts(model, method.shared_parts, flatten(model, method.shared_parts) + update.delta)
        replace_parts(model, kept_parts(method), update.local)
    before = flatten(model)
    if method is Method.TURN:
        _replace_summed(model, method, shared, summed)
    else:
        replace_parts(model, method.shared_parts, shared)
    return None if kept is None else follow(kept, before, flatten(model))


def _replace_summed(model: UNet, method: Method, shared: Vector, summed: Collection[str]) -> None:
    start = 0
    for name, parts in method.sessions.items():
        end = start + coordinates(manifest(model, parts))
        if name in summed:
            replace_parts(model, parts, shared[start:end])
        start = end


def replace_parts(model: UNet, parts: tuple[str, ...], vector: Vector) -> None:
    """Write a vector over parts of a network."""
    if parts:
        unflatten(model, parts, vector)
