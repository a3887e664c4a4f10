"""The noise of a rating at a mode, from how far ratings are from what it predicts: of all, and of each user.

    t_ij ~ N(g(x_ij), s_i sigma^2 + g'^2 (v_i + b v_j))        s_i = (nu m + sum_j e_ij^2 / e^2) / (nu + n_i)

v_i and v_j are what the conditional covariances of the user and of the movie add to Var x; e_ij are the errors at the mode of
the ratings that it was fitted to, e^2 their mean square, m the mean of s: who is new is like most people, and these rate
more noisily than those who rate much. sigma, and the doubt b of the movies, are the likeliest for ratings that were held out:
the priors and the noise of a fit are those that predict best, and need not be as wide as movies differ.
"""

import random

import torch
from torch import Tensor

from pmfcli.core.approximation import Laplace
from pmfcli.core.conditional import Gaussians
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.parallel import RATINGS
from pmfcli.core.posterior import Factors, Observations, mean, score
from pmfcli.core.predict import mixture
from pmfcli.core.rows import Rows, chunk, curvature, each_of, of_unknown_movies, stacked, users_of
from pmfcli.core.sparse import spmm
from pmfcli.core.team import Team, everywhere

_MOVIES_AMONG = 256  # movies at a time, whose ratings are several processes'
_NOISE_SAMPLE, _NOISE_STEPS, _LEAST_NOISE = 2000, 4, 1e-4
_SCORING_STEPS, _FAR = 5, 1.0  # of Fisher, in each of these; no farther than so much in a logarithm
_ALIKE = 5.0  # nu: the scale of a user with so many ratings is half their own


def chosen(n: int, laplace: Laplace, seed: int, team: Team) -> Tensor:
    """Which of so many ratings to find the noise from, (k,): of all the same, however many processes have some of them."""
    counts = everywhere(team, torch.tensor([n])).tolist()
    first, total = sum(counts[: team.rank]), sum(counts)
    drawn = random.Random(seed).sample(range(total), min(total, most_asked(laplace.precision_v.numel())))
    return torch.tensor([place - first for place in drawn if first <= place < first + n], dtype=torch.int64)


def most_asked(numbers: int) -> int:
    """From how many ratings the noise is found, where a covariance has so many numbers."""
    return min(_NOISE_SAMPLE, chunk(numbers))


@torch.no_grad()
def scaled(laplace: Laplace, observations: Observations, some: Tensor | None = None) -> Laplace:
    """The same with the noise scales of users, and the error that is usual.

    Args:
        some: (n,) users of a sample of ratings, to tell from these alone, as often as they are in it: others have the mean.
    """
    rows, times, own, f = None, observations.pattern.row_counts(), observations, laplace.factors
    if some is not None:
        rows, times = some.unique(return_counts=True)
        own, f = observations.only(rows)[0], f._replace(U=f.U[rows], b=None if f.b is None else f.b[rows])
    sums, counts, team = squared_errors(f, own), own.pattern.row_counts(), observations.users.team
    each = times.double() / counts.clamp(min=1)
    heard = each / (_ALIKE + counts.double())
    total, n, excess, weight = team.sum(torch.stack([each @ sums, times.sum().double(), heard @ sums, heard @ counts.double()]))
    if not weight:  # nobody of theirs has a rating
        return laplace
    usual = (total / n).sqrt()
    centre = excess / usual.square() / weight  # where the mean of the scales is that
    scale = noise_scales(sums, counts, usual, centre)
    every = scale if rows is None else centre.to(scale).expand(len(laplace.noise_u)).index_copy(0, rows, scale)
    return laplace._replace(noise_u=every, residual=usual.float())


def squared_errors(factors: Factors, o: Observations) -> Tensor:
    """The sum of the squared errors of each row, (rows,), in double precision; each is at least the least noise."""
    sums = torch.zeros(o.pattern.shape[0], dtype=torch.float64, device=o.t.device)
    for start, stop in o.pattern.blocks(RATINGS):
        part, b = o.view(start, stop), factors.b
        x = score(factors._replace(U=factors.U[start:stop], b=None if b is None else b[start:stop]), part.pattern)
        square = (mean(x, o.link).clamp(0, 1) - part.t).double().square().clamp(min=_LEAST_NOISE**2)
        sums[start:stop] = spmm(square, square.new_ones(part.pattern.shape[1], 1), part.pattern)[:, 0]
    return sums


def noise_scales(sums: Tensor, counts: Tensor, usual: Tensor, centre: Tensor) -> Tensor:
    """s_i, (rows,), from sums of squared errors over so many ratings, the error that is usual, and the mean of s."""
    return ((_ALIKE * centre + sums / usual.square()) / (_ALIKE + counts)).float()


@torch.no_grad()
def estimate_noise(laplace: Laplace, seen: Seen, pairs: Pairs, t: Tensor, fitted: bool, team: Team) -> tuple[Tensor, Tensor]:
    """The noise of a rating at a mode, on the unit scale, and the doubt of movies, () each. The sigma of a fit may be fixed at
    more than the noise, against overfitting.

    Of ratings that the mode was fitted to: sigma^2 = mean of ((t - g)^2 + g'^2 Var x) / s, the noise step of EM (``em.py``)
    with the mode's covariances; they say nothing of the doubt, which is 1.

    Args:
        pairs, t: (n,) pairs and their ratings on the unit scale.
        team: processes that have some of the users, and of the pairs, each.
    """
    noise = laplace.noise.double()
    doubt = torch.ones_like(noise)
    laplace = laplace._replace(doubt=torch.ones_like(laplace.doubt))
    users, movies = each_of(laplace, seen, pairs) if team.size == 1 else _each_among(laplace, seen, pairs, team)
    of_users, of_movies = _directions(users[0], laplace.precision_u), _directions(movies[0], laplace.precision_v)
    scale = 1 / users[0].gamma[0].double()[users[1]]
    for _ in range(_NOISE_STEPS):
        times = (laplace.noise.double() / noise).square()
        u, v = _heard(*users, of_users, times, pairs.user_known), _heard(*movies, of_movies, times, pairs.movie_known)
        silent = laplace._replace(noise=torch.zeros_like(laplace.noise))
        found, alone = mixture(silent, u, v), mixture(silent, u, v._replace(covariance=None))
        square = (t - found.centre[0]).double().square()
        both, own = found.spread[0].double().square(), alone.spread[0].double().square()
        if fitted:
            total, n = team.sum(torch.stack([((square + both) / scale).sum(), noise.new_tensor(len(t))]))
            noise = (total / n).sqrt().clamp(min=_LEAST_NOISE)
        else:
            noise, doubt = _likeliest(square, scale, own, both - own, noise, doubt, laplace.residual.double(), team)
    return noise.to(laplace.noise), doubt.to(laplace.doubt)


def _likeliest(
    square: Tensor, scale: Tensor, own: Tensor, of_movies: Tensor, noise: Tensor, doubt: Tensor, usual: Tensor, team: Team
) -> tuple[Tensor, Tensor]:
    """Noise and doubt by Fisher scoring of their logarithms: e ~ N(0, s_i sigma^2 + v_i + b v_j), with log b and
    log (sigma^2 / usual^2) ~ N(0, 1): where the priors of rows explain all errors, the noise is about that of training.

    Args:
        square, scale, own, of_movies: (n,) e^2, s_i, v_i and v_j. usual: () error of the ratings that the mode is fitted to.
    """
    for _ in range(_SCORING_STEPS):
        parts = torch.stack([scale * noise.square(), doubt * of_movies])
        variance = parts[0] + own + parts[1]
        part = parts / variance
        slope, bend = part @ (square / variance - 1), part @ part.mT
        slope, bend = team.sum(0.5 * torch.cat([slope[:, None], bend], 1)).split([1, 2], 1)
        slope[:, 0] -= torch.stack([2 * (noise / usual).log(), doubt.log()])
        bend += torch.eye(2).to(bend)
        step = torch.linalg.solve(bend, slope)[:, 0].clamp(-_FAR, _FAR)
        noise, doubt = (noise * (0.5 * step[0]).exp()).clamp(min=_LEAST_NOISE), doubt * step[1].exp()
    return noise, doubt


def _directions(rows: Rows, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances as D diag(left) D' with D D' the prior's: (rows, d), of 0 to 1, and D (rows, d, d), in double precision.

    In these directions what ratings say adds up to the prior number by number, and no rounding makes a variance negative.
    """
    assert rows.covariance is not None
    R = torch.linalg.cholesky(prior.double())
    left, Q = torch.linalg.eigh(R.mT @ rows.covariance.double() @ R)
    return left.clamp(0, 1), torch.linalg.solve_triangular(R.mT, Q, upper=True)


def _heard(rows: Rows, at: Tensor, directions: tuple[Tensor, Tensor], times: Tensor, known: Tensor) -> Rows:
    """The rows of pairs whose ratings are so many times as precise as when ``directions`` were found.

    Args:
        at, known: (n,) of each pair.
    """
    left, D = directions
    scaled = (D * (left / (left + times * (1 - left)))[..., None, :]) @ D.mT
    assert rows.covariance is not None
    heard = torch.zeros(rows.A.shape[1], dtype=torch.bool).index_put((at,), known)
    return rows._replace(covariance=torch.where(heard[:, None, None], scaled.to(rows.A), rows.covariance)).at(at)


def _each_among(p: Laplace, seen: Seen, pairs: Pairs, team: Team) -> tuple[tuple[Rows, Tensor], tuple[Rows, Tensor]]:
    """As ``each_of``, of pairs whose users are this process's; the ratings of their movies are everybody's."""
    user, user_at = pairs.rows()[0].unique(return_inverse=True)
    V = stacked(p.factors.V, p.factors.c)
    wanted = torch.zeros(len(V), dtype=torch.int64)
    wanted[pairs.movie[pairs.movie_known]] = 1
    rows = torch.nonzero(team.sum(wanted))[:, 0]
    covariance = torch.cat([_curvature_among(p, seen, part, team).covariance() for part in rows.split(_MOVIES_AMONG)])
    known = pairs.movie_known
    at = torch.searchsorted(rows, pairs.movie).clamp(max=len(rows) - 1)
    A = torch.where(known[:, None], V[pairs.movie], 0.0)
    covariance = torch.where(known[:, None, None], covariance[at], of_unknown_movies(p))
    movies = Rows(A[None], A.new_ones(1, len(A)), covariance[None], ~known)
    return (users_of(p, seen, user), user_at), (movies, torch.arange(len(A)))


def _curvature_among(p: Laplace, seen: Seen, movies: Tensor, team: Team) -> Gaussians:
    U, V = stacked(p.factors.U, p.factors.b), stacked(p.factors.V, p.factors.c)
    start, user = seen.raters_of(movies, len(V))
    of = torch.arange(len(movies)).repeat_interleave(start.diff())
    return curvature(p, of, V[movies], user.long(), U, p.precision_v, team)
