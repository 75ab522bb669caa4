"""Kubernetes' own schemas, from the package kubernetes-validate, each read once."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import all_versions, schema_contents
from referencing import Registry, Resource

# Charts write these too; their schemas come with the operators that define them.
CUSTOM = {
    "gateway.networking.k8s.io/v1 HTTPRoute",
    "gateway.networking.k8s.io/v1alpha3 BackendTLSPolicy",
    "gateway.networking.k8s.io/v1 BackendTLSPolicy",
    "monitoring.coreos.com/v1 ServiceMonitor",
    "monitoring.coreos.com/v1 PodMonitor",
    "ray.io/v1 RayCluster",
}


@cache
def _folder(version: str) -> str:
    """The folder of the newest schemas of a version such as 1.29; the strict ones refuse unknown fields."""
    full = [v for v in all_versions() if v.startswith(f"{version}.")][-1]
    return f"kubernetes-json-schema/v{full}-local-strict"


@cache
def _definitions(version: str) -> Resource[Any]:
    return Resource.from_contents(schema_contents(f"{_folder(version)}/_definitions.json", version))


@cache
def _validator(version: str, kind: str, api_version: str) -> Draft202012Validator:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1: rbac-v1
    schema = schema_contents(f"{_folder(version)}/{kind.lower()}-{group}.json", version)
    registry: Registry[Any] = _definitions(version) @ Registry()
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ registry)


def newest() -> str:
    """The newest version of Kubernetes that there are schemas of."""
    return ".".join(str(all_versions()[-1]).split(".")[:2])


def mistakes(manifest: dict[str, Any], version: str) -> list[str]:
    """What ``version`` of Kubernetes finds wrong with a manifest; FileNotFoundError if it has no such kind."""
    if f"{manifest['apiVersion']} {manifest['kind']}" in CUSTOM:
        return []
    found = _validator(version, manifest["kind"], manifest["apiVersion"]).iter_errors(manifest)
    where = f"{manifest['kind']} {manifest['metadata']['name']}"
    return [f"{where}, {'.'.join(str(step) for step in error.absolute_path)}: {error.message}" for error in found]
