"""From a model and ids to the rows of an answer: what ``predict``, ``recommend`` and ``similar`` print."""

import difflib
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pmfcli.artifact import Model, in_stars
from pmfcli.core import kinds
from pmfcli.core.kinds import People
from pmfcli.core.neighbours import Metric
from pmfcli.core.neighbours import similar as nearest
from pmfcli.core.pairs import Pairs
from pmfcli.core.predictive import Predictive
from pmfcli.core.recommend import Best, Rank, best, block_of
from pmfcli.data.ratings import LIKED, STEPS, Vocabulary
from pmfcli.errors import UnknownIdError, UsageError
from pmfcli.text import clean, short

Row = dict[str, Any]
_ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|L'|Il|El|Das|Der|Die)( \(|$)", re.IGNORECASE)
_COMMON = 10  # ratings that similar movies or users have at least, where enough have
_NAMED = 20  # candidates of an ambiguous title that are named
_NUMBERS = ("prediction", "sd", "lo", "hi")
_SOURCES = {(True, True): "model", (False, True): "movie-only", (True, False): "user-only", (False, False): "prior"}


class Asked(NamedTuple):
    """A pair to predict."""

    user: str
    movie: str
    time: int | None = None  # seconds since 1970, where it is known


class Detail(NamedTuple):
    """How the uncertainty of an answer is given."""

    interval: float  # probability between lo and hi
    stars: bool  # the probability of every rating


class Choice(NamedTuple):
    """Which movies are recommended to somebody."""

    n: int  # how many, at most
    candidates: Sequence[int] = ()  # rows to choose from; all, if none are given
    exclude: Sequence[int] = ()  # rows that are left out
    include_seen: bool = False  # also those that they have rated
    by: Rank = "mean"  # the highest: the predictive mean, or an end of its interval


class Visitor(NamedTuple):
    """Somebody who is not in the data, but has some ratings."""

    movies: tuple[int, ...]  # rows, ascending
    stars: tuple[float, ...]


class Recommended(NamedTuple):
    """The recommendations for a number of users, by column."""

    users: int
    columns: dict[str, Any]  # (k,) each: lists of texts, arrays of numbers in 32 bits

    def rows(self) -> Iterator[Row]:
        """The same by row."""
        plain = [
            column if isinstance(column, list) else list(map(shortest if column.dtype.kind == "f" else int, column))
            for column in self.columns.values()
        ]
        return (dict(zip(self.columns, values, strict=True)) for values in zip(*plain, strict=True))


def find_user(model: Model, name: str, by_row: bool = False) -> int:
    """The row of a user, given by id, or by row.

    Raises:
        UnknownIdError: there is none; names the nearest ids.
    """
    return _find(model.users, clean(name), by_row, "user", "--user")


def find_movie(model: Model, name: str, by_row: bool = False, flag: str = "--movie") -> int:
    """The row of a movie: by id, else by its whole title, with or without the year, else by a part that only one title has.

    Raises:
        UnknownIdError: there is none, or several match; names the flag and candidates.
    """
    name = clean(name)  # as ids of files are
    if by_row or model.movies.row(name) is not None:
        return _find(model.movies, name, by_row, "movie", flag)
    wanted = _plain(name)
    titles = {row: _plain(title) for row, title in enumerate(model.titles) if title is not None}
    whole = [row for row, title in titles.items() if wanted in (title, re.sub(r" \d{4}$", "", title))]
    found = whole or [row for row, title in titles.items() if wanted and f" {wanted} " in f" {title} "]
    if len(found) == 1:
        return found[0]
    if found:
        counts = model.movie_counts
        found.sort(key=lambda row: -int(counts[row]))
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UnknownIdError(f"{flag}: '{name}' matches {len(found)} movies; give an id: {_named(model, found)}{more}")
    if not titles:
        raise UnknownIdError(
            f"{flag}: the model knows no movie '{name}'; it has no titles; give an id such as {model.movies.ids[0]}"
        )
    near = difflib.get_close_matches(wanted, titles.values(), 3, 0.6)
    if near:
        rows = [row for row, title in titles.items() if title in near]
        raise UnknownIdError(f"{flag}: the model knows no movie '{short(name)}'; closest: {_named(model, rows)}")
    return _find(model.movies, name, by_row, "movie", flag)


def predict(model: Model, wanted: Iterable[Asked], detail: Detail, visitor: Visitor | None = None) -> Iterator[Row]:
    """Answers for pairs of ids, known or not, in chunks: the rating if it is known, the prediction, how sure, the source.

    With a visitor, the users of the pairs are ignored: all answers are for the visitor.
    """
    _check_detail(model, detail)
    return _answers(model, wanted, detail, visitor, None if visitor is None else _folded_in(model, visitor))


def _chunks(wanted: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    """At most so many at a time, with times or without."""
    for _, run in itertools.groupby(wanted, lambda pair: pair.time is None):
        while chunk := list(itertools.islice(run, size)):
            yield chunk


def _answers(
    model: Model, wanted: Iterable[Asked], detail: Detail, visitor: Visitor | None, person: People | None
) -> Iterator[Row]:
    posterior = model.posterior
    looked_at = 0  # ratings of the movies of chunks, from which their covariances are computed
    user_counts, movie_counts = model.seen.start.diff(), model.movie_counts
    has_features = bool(model.data.get("features"))
    own = {} if visitor is None else dict(zip(visitor.movies, visitor.stars, strict=True))
    for chunk in _chunks(wanted, kinds.chunk_of(posterior)):
        user, user_known = model.users.rows([pair.user for pair in chunk])
        movie, movie_known = model.movies.rows([pair.movie for pair in chunk])
        if looked_at >= len(model.seen.movie):  # once for all will be less than for each chunk again
            posterior = kinds.ready(posterior, model.seen)
        looked_at += int(movie_counts[np.unique(movie)].sum())
        if person is None:
            times = [pair.time for pair in chunk if pair.time is not None]
            pairs = Pairs(*map(torch.from_numpy, (user, movie, user_known, movie_known)))
            pairs = pairs._replace(time=torch.tensor(times) if times else None)
            found = kinds.predict_pairs(posterior, model.seen, pairs)
            rated = _ratings(model, pairs)
        else:
            asked = torch.where(torch.from_numpy(movie_known), torch.from_numpy(movie), -1)
            movies = kinds.movies_of(posterior, model.seen, asked)
            found = kinds.predictive(posterior, person, torch.tensor([0]), movies)
            rated = [own.get(m) for m in asked.tolist()]
        for (user_id, movie_id, _), u, m, knows_user, knows_movie, rating, said in zip(
            chunk,
            user.tolist(),
            movie.tolist(),
            user_known.tolist(),
            movie_known.tolist(),
            rated,
            _said(model, found, detail),
            strict=True,
        ):
            if person is not None:
                source = "fold-in" if knows_movie else _SOURCES[True, False]
            else:
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
    return [f"p_{shortest(star):.9g}" for star in model.steps] if stars else []


def pairs_of(model: Model, users: Sequence[int], movies: Sequence[int]) -> Iterator[Asked]:
    """Ids of each user with each of the movies, or with all that the user rated if none are given."""
    for user in users:
        for movie in movies or model.seen.of(user)[0].tolist():
            yield Asked(model.users.ids[user], model.movies.ids[movie])


def recommend(model: Model, who: int | Visitor, choice: Choice, detail: Detail) -> list[Row]:
    """The movies with the highest prediction for a user, by row, or for a visitor, the best first."""
    if isinstance(who, int):
        (found,) = recommend_all(model, [who], choice, detail)
        return list(found.rows())
    movies = _allowed(model, choice, detail)
    rated, person = torch.tensor(() if choice.include_seen else who.movies, dtype=torch.int64), _folded_in(model, who)
    chosen = best(model.posterior, model.seen, person, movies, (0 * rated, rated), choice.n, choice.by, detail.interval)
    return list(_recommended(model, [None], person, chosen, ["fold-in"] * len(chosen.movie), detail).rows())


def recommend_all(model: Model, users: Sequence[int], choice: Choice, detail: Detail) -> Iterator[Recommended]:
    """The same for each of many users, by row: a block of them at a time, so that memory is bounded."""
    movies = _allowed(model, choice, detail)
    if len(users) > 1:
        model = replace(model, posterior=kinds.ready(model.posterior, model.seen))
    p, seen, has_features = model.posterior, model.seen, bool(model.data.get("features"))
    for block in torch.tensor(users).split(block_of(p, len(movies), choice.n)):
        people = kinds.people(p, seen, block)
        start, place = seen.places_of(block[:0] if choice.include_seen else block)
        rated = torch.arange(len(start) - 1).repeat_interleave(start.diff()), seen.movie[place].long()
        chosen = best(p, seen, people, movies, rated, choice.n, choice.by, detail.interval)
        bare = (seen.start.diff()[block][chosen.person] == 0) | (model.movie_counts[chosen.movie] == 0)
        sources = ["features" if one and has_features else "model" for one in bare.tolist()]
        yield _recommended(model, [model.users.ids[user] for user in block.tolist()], people, chosen, sources, detail)


def _allowed(model: Model, choice: Choice, detail: Detail) -> torch.Tensor:
    """The rows of the movies to choose from."""
    _check_detail(model, detail)
    allowed = torch.full((len(model.movies),), not choice.candidates)
    allowed[list(choice.candidates)] = True
    allowed[list(choice.exclude)] = False
    return torch.nonzero(allowed)[:, 0]


def _recommended(
    model: Model, names: Sequence[str | None], people: People, chosen: Best, sources: list[str], detail: Detail
) -> Recommended:
    """What was chosen for people, by column; those without a name are visitors."""
    p, person, movie = model.posterior, chosen.person, chosen.movie
    parts = []
    for part in torch.arange(len(movie)).split(kinds.chunk_of(p)):
        said = kinds.predictive(p, people, person[part], kinds.movies_of(p, model.seen, movie[part]))
        parts.append(_numbers(model, said, detail.interval))
    rank = torch.arange(len(person)) - torch.searchsorted(person, person) + 1
    columns = {
        "user": [names[place] for place in person.tolist()],
        "rank": rank.int().numpy(),
        "movie": [model.movies.ids[row] for row in movie.tolist()],
        "title": [model.titles[row] for row in movie.tolist()],
    }
    numbers = dict(zip(_NUMBERS, torch.cat(parts, 1).numpy(), strict=True))
    return Recommended(len(names), columns | numbers | {"source": sources})


def similar(
    model: Model, side: Literal["user", "movie"], row: int, n: int, metric: Metric, min_ratings: int | None
) -> list[Row]:
    """The ``n`` users or movies most like one of them, among those with at least ``min_ratings`` ratings.

    By default ``min_ratings`` is 10, or less where that leaves fewer than three times ``n`` to choose from.
    """
    movies = side == "movie"
    vectors = kinds.vectors(model.posterior, movies)
    counts = model.movie_counts if movies else model.seen.start.diff()
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


def _folded_in(model: Model, visitor: Visitor) -> People:
    t = model.scale.to_unit(torch.tensor(visitor.stars, dtype=torch.float64)).float()
    movies, power = torch.tensor(visitor.movies, dtype=torch.int64), float(model.settings.get("user_power", 0))
    return kinds.visitor(model.posterior, model.seen, movies, t, power)


def _check_detail(model: Model, detail: Detail) -> None:
    if not 0 < detail.interval < 1:
        raise UsageError(f"--interval {detail.interval:g}: give a probability between 0 and 1, such as 0.9")
    if detail.stars and not model.steps:
        raise UsageError(f"--stars: the ratings have more than {STEPS} different values; leave it out")


def _numbers(model: Model, found: Predictive, interval: float) -> torch.Tensor:
    """The prediction, its sd and the ends of its interval, in stars, (4, n)."""
    scale = model.scale
    stars = [scale.to_stars(found.mean()), found.sd() * (scale.hi - scale.lo)]
    return torch.stack(stars + [in_stars(end, model.steps, scale) for end in found.interval(interval)])


def _said(model: Model, found: Predictive, detail: Detail) -> Iterator[Row]:
    """The prediction and its uncertainty, in stars, for every rating."""
    scale, grid = model.scale, model.steps
    columns = _numbers(model, found, detail.interval).tolist()
    below = found.below(scale.to_unit(_edge(grid, LIKED))).clamp(0, 1)
    columns.append((1 - below).tolist() if scale.lo < LIKED <= scale.hi else [])
    names = [*_NUMBERS, "p_ge_4"]
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


def _ratings(model: Model, pairs: Pairs) -> list[float | None]:
    """What is known of pairs, in stars; None where nothing is."""
    place = torch.where(pairs.user_known & pairs.movie_known, model.seen.find(pairs.user, pairs.movie), -1)
    stars = torch.where(place >= 0, model.seen.stars[place], math.nan).tolist()
    return [None if math.isnan(star) else shortest(star) for star in stars]


def _find(vocabulary: Vocabulary, name: str, by_row: bool, what: str, flag: str) -> int:
    if by_row:
        if not name.isdecimal() or int(name) >= len(vocabulary):
            raise UnknownIdError(f"{flag} {name} --row: rows of {what}s are 0 to {len(vocabulary) - 1}")
        return int(name)
    row = vocabulary.row(name)
    if row is None:
        near = _near(name, vocabulary.ids) if len(vocabulary) <= 100_000 else []
        named = ", ".join(map(short, near or vocabulary.ids[:3]))
        hint = f"closest: {named}" if near else f"it knows {len(vocabulary):,}, such as {named}"
        raise UnknownIdError(f"{flag}: the model knows no {what} '{short(name)}'; {hint}")
    return row


def _near(name: str, ids: Sequence[str]) -> list[str]:
    """Up to three ids that look like a name, however they are written: large, small, with accents or without."""
    plain = {of: _plain(of) for of in ids}
    close = difflib.get_close_matches(_plain(name), set(plain.values()), 3, 0.6)
    return sorted((of for of in ids if plain[of] in close), key=lambda of: close.index(plain[of]))[:3]


def _plain(title: str) -> str:
    """A title to compare by: no case, accents or punctuation; 'Matrix, The (1999)' becomes 'the matrix 1999'."""
    title = _ARTICLE.sub(r"\2 \1\3", title)
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", title) if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", letters.casefold()))
