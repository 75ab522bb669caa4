"""A table of text cells that the terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fedddpm_protocol.untrusted.plain_text import plain_text

INSECURE = "INSECURE plain average"
NONE = "-"  # in a cell: there is no such number, or not yet


@dataclass(frozen=True)
class Column:
    """Heading of a column; numbers stand to the right."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Cells by rows; every row has as many as there are columns. ``notes`` are sentences to read with it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def without_constant(self, *titles: str) -> Table:
        """Say a column of ``titles`` in a note where all rows agree: what does not differ need not be compared.

        Cells that hold nothing agree with any other.
        """
        found = {i: {row[i] for row in self.rows} - {NONE} for i, one in enumerate(self.columns) if one.title in titles}
        constant = {i: ", ".join(values) for i, values in found.items() if len(values) <= 1}
        if not constant or not self.rows:
            return self
        told = [f"{self.columns[i].title} {value}" for i, value in constant.items() if value]
        return Table(
            self.title,
            tuple(column for i, column in enumerate(self.columns) if i not in constant),
            tuple(tuple(cell for i, cell in enumerate(row) if i not in constant) for row in self.rows),
            (*((f"In all rows: {', '.join(told)}.",) if told else ()), *self.notes),
        )


def as_markdown(table: Table, heading: str = "###") -> str:
    """GitHub's Markdown, with the heading above and the notes below."""
    lines = [f"{heading} {table.title}", "", _line([column.title for column in table.columns])]
    lines.append(_line(["---:" if column.number else "---" for column in table.columns]))
    lines += [_line([_marked(escape(cell)) for cell in row]) for row in table.rows]
    return "\n".join([*lines, "", *(f"{escape(note)}\n" for note in table.notes)])


def as_rich(table: Table) -> RichTable:
    """For a terminal that is wide enough; the notes are the caption."""
    caption = Text("\n".join(table.notes)) if table.notes else None
    shown = RichTable(title=Text(table.title, "bold"), caption=caption, title_justify="left", caption_justify="left")
    shown.box, shown.pad_edge = SIMPLE_HEAD, False
    shown.collapse_padding = True
    for column in table.columns:
        shown.add_column(Text(column.title), justify="right" if column.number else "left")
    for row in table.rows:
        shown.add_row(*(Text(plain_text(cell), style="bold red" if cell == INSECURE else "") for cell in row))
    return shown


def show(table: Table, console: Console) -> None:
    """Print it as a table, or, where words would not fit into its columns, row by row with their titles."""
    shown = as_rich(table)
    if not any("…" in segment.text for segment in console.render(shown)):  # Rich's sign for a word that it cut
        console.print(shown, highlight=False)
        return
    console.print(Text(table.title, "bold"))
    for row in table.rows:
        cells = [f"{column.title} {cell}" for column, cell in zip(table.columns, row, strict=True) if cell != NONE]
        line = Text(plain_text("* " + ", ".join(cells)))
        line.highlight_words([INSECURE], "bold red")
        console.print(line)
    console.print(Text("\n".join((*table.notes, ""))))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text for Markdown: names and notes come from users, and none of it may become markup."""
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _marked(cell: str) -> str:
    return f"**{cell}**" if cell == INSECURE else cell
