"""What a coordinator does once the institutions have sent their public keys, as one script.

    python examples/coordinator.py --folder federation --member hospital-a=5d0c... --member clinic-b=91ab... \\
        --member lab-c=77e2... --method UDEC --rounds 15

It makes the root key, the aggregator's folder and theta_0, signs the roster and starts the run; then
`fedddpm-aggregator serve --data federation/aggregator` runs the rounds. In a real federation the root key is made and
used on a machine that is not the aggregator's, and every fingerprint is compared by telephone before it is signed:
docs/first-federation.md goes through it step by step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from local_federation import LocalFederation


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("federation"))
    parser.add_argument("--federation", default="example", help="name of the federation")
    parser.add_argument("--member", action="append", required=True, metavar="ID=PUBLIC_KEY")
    parser.add_argument("--c-max", type=int, default=0, help="institutions that may conspire with the aggregator")
    parser.add_argument("--n-min", type=int, default=3, help="smallest set whose sum may be opened")
    parser.add_argument("--method", default="UDEC", choices=["FULL", "USPLIT", "ULATDEC", "UDEC", "TURN"])
    parser.add_argument("--preset", default="lean", choices=["lean", "fast", "paper", "tiny"])
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()

    federation = LocalFederation(
        options.folder, members=(), name=options.federation, c_max=options.c_max, n_min=options.n_min
    )
    federation.make_root_and_aggregator()
    federation.sign_roster("create", *[word for member in options.member for word in ("--member", member)])
    federation.install_roster()
    model = federation.init_model(options.image_size, options.channels, options.preset)
    federation.start_run("run-1", options.method, model, rounds=options.rounds, epochs=options.epochs)
    print(f"root public key, for every institution: {federation.root_public}")
    print(f"now run: fedddpm-aggregator serve --data {federation.data}")


if __name__ == "__main__":
    main()
