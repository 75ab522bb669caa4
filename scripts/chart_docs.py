"""Write the tables of values in helm/*/README.md from the comments in values.yaml, which follow helm-docs: `# -- text`.

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

CHARTS = Path(__file__).parents[1] / "helm"
BEGIN, END = "<!-- values: written by scripts/chart_docs.py -->", "<!-- end of the values -->"
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


def with_table(readme: str, values: str) -> str:
    """The README with its table written anew; ValueError if it has no place for one."""
    before, rest = readme.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"


def main() -> None:
    """Rewrite, or check."""
    stale = []
    for chart in sorted(path.parent for path in CHARTS.glob("*/Chart.yaml")):
        readme = chart / "README.md"
        old = readme.read_text(encoding="utf-8")
        new = with_table(old, (chart / "values.yaml").read_text(encoding="utf-8"))
        if new != old:
            stale.append(str(readme.relative_to(CHARTS.parent)))
            if "--check" not in sys.argv[1:]:
                readme.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)} out of date: run python scripts/chart_docs.py")


if __name__ == "__main__":
    main()
