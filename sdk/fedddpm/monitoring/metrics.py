"""An institution's vitals as Prometheus metrics, read when somebody scrapes. The one module that needs the extra.

They show this institution's own losses and speed, and whether it takes part right now: nothing that is secret, and
nothing of anybody else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from fedddpm.monitoring.vitals import Activity, LiveVitals, Vitals, Work, sdk_version
from fedddpm_protocol.encoding.alarms import ALARMS

_NAME = "fedddpm_institution"
_GAUGES = {
    "round": ("round", "Round at work, from 0"),
    "attempt": ("attempt", "Attempt at it, from 0"),
    "steps": ("training_steps", "Local steps done in the newest training"),
    "steps_planned": ("training_steps_planned", "Local steps that it shall have"),
    "images_per_s": ("training_images_per_second", "Images trained on a second, while training"),
    "train_loss": ("training_loss", "Loss of the newest batch"),
    "loss_before": ("held_out_loss_before", "Own held-out loss before the newest finished training"),
    "loss_after": ("held_out_loss_after", "Own held-out loss after it"),
    "share": ("own_share", "Share of the own update in the newest round's mean; those of all members add up to 1"),
    "cosine": ("own_cosine", "Cosine between the own update and that mean"),
    "served_at": ("aggregator_last_contact_timestamp_seconds", "When a piece of an answer last came, Unix time"),
    "silent_s": ("silent_seconds", "Since the last sign of life of the work"),
}
_COUNTERS = {
    "attempts_failed": ("attempts_failed", "Attempts that this institution was in and that gave no result"),
    "sums_checked": ("sums_checked", "Published sums of which chunks were opened again, and were right"),
    "sums_not_checked": ("sums_not_checked", "Rounds whose sums the aggregator did not show"),
    "bytes_up": ("sent_bytes", "Bytes of requests to the aggregator"),
    "bytes_down": ("received_bytes", "Bytes of its answers"),
}


def registry_of(vitals: LiveVitals) -> CollectorRegistry:
    """A registry of its own with the metrics of ``vitals`` and of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(VitalsCollector(vitals))
    return registry


class VitalsCollector(Collector):
    """Metrics of one moment; what is not known yet is left out."""

    def __init__(self, vitals: LiveVitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        now = self._vitals.read()
        about = {"version": sdk_version(), "institution": now.member_id, "device": now.device}
        yield InfoMetricFamily(_NAME, "This program and its institution", about)
        yield from _state(now)
        for field, (name, text) in _GAUGES.items():
            value = getattr(now, field)
            if value is not None:
                yield GaugeMetricFamily(f"{_NAME}_{name}", text, value)
        rounds = CounterMetricFamily(f"{_NAME}_rounds_finished", "Rounds with a result", labels=["in_mean"])
        rounds.add_metric(("true",), now.rounds_in_mean)
        rounds.add_metric(("false",), now.rounds_without)
        yield rounds
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"{_NAME}_{name}", text, getattr(now, field))
        alarm = GaugeMetricFamily(f"{_NAME}_alarm", "1 where the newest result rang an alarm", labels=["kind"])
        for kind in ALARMS:
            alarm.add_metric((kind,), int(kind in now.alarms))
        yield alarm
        spent = CounterMetricFamily(f"{_NAME}_seconds", "Time spent on work; the rest is waiting", labels=["work"])
        for work in Work:
            spent.add_metric((work,), now.seconds[work])
        yield spent
        yield from _memory(now.device)


def _state(now: Vitals) -> Iterator[Metric]:
    phase = GaugeMetricFamily(f"{_NAME}_phase", "1 for what the institution is at", labels=["phase"])
    for activity in Activity:
        phase.add_metric((activity,), int(activity is now.activity))
    yield phase
    yield GaugeMetricFamily(f"{_NAME}_aggregator_away", "1 while the aggregator is being waited for", int(now.away))


def _memory(device: str) -> Iterator[Metric]:
    if not device.startswith("cuda"):
        return
    memory = GaugeMetricFamily(f"{_NAME}_device_memory_bytes", "Memory of the device that torch holds", labels=["kind"])
    memory.add_metric(("allocated",), torch.cuda.memory_allocated(device))
    memory.add_metric(("reserved",), torch.cuda.memory_reserved(device))
    memory.add_metric(("most",), torch.cuda.max_memory_allocated(device))
    yield memory
