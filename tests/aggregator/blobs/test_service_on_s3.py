"""The aggregator over an object store: replicas that share only database and bucket, downloads, an outage."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.aggregator.support.driver import Institution, ProblemError, drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess, identity_of, read_safetensors
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, result_of
from tests.support.s3_server import S3Server, objects_of

from fedddpm_aggregator.app import data_directory
from fedddpm_aggregator.blobs.interface import BlobSettingsError
from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.wire.phases import Phase

sqlite = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)


@pytest.fixture
def in_bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every aggregator of the test keeps its blobs there."""
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_BLOBS", s3_url)
    return s3_url


@pytest.fixture
def replicas(in_bucket: str, new_federation: NewFederation, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Two of them on machines of their own: they have the key and the URLs in common."""
    federation = new_federation()
    other = copy.copy(federation)
    other.folder = tmp_path / "another-machine"
    other.settings.data.mkdir(parents=True)
    shutil.copy(federation.settings.key_path, other.settings.key_path)
    servers = [ServerProcess(federation), ServerProcess(other)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.kill()


def move(site: Site, server: ServerProcess, names: str) -> None:
    """Let institutions speak to another replica."""
    for name in names:
        site.institutions[name].close()
        site.institutions[name] = Institution(server.url, name, identity_of(name))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)
def test_replicas_share_only_database_and_bucket(in_bucket: str, replicas: list[ServerProcess]) -> None:
    one, other = replicas
    one.federation.start_run(rounds=2)
    site = Site(one.federation, one.url)
    move(site, other, "cd")
    first = take_seats(site.institutions.values(), site.federation.roster, first_state(site), "decoder")
    drive(first)
    check_part(site, 0, first)
    one.kill()
    move(site, other, "ab")
    second = take_seats(site.institutions.values(), site.federation.roster, first_state(site, 1), "decoder")
    drive(second)
    check_part(site, 1, second)
    last = f"uploads/{second[0].spec.hash.hex()}/"  # these stay for checks of the sum, the others are scrubbed
    wait_until(lambda: {name[: len(last)] for name in objects_of(in_bucket) if name.startswith("uploads/")} == {last})
    assert len(open_blobs(in_bucket).folders("opened")) == 2
    with one.federation.context() as ctx:
        assert verify_history(ctx)["models derived anew"] == 2
    assert [path for server in replicas for path in server.federation.settings.data.rglob("blobs")] == []
    site.close()


@pytest.fixture(params=["directory", "s3"])
def published(
    request: pytest.FixtureRequest, new_federation: NewFederation, serve: Serve
) -> Callable[[], tuple[Site, RoundResult]]:
    """A site with one finished round, over either kind of blobs."""
    if request.param == "s3":
        request.getfixturevalue("in_bucket")

    def play() -> tuple[Site, RoundResult]:
        federation: Federation = new_federation()
        federation.start_run(rounds=1)
        site = serve(federation)
        drive(take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder"))
        return site, result_of(site, 0)

    return play


def download(site: Site, path: str, **headers: str) -> tuple[int, bytes, str | None]:
    """Status, body and Content-Range of a request for a vector."""
    request = site["a"].signed("GET", path, headers={name.replace("_", "-"): headers[name] for name in headers})
    response = site["a"].http.send(request)
    if response.status_code in (200, 206):
        assert response.headers["content-length"] == str(len(response.content))
        assert response.headers["accept-ranges"] == "bytes"
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["etag"]
    return response.status_code, response.content, response.headers.get("content-range")


@sqlite
def test_downloads_are_immutable_and_resumable(published: Callable[[], tuple[Site, RoundResult]]) -> None:
    site, result = published()
    for path, digest in (
        (f"/v1/models/{result.model_hash.hex()}", result.model_hash),
        ("/v1/results/run-1/0/opened/decoder", result.parts[0].opened_digest),
    ):
        get, etag = partial(download, site, path), f'"{digest.hex()}"'
        status, whole, _ = get()
        size = len(whole)
        assert status == 200
        assert get(if_none_match=etag)[:2] == (304, b"")
        assert get(range="bytes=5-9") == (206, whole[5:10], f"bytes 5-9/{size}")
        assert get(range="bytes=5-") == (206, whole[5:], f"bytes 5-{size - 1}/{size}")
        assert get(range="bytes=-4") == (206, whole[-4:], f"bytes {size - 4}-{size - 1}/{size}")
        assert get(range=f"bytes={size - 1}-{size + 100}") == (206, whole[-1:], f"bytes {size - 1}-{size - 1}/{size}")
        assert get(range="bytes=5-9", if_range=etag)[0] == 206
        assert get(range="bytes=5-9", if_range='"another"')[:2] == (200, whole)
        assert get(range=f"bytes={size}-")[0] == 416
        assert get(range="pages=1-2")[0] in (200, 400)
    assert read_safetensors(site["a"].send("GET", f"/v1/models/{result.model_hash.hex()}").content)


@sqlite
def test_a_round_outlives_an_outage_of_the_object_store(
    in_bucket: str, s3_server: S3Server, new_federation: NewFederation, serve: Serve
) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats, ["join", "share", "mask"])
    s3_server.kill_gateway()
    try:
        with pytest.raises(ProblemError, match="blob storage does not answer; try again") as refused:
            seats[0].put("decoder", 0)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert site["a"].http.get("/readyz").status_code == 503
        assert site["a"].state().sessions["decoder"].phase is Phase.MASKED  # what needs no blobs goes on
    finally:
        s3_server.start_gateway()
    wait_until(lambda: site["a"].http.get("/readyz").status_code == 200)
    for seat in seats:
        for segment, index in seat.chunks:
            seat.put(segment, index)
        seat.finish()
    drive(seats, ["confirm"])
    s3_server.kill_gateway()
    try:
        drive(seats, ["unmask"])  # the sum cannot be opened now
    finally:
        s3_server.start_gateway()
    check_part(site, 0, seats)


@sqlite
def test_a_server_tells_settings_that_cannot_work_and_waits_for_a_store_that_is_away(
    in_bucket: str,
    s3_server: S3Server,
    new_federation: NewFederation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = new_federation().settings
    s3_server.kill_gateway()
    try:
        with data_directory(settings):
            assert "does not answer as it should; try again later" in caplog.text
    finally:
        s3_server.start_gateway()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-but-private")
    with pytest.raises(BlobSettingsError, match="refuses the credentials"), data_directory(settings):
        pass
