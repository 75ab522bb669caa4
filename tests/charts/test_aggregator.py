"""What the aggregator's chart promises of its pods, shown on the rendered manifests."""

from __future__ import annotations

import json

import pytest
from tests.charts.charts import (
    VALUES,
    Manifest,
    container_of,
    env_of,
    kinds,
    notes_of,
    of_kind,
    pod_of,
    template,
)

NAMES = [values for chart, values in VALUES if chart == "aggregator"]


def server(values: str, *more: str) -> Manifest:
    return container_of(pod_of(template("aggregator", values, *more), "Deployment"), "server")


def test_several_servers_are_replaced_one_by_one_and_only_when_the_new_one_is_ready() -> None:
    spec = of_kind(template("aggregator", "production"), "Deployment")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


@pytest.mark.parametrize("values", ["sqlite", "trial"])
def test_what_only_one_server_may_have_is_given_up_before_the_next_starts(values: str) -> None:
    assert of_kind(template("aggregator", values), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("values", NAMES)
def test_the_pod_lives_as_long_as_the_program_needs_to_leave(values: str) -> None:
    pod = pod_of(template("aggregator", values), "Deployment")
    env = env_of(container_of(pod, "server"))
    drain, grace = (env[f"FEDDDPM_AGGREGATOR_{name}"] for name in ("DRAIN_DELAY_S", "SHUTDOWN_GRACE_S"))
    assert pod["terminationGracePeriodSeconds"] == int(drain) + int(grace) + 5


@pytest.mark.parametrize(("values", "scheme"), [("production", "HTTP"), ("gateway-tls", "HTTPS")])
def test_probes_ask_whether_it_lives_and_whether_it_can_work(values: str, scheme: str) -> None:
    container = server(values)
    asked = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    paths = {probe: (get["path"], get["port"], get["scheme"]) for probe, get in asked.items()}
    assert paths == {
        "startupProbe": ("/healthz", 8750, scheme),
        "livenessProbe": ("/healthz", 8750, scheme),
        "readinessProbe": ("/readyz", 8750, scheme),
    }


@pytest.mark.parametrize("values", NAMES)
def test_prepare_and_server_see_the_same(values: str) -> None:
    pod = pod_of(template("aggregator", values), "Deployment")
    prepare, serve = container_of(pod, "prepare"), container_of(pod, "server")
    assert prepare["args"] == ["prepare", "--wait-s", "120"]
    assert serve["args"] == ["serve"]
    assert env_of(prepare) == env_of(serve)
    assert prepare["volumeMounts"] == serve["volumeMounts"]
    assert prepare["image"] == serve["image"]


@pytest.mark.parametrize("values", NAMES)
def test_the_selftest_has_the_servers_storage_and_none_of_its_secrets(values: str) -> None:
    manifests = template("aggregator", values)
    serve, test = container_of(pod_of(manifests, "Deployment"), "server"), pod_of(manifests, "Pod", "-test")
    selftest = container_of(test, "selftest")
    assert selftest["args"][:2] == ["selftest", "--url"]
    assert selftest["image"] == serve["image"]
    theirs, ours = env_of(serve), env_of(selftest)
    storage = {"FEDDDPM_AGGREGATOR_DATABASE_URL", "PGPASSWORD"}
    assert {name: ours[name] for name in storage & set(ours)} == {name: theirs[name] for name in storage & set(theirs)}
    added = {"OTEL_EXPORTER_OTLP_ENDPOINT"}  # by a values file
    extra = set(ours) - storage - added - {"HOME", "SSL_CERT_FILE", "FEDDDPM_AGGREGATOR_BLOBS"}
    assert all(name.startswith("AWS_") and ours[name] == theirs[name] for name in extra)
    mounted = {mount["name"]: mount["mountPath"] for mount in selftest["volumeMounts"]}
    assert set(mounted) <= {"tmp", "data", "ca", "more"}
    assert set(mounted) == {volume["name"] for volume in test["volumes"]}
    secrets = [volume["secret"] for volume in test["volumes"] if "secret" in volume]
    assert [item for secret in secrets for item in secret["items"]] == (
        [{"key": "ca.crt", "path": "ca.crt"}] if values == "gateway-tls" else []
    )


@pytest.mark.parametrize(
    ("values", "blobs", "mounts"),
    [
        ("production", "s3://fedddpm/retina", []),
        ("sqlite", "/data/blobs", [{"name": "data", "mountPath": "/data/blobs", "subPath": "blobs"}]),
        ("volume-shared", "/data/blobs", [{"name": "data", "mountPath": "/data/blobs", "subPath": "blobs"}]),
        ("trial", "/tmp/blobs", []),  # noqa: S108 - what is in the server's own emptyDir no other pod can see
    ],
)
def test_the_selftest_reaches_blobs_and_no_database_file(values: str, blobs: str, mounts: list[Manifest]) -> None:
    test = pod_of(template("aggregator", values), "Pod", "-test")
    selftest = container_of(test, "selftest")
    assert env_of(selftest)["FEDDDPM_AGGREGATOR_BLOBS"] == blobs
    assert [mount for mount in selftest["volumeMounts"] if mount["name"] == "data"] == mounts
    assert ("affinity" in test) == (values == "sqlite")  # its volume is on one node at a time


def test_the_selftest_asks_the_service() -> None:
    def url(values: str) -> str:
        return str(container_of(pod_of(template("aggregator", values), "Pod", "-test"), "selftest")["args"][2])

    assert url("sqlite") == "http://retina-aggregator.fedddpm.svc:8750"
    assert url("gateway-tls") == "https://retina-aggregator.fedddpm.svc:8750"
    assert url("everything") == "https://aggregator.example.org"
    pod = of_kind(template("aggregator", "gateway-tls"), "Pod", "-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert env_of(pod["spec"]["containers"][0])["SSL_CERT_FILE"] == "/etc/fedddpm/tls/ca.crt"


@pytest.mark.parametrize("values", [name for name in NAMES if name != "sqlite"])
def test_an_upgrade_prepares_the_database_before_it_changes_a_pod(values: str) -> None:
    manifests = template("aggregator", values)
    job = of_kind(manifests, "Job", "-prepare")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    pod = pod_of(manifests, "Job", "-prepare")
    ours, servers = env_of(container_of(pod, "prepare")), env_of(server(values))
    if values == "gateway-tls":  # a ConfigMap of the operator's own is there already
        assert ours == servers
        return
    following = of_kind(manifests, "ConfigMap", "-next")
    annotations = following["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade"
    assert int(annotations["helm.sh/hook-weight"]) < int(job["metadata"]["annotations"]["helm.sh/hook-weight"])
    assert following["data"] == of_kind(manifests, "ConfigMap", "-federation")["data"]
    assert {name for name in ours if ours[name] != servers[name]} == {"FEDDDPM_AGGREGATOR_ROOT_KEY"}
    assert ours["FEDDDPM_AGGREGATOR_ROOT_KEY"]["configMapKeyRef"]["name"] == following["metadata"]["name"]
    roster = next(volume for volume in pod["volumes"] if volume["name"] == "roster")
    assert roster["configMap"]["name"] == following["metadata"]["name"]


def test_sqlite_is_prepared_where_its_file_is_only() -> None:
    assert "Job" not in kinds(template("aggregator", "sqlite"))


@pytest.mark.parametrize("values", NAMES)
def test_secrets_come_from_secrets_only(values: str) -> None:
    manifests = template("aggregator", values)
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            assert set(manifest["data"]) <= {"root.pub", "roster.json", "fedddpm.json"}
            assert "seed" not in json.dumps(manifest["data"])
    env = env_of(server(values))
    if values != "sqlite":
        assert "password" not in str(env["FEDDDPM_AGGREGATOR_DATABASE_URL"])
    for name in ("PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert "secretKeyRef" in env.get(name, {"secretKeyRef": None})
    for volume in pod_of(manifests, "Deployment")["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440


def test_databases() -> None:
    def url(values: str) -> object:
        return env_of(server(values)).get("FEDDDPM_AGGREGATOR_DATABASE_URL")

    assert url("sqlite") is None
    assert url("production") == {"secretKeyRef": {"name": "aggregator-database", "key": "url"}}
    assert url("trial") == "postgresql://fedddpm@retina-aggregator-postgresql:5432/fedddpm"
    password = {"secretKeyRef": {"name": "retina-aggregator-postgresql", "key": "password"}}
    assert env_of(server("trial"))["PGPASSWORD"] == password


def test_a_new_roster_or_setting_makes_new_pods() -> None:
    def annotations(*more: str) -> dict[str, str]:
        manifest = of_kind(template("aggregator", "sqlite", *more), "Deployment")
        return dict(manifest["spec"]["template"]["metadata"]["annotations"])

    roster = json.dumps(json.dumps({"body": "YWJj", "signature": "YWJj"}))
    before, after = annotations(), annotations("--set-json", f"federation.roster={roster}")
    assert before["checksum/federation"] != after["checksum/federation"]
    assert before["checksum/settings"] != annotations("--set", "settings.KEEP_ROUNDS=5")["checksum/settings"]


def test_settings_arrive_as_they_were_written() -> None:
    env = env_of(server("production"))
    assert env["FEDDDPM_AGGREGATOR_MAX_BUFFERED_BYTES"] == "134217728"  # not 1.34217728e+08
    assert env["FEDDDPM_AGGREGATOR_AUTHORITIES"] == "aggregator.example.org"
    env = env_of(server("everything"))
    assert env["FEDDDPM_AGGREGATOR_TRACING"] == "true"
    assert env["FEDDDPM_AGGREGATOR_LEASE_S"] == "2.5"


def test_volumes() -> None:
    def data(values: str) -> Manifest:
        volumes = pod_of(template("aggregator", values), "Deployment")["volumes"]
        return dict(next(volume for volume in volumes if volume["name"] == "data"))

    assert data("sqlite")["persistentVolumeClaim"] == {"claimName": "retina-aggregator-data"}
    claim = of_kind(template("aggregator", "sqlite"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert data("volume-shared")["persistentVolumeClaim"]
    assert of_kind(template("aggregator", "volume-shared"), "PersistentVolumeClaim")["spec"]["accessModes"] == [
        "ReadWriteMany"
    ]
    assert data("trial")["emptyDir"] == data("production")["emptyDir"] == {}
    assert "PersistentVolumeClaim" not in kinds(template("aggregator", "production"))


def test_the_test_pod_goes_where_a_volume_of_one_node_is() -> None:
    assert "affinity" in pod_of(template("aggregator", "sqlite"), "Pod", "-test")
    assert "affinity" not in pod_of(template("aggregator", "volume-shared"), "Pod", "-test")


def test_servers_are_spread_over_nodes_and_zones() -> None:
    constraints = pod_of(template("aggregator", "production"), "Deployment")["topologySpreadConstraints"]
    assert [constraint["topologyKey"] for constraint in constraints] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    labels = of_kind(template("aggregator", "production"), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert all(constraint["labelSelector"]["matchLabels"].items() <= labels.items() for constraint in constraints)


def test_the_bundled_database() -> None:
    manifests = template("aggregator", "trial")
    pod = pod_of(manifests, "StatefulSet")
    container = container_of(pod, "postgresql")
    assert container["image"] == "docker.io/library/postgres:17-alpine"
    assert "command" not in container
    assert env_of(container)["POSTGRES_PASSWORD_FILE"] == "/etc/postgresql-password/password"  # noqa: S105 - a path
    secret = of_kind(manifests, "Secret")
    assert len(secret["data"]["password"]) >= 40
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "volumeClaimTemplates" not in of_kind(manifests, "StatefulSet")["spec"]
    assert (
        of_kind(manifests, "Service", "-postgresql")["spec"]["selector"]["app.kubernetes.io/component"] == "postgresql"
    )


def test_another_image_for_the_bundled_database() -> None:
    manifests = template("aggregator", "everything")
    container = container_of(pod_of(manifests, "StatefulSet"), "postgresql")
    assert container["image"] == "registry.example.org/postgresql:15"
    assert container["command"] == ["/usr/local/bin/start-postgresql"]
    assert container["readinessProbe"]["exec"]["command"][0] == "/usr/lib/postgresql/15/bin/pg_isready"
    assert "Secret" not in kinds(manifests)
    claim = of_kind(manifests, "StatefulSet")["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["storageClassName"] == "fast"


@pytest.mark.parametrize("values", NAMES)
def test_notes_say_what_comes_next(values: str) -> None:
    notes = notes_of("aggregator", values, "fedddpm")
    name = of_kind(template("aggregator", values), "Deployment")["metadata"]["name"]
    for command in (
        f"kubectl -n fedddpm rollout status deployment/{name}",
        "helm test retina -n fedddpm --logs",
        f"kubectl -n fedddpm exec -i deployment/{name} -c server -- ",
    ):
        assert command in notes
    assert ("Set settings.AUTHORITIES" in notes) == (values in ("gateway-tls", "everything"))
    assert ("will be gone with the pod" in notes) == (values == "trial")
    assert ("WARNING: the Ingress has no TLS" in notes) == (values == "everything")
    assert "fedddpm init-model --image-size 28 --channels 1 --seed 1 --out theta0.safetensors" in notes
