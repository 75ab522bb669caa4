"""Sums of encoded updates without masks, which cancel exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.spec import RoundSpec, ScaleReference
from fedddpm_protocol.encoding.decoder import OpenedPart, add_mean
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder, fit_to_norm
from fedddpm_protocol.primitives import ring


def names(n: int) -> tuple[str, ...]:
    return tuple(f"site-{index:03}" for index in range(n))


def encoded(
    spec: RoundSpec,
    delta: np.ndarray,
    weight: int,
    place: Place = Place(0, 5),  # noqa: B008  # frozen
    seed: bytes | None = None,
    factor: float = 1.0,
    part_index: int = 0,
) -> ring.Words:
    part = spec.parts[part_index]
    encoder = ValuesEncoder(spec, part, delta, weight, place, factor=factor, rounding_seed=seed)
    return np.concatenate([encoder.chunk(i) for i in range(chunk_count(part.values, spec.chunk_coordinates))])


def summed(
    spec: RoundSpec, deltas: Sequence[np.ndarray], weights: Sequence[int], cohort: int = 0, part: int = 0
) -> ring.Words:
    """Opened words of the first members of a cohort (of those who gave an update, by default)."""
    values = spec.parts[part].values
    total = ring.zeros(values.coordinates, values.bits)
    for position, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        words = encoded(spec, delta, weight, Place(position, cohort or len(deltas)), part_index=part)
        ring.add_in_place(total, words, values.bits)
    return total


def opened_part(
    spec: RoundSpec, words: ring.Words, sums: Sequence[int], survivors: int, cohort: int = 0, part: int = 0
) -> OpenedPart:
    """Opened words as the decoder reads them."""

    def chunk(index: int) -> ring.Words:
        start, count = chunk_span(spec.parts[part].values, spec.chunk_coordinates, index)
        return words[start : start + count]

    members = names(cohort or survivors)
    return OpenedPart(chunk, sums, members, members[:survivors])


def mean_of(spec: RoundSpec, deltas: Sequence[np.ndarray], weights: Sequence[int], cohort: int = 0) -> np.ndarray:
    """The decoded mean as float32."""
    words = summed(spec, deltas, weights, cohort)
    mean = np.zeros(spec.parts[0].parameters, np.float32)
    add_mean(spec, spec.parts[0], [opened_part(spec, words, (sum(weights), 0, 0), len(deltas), cohort)], mean)
    return mean


def random_deltas(n: int, norm: float, seed: int = 1, size: int = 60) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    deltas = [generator.standard_t(3, size).astype(np.float32) * np.float32(100) for _ in range(n)]
    return [(delta * np.float32(fit_to_norm(delta, norm)[0])).astype(np.float32) for delta in deltas]


def with_reference(spec: RoundSpec, reference: ScaleReference) -> RoundSpec:
    return replace(spec, parts=(replace(spec.parts[0], reference=reference),))
