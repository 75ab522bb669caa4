"""All values in ci/ pass helm's lint and Kubernetes' own schemas, and keep the rules that hold for every object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.charts.charts import (
    CHARTS,
    VALUES,
    Manifest,
    of_kind,
    pod_of,
    pods,
    refusal,
    run_helm,
    template,
    values_file,
)
from tests.charts.schemas import mistakes, newest

VERSIONS = ("1.25", "1.29", "1.33", newest())
OTHERS = {"sidecar"}  # containers that a values file adds


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_lint_finds_nothing(chart: str, values: str) -> None:
    done = run_helm("lint", "--strict", str(CHARTS / chart), "-f", values_file(chart, values))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_kubernetes_takes_every_manifest(chart: str, values: str, version: str) -> None:
    manifests = template(chart, values, "--kube-version", version)
    assert not [mistake for manifest in manifests for mistake in mistakes(manifest, version)]


def test_a_wrong_manifest_is_found() -> None:
    deployment = of_kind(template("aggregator", "sqlite"), "Deployment")
    wrong = deployment | {"spec": deployment["spec"] | {"replica": 3}}
    assert "replica" in mistakes(wrong, newest())[0]


@pytest.mark.parametrize("chart", ["aggregator", "institution"])
def test_kubernetes_before_1_20_is_refused(chart: str) -> None:
    values = next(name for where, name in VALUES if where == chart)
    assert "incompatible with Kubernetes v1.19.16" in refusal(chart, values, "--kube-version", "1.19.16")
    assert template(chart, values, "--kube-version", "1.20.2")


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_pods_keep_the_restricted_standard(chart: str, values: str) -> None:
    found = list(pods(template(chart, values)))
    assert found
    for name, pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] >= 70, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        host_paths = [volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume]
        assert host_paths == (["/srv/images"] if (chart, values) == ("institution", "everything") else []), name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_containers_say_what_they_need_and_get_no_service_links(chart: str, values: str) -> None:
    """A link to the Service ``fedddpm-aggregator`` would set FEDDDPM_AGGREGATOR_PORT to tcp://..."""
    for name, pod in pods(template(chart, values)):
        assert pod["enableServiceLinks"] is False, name
        for container in containers(pod):
            assert {"requests", "limits"} <= set(container["resources"]), name
            assert "memory" in container["resources"]["limits"], name
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name  # noqa: S108


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_every_port_names_its_protocol(chart: str, values: str) -> None:
    """Without it a server-side apply cannot tell two ports apart."""
    for manifest in template(chart, values):
        if manifest["kind"] in ("HTTPRoute", "Ingress", "ServiceMonitor", "PodMonitor"):
            continue
        for place in walk(manifest):
            ports = [port for port in place.get("ports", ()) if isinstance(port, dict)]
            assert all(port.get("protocol") in ("TCP", "UDP") for port in ports), manifest["metadata"]["name"]


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_objects_have_the_usual_labels(chart: str, values: str) -> None:
    for manifest in template(chart, values):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "retina"
        assert labels["app.kubernetes.io/version"] == "0.1.0"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize(("chart", "kind"), [("aggregator", "Deployment"), ("institution", "Job")])
def test_what_a_user_adds_arrives(chart: str, kind: str) -> None:
    manifests = template(chart, "everything")
    pod = pod_of(manifests, kind)
    main = pod["containers"][0]
    assert {"name": "more", "emptyDir": {}} in pod["volumes"]
    assert {"name": "more", "mountPath": "/more"} in main["volumeMounts"]
    assert main["envFrom"]
    assert pod["priorityClassName"] == "important"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["affinity"]
    assert main["image"].endswith("@sha256:" + "0123456789abcdef" * 4)
    metadata = of_kind(manifests, kind)["spec"]["template"]["metadata"]
    assert metadata["annotations"]["example.org/note"] == "yes"
    assert "example.org/tier" in metadata["labels"]
    assert all(manifest["metadata"]["labels"]["example.org/owner"] == "research" for manifest in manifests)


def containers(pod: Manifest) -> list[Manifest]:
    return [c for c in (*pod.get("initContainers", ()), *pod["containers"]) if c["name"] not in OTHERS]
