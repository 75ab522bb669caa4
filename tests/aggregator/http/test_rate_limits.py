"""How often somebody may ask, under which name, and from behind which proxy; one memory of nonces for all replicas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from pydantic import ValidationError
from tests.aggregator.support.driver import Institution, ProblemError
from tests.aggregator.support.federations import Federation, identity_of
from tests.aggregator.support.sites import NewFederation

from fedddpm_aggregator.http.rate_limits import Rate, TokenBuckets, address_key
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.settings import Settings

one_database = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
Served = Callable[..., str]


@pytest.fixture
def federation(new_federation: NewFederation) -> Federation:
    return new_federation()


@pytest.fixture
def served(federation: Federation) -> Iterator[Served]:
    """Serves the federation with changed settings."""
    with contextlib.ExitStack() as servers:
        yield lambda **changes: servers.enter_context(served_here(federation.settings.model_copy(update=changes)))


@contextlib.contextmanager
def member(url: str, name: str = "a") -> Iterator[Institution]:
    institution = Institution(url, name, identity_of(name))
    yield institution
    institution.close()


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_bucket_has_a_burst_and_fills_up_again() -> None:
    now = [0.0]
    buckets = TokenBuckets(Rate(2.0, 3), clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    now[0] = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_buckets_are_bounded_and_the_busy_ones_stay() -> None:
    buckets = TokenBuckets(Rate(1.0, 1), most=3, clock=lambda: 0.0)
    assert buckets.take("busy") == 0.0
    for stranger in range(100):
        buckets.take(str(stranger))
        assert buckets.take("busy") > 0
    assert len(buckets) == 3


def test_rate_0_is_no_limit() -> None:
    buckets = TokenBuckets(Rate(0.0, 1))
    assert [buckets.take("a") for _ in range(5)] == [0.0] * 5
    assert len(buckets) == 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("no address" * 100, ("no address" * 100)[:64]),
        ("", ""),
    ],
)
def test_addresses_are_counted_by_network(address: str, key: str) -> None:
    assert address_key(address) == key


def test_a_cohort_behind_one_address_passes_by_default(tmp_path: object) -> None:
    settings = Settings(data="unused")  # type: ignore[arg-type]
    now = [0.0]
    rate = Rate(settings.rate_per_address, settings.burst_per_address)
    buckets = TokenBuckets(rate, clock=lambda: now[0])
    for _round in range(20):  # a round a minute, 128 members with 60 requests each, all at one moment
        assert all(buckets.take("proxy") == 0.0 for _ in range(128 * 60))
        now[0] += 60.0


@one_database
def test_an_identity_that_asks_too_often_is_told_and_others_are_served(served: Served) -> None:
    url = served(rate_per_identity=0.01, burst_per_identity=5)
    with member(url) as a, member(url, "b") as b:
        for _ in range(5):
            a.state()
        response = a.http.send(a.signed("GET", "/v1/state"))
        assert refusal(response) == (429, "too-many-requests")
        assert 1 <= int(response.headers["retry-after"]) <= 100
        assert b.state().roster_version == 1


@one_database
def test_another_key_cannot_use_up_an_identitys_requests(served: Served) -> None:
    url = served(rate_per_identity=0.01, burst_per_identity=5)
    imposter = Institution(url, "a", identity_of("b"))
    for _ in range(10):
        with pytest.raises(ProblemError) as error:
            imposter.state()
        assert error.value.code == "unauthenticated"
    imposter.close()
    with member(url) as a:
        assert a.state().roster_version == 1


@one_database
def test_an_address_that_asks_too_often_is_told_before_its_signature_is_checked(served: Served) -> None:
    url = served(rate_per_address=0.01, burst_per_address=3)
    with member(url) as a:
        assert [a.http.get("/v1/state").status_code for _ in range(3)] == [401] * 3
        assert refusal(a.http.get("/v1/state")) == (429, "too-many-requests")
        assert refusal(a.http.get("/healthz")) == (429, "too-many-requests")


FEW = {"rate_per_address": 0.01, "burst_per_address": 2}
ADDRESSES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


def ask_as(url: str, addresses: list[str]) -> list[int]:
    return [
        httpx.get(f"{url}/healthz", headers={"x-forwarded-for": address}, trust_env=False).status_code
        for address in addresses
    ]


@one_database
def test_nobody_chooses_the_own_address(served: Served) -> None:
    assert ask_as(served(**FEW), ADDRESSES) == [200, 200, 429]  # all from 127.0.0.1


@one_database
def test_trusted_proxies_tell_addresses(served: Served) -> None:
    url = served(**FEW, trusted_proxies="10.0.0.0/8, 127.0.0.1")
    assert ask_as(url, ADDRESSES) == [200, 200, 200]
    invented = [f"198.51.100.{number}, 192.0.2.9" for number in range(3)]  # the proxy appends what it sees
    assert ask_as(url, invented) == [200, 200, 429]


@one_database
def test_trusted_proxies_must_be_addresses(federation: Federation) -> None:
    with pytest.raises(ValidationError, match=r"proxy\.example"):
        Settings(data=federation.settings.data, trusted_proxies="proxy.example")


@one_database
def test_only_requests_for_this_server_are_accepted(served: Served) -> None:
    url = served(authorities="fed.example, other.example:8443")
    with member(url) as a:
        response = a.http.send(a.signed("GET", "/v1/state"))
        assert refusal(response) == (421, "misdirected")
        assert "fed.example" in response.json()["detail"]
        for name in ("https://fed.example", "https://Other.example:8443"):  # a proxy ends TLS and passes the name on
            request = through_proxy(a, name, url)
            assert a.http.send(request).status_code == 200
        request = through_proxy(a, "https://elsewhere.example", url)
        request.headers["host"] = "fed.example"  # signed for another server
        assert refusal(a.http.send(request)) == (401, "unauthenticated")
        assert a.http.get("/healthz").status_code == 200  # probes ask by address


def through_proxy(institution: Institution, name: str, url: str) -> httpx.Request:
    """A request signed for ``name``, sent to ``url``."""
    request = institution.signed("GET", f"{name}/v1/roster")
    request.url = httpx.URL(f"{url}/v1/roster")
    return request


@pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)
def test_a_request_is_not_accepted_again_by_another_replica(served: Served) -> None:
    one, other = served(), served()
    with member(one) as a:
        request = a.signed("GET", "/v1/roster")
        assert a.http.send(request).status_code == 200
        request.url = httpx.URL(f"{other}/v1/roster")  # the same name in the Host header
        assert refusal(a.http.send(request)) == (401, "replayed")
