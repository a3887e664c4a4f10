"""pmf predict: ratings, known and unknown."""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pmfcli.cli.common import find_movie, find_user, load_model, movie_fields, stars
from pmfcli.cli.options import AsJson, ByRow, ModelFile, OutputFormat
from pmfcli.console import Row, Shape, emit, note, number, pick_format
from pmfcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from pmfcli.artifact import Model

EXAMPLE = "pmf predict --user 4 --movie 1 --movie 260"
_COLUMNS = ("user", "movie", "title", "rating", "prediction", "sd", "lo", "hi", "p_ge_4", "source")
_CHUNK = 10_000  # pairs answered at a time
_SOURCES = {(True, True): "model", (False, True): "movie-only", (True, False): "user-only", (False, False): "prior"}


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
        raise UsageError("give --user ID, or a file of pairs ('-' for standard input)")
    found = load_model(model)
    shape = Shape("predict", _COLUMNS)
    if pairs is not None:
        if movie or by_row:
            raise UsageError("--movie and --row go with --user; a file of pairs names both by id")
        emit(_answer(found, _read_pairs(pairs)), shape, pick_format(output, as_json))
        return
    users = [find_user(found, name, by_row) for name in user or []]
    movies = [find_movie(found, name, by_row) for name in movie or []]
    wanted = [(found.users.ids[u], found.movies.ids[m]) for u in users for m in (movies or found.seen.of(u)[0].tolist())]
    rows = list(_answer(found, wanted))
    emit(rows, shape, pick_format(output, as_json))
    known = [row for row in rows if row["rating"] is not None]
    if not movies and known:
        error = (sum((row["rating"] - row["prediction"]) ** 2 for row in known) / len(known)) ** 0.5
        note(f"{len(known)} known ratings beside their reconstruction: RMSE {error:.3f}")


def _answer(model: "Model", wanted: Iterable[tuple[str, str]]) -> Iterator[Row]:
    import torch

    from pmfcli.core.predict import Pairs, predict_pairs

    iterator = iter(wanted)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        user, user_known = model.users.rows([pair[0] for pair in chunk])
        movie, movie_known = model.movies.rows([pair[1] for pair in chunk])
        rows = Pairs(*(torch.from_numpy(part) for part in (user, movie, user_known, movie_known)))
        predictions = stars(model, predict_pairs(model.factors, rows))
        for i, (user_id, movie_id) in enumerate(chunk):
            rating = _rating(model, int(user[i]), int(movie[i])) if user_known[i] and movie_known[i] else None
            title = movie_fields(model, int(movie[i])) if movie_known[i] else {"movie": movie_id, "title": None}
            yield {
                "user": user_id,
                **title,
                "rating": rating,
                "prediction": predictions[i],
                "source": _SOURCES[bool(user_known[i]), bool(movie_known[i])],
            }


def _rating(model: "Model", user: int, movie: int) -> float | None:
    movies, given = model.seen.of(user)
    place = (movies == movie).nonzero()
    return number(float(given[place[0, 0]])) if len(place) else None


def _lines(source: str) -> Iterator[str]:
    if source == "-":
        yield from sys.stdin
        return
    with open(source, encoding="utf-8") as file:
        yield from file


def _read_pairs(source: str) -> Iterator[tuple[str, str]]:
    name = "standard input" if source == "-" else source
    try:
        for line_number, line in enumerate(_lines(source), 1):
            parts = [part.strip() for part in re.split(r"[\t,;]" if re.search(r"[\t,;]", line) else r"\s+", line.strip())]
            if parts == [""] or (line_number == 1 and parts[0].lower() in ("user", "userid", "user_id")):
                continue
            if len(parts) < 2 or not parts[0] or not parts[1]:
                raise DataError(f"{name}:{line_number}: '{line.strip()[:60]}' is not a user and a movie")
            yield parts[0], parts[1]
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; give a file of user and movie pairs") from None
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8 text; expected a user and a movie on each line") from None
