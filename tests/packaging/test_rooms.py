"""The doors of the rooms: a package's ``__init__.py`` says in one line what is inside, and re-exports nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.packaging.environments import ROOT

PACKAGES = [ROOT / "protocol/fedddpm_protocol", ROOT / "sdk/fedddpm", ROOT / "aggregator_service/fedddpm_aggregator"]
DOORS = sorted(path for package in PACKAGES for path in package.rglob("__init__.py"))
PUBLIC = {ROOT / "sdk/fedddpm/__init__.py", ROOT / "sdk/fedddpm/data/__init__.py"}  # names that users import


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT).parent))
def test_a_room_is_one_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") == 1 or path in PUBLIC


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_folder_with_modules_is_a_room(package: Path) -> None:
    folders = {path.parent for path in package.rglob("*.py") if "migrations" not in path.parts}
    assert folders == {door.parent for door in DOORS if package in door.parents}
