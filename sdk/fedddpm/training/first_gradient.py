"""Whether the first gradient of a training is an ordinary one, or so small that Adam passes it on as it is.

Adam's first step is ``lr * g / (|g| + epsilon)``: the sign of a gradient that is above epsilon, and the gradient
itself, with all that it shows of the images, where it is below. New networks have one element in a thousand there,
well trained ones a few in a hundred (``docs/adr/0021``), a network that somebody made for it nearly all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedddpm.errors import PolicyError

_IN_ONE_TENSOR = 0.9  # of its elements: single layers of honest networks have smaller gradients than others
_LEAST_ELEMENTS = 64  # of a tensor that is looked at by itself: shares of fewer say nothing


@torch.no_grad()
def require_ordinary(parameters: Mapping[str, nn.Parameter], epsilon: float, most: float) -> None:
    """PolicyError where more than ``most`` of the gradients' elements that are not zero are below ``epsilon``.

    In one tensor nine tenths may be, whatever ``most`` is. Exact zeros say nothing, in Adam's step as in a sum: what
    honest initialisation switches off, or labels that a batch does not have. The device is waited for once.
    """
    named = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    counts = torch.stack([_counts(gradient, epsilon) for gradient in named.values()]).tolist()
    nonzero, small = (sum(column) for column in zip(*counts, strict=True))
    shares = {name: low / n for name, (n, low) in zip(named, counts, strict=True) if n >= _LEAST_ELEMENTS}
    worst = max(shares, key=shares.__getitem__, default="")
    whole = small / max(nonzero, 1)
    if whole > most or (worst and shares[worst] > _IN_ONE_TENSOR):
        raise PolicyError(
            f"the first gradient on this model is below Adam's epsilon ({epsilon:g}) in {_percent(whole)} of its"
            f" elements, and in {_percent(shares.get(worst, whole))} of those of {worst or 'all tensors'}: a step would"
            f" pass it on as it is, with the images in it, as on a model that somebody made to read them; the policy"
            f" allows {_percent(most)} (max_small_gradients), and {_percent(_IN_ONE_TENSOR)} in one tensor. Nothing was"
            " trained or sent",
            "Stop, and call the federation's coordinator: honest models have a few percent, and far less when new",
        )


def _counts(gradient: Tensor, epsilon: float) -> Tensor:
    """How many elements are not zero, and how many of them are below ``epsilon`` [2]."""
    sizes = gradient.abs()
    nonzero = (sizes > 0).sum()
    return torch.stack((nonzero, nonzero - (sizes >= epsilon).sum()))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
