"""Find Fashion-MNIST or fetch it: a given folder, else torchvision's download, else Debian's package unpacked.

    python examples/get_fashion_mnist.py --folder data

Prints the folder with the four idx files. Needs no root; Debian's package is unpacked, not installed.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from fedddpm.data.sources import download_fashion_mnist, find_fashion_mnist
from fedddpm.errors import DataError

PACKAGE = "dataset-fashion-mnist"  # Debian 11 and newer, MIT licence, 31 MB
INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def get_fashion_mnist(folder: Path) -> Path:
    """The folder with the idx files; DataError with every way that was tried if none worked."""
    for place in (folder, INSTALLED):
        if found := find_fashion_mnist(place):
            return found
    tried: list[str] = []
    for way in (_from_torchvision, _from_debian):
        try:
            return way(folder)
        except (DataError, OSError, subprocess.SubprocessError) as error:
            tried.append(f"{way.__name__.removeprefix('_from_')}: {error}")
    raise DataError(
        "Fashion-MNIST is not here and could not be fetched:\n  " + "\n  ".join(tried),
        f"Put the four idx .gz files into {folder}",
    )


def _from_torchvision(folder: Path) -> Path:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a closed network must not hold up the next way
    try:
        return download_fashion_mnist(folder)
    finally:
        socket.setdefaulttimeout(before)


def _from_debian(folder: Path) -> Path:
    """Download the package with apt's own client into a temporary folder, and unpack it without installing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("this is no Debian system (no apt-get)")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        work.chmod(0o755)  # apt's own user reads it
        if _run("apt-get", "download", "--quiet", PACKAGE, cwd=work).returncode != 0:
            _update_lists(work)
        archive = next(work.glob(f"{PACKAGE}_*.deb"), None)
        if archive is None:
            raise OSError(f"apt-get has no package {PACKAGE}")
        subprocess.run(["dpkg", "-x", archive, work / "unpacked"], check=True, capture_output=True)
        source = work / "unpacked" / INSTALLED.relative_to("/")
        folder.mkdir(parents=True, exist_ok=True)
        for path in source.glob("*.gz"):
            shutil.copy2(path, folder / path.name)
    return folder


def _update_lists(work: Path) -> None:
    """Fetch package lists into a folder of our own, as an ordinary user can, and download with them."""
    (work / "lists" / "partial").mkdir(parents=True)
    options = ("-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work}")
    if _run("apt-get", *options, "update", cwd=work).returncode == 0:
        _run("apt-get", *options, "download", "--quiet", PACKAGE, cwd=work)


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=300, check=False)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data"), help="where to look first, and where to put it")
    try:
        print(get_fashion_mnist(parser.parse_args().folder))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
