"""The wheels as an institution installs them: by name, into a fresh environment, and then it takes part."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.packaging.environments import Environment, run
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make dist`, from a copy, so that nothing is left behind in the tree."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("protocol", "sdk", "aggregator_service"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, copy / name)
    return dist


def test_every_distribution_builds_with_its_licence(wheels: Path) -> None:
    built = {path.name.split("-")[0] for path in wheels.glob("*.whl")}
    assert built == {"fedddpm_protocol", "fedddpm_sdk", "fedddpm_aggregator"}
    for wheel in wheels.glob("*.whl"):
        names = run(sys.executable, "-m", "zipfile", "-l", wheel)
        assert "LICENSE" in names
        assert "py.typed" in names
        assert "tests/" not in names
        assert ("fedddpm/experiment/report/report.html.j2" in names) == wheel.name.startswith("fedddpm_sdk")
        for file in ("static/page.css", "static/page.js", "static/icon.svg", "templates/page.html.j2"):
            assert (f"dashboard/{file}" in names) == wheel.name.startswith("fedddpm_aggregator"), file


@pytest.fixture(scope="module")
def institution(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("institution") / "venv"
    environment = Environment(folder)
    environment.install("fedddpm-sdk", extra=("--find-links", str(wheels)))
    yield environment
    shutil.rmtree(folder)  # a torch in every temporary folder fills a disk


def test_the_sdk_installs_by_name_and_takes_part(institution: Environment, tmp_path: Path) -> None:
    """Three institutions, each a process in the fresh environment, against a served aggregator."""
    script = ROOT / "tests" / "packaging" / "federation.py"
    output = run(sys.executable, script, "--python", institution.python, "--work", tmp_path, timeout_s=300)
    assert "3 of 3 institutions finished 1 round" in output
