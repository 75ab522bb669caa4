"""What one process counts: requests, refusals, stored bytes, reductions. What the database knows is read elsewhere.

Labels take few values: route templates, methods, statuses, codes of problems. Never a path, a member or a session.
"""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REDUCTION_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
SIGNATURE_CODES = frozenset({"unauthenticated", "clock-skew", "replayed", "not-enrolled", "not-operator"})


class Metrics:
    """Counters of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        Info("fedddpm_aggregator", "This program", registry=registry).info({"version": version("fedddpm-aggregator")})
        self.requests = Counter(
            "fedddpm_http_requests", "Answered requests", ("method", "route", "status"), registry=registry
        )
        self.request_s = Histogram(
            "fedddpm_http_request_seconds",
            "Time to answer a request; those that waited for news are left out",
            ("method", "route"),
            buckets=LATENCY_S,
            registry=registry,
        )
        self.bytes_in = Counter("fedddpm_http_request_bytes", "Bodies of requests", ("route",), registry=registry)
        self.bytes_out = Counter("fedddpm_http_response_bytes", "Bodies of responses", ("route",), registry=registry)
        self.in_flight = Gauge("fedddpm_http_requests_in_flight", "Requests being answered", registry=registry)
        self.long_polls = Gauge("fedddpm_long_polls_waiting", "Requests that wait for news", registry=registry)
        self.problems = Counter("fedddpm_problems", "Problem documents sent", ("code",), registry=registry)
        self.signature_refusals = Counter(
            "fedddpm_signature_refusals", "Requests whose signature was refused", ("code",), registry=registry
        )
        for code in sorted(SIGNATURE_CODES):
            self.signature_refusals.labels(code)
        self.chunk_bytes = Counter("fedddpm_chunk_bytes_stored", "Masked chunks stored", registry=registry)
        self.reduction_s = Histogram(
            "fedddpm_reduction_seconds", "Time to open one sum", buckets=REDUCTION_S, registry=registry
        )
        self.reduced = Counter(
            "fedddpm_reduction_coordinates", "Masked coordinates summed: survivors x coordinates", registry=registry
        )
        self.reduction_speed = Gauge(
            "fedddpm_reduction_coordinates_per_second",
            "Masked coordinates summed a second, last sum",
            registry=registry,
        )
        self.sweeper_lease = Gauge("fedddpm_sweeper_lease_held", "1 where this process sweeps", registry=registry)
        self.draining = Gauge("fedddpm_draining", "1 while the process shuts down", registry=registry)

    def request(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one answered request; ``seconds`` is None for one that waited for news."""
        known = method if method in METHODS else "other"
        self.requests.labels(known, route, str(status)).inc()
        if seconds is not None:
            self.request_s.labels(known, route).observe(seconds)

    def body_bytes(self, route: str, received: int, sent: int) -> None:
        """Count the bodies of one request and its response."""
        self.bytes_in.labels(route).inc(received)
        self.bytes_out.labels(route).inc(sent)

    def problem(self, code: str) -> None:
        """Count one problem document by its code."""
        self.problems.labels(code).inc()
        if code in SIGNATURE_CODES:
            self.signature_refusals.labels(code).inc()

    def reduction(self, coordinates: int, seconds: float) -> None:
        """Count one opened sum of ``coordinates`` masked coordinates over all survivors."""
        self.reduction_s.observe(seconds)
        self.reduced.inc(coordinates)
        self.reduction_speed.set(coordinates / max(seconds, 1e-9))
