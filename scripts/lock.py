"""Write requirements/*.lock.txt: `make lock`, or `python scripts/lock.py [--upgrade]`.

uv resolves for a platform that it does not run on, takes the hashes of all files of a release and is done in a second;
pip-tools resolves for the machine it runs on only. Without --upgrade, versions that still fit stay as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
OURS = ("fedddpm-protocol", "fedddpm-sdk", "fedddpm-aggregator")  # installed from wheels made of this tree
BOTH = ("x86_64", "aarch64")
CUDA_OF_TORCH = (  # what the index's build of torch asks for and a CPU build does not
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "triton",
)


@dataclass(frozen=True)
class Lock:
    """One lock file: for which machines, and what is resolved without being written."""

    name: str
    machines: tuple[str, ...] = BOTH
    constraints: Path | None = None
    unwritten: tuple[str, ...] = OURS
    excluded: tuple[str, ...] = ()


LOCKS = (
    Lock("aggregator"),
    Lock("aggregator-ray"),
    Lock(
        "institution-cpu",
        constraints=ROOT / "constraints.txt",
        unwritten=(*OURS, "torch", "torchvision"),
        excluded=CUDA_OF_TORCH,
    ),
    Lock("institution-cuda12", machines=("x86_64",)),  # the index has no aarch64 build of this torch with CUDA
    Lock("image-tools"),
)


def compiled(lock: Lock, machine: str, scratch: Path, *, upgrade: bool) -> str:
    """The text of a lock file for one kind of machine; SystemExit where nothing fits together."""
    out = scratch / f"{lock.name}.{machine}"
    old = FOLDER / f"{lock.name}.lock.txt"
    if old.exists():
        out.write_bytes(old.read_bytes())  # uv keeps the versions that it finds in its output
    excludes = scratch / "excludes.txt"
    excludes.write_text("\n".join(lock.excluded))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", f"requirements/{lock.name}.in"]
    command += ["--output-file", str(out)]
    command += ["--python-version", "3.11", "--python-platform", f"{machine}-manylinux_2_28"]
    command += ["--generate-hashes", "--no-config", "--no-header", "--excludes", str(excludes)]
    command += [word for name in lock.unwritten for word in ("--no-emit-package", name)]
    command += ["--constraints", str(lock.constraints)] if lock.constraints else []
    command += ["--upgrade"] if upgrade else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"requirements/{lock.name}.in cannot be locked for {machine}:\n{done.stderr}")
    return out.read_text()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for lock in LOCKS:
            texts = {compiled(lock, machine, Path(scratch), upgrade=options.upgrade) for machine in lock.machines}
            machines = " and ".join(lock.machines)
            if len(texts) != 1:
                sys.exit(f"requirements/{lock.name}.in resolves differently on {machines}: give each its own file")
            head = f"# Made by `make lock` from {lock.name}.in, for Python 3.11 on Linux, {machines}.\n"
            (FOLDER / f"{lock.name}.lock.txt").write_text(head + texts.pop())
            print(f"requirements/{lock.name}.lock.txt")


if __name__ == "__main__":
    main()
