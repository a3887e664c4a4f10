"""From a posterior to answers: the predictive distribution of any pair, known or not."""

import torch
from torch import Tensor

from pmfcli.core import ordinal
from pmfcli.core.approximation import Draws, Fitted, Laplace
from pmfcli.core.conditional import features
from pmfcli.core.drift import at_times
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Factors, mean, sides, slope
from pmfcli.core.predictive import Masses, Mixture, Predictive
from pmfcli.core.rows import Rows, rows_of
from pmfcli.core.team import WHOLE, Share

_LEFT = 0.25  # of the variance of a rating as a number, at least, once it is a step
_AT_ONCE = 1 << 13  # pairs whose means alone are wanted: their rows stay in the cache


@torch.no_grad()
def predictive(posterior: Fitted, users: Rows, movies: Rows) -> Predictive:
    """The predictive distributions of pairs: users and movies aligned, or one of them alone for all of the others."""
    found = mixture(posterior, users, movies)
    if users.share is None:
        return found
    if isinstance(posterior, Laplace):
        return _in_steps(posterior, users.share, found)
    assert posterior.ordinal is not None
    return Masses(ordinal.masses(posterior.ordinal.cuts, users.share, found.centre, found.spread), posterior.ordinal.grid)


@torch.no_grad()
def mixture(posterior: Fitted, users: Rows, movies: Rows) -> Mixture:
    """The same before a rating becomes a step of the scale; for a model of ratings as numbers that is the answer itself."""
    k, offset, link = posterior.head
    left, right = users.A[..., :k], movies.A[..., :k]
    one = left.shape[1] == 1  # a user for all movies: a product of matrices
    x = ((right @ left.mT)[..., 0] if one else (left * right).sum(-1)) + offset
    if users.A.shape[-1] > k:
        x = x + users.A[..., k] + movies.A[..., k]
    if isinstance(posterior, Laplace):
        noise = posterior.noise.square() / users.gamma  # movies have none
    else:
        noise = 0.0625 / (posterior.alpha[:, None] * users.gamma * movies.gamma)  # dt = dx / 4
    for rows in (users, movies):
        if rows.drift is not None:
            x, noise = x + rows.drift[0], noise + 0.0625 * rows.drift[1]
    variance = noise + slope(x, link).square() * _variance(users, movies, k, at_mode=isinstance(posterior, Laplace))
    return Mixture(mean(x, link), variance.sqrt().expand_as(x))


@torch.no_grad()
def predict_pairs(posterior: Fitted, seen: Seen, pairs: Pairs) -> Predictive:
    """The predictive distributions of pairs, known or not, given which ratings the posterior saw."""
    users, movies = rows_of(posterior, seen, pairs)
    if isinstance(posterior, Draws) and posterior.drift is not None and pairs.time is not None:
        users = users._replace(drift=at_times(posterior.drift, *pairs.rows(), pairs.time))
        movies = movies._replace(drift=None)
    return predictive(posterior, users, movies)


@torch.no_grad()
def means_of_pairs(factors: Factors, pairs: Pairs, users: Share = WHOLE) -> Tensor:
    """The predictive means alone, (n,), of factors that are still in training.

    Args:
        users: which of all the factors are of.
    """
    U, V = sides(factors)
    nobody = V.new_zeros(V.shape[1])
    if V.shape[1] > factors.V.shape[1]:
        nobody[-2] = 1  # what the user's bias is multiplied by
    U, V = torch.cat([U, users.mean(U)[None]]), torch.cat([V, nobody[None]])  # the last rows are of those unknown
    user = torch.where(pairs.user_known, pairs.user, len(U) - 1)
    movie = torch.where(pairs.movie_known, pairs.movie, len(V) - 1)
    found = []
    for i, j in zip(user.split(_AT_ONCE), movie.split(_AT_ONCE), strict=True):
        x = torch.linalg.vecdot(U.index_select(0, i), V.index_select(0, j)) + factors.offset
        found.append(mean(x, factors.link).clamp(0, 1))
    return torch.cat(found)


def _in_steps(p: Laplace, share: Tensor, said: Mixture) -> Masses:
    """What a mode says of ratings as numbers, in the steps that people take. It predicts the same."""
    assert p.usage is not None
    groups, square = p.usage.groups, said.spread.square()
    within = share @ groups.rounding  # which the noise of numbers has in it
    spread = (square - within).maximum(_LEFT * square).sqrt()
    exact = (groups.cuts[None], share, said.centre, spread)  # probabilities near 1 are apart, too
    mass = ordinal.masses(*(part.double() for part in exact)).to(share)
    return Masses(mass, p.usage.grid, said.mean())


def _variance(users: Rows, movies: Rows, k: int, at_mode: bool) -> Tensor:
    """Var x of pairs given the draw, rows independent, (draws, n).

    At a mode the product of two covariances counts only where neither row is known. Rows keep their priors where ratings say
    nothing, and in features that no rating needs these multiply to a variance that the ratings as a whole contradict.
    """
    total = users.A.new_zeros(())
    for own, other in ((users, movies), (movies, users)):
        if own.covariance is not None:
            part = _quadratic(features(other.A, k), own.covariance)
            total = total + (part if at_mode else _only(part, own.unknown))
    known = users.unknown is None or movies.unknown is None
    if users.covariance is not None and movies.covariance is not None and not (at_mode and known):
        among = (users.covariance[..., :k, :k] * movies.covariance[..., :k, :k]).sum((-2, -1))
        total = total + _only(_only(among, users.unknown), movies.unknown)
    return total


def _only(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values * rows


def _quadratic(f: Tensor, C: Tensor) -> Tensor:
    """f' C f for f (draws, n, d) and C (draws, 1 or n, d, d); one f serves all C, one C all f."""
    if C.shape[1] == 1:
        return ((f @ C[:, 0]) * f).sum(-1)
    return ((C @ f[..., None])[..., 0] * f).sum(-1)
