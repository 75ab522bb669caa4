"""An institution that trains on its share of Fashion-MNIST: the shortest way to try a federation on several machines.

    python examples/institution_fashion_mnist.py --url http://192.0.2.10:8000 --root 1f9e... --share 0 --of 4

Every institution takes the images of one share of a seeded, label-skewed split, so that their data differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from get_fashion_mnist import get_fashion_mnist

from fedddpm import Client
from fedddpm.data import open_images
from fedddpm.data.splits import label_skew


def write_share(folder: Path, out: Path, share: int, of: int, limit: int | None) -> int:
    """Write one share of a label-skewed split to an .npz file; returns how many images it holds."""
    data = open_images(folder, image_size=28, channels=1, limit=limit)
    if data.labels is None:
        raise SystemExit("Fashion-MNIST without labels cannot be split by label")
    chosen = label_skew(data.labels.numpy(), of, seed=0)[share]
    np.savez_compressed(out, images=data.images[chosen, 0].numpy(), labels=data.labels[chosen].numpy())
    return len(chosen)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the aggregator")
    parser.add_argument("--root", required=True, help="the federation's root public key, hex")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with Fashion-MNIST; fetched if empty")
    parser.add_argument("--share", type=int, required=True, help="which share, from 0")
    parser.add_argument("--of", type=int, required=True, help="how many shares")
    parser.add_argument("--limit", type=int, default=None, help="use only so many images of the whole set")
    parser.add_argument("--identity", type=Path, default=Path("identity.key"), help="made by fedddpm keygen")
    parser.add_argument("--state", type=Path, default=Path("state"), help="checkpoints and local parts")
    parser.add_argument("--rounds", type=int, default=None, help="how many; default: to the end of the run")
    options = parser.parse_args()

    options.state.mkdir(parents=True, exist_ok=True)
    share = options.state.parent / f"share-{options.share}.npz"
    count = write_share(get_fashion_mnist(options.data), share, options.share, options.of, options.limit)
    print(f"share {options.share} of {options.of}: {count} images")
    client = Client(
        aggregator_url=options.url,
        identity=options.identity,
        federation_root=options.root,
        data=share,
        state_dir=options.state,
    )
    for summary in client.participate(rounds=options.rounds):
        print(f"round {summary.round + 1}: loss {summary.loss_before:.4f} before, {summary.loss_after:.4f} after")


if __name__ == "__main__":
    main()
