"""What a fit leaves of the posterior: a mode with its curvature, or draws.

``Laplace`` is a mode with the covariance of each row given the other side: a Gaussian with the curvature that the posterior has
there. ``Draws`` are draws of everything, from ``gibbs.py``.
"""

from typing import NamedTuple

from torch import Tensor

from pmfcli.core.drift import Drift
from pmfcli.core.posterior import Factors, Link, Parameters
from pmfcli.core.usage import Usage


class Head(NamedTuple):
    """How factors become a rating."""

    latent: int
    offset: float
    link: Link


class Common(NamedTuple):
    """What hierarchical means of users have beside their own ratings (``posterior.Crowd``), as it was in training."""

    mean_w: Tensor  # (latent,) of a mode, (draws, d) of draws: q W
    typical: Tensor  # ()


class Laplace(NamedTuple):
    """A mode, with what its curvature needs."""

    factors: Factors
    parameters: Parameters
    precision_u: Tensor  # (d, d) of the prior of a user's own row: factors, then the bias if there is one
    precision_v: Tensor  # (d, d) of a movie's
    noise: Tensor  # () standard deviation of a rating on the unit scale; the sigma of the fit may be fixed, this is not
    noise_u: Tensor  # (n_users,) the variance of a user's ratings is as many times that of the noise
    residual: Tensor  # () root mean square error of the ratings that it was fitted to: of a user with scale 1
    doubt: Tensor  # () how many times as uncertain as by their curvature the movies are, held-out ratings say
    mean_field: bool  # whether a row is fitted to the distribution of the other side's rows (EM), or to their mode alone
    usage: Usage | None = None  # how people use the steps of the scale; None: ratings are numbers
    common: Common | None = None  # None: users have no hierarchical means
    spread_v: Tensor | None = None  # (n_movies, d (d + 1) / 2) packed covariance of the movies, by ``ready``; None: not yet

    @property
    def grid(self) -> Tensor | None:
        """The different ratings, on the unit scale, (K,); None if ratings are numbers."""
        return None if self.usage is None else self.usage.grid

    @property
    def head(self) -> Head:
        """How factors become a rating."""
        return Head(self.factors.U.shape[1], self.factors.offset, self.factors.link)


class Weights(NamedTuple):
    """What rating a movie says of its rater."""

    W: Tensor  # (draws, n_movies, d) half precision: the mean given the rows of the draw
    var_w: Tensor  # (n_movies,) about its variance given the draw, as a part of Lambda_u^-1


class Ordinal(NamedTuple):
    """Ratings as steps of a scale, which people use by habits."""

    share: Tensor  # (draws, n_users, S) half precision: of a user's ratings, by habit
    cuts: Tensor  # (draws, S, K - 1) cut points of each habit, on the unit scale
    habits: Tensor  # (draws, S) parameters of the Dirichlet prior of shares
    grid: Tensor  # (K,) the different ratings, on the unit scale

    @property
    def usual(self) -> Tensor:
        """The share of each habit in general, (draws, S)."""
        return self.habits / self.habits.sum(1, keepdim=True)


class Draws(NamedTuple):
    """Draws of a posterior, stacked. Rows are factors, then the bias if there is one: d of them."""

    U: Tensor  # (draws, n_users, d) half precision, as everything that has rows
    V: Tensor  # (draws, n_movies, d)
    weights: Weights | None  # None: users have one mean for all, but for their features
    common: Common | None  # None where there are no weights
    gamma_u: Tensor  # (draws, n_users) noise scales: the precision of a user's ratings is as many times alpha
    gamma_v: Tensor  # (draws, n_movies)
    mean_u: Tensor  # (draws, d) the average user
    mu_u: Tensor  # (draws, d) prior mean of users, less F W
    mu_v: Tensor  # (draws, d) of movies, less G X
    Lambda_u: Tensor  # (draws, d, d) prior precision
    Lambda_v: Tensor  # (draws, d, d)
    alpha: Tensor  # (draws,) precision of the noise, on the scale of x
    prior_dof: Tensor | None  # (draws, 2) degrees of freedom of the t priors of users and movies; None if they are Gaussian
    noise_dof: Tensor | None  # (draws, 2) of their noise scales; None if there are none
    ordinal: Ordinal | None  # None: ratings are numbers
    drift: Drift | None  # effects of time
    head: Head

    @property
    def grid(self) -> Tensor | None:
        """The different ratings, on the unit scale, (K,); None if ratings are numbers."""
        return None if self.ordinal is None else self.ordinal.grid


Fitted = Laplace | Draws  # what has factors; a posterior of any kind is in ``kinds.py``
