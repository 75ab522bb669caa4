"""What a model file says of itself: the texts in the metadata of its safetensors, as records and back.

``fedddpm.architecture`` is JSON of the architecture's fields, ``fedddpm.manifest`` JSON {part: [[name, shape], ..]}: to
which part a tensor belongs, and in what order. ``fedddpm.initial_seed`` (64 hex digits) stands in a theta_0 that
everybody can compute from that public seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from fedddpm_protocol.agreement.model_layout import NOISE, Architecture, Manifest, TensorSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.untrusted.json_reading import read_json, record_of

ARCHITECTURE_KEY, MANIFEST_KEY = "fedddpm.architecture", "fedddpm.manifest"
INITIAL_SEED_KEY = "fedddpm.initial_seed"
_SEED = re.compile(r"[0-9a-f]{64}")
_MANIFESTS: TypeAdapter[dict[str, list[tuple[str, tuple[int, ...]]]]] = TypeAdapter(
    dict[str, list[tuple[str, tuple[int, ...]]]]
)


def architecture_json(architecture: Architecture, *, sort_keys: bool = False) -> str:
    """JSON of the fields, by name or in the record's order: whoever writes a file keeps to one, as its bytes tell.

    A field that came later is left out where it has its default, as in the record itself.
    """
    fields = asdict(architecture)
    if fields["prediction"] == NOISE:
        del fields["prediction"]
    return json.dumps(fields, sort_keys=sort_keys)


def architecture_from_json(text: str) -> Architecture:
    """Inverse of :func:`architecture_json`; ValueError for another form, and for what no specification can hold."""
    # Files from before there were classes name none: they read as the default, 0.
    architecture = record_of(Architecture, read_json(text))
    canonical.encode(architecture)
    return architecture


def manifests_json(manifests: Mapping[str, Manifest]) -> str:
    """JSON {part: [[name, shape], ...]}."""
    return json.dumps(
        {part: [[tensor.name, list(tensor.shape)] for tensor in manifest] for part, manifest in manifests.items()}
    )


def manifests_of(text: str) -> dict[str, Manifest]:
    """Inverse of :func:`manifests_json`; ValueError for another form."""
    try:
        parts = _MANIFESTS.validate_python(read_json(text))
    except ValidationError:  # it repeats what it refused
        raise ValueError("its manifest is not {part: [[name, shape], ..]}") from None
    return {part: tuple(TensorSpec(name, shape) for name, shape in tensors) for part, tensors in parts.items()}


def initial_seed_of(text: str | None) -> bytes:
    """The 32 bytes that a theta_0 follows from, none where its file names none; ValueError for another form."""
    if text is None:
        return b""
    if not _SEED.fullmatch(text):
        raise ValueError(f"its {INITIAL_SEED_KEY} is not 64 hex digits; write it with: fedddpm init-model")
    return bytes.fromhex(text)
