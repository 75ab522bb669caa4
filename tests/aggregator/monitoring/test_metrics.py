"""What a scrape says after a round is what happened in it, whichever process is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.aggregator.support.driver import Institution, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.federations import Federation, identity_of
from tests.aggregator.support.scrapes import Scrape, scrape
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, result_of
from tests.support.repository import ROOT

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.monitoring.database_metrics import DatabaseCollector
from fedddpm_aggregator.monitoring.figures import FigureReader
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.server.metrics_port import metrics_server
from fedddpm_aggregator.service.history.traffic import round_traffic
from fedddpm_aggregator.settings import Settings

DASHBOARD = ROOT / "aggregator_service" / "grafana" / "fedddpm.json"
REQUESTS, SESSION = "fedddpm_http_requests_total", "/v1/sessions/{spec}/{part}"


@dataclass
class Watched:
    """A round of four in which one dropped, and what was scraped around it."""

    site: Site
    before: Scrape
    after: Scrape
    seats: list[Seat]
    reader: FigureReader  # of another process; looked before the round, too


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    federation = Federation(tmp_path_factory.mktemp("watched"))
    federation.start_run(rounds=2)
    with served_here(federation.settings) as url, federation.context() as other, ExitStack() as cleanup:
        site = cleanup.enter_context(closing(Site(federation, url)))
        reader = FigureReader(other)
        seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
        drive(seats, ["join"])
        reader.read()
        before = scrape(url)
        drive(seats, ["share"])
        drive(seats[:3], ["upload"])
        _refused(site, url)
        (again,) = take_seats([site["d"]], federation.roster, first_state(site), "decoder")
        with pytest.raises(ProblemError, match="over"):
            again.join(seq=2)
        drive(seats[:3], ["confirm", "unmask"])
        result_of(site, 0)
        yield Watched(site, before, scrape(url), seats, reader)


def _refused(site: Site, url: str) -> None:
    stranger = Institution(url, "a", identity_of("mallory"))
    with pytest.raises(ProblemError):
        stranger.state()
    stranger.close()
    for path in ("/v1/nothing", "/other/secret-name", "/v1/sessions/x/y/z"):
        assert site["a"].http.send(site["a"].signed("GET", path)).status_code == 404
    assert site["a"].http.send(site["a"].signed("BREW", "/v1/roster")).status_code == 405


def test_the_database_tells_the_round(watched: Watched) -> None:
    before, after, run = watched.before, watched.after, "run-1"
    assert before("fedddpm_sessions", run=run, phase="shares") == 1
    assert before("fedddpm_members", run=run, state="cohort") == 4
    assert before("fedddpm_rounds_published_total", run=run) == 0
    assert after("fedddpm_database_up") == 1
    assert after("fedddpm_members_enrolled") == 4
    assert after("fedddpm_runs", status="running") == after("fedddpm_run_status", run=run, status="running") == 1
    assert after("fedddpm_rounds_planned", run=run) == 2
    assert after("fedddpm_rounds_published_total", run=run) == 1
    assert after("fedddpm_attempts", run=run, status="done") == after("fedddpm_attempts", run=run, status="active") == 1
    assert after("fedddpm_attempts_failed_total", run=run) == 0
    assert after("fedddpm_sessions", run=run, phase="join") == 1
    assert after("fedddpm_sessions", run=run, phase="shares") == 0
    assert after("fedddpm_members", run=run, state="joined") == 0
    assert after("fedddpm_drops_total", run=run) == 1
    assert (
        after("fedddpm_round_seconds_count", run=run) == after("fedddpm_round_seconds_bucket", run=run, le="+Inf") == 1
    )
    assert after("fedddpm_round_seconds_sum", run=run) > 0


def test_traffic_is_what_the_command_line_says(watched: Watched) -> None:
    with watched.site.federation.context() as ctx:
        (traffic,) = round_traffic(ctx)
    assert watched.after("fedddpm_traffic_bytes_total", run="run-1", direction="up") == traffic.up > 0
    assert watched.after("fedddpm_traffic_bytes_total", run="run-1", direction="down") == traffic.down > 0
    assert watched.after("fedddpm_traffic_float32_bytes_total", run="run-1") == traffic.float32 > traffic.up


def test_the_process_counts_requests_bytes_and_refusals(watched: Watched) -> None:
    after, three = watched.after, watched.seats[:3]
    assert after(REQUESTS, method="POST", route=f"{SESSION}/joins", status="200") == 4
    assert after(REQUESTS, method="POST", route=f"{SESSION}/joins", status="410") == 1
    assert after(REQUESTS, method="POST", route=f"{SESSION}/unmask", status="200") == 3
    assert after("fedddpm_http_request_seconds_count", method="POST", route=f"{SESSION}/unmask") == 3
    sizes = [len(chunk) for seat in three for chunk in seat.chunks.values()]
    put = f"{SESSION}/chunks/{{segment}}/{{index}}"
    assert after(REQUESTS, method="PUT", route=put, status="200") == len(sizes)
    assert (
        after("fedddpm_chunk_bytes_stored_total") == after("fedddpm_http_request_bytes_total", route=put) == sum(sizes)
    )
    assert after("fedddpm_problems_total", code="phase-over") == 1
    assert after("fedddpm_problems_total", code="unauthenticated") == 1
    assert after("fedddpm_signature_refusals_total", code="unauthenticated") == 1
    assert after("fedddpm_signature_refusals_total", code="replayed") == 0
    assert after("fedddpm_http_requests_in_flight") == 1  # the scrape
    assert after("fedddpm_long_polls_waiting") == 0
    assert after("fedddpm_reduction_seconds_count") == 1
    values = watched.seats[0].part.values.coordinates
    assert after("fedddpm_reduction_coordinates_total") == 3 * values
    assert after("fedddpm_reduction_coordinates_per_second") > 0
    assert after("fedddpm_sweeper_lease_held") == 1
    assert {"process_start_time_seconds", "process_resident_memory_bytes", "python_gc_collections_total"} <= after.names


def test_labels_take_no_value_from_outside(watched: Watched) -> None:
    after = watched.after
    assert after(REQUESTS, method="GET", route="none", status="404") == 3
    assert after.labelled("method") == {"GET", "POST", "PUT", "other"}
    assert not {"a", "b", "c", "d"} & {value for _, labels in after.values for _, value in labels}
    assert all("secret-name" not in value for _, labels in after.values for _, value in labels)


def test_long_polls_are_counted_and_no_latency(watched: Watched) -> None:
    route = "/v1/state"
    polled = scrape(watched.site.url)
    site = watched.site["a"]
    site.state(site.state().version, 0.2)
    after = scrape(watched.site.url)
    both = after(REQUESTS, method="GET", route=route, status="200") - polled(
        REQUESTS, method="GET", route=route, status="200"
    )
    timed = after("fedddpm_http_request_seconds_count", method="GET", route=route) - polled(
        "fedddpm_http_request_seconds_count", method="GET", route=route
    )
    assert (both, timed) == (2, 1)


def test_every_process_says_the_same_of_the_database(watched: Watched) -> None:
    with watched.site.federation.context() as ctx:
        registry = CollectorRegistry()
        registry.register(DatabaseCollector(ctx))
        fresh = Scrape(generate_latest(registry).decode())
        in_steps, at_once = (reader.read().newest[0].tally for reader in (watched.reader, FigureReader(ctx)))
    assert in_steps is not None
    assert at_once is not None
    for name in ("up", "down", "float32", "drops", "duration_s", "durations"):
        assert getattr(in_steps, name) == getattr(at_once, name)
    now = scrape(watched.site.url)
    moving = "fedddpm_phase_seconds"
    assert {key: value for key, value in now.values.items() if key in fresh.values and key[0] != moving} == {
        key: value for key, value in fresh.values.items() if key[0] != moving
    }


def test_a_port_of_its_own(watched: Watched) -> None:
    with watched.site.federation.context() as ctx:
        with metrics_server("127.0.0.1", 0, ctx.metrics.registry) as port:
            assert scrape(f"http://127.0.0.1:{port}")("fedddpm_long_polls_waiting") == 0
            with (
                pytest.raises(OperatorError, match="METRICS_PORT"),
                metrics_server("127.0.0.1", port, ctx.metrics.registry),
            ):
                pass
        with pytest.raises(httpx.ConnectError):
            scrape(f"http://127.0.0.1:{port}")


FOREIGN = (
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1,evil.example",
)


def test_no_name_that_is_not_known_reads_the_metrics(watched: Watched) -> None:
    with (
        watched.site.federation.context() as ctx,
        metrics_server("127.0.0.1", 0, ctx.metrics.registry, ["metrics.example.org"]) as port,
    ):
        for url in (f"http://127.0.0.1:{port}/metrics", f"{watched.site.url}/metrics"):
            for host in FOREIGN:
                assert httpx.get(url, headers={"Host": host}).status_code == 421, (url, host)
            for host in ("127.0.0.1", "10.1.2.3:9750", "[::1]:9", "localhost", "LOCALHOST:1", "localhost."):
                assert httpx.get(url, headers={"Host": host}).status_code == 200, (url, host)
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": "Metrics.example.org:1"}).is_success


def test_names_of_metrics_are_those_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, authorities="Agg.example.org:443, b.example.org", metrics_names="m.example.org")
    assert settings.names_of_metrics >= {"agg.example.org", "b.example.org", "m.example.org", "127.0.0.1"}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),  # noqa: S104
        ({"host": "aggregator.example.org"}, False),
        ({"metrics_port": 9090}, False),
        ({"host": "0.0.0.0", "metrics": "on"}, True),  # noqa: S104
        ({"metrics": "off"}, False),
    ],
)
def test_the_public_port_shows_metrics_only_where_asked(tmp_path: Path, fields: dict[str, object], shown: bool) -> None:
    assert Settings(data=tmp_path, **fields).shows_metrics is shown  # type: ignore[arg-type]


def test_no_metrics_when_off(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    settings = federation.settings.model_copy(update={"metrics": "off"})
    with served_here(settings) as url:
        assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 404


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_asks_for_metrics_that_exist(watched: Watched) -> None:
    panels = [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]
    known = watched.after.names
    asked: set[str] = set()
    for panel in panels:
        for target in panel["targets"]:
            names = set(re.findall(r"\b(?:fedddpm|process|python)_[a-z0-9_]+", target["expr"]))
            assert names, target["expr"]
            asked |= names
    assert asked <= known, asked - known
    own = {name for name in known if name.startswith("fedddpm_") and not name.endswith(("_created", "_info", "_sum"))}
    unseen = {"fedddpm_roster_version", "fedddpm_rounds_planned", "fedddpm_round_seconds_count"}
    assert own - unseen <= {*asked, *(f"{name.removesuffix('_bucket')}_count" for name in asked)}, own - asked


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = _dashboard()
    assert {"title", "uid", "schemaVersion", "time", "refresh", "templating", "panels"} <= dashboard.keys()
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["run"]["query"].startswith("label_values(")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(refs) == len(set(refs))


def _dashboard() -> dict:  # type: ignore[type-arg]
    return json.loads(DASHBOARD.read_text())  # type: ignore[no-any-return]
