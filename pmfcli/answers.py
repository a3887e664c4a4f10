"""From a model and ids to the rows of an answer: what ``predict``, ``recommend`` and ``similar`` print."""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pmfcli.artifact import Model
from pmfcli.core import blend
from pmfcli.core.blend import Person
from pmfcli.core.neighbours import Metric
from pmfcli.core.neighbours import similar as nearest
from pmfcli.core.predict import Pairs, Rank
from pmfcli.core.predictive import Predictive
from pmfcli.data.ratings import LIKED, STEPS, Vocabulary
from pmfcli.errors import UnknownIdError, UsageError

Row = dict[str, Any]
_ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|L'|Il|El|Das|Der|Die)( \(|$)", re.IGNORECASE)
_COMMON = 10  # ratings that similar movies or users have at least, where enough have
_NAMED = 20  # candidates of an ambiguous title that are named
_SOURCES = {(True, True): "model", (False, True): "movie-only", (True, False): "user-only", (False, False): "prior"}


class Asked(NamedTuple):
    """A pair to predict."""

    user: str
    movie: str
    time: int | None = None  # seconds since 1970; of all pairs or none


class Detail(NamedTuple):
    """What is said of the uncertainty of an answer."""

    interval: float  # probability between lo and hi
    stars: bool  # the probability of every rating


class Visitor(NamedTuple):
    """Somebody who is not in the data, with some ratings."""

    movies: tuple[int, ...]  # rows, ascending
    stars: tuple[float, ...]


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


def predict(model: Model, wanted: Iterable[Asked], detail: Detail, visitor: Visitor | None = None) -> Iterator[Row]:
    """Answers for pairs of ids, known or not, in chunks: the rating if it is known, the prediction, how sure, the source.

    With a visitor the users are not looked at: it is they who are asked for.
    """
    _check_detail(model, detail)
    return _answers(model, wanted, detail, visitor, None if visitor is None else _folded_in(model, visitor))


def _answers(
    model: Model, wanted: Iterable[Asked], detail: Detail, visitor: Visitor | None, person: Person | None
) -> Iterator[Row]:
    iterator = iter(wanted)
    user_counts, movie_counts = model.seen.start.diff(), model.seen.movie_counts(len(model.movies))
    has_features = bool(model.data.get("features"))
    own = {} if visitor is None else dict(zip(visitor.movies, visitor.stars, strict=True))
    while chunk := list(itertools.islice(iterator, blend.chunk_of(model.posterior))):
        user, user_known = model.users.rows([pair.user for pair in chunk])
        movie, movie_known = model.movies.rows([pair.movie for pair in chunk])
        if person is None:
            times = [pair.time for pair in chunk if pair.time is not None]
            pairs = Pairs(*map(torch.from_numpy, (user, movie, user_known, movie_known)))
            pairs = pairs._replace(time=torch.tensor(times) if times else None)
            found = blend.predict_pairs(model.posterior, model.seen, pairs)
        else:
            asked = torch.where(torch.from_numpy(movie_known), torch.from_numpy(movie), -1)
            found = blend.predict_movies(model.posterior, model.seen, person, asked)
        for (user_id, movie_id, _), u, m, knows_user, knows_movie, said in zip(
            chunk,
            user.tolist(),
            movie.tolist(),
            user_known.tolist(),
            movie_known.tolist(),
            _said(model, found, detail),
            strict=True,
        ):
            if person is not None:
                rating, source = (own.get(m), "fold-in") if knows_movie else (None, _SOURCES[True, False])
            else:
                rating = _rating(model, u, m) if knows_user and knows_movie else None
                bare = (knows_user and not user_counts[u]) or (knows_movie and not movie_counts[m])
                source = "features" if bare and has_features else _SOURCES[knows_user, knows_movie]
            yield {
                "user": user_id or None,
                "movie": movie_id,
                "title": model.titles[m] if knows_movie else None,
                "rating": rating,
                **said,
                "source": source,
            }


def star_columns(model: Model, stars: bool) -> list[str]:
    """The columns of ``--stars``: one for every rating that the data has."""
    return [f"p_{star:g}" for star in model.steps] if stars else []


def pairs_of(model: Model, users: Sequence[int], movies: Sequence[int]) -> Iterator[Asked]:
    """Ids of each user with each of the movies, or with all that the user rated if none are given."""
    for user in users:
        for movie in movies or model.seen.of(user)[0].tolist():
            yield Asked(model.users.ids[user], model.movies.ids[movie])


def recommend(
    model: Model,
    who: int | Visitor,
    n: int,
    candidates: Sequence[int],
    exclude: Sequence[int],
    include_seen: bool,
    by: Rank,
    detail: Detail,
) -> list[Row]:
    """The ``n`` movies with the highest prediction among the candidates (all, if none are given).

    Args:
        who: the row of a user, or somebody with ratings.
        by: the predictive mean, or an end of its interval.
    """
    _check_detail(model, detail)
    allowed = torch.full((len(model.movies),), not candidates)
    allowed[list(candidates)] = True
    allowed[list(exclude)] = False
    visitor = who if isinstance(who, Visitor) else None
    if not include_seen:
        allowed[model.seen.of(who)[0] if isinstance(who, int) else list(who.movies)] = False
    movies = torch.nonzero(allowed)[:, 0]
    p, seen = model.posterior, model.seen
    person = blend.person(p, seen, who) if isinstance(who, int) else _folded_in(model, who)
    order = torch.sort(blend.rank(p, seen, person, movies, by, detail.interval), descending=True, stable=True).indices[:n]
    name = model.users.ids[who] if isinstance(who, int) else ""
    pairs = [Asked(name, model.movies.ids[movie]) for movie in movies[order].tolist()]
    answers = _answers(model, pairs, detail, visitor, None if visitor is None else person)
    return [{"rank": place, **answer} for place, answer in enumerate(answers, 1)]


def similar(
    model: Model, side: Literal["user", "movie"], row: int, n: int, metric: Metric, min_ratings: int | None
) -> list[Row]:
    """The ``n`` users or movies most like one of them, among those with at least ``min_ratings`` ratings.

    Without a number: 10, or as many as leaves ``n`` to choose from.
    """
    movies = side == "movie"
    vectors = blend.vectors(model.posterior, movies)
    counts = model.seen.movie_counts(len(model.movies)) if movies else model.seen.start.diff()
    if min_ratings is None:
        others = torch.cat([counts[:row], counts[row + 1 :]]).sort(descending=True).values
        min_ratings = min(_COMMON, int(others[: 3 * n][-1])) if len(others) else 0
    rows, similarity, sd = nearest(vectors, row, counts >= min_ratings, n, metric)
    return [
        {
            "rank": rank,
            **(_movie(model, other) if side == "movie" else {"user": model.users.ids[other]}),
            "similarity": shortest(value),
            "sd": shortest(spread) if len(vectors) > 1 else None,
            "ratings": int(counts[other]),
        }
        for rank, (other, value, spread) in enumerate(zip(rows.tolist(), similarity.tolist(), sd.tolist(), strict=True), 1)
    ]


def shortest(value: float) -> float:
    """The shortest decimal that is the same 32-bit float: 3.7, not 3.700000047683716."""
    return float(str(np.float32(value)))


def _named(model: Model, rows: Sequence[int]) -> str:
    return "; ".join(f"{model.movies.ids[row]} {model.titles[row]}" for row in rows[:_NAMED])


def _movie(model: Model, row: int) -> Row:
    return {"movie": model.movies.ids[row], "title": model.titles[row]}


def _folded_in(model: Model, visitor: Visitor) -> Person:
    t = model.scale.to_unit(torch.tensor(visitor.stars, dtype=torch.float64)).float()
    movies, power = torch.tensor(visitor.movies, dtype=torch.int64), float(model.settings.get("user_power", 0))
    return blend.visitor(model.posterior, model.seen, movies, t, power)


def _check_detail(model: Model, detail: Detail) -> None:
    if not 0 < detail.interval < 1:
        raise UsageError(f"--interval {detail.interval:g}: give a probability between 0 and 1, such as 0.9")
    if detail.stars and not model.steps:
        raise UsageError(f"--stars: the ratings have more than {STEPS} different values; there are no stars to tell apart")


def _said(model: Model, found: Predictive, detail: Detail) -> Iterator[Row]:
    """The prediction and its uncertainty, in stars, for every rating."""
    scale, grid = model.scale, model.steps
    stars = [scale.to_stars(found.mean()), found.sd() * (scale.hi - scale.lo)]
    stars += [scale.to_stars(end) for end in found.interval(detail.interval)]
    columns = [part.tolist() for part in stars]
    columns.append((1 - found.below(scale.to_unit(_edge(grid, LIKED)))).tolist() if scale.lo < LIKED <= scale.hi else [])
    names = ["prediction", "sd", "lo", "hi", "p_ge_4"]
    if not columns[-1]:  # a scale that has no 4 in it: all ratings are above, or none is
        columns[-1] = [float(scale.lo >= LIKED)] * found.n
    if detail.stars:
        masses = found.masses(torch.tensor([scale.to_unit(star) for star in grid]))
        columns += [column.tolist() for column in masses.T]
        names += star_columns(model, True)
    for values in zip(*columns, strict=True):
        yield {name: shortest(value) for name, value in zip(names, values, strict=True)}


def _edge(grid: Sequence[float], star: float) -> float:
    """Where ratings of at least this begin: half way down to the rating below, if there is a grid."""
    below, above = [value for value in grid if value < star], [value for value in grid if value >= star]
    return (below[-1] + above[0]) / 2 if below and above else star


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
