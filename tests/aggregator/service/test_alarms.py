"""What the aggregator does when an alarm rings: it says so everywhere, and holds a run that asked for it."""

from __future__ import annotations

import json

import httpx
import pytest
from sqlalchemy import select
from tests.aggregator.dashboard.pages import page_text, seats_in
from tests.aggregator.support.driver import STEPS, drive
from tests.aggregator.support.scrapes import Scrape
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import until

from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.selftest import institution
from fedddpm_aggregator.service.administration.runs import resume_run
from fedddpm_aggregator.service.history.run_report import run_report
from fedddpm_protocol.encoding.alarms import LOSS, NORM

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
RISING = (0.4, 0.41, 0.43, 0.45)


def whole_round(site: Site, round_: int, monkeypatch: pytest.MonkeyPatch, loss: float = 0.4, times: float = 1) -> None:
    monkeypatch.setattr(institution, "_LOSSES", (loss, loss / 2))
    seats = seats_in(site, round_)
    for seat in seats:
        seat.delta *= times
    drive(seats, STEPS)


def audited(site: Site, action: str) -> list[dict[str, object]]:
    with site.federation.context() as ctx, ctx.database.read() as db:
        rows = db.scalars(select(AuditRow.details).where(AuditRow.action == action).order_by(AuditRow.seq))
        return [json.loads(row) for row in rows]


def test_a_loss_that_rises_rings_everywhere_and_the_run_goes_on(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation()
    federation.start_run(rounds=6)
    site = serve(federation)
    for round_, loss in enumerate(RISING[:3]):
        whole_round(site, round_, monkeypatch, loss)
    seats_in(site, 3)
    assert "became worse" not in page_text(site)
    whole_round(site, 3, monkeypatch, RISING[3])
    seats_in(site, 4)
    said = "the mean held-out loss became worse 3 rounds running: 0.4000 -> 0.4100 -> 0.4300 -> 0.4500"
    assert f"After round 4: {said}" in page_text(site)
    (told,) = audited(site, "alarm")
    assert (told["kind"], told["round"]) == (LOSS, 3)
    with federation.context() as ctx:
        assert [str(alarm) for alarm in run_report(ctx).alarms] == [
            f"{said}, from before round 1 to before round 4",
        ]
    scrape = Scrape(httpx.get(f"{site.url}/metrics", trust_env=False).text)
    assert scrape("fedddpm_alarm", run="run-1", kind=LOSS) == 1
    assert scrape("fedddpm_alarms_total", run="run-1", kind=LOSS) == 1
    assert scrape("fedddpm_alarms_total", run="run-1", kind=NORM) == 0


def test_a_large_mean_holds_a_run_that_asked_for_it(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation()
    federation.start_run(rounds=6, on_alarm="hold", clip="fixed")
    site = serve(federation)
    for round_ in range(3):
        whole_round(site, round_, monkeypatch, times=0.5)
    whole_round(site, 3, monkeypatch, times=1)
    state = until(site, lambda state: state.status == "stalled")
    assert state.results == 4
    assert "the run is paused, and goes on when the coordinator resumes it: an alarm rang after round 4" in (
        state.reason or ""
    )
    assert "2.0 times the median" in (state.reason or "")
    assert "The run was started to be held when an alarm rings" in page_text(site)
    with federation.context() as ctx:
        assert resume_run(ctx) == "run-1"
    drive(seats_in(site, 4), STEPS)
    state = until(site, lambda state: state.results == 5)
    assert state.status == "stalled", "the mean is as large again"
    assert [entry["round"] for entry in audited(site, "alarm")] == [3, 4]


def test_the_last_round_holds_nothing(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation()
    federation.start_run(rounds=4, on_alarm="hold")
    site = serve(federation)
    for round_, loss in enumerate(RISING):
        whole_round(site, round_, monkeypatch, loss)
    assert until(site, lambda state: state.results == 4).status == "finished"
    assert len(audited(site, "alarm")) == 1
