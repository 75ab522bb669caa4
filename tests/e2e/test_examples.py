"""The scripts in examples/ in one small federation, started as a reader of the documentation would."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import local_federation
import numpy as np
import pytest
from local_federation import LocalFederation, run
from PIL import Image
from tests.e2e.federation import blobs

EXAMPLES = Path(local_federation.__file__).parent
SIDE = 28
COUNT = 200  # so that each institution has what the defaults of its policy want


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[LocalFederation]:
    with LocalFederation(tmp_path / "federation", ("folder", "npz", "fashion")) as made:
        yield made


def idx(path: Path, array: np.ndarray) -> None:
    """An idx file of unsigned bytes."""
    sizes = b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def images_of_every_kind(folder: Path) -> dict[str, list[str]]:
    """What each institution trains on, as options of its script."""
    images = np.load(blobs(folder / "images.npz", 0, COUNT, SIDE))["images"]
    (folder / "pictures").mkdir()
    for number, image in enumerate(images[:50]):
        Image.fromarray(image).resize((40, 32)).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "broken.png").write_bytes(b"no image")
    (folder / "idx").mkdir()
    for prefix in ("train", "t10k"):
        idx(folder / "idx" / f"{prefix}-images-idx3-ubyte", images)
        idx(folder / "idx" / f"{prefix}-labels-idx1-ubyte", (np.arange(COUNT) % 10).astype(np.uint8))
    return {
        "folder": ["institution_folder.py", "--images", str(folder / "pictures"), "--image-size", str(SIDE)],
        "npz": ["institution_npz.py", "--file", str(folder / "images.npz")],
        "fashion": ["institution_fashion_mnist.py", "--data", str(folder / "idx"), "--share", "0", "--of", "3"],
    }


def test_examples_together(federation: LocalFederation, tmp_path: Path) -> None:
    fed = federation
    scripts = images_of_every_kind(tmp_path)
    for member in fed.members:
        fed.new_identity(member)
    enrolled = [word for name in fed.members for word in ("--member", f"{name}={fed.public_key(name)}")]
    size = ("--preset", "tiny", "--image-size", str(SIDE), "--method", "UDEC", "--rounds", "1", "--epochs", "5")
    said = run(sys.executable, EXAMPLES / "coordinator.py", "--folder", fed.folder, *enrolled, *size)
    root = re.search(r"root public key, for every institution: ([0-9a-f]{64})", said)
    assert root is not None
    assert f"fedddpm-aggregator serve --data {fed.data}" in said
    fed.serve()
    for member, (script, *options) in scripts.items():
        site = ("--identity", fed.site(member) / "identity.key", "--state", fed.site(member) / "state")
        common = ("--url", fed.url, "--root", root.group(1), *site)
        fed.start_process(member, sys.executable, EXAMPLES / script, *common, *options)
    fed.wait_for_sites(fed.members, 120)
    assert "round 1: loss" in fed.log("folder")
    assert "1 file could not be read and is left out" in fed.log("folder")
    assert "round 1: 3 institutions in the sum" in fed.log("npz")
    assert "share 0 of 3:" in fed.log("fashion")
    assert "round 1: loss" in fed.log("fashion")
    (session,) = fed.rounds()
    assert session["survivors"] == sorted(fed.members)
    assert session["sums"][0] == 65535 * len(fed.members)  # equal weights


@pytest.mark.parametrize("script", ["demo.py", "get_fashion_mnist.py"])
def test_the_other_scripts_start(script: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script, "--help"], capture_output=True, text=True, check=True)
    assert script in done.stdout
