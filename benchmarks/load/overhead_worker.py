"""One institution of round_overhead.py: the real participation loop, with a ready update in place of training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from fedddpm.config import load_config
from fedddpm.data.image_set import ImageSet
from fedddpm.identity import Identity
from fedddpm.model.partition import flatten
from fedddpm.monitoring.reporter import make_reporter
from fedddpm.rounds import participation
from fedddpm.rounds.institution import Institution
from fedddpm.rounds.round_update import RoundUpdate
from fedddpm.rounds.trust import AcceptedSpec
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm.updates.local_update import LocalUpdate, local_parts
from fedddpm_protocol.agreement.methods import Method


class ReadyUpdate(RoundUpdate):
    """Says "ready" when it has an update, and goes on when it is told to."""

    def of(self, accepted: AcceptedSpec, position: RunPosition) -> LocalUpdate:
        """Random numbers of the right shape, in place of a training."""
        spec = accepted.spec
        self._ledger.agree(spec.base_model_hash, spec.terms.hash)
        model = self._history.network(position, spec)
        size = sum(part.parameters for part in spec.parts)
        random = np.random.default_rng(spec.round)
        delta = (random.standard_normal(size) * 1e-4).astype(np.float32)
        local = flatten(model, local_parts(Method(spec.method)))
        update = LocalUpdate(
            spec.run, spec.round, spec.base_model_hash, spec.terms.hash, delta, local, 1000, 0.1, 0.1, 0.0
        )
        self._store.save(update)
        print("ready", flush=True)
        sys.stdin.readline()
        return update


# Everything else is the real participation.
participation.RoundUpdate = ReadyUpdate  # type: ignore[attr-defined]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--url", "--root"):
        parser.add_argument(name, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    config = load_config(
        overrides={
            "aggregator_url": options.url,
            "identity": options.folder / "identity.key",
            "federation_root": options.root,
            "data": "none",
            "state_dir": options.folder / "state",
            "policy": {"min_images": 1, "min_steps": 1, "min_images_seen": 1},  # nothing is trained here
        }
    )
    identity = Identity.load(config.identity)
    root = bytes.fromhex(options.root)
    images = ImageSet(torch.zeros((8, 1, 28, 28), dtype=torch.uint8))
    us = Institution(config, identity, identity.member_id, root, (images, images), torch.device("cpu"))
    with (
        StateFolder(config.state_dir, root, identity.member_id) as state,
        make_reporter(False) as reporter,
        Connection(config.aggregator_url, identity, identity.member_id, config.network) as connection,
    ):
        taking_part = participation.Participation(us, state, FederationApi(connection), reporter, lambda summary: None)
        for _ in range(options.rounds):
            taking_part.run(1)
            print("done", flush=True)


if __name__ == "__main__":
    main()
