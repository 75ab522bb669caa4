"""What stands twice agrees: versions, the dashboard, settings and their schema, tables of values."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from tests.charts.charts import CHARTS
from tests.support.repository import ROOT

from fedddpm.config import ClientConfig, LearningOptions, LocalPolicyOptions, NetworkOptions, SamplesOptions
from fedddpm_aggregator.settings import Settings

# What the charts themselves set.
OURS_AGGREGATOR = {
    *("data", "database_url", "blobs", "host", "port", "server_key", "root_key", "roster", "ray"),
    *("tls_cert", "tls_key", "page_password_file", "metrics_port", "metrics_host", "drain_delay_s", "shutdown_grace_s"),
}
OURS_INSTITUTION = {"identity", "state_dir", "log_format", "metrics", "stand_by"}
NOT_IN_THE_IMAGE = {"observe"}  # TensorBoard and MLflow are extras of the SDK
LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "enum"}
CHART_NAMES = ("aggregator", "institution")


def schema(chart: str) -> dict[str, Any]:
    return dict(json.loads((CHARTS / chart / "values.schema.json").read_text()))


def values(chart: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHARTS / chart / "values.yaml").read_text()))


@pytest.mark.parametrize(("chart", "project"), [("aggregator", "aggregator_service"), ("institution", "sdk")])
def test_a_chart_installs_the_version_that_it_belongs_to(chart: str, project: str) -> None:
    about = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]["version"]
    assert about["appVersion"] == version
    assert about["kubeVersion"] == ">=1.20.0-0"


def test_the_dashboard_is_a_copy() -> None:
    copy = CHARTS / "aggregator" / "files" / "grafana-dashboard.json"
    source = ROOT / "aggregator_service" / "grafana" / "fedddpm.json"
    assert copy.read_bytes() == source.read_bytes(), f"cp {source} {copy}"


def rules(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Types and limits of each field of a model, as a chart's schema writes them."""
    return {name: rule(field) for name, field in model.model_json_schema(by_alias=False)["properties"].items()}


def rule(field: dict[str, Any]) -> dict[str, Any]:
    """Types and limits of one value: ``null`` is left out, which in a chart is a value that is not given."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    found = {name: value for choice in choices for name, value in choice.items() if name in LIMITS}
    kinds = [kind for choice in choices for kind in ([choice["type"]] if "type" in choice else [])]
    listed = field["type"] if isinstance(field.get("type"), list) else kinds
    return found | {"types": set(listed)}


def compare(ours: dict[str, Any], theirs: dict[str, dict[str, Any]], set_by_the_chart: set[str]) -> None:
    """The same names but the chart's own, and for each the same types and limits."""
    assert set(ours) == set(theirs) - set_by_the_chart
    wrong = {name: (rule(field), theirs[name]) for name, field in ours.items() if rule(field) != theirs[name]}
    assert not wrong


def test_the_aggregators_settings_are_those_of_the_program() -> None:
    theirs = {name.upper(): found for name, found in rules(Settings).items()}
    ours = schema("aggregator")["properties"]["settings"]["properties"]
    compare(ours, theirs, {name.upper() for name in OURS_AGGREGATOR})


def test_the_institutions_settings_are_those_of_the_sdk() -> None:
    site = schema("institution")["properties"]["site"]["properties"]
    tables = {"policy", "learning", "network", "samples"}
    values = {name: found for name, found in site.items() if name not in tables}
    compare(values, rules(ClientConfig), OURS_INSTITUTION | NOT_IN_THE_IMAGE | tables)
    compare(site["policy"]["properties"], rules(LocalPolicyOptions), set())
    compare(site["learning"]["properties"], rules(LearningOptions), set())
    compare(site["samples"]["properties"], rules(SamplesOptions), set())
    compare(site["network"]["properties"], rules(NetworkOptions), {"ca_bundle", "client_certificate", "client_key"})


def test_another_limit_is_found() -> None:
    ours, theirs = {"poll_s": {"type": "number", "maximum": 50}}, {"poll_s": {"types": {"number"}, "maximum": 300}}
    with pytest.raises(AssertionError, match="poll_s"):
        compare(ours, theirs, set())


@pytest.mark.parametrize("chart", CHART_NAMES)
def test_every_object_of_the_schema_is_closed_and_names_the_values_that_there_are(chart: str) -> None:
    free = {"settings", "site"}  # have more names than values.yaml shows

    def compare(place: str, rules: dict[str, Any], there: dict[str, Any]) -> None:
        assert rules["additionalProperties"] is False, place
        names = set(rules["properties"]) - ({"global"} if not place else set())
        assert there.keys() <= names if place in free else there.keys() == names, place
        for name, inner in rules["properties"].items():
            if "properties" in inner and name in there and place not in free:
                compare(f"{place}.{name}".strip("."), inner, there[name])

    compare("", schema(chart), values(chart))


@pytest.mark.parametrize("chart", CHART_NAMES)
def test_every_value_is_documented(chart: str) -> None:
    readme = (CHARTS / chart / "README.md").read_text()

    def documented(place: str, value: Any) -> bool:
        if f"| `{place}` |" in readme:
            return True
        return isinstance(value, dict) and bool(value) and all(documented(f"{place}.{k}", v) for k, v in value.items())

    assert not [name for name, value in values(chart).items() if not documented(name, value)]


def test_tables_of_values_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chart_docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
