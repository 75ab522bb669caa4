"""A real round of real secure aggregation inside an installation, beside its federation and without touching it."""

from fedddpm_aggregator.selftest.running import run_selftest
from fedddpm_aggregator.selftest.steps import Step, Steps

__all__ = ["Step", "Steps", "run_selftest"]
