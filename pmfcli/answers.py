"""From a model and ids to the rows of an answer: what ``predict``, ``recommend`` and ``similar`` print."""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pmfcli.artifact import Model
from pmfcli.core.neighbours import Metric
from pmfcli.core.neighbours import similar as nearest
from pmfcli.core.predict import Pairs, predict_pairs
from pmfcli.core.predict import recommend as best
from pmfcli.data.ratings import Vocabulary
from pmfcli.errors import UnknownIdError

Row = dict[str, Any]
_ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|L'|Il|El|Das|Der|Die)( \(|$)", re.IGNORECASE)
_COMMON = 10  # ratings that similar movies or users have at least, where enough have
_CHUNK = 10_000  # pairs answered at a time
_NAMED = 20  # candidates of an ambiguous title that are named
_SOURCES = {(True, True): "model", (False, True): "movie-only", (True, False): "user-only", (False, False): "prior"}


def find_user(model: Model, name: str, by_row: bool = False) -> int:
    """The row of a user, given by id, or by row.

    Raises:
        UnknownIdError: there is none; names the nearest ids.
    """
    return _find(model.users, name, by_row, "user", "--user")


def find_movie(model: Model, name: str, by_row: bool = False, flag: str = "--movie") -> int:
    """The row of a movie: by id, else by its whole title, with or without the year, else by a part that fits just one.

    Raises:
        UnknownIdError: there is none, or several fit; names the flag and candidates.
    """
    if by_row or model.movies.row(name) is not None:
        return _find(model.movies, name, by_row, "movie", flag)
    wanted = _plain(name)
    titles = {row: _plain(title) for row, title in enumerate(model.titles) if title is not None}
    whole = [row for row, title in titles.items() if wanted in (title, re.sub(r" \d{4}$", "", title))]
    found = whole or [row for row, title in titles.items() if wanted and f" {wanted} " in f" {title} "]
    if len(found) == 1:
        return found[0]
    if found:
        counts = model.seen.movie_counts(len(model.movies))
        found.sort(key=lambda row: -int(counts[row]))
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UnknownIdError(f"{flag}: '{name}' fits {len(found)} movies, give an id: {_named(model, found)}{more}")
    if not titles:
        raise UnknownIdError(
            f"{flag}: the model knows no movie '{name}'; it has no titles, give an id such as {model.movies.ids[0]}"
        )
    near = difflib.get_close_matches(wanted, titles.values(), 3, 0.6)
    if near:
        rows = [row for row, title in titles.items() if title in near]
        raise UnknownIdError(f"{flag}: the model knows no movie '{name}'; near: {_named(model, rows)}")
    return _find(model.movies, name, by_row, "movie", flag)


def predict(model: Model, wanted: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Answers for pairs of ids, known or not, in chunks: the rating if it is known, the predictive mean, the source."""
    iterator = iter(wanted)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        user, user_known = model.users.rows([pair[0] for pair in chunk])
        movie, movie_known = model.movies.rows([pair[1] for pair in chunk])
        pairs = Pairs(*map(torch.from_numpy, (user, movie, user_known, movie_known)))
        predictions = _stars(model, predict_pairs(model.factors, pairs))
        for (user_id, movie_id), u, m, knows_user, knows_movie, mean in zip(
            chunk, user.tolist(), movie.tolist(), user_known.tolist(), movie_known.tolist(), predictions, strict=True
        ):
            yield {
                "user": user_id,
                "movie": movie_id,
                "title": model.titles[m] if knows_movie else None,
                "rating": _rating(model, u, m) if knows_user and knows_movie else None,
                "prediction": mean,
                "source": _SOURCES[knows_user, knows_movie],
            }


def pairs_of(model: Model, users: Sequence[int], movies: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Ids of each user with each of the movies, or with all that the user rated if none are given."""
    for user in users:
        for movie in movies or model.seen.of(user)[0].tolist():
            yield model.users.ids[user], model.movies.ids[movie]


def recommend(
    model: Model, user: int, n: int, candidates: Sequence[int], exclude: Sequence[int], include_seen: bool
) -> list[Row]:
    """The ``n`` movies with the highest predictive mean among the candidates (all, if none are given)."""
    allowed = torch.full((len(model.movies),), not candidates)
    allowed[list(candidates)] = True
    allowed[list(exclude)] = False
    if not include_seen:
        allowed[model.seen.of(user)[0]] = False
    movies = best(model.factors, user, allowed, n).tolist()
    pairs = [(model.users.ids[user], model.movies.ids[movie]) for movie in movies]
    return [{"rank": rank, **answer} for rank, answer in enumerate(predict(model, pairs), 1)]


def similar(
    model: Model, side: Literal["user", "movie"], row: int, n: int, metric: Metric, min_ratings: int | None
) -> list[Row]:
    """The ``n`` users or movies most like one of them, among those with at least ``min_ratings`` ratings.

    Without a number: 10, or as many as leaves ``n`` to choose from.
    """
    if side == "movie":
        vectors, counts = model.factors.V, model.seen.movie_counts(len(model.movies))
    else:
        vectors, counts = model.factors.U, model.seen.start.diff()
    if min_ratings is None:
        others = torch.cat([counts[:row], counts[row + 1 :]]).sort(descending=True).values
        min_ratings = min(_COMMON, int(others[: 3 * n][-1])) if len(others) else 0
    rows, similarity = nearest(vectors, row, counts >= min_ratings, n, metric)
    return [
        {
            "rank": rank,
            **(_movie(model, other) if side == "movie" else {"user": model.users.ids[other]}),
            "similarity": shortest(value),
            "ratings": int(counts[other]),
        }
        for rank, (other, value) in enumerate(zip(rows.tolist(), similarity.tolist(), strict=True), 1)
    ]


def shortest(value: float) -> float:
    """The shortest decimal that is the same 32-bit float: 3.7, not 3.700000047683716."""
    return float(str(np.float32(value)))


def _named(model: Model, rows: Sequence[int]) -> str:
    return "; ".join(f"{model.movies.ids[row]} {model.titles[row]}" for row in rows[:_NAMED])


def _movie(model: Model, row: int) -> Row:
    return {"movie": model.movies.ids[row], "title": model.titles[row]}


def _stars(model: Model, unit: Tensor) -> list[float]:
    return [shortest(value) for value in model.scale.to_stars(unit).tolist()]


def _rating(model: Model, user: int, movie: int) -> float | None:
    movies, stars = model.seen.of(user)
    place = int(torch.searchsorted(movies, movie))
    return shortest(float(stars[place])) if place < len(movies) and int(movies[place]) == movie else None


def _find(vocabulary: Vocabulary, name: str, by_row: bool, what: str, flag: str) -> int:
    if by_row:
        if not name.isdecimal() or int(name) >= len(vocabulary):
            raise UnknownIdError(f"{flag} {name} --row: rows of {what}s are 0 to {len(vocabulary) - 1}")
        return int(name)
    row = vocabulary.row(name)
    if row is None:
        near = difflib.get_close_matches(name, vocabulary.ids, 3, 0.6) if len(vocabulary) <= 100_000 else []
        hint = f"near: {', '.join(near)}" if near else f"it knows {len(vocabulary):,}, such as {', '.join(vocabulary.ids[:3])}"
        raise UnknownIdError(f"{flag}: the model knows no {what} '{name}'; {hint}")
    return row


def _plain(title: str) -> str:
    """A title to compare by: no case, accents or punctuation; 'Matrix, The (1999)' becomes 'the matrix 1999'."""
    title = _ARTICLE.sub(r"\2 \1\3", title)
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", title) if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", letters.casefold()))
