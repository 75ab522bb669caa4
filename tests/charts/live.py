"""A cluster as a chart's ``lookup`` sees it: the addresses of a Kubernetes API that helm asks, over real HTTP.

tests/e2e/test_cluster.py installs the charts in a real one; this one runs wherever helm does.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from tests.charts.charts import NAMESPACE

_KINDS = {"secrets": "Secret", "serviceaccounts": "ServiceAccount"}
Secrets = Mapping[str, Mapping[str, str]]


def _answers(secrets: Secrets) -> dict[str, dict[str, Any]]:
    """Path and document of everything that is there: the account that each namespace has, and these Secrets."""
    kinds = [
        {"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": ["get"]}
        for name, kind in _KINDS.items()
    ]
    inside = f"/api/v1/namespaces/{NAMESPACE}"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}}
    there: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds},
        f"{inside}/serviceaccounts/default": account,
    }
    for name, data in secrets.items():
        meta = {"name": name, "namespace": NAMESPACE}
        there[f"{inside}/secrets/{name}"] = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": dict(data)}
    return there


@contextlib.contextmanager
def cluster_with(secrets: Secrets, folder: Path) -> Iterator[tuple[str, ...]]:
    """helm's arguments for a cluster in whose namespace these Secrets are (base64 by key)."""
    answers = _answers(secrets)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.split("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: helm says what matters."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "nobody", "user": {}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        try:
            yield ("--dry-run=server", "--kubeconfig", str(folder / "kubeconfig"), "-n", NAMESPACE)
        finally:
            server.shutdown()
