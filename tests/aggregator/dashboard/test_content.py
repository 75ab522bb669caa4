"""What the operator's page never says, what it lets people download, and its stream of changes."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update
from tests.aggregator.dashboard.pages import page_text, read_events, read_raw_events, seats_in, text_of
from tests.aggregator.support.driver import drive
from tests.aggregator.support.federations import Federation, ServerProcess
from tests.aggregator.support.sites import Serve
from tests.aggregator.support.watching import first_state, result_of, until

from fedddpm_aggregator.dashboard.live import MOST_STREAMS
from fedddpm_aggregator.dashboard.now import now
from fedddpm_aggregator.db.tables import RunRow, SessionRow
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.spec import WEIGHT_UNITS
from fedddpm_protocol.wire.messages import SignedDocument


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_weights_are_on_no_page(federation: Federation, serve: Serve) -> None:
    """The opened sum of the weights, and every sample count, stay away from the page and its stream."""
    federation.start_run(rounds=1, weight_cap=1000)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats)
    until(site, lambda state: state.results == 1)
    total = result_of(site, 0).parts[0].sums[0]
    with httpx.stream("GET", f"{site.url}/page/events", trust_env=False) as stream:
        events = read_events(stream, 2)
    shown = page_text(site) + text_of("".join(json.loads(data) for _, data in events))
    for secret in (str(total), f"{total / WEIGHT_UNITS:.3f}", *(f" {seat.samples} " for seat in seats)):
        assert secret not in shown, secret


def test_what_came_from_elsewhere_is_text_not_markup(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    first_state(site)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&"
    with federation.context() as ctx, ctx.transaction() as db:
        db.execute(update(SessionRow).values(reason=hostile))
        db.execute(update(RunRow).values(status="stalled", stalled_roster=9, reason=hostile))
    html = httpx.get(site.url, trust_env=False).text
    assert "<script>alert" not in html
    assert "<img" not in html
    assert text_of(html).count("<script>alert(1)</script><img src=x onerror=alert(2)> \"'&") == 2


def test_models_and_signed_results_can_be_downloaded(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_in(site))
    result = result_of(site, 0)
    model = f"{site.url}/page/models/{result.model_hash.hex()}.safetensors"
    mine = httpx.get(model, trust_env=False)
    theirs = site["a"].send("GET", f"/v1/models/{result.model_hash.hex()}")
    assert mine.content == theirs.content
    assert "attachment" in mine.headers["content-disposition"]
    assert httpx.get(model, headers={"range": "bytes=3-9"}, trust_env=False).content == theirs.content[3:10]
    document = httpx.get(f"{site.url}/page/results/run-1/0.json", trust_env=False)
    assert open_result(SignedDocument.model_validate_json(document.content), federation.roster) == result
    for missing in ("/page/results/run-1/7.json", "/page/results/other/0.json", f"/page/models/{'0' * 64}.safetensors"):
        response = httpx.get(site.url + missing, trust_env=False)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


def test_everything_is_sent_with_strict_headers(federation: Federation, serve: Serve) -> None:
    site = serve(federation)
    html = httpx.get(site.url, trust_env=False)
    paths = re.findall(r'(?:src|href)="(/page/static/[^"]+)"', html.text)
    assert len(paths) == 3
    for path in ("/", *paths):
        response = httpx.get(site.url + path, trust_env=False)
        assert response.status_code == 200
        policy = response.headers.get_list("content-security-policy")
        assert len(policy) == 1
        for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"):
            assert rule in policy[0]
        assert "unsafe" not in policy[0]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=|https?://", html.text)
    etag = httpx.get(site.url + paths[0], trust_env=False).headers["etag"]
    again = httpx.get(site.url + paths[0], headers={"if-none-match": etag}, trust_env=False)
    assert again.status_code == 304
    assert httpx.get(f"{site.url}/page/static/page.html.j2", trust_env=False).status_code == 404


def test_a_browser_that_comes_back_gets_only_what_it_missed(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_in(site)
    html = httpx.get(site.url, trust_env=False).text
    match = re.search(r'data-seen="([^"]+)"', html)
    assert match is not None
    drive(seats[:1], ["join"])
    with httpx.stream("GET", f"{site.url}/page/events?seen={match[1]}", trust_env=False) as stream:
        [(name, ident, data)] = read_raw_events(stream.iter_lines(), 1)
    assert name == "live"
    assert "1 of 4" in text_of(json.loads(data))
    drive(seats[1:2], ["join"])
    with httpx.stream("GET", f"{site.url}/page/events", headers={"last-event-id": ident}, trust_env=False) as stream:
        [(name, ident, data)] = read_raw_events(stream.iter_lines(), 1)
    assert name == "live"
    assert "2 of 4" in text_of(json.loads(data))


def test_streams_are_few(federation: Federation, serve: Serve) -> None:
    site = serve(federation)
    limits = httpx.Limits(max_connections=MOST_STREAMS + 2)
    with httpx.Client(base_url=site.url, limits=limits, trust_env=False) as client:
        watching = []
        for _ in range(MOST_STREAMS):
            stream = client.send(client.build_request("GET", "/page/events"), stream=True)
            lines = stream.iter_lines()
            assert next(lines).startswith("retry")
            watching.append((stream, lines))
        refused = client.get("/page/events")
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        for stream, _ in watching:
            stream.close()
        deadline = time.monotonic() + 20
        while client.send(client.build_request("GET", "/page/events"), stream=True).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_streams_end_when_the_server_stops(federation: Federation) -> None:
    server = ServerProcess(federation)
    server.start()
    ended = threading.Event()

    def watch() -> None:
        with httpx.stream("GET", f"{server.url}/page/events", timeout=60, trust_env=False) as stream:
            for line in stream.iter_lines():
                if line.startswith("data"):
                    started.set()
        ended.set()  # the stream was ended, not cut

    started = threading.Event()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert started.wait(30)
    assert server._process is not None
    server._process.terminate()
    assert ended.wait(30)
    assert server._process.wait(30) == 0
    server.kill()


def test_when_a_member_was_last_heard_of(federation: Federation, serve: Serve) -> None:
    """The time of its last signed request, neither before nor after it."""
    site = serve(federation)
    before = time.time()
    site["a"].state()
    after = time.time()
    time.sleep(1)
    with federation.context() as ctx, ctx.database.read() as db:
        seen_s = {member.id: member.seen_s for member in now(ctx, db).members}
    assert seen_s["b"] is None
    heard_at = time.time() - (seen_s["a"] or 0.0)
    assert before - 1 < heard_at < after + 1
    assert (seen_s["a"] or 0.0) >= 1
