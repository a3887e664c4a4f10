"""Alternating least squares, and its form that learns the priors: mean-field EM.

Each half step puts every row of one side at the mean of its conditional (``conditional.py``): exactly the optimum for the
linear link, a Gauss-Newton step for the logistic one, shortened where it would not improve. With fixed priors this descends
the same posterior as Adam does. With ``learn_priors`` or ``learn_noise`` the rows keep their covariance, each side sees that
of the other, and the scales are set from both (Lim & Teh, 2007): unlike the mode, that has no pole at scale 0.

    sigma_u^2 = (1 / ND) sum_i ( |u_i - mean_i|^2 + tr Cov_i )          by column, or as a matrix, alike
    sigma^2   = (1 / n) sum_O ( (t - g)^2 + g'^2 Var x_ij )
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined] # is there, but not exported to type checkers

from pmfcli.core.conditional import Gaussians, Prior, conditional, features, outer, pack, unpack
from pmfcli.core.means import Means, ridge
from pmfcli.core.parallel import by_blocks
from pmfcli.core.posterior import (
    Factors,
    Observations,
    Parameters,
    Scales,
    linearise,
    log_likelihood,
    log_prior,
    mean,
    score,
    slope,
)
from pmfcli.core.sparse import Pattern, sampled_dot, spmm
from pmfcli.core.team import Share
from pmfcli.core.tree import Tree, like, plain
from pmfcli.errors import TrainingError

Shape = Literal["spherical", "diagonal", "full"]

_START = 0.1  # standard deviation of the first factors
_HALVINGS = 3
_NOISE_FIRST = 4  # sweeps that leave the priors as they are: under a far too large noise all factors shrink, then their priors
_ROUNDING = 8  # units in the last place by which a cost may seem worse: at the optimum all steps do, half the time
_RATINGS = 1 << 22  # at a time
_MOST_HALF_STEPS, _STILL = 50, 1e-5  # of rows that settle: at most so many; until no number moves by more
_NEW_CURVATURES = 2  # of them
_LEAST = 1e-8  # of a variance that is learned
_LEAST_PRIOR = 1e-4  # of one of factors: a feature this small says nothing, and shrinks for ever


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


class Side(NamedTuple):
    """The rows of one side, as [factors, bias], or factors alone."""

    A: Tensor  # (rows, d) means
    spread: Tensor | None  # (rows, d (d + 1) / 2) packed covariances, where something is learned
    precision: Tensor  # (d, d) of the rows' own parts
    W: Tensor | None  # (columns, latent)
    M: Tensor  # (rows, d) prior means F W; 0 for the bias
    lam: Tensor  # (latent,) precision of W, relative to that of the rows


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


def init(observations: Observations, settings: AlsSettings, generator: torch.Generator) -> State:
    """First state: factors 0.1 randn, hierarchical weights and biases 0.

    Args:
        generator: a CPU generator; the numbers depend neither on the device nor on the number of processes.
    """
    o, s = observations, settings
    d = s.latent + s.biases
    like = o.t

    def side(rows: int, columns: int, scale: float, scale_w: float, with_means: bool, share: Share) -> Side:
        A = torch.zeros(rows, d, dtype=like.dtype)
        A[:, : s.latent] = _START * share.randn(rows, s.latent, generator, like.dtype)
        precision = torch.full((d,), scale**-2, dtype=like.dtype)
        precision[s.latent :] = s.scales.sigma_b**-2
        empty = torch.zeros(rows, d * (d + 1) // 2) if s.learn_priors or s.learn_noise else None
        return Side(
            A=A.to(like.device),
            spread=None if empty is None else empty.to(like),
            precision=torch.diag(precision).to(like.device),
            W=like.new_zeros(columns, s.latent) if with_means else None,
            M=like.new_zeros(rows, d),
            lam=like.new_full((s.latent,), (scale / scale_w) ** 2),
        )

    n_users, n_movies = o.pattern.shape
    users = side(n_users, n_movies, s.scales.sigma_u, s.scales.sigma_w, s.user_means, o.users)
    movies = side(n_movies, n_users, s.scales.sigma_v, s.scales.sigma_x, s.movie_means, o.movies)
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
            Means.of(o.F, o.pattern, o.pattern_t, o.users.team, o.movies.team) if wanted else None
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
    users = _means(_rows(users, movies, p.users, sigma, s.latent), p.user_means, s)
    movies = _means(_rows(movies, users, p.movies, sigma, s.latent), p.movie_means, s)
    if s.learn_noise:
        sigma = _expected_error(users, movies, o, s.latent).mean().clamp(min=_LEAST).sqrt()
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
        start: where to begin, if not at random: where a fit to most of the ratings ended.

    Raises:
        TrainingError: the objective stopped being finite; names the step and the remedy.
    """
    problem = Problem.of(observations, settings)
    state = init(observations, settings, generator)
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
    return _factors(state.users, state.movies, observations, settings.latent)


def _factors(rows: Side, columns: Side, o: Observations, k: int) -> Factors:
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

    After the first few the curvature hardly changes, and is kept: the way is longer, but a step far cheaper.

    Args:
        rows: (rows, d) start, as [factors, bias] or factors alone. prior: of the rows, one precision for all.
        columns: (columns, d) the other side. spread: (columns, d (d + 1) / 2) its packed covariances, if they count.
    """
    o, none = observations, rows.new_zeros(0)
    other = Side(columns, spread, prior.precision, None, torch.zeros_like(columns), none)

    def settled(start: int, stop: int) -> Tensor:
        part = o.view(start, stop)
        side = Side(rows[start:stop], None, prior.precision, None, prior.mean[start:stop], none)
        for number in range(_MOST_HALF_STEPS):
            before = side.A
            if spread is not None or number < _NEW_CURVATURES:
                A, found = _solved(side, other, part, sigma, latent)
            else:
                A = _again(side, other, part, sigma, latent, found)
            side = side._replace(A=A)
            if o.link == "linear" or float((A - before).abs().max()) <= _STILL:
                break
        return side.A

    return torch.cat(by_blocks(settled, o.pattern, prior.precision.numel()))


def _rows(side: Side, other: Side, o: Observations, sigma: Tensor, k: int) -> Side:
    """Every row at the mean of its conditional, with its covariance if that is kept."""

    def solved(start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        spread = None if side.spread is None else side.spread[start:stop]
        part = side._replace(A=side.A[start:stop], M=side.M[start:stop], spread=spread)
        A, found = _solved(part, other, o.view(start, stop), sigma, k)
        return A, None if spread is None else pack(found.covariance())

    shared = o.movies.team.size > 1  # its processes add up the same blocks at the same time
    A, spread = zip(*by_blocks(solved, o.pattern, side.precision.numel(), in_order=shared), strict=True)
    return side._replace(A=torch.cat(A), spread=None if side.spread is None else torch.cat(spread))


def _solved(side: Side, other: Side, o: Observations, sigma: Tensor, k: int) -> tuple[Tensor, Gaussians]:
    """A half step of some rows: where it leads, (rows, d), and the conditional that says so."""
    d = side.A.shape[1]
    x = o.t if o.link == "linear" else score(_factors(side, other, o, k), o.pattern)  # the linear link looks at t alone
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
        among = None if second is None else unpack(spmm(weight, second, o.pattern), d)
        A = _shortened(side, other, A, x, o, sigma, k, among, pull)
    return A, found


def _again(side: Side, other: Side, o: Observations, sigma: Tensor, k: int, near: Gaussians) -> Tensor:
    """A half step with the curvature of one before, (rows, d), where the other side is certain: by the gradient alone."""
    x = score(_factors(side, other, o, k), o.pattern)
    weight, seen = linearise(x, o.t, sigma, o.link)
    gradient = o.movies.team.sum(spmm(weight * (seen - x), features(other.A, k), o.pattern))
    gradient = gradient + (side.M - side.A) @ side.precision
    return _shortened(side, other, side.A + near._replace(shift=gradient).mean, x, o, sigma, k, None, gradient)


def _shortened(
    side: Side, other: Side, A: Tensor, x: Tensor, o: Observations, sigma: Tensor, k: int, among: Tensor | None, pull: Tensor
) -> Tensor:
    """A Gauss-Newton step of each row, halved until its own objective is not worse.

    Args:
        A: (rows, d) where it leads. x: (n,) where it starts.
        among: (rows, d, d) and pull: (rows, d), what the covariances of the columns add, A' among A + 2 A . pull.
    """

    def cost(A: Tensor, x: Tensor | None = None) -> Tensor:
        x = score(_factors(side._replace(A=A), other, o, k), o.pattern) if x is None else x
        off = A - side.M
        error = ((o.t - mean(x, o.link)) / sigma).square()
        total = o.movies.team.sum(spmm(error, error.new_ones(o.pattern.shape[1], 1), o.pattern))[:, 0]
        total = total + ((off @ side.precision) * off).sum(1)
        return total if among is None else total + ((A[:, None] @ among)[:, 0] * A + 2 * A * pull).sum(1)

    before = cost(side.A, x) * (1 + _ROUNDING * torch.finfo(A.dtype).eps)
    for _ in range(_HALVINGS):
        worse = cost(A) > before
        if not worse.any():
            return A
        A = torch.where(worse[:, None], 0.5 * (A + side.A), A)
    return torch.where((cost(A) > before)[:, None], side.A, A)


def _means(side: Side, means: Means | None, s: AlsSettings) -> Side:
    """The hierarchical weights at their mean given the rows, then the prior of both, if it is learned.

    The covariance of W given the ratings is that of a ridge in which a row counts by the part of it that its ratings, not its
    prior, decide: 1 - tr(Cov_i Lambda) / latent. Each W_k is taken with the others known (``Means.variances``). The variance of
    F_i W is in units of Lambda^-1; the row's own covariance grows by it.
    """
    k = s.latent
    if side.W is None or means is None:
        return _learned(side, side.A.new_zeros(()), side.A.new_zeros(()), s) if s.learn_priors else side
    tau = side.A.new_ones(len(side.A))
    W = ridge(means, means.down(side.A[:, :k]), tau, side.lam, side.W)
    side = side._replace(W=W, M=torch.cat([means.up(W), side.M[:, k:]], 1))
    if side.spread is None:
        return side
    covariance = unpack(side.spread, side.A.shape[1])
    within = covariance @ side.precision
    part = (1 - within.diagonal(dim1=1, dim2=2)[:, :k].mean(1)).clamp(0, 1)

    variances = means.variances(part, side.lam)
    doubt = means.up_squared(variances).mean(1)
    grown = covariance.clone()
    grown[:, :k, :k] += doubt[:, None, None] * (within[:, :k, :k] @ covariance[:, :k, :k])
    if s.learn_priors:
        side = _learned(side, (part.square() * doubt).sum(), variances.mean(1).sum(), s)
    return side._replace(spread=pack(grown))


def _scatter(rows: Tensor) -> Tensor:
    return rows.mT @ rows


def _learned(side: Side, doubt: Tensor, doubt_w: Tensor, s: AlsSettings) -> Side:
    """The prior of one side from its rows and their covariance.

    Args:
        doubt, doubt_w: the summed variances of the rows' prior means and of W, in units of the prior covariance.
    """
    k, rows = s.latent, len(side.A)
    assert side.spread is not None
    off = side.A - side.M
    total = _scatter(off) + unpack(side.spread.sum(0), off.shape[1])
    prior = torch.linalg.inv(side.precision[:k, :k])
    own = total[:k, :k] + doubt * prior
    own_w = None if side.W is None else _scatter(side.W) + doubt_w * prior
    lam = side.lam
    if s.shape == "full":
        count = rows
        if own_w is not None and side.W is not None:
            own, count = own + lam[0] * own_w, rows + len(side.W)
        covariance = 0.5 * (own + own.mT) / count + _LEAST_PRIOR * torch.eye(k).to(own)
        if own_w is not None and side.W is not None:
            lam = (len(side.W) * k / torch.linalg.solve(covariance, own_w).diagonal().sum()).expand(k)
    else:
        variance = own.diagonal() / rows
        variance = variance.mean().expand(k) if s.shape == "spherical" else variance
        covariance = torch.diag(variance.clamp(min=_LEAST_PRIOR))
        if own_w is not None and side.W is not None:
            variance_w = own_w.diagonal() / len(side.W)
            variance_w = variance_w.mean().expand(k) if s.shape == "spherical" else variance_w
            lam = covariance.diagonal() / variance_w.clamp(min=_LEAST)
    precision = torch.zeros_like(side.precision)
    precision[:k, :k] = torch.linalg.inv(covariance)
    precision[k:, k:] = rows / total[k:, k:].clamp(min=_LEAST)
    return side._replace(precision=precision, lam=lam)


def variance_of_x(users: Tensor, movies: Tensor, U: Tensor, V: Tensor, k: int, pattern: Pattern) -> Tensor:
    """Var x_ij of every pair for independent Gaussian rows, (n,).

    Args:
        users, movies: packed covariances. U, V: means as [factors, bias], or factors alone, (rows, d).
    """
    d = U.shape[1]
    i, j = torch.triu_indices(d, d, device=U.device)
    twice = torch.where(i == j, 1.0, 2.0).to(U)

    left = sampled_dot(users * twice, outer(features(V, k)), pattern)
    right = sampled_dot(outer(features(U, k)), movies * twice, pattern)
    both = sampled_dot(users * twice * (j < k), movies, pattern)
    return left + right + both


def _expected_error(users: Side, movies: Side, o: Observations, k: int) -> Tensor:
    """E (t - g(x))^2 of every pair, to first order in the spread of x, (n,)."""
    x = score(_factors(users, movies, o, k), o.pattern)
    error = (o.t - mean(x, o.link)).square()
    if users.spread is None or movies.spread is None:
        return error
    variance = variance_of_x(users.spread, movies.spread, users.A, movies.A, k, o.pattern)
    return error + slope(x, o.link).square() * variance


def _objective(state: State, o: Observations, s: AlsSettings) -> float:
    users, movies, sigma = state
    team = o.users.team
    if not (s.learn_priors or s.learn_noise):
        total = log_prior(gather(state, s), s.scales, 1 / team.size).double()
        for start, stop in o.pattern.blocks(_RATINGS):
            part = o.view(start, stop)
            x = score(_factors(users._replace(A=users.A[start:stop]), movies, o, s.latent), part.pattern)
            total += log_likelihood(x, part.t, sigma, o.link)
        return -float(team.sum(total))
    n = len(o.t)
    log_2pi = math.log(2 * math.pi)
    bound = -0.5 * float(_expected_error(users, movies, o, s.latent).double().sum() / sigma.double() ** 2)
    bound -= n * (math.log(float(sigma)) + 0.5 * log_2pi)
    for side in (users, movies):
        d = side.A.shape[1]
        assert side.spread is not None
        precision = side.precision.double()
        covariances = unpack(side.spread, d).double()
        off = (side.A - side.M).double()
        fit = (off @ precision * off).sum() + (unpack(side.spread.double().sum(0), d) * precision).sum()
        bound += 0.5 * float(len(off) * (torch.logdet(precision) + d) - fit + torch.logdet(covariances).sum())
    return -bound
