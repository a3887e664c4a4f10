"""Ratings, Vocabulary, Scale: ids become rows and stars become [0, 1], and back."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pmfcli.errors import DataError

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Numbers = TypeVar("Numbers", float, Array, "torch.Tensor")

LIKED = 4.0  # stars: of p_ge_4 and its reliability
STEPS = 25  # different ratings that are steps of a scale, at most; more are numbers

_PIECE = 1 << 16
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")


def pieces(n: int, beyond: int = 0) -> Iterator[slice]:
    """Slices of n numbers, short enough for what is computed from them to stay in the cache, and ``beyond`` longer."""
    return (slice(start, start + _PIECE + beyond) for start in range(0, n, _PIECE))


@dataclass(frozen=True)
class Vocabulary:
    """Ids and their rows. Ids are text; ``ids[row]`` is the id of a row."""

    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def row(self, name: str) -> int | None:
        """The row of an id, None if it is not there."""
        return self._rows.get(name)

    def rows(self, names: Sequence[str]) -> tuple[Array, Array]:
        """Rows of many ids: (rows int64, known bool). The row of an unknown id is 0 and means nothing."""
        found = [self._rows.get(name) for name in names]
        known = np.array([row is not None for row in found], dtype=bool)
        return np.array([row or 0 for row in found], dtype=np.int64), known

    @staticmethod
    def order(names: Sequence[str]) -> Array:
        """Positions that sort ids: by number if all are whole numbers, else as text."""
        if all(map(_INTEGER.fullmatch, names)):
            return np.argsort(np.array(names, dtype=np.int64), kind="stable")
        return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


class Scale(NamedTuple):
    """The lowest and highest rating. Stars r and unit t: t = (r - lo) / (hi - lo)."""

    lo: float
    hi: float

    def to_unit(self, stars: Numbers) -> Numbers:
        """Stars to [0, 1]."""
        return (stars - self.lo) / (self.hi - self.lo)

    def to_stars(self, unit: Numbers) -> Numbers:
        """[0, 1] to stars."""
        return unit * (self.hi - self.lo) + self.lo


class Block(NamedTuple):
    """One kind of thing that is known of users or movies, as a sparse matrix: rows are theirs."""

    name: str
    columns: tuple[str, ...]  # what each column stands for
    row: Array  # (n,) int32, ascending
    col: Array  # (n,) int32, ascending within a row
    weight: Array  # (n,) float32


@dataclass(frozen=True)
class Ratings:
    """Who rated what, and how: each pair once, sorted by user row, then movie row."""

    user: Array  # (n,) int32 rows of ``users``
    movie: Array  # (n,) int32 rows of ``movies``
    stars: Array  # (n,) float32
    time: Array | None  # (n,) int64 seconds since 1970, if the data has times
    users: Vocabulary
    movies: Vocabulary
    titles: tuple[str | None, ...]  # one for each row of ``movies``
    scale: Scale
    name: str  # what the data is called, for people
    user_features: tuple[Block, ...] = ()
    movie_features: tuple[Block, ...] = ()

    @property
    def n(self) -> int:
        """Number of ratings."""
        return len(self.stars)

    def select(self, mask: Array) -> "Ratings":
        """The ratings where ``mask`` (n,) holds. Vocabularies and scale stay those of the whole."""
        time = None if self.time is None else self.time[mask]
        return replace(self, user=self.user[mask], movie=self.movie[mask], stars=self.stars[mask], time=time)

    def dense(self) -> "tuple[Ratings, Array, Array]":
        """Without the users and movies that have no rating, and the rows of those that stay, ascending."""
        users, movies = (np.flatnonzero(np.bincount(rows)) for rows in (self.user, self.movie))
        every = (len(users), len(movies)) == (len(self.users), len(self.movies))
        return self if every else self.of(users, movies), users, movies

    def of(self, users: Array, movies: Array) -> "Ratings":
        """The same of these rows alone, ascending, of users and movies; the ratings have to be theirs."""
        return replace(
            self,
            user=_places(users, len(self.users))[self.user],
            movie=_places(movies, len(self.movies))[self.movie],
            users=Vocabulary(tuple(self.users.ids[row] for row in users)),
            movies=Vocabulary(tuple(self.movies.ids[row] for row in movies)),
            titles=tuple(self.titles[row] for row in movies),
        )

    def tensors(self) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """(user rows int32, movie rows int32, ratings on the unit scale float32)."""
        import torch

        unit = np.empty(self.n, dtype=np.float32)
        for some in pieces(self.n):
            unit[some] = self.scale.to_unit(self.stars[some].astype(np.float64))
        return torch.from_numpy(self.user), torch.from_numpy(self.movie), torch.from_numpy(unit)

    def digest(self) -> str:
        """SHA-256 of the content: ids, pairs and stars. The order of the rows in the file does not matter."""
        digest = hashlib.sha256()
        for names in (self.users.ids, self.movies.ids):
            digest.update("\n".join(names).encode() + b"\0")
        for part in (self.user, self.movie, self.stars):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def check_trainable(self) -> None:
        """Refuse data that no model can be fitted to.

        Raises:
            DataError: fewer than two users or movies, or all ratings equal.
        """
        for count, what in ((len(self.users), "user"), (len(self.movies), "movie")):
            if count < 2:
                raise DataError(f"{self.name}: only {count} {what} in {self.n} rating(s); factorization needs at least 2")
        if self.scale.lo == self.scale.hi:
            raise DataError(f"{self.name}: all {self.n} ratings are {self.scale.lo:g}; there is nothing to learn from")


def _places(rows: Array, n: int) -> Array:
    """Of each of n rows its place among ``rows``, (n,) int32; of what is not among them, none that means anything."""
    places = np.zeros(n, dtype=np.int32)
    places[rows] = np.arange(len(rows), dtype=np.int32)
    return places
