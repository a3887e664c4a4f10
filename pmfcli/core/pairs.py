"""Pairs of a user and a movie by row: those that are asked for, and those whose ratings were seen."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.parallel import take


class Pairs(NamedTuple):
    """(user, movie) pairs by row. The row of an unknown side is valid but means nothing."""

    user: Tensor  # (n,) int64
    movie: Tensor  # (n,) int64
    user_known: Tensor  # (n,) bool
    movie_known: Tensor  # (n,) bool
    time: Tensor | None = None  # (n,) int64 seconds since 1970, where it is known when the ratings are given

    def to(self, device: torch.device) -> "Pairs":
        """The same pairs on another device."""
        return self._each(lambda part: part.to(device))

    def split(self, size: int) -> Iterator["Pairs"]:
        """Parts of at most so many pairs."""
        return (self.at(torch.arange(start, min(start + size, len(self.user)))) for start in range(0, len(self.user), size))

    def at(self, index: Tensor) -> "Pairs":
        """The pairs of an index (k,)."""
        return self._each(lambda part: part[index])

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows of users and of movies, (n,) each; -1 where it is unknown."""
        return torch.where(self.user_known, self.user, -1), torch.where(self.movie_known, self.movie, -1)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Pairs":
        time = None if self.time is None else change(self.time)
        return Pairs(*map(change, (self.user, self.movie, self.user_known, self.movie_known)))._replace(time=time)


class Seen(NamedTuple):
    """The ratings that a model was trained on, by user."""

    start: Tensor  # (n_users + 1,) int64: ratings start[i] .. start[i + 1] are user i's
    movie: Tensor  # (n,) int32 movie rows, ascending within a user
    stars: Tensor  # (n,) float32

    def of(self, user: int) -> tuple[Tensor, Tensor]:
        """A user's movie rows (int64) and stars."""
        s = slice(int(self.start[user]), int(self.start[user + 1]))
        return self.movie[s].long(), self.stars[s]

    def places_of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """All ratings of users (u,), user by user: where those of each begin, (u + 1,), and their places here. -1 has none."""
        known = users >= 0
        counts = self.start.diff()[users.clamp(min=0)] * known
        start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        first = self.start[users.clamp(min=0)] - start[:-1]
        return start, torch.arange(int(start[-1])) + first.repeat_interleave(counts)

    def find(self, user: Tensor, movie: Tensor) -> Tensor:
        """The place of the rating of each pair of rows (n,) here; -1 where there is none."""
        users, at = user.unique(return_inverse=True)
        start, place = self.places_of(users)
        key = (torch.arange(len(users)).repeat_interleave(start.diff()) << 32) + self.movie[place]
        wanted = (at << 32) + movie
        found = torch.searchsorted(key, wanted)
        there = torch.cat([key, key.new_full((1,), -1)])[found] == wanted
        return torch.where(there, torch.cat([place, place.new_zeros(1)])[found], -1)

    def movie_counts(self, n_movies: int) -> Tensor:
        """Ratings of each movie, (n_movies,)."""
        return torch.bincount(self.movie, minlength=n_movies)

    def users(self) -> Tensor:
        """The user row of every rating, (n,) int64."""
        return torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff())

    def raters_of(self, movies: Tensor, n_movies: int) -> tuple[Tensor, Tensor]:
        """Who rated movies (m,), movie by movie: where those of each begin, (m + 1,), and their rows, int32. -1 has none."""
        place = torch.full((n_movies,), -1, dtype=torch.int32)
        place[movies[movies >= 0]] = torch.arange(len(movies), dtype=torch.int32)[movies >= 0]
        of = take(place, self.movie)
        rating = torch.nonzero(of >= 0)[:, 0]
        user = torch.searchsorted(self.start, rating, right=True, out_int32=True) - 1
        of, order = torch.sort(of[rating], stable=True)
        return torch.searchsorted(of, torch.arange(len(movies) + 1, dtype=torch.int32)), user[order]
