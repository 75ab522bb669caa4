"""The charts, rendered by a real helm, as Python objects. No cluster is needed.

helm is found by scripts/helm-tool; where that cannot find or fetch one the tests are skipped, unless
FEDDDPM_REQUIRE_HELM is set.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from tests.support.repository import ROOT

CHARTS = ROOT / "helm"
VALUES = sorted((path.parts[-3], path.name.removesuffix("-values.yaml")) for path in CHARTS.glob("*/ci/*-values.yaml"))
RELEASE, NAMESPACE = "retina", "fedddpm"
Manifest = dict[str, Any]


@cache
def helm() -> str:
    """The path of helm; skips or fails without one."""
    done = subprocess.run([ROOT / "scripts" / "helm-tool"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    reason = done.stderr.strip().splitlines()[-1]
    if os.environ.get("FEDDDPM_REQUIRE_HELM"):
        pytest.fail(f"FEDDDPM_REQUIRE_HELM is set, but {reason}")
    pytest.skip(reason)


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """helm with these arguments, whatever it says."""
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)


def values_file(chart: str, name: str) -> str:
    return str(CHARTS / chart / "ci" / f"{name}-values.yaml")


@cache
def template(chart: str, values: str, *more: str) -> tuple[Manifest, ...]:
    """The manifests of ``helm template`` with ``ci/VALUES-values.yaml`` and further arguments."""
    done = run_helm("template", RELEASE, str(CHARTS / chart), "-n", NAMESPACE, "-f", values_file(chart, values), *more)
    assert done.returncode == 0, done.stderr
    return tuple(manifest for manifest in yaml.load_all(done.stdout, yaml.CSafeLoader) if manifest)


def refusal(chart: str, values: str, *more: str) -> str:
    """What helm says when it refuses these values; an assertion fails when it does not."""
    done = run_helm("template", RELEASE, str(CHARTS / chart), "-f", values_file(chart, values), *more)
    assert done.returncode != 0, "helm took it"
    return done.stderr


def notes_of(chart: str, values: str, namespace: str, *more: str) -> str:
    """What ``helm install`` says at its end."""
    place = ("install", RELEASE, str(CHARTS / chart), "-n", namespace)
    done = run_helm(*place, "--dry-run=client", "-f", values_file(chart, values), *more)
    if "cluster unreachable" in done.stderr:
        pytest.skip("Helm 3 shows notes only where there is a cluster")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("NOTES:")[1]


def of_kind(manifests: tuple[Manifest, ...], kind: str, ending: str = "") -> Manifest:
    """The one manifest of a kind whose name ends so."""
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(ending)]
    assert len(found) == 1, f"{len(found)} of the kind {kind} with names that end in {ending!r}"
    return found[0]


def kinds(manifests: tuple[Manifest, ...]) -> set[str]:
    return {manifest["kind"] for manifest in manifests}


def pods(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest]]:
    """Name and spec of every pod that the manifests make."""
    for manifest in manifests:
        name, spec = f"{manifest['kind']} {manifest['metadata']['name']}", manifest.get("spec", {})
        if manifest["kind"] == "Pod":
            yield name, spec
        elif manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, spec["template"]["spec"]
        elif manifest["kind"] == "RayCluster":
            yield f"{name} head", spec["headGroupSpec"]["template"]["spec"]
            yield f"{name} workers", spec["workerGroupSpecs"][0]["template"]["spec"]


def pod_of(manifests: tuple[Manifest, ...], kind: str, ending: str = "") -> Manifest:
    """The spec of the pod in the one manifest of a kind."""
    manifest = of_kind(manifests, kind, ending)
    return next(spec for _, spec in pods((manifest,)))


def container_of(pod: Manifest, name: str) -> Manifest:
    """The container or init container of a name."""
    found = [c for c in (*pod.get("initContainers", ()), *pod["containers"]) if c["name"] == name]
    assert len(found) == 1, name
    return found[0]


def env_of(container: Manifest) -> dict[str, Any]:
    """Variables with their value or, where it comes from elsewhere, its source; none is named twice."""
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), names
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}
