"""An institution whose images are one .npz file: an array `images` [N, H, W] or [N, H, W, C], or MedMNIST's layout.

    python examples/institution_npz.py --url https://aggregator.example.org --root 1f9e... --file pathmnist.npz

It also shows the local policy: what this institution accepts, whatever the aggregator asks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedddpm import Client, LocalPolicyOptions


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the aggregator")
    parser.add_argument("--root", required=True, help="the federation's root public key, hex")
    parser.add_argument("--file", type=Path, required=True, help=".npz file")
    parser.add_argument("--identity", type=Path, default=Path("identity.key"), help="made by fedddpm keygen")
    parser.add_argument("--state", type=Path, default=Path("state"), help="checkpoints and local parts")
    parser.add_argument("--min-cohort", type=int, default=3, help="smallest set whose sum may be opened")
    parser.add_argument("--rounds", type=int, default=None, help="how many; default: to the end of the run")
    options = parser.parse_args()

    policy = LocalPolicyOptions(min_cohort=options.min_cohort, max_epochs=20, max_clip_norm=100.0)
    client = Client(
        aggregator_url=options.url,
        identity=options.identity,
        federation_root=options.root,
        data=options.file,
        state_dir=options.state,
        policy=policy,
    )
    for summary in client.participate(rounds=options.rounds):
        print(f"round {summary.round + 1}: {len(summary.survivors)} institutions in the sum")


if __name__ == "__main__":
    main()
