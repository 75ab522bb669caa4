"""What a charter says of the first model: its seed, or what was found when its weights were looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedddpm_aggregator.vectors.model_files import Network
from fedddpm_protocol.agreement.charter import MAX_FINDINGS, FirstModel
from fedddpm_protocol.agreement.model_layout import TensorSpec, Vector, model_hash

BLOWN = 10.0  # times the median size of its layer's rows, from which a row counts as blown
_DEAD = 1e-3  # of that median, below which it counts as dead
_NAMED = 4  # layers that a finding names
_LONGEST_NAME = 60


@dataclass(frozen=True)
class _Layer:
    """Sizes (root mean square) in a tensor of weights."""

    name: str
    size: float
    rows: npt.NDArray[np.float64]  # of each output's weights

    @property
    def dead(self) -> int:
        """Rows that are zero or next to it."""
        return int((self.rows <= _DEAD * np.median(self.rows)).sum())

    @property
    def blown(self) -> int:
        """Rows that are far larger than most."""
        return int((self.rows > BLOWN * np.median(self.rows)).sum()) if np.median(self.rows) else 0


def first_model_of(network: Network) -> FirstModel:
    """theta_0 as a charter has it; ``read_network`` has refused what is not finite."""
    manifest = tuple(tensor for part in network.manifests.values() for tensor in part)
    hashed = model_hash(manifest, network.vector)
    return FirstModel(hashed, network.initial_seed, "" if network.initial_seed else findings(manifest, network.vector))


def findings(manifest: tuple[TensorSpec, ...], vector: Vector) -> str:
    """What weights without a seed look like, in words: size of each layer, dead and blown rows, the last layer.

    A crafted first model betrays its victims by what is unusual there (scaled layers, rows that imprint one image,
    units that pass one image only). What is normal depends on the network, so that nothing but NaN is refused here.
    """
    layers = _layers(manifest, vector)
    if not layers:
        return f"{len(manifest)} tensors, all finite; none has rows to look at"
    by_size = sorted(layers, key=lambda layer: layer.size)
    said = [
        f"{len(manifest)} tensors, all finite",
        f"root mean square of the {len(layers)} layers from {_shown(by_size[0])} over"
        f" {by_size[len(by_size) // 2].size:.3g} in the middle to {_shown(by_size[-1])}",
        f"last layer {_shown(layers[-1])}",
        _rows("dead (next to zero)", {layer.name: layer.dead for layer in layers}),
        _rows(f"blown (over {BLOWN:.0f} times their layer's median)", {layer.name: layer.blown for layer in layers}),
    ]
    return "; ".join(said)[:MAX_FINDINGS]


def _layers(manifest: tuple[TensorSpec, ...], vector: Vector) -> list[_Layer]:
    layers, start = [], 0
    for tensor in manifest:
        end = start + tensor.size
        if len(tensor.shape) > 1:  # a bias or a gain has no rows
            squares = vector[start:end].astype(np.float64).reshape(tensor.shape[0], -1) ** 2
            layers.append(_Layer(tensor.name, float(squares.mean()) ** 0.5, np.sqrt(squares.mean(axis=1))))
        start = end
    return layers


def _rows(what: str, counts: dict[str, int]) -> str:
    found = {name: count for name, count in counts.items() if count}
    if not found:
        return f"no rows are {what}"
    worst = sorted(found, key=lambda name: -found[name])[:_NAMED]
    named = ", ".join(f"{found[name]} in {name[:_LONGEST_NAME]}" for name in worst)
    more = f" and {len(found) - len(worst)} more layers" if len(found) > len(worst) else ""
    return f"{sum(found.values())} rows are {what}: {named}{more}"


def _shown(layer: _Layer) -> str:
    return f"{layer.size:.3g} ({layer.name[:_LONGEST_NAME]})"
