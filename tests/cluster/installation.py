"""One federation in one cluster: root and operators outside, aggregator and institutions in namespaces of their own."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from local_federation import BIN, DURATIONS, LocalFederation
from obstore.store import S3Store
from tests.cluster.kind import BY_HAND, NODE_PORT, Cluster, run, until
from tests.support.low_floors import LOW_FLOORS
from tests.support.repository import ROOT

CHARTS = ROOT / "helm"
AGGREGATOR, SERVICES = "fedddpm", "services"  # namespaces
RELEASE = "aggregator"
INSIDE = f"https://{RELEASE}.{AGGREGATOR}.svc:8750"
OUTSIDE = f"https://127.0.0.1:{NODE_PORT}"
SERVICES_IMAGE = "localhost/fedddpm-e2e-services:test"
BUCKET = "fedddpm"
SIZE = 8  # pixels


def images(path: Path, seed: int, count: int) -> Path:
    """``count`` grey images of one soft spot each, as .npz."""
    random = np.random.default_rng(seed)
    centres = random.uniform(1, SIZE - 1, (count, 2, 1, 1))
    distance = ((np.mgrid[:SIZE, :SIZE] - centres) ** 2).sum(axis=1)
    np.savez_compressed(path, images=(255 * np.exp(-distance / 4)).astype(np.uint8))
    return path


def _written(store: S3Store) -> bool:
    """Whether the store takes an object, which also makes the bucket."""
    try:
        obstore.put(store, "first", b"")
    except obstore.exceptions.BaseError:
        return False
    return True


class Authority:
    """A private certificate authority and one server certificate, as files in a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.ca, self.certificate, self.key = (folder / name for name in ("ca.crt", "tls.crt", "tls.key"))
        authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federation's authority")])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName(
            [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        self_signed = _certificate(issuer, issuer, authority, x509.BasicConstraints(ca=True, path_length=0))
        signed = _certificate(subject, issuer, server, alternatives)
        self.ca.write_bytes(self_signed.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.certificate.write_bytes(signed.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            server.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    )


class Installation:
    """Keys and roster on this side, releases on the other."""

    def __init__(self, cluster: Cluster, folder: Path, members: Sequence[str], tags: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.cluster, self.folder, self.tags = cluster, folder, tags
        self.federation = LocalFederation(folder / "federation", members, c_max=1, n_min=3)
        self.authority = Authority(folder, [f"{RELEASE}.{AGGREGATOR}.svc"])
        self.values: dict[str, Any] = {}

    # --- the root's and the operator's desk ---------------------------------------------------------------------------

    def enrol(self) -> None:
        """Keys, an operator, and a roster that the root signs."""
        fed = self.federation
        fed.make_root_and_aggregator()
        for number, member in enumerate(fed.members):
            fed.new_identity(member)
            images(self.images(member), number, 12 + 2 * number)
        fed.aggregator("operator", "keygen", "--out", self.operator_key, "--operator", "ops")
        operator = f"ops={self.operator_key.with_suffix('.pub').read_text().strip()}"
        members = [word for member in fed.members for word in ("--member", f"{member}={fed.public_key(member)}")]
        fed.sign_roster("create", *members, "--operator", operator)

    def images(self, member: str) -> Path:
        """An institution's images."""
        return self.federation.site(member) / "images.npz"

    @property
    def operator_key(self) -> Path:
        """The operator's key file."""
        return self.federation.folder / "ops.key"

    def operator(self, *arguments: str | Path) -> str:
        """``fedddpm-aggregator operator ...`` from outside the cluster."""
        words = ("--url", OUTSIDE, "--key", self.operator_key)
        return run(BIN / "fedddpm-aggregator", "operator", *arguments, *words, SSL_CERT_FILE=str(self.authority.ca))

    def start_run(self, name: str, rounds: int, **options: object) -> None:
        """theta_0 and a run, with phases that a busy machine has time for."""
        model = self.federation.folder / f"{name}.safetensors"
        network = ("--image-size", str(SIZE), "--channels", "1", "--preset", "tiny")
        self.federation.fedddpm("init-model", *network, "--seed", str(secrets.randbelow(2**31)), "--out", model)
        settings = {"rounds": rounds, "batch_size": 8, "learning_rate": 1e-3, "chunk_coordinates": 16384}
        settings |= {"min_steps": 1, "min_images": 1}
        given = {key: value for key, value in options.items() if key not in DURATIONS}
        charter = self.federation.sign_run(name, "UDEC", model, **settings | given)
        durations = dict.fromkeys(DURATIONS, 120) | {key: options[key] for key in options if key in DURATIONS}
        words = [word for key, value in durations.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        self.operator("start-run", charter, "--initial-model", model, *words)

    def lines(self, run_name: str) -> list[dict[str, Any]]:
        """``operator rounds --json``."""
        found: list[dict[str, Any]] = json.loads(self.operator("rounds", "--run", run_name, "--json"))
        return found

    # --- the aggregator's cluster -------------------------------------------------------------------------------------

    def install_services(self) -> None:
        """An object store, as a cloud would have it."""
        self.cluster.namespace(SERVICES)
        self.keys = {"AWS_ACCESS_KEY_ID": "e2e", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
        labels = {"app": "store"}
        container = {
            "name": "store",
            "image": SERVICES_IMAGE,
            "command": ["object_store.sh"],
            "env": [{"name": name, "value": value} for name, value in self.keys.items()],
            "ports": [{"containerPort": 8333, "protocol": "TCP"}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8333}, "periodSeconds": 2},
            "volumeMounts": [{"name": "store", "mountPath": "/store"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a volume
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        template = {
            "metadata": {"labels": labels},
            "spec": {
                "containers": [container],
                "volumes": [{"name": "store", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 10070,
                    "fsGroup": 10070,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            },
        }
        meta = {"name": "store", "namespace": SERVICES}
        ports = [{"port": 8333, "targetPort": 8333, "protocol": "TCP"}]
        self.cluster.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": meta,
                "spec": {"selector": {"matchLabels": labels}, "template": template},
            },
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": labels, "ports": ports}},
        )
        self.cluster.kubectl("rollout", "status", "deployment/store", "-n", SERVICES, "--timeout=180s")
        with self.store() as store:
            until(lambda: _written(store), "an object store that takes objects")

    @contextlib.contextmanager
    def store(self) -> Iterator[S3Store]:
        """The object store's bucket, through a forwarded port."""
        command = ["kubectl", "--kubeconfig", str(self.cluster.kubeconfig), "port-forward", "-n", SERVICES]
        with subprocess.Popen([*command, "svc/store", ":8333"], stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout is not None
                port = forward.stdout.readline().split("127.0.0.1:")[1].split()[0]
                yield S3Store(
                    BUCKET,
                    endpoint=f"http://127.0.0.1:{port}",
                    region="us-east-1",
                    access_key_id=self.keys["AWS_ACCESS_KEY_ID"],
                    secret_access_key=self.keys["AWS_SECRET_ACCESS_KEY"],
                    client_options={"allow_http": True},
                )
            finally:
                forward.terminate()

    def prepare_namespace(self, namespace: str) -> None:
        """A namespace with the secrets that the aggregator's chart asks for."""
        self.cluster.namespace(namespace)
        self.cluster.secret(namespace, "server-key", {"server.key": self.federation.data / "server.key"})
        self.cluster.secret(namespace, "store", self.keys)
        tls = {"tls.crt": self.authority.certificate, "tls.key": self.authority.key, "ca.crt": self.authority.ca}
        self.cluster.secret(namespace, "tls", tls, "kubernetes.io/tls")

    def aggregator_values(self, **changes: Any) -> dict[str, Any]:
        """Two servers on the chart's own PostgreSQL and an object store, with TLS."""
        repository, _, tag = self.tags["aggregator"].rpartition(":")
        services, _, services_tag = SERVICES_IMAGE.rpartition(":")
        return {
            "image": {"repository": repository, "tag": tag},
            "federation": {"rootKey": self.federation.root_public, "roster": self.federation.roster.read_text()},
            "serverKey": {"existingSecret": "server-key"},
            "replicas": 2,
            "database": {"kind": "bundled"},
            "postgresql": {
                "image": {"repository": services, "tag": services_tag},
                "command": ["postgresql.sh"],
                "runAsUser": 10070,
                "ephemeral": True,
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
            },
            "blobs": {
                "kind": "s3",
                "s3": {
                    "url": f"s3://{BUCKET}/federation",
                    "existingSecret": "store",
                    "endpoint": f"http://store.{SERVICES}.svc:8333",
                    "region": "us-east-1",
                    "allowHttp": True,
                },
            },
            "tls": {"existingSecret": "tls", "caKey": "ca.crt"},
            "service": {"type": "NodePort", "nodePort": NODE_PORT},
            "shutdown": {"drainDelaySeconds": 3, "graceSeconds": 10},
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
            **changes,
        }

    def install_aggregator(self, *, back: bool = False, wait_s: int = 300, **changes: Any) -> None:
        """Install or upgrade the release; ``back`` rolls a failed upgrade back."""
        self.values = self.aggregator_values(**changes)
        self.cluster.install(RELEASE, CHARTS / "aggregator", AGGREGATOR, self.values, back=back, wait_s=wait_s)

    def servers(self) -> list[dict[str, Any]]:
        """The aggregator's pods."""
        return self.cluster.pods(AGGREGATOR, "app.kubernetes.io/component=server")

    def in_server(self, *command: str) -> str:
        """A command in one of the aggregator's pods."""
        return self.cluster.kubectl("exec", "-n", AGGREGATOR, f"deployment/{RELEASE}", "-c", "server", "--", *command)

    # --- the institutions' clusters -----------------------------------------------------------------------------------

    def prepare_site(self, member: str) -> None:
        """An institution's namespace: its identity, its images, the authority that it trusts."""
        self.cluster.namespace(member)
        self.cluster.volume(member, "site-institution-state")
        self.cluster.secret(member, "identity", {"identity.key": self.federation.site(member) / "identity.key"})
        content = base64.b64encode(self.images(member).read_bytes()).decode()
        authority = {"ca.crt": self.authority.ca.read_text()}
        for name, fields in (("images", {"binaryData": {"images.npz": content}}), ("authority", {"data": authority})):
            meta = {"name": name, "namespace": member}
            self.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **fields})

    def site_values(self, mode: str = "deployment") -> dict[str, Any]:
        """An institution on a CPU, which trusts the authority of this federation."""
        repository, _, tag = self.tags["institution"].rpartition(":")
        return {
            "mode": mode,
            "image": {"repository": repository, "tag": tag},
            "site": {
                "aggregator_url": INSIDE,
                "federation_root": self.federation.root_public,
                "data": "/images/images.npz",
                "network": {"poll_s": 5, "patience_s": 600},
                "policy": LOW_FLOORS,
            },
            "identity": {"existingSecret": "identity"},
            "images": {"volume": {"configMap": {"name": "images"}}},
            "caBundle": {"configMap": "authority"},
            "state": {"size": "1Gi", "storageClass": BY_HAND},
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        }

    def install_site(self, member: str, mode: str = "deployment") -> None:
        """Install or upgrade an institution's release; it need not be ready."""
        file = self.folder / f"{member}.json"
        file.write_text(json.dumps(self.site_values(mode)))
        self.cluster.helm("upgrade", "--install", "site", CHARTS / "institution", "-n", member, "-f", file)

    def site_pod(self, member: str) -> str:
        """The name of an institution's pod, once it runs."""

        def running() -> list[str]:
            pods = self.cluster.pods(member)
            return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

        names: list[str] = until(running, f"a running pod of {member}")
        return names[0]

    def site_rounds(self, member: str) -> list[dict[str, Any]]:
        """What an institution recorded of its finished rounds, from the state of its running pod."""
        text = self.cluster.kubectl("exec", "-n", member, self.site_pod(member), "--", "cat", "/state/rounds.jsonl")
        return [json.loads(line) for line in text.splitlines()]
