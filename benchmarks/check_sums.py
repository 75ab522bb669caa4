"""What the check of a published sum costs an institution in a round, and how likely it is that a false one is found.

    python benchmarks/check_sums.py
    python benchmarks/check_sums.py --effort 0.25 --json check_sums.json

Bytes are those of the real messages and of packed masked words, without HTTP heads. The words are what is fetched on
average; digests and answers are fetched in every round, for the sums of weights and losses are always checked.
"""

from __future__ import annotations

import argparse
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count
from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.spec import PartSpec, part_spec
from fedddpm_protocol.primitives.ring import packed_bytes
from fedddpm_protocol.session.checked_sum import chance_to_find
from fedddpm_protocol.wire.api import UploadDigests
from fedddpm_protocol.wire.messages import RevealedShare, Unmask, UnmaskBody, Unmasks

MEMBERS, PARAMETERS, CHUNKS = (5, 20, 128), (716_297, 1_000_000, 35_000_000), (2**18, 2**16)
BITS = 8


@dataclass(frozen=True)
class Cost:
    """One institution's check of one sum."""

    members: int
    parameters: int
    chunk_coordinates: int
    sum_bytes: int  # of the opened vector, which is fetched anyway
    messages: int  # bytes of digests and answers
    words: float  # bytes of masked words, on average
    chunks: int
    drawn: float  # chunks, on average
    found_alone: float  # one false chunk, by one institution
    found: float  # by any of them
    found_everywhere_alone: float  # a tenth of the chunks, by one institution


def cost(members: int, parameters: int, chunk_coordinates: int, effort: float) -> Cost:
    """Exact sizes for a decoder of so many parameters in a ring of 8 bits."""
    part = part_spec("decoder", (TensorSpec("w", (parameters,)),), BITS, chunk_coordinates=chunk_coordinates)
    chunks = chunk_count(part.values, chunk_coordinates)
    chance = min(1.0, effort / members)
    drawn = chunks * chance + (1 - chance) ** chunks * min(1.0, effort)
    size = packed_bytes(part.values.coordinates, part.values.bits)
    return Cost(
        members=members,
        parameters=parameters,
        chunk_coordinates=chunk_coordinates,
        sum_bytes=size,
        messages=_messages(part, members, chunk_coordinates),
        words=members * (drawn * size / chunks + chunk_bytes(part.weights, chunk_coordinates, 0)),
        chunks=chunks,
        drawn=drawn,
        found_alone=chance_to_find(chunks, 1, members, effort, 1),
        found=chance_to_find(chunks, 1, members, effort, members),
        found_everywhere_alone=chance_to_find(chunks, max(1, chunks // 10), members, effort, 1),
    )


def _messages(part: PartSpec, members: int, chunk_coordinates: int) -> int:
    ids = [f"institution-{index:03d}" for index in range(members)]
    revealed = {member: RevealedShare("self_mask", secrets.token_bytes(32), secrets.token_bytes(32)) for member in ids}
    body = UnmaskBody(secrets.token_bytes(32), secrets.token_bytes(32), revealed).encode()
    answers = Unmasks(unmasks=tuple(Unmask(id=m, body=body, signature=secrets.token_bytes(64)) for m in ids))
    chunks = {
        segment.name: tuple(secrets.token_bytes(32) for _ in range(chunk_count(segment, chunk_coordinates)))
        for segment in part.segments
    }
    digests = len(UploadDigests(chunks=chunks).model_dump_json())
    return len(answers.model_dump_json()) + members * digests


def main() -> None:
    """Print the table, and write it where asked."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--effort", type=float, default=1.0, help="the policy's check_sums")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    costs = [cost(n, size, chunk, options.effort) for chunk in CHUNKS for size in PARAMETERS for n in MEMBERS]
    table = Table(title=f"check_sums = {options.effort:g}, {BITS} bits: one institution, one sum, one round")
    for heading in (
        "words a chunk",
        "parameters",
        "n",
        "sum MB",
        "chunks",
        "drawn",
        "words MB",
        "messages MB",
        "of sum",
    ):
        table.add_column(heading, justify="right")
    for heading in ("1 false: one finds", "1 false: any finds", "10 % false: one finds"):
        table.add_column(heading, justify="right")
    for one in costs:
        table.add_row(
            f"{one.chunk_coordinates:,}",
            f"{one.parameters:,}",
            str(one.members),
            f"{one.sum_bytes / 1e6:.2f}",
            str(one.chunks),
            f"{one.drawn:.1f}",
            f"{one.words / 1e6:.2f}",
            f"{one.messages / 1e6:.2f}",
            f"{(one.words + one.messages) / one.sum_bytes:.2f}",
            *(f"{100 * p:.0f} %" for p in (one.found_alone, one.found, one.found_everywhere_alone)),
        )
    Console(width=170).print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
