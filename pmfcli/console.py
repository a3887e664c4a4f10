"""What people and pipes see: results on stdout as table, TSV, CSV, JSON; notes, warnings and progress on stderr."""

import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from pmfcli.errors import UsageError
from pmfcli.text import clean, escaped

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["table", "tsv", "csv", "jsonl", "json"]
Row = dict[str, Any]
_PIPE_WIDTH = 120  # of a table that was asked for where there is no terminal
_GAPS, _EDGE = (3, 2), 2  # between columns, the narrow one where all do not fit otherwise; of a table
_FOLDED, _WORD = 8, 16  # a text is at least so wide, or whole; and as its longest word, up to so wide


class Shape(NamedTuple):
    """How the rows of a command look: its schema name, its columns, and a heading for tables."""

    schema: str
    columns: Sequence[str]
    heading: str | None = None
    decimals: int = 2  # of numbers in a table
    ids: int = 2  # first columns, that say what a row is


_quiet = False


def hush() -> None:
    """Write no more notes: another process does."""
    global _quiet
    _quiet = True


def note(text: str) -> None:
    """A line for people, on stderr."""
    if not _quiet:
        say(text)


def say(text: str) -> None:
    """A line on stderr, written by every process; if it cannot be written, as nobody reads it any more, the work goes on."""
    try:
        sys.stderr.write("".join(f"{clean(line)}\n" for line in text.split("\n")))
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def pick_format(asked: Format | None, as_json: bool) -> Format:
    """The format that was asked for; else a table on a terminal, TSV in a pipe.

    Raises:
        UsageError: two different ones were asked for.
    """
    if as_json and asked not in (None, "json"):
        raise UsageError(f"--json and --format {asked}: give one of them")
    return "json" if as_json else asked or ("table" if sys.stdout.isatty() else "tsv")


def emit(rows: Iterable[Row], shape: Shape, output: Format) -> None:
    """Write rows to stdout. TSV, CSV and JSON lines are written as the rows come."""
    remaining = iter(rows)
    first = list(itertools.islice(remaining, 1))  # what is wrong from the start is said before a header is written
    rows = itertools.chain(first, remaining)
    if output == "table":
        _table(rows, shape)
    elif output == "json":
        document({"rows": [_plain(row, shape.columns) for row in rows]}, shape.schema)
    else:
        write_lines(rows, shape.columns, output, sys.stdout)
    sys.stdout.flush()


def write_lines(rows: Iterable[Row], columns: Sequence[str], output: Literal["tsv", "csv", "jsonl"], out: TextIO) -> None:
    """Write rows to a stream as they come, a line each."""
    if output == "jsonl":
        for row in rows:
            out.write(_json(_plain(row, columns)) + "\n")
    elif output == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row.get(column)) for column in columns] for row in rows)
    else:
        out.write("\t".join(columns) + "\n")
        for row in rows:
            out.write("\t".join(_text(row.get(column)) for column in columns) + "\n")


def document(content: Row, schema: str) -> None:
    """Write one JSON document, with its schema and version, to stdout."""
    whole = {"schema": f"pmf.{schema}", "version": 1, **content}
    sys.stdout.write(_json(whole) + "\n")


def terminal(stream: TextIO) -> "Console":
    """A rich console on a stream: no markup, no wrapping at 80 columns in a pipe, colour only where it is wanted."""
    from rich.console import Console

    plain = not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(columns) if columns.isdecimal() and int(columns) else _PIPE_WIDTH
    colours: Literal["auto"] | None = None if plain else "auto"
    return Console(file=stream, markup=False, highlight=False, emoji=False, color_system=colours, width=width)


@contextmanager
def progress(label: str, shown: bool = True) -> "Iterator[Progress]":
    """A progress bar on stderr while the block runs, if stderr is a terminal. What goes to stdout meanwhile goes there."""
    if _quiet or not shown or not sys.stderr.isatty():
        yield Progress(None, label)
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    look = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[info]}", markup=False)
    with Bar(*look, TimeElapsedColumn(), console=terminal(sys.stderr), transient=True, redirect_stdout=False) as bar:
        yield Progress(bar, label)


class Progress:
    """A bar that is told what is done. It also has the methods that pooch asks of a bar."""

    def __init__(self, bar: Any, label: str) -> None:
        self._bar = bar
        self.total = 0
        self._task = None if bar is None else bar.add_task(label, total=None, info="")

    def show(self, done: int, total: int, info: str, label: str | None = None) -> None:
        """Set how much is done, of how much, with a few words on it."""
        if self._bar is not None:
            more = {} if label is None else {"description": label}
            self._bar.update(self._task, completed=done, total=total, info=info, **more)

    def update(self, amount: int) -> None:
        """Advance by so many bytes."""
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, total=self.total or None)

    def reset(self) -> None:
        """Start again at zero."""
        if self._bar is not None:
            self._bar.reset(self._task)

    def close(self) -> None:
        """The download is over."""


def _json(value: Row) -> str:
    return escaped(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _plain(row: Row, columns: Sequence[str]) -> Row:
    return {column: row.get(column) for column in columns}


def _text(value: Any) -> str:
    return "" if value is None else clean(value) if isinstance(value, str) else str(value)


def _table(rows: Iterable[Row], shape: Shape) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    held = list(rows)
    shown = [c for c in shape.columns if not held or any(row.get(c) is not None for row in held)]
    cells = {column: [_cell(row.get(column), shape.decimals) for row in held] for column in shown}
    numeric = {c for c in shown if any(isinstance(row.get(c), int | float) for row in held)}
    console = terminal(sys.stdout)
    heading = None if shape.heading is None else clean(shape.heading)
    groups, padding = _that_fit(shown, shape.ids, cells, numeric, console.width)
    for group in groups:
        table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="bold cyan")
        table.padding = padding
        for column in group:
            justify: Literal["right", "left"] = "right" if column in numeric else "left"
            table.add_column(column.replace("_", " "), justify=justify, overflow="fold", no_wrap=column in numeric)
        for number in range(len(held)):
            table.add_row(*(Text(cells[column][number]) for column in group))
        console.print(table)
        heading = None


def _cell(value: Any, decimals: int) -> str:
    return f"{value:.{decimals}f}" if isinstance(value, float) else _text(value)


def _that_fit(
    shown: Sequence[str], first: int, cells: dict[str, list[str]], numeric: set[str], width: int
) -> tuple[list[list[str]], tuple[int, int, int, int]]:
    """The columns in groups as wide as the terminal, and their padding: no number is cut, texts fold between words, what a row
    is stands in each of them.
    """
    least = {column: max(map(len, (column, *cells[column]))) for column in shown}
    for column in shown:
        if column not in numeric:
            word = max((len(word) for cell in cells[column] for word in cell.split()), default=0)
            least[column] = min(least[column], max(_FOLDED, min(word, _WORD)))
    for gap in _GAPS:
        ids = list(shown[:first])
        groups, room = [list(ids)], width - _EDGE - sum(gap + least[column] for column in ids)
        for column in shown[first:]:
            if gap + least[column] > room and len(groups[-1]) > first:
                groups, room = [*groups, list(ids)], width - _EDGE - sum(gap + least[column] for column in ids)
            groups[-1].append(column)
            room -= gap + least[column]
        if len(groups) == 1:
            break
    return groups, (0, 1, 0, gap - 2)
