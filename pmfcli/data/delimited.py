"""Ratings in text, one a line: CSV, TSV, ``::``, gzip, standard input.

It is parsed by pyarrow with ids kept as text. Only when rows turn out bad is it read a second time, line by line, to say where
the first of them is.
"""

import contextlib
import csv
import gzip
import io
import itertools
import os
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv

from pmfcli.data.assemble import Table
from pmfcli.data.fields import (
    LONGEST_LINE,
    SEPARATORS,
    UNQUOTED,
    Columns,
    by_role,
    is_json,
    missing,
    no_rating,
    rating,
    seconds,
    split,
)
from pmfcli.errors import DataError
from pmfcli.memory import most_unpacked, of_this_machine
from pmfcli.text import short

_HEAD, _BLOCK = 1 << 16, 1 << 24  # bytes looked at to recognise a layout; at a time
_MOST_LINES = 1000  # in a row
_INSTEAD = "\x1f"  # of a separator of two characters
_GZIP = b"\x1f\x8b"  # how it begins
_PART = 4  # of the machine's memory what a pipe may fill


@dataclass(frozen=True)
class Text:
    """Text to be read more than once: a plain file stays on disk, the rest is in memory."""

    name: str
    source: Path | bytes

    def open(self) -> BinaryIO:
        """Its bytes, from the start."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


class Layout(NamedTuple):
    """Where the fields of a line are."""

    separator: str
    header: bool
    width: int  # fields in a row
    fields: dict[str, int]  # role -> field


def text_of(file: Path | None, name: str) -> Text:
    """The text of a file, or of standard input.

    Raises:
        DataError: a gzip file that is damaged, or unpacks to too much.
    """
    on_disk = file is not None and file.suffix != ".gz" and file.is_file()
    return Text(name, file if file is not None and on_disk else _in_memory(file))


def _in_memory(file: Path | None) -> bytes:
    """All of standard input, a pipe or a gzip file, unpacked, within bounds; if it is not text, only the beginning."""
    name = "standard input" if file is None else str(file)
    most = of_this_machine() // _PART
    kept = io.BytesIO()
    with contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as stream:
        while piece := stream.read(_BLOCK):
            begins = not kept.tell()
            kept.write(piece)
            if begins and not piece.startswith(_GZIP) and _no_text(piece[:_HEAD]):
                break
            if kept.tell() > most:
                todo = "unpack it" if file is not None and file.suffix == ".gz" else "write it to a file and give that"
                raise DataError(f"{name}: more than {most / 1e9:.1f} GB, too much to keep in memory; {todo}")
    packed = kept.getvalue()
    if not packed.startswith(_GZIP):
        if file is not None and file.suffix == ".gz":
            raise DataError(f"{file}: not a gzip file")
        return packed
    limit = min(most_unpacked(len(packed)), most)
    try:
        with gzip.open(io.BytesIO(packed)) as unpacked:
            content = unpacked.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip file ({error})") from None
    if len(content) > limit:
        raise DataError(f"{name}: {len(packed):,} bytes unpack to more than {limit:,}; refused as a gzip bomb")
    return content


def _no_text(head: bytes) -> str | None:
    """What is wrong with what begins so, if it is no text, or has no lines."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ": UTF-16 text, not UTF-8; convert it, for instance with iconv -f utf-16 -t utf8"
    if b"\0" in head or head.startswith(b"PK\x03\x04"):
        return ": a binary file, not text; expected CSV, TSV, either as .gz, or .parquet"
    if len(head) == _HEAD and b"\n" not in head:
        return f":1: the line is longer than {_HEAD:,} bytes; expected user, movie, rating[, time]"
    return None


def recognise(text: Text, columns: Columns) -> Layout:
    """Separator, header and columns, from the first line.

    Raises:
        DataError: it is not text, or the first line does not show them.
    """
    with text.open() as stream:
        head = stream.read(_HEAD)
    if not head.strip():
        raise DataError(f"{text.name}: empty; expected one rating a line: user, movie, rating[, time]")
    complaint = _no_text(head)
    if complaint is not None:
        raise DataError(text.name + complaint)
    line = head.partition(b"\n")[0].decode("utf-8-sig", errors="replace").removesuffix("\r")
    if not line.strip():
        raise DataError(f"{text.name}:1: the first line is blank; remove it")
    if "\r" in line:
        raise DataError(f"{text.name}: lines end in a carriage return alone; convert them, for instance with tr '\\r' '\\n'")
    for separator in SEPARATORS:
        parts = split(line, separator)
        if len(parts) < 2:
            continue
        fields = by_role(parts, columns)
        complaint = missing(parts, fields, columns)
        if complaint is None:
            return Layout(separator, True, len(parts), fields)
        if len(parts) > 2 and rating(parts[2]) is not None and not any(columns):
            roles = ("user", "movie", "rating", "time")
            return Layout(separator, False, len(parts), {role: i for i, role in enumerate(roles[: len(parts)])})
        if not fields and not any(columns) and any(rating(part) is not None for part in parts):  # no header has numbers
            todo = "put these first, or a header above them"
            complaint = f"'{short(line)}' is neither a header nor user, movie, rating[, time]; {todo}"
        break
    else:
        complaint = f"no columns in '{short(line)}'; expected user, movie, rating separated by comma, tab, semicolon, | or ::"
    if is_json(line):
        complaint = "JSON, not CSV or TSV; convert it to user, movie, rating[, time]"
    raise DataError(f"{text.name}:1: {complaint}")


def read_text(text: Text, layout: Layout) -> tuple[Table, int]:
    """The columns by role, and how many rows had another number of fields; those are left out.

    Raises:
        DataError: there are no rows, or they are not UTF-8 text, or one is too long.
    """
    names = [str(field) for field in range(layout.width)]
    roles = {str(field): role for role, field in layout.fields.items()}
    coded = pa.dictionary(pa.int32(), pa.string())
    broken = 0

    def pass_over(_: object) -> str:
        nonlocal broken
        broken += 1
        return "skip"

    options = {
        "read_options": pacsv.ReadOptions(column_names=names, skip_rows=int(layout.header), block_size=LONGEST_LINE),
        "parse_options": pacsv.ParseOptions(
            delimiter=layout.separator if len(layout.separator) == 1 else _INSTEAD,
            quote_char=False if layout.separator in UNQUOTED else '"',
            newlines_in_values=layout.separator not in UNQUOTED,
            invalid_row_handler=pass_over,
        ),
    }
    try:
        for time in (pa.int64(), pa.string()):  # most are numbers, which take less
            broken = 0
            source: pa.NativeFile | BinaryIO | io.RawIOBase
            if len(layout.separator) > 1:
                source = _Replaced(text.open(), layout.separator.encode())
            else:  # by the bytes of its name, which need not be UTF-8
                source = pa.OSFile(os.fsencode(text.source)) if isinstance(text.source, Path) else text.open()
            convert = pacsv.ConvertOptions(
                column_types={name: time if role == "time" else coded for name, role in roles.items()},
                include_columns=list(roles),
                strings_can_be_null=False,
            )
            try:
                table = pacsv.read_csv(source, convert_options=convert, **options)
                break
            except pa.ArrowInvalid as error:
                if time == pa.string() or "conversion error to int64" not in str(error):
                    raise
    except pa.ArrowInvalid as error:
        message = str(error)
        if "Empty CSV" in message or "too short" in message:  # the last, of a header without a line break
            raise DataError(f"{text.name}: a header but no ratings") from None
        if "straddling" in message:
            refuse_open_quotes(text, layout, 0)
            line = _first_line(text, lambda raw: len(raw) > LONGEST_LINE)
            raise DataError(f"{text.name}:{line}: a row is longer than {LONGEST_LINE:,} bytes; correct it") from None
        if "UTF8" in message:
            line = _first_line(text, lambda raw: "\ufffd" in raw.decode("utf-8", errors="replace"))
            raise DataError(
                f"{text.name}:{line}: not UTF-8 text; convert it, for instance with iconv -f latin1 -t utf8"
            ) from None
        raise DataError(f"{text.name}: {short(message)}") from None
    return {roles[name]: table.column(name) for name in table.column_names}, broken


class _Replaced(io.RawIOBase):
    """A stream with one character for a separator of two, as pyarrow needs it."""

    def __init__(self, stream: BinaryIO, separator: bytes) -> None:
        self._stream, self._separator = stream, separator

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, more than one; a separator is not cut in two."""
        piece = self._stream.read(size - 1 if size > 0 else size).replace(self._separator, _INSTEAD.encode())
        while piece.endswith(self._separator[:1]) and (more := self._stream.read(1)):
            piece = (piece + more).replace(self._separator, _INSTEAD.encode())
        return piece

    def close(self) -> None:
        self._stream.close()
        super().close()


def _first_line(text: Text, wanted: Callable[[bytes], bool]) -> int:
    """The number, from 1, of the first line that is wanted."""
    with text.open() as stream:
        return next((number for number, raw in enumerate(stream, 1) if wanted(raw)), 1)


def without_open_quotes(text: Text, layout: Layout) -> tuple[Text, int]:
    """The text without lines whose open quote swallows the rows below, to the next quote or the end; and how many these are."""
    dropped = set(_open_quotes(text, layout))
    if not dropped:
        return text, 0
    with text.open() as stream:
        return Text(text.name, b"".join(line for number, line in enumerate(stream) if number not in dropped)), len(dropped)


def refuse_open_quotes(text: Text, layout: Layout, rows: int) -> None:
    """Say where the first line is whose open quote swallows rows, if a text of several lines has so few rows.

    Raises:
        DataError: there is one.
    """
    if layout.separator in UNQUOTED:
        return
    quotes = lines = 0
    last = b"\n"
    with text.open() as stream:
        while block := stream.read(_BLOCK):
            quotes, lines, last = quotes + block.count(b'"'), lines + block.count(b"\n"), block[-1:]
    lines += last != b"\n"
    first = next(_open_quotes(text, layout), None) if quotes and lines - layout.header > rows else None
    if first is not None:
        raise DataError(f"{text.name}:{first + 1}: a quote is not closed; correct it, or skip such rows with --skip-bad")


def _open_quotes(text: Text, layout: Layout) -> Iterator[int]:
    """The lines, from 0, whose quote closes in none that makes them a rating, or not before a line that is one by itself."""
    if layout.separator in UNQUOTED:
        return
    closed, closing = (re.compile(pattern).fullmatch for pattern in _patterns(layout.separator))
    held: list[tuple[int, bytes]] = []  # a line with an open quote, and those below
    again: deque[tuple[int, bytes]] = deque()  # that were held in vain
    with text.open() as stream:
        below = itertools.islice(enumerate(stream), int(layout.header), None)
        while True:
            at = again.popleft() if again else next(below, None)
            if at is None and not held:
                return
            if at is not None:
                line, quoted = at[1].rstrip(b"\r\n"), b'"' in at[1]
                if not held:
                    held = [at] if quoted and not closed(line) else []
                    continue
                held.append(at)
                if len(held) < _MOST_LINES and not _is_rating([at[1]], layout):
                    if not quoted or not closing(line):
                        continue
                    if _is_rating([line for _, line in held], layout):
                        held = []
                        continue
            yield held[0][0]
            again.extendleft(reversed(held[1:]))
            held = []


def _patterns(separator: str) -> tuple[bytes, bytes]:
    """Of a line that leaves no quote open, and of one that closes the quote that was open before it."""
    mark = re.escape(separator).encode()
    rest, quoted = rb"[^%b]*+" % mark, rb'(?:[^"]|"")*+"'
    field = rb'(?:"%b%b|[^"%b]%b|)' % (quoted, rest, mark, rest)
    more = rb"(?:%b%b)*+" % (mark, field)
    return field + more, quoted + rest + more


def _is_rating(lines: list[bytes], layout: Layout) -> bool:
    parts, still_open = _fields(lines, layout)
    return not still_open and _complaint(parts, layout) is None


def _fields(lines: list[bytes], layout: Layout) -> tuple[list[str], bool]:
    """The fields of the row that lines are, and whether it goes on below them: a quote within a field opens nothing."""
    row = b"".join(lines)
    if len(row) > LONGEST_LINE:
        return [], True
    text = row.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    parts = next(csv.reader(io.StringIO(f"{text}\n", newline=""), delimiter=layout.separator), [])
    return [part.strip() for part in parts], bool(parts) and parts[-1].endswith("\n")


def first_bad_line(text: Text, layout: Layout) -> str:
    """Where the first row is that cannot be read, and why."""
    for number, parts in _rows(text, layout):
        complaint = _complaint(parts, layout)
        if complaint:
            return f"{text.name}:{number}: {complaint}"
    return f"{text.name}: a row that is not a rating"


def _rows(text: Text, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, with the number of their first line."""
    with io.TextIOWrapper(text.open(), encoding="utf-8", errors="replace", newline="") as stream:
        if layout.separator in UNQUOTED:
            lines = ((number, line.strip("\r\n")) for number, line in enumerate(stream, 1))
            numbered = ((number, split(line, layout.separator) if line else []) for number, line in lines)
        else:
            reader = csv.reader(stream, delimiter=layout.separator)
            begun = itertools.chain([1], (reader.line_num + 1 for _ in itertools.count()))
            numbered = ((number, [part.strip() for part in parts]) for number, parts in zip(begun, reader, strict=False))
        for index, (number, parts) in enumerate(numbered):
            if parts and (index > 0 or not layout.header):
                yield number, parts


def _complaint(parts: list[str], layout: Layout) -> str | None:
    if len(parts) != layout.width:
        more = "; is a quote not closed?" if any("\n" in part for part in parts) else ""
        return f"{len(parts)} fields where {layout.width} are expected{more}"
    value = {role: parts[field] for role, field in layout.fields.items()}
    if any("\n" in part for part in value.values()):
        return "a quoted field runs over lines"
    if not value["user"] or not value["movie"]:
        return f"no {'user' if not value['user'] else 'movie'} id"
    if rating(value["rating"]) is None:
        return f"rating {no_rating(value['rating'], 'is not a number, or is too large')}"
    if "time" in value and seconds(value["time"]) is None:
        return f"time '{short(value['time'])}' is neither seconds since 1970 nor a date, such as 2001-02-28"
    return None
