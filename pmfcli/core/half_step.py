"""Half steps of least squares: every row of one side at the mean of its conditional (``conditional.py``), given the other side.

Exactly the optimum for the linear link, a Gauss-Newton step for the logistic one, shortened where it would not improve.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.conditional import Gaussians, Prior, conditional, features, pack, unpack
from pmfcli.core.parallel import by_blocks
from pmfcli.core.posterior import Factors, Observations, linearise, mean, score
from pmfcli.core.sparse import spmm

_HALVINGS = 3
_ROUNDING = 8  # units in the last place by which a cost may seem worse: at the optimum all steps do, half the time
_MOST_HALF_STEPS, _STILL = 50, 1e-5  # of rows that settle: at most so many; until no number moves by more
_NEW_CURVATURES = 2  # of them
_FEW = 8  # if no more than one in so many still moves, the others are left where they are


class Side(NamedTuple):
    """The rows of one side, as [factors, bias], or factors alone."""

    A: Tensor  # (rows, d) means
    spread: Tensor | None  # (rows, d (d + 1) / 2) packed covariances, where something is learned
    precision: Tensor  # (d, d) of the rows' own parts
    W: Tensor | None  # (columns, latent)
    M: Tensor  # (rows, d) prior means F W; 0 for the bias
    lam: Tensor  # (latent,) precision of W, relative to that of the rows


class _Given(NamedTuple):
    """What the objective of some rows is of, beside them."""

    other: Side
    o: Observations
    sigma: Tensor  # ()
    k: int  # features

    def x(self, A: Tensor) -> Tensor:
        """x of every rating, (n,), by rows (rows, d)."""
        return score(Factors.of(A, self.other.A, self.k, self.o.offset, self.o.link), self.o.pattern)


class _Spread(NamedTuple):
    """What the covariances of the columns add to the objective of rows: A' among A + 2 A . pull."""

    among: Tensor  # (rows, d, d)
    pull: Tensor  # (rows, d)


def factors_of(rows: Side, columns: Side, o: Observations, k: int) -> Factors:
    """The effective factors, with ``k`` features."""
    return Factors.of(rows.A, columns.A, k, o.offset, o.link)


def _factor_spread(spread: Tensor, d: int, k: int) -> Tensor:
    """The packed covariance of the features: that of the factors; the 1 is certain."""
    if d == k:
        return spread
    _, j = torch.triu_indices(d, d, device=spread.device)
    found: Tensor = spread * (j < k).to(spread)
    return found


@torch.no_grad()
def settle(
    rows: Tensor, prior: Prior, columns: Tensor, spread: Tensor | None, observations: Observations, sigma: Tensor, latent: int
) -> Tensor:
    """Rows at the mode of their conditional, (rows, d), all else as it is: half steps until they stand still.

    After the first few the curvature hardly changes, and is kept: the way is longer, but a step far cheaper. Where a few rows
    are left that still move, it is theirs that does change: they go on alone, with a new one at each step.

    Args:
        rows: (rows, d) start, as [factors, bias] or factors alone. prior: of the rows, one precision for all.
        columns: (columns, d) the other side. spread: (columns, d (d + 1) / 2) its packed covariances, if they count.
    """
    o, none = observations, rows.new_zeros(0)
    other = Side(columns, spread, prior.precision, None, torch.zeros_like(columns), none)

    def settled(start: int, stop: int) -> Tensor:
        part, left = o.view(start, stop), torch.arange(stop - start, device=rows.device)
        A, M = rows[start:stop].clone(), prior.mean[start:stop]
        side = Side(A, None, prior.precision, None, M, none)
        for number in range(_MOST_HALF_STEPS):
            given = _Given(other, part, sigma, latent)
            if spread is not None or number < _NEW_CURVATURES or len(left) < len(A):
                now, found = _solved(side, given)
            else:
                now = _again(side, given, found)
            moves = (now - side.A).abs().amax(1) > _STILL
            side, A[left] = side._replace(A=now), now
            moving = int(moves.sum())
            if o.link == "linear" or not moving:
                break
            if moving * _FEW <= len(left):
                left = left[moves]
                side, part = side._replace(A=A[left], M=M[left]), part.only(torch.nonzero(moves)[:, 0])[0]
        return A

    return torch.cat(by_blocks(settled, o.pattern, prior.precision.numel()))


def half_step(side: Side, other: Side, o: Observations, sigma: Tensor, k: int) -> Side:
    """Every row at the mean of its conditional, with its covariance if that is kept."""

    def solved(start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        spread = None if side.spread is None else side.spread[start:stop]
        part = side._replace(A=side.A[start:stop], M=side.M[start:stop], spread=spread)
        A, found = _solved(part, _Given(other, o.view(start, stop), sigma, k))
        return A, None if spread is None else pack(found.covariance())

    shared = o.movies.team.size > 1  # its processes add up the same blocks at the same time
    A, spread = zip(*by_blocks(solved, o.pattern, side.precision.numel(), in_order=shared), strict=True)
    return side._replace(A=torch.cat(A), spread=None if side.spread is None else torch.cat(spread))


def _solved(side: Side, given: _Given) -> tuple[Tensor, Gaussians]:
    """A half step of some rows: where it leads, (rows, d), and the conditional that says so."""
    other, o, sigma, k = given
    d = side.A.shape[1]
    x = o.t if o.link == "linear" else given.x(side.A)  # the linear link looks at t alone
    weight, seen = linearise(x, o.t, sigma, o.link)
    target = seen - o.offset
    if d > k:
        target = target - other.A[:, k].index_select(0, o.pattern.col)
    second = None if other.spread is None else _factor_spread(other.spread, d, k)
    prior_mean, pull = side.M, torch.zeros_like(side.A)
    if other.spread is not None and d > k:  # a column's factors and bias are correlated: E f (z - c) counts that
        i, j = torch.triu_indices(d, d, device=x.device)
        together = torch.zeros_like(other.A)
        together[:, :k] = other.spread[:, (j == k) & (i < k)]
        pull = spmm(weight, together, o.pattern)
        prior_mean = prior_mean - torch.linalg.solve(side.precision, pull.mT).mT
    prior = Prior(prior_mean, side.precision)
    found = conditional(o.pattern, features(other.A, k), weight, target, prior, second, o.movies.team)
    A = found.mean
    if o.link != "linear":
        added = None if second is None else _Spread(unpack(spmm(weight, second, o.pattern), d), pull)
        A = _shortened(side, given, A, x, added)
    return A, found


def _again(side: Side, given: _Given, near: Gaussians) -> Tensor:
    """A half step with the curvature of one before, (rows, d), where the other side is certain: by the gradient alone."""
    other, o, sigma, k = given
    x = given.x(side.A)
    weight, seen = linearise(x, o.t, sigma, o.link)
    gradient = o.movies.team.sum(spmm(weight * (seen - x), features(other.A, k), o.pattern))
    gradient = gradient + (side.M - side.A) @ side.precision
    return _shortened(side, given, side.A + near._replace(shift=gradient).mean, x)


def _shortened(side: Side, given: _Given, A: Tensor, x: Tensor, added: _Spread | None = None) -> Tensor:
    """A Gauss-Newton step of each row, halved until its own objective is not worse.

    Args:
        A: (rows, d) where it leads. x: (n,) where it starts.
    """
    o = given.o

    def cost(A: Tensor, x: Tensor) -> Tensor:
        off = A - side.M
        error = ((o.t - mean(x, o.link)) / given.sigma).square()
        total = o.movies.team.sum(spmm(error, error.new_ones(o.pattern.shape[1], 1), o.pattern))[:, 0]
        total = total + ((off @ side.precision) * off).sum(1)
        return total if added is None else total + ((A[:, None] @ added.among)[:, 0] * A + 2 * A * added.pull).sum(1)

    before = cost(side.A, x) * (1 + _ROUNDING * torch.finfo(A.dtype).eps)
    for _ in range(_HALVINGS):
        worse = cost(A, given.x(A)) > before
        if not worse.any():
            return A
        A = torch.where(worse[:, None], 0.5 * (A + side.A), A)
    return torch.where((cost(A, given.x(A)) > before)[:, None], side.A, A)
