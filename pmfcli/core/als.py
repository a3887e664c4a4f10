"""Alternating least squares, and its form that learns the priors: mean-field EM.

A step is a half step of the users (``half_step.py``), then of the movies. With fixed priors this descends the same posterior as
Adam does. With ``learn_priors`` or ``learn_noise`` the rows keep their covariance, each side sees that of the other, and the
scales are set from both (``em.py``): unlike the mode, that has no pole at scale 0.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined] # is there, but not exported to type checkers

from pmfcli.core.em import LEAST, Shape, bound, doubted, expected_error, learned
from pmfcli.core.half_step import Side, factors_of, half_step
from pmfcli.core.means import Means, ridge
from pmfcli.core.parallel import RATINGS
from pmfcli.core.posterior import (
    Factors,
    Observations,
    Parameters,
    Scales,
    log_likelihood,
    log_prior,
    score,
)
from pmfcli.core.spectral import Start, principal
from pmfcli.core.team import Share
from pmfcli.core.tree import Tree, like, plain
from pmfcli.errors import TrainingError

_START = 0.1  # standard deviation of random first factors
_NOISE_FIRST = 4  # sweeps that leave the priors as they are: under a far too large noise all factors shrink, then their priors


class AlsSettings(NamedTuple):
    """How to fit. Scales are in logits, sigma on the unit scale; the first values, where they are learned."""

    latent: int
    scales: Scales
    sigma: float
    biases: bool
    user_means: bool
    movie_means: bool
    learn_priors: bool
    learn_noise: bool
    shape: Shape  # of the learned priors


class State(NamedTuple):
    """Where a fit stands."""

    users: Side
    movies: Side
    sigma: Tensor  # ()


class Info(NamedTuple):
    """What one step reached."""

    loss: float  # -log p; where something is learned, minus the evidence bound given the hierarchical weights
    sigma: float


class Progress(NamedTuple):
    """One finished step of ``fit``."""

    step: int  # counts from 0
    loss: float
    sigma: float
    state: State
    snapshot: Callable[[], Tree]  # all that ``fit`` needs to go on from here


def init(observations: Observations, settings: AlsSettings, generator: torch.Generator, at_random: bool = False) -> State:
    """First state: the principal factors and biases, or 0.1 randn and 0; hierarchical weights 0.

    Random ones are for where priors or noise are learned, and for states that are overwritten.

    Args:
        generator: a CPU generator; the numbers depend neither on the device nor on the number of processes.

    Raises:
        ValueError: something is learned, and by several processes.
    """
    o, s = observations, settings
    d = s.latent + s.biases
    like = o.t
    n_users, n_movies = o.pattern.shape
    learns = s.learn_priors or s.learn_noise
    if learns and o.users.shared:
        raise ValueError("what EM learns is not summed over processes")

    def random(share: Share, rows: int) -> Tensor:
        return _START * share.randn(rows, s.latent, generator, like.dtype).to(like.device)

    if learns or at_random:
        first = Start(random(o.users, n_users), random(o.movies, n_movies), *map(like.new_zeros, o.pattern.shape))
    else:
        first = principal(o, s.latent, s.biases, generator)

    def side(factors: Tensor, bias: Tensor, columns: int, scale: float, scale_w: float, with_means: bool) -> Side:
        rows = len(factors)
        precision = torch.full((d,), scale**-2, dtype=like.dtype)
        precision[s.latent :] = s.scales.sigma_b**-2
        return Side(
            A=torch.cat([factors, bias[:, None]], 1) if s.biases else factors,
            spread=like.new_zeros(rows, d * (d + 1) // 2) if learns else None,
            precision=torch.diag(precision).to(like.device),
            W=like.new_zeros(columns, s.latent) if with_means else None,
            M=like.new_zeros(rows, d),
            lam=like.new_full((s.latent,), (scale / scale_w) ** 2),
        )

    users = side(first.U, first.b, n_movies, s.scales.sigma_u, s.scales.sigma_w, s.user_means)
    movies = side(first.V, first.c, n_users, s.scales.sigma_v, s.scales.sigma_x, s.movie_means)
    return State(users, movies, like.new_tensor(s.sigma))


class Problem(NamedTuple):
    """Observations from both sides, with what the hierarchical means need of them."""

    users: Observations
    movies: Observations  # movies as rows
    user_means: Means | None
    movie_means: Means | None

    @classmethod
    def of(cls, observations: Observations, settings: AlsSettings) -> "Problem":
        """Made once for a fit."""
        views = observations, observations.flipped()
        user_means, movie_means = (
            Means.of(o.F, o.pattern, o.users, o.movies, o.crowd) if wanted else None
            for o, wanted in zip(views, (settings.user_means, settings.movie_means), strict=True)
        )
        return cls(*views, user_means, movie_means)


@torch.no_grad()
def step(state: State, problem: Problem, settings: AlsSettings) -> tuple[State, Info]:
    """Both sides once, then the scales that are learned.

    Raises:
        TrainingError: the objective is not finite.
    """
    p, o, s = problem, problem.users, settings
    users, movies, sigma = state
    users = _means(half_step(users, movies, p.users, sigma, s.latent), p.user_means, s)
    movies = _means(half_step(movies, users, p.movies, sigma, s.latent), p.movie_means, s)
    if s.learn_noise:
        sigma = expected_error(users, movies, o, s.latent).mean().clamp(min=LEAST).sqrt()
    state = State(users, movies, sigma)
    loss = _objective(state, o, s)
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss}")
    return state, Info(loss, float(sigma))


def fit(
    observations: Observations,
    settings: AlsSettings,
    epochs: int,
    generator: torch.Generator,
    resume: Tree = None,
    start: Parameters | None = None,
) -> Iterator[Progress]:
    """Train for at most ``epochs`` sweeps, yielding after each; stop by no longer asking.

    Args:
        resume: a snapshot, whose step is yielded once more, to go on from.
        start: where to begin, if not at the principal factors: where a fit to most of the ratings ended.

    Raises:
        TrainingError: the objective stopped being finite; names the step and the remedy.
    """
    problem = Problem.of(observations, settings)
    state = init(observations, settings, generator, at_random=not (start is None and resume is None))
    if start is not None:
        state = _at(start, state, problem)
    first = 0

    def progress(number: int, state: State, info: Info) -> Progress:
        return Progress(number, *info, state, lambda: {"step": number, "info": plain(info), "state": plain(state)})

    if resume is not None:
        state = like(state, resume["state"])
        first = resume["step"] + 1
        yield progress(first - 1, state, Info(*resume["info"]))
    for number in range(first, epochs):
        try:
            waits = settings.learn_noise and number < _NOISE_FIRST
            now = settings._replace(learn_priors=settings.learn_priors and not waits)
            state, info = step(state, problem, now)
        except (TrainingError, LinAlgError) as error:
            raise TrainingError(f"training diverged at step {number}: {error}; try a larger --sigma") from None
        yield progress(number, state, info)


@torch.no_grad()
def _at(p: Parameters, state: State, problem: Problem) -> State:
    def side(side: Side, own: Tensor, bias: Tensor | None, W: Tensor | None, means: Means | None) -> Side:
        A, M = torch.zeros_like(side.A), torch.zeros_like(side.M)
        k = own.shape[1]
        if W is not None and means is not None:
            M[:, :k] = means.up(W)
        A[:, :k] = own + M[:, :k]
        if bias is not None:
            A[:, k] = bias
        return side._replace(A=A, M=M, W=W)

    users = side(state.users, p.Y, p.b, p.W, problem.user_means)
    return State(users, side(state.movies, p.Z, p.c, p.X, problem.movie_means), state.sigma)


def gather(state: State, settings: AlsSettings) -> Parameters:
    """The means, as parameters of the posterior: U = Y + F W."""
    k = settings.latent
    u, v = state.users, state.movies
    b, c = (u.A[:, k].clone(), v.A[:, k].clone()) if settings.biases else (None, None)
    Y, Z = u.A[:, :k] - u.M[:, :k], v.A[:, :k] - v.M[:, :k]
    return Parameters(Y, Z, u.W, v.W, b, c, state.sigma.clone())


def current(state: State, observations: Observations, settings: AlsSettings) -> Factors:
    """The effective factors of the state."""
    return factors_of(state.users, state.movies, observations, settings.latent)


def _means(side: Side, means: Means | None, s: AlsSettings) -> Side:
    """The hierarchical weights at their mean given the rows, then the prior of both, if it is learned."""
    k, shape = s.latent, s.shape if s.learn_priors else None
    if side.W is None or means is None:
        return side if shape is None else learned(side, side.A.new_zeros(()), side.A.new_zeros(()), k, shape)
    W = ridge(means, means.down(side.A[:, :k]), side.A.new_ones(len(side.A)), side.lam, side.W)
    side = side._replace(W=W, M=torch.cat([means.up(W), side.M[:, k:]], 1))
    return side if side.spread is None else doubted(side, means, k, shape)


def _objective(state: State, o: Observations, s: AlsSettings) -> float:
    users, movies, sigma = state
    team = o.users.team
    if not (s.learn_priors or s.learn_noise):
        total = log_prior(gather(state, s), s.scales, 1 / team.size).double()
        for start, stop in o.pattern.blocks(RATINGS):
            part = o.view(start, stop)
            x = score(factors_of(users._replace(A=users.A[start:stop]), movies, o, s.latent), part.pattern)
            total += log_likelihood(x, part.t, sigma, o.link)
        return -float(team.sum(total))
    return -bound(users, movies, o, sigma, s.latent)
