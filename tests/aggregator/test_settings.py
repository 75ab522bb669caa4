"""A server that is set up by variables and mounted files alone, over a data directory that begins empty."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.aggregator.support.certificates import self_signed
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation
from tests.support import fork_server

from fedddpm_aggregator.security.key_files import ROOT_PURPOSE, SERVER_PURPOSE, write_key
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

PREFIX = "FEDDDPM_AGGREGATOR_"
SERVE = [sys.executable, "-m", "fedddpm_aggregator", "serve"]
postgresql = pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)


def environment(**variables: object) -> dict[str, str]:
    return os.environ | {PREFIX + name.upper(): str(value) for name, value in variables.items()}


def mounted(federation: Federation, folder: Path) -> dict[str, object]:
    """What a pod of this federation gets: the key in another place, a data directory that is not there yet."""
    secrets = folder / "secrets"
    secrets.mkdir()
    federation.settings.key_path.rename(secrets / "key.json")
    fresh = {"data": folder / "empty" / "data", "blobs": folder / "blobs", "database_url": federation.database_url}
    return {**fresh, "server_key": secrets / "key.json", "host": "127.0.0.2", "port": 0}


@contextlib.contextmanager
def serving(variables: dict[str, str]) -> Iterator[str]:
    """The URL of a server with these variables and no arguments."""
    server = subprocess.Popen(SERVE, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "listening on " not in line:
            raise AssertionError(server.communicate(timeout=30)[1])
        yield line.split()[-1]
    finally:
        server.kill()
        server.communicate()


def refused(variables: dict[str, str]) -> str:
    """The one line of a server that does not start."""
    done = fork_server.run("fedddpm-aggregator", "serve", environment=variables, timeout_s=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@postgresql
def test_a_mounted_key_and_an_empty_data_directory(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    pod = mounted(federation, tmp_path)
    root = tmp_path / "root.pub"
    root.write_text(federation.root.public_key.hex() + "\n")
    data = tmp_path / "empty" / "data"
    with serving(environment(**pod, root_key=root)) as url:
        assert url.startswith("http://127.0.0.2:")
        assert httpx.get(f"{url}/readyz", trust_env=False).json() == {"status": "ready"}
        assert data.stat().st_mode & 0o777 == 0o700
    assert not (data / "server.key").exists()
    data.chmod(0o755)
    with serving(environment(**pod)):  # the container is started again over what the first one left
        assert data.stat().st_mode & 0o777 == 0o700


@postgresql
def test_another_root_key_is_refused(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    pod, other = mounted(federation, tmp_path), SigningKey.generate().public_key
    line = refused(environment(**pod, root_key=other.hex()))
    assert fingerprint(other) in line
    assert fingerprint(federation.root.public_key) in line
    assert "is no public key" in refused(environment(**pod, root_key="1234"))


def test_a_root_key_that_is_set_pins_nothing(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_key(key, SigningKey.generate(), SERVER_PURPOSE)
    pod = {"data": tmp_path / "data", "server_key": key, "port": 0}
    for _ in range(2):
        with serving(environment(**pod, root_key=SigningKey.generate().public_key.hex())) as url:
            assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


def test_a_missing_or_open_key_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    pod: dict[str, object] = {"data": tmp_path / "data", "server_key": key}
    assert "FEDDDPM_AGGREGATOR_SERVER_KEY" in refused(environment(**pod))
    write_key(key, SigningKey.generate(), SERVER_PURPOSE)
    (tmp_path / "file").touch()
    assert "cannot be the data directory" in refused(environment(**pod | {"data": tmp_path / "file" / "data"}))
    key.chmod(0o604)
    assert "everybody on this machine may open" in refused(environment(**pod))
    assert not (tmp_path / "data").exists()


def test_variables_that_kubernetes_sets_for_services_are_no_settings(tmp_path: Path) -> None:
    links = {"port": "tcp://10.96.0.7:8750", "metrics_port": "tcp://10.96.0.8:9090", "port_8750_tcp_port": "8750"}
    assert "is no data directory" in refused(environment(**links, data=tmp_path / "nowhere"))


@pytest.mark.parametrize("variable", ["tls_cert", "tls_key"])
def test_half_a_certificate_is_refused(tmp_path: Path, variable: str) -> None:
    assert "belong together" in refused(environment(data=tmp_path, **{variable: tmp_path / "x.pem"}))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://fedddpm:s3cr3t/word@db:x/name",
        "postgresql://fedddpm:s3cr3t@word@db/name",
        "postgresql://fedddpm:s3cr3t:word/name@",
        "postgresql://fedddpm:p@s3cr3t/word@db/name",
        "postgresql://fedddpm:p@s3cr3t?word@db/name=1",
        "mysql://fedddpm:s3cr3t@db/name",
        "s3cr3t",
    ],
)
def test_a_wrong_database_url_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    line = refused(environment(data=tmp_path, database_url=url))
    assert "FEDDDPM_AGGREGATOR_DATABASE_URL: it is no URL" in line
    assert "%40" in line
    assert "s3cr3t" not in line
    assert "word@" not in line


@pytest.mark.parametrize(
    "url", ["sqlite:////srv/a@b/x.sqlite", "postgresql://u:p%40ss%2Fword@db/name?options=-ca%3Db@c"]
)
def test_a_right_database_url_may_hold_signs(tmp_path: Path, url: str) -> None:
    assert Settings(data=tmp_path, database_url=url).database_url == url


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("10.0.0.0/8, proxy", "proxy is no address; write addresses or networks such as 10.0.0.0/8, separated by"),
        ("10.0.0.7/8", "10.0.0.7/8 is an address inside a network; write 10.0.0.0/8 for"),
    ],
)
def test_a_wrong_setting_is_told_by_its_variable(tmp_path: Path, value: str, advice: str) -> None:
    line = refused(environment(data=tmp_path, trusted_proxies=value))
    assert line.startswith(f"error: FEDDDPM_AGGREGATOR_TRUSTED_PROXIES: {advice}")
    assert "FEDDDPM_AGGREGATOR_TICK_S: Input should be greater than 0" in refused(environment(data=tmp_path, tick_s=0))


@pytest.mark.parametrize("value", ["10.0.0.0/8, 10.1.2.3, fd00::/8", "::1"])
def test_right_proxies(tmp_path: Path, value: str) -> None:
    assert Settings(data=tmp_path, trusted_proxies=value).proxies == [item.strip() for item in value.split(",")]


def key_as_a_value(tmp_path: Path, purpose: str) -> tuple[str, str]:
    """A key file's content, and the secret in it."""
    path = tmp_path / f"{purpose}.json"
    write_key(path, key := SigningKey.generate(), purpose)
    return path.read_text(), key.seed.hex()


@pytest.mark.parametrize("purpose", [ROOT_PURPOSE, SERVER_PURPOSE])
@pytest.mark.parametrize("variable", ["root_key", "server_key"])
def test_a_key_in_the_place_of_its_file_is_not_shown(tmp_path: Path, purpose: str, variable: str) -> None:
    content, seed = key_as_a_value(tmp_path, purpose)
    write_key(tmp_path / "own.json", SigningKey.generate(), SERVER_PURPOSE)
    pod: dict[str, object] = {"data": tmp_path / "data", "server_key": tmp_path / "own.json", variable: content}
    line = refused(environment(**pod))
    assert "private" in line
    assert "treat this key as known to whoever reads this machine's environment" in line
    assert seed not in line
    encoded = base64.b64encode(content.encode()).decode()  # as it stands in a Secret
    line = refused(environment(**pod | {variable: encoded}))
    assert "(it is not shown)" in line
    assert encoded[:20] not in line


def test_other_secrets_in_the_place_of_their_files_are_not_shown(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_key(tmp_path / "own.json", SigningKey.generate(), SERVER_PURPOSE)
    pod: dict[str, object] = {"data": data, "server_key": tmp_path / "own.json"}
    line = refused(environment(**pod, page_password_file="correct-horse-battery"))
    assert "--page-password-file: there is no such file here" in line
    assert "horse" not in line
    assert "/nowhere/password cannot be read" in refused(environment(**pod, page_password_file="/nowhere/password"))
    chain, private = self_signed(tmp_path)
    line = refused(environment(**pod, tls_cert=chain, tls_key=private.read_text()))
    assert "--tls-key, given as the content of a private key file (not shown) cannot be read" in line
    line = refused(environment(**pod, blobs="s3://bucket:s3cr3t/word@host/prefix"))
    assert "AWS_SECRET_ACCESS_KEY" in line
    assert "word" not in line


def test_an_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVER_KEY", "ROOT_KEY", "DATABASE_URL", "BLOBS", "METRICS_PORT", "PAGE_PASSWORD_FILE"):
        monkeypatch.setenv(PREFIX + name, "")
    settings = Settings(data=tmp_path)
    assert settings.key_path == tmp_path / "server.key"
    assert (settings.root_key, settings.database_url, settings.blobs, settings.metrics_port) == (None,) * 4
