"""Write the tables in the pages about the charts.

helm/*/README.md: the values, from the comments in values.yaml, which follow helm-docs: `# -- text`.
docs/cluster.md: what a round takes and costs, from docs/results/service_load.json.

    python scripts/chart_docs.py            # rewrite the tables
    python scripts/chart_docs.py --check    # say which are out of date, and end with 1

A comment's next lines belong to it. `# @default -- text` stands for a default that is too long for a table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHARTS = ROOT / "helm"
BEGIN, END = "<!-- values: written by scripts/chart_docs.py -->", "<!-- end of the values -->"
PAGE, LOAD = ROOT / "docs" / "cluster.md", ROOT / "docs" / "results" / "service_load.json"
BEGIN_SIZES = "<!-- sizes: written by scripts/chart_docs.py from docs/results/service_load.json -->"
END_SIZES = "<!-- end of the sizes -->"
MEASURED = "SQLite"  # which of the measurements
# Examples, to be replaced by whoever reads the page: a core for an hour, a GB that goes out, a GB kept for a month.
PER_CORE_HOUR, PER_GB_OUT, PER_GB_MONTH = 0.04, 0.09, 0.10
MONTHS = 12  # that the example keeps a round
FORMULA = """```
server CPU s / 3600 x price of a core and hour  +  GB down x price of a GB out
    +  GB kept x price of a GB and month x months
```"""
LONGEST_DEFAULT = 60  # characters
_KEY = re.compile(r"^( *)([A-Za-z_][\w.-]*):")
_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    list: "list",
    dict: "object",
    type(None): "int or null",
}


@dataclass(frozen=True)
class Row:
    """One documented value."""

    path: tuple[str, ...]
    text: str
    default: str | None  # in words, instead of the value


def documented(text: str) -> Iterator[Row]:
    """The values of a values.yaml that have a comment, in its order."""
    path: list[tuple[int, str]] = []  # indent and key of what the line is in
    words: list[str] = []
    default: str | None = None
    for line in text.splitlines():
        comment = line.strip().removeprefix("#").strip()
        key = _KEY.match(line)
        if line.strip().startswith("# -- "):
            words, default = [comment.removeprefix("-- ")], None
        elif line.strip().startswith("# @default -- "):
            default = comment.removeprefix("@default -- ")
        elif line.strip().startswith("#") and words:
            words.append(comment)
        elif key is not None:
            indent = len(key[1])
            path = [*((i, k) for i, k in path if i < indent), (indent, key[2])]
            if words:
                yield Row(tuple(k for _, k in path), " ".join(words), default)
            words = []
        else:
            words = []


def value_at(values: Any, path: tuple[str, ...]) -> Any:
    """The value of a path; KeyError if it has none."""
    for key in path:
        values = values[key]
    return values


def table(text: str) -> str:
    """The Markdown table of a values.yaml."""
    values = yaml.safe_load(text)
    lines = ["| value | type | default | |", "|---|---|---|---|"]
    for row in documented(text):
        value = value_at(values, row.path)
        written = row.default or json.dumps(value)
        if len(written) > LONGEST_DEFAULT:
            written = "see values.yaml"
        shown = written if written.startswith("see ") else f"`{written}`"
        lines.append(
            f"| `{'.'.join(row.path)}` | {_TYPES[type(value)]} | {shown} | {row.text.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(lines)


def with_table(page: str, written: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what is between the marks written anew; ValueError if it has no such marks."""
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    return f"{before}{begin}\n{written}\n{end}{after}"


def kept_bytes(row: dict[str, Any]) -> float:
    """What a round leaves in blobs and database: a float32 model, the opened sum, and its rows. In bytes."""
    vectors = int(row["coordinates"]) * (4 + int(row["bits"]) / 8)
    return vectors + 2**20 * (float(row["database_mib"]) - float(row["database_before_mib"]))


def sizes(load: dict[str, Any]) -> str:
    """The table of what a round takes, and the example of what one costs."""
    measured = load[MEASURED]
    columns = (
        "institutions",
        "bits",
        "round s",
        "server CPU s",
        "MiB at the peak",
        "MB up",
        "MB down",
        "MiB of database",
    )
    lines = [f"| {' | '.join((*columns, 'MB kept'))} |", "|---:" * (len(columns) + 1) + "|"]
    for row in measured["rows"]:
        seconds, database = sum(row["round_s"]) / len(row["round_s"]), row["database_mib"] - row["database_before_mib"]
        cells = [f"{row['institutions']}", f"{row['bits']}", f"{seconds:.1f}", f"{row['server_cpu_s']:.1f}"]
        cells += [f"{row['server_peak_mib']:.0f}", f"{row['bytes_up'] / 1e6:.0f}", f"{row['bytes_down'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{database:.1f}', f'{kept_bytes(row) / 1e6:.0f}'])} |")
    places = {f"{row['coordinates']:,}" for row in measured["rows"]}
    about = (
        f"{' and '.join(sorted(places))} coordinates, {measured['cores']} cores shared with the institutions' programs"
    )
    return "\n".join(
        [*lines, "", f"({about}.)", "", "What a round costs the operator:", "", FORMULA, "", example(measured["rows"])]
    )


def example(rows: list[dict[str, Any]]) -> str:
    """What the largest measured round costs at the example's prices."""
    row = max(rows, key=lambda row: int(row["institutions"]))
    seconds, out, kept = float(row["server_cpu_s"]), row["bytes_down"] / 1e9, kept_bytes(row) / 1e9
    parts = [seconds / 3600 * PER_CORE_HOUR, out * PER_GB_OUT, kept * PER_GB_MONTH * MONTHS]
    return "\n".join(
        [
            f"For {row['institutions']} institutions at {row['bits']} bits, kept for {MONTHS} months, at **example "
            f"prices, to be replaced by yours** ({PER_CORE_HOUR:.2f} a core and hour, {PER_GB_OUT:.2f} a GB out, "
            f"{PER_GB_MONTH:.2f} a GB and month):",
            "",
            "```",
            f"{seconds:.1f} s / 3600 x {PER_CORE_HOUR:.2f}  +  {out:.3f} GB x {PER_GB_OUT:.2f}  +  "
            f"{kept:.4f} GB x {PER_GB_MONTH:.2f} x {MONTHS}",
            f"= {parts[0]:.4f} + {parts[1]:.4f} + {parts[2]:.4f} = {sum(parts):.3f} a round",
            "```",
        ]
    )


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that has such a part, and what should stand in it."""
    for chart in sorted(path.parent for path in CHARTS.glob("*/Chart.yaml")):
        readme = (chart / "README.md").read_text(encoding="utf-8")
        yield chart / "README.md", with_table(readme, table((chart / "values.yaml").read_text(encoding="utf-8")))
    load = json.loads(LOAD.read_text(encoding="utf-8"))
    yield PAGE, with_table(PAGE.read_text(encoding="utf-8"), sizes(load), BEGIN_SIZES, END_SIZES)


def main() -> None:
    """Rewrite, or check."""
    stale = []
    for page, new in pages():
        if new != page.read_text(encoding="utf-8"):
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)} out of date: run python scripts/chart_docs.py")


if __name__ == "__main__":
    main()
