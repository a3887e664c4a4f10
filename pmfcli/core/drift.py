"""Effects of time: what ratings that were given together have in common.

    z_ij = m + b_i + c_j + U_i . V_j + sum_k f_k(s_k(i, j)) + e_ij          f_k(s) ~ N(0, 1 / precision_k)
    precision_k ~ Gamma(1, 1)

A stretch s is a number of ratings of one user, without a pause longer than a minute (or ten, or an hour, or a day: each a kind
k of its own), or a number of ratings of one movie, one after the other. The means of users and movies move in time like this in
Koren, "Collaborative filtering with temporal dynamics" (KDD 2009), by the day of the user, and by the bin of time of the movie.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.parallel import take
from pmfcli.core.streams import gamma, normal
from pmfcli.errors import TrainingError

PAUSES = (60, 600, 3600, 86_400)  # seconds that end a stretch of a user
MOST_KINDS = len(PAUSES) + 1
_TOGETHER = 20  # ratings of a movie in a stretch
_EVER = 2**62
LARGEST_KEY = 2**62  # of a row and a second in one number


class Stretches(NamedTuple):
    """Stretches of one or several kinds, one kind after the other; ascending by row, then time, within a kind."""

    length: Tensor  # (kinds,) int64 how many of each kind
    of_movies: Tensor  # (kinds,) bool whose they are
    reach: Tensor  # (kinds,) int64 seconds before and after one that still belong to it
    row: Tensor  # (S,) int64 user or movie row
    start: Tensor  # (S,) int64 seconds since 1970
    end: Tensor  # (S,) int64

    def find(self, user: Tensor, movie: Tensor, time: Tensor) -> Tensor:
        """The stretch of each kind that ratings (n,) at a time (n,) belong to, (kinds, n); -1 where there is none."""
        found, first = [], 0
        for size, of_movies, reach in zip(self.length.tolist(), self.of_movies.tolist(), self.reach.tolist(), strict=True):
            own = slice(first, first + size)
            near = _nearest(self.row[own], self.start[own], self.end[own], movie if of_movies else user, time, reach)
            found.append(torch.where(near >= 0, near + first, -1))
            first += size
        return torch.stack(found)

    def without_dates(self) -> "Stretches":
        """The same without the dates of the ratings that stretches of movies begin and end with, which may be anybody's.

        A time belongs to the nearest of them, however far. So nothing changes where each ends half way to the next; the first
        of a movie begins where it ends, the last ends where it begins, and one that is alone is at 0.
        """
        of_movies = self.of_movies.repeat_interleave(self.length)
        kind = torch.arange(len(self.length)).repeat_interleave(self.length)
        follows, followed = torch.zeros_like(of_movies), torch.zeros_like(of_movies)  # another one of the same movie
        follows[1:] = of_movies[1:] & (kind.diff() == 0) & (self.row.diff() == 0)
        followed[:-1] = follows[1:]
        start, end = self.start.clone(), self.end.clone()
        half = (end[followed] + start[follows]) // 2
        end[followed], start[follows] = half, torch.minimum(half + 1, start[follows])
        first, last = of_movies & ~follows, of_movies & ~followed
        alone = first & last
        start[first], end[last] = end[first], start[last]
        start[alone], end[alone] = 0, 0
        return self._replace(start=start, end=end)


class Effects(NamedTuple):
    """The effects of one kind of stretch."""

    value: Tensor  # (stretches,) on the scale of z
    precision: Tensor  # ()


class Drift(NamedTuple):
    """Draws of the effects of all kinds."""

    stretches: Stretches
    value: Tensor  # (draws, S) half precision
    precision: Tensor  # (draws, kinds)
    usual_u: Tensor | None  # (draws, n_users) the mean effect over a user's ratings, half precision; None if users do not drift
    usual_v: Tensor | None  # (draws, n_movies) of movies


class Group(NamedTuple):
    """One kind of stretch of the training ratings."""

    of_movies: bool
    reach: int
    row: Tensor
    start: Tensor
    end: Tensor
    stretch: Tensor  # (n,) int32 that of every rating
    part: Tensor  # (stretches,) of the ratings of its row


def groups(user: Tensor, movie: Tensor, time: Tensor, users: bool, movies: bool) -> list[Group]:
    """The kinds of stretches of ratings (n,) at a time (n,): of users, movies, or both.

    Raises:
        TrainingError: the times are too far from each other to be seconds.
    """
    rows = 1 + max(int(user.max()), int(movie.max()))
    if rows * (int(time.max()) - int(time.min()) + 3) > LARGEST_KEY:
        raise TrainingError("the timestamps span too far to be seconds; leave --time out")
    of_users = [_group(False, user, time, pause, len(time)) for pause in PAUSES] if users else []
    of_movies = [_group(True, movie, time, _EVER, _TOGETHER)] if movies else []
    return of_users + of_movies


def stacked(kinds: Sequence[Group]) -> Stretches:
    """The stretches of several kinds, on the CPU."""
    return Stretches(
        torch.tensor([len(kind.row) for kind in kinds]),
        torch.tensor([kind.of_movies for kind in kinds]),
        torch.tensor([kind.reach for kind in kinds]),
        *(torch.cat([getattr(kind, name) for kind in kinds]).cpu() for name in ("row", "start", "end")),
    )


def init(group: Group, like: Tensor) -> Effects:
    """No effects, with precision 1."""
    return Effects(like.new_zeros(len(group.row)), like.new_ones(()))


def draw(effects: Effects, index: Tensor, weight: Tensor, error: Tensor, g: torch.Generator) -> tuple[Effects, Tensor]:
    """Effects, then their precision, given all else; and the new error.

    Args:
        index: (n,) the stretch of every rating. weight: (n,) precision of z. error: (n,) z less its mean.
    """
    value, precision = effects
    error = error + take(value, index)
    P = torch.zeros_like(value).index_add(0, index, weight) + precision
    value = torch.zeros_like(value).index_add(0, index, weight * error) / P + normal(tuple(value.shape), value, g) / P.sqrt()
    half = 0.5 * value.square().sum()
    precision = gamma(1 + half.new_full((), 0.5 * len(value)), 1 + half, g)
    return Effects(value, precision), error - take(value, index)


def total(values: Sequence[Tensor], kinds: Sequence[Group], like: Tensor) -> Tensor:
    """The sum of the effects (stretches,) of each kind for every training rating, (n,)."""
    found = torch.zeros_like(like)
    for value, kind in zip(values, kinds, strict=True):
        found = found + take(value, kind.stretch)
    return found


def usual(values: Sequence[Tensor], kinds: Sequence[Group], of_movies: bool, rows: int) -> Tensor | None:
    """The mean effect over a row's ratings, (draws, rows); None if the side does not drift.

    It is what to expect at a time that is not known: of effects and bias the data knows the sum better than the parts.

    Args:
        values: (draws, stretches) of each kind.
    """
    own = [(value, kind) for value, kind in zip(values, kinds, strict=True) if kind.of_movies == of_movies]
    if not own:
        return None
    found = own[0][0].new_zeros(len(values[0]), rows)
    for value, kind in own:
        found.index_add_(1, kind.row, value * kind.part)
    return found


def at_times(drift: Drift, user: Tensor, movie: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the effects of pairs at a time (n,), given each draw, (draws, n) both.

    Args:
        user, movie: (n,) rows, -1 where unknown. What falls in no stretch has its prior.
    """
    place = drift.stretches.find(user, movie, time)
    known = place >= 0
    value = drift.value[:, place.clamp(min=0)].float() * known
    return value.sum(1), (~known / drift.precision[:, :, None]).sum(1)


def at_no_time(drift: Drift, rows: Tensor, of_movies: bool) -> tuple[Tensor, Tensor]:
    """The same for users or movies (n,), -1 where unknown, of whose ratings it is not known when they are given."""
    own, means = drift.stretches.of_movies == of_movies, drift.usual_v if of_movies else drift.usual_u
    variance = (own / drift.precision).sum(1, keepdim=True).expand(-1, len(rows))
    mean = torch.zeros_like(variance) if means is None else means[:, rows.clamp(min=0)].float() * (rows >= 0)
    return mean, variance


def _group(of_movies: bool, row: Tensor, time: Tensor, pause: int, most: int) -> Group:
    order = torch.argsort(time, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    r, t = row[order].long(), time[order]
    other = torch.ones(len(r), dtype=torch.bool)
    other[1:] = r.diff() != 0
    place = torch.arange(len(r))
    within = place - torch.where(other, place, 0).cummax(0).values
    first = other | (within % most == 0)
    first[1:] |= t.diff() > pause
    last = torch.ones_like(first)
    last[:-1] = first[1:]
    index = torch.empty(len(r), dtype=torch.int32)
    index[order] = (first.cumsum(0) - 1).int()
    count = first.nonzero()[:, 0].diff(append=torch.tensor([len(r)])).float()
    of_row = torch.zeros(int(r[-1]) + 1).index_add(0, r[first], count)
    return Group(of_movies, pause, r[first], t[first], t[last], index, count / of_row[r[first]])


def _nearest(row: Tensor, start: Tensor, end: Tensor, of: Tensor, time: Tensor, reach: int) -> Tensor:
    """The nearest stretch of the row in time, at most ``reach`` away, (n,); -1 where there is none."""
    earliest, span = int(start.min()), int(end.max()) - int(start.min()) + 3
    t = time.clamp(earliest - 1, earliest + span - 2)
    before = torch.searchsorted(row * span + (start - earliest + 1), of * span + (t - earliest + 1), right=True) - 1
    away = []
    for place in (before, before + 1):
        at = place.clamp(0, len(row) - 1)
        far = torch.maximum(start[at] - time, time - end[at]).clamp(min=0)
        away.append(torch.where((place == at) & (row[at] == of) & (far <= reach), far, _EVER))
    near = torch.where(away[1] < away[0], before + 1, before)
    return torch.where(torch.minimum(*away) < _EVER, near, -1)
