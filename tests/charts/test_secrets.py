"""What the charts find in the cluster before they make anything: Secrets that are missing, keys that they lack."""

from __future__ import annotations

from pathlib import Path

from tests.charts.charts import CHARTS, RELEASE, run_helm, values_file
from tests.charts.live import Secrets, cluster_with

MINE = {"aggregator-server-key": {"server.key": "a2V5"}, "aggregator-page": {"password": "cGFzc3dvcmQ="}}
DATABASE = "retina-aggregator-postgresql"


def said(chart: str, values: str, secrets: Secrets, folder: Path, *more: str) -> str:
    """The one line that helm ends with in a cluster with these Secrets.

    Where the chart has nothing against them that line says that this cluster takes no objects.
    """
    with cluster_with(secrets, folder) as where:
        done = run_helm("template", RELEASE, str(CHARTS / chart), "-f", values_file(chart, values), *where, *more)
    lines = [line for line in done.stderr.splitlines() if line.strip() and "--debug" not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_no_new_password_for_a_database_that_has_one(tmp_path: Path) -> None:
    secrets = MINE | {DATABASE: {"password": "b2xk"}}
    text = said("aggregator", "trial", secrets, tmp_path, "--set", "postgresql.key=secret")
    assert f"the Secret {DATABASE}" in text
    assert "has no key secret: set postgresql.key to the one it has (password)" in text
    assert "b2xk" not in text


def test_the_password_that_is_there_and_the_first_one_are_nothing_to_refuse(tmp_path: Path) -> None:
    for there in ({DATABASE: {"password": "b2xk"}}, {}):
        assert "unable to build kubernetes objects" in said("aggregator", "trial", MINE | there, tmp_path)


def test_missing_secrets_and_keys_are_named(tmp_path: Path) -> None:
    text = said("aggregator", "sqlite", {}, tmp_path)
    assert "serverKey.existingSecret names the Secret aggregator-server-key, which is not in the namespace" in text
    text = said("aggregator", "sqlite", {"aggregator-server-key": {"other": "a2V5"}}, tmp_path)
    assert (
        "the Secret aggregator-server-key has no key server.key, which serverKey.existingSecret needs: it has" in text
    )
    text = said("institution", "job-cpu", {}, tmp_path)
    assert "identity.existingSecret names the Secret hospital-a-identity, which is not in the namespace" in text


def test_the_authority_is_in_the_secret(tmp_path: Path) -> None:
    secrets = MINE | {"tls": {"tls.crt": "YQ==", "tls.key": "YQ=="}}
    tls = ("--set", "tls.existingSecret=tls", "--set", "tls.caKey=ca.crt")
    text = said("aggregator", "sqlite", secrets, tmp_path, *tls)
    assert "the Secret tls has no key ca.crt, which tls.caKey needs: it has tls.crt, tls.key" in text
