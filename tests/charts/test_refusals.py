"""What cannot work is refused with a line that says what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.charts.charts import refusal, template

KEY_FILE = json.dumps({"purpose": "fedddpm-federation-root", "ed25519_seed": "00" * 32})
OTHER_JSON = json.dumps({"members": ["hospital-a"]})


def quoted(text: str) -> str:
    return json.dumps(text)


# values file, further values as JSON, what is said
AGGREGATOR = [
    ("sqlite", ['federation.rootKey=""'], "federation.rootKey is missing: set it to the root's public key"),
    (
        "sqlite",
        ['federation.rootKey="root.pub"'],
        "federation.rootKey is not 64 hex digits: set it to what stands in root",
    ),
    ("sqlite", ['federation.roster=""'], "federation.roster is missing: add --set-file federation.roster=roster.json"),
    ("sqlite", [f"federation.roster={quoted(KEY_FILE)}"], "the root's private key never enters a cluster"),
    ("sqlite", [f"federation.roster={quoted(OTHER_JSON)}"], "federation.roster is no signed roster"),
    ("sqlite", ['federation.roster="roster.json"'], "federation.roster is no signed roster"),
    (
        "sqlite",
        [f"federation.roster={quoted(json.dumps({'body': 'A' * 900_000, 'signature': 'A'}))}"],
        "federation.roster is larger than a ConfigMap can hold",
    ),
    ("sqlite", ['federation.existingConfigMap="own"'], "set it or them, not both"),
    ("sqlite", ['serverKey.existingSecret=""'], "serverKey.existingSecret is missing: make a Secret of server.key"),
    ("sqlite", ["replicas=2"], "SQLite has one server"),
    ("sqlite", ["autoscaling.enabled=true"], "SQLite has one server"),
    ("sqlite", ['strategy.type="RollingUpdate"'], "RollingUpdate needs two servers at a time, and the SQLite database"),
    ("sqlite", ['database.existingSecret="db"'], "set database.kind=external, or leave the Secret out"),
    ("sqlite", ['database.kind="external"'], "database.existingSecret is missing"),
    ("trial", ['database.existingSecret="db"'], "but database.kind is bundled"),
    ("trial", ["replicas=2"], "several servers cannot share blobs on this volume: set blobs.kind=s3"),
    ("trial", ['data.existingClaim="claim"'], "data.existingClaim and data.ephemeral exclude each other"),
    ("volume-shared", ['data.accessMode="ReadWriteOnce"'], "several servers cannot share blobs on this volume"),
    (
        "volume-shared",
        ['data.accessMode="ReadWriteOnce"', "replicas=1", "autoscaling.enabled=true"],
        "several servers cannot share blobs",
    ),
    (
        "volume-shared",
        ['data.accessMode="ReadWriteOnce"', "replicas=1", 'strategy.type="RollingUpdate"'],
        "and blobs on this volume has one: leave strategy.type empty",
    ),
    ("production", ['blobs.s3.url=""'], "blobs.s3.url is missing: set it to s3://bucket/prefix"),
    ("production", ['blobs.kind="volume"'], "blobs.s3.url is set, but blobs.kind is volume"),
    ("production", ["autoscaling.minReplicas=9"], "autoscaling.minReplicas is above autoscaling.maxReplicas"),
    ("production", ["resources.requests.cpu=null"], "autoscaling needs resources.requests.cpu"),
    ("production", ['ingress.host=""'], "ingress.host is missing"),
    (
        "production",
        ['ingress.host="https://aggregator.example.org"'],
        "no host name: write it like aggregator.example.org",
    ),
    ("production", ['ingress.host="aggregator.example.org:443"'], "no host name: write it like aggregator.example.org"),
    (
        "production",
        ["networkPolicy.metricsFrom=[]"],
        "lets nobody in: set networkPolicy.metricsFrom to where Prometheus",
    ),
    ("production", ["metrics.enabled=false"], "metrics.serviceMonitor needs metrics.enabled=true"),
    ("production", ["service.nodePort=30080"], "service.nodePort needs service.type=NodePort"),
    ("gateway-tls", ["gateway.parentRefs=[]"], "gateway.parentRefs is missing"),
    ("gateway-tls", ['gateway.backendTLS.hostname=""'], "gateway.backendTLS.hostname is missing"),
    (
        "ray-cluster",
        ['blobs.kind="volume"', 'blobs.s3.url=""', "replicas=1"],
        "ray.cluster needs blobs that its workers",
    ),
    ("ray-cluster", ['ray.cluster.rayVersion=""'], "ray.cluster.rayVersion is missing"),
    ("ray-cluster", ['ray.address="ray://other:10001"'], "ray.cluster.enabled and ray.address exclude each other"),
]
INSTITUTION = [
    ("job-cpu", ['site.aggregator_url=""'], "site.aggregator_url is missing"),
    ("job-cpu", ['site.federation_root=""'], "site.federation_root is missing"),
    (
        "job-cpu",
        ['site.federation_root="root.pub"'],
        "site.federation_root is not 64 hex digits: set it to what stands",
    ),
    ("job-cpu", ['site.aggregator_url="agg.example.org"'], "write it like https://aggregator.example.org"),
    ("job-cpu", ['site.aggregator_url="https://me:secret@agg.example.org"'], "without user, password, ? and #"),
    (
        "job-cpu",
        ['site.network.proxy="http://me:secret@proxy:3128"'],
        "without a password, which the ConfigMap would show",
    ),
    ("job-cpu", ["site.policy.min_cohort=2"], "set it to 3 or more, or site.policy.allow_two_party=true"),
    ("job-cpu", ['site.data="retina/train.npz"'], "site.data is retina/train.npz, a path without a beginning"),
    ("deployment-gpu", ["networkPolicy.metricsFrom=[]"], "lets nobody in: set networkPolicy.metricsFrom to where"),
    ("job-cpu", ['identity.existingSecret=""'], "identity.existingSecret is missing: make a Secret of the key file"),
    ("job-cpu", ['images.existingClaim=""'], "there is no volume with images"),
    ("job-cpu", ['images.hostPath="/srv"'], "images.existingClaim and images.hostPath exclude each other"),
    ("proxy-private-ca", ['caBundle.configMap="ca"'], "caBundle.secret and caBundle.configMap exclude each other"),
]
# How Helm 3 and 4 say it.
NOT_AN_INTEGER, NOT_TEXT = ("Expected: integer", "want integer"), ("Expected: string", "want string")
PATTERN, TOO_SMALL, UNKNOWN = ("pattern",), ("greater than or equal", "minimum"), ("not allowed",)
NOT_ONE_OF, TOO_LARGE = ("must be one of",), ("less than or equal", "maximum")
# chart, further values as JSON, the place and the rule that the schema names
WRONG = [
    ("aggregator", ['replicas="two"'], "/replicas", NOT_AN_INTEGER),
    ("aggregator", ["replicas=-1"], "/replicas", TOO_SMALL),
    ("aggregator", ['database.kind="mysql"'], "/database/kind", NOT_ONE_OF),
    ("aggregator", ['replica="3"'], "replica", UNKNOWN),
    ("aggregator", ["settings.KEEP_ROUND=5"], "/settings", UNKNOWN),
    ("aggregator", ['settings.DATABASE_URL="sqlite://"'], "/settings", UNKNOWN),
    ("aggregator", ['settings.KEEP_ROUNDS="five"'], "/settings/KEEP_ROUNDS", NOT_AN_INTEGER),
    ("aggregator", ["image.tag=17"], "/image/tag", NOT_TEXT),
    ("aggregator", ['blobs.s3.url="https://bucket"'], "/blobs/s3/url", PATTERN),
    ("aggregator", ["metrics.port=80"], "/metrics/port", TOO_SMALL),
    ("aggregator", ['postgresql.user="o\'brien"'], "/postgresql/user", PATTERN),
    ("institution", ['mode="cron"'], "/mode", NOT_ONE_OF),
    ("institution", ["site.federation_root=5"], "/site/federation_root", NOT_TEXT),
    ("institution", ["site.network.poll_s=301"], "/site/network/poll_s", TOO_LARGE),
    ("institution", ["metrics.silenceSeconds=59"], "/metrics/silenceSeconds", TOO_SMALL),
    ("institution", ["site.policy.min_cohort=1"], "/site/policy/min_cohort", TOO_SMALL),
    ("institution", ["site.policy.min_cohorts=3"], "/site/policy", UNKNOWN),
    ("institution", ['site.state_dir="/tmp"'], "/site", UNKNOWN),
    ("institution", ["gpu.count=1.5"], "/gpu/count", NOT_AN_INTEGER),
    ("institution", ["networkPolicy.cidrs=[]"], "/networkPolicy/cidrs", ("at least 1 items", "minItems")),
]


def as_arguments(values: list[str], folder: Path) -> list[str]:
    """As --set-json; a long one goes through a file."""
    arguments = []
    for value in values:
        name, text = value.split("=", 1)
        if len(text) > 100_000:
            (folder / "long").write_text(json.loads(text))
            arguments += ["--set-file", f"{name}={folder / 'long'}"]
        else:
            arguments += ["--set-json", value]
    return arguments


@pytest.mark.parametrize(
    ("chart", "values", "more", "said"),
    [("aggregator", *row) for row in AGGREGATOR] + [("institution", *row) for row in INSTITUTION],
)
def test_what_cannot_work_is_refused(chart: str, values: str, more: list[str], said: str, tmp_path: Path) -> None:
    text = refusal(chart, values, *as_arguments(more, tmp_path))
    assert said in text
    assert "ed25519_seed" not in text
    assert "secret@" not in text
    assert len([line for line in text.splitlines() if line.strip() and "--debug" not in line]) == 1, text


@pytest.mark.parametrize(
    ("chart", "values", "more"),
    [
        ("aggregator", "production", ["metrics.serviceMonitor.enabled=false", "networkPolicy.metricsFrom=[]"]),
        ("aggregator", "production", ["networkPolicy.enabled=false", "networkPolicy.metricsFrom=[]"]),
        ("aggregator", "production", ['ingress.host="localhost"']),
        ("institution", "deployment-gpu", ["networkPolicy.enabled=false", "networkPolicy.metricsFrom=[]"]),
        ("institution", "job-cpu", ["site.policy.min_cohort=2", "site.policy.allow_two_party=true"]),
        ("institution", "job-cpu", ['site.data="fashion-mnist"']),
        ("institution", "job-cpu", ['site.aggregator_url="http://aggregator.fedddpm.svc:8750/under/a/path"']),
        ("institution", "job-cpu", ["site.network.poll_s=300", "metrics.silenceSeconds=60"]),
    ],
)
def test_what_is_beside_a_refusal_is_taken(chart: str, values: str, more: list[str], tmp_path: Path) -> None:
    assert template(chart, values, *as_arguments(more, tmp_path))


@pytest.mark.parametrize(("chart", "more", "place", "rule"), WRONG)
def test_wrong_types_and_unknown_names_are_refused(
    chart: str, more: list[str], place: str, rule: tuple[str, ...], tmp_path: Path
) -> None:
    text = refusal(chart, "sqlite" if chart == "aggregator" else "job-cpu", *as_arguments(more, tmp_path))
    assert "values don't meet the specifications of the schema" in text
    assert place in text or place.strip("/").replace("/", ".") in text
    assert any(words in text for words in rule), text


def test_without_any_values_the_first_missing_one_is_named() -> None:
    from tests.charts.charts import CHARTS, run_helm

    for chart, said in (
        ("aggregator", "federation.rootKey is missing"),
        ("institution", "site.aggregator_url is missing"),
    ):
        assert said in run_helm("template", "retina", str(CHARTS / chart)).stderr
