"""A round of three institutions whose SDK lives in another Python environment; prints what came of it.

Run by test_wheels.py: the aggregator runs in this environment, each institution is a process of
``--python`` that calls ``Client(...).participate()``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from local_federation import LocalFederation

MEMBERS = ("north", "south", "west")
INSTITUTION = """
import sys
from fedddpm import Client

url, root, folder = sys.argv[1:]
client = Client(
    aggregator_url=url,
    identity=f"{folder}/identity.key",
    federation_root=root,
    data=f"{folder}/images.npz",
    state_dir=f"{folder}/state",
    limit=48,
)
assert len(client.participate()) == 1
"""


def main() -> None:
    """Enrol, serve, start the institutions, wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment with the SDK")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    federation = LocalFederation(options.work, MEMBERS, sdk_bin=options.python.parent)
    federation.enrol()
    random = np.random.default_rng(0)
    for member in MEMBERS:
        images = random.integers(0, 256, (48, 8, 8), dtype=np.uint8)
        np.savez(federation.site(member) / "images.npz", images=images)
    model = federation.init_model(8, 1, "tiny")
    federation.start_run("packaged", "UDEC", model, rounds=1, epochs=4, batch_size=8)
    with federation:
        federation.serve()
        arguments = (federation.url, federation.root_public)
        processes = [
            subprocess.Popen([options.python, "-c", INSTITUTION, *arguments, federation.site(member)])
            for member in MEMBERS
        ]
        finished = sum(process.wait(200) == 0 for process in processes)
    print(f"{finished} of {len(MEMBERS)} institutions finished 1 round")


if __name__ == "__main__":
    main()
