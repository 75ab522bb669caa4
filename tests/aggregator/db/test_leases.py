"""Leases: one holder at a time, also while one is given back."""

from __future__ import annotations

import pytest
from tests.aggregator.support.sites import NewFederation

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import LeaseRow


def test_a_lease_is_its_holders_until_it_runs_out(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx, ctx.transaction() as db:
        assert queries.take_lease(db, "sweeper", "a", 100.0, 10.0)
        assert not queries.take_lease(db, "sweeper", "b", 109.0, 10.0)
        assert queries.take_lease(db, "sweeper", "a", 109.0, 10.0), "renewed"
        assert not queries.take_lease(db, "sweeper", "b", 118.0, 10.0)
        assert queries.take_lease(db, "sweeper", "b", 119.0, 10.0)


def test_a_lease_that_is_given_back_while_it_is_taken_is_taken(
    new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding it taken and looking at whose it is, its holder gives it back."""
    real, asked = queries.insert_once, []

    def found_taken_at_first(db: object, row: object, **fields: object) -> bool:
        asked.append(fields["name"])
        return len(asked) > 1 and real(db, row, **fields)  # type: ignore[arg-type]

    with new_federation().context() as ctx, ctx.transaction() as db:
        monkeypatch.setattr(queries, "insert_once", found_taken_at_first)
        assert queries.take_lease(db, "attempt/1", "a", 100.0, 10.0)
        assert asked == ["attempt/1", "attempt/1"]
        assert db.get_one(LeaseRow, "attempt/1").holder == "a"
