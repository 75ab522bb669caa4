"""The tables of service_load.py, on the screen and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROUNDS = (
    "institutions",
    "coordinates",
    "round s",
    "times plain",
    "server CPU s",
    "clients CPU s",
    "server MiB, idle",
    "at its peak",
    "database MiB",
    "MB up",
    "MB down",
)
ENDPOINTS = ("institutions", "coordinates", "endpoint", "requests", "p50 ms", "p95 ms")


_INTRODUCTION = """# One aggregator under many institutions

```
python benchmarks/service_load.py --documents docs/results
```

A real aggregator process, and institutions as threads of two other processes on the same cores: the real protocol
over real HTTP, each request signed, 16 bits a value, hidden weights, only the training left out. A round is the
time from the last JOIN to the first sight of the signed result. Requests are timed by the clients, so their times
hold the wait for a core; of each client process four institutions are at work at a time, the others wait in long
polls or in line. "Times plain" compares a round with the plain average of as many float32 vectors over HTTP, sent
in the clear to a process without signatures, masks, disk or database, in the same run. Memory is resident memory of
the server; its peak holds the bodies that are being read, which have a budget (`max_buffered_bytes`), and not more
of them when more institutions come."""


def round_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a measurement."""
    rows = []
    for row in result["rows"]:
        shards = f" in {row['shards']} shards" if row["shards"] else ""
        times = f"{row['times_plain']:.1f}" if "times_plain" in row else ""
        numbers = [
            f"{statistics.median(row['round_s']):.2f}",
            times,
            *(f"{row[name]:.1f}" for name in ("server_cpu_s", "client_cpu_s")),
            *(f"{row[name]:.0f}" for name in ("server_idle_mib", "server_peak_mib")),
            f"{row['database_mib']:.1f}",
            *(f"{row[name] / 1e6:.1f}" for name in ("bytes_up", "bytes_down")),
        ]
        rows.append([f"{row['institutions']}{shards}", f"{row['coordinates']:,}", *numbers])
    return rows


def endpoint_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line for each endpoint of each measurement."""
    return [
        [
            str(row["institutions"]),
            f"{row['coordinates']:,}",
            endpoint,
            str(values["requests"]),
            f"{values['p50_ms']:.1f}",
            f"{values['p95_ms']:.1f}",
        ]
        for row in result["rows"]
        for endpoint, values in row["endpoints"].items()
        if endpoint != "long poll"
    ]


def growth(result: dict[str, Any]) -> list[str]:
    """Peak memory of the server against clients and against coordinates, in sentences."""
    peaks = {(row["institutions"], row["coordinates"]): row["server_peak_mib"] for row in result["rows"]}
    few, many = (pick(n for n, _ in peaks) for pick in (min, max))
    short, long = (pick(c for _, c in peaks) for pick in (min, max))
    sentences = []
    if few != many and (few, long) in peaks and (many, long) in peaks:
        slope = (peaks[many, long] - peaks[few, long]) * 1024 / (many - few)
        sentences.append(f"From {few} to {many} institutions the peak grows by {slope:.0f} KiB for each.")
    if short != long and (many, short) in peaks and (many, long) in peaks:
        more = peaks[many, long] - peaks[many, short]
        sentences.append(
            f"From {short:,} to {long:,} coordinates (x 4 bytes: {4 * (long - short) / 2**20:.1f} MiB) "
            f"it grows by {more:.0f} MiB."
        )
    return sentences


def idle_sentence(result: dict[str, Any]) -> str:
    """What waiting costs."""
    idle = result["idle"]
    return (
        f"{idle['pollers']} clients in long polls of {idle['poll_s']:.0f} s cost {idle['core_share']:.1%} of one core "
        f"and {idle['kib_per_poller']:.0f} KiB each; a server whom nobody asks uses {idle['core_share_alone']:.1%}."
    )


def print_report(result: dict[str, Any]) -> None:
    """Tables on the screen."""
    console = Console()
    where = f"{result['cores']} cores, {result['database']}, blobs: {result['blobs']}"
    for title, columns, rows in (
        (f"Rounds: {where}", ROUNDS, round_rows(result)),
        ("Requests, as clients see them", ENDPOINTS, endpoint_rows(result)),
    ):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="left" if column == "endpoint" else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for sentence in sentences(result):
        console.print(sentence)


def sentences(result: dict[str, Any]) -> list[str]:
    """What stands below the tables."""
    return [*growth(result), *([idle_sentence(result)] if result["idle"] else [])]


def write_markdown(results: Mapping[str, dict[str, Any]], path: Path) -> None:
    """The same tables for the documents, a section for each measurement."""
    parts = [_INTRODUCTION]
    for title, result in results.items():
        where = (
            f"{result['cores']} cores ({result['machine']}), Python {result['python']}, {result['database']}, blobs in "
            f"{article(result['blobs'])}; clients in {result['client_processes']} processes on the same cores."
        )
        parts += [f"## {title}", where, _markdown(ROUNDS, round_rows(result)), " ".join(sentences(result))]
        parts.append(_markdown(ENDPOINTS, endpoint_rows(result)))
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def article(noun: str) -> str:
    """A directory, an object store."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
