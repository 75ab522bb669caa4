"""Error feedback: what rounding took from this institution's accepted update is added to its next one.

Rounding to a narrow ring loses nothing on average, but it does so round by round; what was lost once is then not lost
but late. The vector stays in the institution's folder and reaches others only as a part of a masked update.

It is added once, when an update is made, and stored with it: every attempt on the same base model sends the same
vector. After the round it is what that sum's rounding took; where the update was in no sum it stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fedddpm.errors import CheckpointError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.updates.contribution import Contribution, scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import part_of
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.encoding.encoder import l2_norm
from fedddpm_protocol.errors import NonFiniteError
from fedddpm_protocol.untrusted.json_reading import read_json

Sizes = Mapping[str, int]  # part -> parameters, in the order of the round
_FILE, _KEY, _PRIVATE = "residual.safetensors", "fedddpm.residual", 0o600


@dataclass(frozen=True)
class Summed:
    """One opened sum: who was in its cohort, whose updates it holds, and how many of them may conspire."""

    cohort: Sequence[str]
    survivors: Sequence[str]
    conspirators: int = 0


class ErrorFeedback:
    """The residual of one institution in its folder; one that is lost or damaged begins again at zero."""

    def __init__(self, folder: Path, member: str) -> None:
        self._path, self._member = folder / _FILE, member

    def added_to(self, update: LocalUpdate, parts: Sequence[PartSpec]) -> LocalUpdate:
        """A new update together with what is to be made up for; to be stored before any of it is sent.

        At most as much as the update itself is made up for at once and the rest is given up: otherwise, in rings too
        narrow for their cohort, errors would set the scale and feed on themselves.
        """
        residual = self._load(update.run, update.round, _sizes(parts))
        norm = 0.0 if residual is None else l2_norm(residual)
        if residual is None or norm == 0:
            return update
        largest = l2_norm(update.delta)
        return replace(update, feedback=residual if norm <= largest else residual * np.float32(largest / norm))

    def after(
        self,
        run: str,
        round_: int,
        next_round: int,
        update: LocalUpdate | None,
        spec: RoundSpec | None,
        opened: Mapping[str, Summed],
    ) -> None:
        """Keep for ``next_round`` what the sums of ``round_`` leave: ``opened`` are those that were accepted.

        ``update`` is what was stored for the round, ``spec`` the attempt that was opened; without them nobody knows
        what rounding took, so of parts that were summed nothing is kept.

        Raises:
            CheckpointError: the disk does not take it.
        """
        sizes = _sizes(spec.parts) if spec is not None else self._stored_sizes()
        if not sizes:
            return
        before = self._load(run, round_, sizes) if update is None else update.feedback
        residual = np.zeros(sum(sizes.values()), np.float32) if before is None else before.copy()
        rest = residual
        for part, size in sizes.items():
            piece, rest = rest[:size], rest[size:]
            if part in opened and self._member in opened[part].survivors:
                piece[:] = 0
                if update is not None and spec is not None:
                    self._measure(spec, part, update, opened[part], piece)
        self._save(run, next_round, sizes, residual)

    def after_results(
        self,
        run: str,
        round_: int,
        results: Sequence[RoundResult],
        known: Mapping[bytes, RoundSpec],
        update: LocalUpdate | None,
        conspirators: int = 0,
    ) -> None:
        """As :meth:`after`, for ``results`` from ``round_`` on: the update was for the first of them.

        To be called when they were accepted: a kill before this loses the residual, and nothing is added twice.
        """
        first = results[0]
        own = [part for part in first.parts if part.opened and self._member in part.survivors]  # of its shard
        opened = {part_of(part.part): Summed(part.cohort, part.survivors, conspirators) for part in own}
        self.after(run, round_, results[-1].round + 1, update, known.get(first.spec_hash), opened)

    def _measure(self, spec: RoundSpec, part: str, update: LocalUpdate, summed: Summed, into: Vector) -> None:
        contribution = Contribution(spec, part, update, scaled_pieces(spec, update.sent))
        contribution.take_place(self._member, summed.cohort, summed.conspirators)
        contribution.residual(into)

    def _load(self, run: str, round_: int, sizes: Sizes) -> Vector | None:
        """The residual that belongs to an update of exactly this round; None if there is none."""
        if not self._path.exists():
            return None
        try:
            tensors, metadata = load_tensors(self._path)
            residual: Vector = tensors["residual"].numpy()
            fits = read_json(metadata[_KEY]) == _binding(run, round_, sizes)
            l2_norm(residual)
        except (CheckpointError, KeyError, TypeError, ValueError, NonFiniteError):
            return None
        whole = residual.dtype == np.float32 and residual.shape == (sum(sizes.values()),)
        return residual if fits and whole else None

    def _stored_sizes(self) -> Sizes:
        """Of the parts in the file; empty without one."""
        try:
            return dict(read_json(load_tensors(self._path)[1][_KEY])["parts"])
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            return {}

    def _save(self, run: str, round_: int, sizes: Sizes, residual: Vector) -> None:
        metadata = {_KEY: json.dumps(_binding(run, round_, sizes))}
        save_tensors(self._path, {"residual": torch.from_numpy(residual)}, metadata, _PRIVATE)


def _sizes(parts: Sequence[PartSpec]) -> Sizes:
    return {part.name: part.parameters for part in parts}


def _binding(run: str, round_: int, sizes: Sizes) -> dict[str, object]:
    return {"run": run, "round": round_, "parts": [[part, size] for part, size in sizes.items()]}
