"""Who may see the operator's page."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.aggregator.support.federations import Federation

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.dashboard.access import MOST_FAILURES
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.settings import Settings

PASSWORD = "correct horse battery"  # noqa: S105 - of a page that lives for one test
ANYWHERE = "0.0.0.0"  # noqa: S104 - the setting alone; the test listens on the loopback address


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@contextmanager
def password_file(folder: Path, text: str = PASSWORD, mode: int = 0o600) -> Iterator[Path]:
    path = folder / "password"
    path.write_text(text + "\n")
    path.chmod(mode)
    yield path


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
