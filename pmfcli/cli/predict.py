"""pmf predict: ratings, known and unknown, with their uncertainty."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pmfcli.cli.inputs import load_model, read_visitor
from pmfcli.cli.options import AsJson, ByRow, Interval, ModelFile, OutputFormat, VisitorRatings
from pmfcli.console import Row, Shape, emit, note, pick_format
from pmfcli.data.fields import seconds
from pmfcli.data.lines import read_records
from pmfcli.errors import DataError, UsageError
from pmfcli.text import short

if TYPE_CHECKING:
    from pmfcli.answers import Asked

EXAMPLE = "pmf predict --user 4 --movie 1 --movie 260"
_COLUMNS = ("user", "movie", "title", "rating", "prediction", "sd", "lo", "hi", "p_ge_4", "source")


def predict(
    pairs: Annotated[str | None, typer.Argument(metavar="[FILE|-]", help="Pairs of user and movie, one per line.")] = None,
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="A user id; may be repeated.")] = None,
    ratings: VisitorRatings = None,
    movie: Annotated[list[str] | None, typer.Option("--movie", "-i", help="A movie id or title; may be repeated.")] = None,
    interval: Interval = 0.9,
    stars: Annotated[bool, typer.Option("--stars", help="Also show the probability of each rating.")] = False,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Predict ratings for all movies a user has rated (shown beside), for given movies, or for pairs from a file or pipe."""
    if sum([pairs is not None, bool(user), ratings is not None]) != 1:
        raise UsageError("give one of: --user ID, --ratings FILE, or a file of pairs ('-' for standard input)")
    if pairs is not None and (movie or by_row):
        raise UsageError("--movie and --row go with --user; a file of pairs names both by id")
    if "-" in (pairs, ratings) and str(model) == "-":
        raise UsageError("the ratings or pairs, and --model, cannot both come from standard input")
    found = load_model(model)
    from pmfcli.answers import Asked, Detail, find_movie, find_user, pairs_of, star_columns
    from pmfcli.answers import predict as answers

    detail = Detail(interval, stars)
    shape = Shape("predict", (*_COLUMNS, *star_columns(found, stars)))
    chosen = pick_format(output, as_json)
    if pairs is not None:
        timed = found.settings["time"] != "none"
        emit(_counted(answers(found, _read_pairs(pairs, timed), detail)), shape, chosen)
        return
    movies = [find_movie(found, name, by_row) for name in movie or []]
    if ratings is not None:
        visitor = read_visitor(ratings, found)
        asked = movies or visitor.movies
        rows = list(answers(found, [Asked("", found.movies.ids[row]) for row in asked], detail, visitor))
    else:
        users = [find_user(found, name, by_row) for name in user or []]
        rows = list(answers(found, pairs_of(found, users, movies), detail))
    emit(rows, shape, chosen)
    if not movies and rows:
        error = (sum((row["rating"] - row["prediction"]) ** 2 for row in rows) / len(rows)) ** 0.5
        note(f"{len(rows)} known ratings beside their reconstruction: RMSE {error:.3f}")


def _read_pairs(source: str, timed: bool) -> "Iterator[Asked]":
    from pmfcli.answers import Asked

    for place, fields in read_records(source, ("user", "movie"), also=("time",) if timed else ()):
        given = fields.get("time", "")
        time = seconds(given) if given else None
        if time is None and given:
            raise DataError(f"{place}: time '{short(given)}' is neither seconds since 1970 nor a date")
        yield Asked(fields["user"], fields["movie"], time)


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows; says at the end how many had an unknown side."""
    total = unknown = 0
    for row in rows:
        total += 1
        unknown += row["source"] not in ("model", "features")
        yield row
    if unknown:
        note(f"{unknown:,} of {total:,} pairs have a user or movie that the model does not know; 'source' shows which")
