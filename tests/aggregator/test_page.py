"""The operator's page over HTTP: who may see it, what it says, what it never says, and its stream of changes."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update
from tests.aggregator.driver import STEPS, ProblemError, Seat, drive, take_seats
from tests.aggregator.federations import Federation, ServerProcess, served_here
from tests.aggregator.sites import NewFederation, Serve, Site
from tests.aggregator.watching import first_state, result_of, until

from fedddpm_aggregator import store
from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.dashboard.access import MOST_FAILURES
from fedddpm_aggregator.dashboard.live import MOST_STREAMS
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.dashboard_reasons import advice_on
from fedddpm_aggregator.service.runs import pause_run
from fedddpm_aggregator.settings import Settings
from fedddpm_aggregator.tables import ModelRow, RunRow, SessionRow
from fedddpm_protocol.messages import SignedDocument
from fedddpm_protocol.policy import open_result
from fedddpm_protocol.roster import Sharding
from fedddpm_protocol.spec import WEIGHT_UNITS

PASSWORD = "correct horse battery"  # noqa: S105 - of a page that lives for one test
ANYWHERE = "0.0.0.0"  # noqa: S104 - the setting alone; the test listens on the loopback address


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(html)
    return " ".join(" ".join(words).split())


def page_text(site: Site, query: str = "") -> str:
    response = httpx.get(f"{site.url}/{query}", trust_env=False)
    assert response.status_code == 200, response.text
    return text_of(response.text)


def seats_in(site: Site, rounds_done: int = 0) -> list[Seat]:
    until(site, lambda state: state.results >= rounds_done and state.round == rounds_done and state.spec is not None)
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site, rounds_done), "decoder")


def lose_secrets(site: Site, names: str) -> None:
    """Members that join a closed cohort again have lost their secrets and are not waited for."""
    for seat in seats_in(site):
        if seat.name in names:
            with pytest.raises(ProblemError, match=r"is over|failed"):
                seat.join(seq=2)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@contextmanager
def password_file(folder: Path, text: str = PASSWORD, mode: int = 0o600) -> Iterator[Path]:
    path = folder / "password"
    path.write_text(text + "\n")
    path.chmod(mode)
    yield path


# --- what it says ----------------------------------------------------------------------------------------------------


def test_before_everything_the_page_names_the_next_step(tmp_path: Path, serve: Serve) -> None:
    federation = Federation(tmp_path)
    site = serve(federation)
    assert "no run is open; next: fedddpm-aggregator federation start-run" in page_text(site)
    assert "4 in roster version 1" in page_text(site)


def test_the_page_follows_a_round(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats[:2], ["join"])
    text = page_text(site)
    assert "Round 1 of 2 running" in text
    assert "Training and joining 2 of 4 institutions at least 3 are needed" in text
    assert "Not heard of yet: c, d" in text
    drive(seats[2:], ["join"])
    drive(seats[:3], ["share"])
    text = page_text(site)
    assert "Sharing keys 3 of 4 institutions" in text
    assert "a sent its shares within a minute 0" in text
    assert "d awaited" in text
    drive(seats[3:], ["share"])
    drive(seats, STEPS[2:])
    until(site, lambda state: state.results == 1)
    text = page_text(site)
    assert "1 of 2 rounds published" in text
    assert "4 of 4" in text
    assert "0.5000 0.2500" in text  # mean losses of the sum, before and after


def test_who_dropped_is_told_beside_the_member_and_the_round(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats, STEPS[:2])
    lose_secrets(site, "d")
    drive(seats[:3], STEPS[2:])
    until(site, lambda state: state.results == 1)
    text = page_text(site)
    assert re.search(r"d not joined yet within a minute 0 round 1", text), text
    assert re.search(r"\d s 3 of 4 d 0\.5000", text), text


def test_a_failed_attempt_is_explained(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_in(site), ["join"])
    lose_secrets(site, "cd")
    until(site, lambda state: state.attempt == 1)
    text = page_text(site)
    assert "Round 1, attempt 1, decoder So many institutions restarted or left" in text
    assert "What to do. Another attempt starts by itself." in text
    assert "Recorded reason: only 2 members are left in shares, 3 are needed" in text


def test_a_paused_run_says_how_it_goes_on(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    first_state(site)
    with federation.context() as ctx:
        pause_run(ctx)
    text = page_text(site)
    assert "Round 1 of 1 paused" in text
    assert "federation resume-run" in text


def test_reasons_of_the_program_are_known() -> None:
    """Every way a session can fail has words of its own."""
    general = advice_on("something new")
    for reason in (
        "shares ended with 2 of 3 needed members; not heard of: c, d",
        "masked ended with 2 of 3 needed members; not heard of: c",
        "confirm ended with 2 of 3 needed members; not heard of: c",
        "2 of 3 needed UNMASK answers came; not heard of: c",
        "only 2 members are left in masked, 3 are needed",
        "the sum cannot be opened: wrong shares",
        "the mean update of part 'decoder' has norm 11, above the agreed 10: an institution did not clip its update. "
        "The round is held and the model stays as it is",
        "the sum of part 'decoder' is larger than its ring of 8 bits was made for and is not used; the next attempt",
        "roster version 2 is in force",
        "roster version 2 removes a member of the cohort or raises c_max",
        "the coordinator ended the run",
        "2 members joined, this run waits for 3, and the other parts of the round are over",
        "waiting for members: 2 members joined, this run waits for 3. Not heard of: c",
        "the roster has 2 members and 3 must take part; enrol more, or lower --min-cohort",
        "This base model is spent on the sum of a, b, c: these members go on only together.",
    ):
        assert advice_on(reason) != general, reason


def test_shards_are_told_one_by_one(tmp_path: Path, serve: Serve) -> None:
    shards = (Sharding(4, 0, bytes(range(32)), "a test"),)
    federation = Federation(tmp_path, members=tuple("abcdefgh"), c_max=0, sharding=shards)
    federation.start_run(rounds=2)
    site = serve(federation)
    state = first_state(site)
    seats = {
        session: take_seats(site.institutions.values(), federation.roster, state, session)
        for session in ("decoder.0", "decoder.1")
    }
    drive(seats["decoder.0"], STEPS[:2])
    text = page_text(site)
    assert "decoder Training and joining 0 of 2 shards opened" in text
    assert "decoder.0 Uploading masked updates 0 of 4 3" in text
    assert "decoder.1 Training and joining 0 of 4 3" in text
    drive(seats["decoder.0"], STEPS[2:])
    drive(seats["decoder.1"])
    until(site, lambda state: state.results == 1)
    assert "8 of 8" in page_text(site)


def test_parts_are_told_one_by_one(tmp_path: Path, serve: Serve) -> None:
    federation = Federation(tmp_path, members=tuple("abcdefgh"), c_max=0)
    federation.start_run("USPLIT", rounds=1, weighting="equal")
    site = serve(federation)
    state = first_state(site)
    seats = take_seats(site.institutions.values(), federation.roster, state, "encoder")
    drive(seats, ["join"])
    text = page_text(site)
    assert "encoder Sharing keys 0 of 4 institutions" in text
    assert "bottleneck Training and joining 0 of 4 institutions" in text
    assert f"{seats[0].name} awaited" in text or f"{seats[0].name} not joined yet" in text


def test_a_model_that_is_kept_no_longer_is_not_offered(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=2)
    site = serve(federation)
    first_state(site)
    assert "Model after the start" in page_text(site)
    with federation.context() as ctx, ctx.transaction() as db:
        db.execute(update(ModelRow).values(removed_at=1.0))
        store.bump_version(db)
    text = page_text(site)
    assert "Model after the start" not in text
    assert "kept no longer" in text


def test_runs_can_be_chosen_and_old_rounds_read(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_in(site))
    until(site, lambda state: state.status == "finished")
    federation.start_run(rounds=1, name="run-2", scale=0.5)
    until(site, lambda state: state.run == "run-2" and state.spec is not None)
    assert "No round of run run-2 is published yet" in page_text(site)
    text = page_text(site, "?run=run-1")
    assert "run run-1 : 1 of 1 rounds published" in text
    assert "Back to the current round" in text
    assert httpx.get(f"{site.url}/?run=nothing", trust_env=False).status_code == 404
    old = page_text(site, "?run=run-1&before=1")
    assert "The newest rounds" in old
    assert "The newest rounds" not in text
    assert "Published rounds, the newest first" in old


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


# --- downloads -------------------------------------------------------------------------------------------------------


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


# --- who may see it --------------------------------------------------------------------------------------------------


def app_with(federation: Federation, **changes: object) -> Settings:
    return federation.settings.model_copy(update=changes)


def test_a_page_on_the_network_needs_a_password_or_a_decision(federation: Federation) -> None:
    with served_here(app_with(federation, host=ANYWHERE)) as url:
        closed = httpx.get(url, trust_env=False)
    assert closed.status_code == 404
    assert closed.headers["content-type"] == "application/problem+json"
    assert "--page-password-file" in closed.json()["detail"]
    with served_here(app_with(federation, host=ANYWHERE, page="on")) as url:
        assert httpx.get(url, trust_env=False).status_code == 200
    with served_here(app_with(federation, page="off")) as url:
        for path in ("/", "/page/events", "/page/static/page.css", f"/page/models/{'0' * 64}.safetensors"):
            assert httpx.get(url + path, trust_env=False).status_code == 404


def test_without_a_password_nobody_comes_through_a_proxy_or_by_another_name(federation: Federation) -> None:
    with served_here(federation.settings) as url:
        for headers in ({"host": "evil.example"}, {"x-forwarded-for": "192.0.2.1"}, {"forwarded": "for=192.0.2.1"}):
            refused = httpx.get(url, headers=headers, trust_env=False)
            assert refused.status_code == 404, headers
            assert "on this machine only" in refused.json()["detail"]


def test_the_password_is_asked_everywhere(federation: Federation, tmp_path: Path) -> None:
    with password_file(tmp_path) as path, served_here(app_with(federation, page_password_file=path)) as url:
        for place in ("/", "/page/events", "/page/static/page.css", "/page/results/run-1/0.json"):
            refused = httpx.get(url + place, trust_env=False)
            assert refused.status_code == 401, place
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert PASSWORD not in refused.text
        assert httpx.get(url, auth=("operator", PASSWORD), trust_env=False).status_code == 200
        headers = {"x-forwarded-for": "192.0.2.1", "host": "page.example"}
        assert httpx.get(url, auth=("operator", PASSWORD), headers=headers, trust_env=False).status_code == 200


def test_wrong_passwords_are_limited(federation: Federation, tmp_path: Path) -> None:
    nearly = base64.b64encode(f"operator:{PASSWORD[:-1]}".encode()).decode()
    tries = ["Basic !!", f"Bearer {nearly}", f"Basic {nearly}", "Basic", "Basic " + "A" * 5000][:MOST_FAILURES]
    with password_file(tmp_path) as path, served_here(app_with(federation, page_password_file=path)) as url:
        for given in tries:
            assert httpx.get(url, headers={"authorization": given}, trust_env=False).status_code == 401, given
        limited = httpx.get(url, auth=("operator", PASSWORD), trust_env=False)
        assert limited.status_code == 429
        assert 1 <= int(limited.headers["retry-after"]) <= 61


@pytest.mark.parametrize(("text", "mode"), [("short", 0o600), (PASSWORD, 0o644), (f"{PASSWORD}\n{PASSWORD}", 0o600)])
def test_a_bad_password_file_stops_the_start(federation: Federation, tmp_path: Path, text: str, mode: int) -> None:
    with password_file(tmp_path, text, mode) as path, pytest.raises(OperatorError, match=r"password|chmod"):
        create_app(app_with(federation, page_password_file=path))
    with pytest.raises(OperatorError, match="cannot be read"):
        create_app(app_with(federation, page_password_file=tmp_path / "missing"))


# --- the stream ------------------------------------------------------------------------------------------------------


def read_events(stream: httpx.Response, count: int) -> list[tuple[str, str]]:
    """The next events: (name, data)."""
    return [(name, data) for name, _, data in read_raw_events(stream.iter_lines(), count)]


def read_raw_events(lines: Iterator[str], count: int) -> list[tuple[str, str, str]]:
    """The next events: (name, id, data)."""
    events: list[tuple[str, str, str]] = []
    fields: dict[str, str] = {}
    while len(events) < count:
        line = next(lines)
        if line:
            key, _, value = line.partition(":")
            fields[key] = value.removeprefix(" ")
        elif "data" in fields:
            events.append((fields.get("event", ""), fields.get("id", ""), fields["data"]))
            fields = {}
    return events


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
