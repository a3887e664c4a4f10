"""Prior scales of a mode where none are given, from the ratings: of biases, and of X."""

import math

import torch
from torch import Tensor

from pmfcli.core.parallel import RATINGS, by_parts
from pmfcli.core.posterior import Observations, inverse, slope

_BIASES, _ROWS = 0.5, 50.0  # scale of biases, in logits, that so many rows beside those of the data have
_MOST = 1.5
_PARTS = 16  # at most, in which ratings are added up: each has a sum of every row
_MEANS, _WIDE = 0.4, 0.6  # scale of X, and up to which width of the means of movies: on MovieLens latest-small it is 0.5
_EDGE = 0.05  # of the unit scale: a mean as near to its ends has the slope of this one


def bias_scale(o: Observations) -> float:
    """The standard deviation of biases, in logits at the mean rating: of users and movies together, each row counted alike.

    By moments: of one side's rows i with n_i of N ratings, in R rows (one-way analysis of variance with unequal numbers:
    Searle, Casella & McCulloch, Variance Components, 1992, section 3.6):

        within = sum_i sum_j (t_ij - t_i)^2 / (N - R)      between = (sum_i n_i (t_i - t)^2 / (R - 1) - within) / n_0
        n_0 = (N - sum_i n_i^2 / N) / (R - 1)

    It is at least the one that is best on MovieLens: where biases are nearer to each other (.27 on planted ratings), the mode,
    whose noise is meant to be larger than that of ratings, predicts worse by less.
    """
    pattern, t, team = o.pattern, o.t, o.users.team
    of_users = torch.stack([pattern.row_counts().double(), _totals(pattern.row, t, pattern.shape[0])])
    of_movies = team.sum(torch.stack([pattern.col_counts().double(), _totals(pattern.col, t, pattern.shape[1])]))
    squares = torch.stack(by_parts(lambda some: t[some].double().square().sum(), len(t), t.device, RATINGS)).sum()
    n, total, squared = team.sum(torch.stack([*of_users.sum(1), squares])).tolist()
    mean = torch.tensor(min(max(total / n, _EDGE), 1 - _EDGE))
    rate = float(slope(inverse(mean, o.link), o.link))
    variance, rows = _ROWS * _BIASES**2, _ROWS
    for side in (team.sum(_told(of_users)), _told(of_movies)):
        groups, of_counts, of_means = side.tolist()
        if not 1 < groups < n:
            continue  # one row, or one rating in each: nothing tells rows from noise
        within = (squared - of_means) / (n - groups)
        between = ((of_means - total**2 / n) / (groups - 1) - within) / ((n - of_counts / n) / (groups - 1))
        variance, rows = variance + groups * max(between, 0.0) / rate**2, rows + groups
    return min(max(math.sqrt(variance / rows), _BIASES), _MOST)


def means_scale(o: Observations) -> float:
    """The standard deviation of X: less than usual where many people with few ratings each would make movies' means wide.

    The width is the mean over ratings of sum_l G_jl^2 for their movie j, by which the variance of (G X)_j is that of X.
    """
    pattern, team = o.pattern.T, o.users.team
    counts = team.sum(o.pattern.col_counts()).double()

    def of(some: slice) -> Tensor:
        return (counts[pattern.row[some]] * o.G[some].double().square()).sum()

    squares = torch.stack(by_parts(of, pattern.n, o.t.device, RATINGS)).sum()
    total, n = team.sum(torch.stack([squares, counts.new_tensor(pattern.n)])).tolist()
    return _MEANS * math.sqrt(min(1.0, _WIDE * n / total))


def _totals(row: Tensor, t: Tensor, rows: int) -> Tensor:
    """The sum of the ratings of each row, (rows,) float64."""

    def of(some: slice) -> Tensor:
        return torch.bincount(row[some], t[some].double(), minlength=rows)

    return torch.stack(by_parts(of, len(t), t.device, max(RATINGS, -(-len(t) // _PARTS)))).sum(0)


def _told(sums: Tensor) -> Tensor:
    """Of how many ratings rows have, n_i, and of their sums, (2, rows): rows that have any, sum n_i^2, sum n_i t_i^2: (3,)."""
    n, total = sums[:, sums[0] > 0]
    return torch.stack([n.new_tensor(float(len(n))), n.square().sum(), (total.square() / n).sum()])
