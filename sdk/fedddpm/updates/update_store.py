"""The update of the round on the disk: whole or not there, and for its user alone.

It is used again by every attempt on the same base model under the same terms; only the masks are fresh each time.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fedddpm.errors import CheckpointError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.ema import AverageState
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.untrusted.json_reading import read_json

_KEY, _AVERAGE, _HASHES = "fedddpm.update", "average_updates", ("base_model_hash", "terms_hash")
_PRIVATE = 0o600  # an update without its mask is what nobody else may see
_FILE, _CHECKPOINT = "update.safetensors", "training.safetensors"


class UpdateStore:
    """The one update, and the checkpoint of the training that leads to it, in the state folder."""

    def __init__(self, folder: Path) -> None:
        self._update, self.checkpoint = folder / _FILE, folder / _CHECKPOINT

    def load(self, base_model_hash: bytes, terms_hash: bytes | None = None) -> LocalUpdate | None:
        """The stored update of exactly this base model, under these terms where they are given; None without one."""
        if not self._update.exists():
            return None
        try:
            tensors, metadata = load_tensors(self._update)
            fields = dict(read_json(metadata[_KEY]))
            average_updates = fields.pop(_AVERAGE)
            averaged = None if average_updates is None else AverageState(tensors["average"].numpy(), average_updates)
            update = LocalUpdate(
                **{**fields, **{name: bytes.fromhex(fields[name]) for name in _HASHES}},
                delta=tensors["delta"].numpy(),
                local=tensors["local"].numpy(),
                average=averaged,
                feedback=tensors["feedback"].numpy() if "feedback" in tensors else None,
            )
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None  # a damaged file is as good as none: whether it is made again is the ledger's to say
        wanted = (base_model_hash, update.terms_hash if terms_hash is None else terms_hash)
        return update if (update.base_model_hash, update.terms_hash) == wanted else None

    def save(self, update: LocalUpdate) -> None:
        """Write the update, atomically; CheckpointError if the disk does not take it."""
        fields = {
            "run": update.run,
            "round": update.round,
            **{name: getattr(update, name).hex() for name in _HASHES},
            "samples": update.samples,
            "loss_before": update.loss_before,
            "loss_after": update.loss_after,
            "seconds": update.seconds,
            "steps": update.steps,
            "images_seen": update.images_seen,
            "train_loss": update.train_loss,
            _AVERAGE: None if update.average is None else update.average.updates,
        }
        tensors = {"delta": torch.from_numpy(update.delta), "local": torch.from_numpy(update.local)}
        if update.average is not None:
            tensors["average"] = torch.from_numpy(update.average.vector)
        if update.feedback is not None:
            tensors["feedback"] = torch.from_numpy(update.feedback)
        save_tensors(self._update, tensors, {_KEY: json.dumps(fields)}, _PRIVATE)
        self.checkpoint.unlink(missing_ok=True)

    def clear(self) -> None:
        """The round is over: forget the update and its checkpoint."""
        self._update.unlink(missing_ok=True)
        self.checkpoint.unlink(missing_ok=True)
