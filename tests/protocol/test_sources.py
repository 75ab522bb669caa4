"""Rules about the protocol's own source: no weak randomness near secrets, nothing that unpickles, no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedddpm_protocol

SOURCES = sorted(Path(fedddpm_protocol.__file__).parent.rglob("*.py"))
# Secrets come from `secrets` or the caller; masks from AES-CTR. Nothing here reads a clock, a file or a socket.
FORBIDDEN_MODULES = {
    *("random", "numpy.random", "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("torch", "socket", "http", "httpx", "urllib", "requests", "sqlite3", "time", "datetime", "os", "pathlib", "uuid"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open"}
FORBIDDEN_ATTRIBUTES = {"load", "loads", "fromfile", "memmap", "default_rng", "RandomState", "seed"}
MODULES_WITH_BAD_ATTRIBUTES = {"np", "numpy", "torch", "joblib"}


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name in FORBIDDEN_MODULES or name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            numerical = node.value.id in MODULES_WITH_BAD_ATTRIBUTES
            if numerical and node.attr in {"random", *FORBIDDEN_ATTRIBUTES}:
                yield f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield f"{node.func.id}()"
        if isinstance(node, ast.Assert):
            yield "assert"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_weak_randomness_no_pickle_no_io_no_assert(path: Path) -> None:
    assert list(violations(path.read_text())) == []


def test_all_of_the_package_is_read() -> None:
    assert {"participant.py", "keystream.py", "shamir.py", "coordinator.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import choice",
        "import numpy.random",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.bytes(4)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pickle",
        "import torch",
        "import time",
        "open('x')",
        "assert True",
        "exec('x')",
    ],
)
def test_the_rules_can_fail(source: str) -> None:
    assert list(violations(source))
