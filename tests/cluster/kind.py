"""A kind cluster for the tests, by the tools that are on this machine: an engine, kind, kubectl and helm.

Three variables say in which world that is: ENGINE (docker or podman; by default the one that works), KIND_NODE_IMAGE
(kind's own by default) and KIND_CONFIG (tests/cluster/kind.yaml, which publishes the aggregator's port on 127.0.0.1).
A cluster of the name KIND_CLUSTER that is there already is used and left; otherwise one is made and taken down again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NODE_PORT = 30080  # as in kind.yaml
BY_HAND = "by-hand"  # storage class
ENGINES = ("docker", "podman")


class ClusterError(AssertionError):
    """A command of the cluster failed; the message holds what it printed."""


def run(*command: str | Path, stdin: bytes | None = None, timeout_s: float = 600, **environment: str) -> str:
    """As :func:`run_bytes`, for commands that print text."""
    return run_bytes(*command, stdin=stdin, timeout_s=timeout_s, **environment).decode(errors="replace")


def run_bytes(*command: str | Path, stdin: bytes | None = None, timeout_s: float = 600, **environment: str) -> bytes:
    """Run to the end; its standard output. ClusterError with everything it printed otherwise."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=stdin, capture_output=True, timeout=timeout_s, check=False, env=os.environ | environment
    )
    if done.returncode != 0:
        output, errors = (said.decode(errors="replace")[-6000:] for said in (done.stdout, done.stderr))
        raise ClusterError(f"{' '.join(words)} ended with {done.returncode}:\n{output}\n{errors}")
    return done.stdout


def until(true: Callable[[], Any], what: str, timeout_s: float = 180.0, pause_s: float = 0.5) -> Any:
    """Look again and again; what was found. AssertionError with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(pause_s)
    return found


@dataclass(frozen=True)
class World:
    """Which tools make the cluster."""

    engine: str
    node_image: str | None
    config: Path
    name: str

    @property
    def provider(self) -> dict[str, str]:
        """The variable by which kind finds its engine."""
        return {"KIND_EXPERIMENTAL_PROVIDER": self.engine}


def world_or_skip() -> World:
    """The world that the variables describe; skips with the reason where something is missing."""
    engine = os.environ.get("ENGINE") or next((name for name in ENGINES if _works(name)), "")
    missing = [tool for tool in ("kind", "kubectl", "helm") if shutil.which(tool) is None]
    if not engine:
        missing.insert(0, "a container engine that runs (docker or podman)")
    if missing:
        reason = f"no cluster can be made here without {', '.join(missing)}"
        if os.environ.get("FEDDDPM_REQUIRE_CLUSTER"):
            pytest.fail(f"FEDDDPM_REQUIRE_CLUSTER is set, but {reason}")
        pytest.skip(reason)
    return World(
        engine=engine,
        node_image=os.environ.get("KIND_NODE_IMAGE") or None,
        config=Path(os.environ.get("KIND_CONFIG") or HERE / "kind.yaml"),
        name=os.environ.get("KIND_CLUSTER") or "fedddpm-e2e",
    )


def _works(engine: str) -> bool:
    if shutil.which(engine) is None:
        return False
    return subprocess.run([engine, "info"], capture_output=True, check=False, timeout=60).returncode == 0


class Cluster:
    """A running cluster."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.kubeconfig = folder / "kubeconfig"
        version = run("helm", "version", "--template", "{{.Version}}")
        self._rollback = "--rollback-on-failure" if version.startswith("v4") else "--atomic"

    def kind(self, *arguments: str | Path) -> str:
        """A command of kind."""
        return run("kind", *arguments, timeout_s=900, **self.world.provider)

    def kubectl(self, *arguments: str | Path, stdin: bytes | None = None, timeout_s: float = 300) -> str:
        """A command of kubectl."""
        return run("kubectl", "--kubeconfig", self.kubeconfig, *arguments, stdin=stdin, timeout_s=timeout_s)

    def get(self, *arguments: str) -> dict[str, Any]:
        """``kubectl get ... -o json``."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}).encode()
        self.kubectl("apply", "-f", "-", stdin=content)

    def helm(self, *arguments: str | Path, timeout_s: float = 600) -> str:
        """A command of helm."""
        return run("helm", "--kubeconfig", self.kubeconfig, *arguments, timeout_s=timeout_s)

    def install(
        self,
        release: str,
        chart: Path,
        namespace: str,
        values: dict[str, Any],
        *,
        wait_s: int = 300,
        back: bool = False,
    ) -> None:
        """``helm upgrade --install`` that waits; ``back`` rolls a failed one back. ClusterError if it fails."""
        file = self.folder / f"{namespace}-{release}-values.json"
        file.write_text(json.dumps(values))
        way = [self._rollback] if back else []
        common = ("--namespace", namespace, "--values", file, "--wait", "--timeout", f"{wait_s}s")
        self.helm("upgrade", "--install", release, chart, *common, *way, timeout_s=3 * wait_s + 120)

    def namespace(self, name: str) -> None:
        """Make a namespace that takes restricted pods only."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def secret(self, namespace: str, name: str, content: Mapping[str, str | Path], kind: str = "Opaque") -> None:
        """Make a Secret of texts and files."""
        texts = {key: value.read_text() if isinstance(value, Path) else value for key, value in content.items()}
        meta = {"name": name, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": meta, "stringData": texts})

    def volume(self, namespace: str, claim: str) -> None:
        """A volume for a claim of the class ``BY_HAND``: what old clusters provision belongs to root alone."""
        path = f"/var/volumes/{namespace}/{claim}"
        run(self.world.engine, "exec", f"{self.world.name}-control-plane", "mkdir", "-p", "-m", "777", path)
        provisioner = {"provisioner": "kubernetes.io/no-provisioner", "metadata": {"name": BY_HAND}}
        spec = {
            "storageClassName": BY_HAND,
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": path},
            "claimRef": {"namespace": namespace, "name": claim},
        }
        volume = {"kind": "PersistentVolume", "metadata": {"name": f"{namespace}-{claim}"}, "spec": spec}
        self.apply(
            {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", **provisioner}, {"apiVersion": "v1", **volume}
        )

    def pods(self, namespace: str, labels: str = "") -> list[dict[str, Any]]:
        """Pods that are not about to leave."""
        found = self.get("pods", "-n", namespace, *(("-l", labels) if labels else ()))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def kill(self, namespace: str, pod: str) -> None:
        """As when its node dies: no SIGTERM, no grace."""
        self.kubectl("delete", "pod", "-n", namespace, pod, "--force", "--grace-period=0", "--wait=false")

    def logs(self, namespace: str, *arguments: str) -> str:
        """``kubectl logs``."""
        return self.kubectl("logs", "-n", namespace, *arguments)

    def load(self, images: Sequence[str]) -> None:
        """Bring images of the engine into the cluster, unless they are there."""
        node = (self.world.engine, "exec", f"{self.world.name}-control-plane")
        listed = run(*node, "ctr", "--namespace", "k8s.io", "images", "list").splitlines()
        digests = {words[0]: words[2] for words in map(str.split, listed) if len(words) > 2}
        for image in images:
            number = run(self.world.engine, "inspect", "--format", "{{.Id}}", image).strip().removeprefix("sha256:")
            if image in digests and digests[image] == digests.get(f"sha256:{number}"):
                continue
            archive = self.folder / "image.tar"
            run(self.world.engine, "save", "-o", archive, image)
            self.kind("load", "image-archive", archive, "--name", self.world.name)
            archive.unlink()


@contextmanager
def cluster(world: World, folder: Path) -> Iterator[Cluster]:
    """The cluster of this world: one that is there, or a new one that goes again."""
    running = Cluster(world, folder)
    mine = world.name not in running.kind("get", "clusters").split()
    try:
        if mine:
            image = ("--image", world.node_image) if world.node_image else ()
            running.kind("create", "cluster", "--name", world.name, "--config", world.config, "--wait", "180s", *image)
        running.kind("export", "kubeconfig", "--name", world.name, "--kubeconfig", running.kubeconfig)
        yield running
    finally:
        if mine:
            running.kind("delete", "cluster", "--name", world.name)
