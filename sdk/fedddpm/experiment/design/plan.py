"""The runs of a study, and which of them secure aggregation refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedddpm.errors import ConfigError
from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.results import CENTRALISED
from fedddpm_protocol.agreement.methods import Method

Aggregation = Literal["secure", "plain", "none"]
SMALLEST_SUM = 3  # institutions; a sum of two shows each of them the other's update


@dataclass(frozen=True)
class RunPlan:
    """One run: a method, K institutions, a way to share out the images, a network, a ring and a seed."""

    method: str
    institutions: int
    split: str
    network: str
    bits: int  # of the ring in which updates travel; 0: none do
    seed: int
    aggregation: Aggregation

    @property
    def name(self) -> str:
        """Unique in the study, and the name of the run's folder."""
        if self.method == CENTRALISED:
            return f"{CENTRALISED}-{self.network}-s{self.seed}"
        return f"{self.method.lower()}-k{self.institutions}-{self.split}-{self.network}-b{self.bits}-s{self.seed}"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the institutions, in roster order."""
        digits = max(3, len(str(self.institutions)))
        return tuple(f"site-{index + 1:0{digits}d}" for index in range(self.institutions))


def smallest_sum(method: str, institutions: int) -> int:
    """The smallest number of institutions in one sum of the method; with USPLIT each of a pair reports one part."""
    return institutions // 2 if method == Method.USPLIT else institutions


def floor(c_max: int) -> int:
    """The smallest sum that the protocol opens: n_min of the roster."""
    return max(SMALLEST_SUM, c_max + 2)


def plan_runs(settings: StudySettings) -> list[RunPlan]:
    """All runs, centralised ones first (they take one K and one split: all images).

    Raises:
        ConfigError: secure aggregation refuses a run, and nothing allows the plain average.
    """
    plans = list(_combinations(settings))
    refused = [plan for plan in plans if plan.aggregation == "plain"]
    if refused and settings.insecure_plain_average == "never":
        lines = ", ".join(sorted({f"{plan.method} with K = {plan.institutions}" for plan in refused}))
        raise ConfigError(
            f"secure aggregation refuses {lines}: a part would be summed over fewer than {floor(settings.c_max)}"
            " institutions, which hides nobody's update",
            "Choose other --method or --institutions (USPLIT needs at least"
            f" {2 * floor(settings.c_max)}), or add --insecure-plain-average to run these without masks,"
            " for comparison only; every output then says so",
        )
    return plans


def _combinations(settings: StudySettings) -> Iterator[RunPlan]:
    if CENTRALISED in settings.methods:
        for network in settings.networks:
            for seed in settings.seeds:
                yield RunPlan(CENTRALISED, 1, "all", network, 0, seed, "none")
    for network in settings.networks:
        for institutions in settings.institutions:
            for split in settings.splits:
                for method in settings.federated:
                    kind = _aggregation(settings, method, institutions)
                    for bits in settings.bits:
                        for seed in settings.seeds:
                            yield RunPlan(method, institutions, split, network, bits, seed, kind)


def _aggregation(settings: StudySettings, method: str, institutions: int) -> Aggregation:
    """ "plain" where it is asked for, or where the secure sum would be refused."""
    if settings.insecure_plain_average == "always":
        return "plain"
    too_few = smallest_sum(method, institutions) < floor(settings.c_max)
    return "plain" if too_few else "secure"
