"""Who is asking: signatures, digests, clocks, replays, enrolment."""

from __future__ import annotations

import datetime
import secrets

import httpx
import pytest
from tests.aggregator.support.driver import Institution, ProblemError
from tests.aggregator.support.federations import identity_of
from tests.aggregator.support.sites import NewFederation, Serve, Site

from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.api import SIGNED_COMPONENTS

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database


@pytest.fixture
def site(new_federation: NewFederation, serve: Serve) -> Site:
    return serve(new_federation())


def answer(site: Site, request: httpx.Request) -> tuple[int, str]:
    response = site["a"].http.send(request)
    return response.status_code, response.json().get("code", "none")


def signed(site: Site, body: bytes | None = b"", path: str = "/v1/roster", **changes: object) -> httpx.Request:
    a = site["a"]
    request = a.http.build_request("GET", path, content=body)
    fields: dict[str, object] = {
        "key_id": "a",
        "nonce": secrets.token_urlsafe(18),
        "covered_component_ids": SIGNED_COMPONENTS,
        "body": body,
        "label": "sig1",
    }
    a.signer.sign(request, **{**fields, **changes})  # type: ignore[arg-type]
    return request


def test_a_signed_request_passes_once(site: Site) -> None:
    request = signed(site)
    assert site["a"].http.send(request).status_code == 200
    assert answer(site, request) == (401, "replayed")


def test_the_nonce_is_remembered_over_a_restart(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    site = serve(federation)
    with federation.context() as ctx:
        request = signed(site)
        assert site["a"].http.send(request).status_code == 200
        assert ctx.database.url  # the same database, as after a restart
        with ctx.database.read() as db:
            from fedddpm_aggregator.db.tables import NonceRow

            assert db.query(NonceRow).count() == 1


def test_unsigned_requests_are_refused(site: Site) -> None:
    assert answer(site, site["a"].http.build_request("GET", "/v1/roster")) == (401, "unauthenticated")


def test_health_needs_no_signature(site: Site) -> None:
    assert site["a"].http.get("/healthz").json() == {"status": "alive"}
    assert site["a"].http.get("/readyz").json() == {"status": "ready"}


def test_a_changed_request_is_refused(site: Site) -> None:
    request = signed(site)
    request.url = request.url.copy_with(path="/v1/state")
    assert answer(site, request) == (401, "unauthenticated")
    request = signed(site, path="/v1/results?run=x")
    request.url = request.url.copy_with(query=b"run=y")
    assert answer(site, request) == (401, "unauthenticated")
    request = signed(site)
    request.headers["host"] = "elsewhere.example"
    assert answer(site, request) == (401, "unauthenticated")


def test_the_body_must_be_the_one_of_the_digest(site: Site) -> None:
    right = signed(site, b"right")
    wrong = site["a"].http.build_request("GET", "/v1/roster", content=b"wrong")
    for name in ("content-digest", "signature", "signature-input"):
        wrong.headers[name] = right.headers[name]
    assert answer(site, wrong) == (401, "unauthenticated")


@pytest.mark.parametrize("missing", SIGNED_COMPONENTS)
def test_every_component_must_be_covered(site: Site, missing: str) -> None:
    covered = tuple(name for name in SIGNED_COMPONENTS if name != missing)
    body = None if missing == "content-digest" else b""
    request = signed(site, covered_component_ids=covered, body=body)
    assert answer(site, request) == (401, "unauthenticated")


@pytest.mark.parametrize("nonce", [None, "short", "x" * 129])
def test_a_nonce_is_needed(site: Site, nonce: str | None) -> None:
    assert answer(site, signed(site, nonce=nonce)) == (401, "unauthenticated")


@pytest.mark.parametrize("offset_s", [-400, 120])
def test_a_wrong_clock_is_told_the_right_time(site: Site, offset_s: int) -> None:
    now = datetime.datetime.now(datetime.UTC)
    response = site["a"].http.send(signed(site, created=now + datetime.timedelta(seconds=offset_s)))
    document = response.json()
    assert (response.status_code, document["code"]) == (401, "clock-skew")
    assert abs(document["server_time"] - now.timestamp()) < 30


def test_only_enrolled_members_may_ask(site: Site) -> None:
    stranger = Institution(site.url, "stranger", SigningKey.generate())
    with pytest.raises(ProblemError) as refusal:
        stranger.state()
    stranger.close()
    assert (refusal.value.status, refusal.value.code) == (403, "not-enrolled")


def test_a_member_signs_with_its_enrolled_key(site: Site) -> None:
    imposter = Institution(site.url, "a", SigningKey.generate())
    with pytest.raises(ProblemError) as refusal:
        imposter.state()
    imposter.close()
    assert (refusal.value.status, refusal.value.code) == (401, "unauthenticated")
    assert "not made with the key that roster version 1 enrols for 'a'" in str(refusal.value)


def test_a_removed_member_is_out_at_once(site: Site) -> None:
    left = tuple(member for member in site.federation.roster.members if member.id != "a")
    site.federation.install(members=left)
    with pytest.raises(ProblemError) as refusal:
        site["a"].state()
    assert refusal.value.code == "not-enrolled"
    assert site["b"].state().roster_version == 2


def test_a_lost_key_is_replaced_by_a_new_roster(site: Site) -> None:
    fresh = identity_of("fresh")
    changed = tuple(
        member.__class__(member.id, fresh.public_key) if member.id == "a" else member
        for member in site.federation.roster.members
    )
    site.federation.install(members=changed)
    again = Institution(site.url, "a", fresh)
    assert again.state().roster_version == 2
    again.close()
