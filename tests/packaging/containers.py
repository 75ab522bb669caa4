"""A container engine for the tests: images by scripts/images.py, containers that are gone when a test is over."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import pytest
from tests.support.repository import ROOT

# What the charts give a container, too: nothing but the mounted folders can be written.
LOCKED_DOWN = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fedddpm_images_script", ROOT / "scripts" / "images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


images = _script()


@dataclass
class Engine:
    """docker or podman, and what a test has started with it."""

    name: str
    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), timeout_s: float = 300) -> str:
        """Run a container to its end, locked down; its output. AssertionError where it fails."""
        return self.said("run", "--rm", *self._options(), *options, image, *command, timeout_s=timeout_s)

    def refused(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a container that must fail; what it said."""
        done = self._done("run", "--rm", *self._options(), *options, image, *command)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def start(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container, locked down; its name."""
        name = f"fedddpm-test-{secrets.token_hex(4)}"
        self.containers.append(name)
        self.said("run", "--detach", "--name", name, *self._options(), *options, image, *command)
        return name

    def volume(self) -> str:
        """A new empty volume; the first container that mounts it gives it its folder's owner."""
        name = f"fedddpm-test-{secrets.token_hex(4)}"
        self.volumes.append(name)
        self.said("volume", "create", name)
        return name

    def exit_code(self, container: str, timeout_s: float) -> int:
        """Wait for the end of a container."""
        return int(self.said("wait", container, timeout_s=timeout_s).split()[-1])

    def succeeds(self, *words: str) -> bool:
        """Whether a command of the engine ends well."""
        return self._done(*words).returncode == 0

    def logs(self, container: str) -> str:
        """What a container printed."""
        done = self._done("logs", container)
        return done.stdout + done.stderr

    def inspect(self, image: str) -> dict[str, object]:
        """What the engine knows of an image."""
        return dict(json.loads(self.said("image", "inspect", image))[0])

    def layers(self, image: str) -> list[tuple[str, int]]:
        """What made each layer of an image, newest first, and its bytes uncompressed."""
        if self.name == "podman":
            history = json.loads(self.said("history", "--no-trunc", "--format", "json", image))
            return [(entry["CreatedBy"], entry["size"]) for entry in history]
        lines = self.said("history", "--no-trunc", "--human=false", "--format", "{{json .}}", image).splitlines()
        return [(entry["CreatedBy"], int(entry["Size"])) for entry in map(json.loads, lines)]

    def said(self, *words: str, timeout_s: float = 300) -> str:
        """What a command of the engine printed; AssertionError where it failed."""
        done = self._done(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{self.name} {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def remove_all(self) -> None:
        """End and remove what was started."""
        for container in self.containers:
            self._done("rm", "--force", container)
        for volume in self.volumes:
            self._done("volume", "rm", "--force", volume)

    def _options(self) -> tuple[str, ...]:
        # Without systemd podman cannot run a health check by itself, and says so at every start; tests ask it by exec.
        return (*LOCKED_DOWN, *(("--no-healthcheck",) if self.name == "podman" else ()))

    def _done(self, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.name, *words], capture_output=True, text=True, timeout=timeout_s, check=False)


@contextmanager
def engine_or_skip() -> Iterator[Engine]:
    """ENGINE, or the first engine that answers; the test is skipped without, or fails with FEDDDPM_REQUIRE_ENGINE."""
    try:
        engine = Engine(images.find_engine(os.environ.get("ENGINE") or None))
    except images.EngineError as error:
        if os.environ.get("FEDDDPM_REQUIRE_ENGINE"):
            pytest.fail(f"FEDDDPM_REQUIRE_ENGINE is set, but {error}")
        pytest.skip(str(error))
    try:
        yield engine
    finally:
        engine.remove_all()


def built(engine: Engine, name: str) -> str:
    """The tag of an image of this tree, built now (from the engine's cache, where nothing has changed)."""
    image = images.IMAGES[name]
    images.build(engine.name, image, ["--quiet"])
    return str(image.tag)


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Look again and again; AssertionError with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(0.2)
