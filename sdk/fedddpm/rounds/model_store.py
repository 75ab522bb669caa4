"""The institution's own network on disk, and the two ways to the next base model: derived, or downloaded by hash.

Whatever arrives is believed only when its hash is the one that the signed specification or result names.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedddpm.errors import CheckpointError, FedDDPMError, ModelError
from fedddpm.files.atomic import load_tensors
from fedddpm.model.ema import AverageState, average_file, load_average, save_average
from fedddpm.model.model_files import load_model_into, read_architecture, save_model
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.endpoints import FederationApi
from fedddpm.updates.adoption import replace_parts
from fedddpm_protocol.agreement.chunks import chunk_span, segment_digest
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method, part_of
from fedddpm_protocol.agreement.model_layout import Manifest, Vector, coordinates, model_hash
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import NextModel, OpenedPart
from fedddpm_protocol.encoding.rederivation import follow_result
from fedddpm_protocol.errors import MalformedError, ResultError
from fedddpm_protocol.primitives import ring

Watch = Callable[[str, int, int], None]  # what, bytes so far, bytes in all
_DOWNLOAD = "download.partial"
_BESIDE = "fedddpm.beside"  # in the file of a base model: hash of the network that was stored with it


class ModelStore:
    """Reads and writes the institution's whole network: base of the next round plus its local parts."""

    def __init__(self, state: StateFolder, transport: FederationApi, watch: Watch) -> None:
        self._state, self._transport, self._watch = state, transport, watch
        self._scratch = state.path / _DOWNLOAD
        self._digests: dict[tuple[bytes, str], tuple[bytes, ...]] = {}  # of opened chunks, by result and session

    def load(self, position: RunPosition) -> UNet | None:
        """The network at ``position``; None when its file is missing or damaged."""
        path = self._state.path / position.model_file
        try:
            model = UNet.from_architecture(read_architecture(path))
            load_model_into(path, model)
            base = self.base(model, position)
        except (CheckpointError, ModelError):
            return None
        if not self._is_as_kept(model, position):
            return None
        shared = manifest(model, Method(position.method).shared_parts)
        return model if model_hash(shared, base) == position.base_model_hash else None

    def _is_as_kept(self, model: UNet, position: RunPosition) -> bool:
        """Whether a network that does not hold its base model is the one that was stored beside it."""
        if Method(position.method) is not Method.TURN:
            return True  # its shared parts tell
        notes = load_tensors(base_file(self._state.path / position.model_file))[1]
        return notes.get(_BESIDE) == model_hash(manifest(model), flatten(model)).hex()

    def base(self, model: UNet, position: RunPosition) -> Vector:
        """The base model at ``position`` [coordinates of the shared parts]: what ``model`` holds, the network there.

        With TURN parts go on at home until it is their turn, so it lies in a file of its own.

        Raises:
            CheckpointError, ModelError: that file is missing or damaged.
        """
        method = Method(position.method)
        if method is not Method.TURN:
            return flatten(model, method.shared_parts)
        return _shared_in(base_file(self._state.path / position.model_file), model, method)

    def averaged(self, model: UNet, position: RunPosition) -> Vector | None:
        """With outer momentum, the averaged model [coordinates of the shared parts] that the base model lies beyond.

        None without it, and before the first result and after the last one, where it is the base model.

        Raises:
            CheckpointError, ModelError: its file is missing or damaged.
        """
        wanted, method = position.lineage.averaged_hash, Method(position.method)
        if not wanted or position.finished:
            return None
        vector = _shared_in(outer_file(self._state.path / position.model_file), model, method)
        self._require(model_hash(manifest(model, method.shared_parts), vector) == wanted)
        return vector

    @staticmethod
    def base_hash(model: UNet, method: Method) -> bytes:
        """Hash of the parts of ``model`` that are shared."""
        return model_hash(manifest(model, method.shared_parts), flatten(model, method.shared_parts))

    def load_average(self, model: UNet, position: RunPosition) -> AverageState | None:
        """The average that belongs to ``model``, the network at ``position``; None when it is missing or damaged."""
        try:
            return load_average(average_file(self._state.path / position.model_file), model)
        except (CheckpointError, ModelError):
            return None

    def keep(
        self, model: UNet, position: RunPosition, average: AverageState | None, following: NextModel | None = None
    ) -> None:
        """Store the network and its average if there is one, then take the position.

        ``following``: the base model there, where the network does not hold it (with TURN), and the averaged one.

        In this order: a crash between leaves the old position valid, with the files that belong to it.
        """
        older = self._state.position(position.run)
        path = self._state.path / position.model_file
        if average is None:
            average_file(path).unlink(missing_ok=True)  # of a network that was lost
        else:
            save_average(average_file(path), model, average)
        if Method(position.method) is Method.TURN:
            whole = _holding(model, position, None if following is None else following.base)
            save_model(base_file(path), whole, {_BESIDE: model_hash(manifest(model), flatten(model)).hex()})
        if following is not None and following.averaged is not None and not position.finished:
            save_model(outer_file(path), _holding(model, position, following.averaged))
        save_model(path, model)
        self._state.move_to(position)
        if older is not None and older.model_file != position.model_file:
            stale = self._state.path / older.model_file
            for file in (stale, average_file(stale), base_file(stale), outer_file(stale)):
                file.unlink(missing_ok=True)

    def fetch_initial(self, spec: RoundSpec) -> UNet:
        """theta_0, the whole network that everybody starts from.

        Raises:
            ModelError: what arrived is not the model that the signed specification names.
        """
        model = UNet.from_architecture(spec.architecture)
        whole = manifest(model, MODEL_PARTS)
        try:
            self._download(spec.initial_model_hash, coordinates(whole), "first model")
            try:
                load_model_into(self._scratch, model)
            except CheckpointError as error:
                raise _other_model() from error
            self._require(model_hash(whole, flatten(model, MODEL_PARTS)) == spec.initial_model_hash)
        finally:
            self._scratch.unlink(missing_ok=True)
        return model

    def fetch_base(self, shared: Manifest, wanted: bytes) -> Vector:
        """A base model by hash: float32 [coordinates of ``shared``]; ModelError if something else arrived."""
        try:
            self._download(wanted, coordinates(shared), "base model")
            vector = _read_vector(self._scratch, shared)
            self._require(model_hash(shared, vector) == wanted)
        finally:
            self._scratch.unlink(missing_ok=True)
        return vector

    def derive(self, spec: RoundSpec, result: RoundResult, base: Vector, averaged: Vector | None = None) -> NextModel:
        """What follows from the opened ring vectors of ``result``, the base they were measured against, and with outer
        momentum the ``averaged`` model of the round before.

        Raises:
            ResultError: as the protocol's ``rederivation.follow_result``, or a part unknown to the round.
        """
        require_known_parts(spec, result)
        opened: dict[str, OpenedPart] = {}
        for part in result.parts:
            if part.opened:
                opened[part.part] = self._fetch_opened(spec, result, part)
        return follow_result(spec, result, base, opened, averaged)

    def opened_digests(self, spec: RoundSpec, result: RoundResult, part: PartResult) -> tuple[bytes, ...]:
        """SHA-256 of each chunk of an opened sum, which is the signed one; it is fetched where it was not yet.

        Raises:
            ResultError: what arrived is not the signed sum.
        """
        if (result.hash, part.part) not in self._digests:
            self._fetch_opened(spec, result, part)
        return self._digests[result.hash, part.part]

    def _fetch_opened(self, spec: RoundSpec, result: RoundResult, part: PartResult) -> OpenedPart:
        agreed = spec.part(part.part)
        values = agreed.values
        try:
            self._transport.download_opened(
                result.run, result.round, part.part, self._scratch, agreed.parameters, self._watcher("result")
            )
            packed = memoryview(self._scratch.read_bytes())
            size = ring.packed_bytes(spec.chunk_coordinates, values.bits)
            chunks = [packed[start : start + size] for start in range(0, len(packed), size)]
            digests = [hashlib.sha256(chunk).digest() for chunk in chunks]
            if segment_digest(values, spec.chunk_coordinates, digests) != part.opened_digest:
                raise ResultError(f"the opened sum of part {part.part!r} is not the one that was signed", "aggregator")
            self._digests = {key: known for key, known in self._digests.items() if key[0] == result.hash}
            self._digests[result.hash, part.part] = tuple(digests)

            def read(index: int) -> ring.Words:
                return ring.unpack(chunks[index], values.bits, chunk_span(values, spec.chunk_coordinates, index)[1])

            return OpenedPart(read, part.sums, part.cohort, part.survivors)
        except MalformedError as error:
            raise ResultError(
                f"the opened sum of part {part.part!r} has a wrong length: {error}", "aggregator"
            ) from error
        finally:
            self._scratch.unlink(missing_ok=True)

    def _download(self, wanted: bytes, parameters: int, what: str) -> None:
        self._transport.download_model(wanted, self._scratch, parameters, self._watcher(what))

    def _watcher(self, what: str) -> Callable[[int, int], None]:
        return lambda have, total: self._watch(f"downloading the {what}", have, total)

    @staticmethod
    def _require(same: bool) -> None:
        if not same:
            raise _other_model()


def require_known_parts(spec: RoundSpec, result: RoundResult) -> None:
    """ResultError unless the parts of a signed result are parts of its specification."""
    unknown = {part_of(part.part) for part in result.parts} - {part.name for part in spec.parts}
    if unknown:
        raise ResultError(f"round {result.round} had no part {', '.join(sorted(unknown))}", "aggregator")


def base_file(path: Path) -> Path:
    """Where the base model lies of a network that does not hold it: model-x.safetensors -> model-x.base.safetensors."""
    return path.with_suffix(f".base{path.suffix}")


def outer_file(path: Path) -> Path:
    """Where the averaged model lies that a base model is beyond: model-x.safetensors -> model-x.outer.safetensors."""
    return path.with_suffix(f".outer{path.suffix}")


def model_file(run: str, next_round: int) -> str:
    """Name of the network's file at a position."""
    return f"model-{run}-{next_round}.safetensors"


def _shared_in(path: Path, model: UNet, method: Method) -> Vector:
    """The shared parts [coordinates] of the network in a file, which is of ``model``'s architecture."""
    whole = UNet.from_architecture(model.architecture)
    load_model_into(path, whole)
    return flatten(whole, method.shared_parts)


def _holding(model: UNet, position: RunPosition, shared: Vector | None) -> UNet:
    """A copy of ``model`` whose shared parts are these; as they are with None."""
    whole = copy.deepcopy(model)
    if shared is not None:
        replace_parts(whole, Method(position.method).shared_parts, shared)
    return whole


def _read_vector(path: Path, shared: Manifest) -> Vector:
    try:
        tensors: Mapping[str, npt.NDArray[np.float32]] = safetensors.numpy.load_file(path)
    except (SafetensorError, OSError) as error:
        raise _other_model() from error
    if {name: (t.shape, t.dtype) for name, t in tensors.items()} != {
        tensor.name: (tensor.shape, np.dtype(np.float32)) for tensor in shared
    }:
        raise _other_model()
    return np.concatenate([tensors[tensor.name].reshape(-1) for tensor in shared])


def _other_model() -> FedDDPMError:
    return ModelError(
        "the model that the aggregator sent is not the one its signed specification names",
        "Try again; if it stays so, stop and call the federation's coordinator",
    )
