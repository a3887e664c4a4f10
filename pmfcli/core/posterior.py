"""The papers' equations: link, likelihood, priors, posterior of probabilistic matrix factorization.

    t_ij ~ N(g(x_ij), sigma^2)          x_ij = m + b_i + c_j + U_i . V_j          g(x) = 1 / (1 + e^-x), or 1/2 + x/4
    U_i = Y_i + sum_{k rated by i} F_ik W_k + e_i sum_k q_k W_k          V_j = Z_j + sum_{l rated j} G_jl X_l

t are ratings mapped to [0, 1]; everything here is on that scale. Without W and X this is Salakhutdinov & Mnih, "Probabilistic
Matrix Factorization" (NIPS 2007), Eq. 1-4, with the logistic mean of its section 2; with W alone it is section 4, the
constrained model; with X the same idea serves the movies. The linear link is the tangent of the logistic one, so that the same
scales mean the same. Every function is a plain torch expression, so its gradient is exact.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pmfcli.core.parallel import take
from pmfcli.core.sparse import Pattern, sampled_dot, spmm
from pmfcli.core.team import WHOLE, Share

Link = Literal["sigmoid", "linear"]

_LOG_2PI = math.log(2 * math.pi)
_LEAST_SLOPE = 1e-3  # of the logistic link: beyond it a rating says nothing
SIGMA_PRIOR_SCALE = 100.0  # sigma ~ HalfNormal(100), as in the post


class Parameters(NamedTuple):
    """What is learned. A part that a model does not have is None."""

    Y: Tensor  # (n_users, latent) users' own factors
    Z: Tensor  # (n_movies, latent) movies' own factors
    W: Tensor | None  # (n_movies, latent) what rating a movie says of its rater
    X: Tensor | None  # (n_users, latent) what being rated by a user says of a movie
    b: Tensor | None  # (n_users,) user biases, logits
    c: Tensor | None  # (n_movies,) movie biases, logits
    sigma: Tensor  # () noise, on the unit scale


class Scales(NamedTuple):
    """Standard deviations of the zero-mean Gaussian priors, in logits."""

    sigma_u: float  # rows of Y
    sigma_v: float  # rows of Z
    sigma_w: float  # rows of W
    sigma_x: float  # rows of X
    sigma_b: float  # b and c


class Crowd(NamedTuple):
    """What is added to the prior means of users with few ratings: as much of what everybody rates as others have.

    e_i sum_k q_k W_k is added to (F W)_i, where q_k is the share of all ratings that are of movie k. For somebody who rates
    what everybody rates, F W is n_i^(1 - p) q W; e_i is how far n_i^(1 - p) is below its mean over ratings. Without it they
    would lack the part of how much everybody likes a movie that U . V, where others all have much of q W, takes over from c.
    """

    part: Tensor  # (n_users,) e
    share: Tensor  # (n_movies,) q
    typical: Tensor  # () the mean of n_i^(1 - p) over ratings

    def to(self, device: torch.device) -> "Crowd":
        """The same on another device."""
        return Crowd(*(part.to(device) for part in self))

    def mean(self, W: Tensor) -> Tensor:
        """q W, (..., d), of weights (..., n_movies, d)."""
        return self.share @ W

    def added_to(self, means: Tensor, mean_w: Tensor) -> Tensor:
        """F W of all users, (n_users, d), with it, by q W, (d,)."""
        return torch.addmm(means, self.part[:, None], mean_w[None])


class Observations(NamedTuple):
    """Ratings as the posterior needs them. Test pairs must not be among them: F and G are made from these pairs."""

    pattern: Pattern  # users x movies
    t: Tensor  # (n,) ratings on the unit scale, in pattern order
    F: Tensor  # (n,) weights of the users' hierarchical means, in pattern order; (0,) where they have none
    G: Tensor  # (n,) weights of the movies' hierarchical means, in the order of pattern.T; (0,) where they have none
    offset: float  # m, with g(m) the mean of t, or 0
    link: Link = "sigmoid"
    users: Share = WHOLE  # which of them these are
    movies: Share = WHOLE
    crowd: Crowd | None = None  # None: users have no hierarchical means, or movies are the rows

    def to(self, device: torch.device) -> "Observations":
        """The same observations on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("pattern", "t", "F", "G")}
        return self._replace(**moved, crowd=None if self.crowd is None else self.crowd.to(device))

    def flipped(self) -> "Observations":
        """The same with movies as rows and users as columns."""
        t = take(self.t, self.pattern.perm)
        return self._replace(pattern=self.pattern.T, t=t, F=self.G, G=self.F, users=self.movies, movies=self.users, crowd=None)

    def only(self, rows: slice | Tensor) -> tuple["Observations", Tensor]:
        """The ratings of some rows, but for G, and where these lie among all, (n,)."""
        pattern, place = self.pattern.rows(rows)
        t, F = take(self.t, place), take(self.F, place) if len(self.F) else self.F
        crowd = None if self.crowd is None else self.crowd._replace(part=self.crowd.part[rows])
        return self._replace(pattern=pattern, t=t, F=F, crowd=crowd), place

    def view(self, start: int, stop: int) -> "Observations":
        """The ratings of a range of rows, but for G."""
        first, last = int(self.pattern.crow[start]), int(self.pattern.crow[stop])
        crowd = None if self.crowd is None else self.crowd._replace(part=self.crowd.part[start:stop])
        return self._replace(pattern=self.pattern.view(start, stop), t=self.t[first:last], F=self.F[first:last], crowd=crowd)


class Factors(NamedTuple):
    """The effective factors: all that a prediction needs."""

    U: Tensor  # (n_users, latent)
    V: Tensor  # (n_movies, latent)
    b: Tensor | None  # (n_users,)
    c: Tensor | None  # (n_movies,)
    offset: float
    link: Link = "sigmoid"

    @classmethod
    def of(cls, users: Tensor, movies: Tensor, latent: int, offset: float, link: Link) -> "Factors":
        """From rows as [factors, bias], or factors alone."""
        b, c = (users[:, latent], movies[:, latent]) if users.shape[1] > latent else (None, None)
        return cls(users[:, :latent], movies[:, :latent], b, c, offset, link)


def observe(
    pattern: Pattern,
    t: Tensor,
    *,
    user_power: float = 0.5,
    movie_power: float = 0.25,
    rater_power: float = 0.25,
    user_means: bool = True,
    movie_means: bool = True,
    with_offset: bool = True,
    link: Link = "sigmoid",
    users: Share = WHOLE,
    typical: Tensor | None = None,
) -> Observations:
    """Prepare ratings: F_ik = n_i^-user_power and G_jl = m_j^-movie_power n_l^-rater_power, and ``Crowd``.

    Args:
        pattern: who rated what (users x movies). t: (n,) ratings in [0, 1], in its order.
        user_power: 1 is the divisor of NIPS 2007 Eq. 7.
        user_means, movie_means: whether F, and G, are wanted.
        users: which of them these are.
        typical: of ``Crowd``, if not that of these.
    """
    counts = users.team.sum(pattern.col_counts()).to(t.dtype)
    n_i, m_j = pattern.row_counts().clamp(min=1).to(t.dtype), counts.clamp(min=1)
    F = n_i.pow(-user_power)[pattern.row] if user_means else t[:0]
    G = m_j.pow(-movie_power)[pattern.T.row] * n_i.pow(-rater_power)[pattern.T.col] if movie_means else t[:0]
    n, total = users.team.sum(torch.stack([t.new_tensor(len(t), dtype=torch.float64), t.sum(dtype=torch.float64)]))
    crowd = None
    if user_means:
        if typical is None:
            typical = (users.team.sum(n_i.double().pow(1 - user_power) @ pattern.row_counts().double()) / n.clamp(min=1)).to(t)
        crowd = Crowd(crowd_part(pattern.row_counts(), typical, user_power), (counts / n.clamp(min=1)).to(t), typical)
    least = 0.5 / max(int(n), 1)  # if all ratings are at one end of the scale, the mean stays just inside it
    offset = float(inverse((total / n).clamp(least, 1 - least), link)) if with_offset else 0.0
    return Observations(pattern, t, F, G, offset, link, users, crowd=crowd)


def crowd_part(n: Tensor, typical: Tensor, power: float) -> Tensor:
    """``Crowd.part`` of users, (k,), or of one, ().

    Args:
        n: their numbers of ratings, (k,) or (). typical: () of ``Crowd``. power: of the users' hierarchical means.
    """
    own = n.clamp(min=1).to(typical).pow(1 - power) * (n > 0)
    return (typical - own).clamp(min=0)


def mean(x: Tensor, link: Link) -> Tensor:
    """g: logits to the unit scale. The linear one may leave [0, 1]."""
    return torch.sigmoid(x) if link == "sigmoid" else 0.5 + 0.25 * x


def slope(x: Tensor, link: Link) -> Tensor:
    """g', the derivative of ``mean``."""
    if link == "linear":
        return torch.full_like(x, 0.25)
    g = torch.sigmoid(x)
    return g * (1 - g)


def inverse(t: Tensor, link: Link) -> Tensor:
    """The x with g(x) = t."""
    return torch.logit(t) if link == "sigmoid" else 4 * t - 2


def linearise(x: Tensor, t: Tensor, sigma: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Gauss-Newton: the weight g'^2 / sigma^2 and the target x + (t - g) / g' of every rating, so that t ~ N(g(x), sigma^2)
    becomes target ~ N(x, 1 / weight), exactly for the linear link, near x for the other. All (n,).
    """
    rate = slope(x, link).clamp(min=_LEAST_SLOPE)
    target = inverse(t, link) if link == "linear" else x + (t - mean(x, link)) / rate
    return (rate / sigma).square(), target


def effective(parameters: Parameters, observations: Observations) -> Factors:
    """U = Y + F W, with what the crowd adds, and V = Z + G X."""
    p, o = parameters, observations
    U = p.Y
    if p.W is not None:
        means = spmm(o.F, p.W, o.pattern)
        U = U + (means if o.crowd is None else o.crowd.added_to(means, o.crowd.mean(p.W)))
    V = p.Z if p.X is None else p.Z + o.users.team.sum(spmm(o.G, p.X, o.pattern.T))
    return Factors(U, V, p.b, p.c, o.offset, o.link)


def score(factors: Factors, pattern: Pattern) -> Tensor:
    """x_ij for every pair of the pattern, (n,) logits."""
    return sampled_dot(*sides(factors), pattern) + factors.offset


def sides(factors: Factors) -> tuple[Tensor, Tensor]:
    """Users (n_users, d) and movies (n_movies, d), whose dot products are the x less the offset: biases as two more columns."""
    f = factors
    if f.b is None or f.c is None:
        return f.U, f.V
    users = torch.cat([f.U, f.b[:, None], torch.ones_like(f.b)[:, None]], 1)
    return users, torch.cat([f.V, torch.ones_like(f.c)[:, None], f.c[:, None]], 1)


def log_normal(x: Tensor, scale: float) -> Tensor:
    """Sum over all entries of log N(x | 0, scale^2)."""
    return -0.5 / scale**2 * _sum_of_squares(x) - x.numel() * (math.log(scale) + 0.5 * _LOG_2PI)


def log_likelihood(x: Tensor, t: Tensor, sigma: Tensor, link: Link) -> Tensor:
    """Sum over pairs of log N(t | g(x), sigma^2). NIPS 2007, Eq. 1, with a logistic mean as in the end of its section 2."""
    residual = mean(x, link) - t
    return -0.5 / sigma**2 * _sum_of_squares(residual) - t.numel() * (sigma.log() + 0.5 * _LOG_2PI)


def log_sigma_prior(sigma: Tensor) -> Tensor:
    """log HalfNormal(sigma | scale 100)."""
    return math.log(2) - math.log(SIGMA_PRIOR_SCALE) - 0.5 * _LOG_2PI - 0.5 * (sigma / SIGMA_PRIOR_SCALE) ** 2


def log_prior(parameters: Parameters, scales: Scales, share: float = 1.0) -> Tensor:
    """Log-density of all parameters under their priors. NIPS 2007, Eq. 2, and its section 4 for W.

    Args:
        share: weight of what all users share (Z, W, c, sigma); a block of users with a share of the ratings carries
            that share of it, so that the blocks add up to the whole.
    """
    p, s = parameters, scales
    own = log_normal(p.Y, s.sigma_u)
    shared = log_normal(p.Z, s.sigma_v) + log_sigma_prior(p.sigma)
    if p.X is not None:
        own = own + log_normal(p.X, s.sigma_x)
    if p.b is not None:
        own = own + log_normal(p.b, s.sigma_b)
    if p.W is not None:
        shared = shared + log_normal(p.W, s.sigma_w)
    if p.c is not None:
        shared = shared + log_normal(p.c, s.sigma_b)
    return own + share * shared


def log_posterior(parameters: Parameters, observations: Observations, scales: Scales) -> Tensor:
    """log p(t, parameters): the negative of the loss that the post prints. NIPS 2007, Eq. 3, constants included."""
    x = score(effective(parameters, observations), observations.pattern)
    return log_likelihood(x, observations.t, parameters.sigma, observations.link) + log_prior(parameters, scales)


def _sum_of_squares(x: Tensor) -> Tensor:
    found: Tensor = _SumOfSquares.apply(x)  # type: ignore[no-untyped-call]
    return found


class _SumOfSquares(torch.autograd.Function):
    """As a dot product, and its gradient in one pass over memory: a quarter of those of ``x.square().sum()``."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        flat = x.flatten()
        return flat @ flat

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return x * (2 * grad)
