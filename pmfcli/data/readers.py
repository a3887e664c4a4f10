"""Any layout to Ratings: MovieLens folders, text with a rating a line, Parquet, standard input."""

import csv
from functools import partial
from pathlib import Path

import pyarrow as pa

from pmfcli.data.assemble import assemble
from pmfcli.data.delimited import first_bad_line, read_text, recognise, refuse_open_quotes, text_of, without_open_quotes
from pmfcli.data.fields import Columns
from pmfcli.data.parquet import read_parquet
from pmfcli.data.reading import Reading, ratings_file
from pmfcli.errors import DataError
from pmfcli.text import short


def read_ratings(
    path: Path | str | None, columns: Columns | None = None, skip_bad: bool = False, part: tuple[int, int] = (0, 1)
) -> Reading:
    """Read ratings.

    Args:
        path: a file, or a folder in a MovieLens layout or of Parquet files; None reads standard input.
        columns: names of the columns, where they are not the usual ones.
        skip_bad: skip rows that cannot be read instead of refusing the file.
        part: for Parquet, which part of the rows, of how many equal ones; no others are read.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    path = None if path is None else Path(path)
    name = "standard input" if path is None else str(path)
    columns = columns or Columns()
    given = [column for column in columns if column is not None]
    if len(set(given)) < len(given):
        raise DataError(f"{name}: one column cannot be two of user, movie, rating and time")
    try:
        file = None if path is None else ratings_file(path)
        name = name if file is None else str(file)
        if file is not None and (file.suffix == ".parquet" or file.is_dir()):
            return assemble(read_parquet(file, columns, part), file, name, 0, skip_bad, None)
        text = text_of(file, name)
        layout = recognise(text, columns)
        kept, open_quotes = without_open_quotes(text, layout) if skip_bad else (text, 0)
        found, broken = read_text(kept, layout)
        if not skip_bad:
            refuse_open_quotes(text, layout, len(found["rating"]) + broken)
        return assemble(found, file, name, broken + open_quotes, skip_bad, partial(first_bad_line, text, layout))
    except OSError as error:
        raise DataError(f"{short(name)}: {error.strerror or error}") from None
    except (pa.ArrowException, csv.Error, UnicodeError) as error:
        raise DataError(f"{name}: not a table of ratings ({short(str(error))})") from None
