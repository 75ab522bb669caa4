"""Variables that Kubernetes sets for services, and that are no settings though they are named like ours.

Next to a service called ``fedddpm-aggregator`` every pod finds ``FEDDDPM_AGGREGATOR_PORT=tcp://10.96.0.7:8750``
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables), unless its
``enableServiceLinks`` is false.
"""

from __future__ import annotations

from collections.abc import Mapping

_SCHEMES = ("tcp://", "udp://", "sctp://")


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that are such links."""
    ours = (name for name in environment if name.startswith("FEDDDPM_AGGREGATOR_") and name.endswith("PORT"))
    return [name for name in ours if environment[name].startswith(_SCHEMES)]
