"""The images as they come out of an engine: small, unprivileged, complete, and listed in their SBOM."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from tests.packaging.containers import Engine, built, engine_or_skip, images
from tests.packaging.test_locks import locked
from tests.support.repository import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]
MOST_BYTES = 250_000_000  # of the aggregator's layers above the base
NO_PROGRAM = ("--entrypoint=python", "--network=none")
LISTING = """
import importlib.metadata, json
print(json.dumps({d.name: d.version for d in importlib.metadata.distributions()}))
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_or_skip() as engine:
        yield engine


@pytest.fixture(scope="module", params=["aggregator", "institution-cpu"])
def image(request: pytest.FixtureRequest, engine: Engine) -> tuple[str, str]:
    """Name and tag of an image."""
    return request.param, built(engine, request.param)


@pytest.fixture(scope="module")
def aggregator(engine: Engine) -> str:
    return built(engine, "aggregator")


def distributions(engine: Engine, tag: str) -> dict[str, str]:
    """Name and version of what is installed in an image."""
    listing = json.loads(engine.run(tag, "-c", LISTING, options=NO_PROGRAM))
    return {canonicalize_name(name): version for name, version in listing.items()}


def test_layers_of_the_aggregator_are_small(engine: Engine, aggregator: str) -> None:
    ours = [size for made_by, size in engine.layers(aggregator) if re.search(r"\bCOPY\b", made_by)]  # the base has none
    assert len(ours) >= 5
    total = sum(ours)
    print(f"the aggregator's layers above the base: {total / 1e6:.0f} MB")
    assert 50_000_000 < total < MOST_BYTES


def test_runs_as_nobody_special_on_a_read_only_file_system(engine: Engine, image: tuple[str, str]) -> None:
    code = """
import os, pathlib
print(os.getuid(), os.getgid(), pathlib.Path.home())
for place in ("/", "/etc", "/opt/fedddpm", "/usr/share/sbom"):
    assert not os.access(place, os.W_OK), place
"""
    assert engine.run(image[1], "-c", code, options=NO_PROGRAM).split() == ["10001", "10001", "/tmp"]  # noqa: S108
    assert "Usage:" in engine.run(image[1], "--help", options=("--network=none",))


def test_the_whole_environment_is_compiled(engine: Engine, image: tuple[str, str]) -> None:
    code = """
import pathlib
site = pathlib.Path("/opt/fedddpm/lib/python3.11/site-packages")
bare = [str(p) for p in site.rglob("*.py") if not (p.parent / "__pycache__" / f"{p.stem}.cpython-311.pyc").exists()]
print(*[path for path in bare if "py312" not in path])
"""
    assert engine.run(image[1], "-c", code, options=NO_PROGRAM).split() == []


def test_what_is_installed_is_what_was_locked(engine: Engine, image: tuple[str, str]) -> None:
    name, tag = image
    found = distributions(engine, tag)
    assert {"fedddpm-protocol": images.version()}.items() <= found.items()
    there = {other: version for other, version in found.items() if not other.startswith(("fedddpm-", "torch"))}
    assert there == {other: str(version) for other, version in locked(name).items()}


def test_the_aggregator_has_neither_torch_nor_pip(engine: Engine, aggregator: str) -> None:
    found = distributions(engine, aggregator)
    assert not {"torch", "torchvision", "fedddpm-sdk", "pip", "hatchling"} & found.keys()
    code = "import fedddpm_aggregator.app, sys; sys.exit('torch' in sys.modules)"
    engine.run(aggregator, "-c", code, options=NO_PROGRAM)


def test_the_sbom_names_every_distribution(engine: Engine, image: tuple[str, str], tmp_path: Path) -> None:
    name, tag = image
    sbom = json.loads(images.export_sbom(engine.name, images.IMAGES[name], tmp_path).read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    listed = [*sbom["components"], sbom["metadata"]["component"]]
    named = {canonicalize_name(component["name"]): component["version"] for component in listed}
    assert named == distributions(engine, tag)


def test_labels_say_what_it_is(engine: Engine, image: tuple[str, str]) -> None:
    config = engine.inspect(image[1])["Config"]
    assert isinstance(config, dict)
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["version"] == images.version()
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] == "docker.io/library/python:3.11-slim"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert config["User"] == "10001:10001"
    assert ("fedddpm.variant" in labels) == image[0].startswith("institution")


def test_the_institution_trains_on_cpus(engine: Engine) -> None:
    code = """
import torch
from fedddpm.compute.torchvision_compat import load_torchvision
load_torchvision()
print(torch.version.cuda, torch.cuda.is_available())
"""
    tag = built(engine, "institution-cpu")
    assert engine.run(tag, "-c", code, options=NO_PROGRAM).split() == ["None", "False"]
    sums = engine.run(tag, "/usr/share/sbom/torch-wheels.sha256", options=("--entrypoint=cat",))
    assert re.search(r"^[0-9a-f]{64}  torch-", sums, re.MULTILINE)


@pytest.mark.soak
def test_two_builds_without_cache_have_the_same_layers(engine: Engine) -> None:
    if engine.name != "podman":
        pytest.skip("only podman's build gives all files of a layer one time by itself")
    layers = []
    for _ in range(2):
        images.build(engine.name, images.IMAGES["aggregator"], ["--quiet", "--no-cache"])
        root = engine.inspect(images.IMAGES["aggregator"].tag)["RootFS"]
        assert isinstance(root, dict)
        layers.append(root["Layers"])
    assert layers[0] == layers[1]


@pytest.mark.parametrize(
    ("argument", "said"), [("VARIANT=gpu", "There is no image gpu for"), ("TORCH_SHA256=00", "not one of TORCH_SHA256")]
)
def test_a_wrong_build_argument_is_refused(
    engine: Engine, argument: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    image = images.Image("fedddpm-institution", "sdk/Dockerfile", "-refused", {"VARIANT": "cpu"})
    with pytest.raises(images.EngineError, match="was not built"):
        images.build(engine.name, image, ["--build-arg", argument])
    out, error = capfd.readouterr()
    assert said in out + error


def test_neither_keys_nor_state_get_into_a_build(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_bytes((ROOT / ".dockerignore").read_bytes())
    admitted = {
        "protocol/pyproject.toml",
        "sdk/fedddpm/data/opening.py",
        "sdk/fedddpm/model/unet.py",
        "requirements/aggregator.lock.txt",
        "constraints.txt",
    }
    outside = (
        "root.key",
        ".env",
        ".git/config",
        ".venv/pyvenv.cfg",
        "aggregator/server.key",
        "data/x.npz",
        "tests/a.py",
    )
    inside = ("sdk/fedddpm/a.key", "sdk/fedddpm/tls.pem", "sdk/fedddpm/state.sqlite", "sdk/state/a", "sdk/fedddpm/.env")
    for name in (*admitted, *outside, *inside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY . /context/\nCMD ["none"]\n')
    tag = "fedddpm-test-context:1"
    engine.said("build", "--tag", tag, "--file", str(tmp_path / "Dockerfile"), str(tmp_path))
    try:
        container = engine.said("create", tag).strip()
        engine.containers.append(container)
        engine.said("cp", f"{container}:/context", str(tmp_path / "out"))
    finally:
        subprocess.run([engine.name, "rmi", "--force", tag], capture_output=True, check=False)
    came = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert came == admitted
