"""What the institution's chart promises, shown on the rendered manifests."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

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

from fedddpm.config import load_config

NAMES = [values for chart, values in VALUES if chart == "institution"]


def pod(values: str, *more: str) -> Manifest:
    kind = "Deployment" if values == "deployment-gpu" else "Job"
    return pod_of(template("institution", values, *more), kind)


def site_text(values: str, *more: str) -> str:
    return str(of_kind(template("institution", values, *more), "ConfigMap")["data"]["site.toml"])


def site(values: str, *more: str) -> dict[str, Any]:
    return tomllib.loads(site_text(values, *more))


@pytest.mark.parametrize("values", NAMES)
def test_the_sdk_takes_every_site_toml(values: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(site_text(values))
    config = load_config(tmp_path / "site.toml")
    assert config.state_dir == Path("/state")
    assert config.identity == Path("/etc/fedddpm/identity/identity.key")


def test_values_arrive_in_site_toml_as_they_were_written() -> None:
    found = site("everything")
    assert found["data"] == '/images/retina "left".npz'
    assert found["limit"] == 2_000_000
    assert isinstance(found["limit"], int)
    assert found["holdout"] == 0.05
    assert found["policy"] == {
        "min_cohort": 4,
        "max_clip_norm": 2.5,
        "warn_share": 0.5,
        "max_share": 0.8,
        "stop_on_alarm": True,
        "approve_runs": False,
        "min_bits": 8,
        "check_sums": 2,
        "require_checks": True,
    }
    assert found["learning"] == {"compile": True, "error_feedback": True}
    assert found["metrics"] == {"host": "0.0.0.0", "port": 9999, "silence_s": 600}  # noqa: S104 - for Prometheus
    assert found["log_format"] == "json"


def test_text_cannot_leave_its_string() -> None:
    evil = 'x"\n[policy]\nallow_two_party = true\n# \\'
    found = site("job-cpu", "--set-json", f"site.data={json.dumps(evil)}")
    assert found["data"] == evil
    assert "allow_two_party" not in found["policy"]


def test_a_private_authority_a_client_certificate_and_a_proxy() -> None:
    assert site("proxy-private-ca")["network"] == {
        "proxy": "http://proxy.hospital.example:3128",
        "patience_s": 604800,
        "ca_bundle": "/etc/fedddpm/ca/ca.crt",
        "client_certificate": "/etc/fedddpm/client/tls.crt",
        "client_key": "/etc/fedddpm/client/tls.key",
    }
    volumes = {volume["name"]: volume for volume in pod("proxy-private-ca")["volumes"]}
    assert volumes["ca"]["secret"]["items"] == [{"key": "bundle.pem", "path": "ca.crt"}]
    assert volumes["client"]["secret"]["secretName"] == "hospital-a-client"
    assert {v["name"]: v for v in pod("everything")["volumes"]}["ca"]["configMap"]["name"] == "authorities"


def test_a_job_whose_pods_resume_and_stay_to_be_read() -> None:
    spec = of_kind(template("institution", "job-cpu"), "Job")["spec"]
    assert spec["backoffLimit"] == 30
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert "ttlSecondsAfterFinished" not in spec
    assert pod("job-cpu")["restartPolicy"] == "Never"
    main = container_of(pod("job-cpu"), "institution")
    assert main["args"] == ["participate"]
    assert "command" not in main
    assert {"name": "state", "mountPath": "/state"} in main["volumeMounts"]
    assert of_kind(template("institution", "everything"), "Job")["spec"]["ttlSecondsAfterFinished"] == 86400


def test_what_no_retry_helps_ends_the_job_where_kubernetes_can_tell() -> None:
    rules = of_kind(template("institution", "job-cpu"), "Job")["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["values"] == [2, 3]
    older = of_kind(template("institution", "job-cpu", "--kube-version", "1.25.0"), "Job")
    assert "podFailurePolicy" not in older["spec"]


def test_other_settings_make_another_job_since_a_jobs_pod_cannot_be_changed() -> None:
    def name(*more: str) -> str:
        return str(of_kind(template("institution", "job-cpu", *more), "Job")["metadata"]["name"])

    assert name() == name("--set", "job.backoffLimit=3")
    assert name() != name("--set", "site.policy.max_epochs=3")
    assert name() != name("--set", "image.tag=0.1.1")


def test_a_deployment_stands_by_and_is_there_once() -> None:
    deployment = of_kind(template("institution", "deployment-gpu"), "Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert container_of(pod("deployment-gpu"), "institution")["args"] == ["participate", "--stand-by"]


def test_gpus() -> None:
    main = container_of(pod("deployment-gpu"), "institution")
    assert main["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "4"}
    assert main["command"] == ["torchrun", "--standalone", "--nproc-per-node", "4", "-m", "fedddpm"]
    assert pod("deployment-gpu")["runtimeClassName"] == "nvidia"
    assert pod("deployment-gpu")["nodeSelector"] == {"accelerator": "h100"}
    assert pod("deployment-gpu")["tolerations"]
    one = container_of(pod("everything"), "institution")
    assert one["resources"]["limits"]["amd.com/gpu"] == "1"
    assert "command" not in one
    assert set(container_of(pod("job-cpu"), "institution")["resources"]["limits"]) == {"memory"}


@pytest.mark.parametrize("values", NAMES)
def test_images_are_read_only_and_identity_is_a_secret(values: str) -> None:
    spec = pod(values)
    main = container_of(spec, "institution")
    mounts = {mount["name"]: mount for mount in main["volumeMounts"]}
    assert mounts["images"]["mountPath"] == "/images"
    assert mounts["images"]["readOnly"] is True
    assert mounts["identity"]["readOnly"] is True
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["identity"]["secret"]["defaultMode"] == 0o440
    assert volumes["identity"]["secret"]["items"][0]["path"] == "identity.key"
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert env_of(main)["FEDDDPM_SITE_CONFIG"] == "/etc/fedddpm/site.toml"
    assert env_of(main)["HOME"] == "/tmp"  # noqa: S108


def test_images_from_a_claim_a_csi_volume_or_a_folder_of_the_node() -> None:
    def images(values: str) -> Manifest:
        return dict(next(volume for volume in pod(values)["volumes"] if volume["name"] == "images"))

    assert images("job-cpu")["persistentVolumeClaim"] == {"claimName": "retina-images", "readOnly": True}
    assert images("deployment-gpu")["csi"]["driver"] == "csi.example.org"
    assert images("everything")["hostPath"] == {"path": "/srv/images", "type": "Directory"}


def test_state_outlives_the_release() -> None:
    claim = of_kind(template("institution", "job-cpu"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    gone = of_kind(template("institution", "job-cpu", "--set", "state.keep=false"), "PersistentVolumeClaim")
    assert "annotations" not in gone["metadata"]
    assert "PersistentVolumeClaim" not in kinds(template("institution", "everything"))


@pytest.mark.parametrize("values", NAMES)
def test_health_and_metrics(values: str) -> None:
    main = container_of(pod(values), "institution")
    port = site(values)["metrics"]["port"]
    assert main["ports"] == [{"name": "metrics", "containerPort": port, "protocol": "TCP"}]
    assert main["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert "readinessProbe" not in main  # nobody is routed here


def test_nobody_connects_and_only_the_aggregator_is_reached() -> None:
    rules = of_kind(template("institution", "job-cpu"), "NetworkPolicy")["spec"]
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    assert rules["ingress"] == []
    dns, aggregator = rules["egress"]
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert aggregator["ports"] == [{"port": 443, "protocol": "TCP"}]
    proxied = of_kind(template("institution", "proxy-private-ca"), "NetworkPolicy")["spec"]["egress"][1]
    assert proxied["ports"] == [{"port": 3128, "protocol": "TCP"}]
    more = of_kind(template("institution", "everything"), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in more[1]["ports"]] == [443, 8750]
    assert more[2]["ports"][0]["port"] == 2049


def test_prometheus_is_let_in_from_where_it_is() -> None:
    manifests = template("institution", "deployment-gpu")
    rules = of_kind(manifests, "NetworkPolicy")["spec"]
    assert rules["ingress"][0]["ports"] == [{"port": 9760, "protocol": "TCP"}]
    assert rules["egress"][1]["to"] == [{"ipBlock": {"cidr": "203.0.113.7/32"}}]
    monitor = of_kind(manifests, "PodMonitor")["spec"]
    labels = of_kind(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["port"] == "metrics"


@pytest.mark.parametrize("values", NAMES)
def test_notes_say_what_comes_next(values: str) -> None:
    notes = notes_of("institution", values, "lab")
    manifests = template("institution", values)
    kind = "Deployment" if values == "deployment-gpu" else "Job"
    workload = f"{kind.lower()}/{of_kind(manifests, kind)['metadata']['name']}"
    for command in (f"logs {workload} -f", f"exec {workload} -- fedddpm status", f"port-forward {workload}"):
        assert f"kubectl -n lab {command}" in notes


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://aggregator.example.org", True),
        ("http://aggregator.svc.example.org:8750", True),
        ("http://aggregator.fedddpm.svc:8750", False),
        ("http://aggregator.fedddpm.svc.cluster.local/federation", False),
        ("https://aggregator.example.org", False),
    ],
)
def test_notes_warn_of_http_that_leaves_the_cluster(url: str, warned: bool) -> None:
    notes = notes_of("institution", "job-cpu", "lab", "--set", f"site.aggregator_url={url}")
    assert ("WARNING: site.aggregator_url begins with http://" in notes) == warned


def test_the_image_follows_the_gpus() -> None:
    assert container_of(pod("job-cpu"), "institution")["image"] == "fedddpm-institution:0.1.0-cpu"
    assert container_of(pod("deployment-gpu"), "institution")["image"] == "fedddpm-institution:0.1.0-cuda12"
    own = container_of(pod("job-cpu", "--set", "image.tag=mine"), "institution")
    assert own["image"] == "fedddpm-institution:mine"
