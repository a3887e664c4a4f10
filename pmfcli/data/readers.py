"""Any layout to Ratings: MovieLens folders, CSV, TSV, ``::``, gzip, Parquet, standard input.

Text is parsed by pyarrow with ids kept as text. Only when rows turn out bad is it read a second time, line by line, to say
where the first of them is.
"""

import contextlib
import csv
import gzip
import io
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pmfcli.data.fields import LONGEST_LINE, SEPARATORS, UNQUOTED, Columns, by_role, seconds, split
from pmfcli.data.ratings import LATEST, Array, Ratings, Scale, Vocabulary
from pmfcli.data.titles import read_titles
from pmfcli.errors import DataError
from pmfcli.text import clean, short

_LAYOUTS = ("ratings.csv", "ratings.dat", "u.data")  # the ratings file of a MovieLens folder
_NEEDED = ("user", "movie", "rating")
_HEAD = 1 << 16  # bytes looked at to recognise a layout
_LARGEST = 1e30  # ratings beyond this are not numbers a model can use
_GZIP_RATIO, _GZIP_SMALL = 100, 1 << 30  # beyond both, a gzip file is refused as a bomb
_PARQUET_ROW = 32  # bytes of memory that one row takes at least


class Reading(NamedTuple):
    """Ratings, and what was passed over to get them."""

    ratings: Ratings
    duplicates: int  # earlier ratings of a pair that was rated again
    skipped: int  # rows that could not be read


@dataclass(frozen=True)
class _Text:
    """Text to be read more than once: a plain file stays on disk, the rest is in memory."""

    name: str
    source: Path | bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


class _Layout(NamedTuple):
    separator: str
    header: bool
    width: int  # fields in a row
    fields: dict[str, int]  # role -> field


_Table = dict[str, pa.ChunkedArray]  # a column for each role


def read_ratings(
    path: Path | None, columns: Columns | None = None, skip_bad: bool = False, part: tuple[int, int] = (0, 1)
) -> Reading:
    """Read ratings.

    Args:
        path: a file, or a folder in a MovieLens layout or of Parquet files; None reads standard input.
        columns: names of the columns, where they are not the usual ones.
        skip_bad: pass over rows that cannot be read instead of refusing the file.
        part: which part of the rows of Parquet, of how many equal ones; no more of them is read.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    name = "standard input" if path is None else str(path)
    columns = columns or Columns()
    given = [column for column in columns if column is not None]
    if len(set(given)) < len(given):
        raise DataError(f"{name}: one column cannot be two of user, movie, rating and time")
    try:
        file = None if path is None else ratings_file(path)
        name = name if file is None else str(file)
        if file is not None and (file.suffix == ".parquet" or file.is_dir()):
            return _assemble(_read_parquet(file, columns, part), file, name, 0, skip_bad, None)
        text = _Text(name, file if file is not None and file.suffix != ".gz" and file.is_file() else _in_memory(file))
        layout = _recognise(text, columns)
        found, broken = _read_text(text, layout)
        return _assemble(found, file, name, broken, skip_bad, (text, layout))
    except OSError as error:
        raise DataError(f"{short(name)}: {error.strerror or error}") from None
    except (pa.ArrowException, csv.Error, UnicodeError) as error:
        raise DataError(f"{name}: not a table of ratings ({short(str(error))})") from None


def ratings_file(path: Path) -> Path:
    """The file of ratings itself, of a file or a folder in a MovieLens layout; a folder of Parquet files is one itself.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        for name in _LAYOUTS:
            if (path / name).is_file():
                return path / name
        if any(path.glob("*.parquet")):
            return path
        raise DataError(f"{path}: none of {', '.join(_LAYOUTS)} in this folder; give a MovieLens folder or a file")
    if not path.exists():
        raise DataError(f"{path}: no such file; give a ratings file, a MovieLens folder, a data set's name, or 'sample'")
    return path


def _in_memory(file: Path | None) -> bytes:
    """All of standard input, of a pipe, or of a gzip file, unpacked within bounds."""
    packed = sys.stdin.buffer.read() if file is None else file.read_bytes()
    if packed[:2] != b"\x1f\x8b":
        if file is not None and file.suffix == ".gz":
            raise DataError(f"{file}: not a gzip file")
        return packed
    limit = max(_GZIP_SMALL, _GZIP_RATIO * len(packed))
    name = "standard input" if file is None else file
    try:
        with gzip.open(io.BytesIO(packed)) as stream:
            content = stream.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip file ({error})") from None
    if len(content) > limit:
        raise DataError(f"{name}: {len(packed):,} bytes unpack to more than {limit:,}; refused as a gzip bomb")
    return content


def _recognise(text: _Text, columns: Columns) -> _Layout:
    """Separator, header and columns, from the first line."""
    with text.open() as stream:
        head = stream.read(_HEAD)
    if not head.strip():
        raise DataError(f"{text.name}: empty; expected one rating a line: user, movie, rating[, time]")
    if b"\0" in head or head.startswith(b"PK"):
        raise DataError(f"{text.name}: a binary file, not text; expected CSV, TSV, either as .gz, or .parquet")
    first, newline, _ = head.partition(b"\n")
    if not newline and len(head) == _HEAD:
        raise DataError(f"{text.name}:1: the line is longer than {_HEAD:,} bytes; expected user, movie, rating[, time]")
    line = first.decode("utf-8-sig", errors="replace").removesuffix("\r")
    if not line.strip():
        raise DataError(f"{text.name}:1: the first line is blank; remove it")
    if "\r" in line:
        raise DataError(f"{text.name}: lines end in a carriage return alone; convert them, for instance by tr '\\r' '\\n'")
    complaint = f"no columns in '{short(line)}'; expected user, movie, rating separated by comma, tab, semicolon, | or ::"
    for separator in SEPARATORS:
        parts = split(line, separator)
        if len(parts) < 2:
            continue
        fields = by_role(parts, columns)
        if all(role in fields for role in _wanted(columns)):
            return _Layout(separator, True, len(parts), fields)
        if len(parts) > 2 and _number(parts[2]) is not None and not any(columns):
            roles = ("user", "movie", "rating", "time")
            return _Layout(separator, False, len(parts), {role: i for i, role in enumerate(roles[: len(parts)])})
        complaint = _missing(parts, fields, columns)
        break
    raise DataError(f"{text.name}:1: {complaint}")


def _wanted(columns: Columns) -> tuple[str, ...]:
    """The roles that must have a column: time only if one was named."""
    return _NEEDED if columns.time is None else (*_NEEDED, "time")


def _missing(parts: list[str], fields: dict[str, int], columns: Columns) -> str:
    missing = [role for role in _wanted(columns) if role not in fields]
    found = ", ".join(short(part) for part in parts[:12])
    return f"no column for {', '.join(missing)} among {found}; name them by {', '.join(f'--{role}-col' for role in missing)}"


def _read_text(text: _Text, layout: _Layout) -> tuple[_Table, int]:
    """The columns by role, and how many rows had another number of fields; those are left out."""
    names = [str(field) for field in range(layout.width)]
    if layout.separator == "::":  # pyarrow separates by one character, so every second field is empty
        names = [part for name in names for part in (name, f"after {name}")][:-1]
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
            delimiter=layout.separator[0],
            quote_char=False if layout.separator in UNQUOTED else '"',
            newlines_in_values=layout.separator not in UNQUOTED,
            invalid_row_handler=pass_over,
        ),
    }
    try:
        for time in (pa.int64(), pa.string()):  # most are numbers, which take less
            broken = 0
            source = io.BytesIO(text.source) if isinstance(text.source, bytes) else text.source
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
        if "Empty CSV" in message:
            raise DataError(f"{text.name}: a header and no ratings") from None
        if "straddling" in message:
            line = _first_line(text, lambda raw: len(raw) > LONGEST_LINE)
            raise DataError(
                f"{text.name}:{line}: a row is longer than {LONGEST_LINE:,} bytes; is a quote not closed?"
            ) from None
        if "UTF8" in message:
            line = _first_line(text, lambda raw: "\ufffd" in raw.decode("utf-8", errors="replace"))
            raise DataError(
                f"{text.name}:{line}: not UTF-8 text; convert it, for instance by iconv -f latin1 -t utf8"
            ) from None
        raise DataError(f"{text.name}: {short(message)}") from None
    return {roles[name]: table.column(name) for name in table.column_names}, broken


def _first_line(text: _Text, wanted: Callable[[bytes], bool]) -> int:
    """The number, from 1, of the first line that is wanted."""
    with text.open() as stream:
        return next((number for number, raw in enumerate(stream, 1) if wanted(raw)), 1)


def _read_parquet(file: Path, columns: Columns, part: tuple[int, int]) -> _Table:
    """The columns by role of a part of the rows of a Parquet file, or of those of a folder, in the order of their names."""
    try:
        opened = [pq.ParquetFile(one) for one in (sorted(file.glob("*.parquet")) if file.is_dir() else [file])]
        names = opened[0].schema_arrow.names
        fields = by_role(names, columns)
        if any(role not in fields for role in _wanted(columns)):
            raise DataError(f"{file}: {_missing(names, fields, columns)}")
        if len(set(names)) < len(names):
            raise DataError(f"{file}: two columns have the same name")
        rows = sum(one.metadata.num_rows for one in opened)
        first, last = (rows * (part[0] + end) // part[1] for end in (0, 1))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (last - first) * _PARQUET_ROW > memory:
            raise DataError(f"{file}: {last - first:,} rows do not fit into the memory of this machine")
        wanted, found, place = [names[field] for field in fields.values()], [], 0
        for one in opened:
            for group in range(one.num_row_groups):
                count = one.metadata.row_group(group).num_rows
                low, high = max(first - place, 0), min(last - place, count)
                if low < high:
                    found.append(one.read_row_group(group, wanted).slice(low, high - low))
                place += count
        if not found:
            raise DataError(f"{file}: no rows" if not rows else f"{file}: {rows:,} rows are too few for {part[1]} processes")
        table = pa.concat_tables(found)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({short(str(error))})") from None
    return {role: table.column(names[field]) for role, field in fields.items()}


def _assemble(
    columns: _Table, file: Path | None, name: str, broken: int, skip_bad: bool, text: tuple[_Text, _Layout] | None
) -> Reading:
    """Columns to Ratings: bad rows, ids to rows, duplicates, order. Each column is let go as soon as it is read."""
    user, user_ids = _codes(columns.pop("user"))
    pa.default_memory_pool().release_unused()
    movie, movie_ids = _codes(columns.pop("movie"))
    stars = _numbers(columns.pop("rating"))
    time = _times(columns.pop("time")) if "time" in columns else None
    title, known_titles = _codes(columns.pop("title")) if "title" in columns else (None, [])
    pa.default_memory_pool().release_unused()
    good = np.isfinite(stars) & (user >= 0) & (movie >= 0)
    if time is not None:
        good &= (time <= LATEST) & (time >= -LATEST)  # not where it is NaN
    skipped = broken + int((~good).sum())
    if skipped and not skip_bad:
        where = _first_bad_line(*text) if text else f"{name}: row {int(np.argmin(good)) + 1} is not a rating"
        raise DataError(f"{where}; mend it, or pass over such rows by --skip-bad")
    if not good.any():
        raise DataError(f"{name}: a header and no ratings" if not skipped else f"{name}: none of its rows is a rating")
    if not good.all():
        user, movie, stars = user[good], movie[good], stars[good]
        time, title = (None if part is None else part[good] for part in (time, title))
    del good
    time = None if time is None else time.astype(np.int64, copy=not time.flags.writeable)  # Arrow's own memory is not
    users, user = _vocabulary(user, user_ids)
    movies, movie = _vocabulary(movie, movie_ids)
    order, repeated = _in_order(user, movie, len(movies), time)
    if order is not None:
        user, movie, stars = user[order], movie[order], stars[order]
        time, title = (None if part is None else part[order] for part in (time, title))
    if title is not None:
        titled = title >= 0
        by_row = dict(zip(movie[titled].tolist(), title[titled].tolist(), strict=True))
        titles = [known_titles[by_row[row]] if row in by_row else None for row in range(len(movies))]
    else:
        by_id = read_titles(file) if file is not None else {}
        titles = [by_id.get(name) for name in movies.ids]
    scale = Scale(float(stars.min()), float(stars.max()))
    return Reading(Ratings(user, movie, stars, time, users, movies, tuple(titles), scale, name), repeated, skipped)


def _in_order(user: Array, movie: Array, n_movies: int, time: Array | None) -> tuple[Array | None, int]:
    """Positions by user, then movie, the latest of each pair alone, and how many others there are; None if all are in order."""
    key = user * np.int64(n_movies) + movie
    if (key[1:] > key[:-1]).all():
        return None, 0
    order = np.argsort(key, kind="stable").astype(np.int32 if len(key) < 2**31 else np.int64)
    key = key[order]
    again = key[1:] == key[:-1]
    if not again.any():
        return order, 0
    if time is not None:
        among = np.append(again, False) | np.insert(again, 0, False)
        some = order[among]
        order[among] = some[np.lexsort((some, time[some], key[among]))]
    return order[np.append(~again, True)], int(again.sum())


def _codes(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Positions in a list of distinct texts, -1 where there is none. A text that runs over lines is none: a stray quote."""
    if pa.types.is_floating(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.int64())  # ids that became floats, as pandas does beside missing values
    if not pa.types.is_dictionary(column.type):
        column = (column if pa.types.is_integer(column.type) else column.cast(pa.string())).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    texts = ["" if label is None else str(label) for label in whole.dictionary.to_pylist()]
    labels = [clean(text) if "\n" not in text else "" for text in texts]
    distinct = sorted(set(labels) - {""})
    place = {label: i for i, label in enumerate(distinct)}
    return np.array([*(place.get(label, -1) for label in labels), -1], dtype=np.int32)[codes], distinct


def _vocabulary(codes: Array, labels: list[str]) -> tuple[Vocabulary, Array]:
    """The ids that occur, in their order, and the row of each code."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(labels)))
    names = [labels[code] for code in used]
    order = Vocabulary.order(names)
    rows = np.zeros(len(labels), dtype=np.int32)
    rows[used[order]] = np.arange(len(order), dtype=np.int32)
    return Vocabulary(tuple(names[i] for i in order)), rows[codes]


def _numbers(column: pa.ChunkedArray) -> Array:
    """Ratings as float32, NaN where there is no usable number."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy()
        return np.where(np.abs(values) <= _LARGEST, values, np.nan).astype(np.float32)
    codes, labels = _codes(column)
    parsed = [_number(label) for label in labels]
    return np.array([*(math.nan if value is None else value for value in parsed), math.nan], dtype=np.float32)[codes]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST and "_" not in text else None


def _times(column: pa.ChunkedArray) -> Array:
    """Seconds since 1970, from numbers or ISO 8601 dates; as float64, with NaN, where there are not always any."""
    found: Array
    if not pa.types.is_temporal(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            found = column.cast(pa.int64()).to_numpy()
            return found
        found = pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(dtype=np.float64)
        if not np.isnan(found).all():
            return found
    dates = pd.to_datetime(column.to_pandas(), errors="coerce", utc=True, format="ISO8601")
    found = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(dtype=np.float64)
    return found


def _first_bad_line(text: _Text, layout: _Layout) -> str:
    """Where the first row is that cannot be read, and why."""
    for number, parts in _rows(text, layout):
        complaint = _complaint(parts, layout)
        if complaint:
            return f"{text.name}:{number}: {complaint}"
    return f"{text.name}: a row that is not a rating"


def _rows(text: _Text, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, with the number of their last line."""
    with io.TextIOWrapper(text.open(), encoding="utf-8", errors="replace", newline="") as stream:
        if layout.separator in UNQUOTED:
            numbered = ((number, split(line.strip("\r\n"), layout.separator)) for number, line in enumerate(stream, 1))
        else:
            reader = csv.reader(stream, delimiter=layout.separator)
            numbered = ((reader.line_num, [part.strip() for part in parts]) for parts in reader)
        for index, (number, parts) in enumerate(numbered):
            if parts not in ([], [""]) and (index > 0 or not layout.header):
                yield number, parts


def _complaint(parts: list[str], layout: _Layout) -> str | None:
    if len(parts) != layout.width:
        return f"{len(parts)} fields where {layout.width} are expected"
    value = {role: parts[field] for role, field in layout.fields.items()}
    if any("\n" in part for part in value.values()):
        return "a quoted field runs over lines"
    if not value["user"] or not value["movie"]:
        return f"no {'user' if not value['user'] else 'movie'} id"
    if _number(value["rating"]) is None:
        return f"rating '{short(value['rating'])}' is not a number"
    if "time" in value and seconds(value["time"]) is None:
        return f"time '{short(value['time'])}' is neither seconds since 1970 nor a date"
    return None
