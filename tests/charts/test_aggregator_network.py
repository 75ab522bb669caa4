"""How the aggregator's chart lets others in, and itself out; scaling and watching."""

from __future__ import annotations

import json

import pytest
from tests.charts.charts import Manifest, container_of, env_of, kinds, of_kind, pod_of, template
from tests.support.repository import ROOT


def policy(values: str, ending: str) -> Manifest:
    return dict(of_kind(template("aggregator", values), "NetworkPolicy", ending)["spec"])


def reached(values: str) -> dict[int, object]:
    """Port and peers of each egress rule of the servers."""
    rules = policy(values, "-egress")["egress"]
    return {rule["ports"][0]["port"]: rule.get("to") for rule in rules}


@pytest.mark.parametrize(
    ("version", "scaler", "budget"),
    [
        ("1.20.2", "autoscaling/v2beta2", "policy/v1beta1"),
        ("1.22.0", "autoscaling/v2beta2", "policy/v1"),
        ("1.23.0", "autoscaling/v2", "policy/v1"),
        ("1.37.0", "autoscaling/v2", "policy/v1"),
    ],
)
def test_api_versions_follow_the_cluster(version: str, scaler: str, budget: str) -> None:
    manifests = template("aggregator", "production", "--kube-version", version)
    assert of_kind(manifests, "HorizontalPodAutoscaler")["apiVersion"] == scaler
    assert of_kind(manifests, "PodDisruptionBudget")["apiVersion"] == budget


def test_the_autoscaler_alone_decides_how_many() -> None:
    manifests = template("aggregator", "production")
    assert "replicas" not in of_kind(manifests, "Deployment")["spec"]
    spec = of_kind(manifests, "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == of_kind(manifests, "Deployment")["metadata"]["name"]
    assert of_kind(template("aggregator", "gateway-tls"), "Deployment")["spec"]["replicas"] == 3


def test_switches_are_off_by_default() -> None:
    assert kinds(template("aggregator", "sqlite")) == {
        "ConfigMap",
        "Deployment",
        "PersistentVolumeClaim",
        "Pod",
        "Service",
        "ServiceAccount",
    }


def test_the_ingress_lets_polls_wait_and_buffers_no_events() -> None:
    manifests = template("aggregator", "production")
    ingress = of_kind(manifests, "Ingress")
    assert ingress["apiVersion"] == "networking.k8s.io/v1"
    nginx = {name.split("/")[1]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert int(nginx["proxy-read-timeout"]) > 50
    assert nginx["proxy-buffering"] == nginx["proxy-request-buffering"] == "off"
    assert nginx["proxy-body-size"] == "8m"
    assert ingress["spec"]["tls"] == [{"secretName": "aggregator-tls", "hosts": ["aggregator.example.org"]}]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    service = of_kind(manifests, "Service", "aggregator")
    assert backend == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}


def test_the_ingress_speaks_tls_to_a_server_that_does() -> None:
    annotations = of_kind(template("aggregator", "everything"), "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "16m"


def test_the_route_cuts_off_no_poll_download_or_stream() -> None:
    route = of_kind(template("aggregator", "gateway-tls"), "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert rule["timeouts"] == {"request": "0s"}  # no limit, says the Gateway API
    assert rule["backendRefs"] == [{"name": "retina-aggregator", "port": 8750}]
    bare = of_kind(template("aggregator", "everything"), "HTTPRoute")["spec"]["rules"]
    assert not [rule for rule in bare if "timeouts" in rule]


def test_the_gateway_checks_the_servers_certificate() -> None:
    rules = of_kind(template("aggregator", "gateway-tls"), "BackendTLSPolicy")
    assert rules["apiVersion"] == "gateway.networking.k8s.io/v1alpha3"
    assert rules["spec"]["validation"]["hostname"] == "aggregator.fedddpm.svc"
    newer = ("--api-versions", "gateway.networking.k8s.io/v1/BackendTLSPolicy")
    stable = of_kind(template("aggregator", "gateway-tls", *newer), "BackendTLSPolicy")
    assert stable["apiVersion"] == "gateway.networking.k8s.io/v1"


def test_tls_files_are_a_whole_folder_so_that_renewed_ones_arrive() -> None:
    pod = pod_of(template("aggregator", "gateway-tls"), "Deployment")
    container = container_of(pod, "server")
    env = env_of(container)
    assert env["FEDDDPM_AGGREGATOR_TLS_CERT"] == "/etc/fedddpm/tls/tls.crt"
    assert env["FEDDDPM_AGGREGATOR_TLS_KEY"] == "/etc/fedddpm/tls/tls.key"
    assert {"name": "tls", "mountPath": "/etc/fedddpm/tls", "readOnly": True} in container["volumeMounts"]


def test_who_may_connect() -> None:
    rules = policy("production", "-ingress")["ingress"]
    institutions, metrics = rules
    assert [port["port"] for port in institutions["ports"]] == [8750]
    assert institutions["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "ingress-nginx"
    }
    assert institutions["from"][1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert [port["port"] for port in metrics["ports"]] == [9750]
    only = policy("ray-address", "-ingress")["ingress"]
    assert only == [{"ports": [{"port": 8750, "protocol": "TCP"}]}]  # everybody, and nobody reads metrics


def test_what_servers_reach() -> None:
    assert reached("production") == {
        53: [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
        8750: reached("production")[8750],
        5432: [{"ipBlock": {"cidr": "10.20.0.0/24"}}],
        443: [{"ipBlock": {"cidr": "10.30.0.0/24"}}],
    }
    assert set(reached("ray-address")) == {53, 8750, 5432, 443, 10001}
    assert reached("ray-cluster")[10001] == [
        {"podSelector": {"matchLabels": {"ray.io/cluster": "retina-aggregator-ray"}}}
    ]
    assert set(reached("everything")) == {53, 8750, 5432, 443, 10001, 4318}
    selected = policy("production", "-egress")["podSelector"]["matchExpressions"]
    assert selected[0]["values"] == ["server", "prepare", "test"]


@pytest.mark.parametrize("values", ["everything", "trial"])  # with networkPolicy.enabled, and without
def test_only_this_release_reaches_the_bundled_database(values: str) -> None:
    rules = policy(values, "-postgresql")
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    assert rules["egress"] == []
    database = of_kind(template("aggregator", values), "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert rules["podSelector"]["matchLabels"].items() <= database.items()
    ((peer,),) = (rule["from"] for rule in rules["ingress"])
    assert rules["ingress"][0]["ports"] == [{"port": 5432, "protocol": "TCP"}]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "retina"
    assert peer["podSelector"]["matchExpressions"] == [
        {"key": "app.kubernetes.io/component", "operator": "In", "values": ["server", "prepare", "test"]}
    ]


@pytest.mark.parametrize(("url", "port"), [("https://a.example.org", 443), ("http://a", 80), ("https://a:8443", 8443)])
def test_helm_test_reaches_the_address_that_it_asks(url: str, port: int) -> None:
    manifests = template("aggregator", "production", "--set", f"test.url={url}")
    rules = of_kind(manifests, "NetworkPolicy", "-test")["spec"]
    labels = of_kind(manifests, "Pod", "-test")["metadata"]["labels"]
    assert rules["podSelector"]["matchLabels"].items() <= labels.items()
    assert rules["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert rules["policyTypes"] == ["Egress"]
    assert rules["egress"] == [{"ports": [{"port": port, "protocol": "TCP"}]}]


def test_helm_test_reaches_nothing_more_where_it_asks_the_service() -> None:
    names = [m["metadata"]["name"] for m in template("aggregator", "production") if m["kind"] == "NetworkPolicy"]
    assert sorted(names) == ["retina-aggregator-egress", "retina-aggregator-ingress"]


def test_metrics_are_not_on_the_published_service() -> None:
    manifests = template("aggregator", "production")
    assert [port["port"] for port in of_kind(manifests, "Service", "aggregator")["spec"]["ports"]] == [8750]
    metrics = of_kind(manifests, "Service", "-metrics")
    assert metrics["spec"]["clusterIP"] == "None"
    env = env_of(container_of(pod_of(manifests, "Deployment"), "server"))
    assert env["FEDDDPM_AGGREGATOR_METRICS_PORT"] == "9750"
    monitor = of_kind(manifests, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= metrics["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == metrics["spec"]["ports"][0]["name"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    silent = template("aggregator", "sqlite", "--set", "metrics.enabled=false")
    assert "FEDDDPM_AGGREGATOR_METRICS_PORT" not in env_of(container_of(pod_of(silent, "Deployment"), "server"))


def test_the_dashboard_is_the_repositorys() -> None:
    board = of_kind(template("aggregator", "production"), "ConfigMap", "-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    source = ROOT / "aggregator_service" / "grafana" / "fedddpm.json"
    assert json.loads(board["data"]["fedddpm.json"]) == json.loads(source.read_text())


def test_the_ray_cluster() -> None:
    manifests = template("aggregator", "ray-cluster")
    cluster = of_kind(manifests, "RayCluster")
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    worker = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["image"] == "fedddpm-aggregator:0.1.0-ray"
    assert env_of(worker)["AWS_SECRET_ACCESS_KEY"] == {
        "secretKeyRef": {"name": "aggregator-object-store", "key": "AWS_SECRET_ACCESS_KEY"}
    }
    env = env_of(container_of(pod_of(manifests, "Deployment"), "server"))
    assert env["FEDDDPM_AGGREGATOR_RAY"] == "ray://retina-aggregator-ray-head-svc:10001"
    rules = of_kind(manifests, "NetworkPolicy", "-ray")["spec"]
    assert rules["podSelector"] == {"matchLabels": {"ray.io/cluster": "retina-aggregator-ray"}}
    assert "NetworkPolicy" in kinds(template("aggregator", "ray-cluster", "--set", "networkPolicy.enabled=false"))


def test_a_ray_cluster_that_is_there_already() -> None:
    manifests = template("aggregator", "ray-address")
    env = env_of(container_of(pod_of(manifests, "Deployment"), "server"))
    assert env["FEDDDPM_AGGREGATOR_RAY"] == "ray://ray-head.ray.svc:10001"
    assert "RayCluster" not in kinds(manifests)
