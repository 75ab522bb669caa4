"""The order in which files of tests begin."""

from __future__ import annotations

import pytest

# Files that take longest, longest first, as measured on two cores. Where files are shared out to workers (pytest
# -n --dist loadfile --no-loadscope-reorder) they begin first: one that began last would keep the others waiting.
LONGEST = (
    "tests/sdk/experiment/test_study.py",
    "tests/e2e/test_membership.py",
    "tests/sdk/rounds/test_returns.py",
    "tests/e2e/attacks/test_old_answers.py",
    "tests/e2e/attacks/test_other_terms.py",
    "tests/e2e/outages/test_database_far_away.py",
    "tests/e2e/outages/test_institution_killed.py",
    "tests/adversary/test_inversion.py",
    "tests/packaging/test_wheels.py",
    "tests/e2e/test_examples.py",
    "tests/sdk/rounds/test_parts_in_turn.py",
    "tests/sdk/rounds/guards/test_share_guard.py",
    "tests/e2e/attacks/test_lies.py",
    "tests/e2e/attacks/test_spoilers.py",
    "tests/e2e/attacks/test_drawn_anew.py",
    "tests/aggregator/service/test_suspicion.py",
    "tests/adversary/search/test_search.py",
    "tests/e2e/test_methods.py",
    "tests/benchmarks/test_service_load.py",
    "tests/sdk/training/test_distributed.py",
    "tests/sdk/transport/test_answers_without_end.py",
    "tests/sdk/rounds/test_participation.py",
    "tests/e2e/outages/test_aggregator_away.py",
    "tests/e2e/sites/test_site_as_a_pod.py",
    "tests/e2e/attacks/test_opened_updates.py",
    "tests/sdk/rounds/test_retention.py",
    "tests/e2e/test_ray_reduction.py",
    "tests/e2e/attacks/test_bad_input.py",
)
_PLACES = {file: place for place, file in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order within files; files that are not named above follow as they were found."""
    items.sort(key=lambda item: _PLACES.get(item.nodeid.partition("::")[0], len(LONGEST)))
