"""Federated training of a diffusion model, from an institution's side.

    >>> from fedddpm import Client

The names below are loaded when they are first used, so that ``fedddpm keygen`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedddpm.client import Client as Client
    from fedddpm.config import LearningOptions as LearningOptions
    from fedddpm.config import LocalPolicyOptions as LocalPolicyOptions
    from fedddpm.config import MetricsOptions as MetricsOptions
    from fedddpm.config import NetworkOptions as NetworkOptions
    from fedddpm.config import ObserveOptions as ObserveOptions
    from fedddpm.config import SamplesOptions as SamplesOptions
    from fedddpm.errors import FedDDPMError as FedDDPMError
    from fedddpm.rounds.summary import RoundSummary

__all__ = [
    "Client",
    "FedDDPMError",
    "LearningOptions",
    "LocalPolicyOptions",
    "MetricsOptions",
    "NetworkOptions",
    "ObserveOptions",
    "RoundSummary",
    "SamplesOptions",
]

_HOMES = {
    "Client": "fedddpm.client",
    "FedDDPMError": "fedddpm.errors",
    "LearningOptions": "fedddpm.config",
    "LocalPolicyOptions": "fedddpm.config",
    "MetricsOptions": "fedddpm.config",
    "NetworkOptions": "fedddpm.config",
    "ObserveOptions": "fedddpm.config",
    "RoundSummary": "fedddpm.rounds.summary",
    "SamplesOptions": "fedddpm.config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
