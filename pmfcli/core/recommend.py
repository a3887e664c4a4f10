"""The best movies for people, in blocks of them: score all movies, leave out what they rated, keep the first few."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pmfcli.core.approximation import Laplace
from pmfcli.core.kinds import Movies, People, Posterior, Views, chunk_of, movies_of, predictive
from pmfcli.core.pairs import Seen
from pmfcli.core.rows import Rows, stacked

Rank = Literal["mean", "lower", "upper"]
_BLOCK = 1024  # movies scored at a time, which a cache holds
_SCORES, _CHOSEN = 1 << 23, 1 << 16  # of a block of people: scores, and movies that are chosen


class Best(NamedTuple):
    """The movies that were chosen, person after person, the best first."""

    person: Tensor  # (k,) place among the people, ascending
    movie: Tensor  # (k,) rows


def block_of(posterior: Posterior, movies: int, n: int) -> int:
    """How many people to choose for at a time, so that memory is bounded, where ``n`` of so many movies are chosen for each."""
    return max(1, min(_SCORES // max(1, movies), _CHOSEN // n, chunk_of(posterior)))


@torch.no_grad()
def best(
    posterior: Posterior,
    seen: Seen,
    who: People,
    movies: Tensor,
    but: tuple[Tensor, Tensor],
    n: int,
    by: Rank,
    interval: float,
) -> Best:
    """The ``n`` movies with the highest rank for each of some people, or as many as there are; ties go by row.

    Args:
        movies: (m,) ascending rows to choose from.
        but: who, by place, (k,), and a movie row, (k,): pairs to leave out.
    """
    scores = rank(posterior, seen, who, movies, by, interval)
    person, movie = but
    column = torch.searchsorted(movies, movie)
    there = torch.cat([movies, movies.new_full((1,), -1)])[column] == movie
    scores[person[there], column[there]] = -math.inf
    chosen = _first(scores, n)
    left = scores.gather(1, chosen) > -math.inf
    return Best(torch.nonzero(left)[:, 0], movies[chosen[left]])


@torch.no_grad()
def rank(posterior: Posterior, seen: Seen, who: People, movies: Tensor, by: Rank, interval: float) -> Tensor:
    """What movies (n,) are ranked by for people, (people, n): the predictive mean, or what rises with it, or an end of the
    interval.
    """
    if by == "mean" and isinstance(posterior, Laplace) and isinstance(who, Rows):
        return _scores(posterior, who.A[0], movies)
    if by == "mean" and isinstance(who, Rows) and who.share is None:  # it does not depend on the covariance
        who = who._replace(covariance=None)
    each = [who.at(torch.tensor([person])) for person in range(_count(who))]
    scores, alone = torch.empty(len(each), len(movies)), torch.tensor([0])
    for block in torch.arange(len(movies)).split(min(_BLOCK, chunk_of(posterior))):
        its: Movies = movies_of(posterior, seen, movies[block])
        for row, person in zip(scores, each, strict=True):
            said = predictive(posterior, person, alone, its)
            row[block] = said.mean() if by == "mean" else said.by_end(interval, upper=by == "upper")
    return scores


def _scores(p: Laplace, users: Tensor, movies: Tensor) -> Tensor:
    """x of users (u, d) and movies (n,), (u, n): of a mode the predictive mean rises with it up to the ends of the scale, where
    it tells apart what lies beyond.

    It is summed in double precision, so as not to depend on which users are in the block.
    """
    k, offset, _ = p.head
    U, V = users.double(), stacked(p.factors.V, p.factors.c)[movies].double()
    b, c = (A[:, k:].sum(1, keepdim=True) for A in (U, V))  # 0 where there are none
    left = torch.cat([U[:, :k], b + offset, torch.ones_like(b)], 1)
    right = torch.cat([V[:, :k], torch.ones_like(c), c], 1)
    return (left @ right.mT).float()


def _first(scores: Tensor, n: int) -> Tensor:
    """The columns of the ``n`` highest scores of each row, the highest first, ties by column: a stable sort, for less."""
    if n >= scores.shape[1]:
        return torch.sort(scores, dim=1, descending=True, stable=True).indices
    values, found = scores.topk(n + 1)
    last = values[:, n - 1 : n]
    tied = (last == values[:, n:])[:, 0]
    if bool(tied.any()):  # for the last place: the first columns of those, after all that are above them
        some, last = scores[tied], last[tied]
        place = torch.where(some == last, -torch.arange(scores.shape[1]).double(), -math.inf)
        found[tied] = torch.where(some > last, 1.0, place).topk(n + 1).indices
    found = found[:, :n].sort(1).values
    order = torch.sort(scores.gather(1, found), dim=1, descending=True, stable=True).indices
    return found.gather(1, order)


def _count(who: People) -> int:
    if isinstance(who, Views):
        return _count(who.of[0])
    return who.A.shape[1] if isinstance(who, Rows) else len(who.b)
