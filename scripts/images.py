"""Build the images: `make images [ENGINE=docker|podman] [IMAGE_ARGS="institution-cuda12 --no-cache"]`.

Without names: the aggregator and the institution for CPUs. Tags are fedddpm-aggregator:VERSION,
fedddpm-institution:VERSION-cpu and fedddpm-institution:VERSION-cuda12; each SBOM is copied into dist/. Options that are
not known here go to the engine's build command, and so do the words of ENGINE_BUILD_ARGS (a proxy, a mirror,
certificates), e.g. ENGINE_BUILD_ARGS="--network host".
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINES = ("docker", "podman")


@dataclass(frozen=True)
class Image:
    """How an image is built; ``suffix`` follows the version in its tag."""

    repository: str
    dockerfile: str
    suffix: str = ""
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Name and tag."""
        return f"{self.repository}:{version()}{self.suffix}"

    @property
    def sbom(self) -> str:
        """Where the SBOM lies in the image."""
        return f"/usr/share/sbom/{self.repository}.cdx.json"


IMAGES = {
    "aggregator": Image("fedddpm-aggregator", "aggregator_service/Dockerfile"),
    "aggregator-ray": Image("fedddpm-aggregator", "aggregator_service/Dockerfile", "-ray", {"EXTRAS": "ray"}),
    "institution-cpu": Image("fedddpm-institution", "sdk/Dockerfile", "-cpu", {"VARIANT": "cpu"}),
    "institution-cuda12": Image("fedddpm-institution", "sdk/Dockerfile", "-cuda12", {"VARIANT": "cuda12"}),
}
DEFAULT = ("aggregator", "institution-cpu")


class EngineError(RuntimeError):
    """No container engine can be used, or it refused; the message says what to do."""


def version() -> str:
    """The version that the three distributions carry."""
    return str(tomllib.loads((ROOT / "protocol" / "pyproject.toml").read_text())["project"]["version"])


def find_engine(wanted: str | None) -> str:
    """``wanted``, or the first of docker and podman that answers.

    Raises:
        EngineError: none does.
    """
    tried = [wanted] if wanted else list(ENGINES)
    for engine in tried:
        if shutil.which(engine) and _ran(engine, "info").returncode == 0:
            return engine
    raise EngineError(f"no container engine answers ({' and '.join(tried)} tried): install or start one, or set ENGINE")


def build(engine: str, image: Image, extra: list[str]) -> None:
    """Build one image under its tag; ``extra`` are words for the engine's build command.

    Raises:
        EngineError: the build failed; the engine's own words are on the screen.
    """
    epoch = source_date_epoch()
    values = {
        "VERSION": version(),
        "REVISION": _git("rev-parse", "HEAD"),
        "CREATED": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "SOURCE_DATE_EPOCH": str(epoch),
        **image.arguments,
    }
    command = [engine, "build", "--file", image.dockerfile, "--tag", image.tag]
    command += [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]
    if engine == "podman":  # the OCI format has no health check; all times of the layers become the commit's
        command += ["--format", "docker", "--timestamp", str(epoch)]
    command += [*shlex.split(os.environ.get("ENGINE_BUILD_ARGS", "")), *extra, "."]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise EngineError(f"{image.tag} was not built: see above")


def export_sbom(engine: str, image: Image, folder: Path) -> Path:
    """Copy the SBOM out of a built image; EngineError where it is not there."""
    folder.mkdir(exist_ok=True)
    out = folder / f"{image.tag.replace(':', '-')}.cdx.json"
    container = _said(engine, "create", image.tag)
    try:
        _said(engine, "cp", f"{container}:{image.sbom}", str(out))
    finally:
        _said(engine, "rm", container)
    return out


def source_date_epoch() -> int:
    """SOURCE_DATE_EPOCH, or the last commit's time, or 0 outside a repository (seconds)."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or 0)


def _git(*words: str) -> str:
    """What git answers, or nothing where there is no repository."""
    return _ran("git", "-C", str(ROOT), *words).stdout.strip() if shutil.which("git") else ""


def _ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _said(*words: str) -> str:
    done = _ran(*words)
    if done.returncode != 0:
        raise EngineError(f"{shlex.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"{', '.join(IMAGES)}; {' and '.join(DEFAULT)} by default"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=names)
    parser.add_argument("--engine", choices=ENGINES, default=os.environ.get("ENGINE") or None)
    options, extra = parser.parse_known_args()  # the rest is for the engine
    unknown = [name for name in options.images if name not in IMAGES]
    if unknown:
        parser.error(f"there is no image {', '.join(unknown)}: choose from {', '.join(IMAGES)}")
    try:
        engine = find_engine(options.engine)
        for name in options.images or DEFAULT:
            build(engine, IMAGES[name], extra)
            print(f"{IMAGES[name].tag}\n{export_sbom(engine, IMAGES[name], ROOT / 'dist').relative_to(ROOT)}")
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
