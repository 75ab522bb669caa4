"""The three distributions as a user installs them: fresh virtual environments, wheels by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
SUITE_TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "httpx", "http-message-signatures")


def run(*command: str | Path, timeout_s: float = 900, **environment: str) -> str:
    """Run to the end; the output is the assertion's message when it fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHONPATH", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Environment:
    """A virtual environment that exists for one test module."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"

    def install(self, *what: str | Path, extra: tuple[str, ...] = ()) -> None:
        run(self.python, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *extra, *what)

    def distributions(self) -> set[str]:
        listing = run(self.python, "-m", "pip", "list", "--format=freeze")
        return {line.split("==")[0].lower() for line in listing.splitlines()}


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


@pytest.fixture(scope="module")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("server") / "venv")
    environment.install("./protocol", "./aggregator_service[postgresql]")
    return environment


def test_the_aggregator_pulls_no_torch(server_environment: Environment) -> None:
    installed = server_environment.distributions()
    assert "fedddpm-aggregator" in installed
    assert not {"torch", "torchvision", "fedddpm-sdk"} & installed
    code = "import fedddpm_aggregator.app, sys; sys.exit('torch' in sys.modules)"
    run(server_environment.python, "-c", code)


def test_protocol_and_aggregator_suites_pass_without_torch(server_environment: Environment) -> None:
    server_environment.install(*SUITE_TOOLS)
    suites = (ROOT / "tests" / "protocol", ROOT / "tests" / "aggregator")
    output = run(
        server_environment.python, "-m", "pytest", "-q", "-n", "2", *suites, "-p", "no:cacheprovider", timeout_s=1100
    )
    closing = output.strip().splitlines()[-1]
    print(f"without torch: {closing}")
    assert " passed" in closing
    assert "failed" not in closing


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
