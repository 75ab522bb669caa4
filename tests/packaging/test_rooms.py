"""The house: which rooms there are, what is in them, and that map, tests and floors agree on it."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import LONGEST
from tests.support.repository import ROOT

PACKAGES = {
    "fedddpm_protocol": ROOT / "protocol" / "fedddpm_protocol",
    "fedddpm": ROOT / "sdk" / "fedddpm",
    "fedddpm_aggregator": ROOT / "aggregator_service" / "fedddpm_aggregator",
}
FLOORS = {
    "fedddpm_protocol": "session | encoding > agreement > wire > primitives > errors > untrusted",
    "fedddpm": (
        "__main__ > cli > client | experiment > rounds | generation > updates | monitoring | state >"
        " training | transport | evaluation > model | data | config | identity > files | compute > errors"
    ),
    "fedddpm_aggregator": (
        "__main__ > cli > selftest > server > app > api | dashboard > http | background | monitoring >"
        " service > reduction > vectors | telemetry > db | blobs | settings > security | errors"
    ),
}
AT_THE_ROOT = {"fedddpm_protocol": 3, "fedddpm": 6, "fedddpm_aggregator": 5}  # modules, at most
PUBLIC_FACES = {"fedddpm/__init__.py", "fedddpm/data/__init__.py"}  # give names beside the docstring
MIRRORED = {"protocol": "fedddpm_protocol", "sdk": "fedddpm", "aggregator": "fedddpm_aggregator"}
MOST_MODULES, MOST_LINES, LONGEST_FUNCTION = 16, 400, 60
OURS = ("protocol", "sdk", "aggregator_service", "tests", "benchmarks", "examples", "scripts")


def sources(*tops: str) -> list[Path]:
    return [path for top in tops for path in sorted((ROOT / top).rglob("*.py")) if "__pycache__" not in path.parts]


def rooms(package: Path) -> list[Path]:
    return sorted({path.parent for path in package.rglob("*.py") if "migrations" not in path.parts} - {package})


def name_of(folder: Path, package: Path) -> str:
    return ".".join(folder.relative_to(package.parent).parts)


ROOMS = [(package, room) for package in PACKAGES.values() for room in rooms(package)]
IDS = [name_of(room, package) for package, room in ROOMS]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_root_of_a_package_is_small(package: str) -> None:
    modules = sorted(path.name for path in PACKAGES[package].glob("*.py"))
    assert len(modules) <= AT_THE_ROOT[package], modules


def test_no_folder_holds_more_than_one_can_take_in() -> None:
    counts: dict[Path, int] = {}
    for path in sources(*OURS):
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > MOST_MODULES} == {}


def test_no_file_is_longer_than_one_can_read() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(*OURS)}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    found = {}
    for path in sources("protocol", "sdk", "aggregator_service", "benchmarks", "examples", "scripts"):
        if "versions" in path.parts:  # a migration is one list of what changes
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert found == {}


# --- floors ----------------------------------------------------------------------------------------------------------


def layer_contracts() -> dict[str, dict[str, object]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {contract["containers"][0]: contract for contract in contracts if contract["type"] == "layers"}


@pytest.mark.parametrize("package", FLOORS)
def test_the_rooms_of_a_package_lie_on_these_floors(package: str) -> None:
    layers = [set(re.split(r"\s*\|\s*", floor.strip())) for floor in FLOORS[package].split(">")]
    written = layer_contracts()[package]["layers"]
    assert isinstance(written, list)
    assert [set(re.split(r"\s*\|\s*", floor)) for floor in written] == layers


def test_every_room_has_floors_of_its_own_and_none_is_left_out() -> None:
    contracts = layer_contracts()
    for package, room in ROOMS:
        modules = [
            p for p in room.iterdir() if (p.suffix == ".py" and p.stem != "__init__") or (p / "__init__.py").exists()
        ]
        if len(modules) > 1:
            assert name_of(room, package) in contracts, "a layers contract in pyproject.toml is missing"
    for container, contract in contracts.items():
        assert contract["exhaustive"] is True, container
        assert contract.get("exhaustive_ignores", ["migrations"]) == ["migrations"], container


# --- the map ---------------------------------------------------------------------------------------------------------


def docstring(room: Path) -> str:
    return ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""


@pytest.mark.parametrize(("package", "room"), ROOMS, ids=IDS)
def test_a_room_says_in_one_line_what_it_is_for(package: Path, room: Path) -> None:
    text = (room / "__init__.py").read_text()
    assert docstring(room).endswith(".")
    assert "\n" not in docstring(room)
    if str((room / "__init__.py").relative_to(package.parent)) not in PUBLIC_FACES:
        assert text == f'"""{docstring(room)}"""\n'


def mapped() -> Iterator[tuple[str, str]]:
    """Rows of the map in docs/architecture.md: a room's path in the repository, and its line."""
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if row := re.fullmatch(r"\| `((?:protocol|sdk|aggregator_service)/\S+)/` \| (.+?) \|", line):
            yield row[1], row[2]


def test_the_map_shows_every_room_with_its_line_and_no_other() -> None:
    shown = dict(mapped())
    assert shown == {str(room.relative_to(ROOT)): docstring(room) for _, room in ROOMS}
    assert len(list(mapped())) == len(shown), "a room stands there twice"


def test_the_picture_shows_every_room_of_the_first_level() -> None:
    picture = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    for package, room in ROOMS:
        if room.parent == package:
            assert f">{room.name}</text>" in picture, f"docs/images/rooms.svg lacks {room.name}"


def test_what_the_documents_name_is_there() -> None:
    documents = [path for path in repository_files("*.md") if "CHANGELOG" not in path.name]
    missing = set()
    for document in documents:
        for name in re.findall(
            r"`((?:tests|benchmarks|examples|scripts|docs|protocol|sdk|helm)/[\w./-]+)`", document.read_text()
        ):
            if not (ROOT / name).exists() and "VERSION" not in name:
                missing.add(f"{document.relative_to(ROOT)}: {name}")
    assert missing == set()


def test_every_module_that_the_map_names_is_in_a_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text))
    assert len(named) > 40
    places = [*PACKAGES.values(), ROOT]
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


def repository_files(pattern: str) -> list[Path]:
    """Files of the repository, as git knows them; of the folder, where there is no git."""
    done = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [ROOT / name for name in done.stdout.split()]
    return [path for path in ROOT.rglob(pattern) if not any(part.startswith(".") for part in path.parts)]


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", MIRRORED)
def test_tests_mirror_the_rooms(half: str) -> None:
    package = PACKAGES[MIRRORED[half]]
    for folder in sorted({path.parent for path in (ROOT / "tests" / half).rglob("test_*.py")}):
        there = package / folder.relative_to(ROOT / "tests" / half)
        assert there.is_dir(), f"{folder.relative_to(ROOT)} tests no room"


def test_no_test_lies_where_pytest_does_not_look() -> None:
    for path in sources("tests"):
        if path.name.startswith("test_") or path.name == "conftest.py":
            continue
        assert "def test_" not in path.read_text(), f"pytest does not find the tests in {path.relative_to(ROOT)}"


def test_moves_that_blame_passes_over_are_in_the_history() -> None:
    revisions = [line for line in (ROOT / ".git-blame-ignore-revs").read_text().splitlines() if line and line[0] != "#"]
    assert len(revisions) >= 3
    known = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if known.returncode or known.stdout.strip() == "true":
        pytest.skip("the history is not here")
    for revision in revisions:
        is_past = ["git", "merge-base", "--is-ancestor", revision, "HEAD"]
        assert subprocess.run(is_past, cwd=ROOT, capture_output=True, check=False).returncode == 0, revision


def test_the_files_that_begin_first_are_there() -> None:
    assert [file for file in LONGEST if not (ROOT / file).is_file()] == []
