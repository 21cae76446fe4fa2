"""Tables on standard output: styled and wrapped in a terminal, plain aligned text elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_MIN_NUMBER_WIDTH = 7
_UNLIMITED_WIDTH = 1_000_000


class Table(NamedTuple):
    """Rows under column names.

    Args:
        columns: The names of the columns.
        rows: The cells of each row; `str()` formats cells that are not strings.
        align: A letter for each column, `l` (left) or `r` (right). Columns without a letter are right-aligned.
        title: A line above the column names.
        notes: Lines below the rows.
    """

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    align: str = "l"
    title: str = ""
    notes: Sequence[str] = ()


def print_tables(blocks: Iterable[Table | str]) -> None:
    """Print tables and paragraphs to standard output, with a blank line between them.

    In a terminal, headers are bold (unless `NO_COLOR` or `TERM=dumb` is set), and cells wrap between words if a row is
    wider than the terminal. Pipes and files receive plain text without box characters, wrapping or truncation.
    """
    from rich.console import Console

    for number, block in enumerate(blocks):
        if number:
            print()
        if isinstance(block, str):
            print(block)
        elif sys.stdout.isatty():
            _print_table(Console(markup=False, emoji=False, highlight=False), block, no_wrap=False)
        else:
            print("\n".join(format_table(block)))


def format_table(table: Table) -> list[str]:
    """Return the lines of `table` as plain text, aligned by the width that characters have in a terminal."""
    from rich.console import Console

    output = io.StringIO()
    console = Console(file=output, width=_UNLIMITED_WIDTH, force_terminal=False, markup=False, emoji=False)
    _print_table(console, table, no_wrap=True)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def _print_table(console: Console, table: Table, *, no_wrap: bool) -> None:
    if table.title:
        console.print(table.title, style="bold")
    console.print(_make_rich_table(table, no_wrap), crop=False)
    for note in table.notes:
        console.print(note, style="dim")


def _make_rich_table(table: Table, no_wrap: bool) -> RichTable:
    from rich.cells import cell_len
    from rich.table import Table as RichTable

    rich_table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    rows = [[str(cell) for cell in row] for row in table.rows]
    letters = table.align.ljust(len(table.columns), "r")
    for name, letter, *cells in zip(table.columns, letters, *rows, strict=True):
        longest_word = max((cell_len(word) for text in (name, *cells) for word in text.split()), default=0)
        is_left = letter == "l"
        min_width = longest_word if is_left else max(longest_word, _MIN_NUMBER_WIDTH)
        rich_table.add_column(name, justify="left" if is_left else "right", no_wrap=no_wrap, min_width=min_width)
    for row in rows:
        rich_table.add_row(*row)
    return rich_table
