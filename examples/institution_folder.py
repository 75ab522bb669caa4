"""An institution that trains on a folder of images of any size and mode.

    python examples/institution_folder.py --url https://aggregator.example.org --root 1f9e... --images /srv/images

The images are cropped to a square, resized and converted to what the federation trains. Unreadable files are listed and
left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedddpm import Client


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the aggregator")
    parser.add_argument("--root", required=True, help="the federation's root public key, hex")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--identity", type=Path, default=Path("identity.key"), help="made by fedddpm keygen")
    parser.add_argument("--state", type=Path, default=Path("state"), help="checkpoints and local parts")
    parser.add_argument("--image-size", type=int, default=28, help="pixels")
    parser.add_argument("--channels", type=int, default=1, help="1 grayscale, 3 colour")
    parser.add_argument("--rounds", type=int, default=None, help="how many; default: to the end of the run")
    options = parser.parse_args()

    client = Client(
        aggregator_url=options.url,
        identity=options.identity,
        federation_root=options.root,
        data=options.images,
        state_dir=options.state,
        image_size=options.image_size,
        channels=options.channels,
    )
    for summary in client.participate(rounds=options.rounds):
        print(f"round {summary.round + 1}: loss {summary.loss_before:.4f} before, {summary.loss_after:.4f} after")


if __name__ == "__main__":
    main()
