"""pmf predict: ratings, known and unknown."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pmfcli.cli.common import load_model
from pmfcli.cli.options import AsJson, ByRow, ModelFile, OutputFormat
from pmfcli.console import Row, Shape, emit, note, pick_format
from pmfcli.data.fields import SEPARATORS, Columns, by_role, split
from pmfcli.errors import DataError, UsageError
from pmfcli.text import short

EXAMPLE = "pmf predict --user 4 --movie 1 --movie 260"
_COLUMNS = ("user", "movie", "title", "rating", "prediction", "sd", "lo", "hi", "p_ge_4", "source")


def predict(
    pairs: Annotated[str | None, typer.Argument(metavar="[FILE|-]", help="User and movie pairs, one a line.")] = None,
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="A user id; may be repeated.")] = None,
    movie: Annotated[list[str] | None, typer.Option("--movie", "-i", help="A movie id or title; may be repeated.")] = None,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Predict ratings: of a user's known movies beside the truth, of given movies, or of pairs from a file or pipe."""
    if (pairs is None) == (not user):
        raise UsageError("give either --user ID, or a file of pairs ('-' for standard input)")
    if pairs is not None and (movie or by_row):
        raise UsageError("--movie and --row go with --user; a file of pairs names both by id")
    if pairs == "-" and str(model) == "-":
        raise UsageError("the pairs and --model cannot both come from standard input")
    found = load_model(model)
    from pmfcli.answers import find_movie, find_user, pairs_of
    from pmfcli.answers import predict as answers

    shape, chosen = Shape("predict", _COLUMNS), pick_format(output, as_json)
    if pairs is not None:
        emit(_counted(answers(found, _read_pairs(pairs))), shape, chosen)
        return
    users = [find_user(found, name, by_row) for name in user or []]
    movies = [find_movie(found, name, by_row) for name in movie or []]
    rows = list(answers(found, pairs_of(found, users, movies)))
    emit(rows, shape, chosen)
    if not movies and rows:
        error = (sum((row["rating"] - row["prediction"]) ** 2 for row in rows) / len(rows)) ** 0.5
        note(f"{len(rows)} known ratings beside their reconstruction: RMSE {error:.3f}")


def _read_pairs(source: str) -> Iterator[tuple[str, str]]:
    """User and movie ids from the columns of those names, or from the first two fields of each line."""
    name = "standard input" if source == "-" else source
    fields: dict[str, int] | None = None
    try:
        for number, line in enumerate(_lines(source), 1):
            line = line.strip("\r\n") if number > 1 else line.strip("\r\n").removeprefix("\ufeff")
            if not line.strip():
                continue
            separator = next((mark for mark in SEPARATORS if mark in line), None)
            parts = split(line, separator) if separator else line.split()
            if fields is None:
                fields = by_role(parts, Columns())
                if fields and not {"user", "movie"} <= fields.keys():
                    raise DataError(
                        f"{name}:{number}: a header without {'movie' if 'user' in fields else 'user'}; needed are both"
                    )
                if fields:
                    continue
                fields = {"user": 0, "movie": 1}
            if len(parts) <= max(fields["user"], fields["movie"]) or line.lstrip()[0] in "{[":
                raise DataError(f"{name}:{number}: '{short(line)}' is not a user and a movie; give TSV or CSV")
            pair = parts[fields["user"]], parts[fields["movie"]]
            if not all(pair):
                raise DataError(f"{name}:{number}: '{short(line)}' is not a user and a movie; give TSV or CSV")
            yield pair
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; give a file of user and movie pairs") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: not lines of text, a user and a movie on each ({short(str(error))})") from None


def _lines(source: str) -> Iterator[str]:
    if source == "-":
        yield from sys.stdin
        return
    with open(source, encoding="utf-8") as file:
        yield from file


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows; says at the end how many had an unknown side."""
    total = unknown = 0
    for row in rows:
        total += 1
        unknown += row["source"] != "model"
        yield row
    if unknown:
        note(f"{unknown:,} of {total:,} pairs have a user or movie that the model does not know; 'source' says which")
