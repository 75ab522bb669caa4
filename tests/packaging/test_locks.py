"""The lock files of the images: whole, hashed, and in step with what the packages ask for. Needs no network."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.packaging.environments import CONSTRAINTS
from tests.support.repository import ROOT

FOLDER = ROOT / "requirements"
EXTRAS = {
    "aggregator": {"protocol": (), "aggregator_service": ("postgresql", "s3", "otel")},
    "aggregator-ray": {"protocol": (), "aggregator_service": ("postgresql", "s3", "otel", "ray")},
    "institution-cpu": {"protocol": (), "sdk": ("metrics",)},
    "institution-cuda12": {"protocol": (), "sdk": ("metrics",)},
}
NAMES = (*EXTRAS, "image-tools")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@cache
def locked(name: str) -> dict[str, Version]:
    """Version of each distribution in a lock file."""
    return parsed((FOLDER / f"{name}.lock.txt").read_text())


def parsed(text: str) -> dict[str, Version]:
    """Version of each distribution; ValueError for a line that is none, or has no hash."""
    versions = {}
    for entry in _entries(text):
        line, *hashes = entry.split()
        distribution, separator, version = line.partition("==")
        if not separator or not hashes or not all(HASH.fullmatch(word) for word in hashes):
            raise ValueError(f"{line} is no version with hashes")
        versions[canonicalize_name(distribution)] = Version(version)
    return versions


def _entries(text: str) -> Iterator[str]:
    """Requirements with their continuation lines, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return (entry for entry in "\n".join(lines).replace("\\\n", " ").splitlines())


@cache
def wanted(part: str, extras: tuple[str, ...]) -> dict[str, Requirement]:
    """What a pyproject.toml asks for directly, without our own distributions."""
    project = tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    requirements = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    return {name: requirement for name, requirement in requirements.items() if not name.startswith("fedddpm")}


def installed(name: str) -> dict[str, Version]:
    """A lock file, with the torch that the CPU image takes from constraints.txt."""
    beside = CONSTRAINTS.read_text() if name == "institution-cpu" else ""
    pins = [Requirement(line) for line in beside.splitlines() if line and not line.startswith("#")]
    return locked(name) | {pin.name: Version(next(iter(pin.specifier)).version) for pin in pins}


@pytest.mark.parametrize("name", EXTRAS)
def test_every_direct_dependency_is_locked_within_its_bounds(name: str) -> None:
    found = installed(name)
    for part, extras in EXTRAS[name].items():
        for dependency, requirement in wanted(part, extras).items():
            assert dependency in found, f"{part} asks for {dependency}: make lock"
            assert found[dependency] in requirement.specifier, f"{part} asks for {requirement}: make lock"


@pytest.mark.parametrize("name", EXTRAS)
def test_the_input_names_the_same_parts_and_extras(name: str) -> None:
    lines = [line for line in (FOLDER / f"{name}.in").read_text().splitlines() if line.startswith("./")]
    expected = {f"./{part}" + (f"[{','.join(extras)}]" if extras else "") for part, extras in EXTRAS[name].items()}
    assert set(lines) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_file_names_no_place(name: str) -> None:
    text = (FOLDER / f"{name}.lock.txt").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    assert " @ " not in text
    assert len(locked(name)) > 5


def test_the_tools_hold_what_builds_the_wheels() -> None:
    tools = locked("image-tools")
    for part in ("protocol", "sdk", "aggregator_service"):
        for line in tomllib.loads((ROOT / part / "pyproject.toml").read_text())["build-system"]["requires"]:
            assert tools[canonicalize_name(Requirement(line).name)] in Requirement(line).specifier
    assert "cyclonedx-bom" in tools


def test_where_torch_is() -> None:
    assert not {"torch", "torchvision"} & (locked("aggregator").keys() | locked("aggregator-ray").keys())
    cpu, cuda = locked("institution-cpu"), locked("institution-cuda12")
    assert not [name for name in cpu if name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    assert {"torch", "torchvision", "triton"} <= cuda.keys()
    assert "nvidia-cuda-runtime-cu12" in cuda, "the tag says CUDA 12"
    assert not [name for name in cuda if name.endswith("-cu13")]


@pytest.mark.parametrize("line", ["rich==15", "rich==15 --hash=md5:00", f"rich>=15 --hash=sha256:{64 * '0'}"])
def test_a_line_without_version_or_hash_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no version with hashes"):
        parsed(f"# made by hand\n{line}\n    # via nobody\n")
