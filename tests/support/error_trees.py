"""The trees of errors that docstrings draw, and the types that there are."""

from __future__ import annotations

import importlib
import pathlib
import re
from collections.abc import Iterator
from types import ModuleType

_DRAWN = re.compile(r"^[\s│├└─]*\b(?P<name>\w+Error)(?:\s{2,}(?P<words>\S.*))?$")
_DEFINED = re.compile(r"^class \w+Error\(", re.MULTILINE)


def drawn(module: ModuleType, root: type[Exception]) -> dict[str, str | None]:
    """The parent of each type that the module's docstring draws, in its order; the root has none."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (module.__doc__ or "").splitlines():
        found = _DRAWN.match(line)
        if found is None or (found["name"] != root.__name__ and found["words"] is None):
            continue
        column = found.start("name")
        while above and above[-1][0] >= column:
            above.pop()
        assert found["name"] not in parents, f"{found['name']} is drawn twice"
        parents[found["name"]] = above[-1][1] if above else None
        above.append((column, found["name"]))
    return parents


def defined(root: type[Exception], package: ModuleType) -> dict[str, type[Exception]]:
    """The root and all types below it that the package defines, by name."""
    (folder,) = map(pathlib.Path, package.__path__)
    for path in folder.rglob("*.py"):
        if _DEFINED.search(path.read_text(encoding="utf-8")):
            importlib.import_module(".".join([package.__name__, *path.relative_to(folder).with_suffix("").parts]))
    own = [kind for kind in _below(root) if kind.__module__.partition(".")[0] == package.__name__]
    assert len({kind.__name__ for kind in own}) == len(own), "two types have one name"
    return {kind.__name__: kind for kind in own}


def parents_of(kinds: dict[str, type[Exception]]) -> dict[str, str | None]:
    """The parent of each type; None for the root."""
    return {name: kind.__base__.__name__ if kind.__base__ in kinds.values() else None for name, kind in kinds.items()}


def shared_codes(kinds: dict[str, type[Exception]]) -> dict[str, set[str]]:
    """The codes that more than one type has, and which types these are."""
    names: dict[str, set[str]] = {}
    for name, kind in kinds.items():
        names.setdefault(kind.code, set()).add(name)  # type: ignore[attr-defined]
    return {code: having for code, having in names.items() if len(having) > 1}


def _below(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for kind in root.__subclasses__():
        yield from _below(kind)
