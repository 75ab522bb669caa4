"""Publishing holds a few chunks in memory, however large the model is."""

from __future__ import annotations

import io
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tests.aggregator.support.federations import ARCHITECTURE
from tests.protocol.support.specs import make_spec

from fedddpm_aggregator.vectors.model_files import read_vector, vector_on_disk, write_safetensors
from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.model_layout import TensorSpec, model_hash
from fedddpm_protocol.agreement.spec import part_spec
from fedddpm_protocol.encoding.decoder import OpenedPart, advance_model, derive_model
from fedddpm_protocol.primitives import ring

CHUNK = 2**16
TENSORS = tuple(TensorSpec(f"decoder.{index}", (2**19,)) for index in range(8))  # 4 Mi parameters, 16 MiB


def test_the_next_model_is_made_in_a_fraction_of_its_size(tmp_path: Path) -> None:
    part = part_spec("full", TENSORS, 16, chunk_coordinates=CHUNK)
    spec = replace(make_spec(bits=16), parts=(part,), chunk_coordinates=CHUNK)
    base = np.random.default_rng(1).normal(0, 1, part.parameters).astype(np.float32)

    def chunk(index: int) -> ring.Words:
        count = chunk_span(part.values, CHUNK, index)[1]
        return np.random.default_rng(index).integers(0, 200, count).astype(np.uint16)

    opened = {"full": OpenedPart(chunk, (3 * 65535, 0, 0), ("a", "b", "c"), ("a", "b", "c"))}
    expected = derive_model(spec, base, opened).base
    base_file, next_file = tmp_path / "base", tmp_path / "next"
    with base_file.open("wb") as file:
        write_safetensors(file, ARCHITECTURE, {"decoder": TENSORS}, base)
    tracemalloc.start()
    try:
        with vector_on_disk(part.parameters) as model, next_file.open("wb") as file:
            read_vector(base_file, TENSORS, model)
            advance_model(spec, model, opened)
            hashed = model_hash(TENSORS, model)
            write_safetensors(file, ARCHITECTURE, {"decoder": TENSORS}, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert hashed == model_hash(TENSORS, expected)
    assert np.array_equal(read_vector(next_file, TENSORS), expected)
    assert peak < 4 * part.parameters / 2


def test_a_vector_on_disk_has_its_room_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that a full disk has no room for would be a bus error, which ends the server."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with vector_on_disk(2**20) as vector:
        files = [file for file in list(Path("/proc/self/fd").iterdir()) if file.exists()]
        taken = {file.stat().st_blocks * 512 for file in files if str(tmp_path) in str(file.readlink())}
        assert len(taken) == 1
        assert taken.pop() >= vector.nbytes
        assert not vector.any()


def test_a_written_model_is_one_that_the_library_reads() -> None:
    tensors = {"encoder": (TensorSpec("b", (3,)), TensorSpec("a", (2, 2))), "decoder": (TensorSpec("c", ()),)}
    file = io.BytesIO()
    write_safetensors(file, ARCHITECTURE, tensors, np.arange(8, dtype=np.float32))
    read = safetensors.numpy.load(file.getvalue())
    assert {name: values.tolist() for name, values in read.items()} == {
        "b": [0, 1, 2],
        "a": [[3, 4], [5, 6]],
        "c": 7,
    }
