"""docs/cluster.md and the charts' READMEs: the values that they show render, and images come from a registry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.charts.charts import CHARTS, container_of, of_kind, pod_of, template
from tests.support.repository import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()
ROSTER = json.dumps(json.dumps({"body": "YWJj", "signature": "YWJj"}))
REGISTRY = "registry.example.org/fedddpm/"


def shown(chart: str) -> str:
    """The values file that the page shows for a chart."""
    name = {"aggregator": "serverKey", "institution": "site"}[chart]
    (block,) = [
        text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if re.search(f"^{name}:", text, re.M)
    ]
    return re.sub("<64 hex digits[^>]*>", "ab" * 32, block)


def rendered(chart: str, folder: Path, *more: str) -> Any:
    (folder / "values.yaml").write_text(shown(chart))
    base = {"aggregator": "sqlite", "institution": "job-cpu"}[chart]
    roster = ("--set-json", f"federation.roster={ROSTER}") if chart == "aggregator" else ()
    return template(chart, base, "-f", str(folder / "values.yaml"), *roster, *more)


def test_the_operators_values(tmp_path: Path) -> None:
    manifests = rendered("aggregator", tmp_path)
    pod = pod_of(manifests, "Deployment")
    assert container_of(pod, "server")["image"] == f"{REGISTRY}fedddpm-aggregator:0.1.0"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert of_kind(manifests, "ServiceMonitor")
    metrics = of_kind(manifests, "NetworkPolicy", "-ingress")["spec"]["ingress"][1]
    assert metrics["ports"][0]["port"] == 9750
    assert metrics["from"]


@pytest.mark.parametrize(("gpus", "variant"), [(1, "cuda12"), (0, "cpu")])
def test_the_institutions_values(gpus: int, variant: str, tmp_path: Path) -> None:
    pod = pod_of(rendered("institution", tmp_path, "--set", f"gpu.count={gpus}"), "Job")
    image = container_of(pod, "institution")["image"]
    assert image == f"{REGISTRY}fedddpm-institution:0.1.0-{variant}"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert f"institution-{variant}" in PAGE  # as scripts/images.py calls it
    assert image.removeprefix(f"{REGISTRY}fedddpm-institution:") in PAGE


@pytest.mark.parametrize(
    "text", [PAGE, *((CHARTS / name / "README.md").read_text() for name in ("aggregator", "institution"))]
)
def test_commands_that_set_values_name_the_image(text: str) -> None:
    commands = re.findall(r"^helm install (?:.*\\\n)*.*$", text, re.M)
    assert commands
    for command in commands:
        assert "image.repository=registry.example.org/" in command or " -f values.yaml" in command, command
    assert "make images" in text


def test_the_sizes_are_those_that_were_measured() -> None:
    rows = json.loads((ROOT / "docs" / "results" / "service_load.json").read_text())["SQLite"]["rows"]
    lines = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)
    wanted = [(r["institutions"], r["bits"], sum(r["round_s"]) / len(r["round_s"]), r["server_cpu_s"]) for r in rows]
    assert len(lines) == len(wanted)
    for line, row in zip(lines, wanted, strict=True):
        assert tuple(map(float, line)) == pytest.approx(row, abs=0.051)


@pytest.mark.parametrize(
    "command", ["rollout status deployment/aggregator", "-c prepare --prefix --tail=-1", "init-model"]
)
def test_the_page_has_the_steps_between(command: str) -> None:
    assert command in PAGE
    assert "logs deployment/aggregator -c prepare" not in PAGE  # chooses an old pod, which is ready
