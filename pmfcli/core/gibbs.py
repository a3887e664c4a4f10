"""Bayesian PMF by Gibbs sampling: ``init`` and ``step``, and the draws that answer.

    z_ij = m + b_i + c_j + U_i . V_j [+ f_ij] + e_ij          e_ij ~ N(0, 1 / (alpha gamma_i gamma_j))
    [U_i, b_i] ~ N(mu + (F W)_i, (tau_i Lambda)^-1)          W_k ~ N(0, (lambda Lambda)^-1)          movies alike, by G
    mu, Lambda ~ Normal-Wishart(0, 2, d, I)          p(lambda) = (1 + lambda)^(-3/2) / 2          alpha ~ Gamma(1, 1)
    tau_i ~ Gamma(nu / 2, nu / 2)          gamma_i ~ Gamma(eta / 2, eta / 2)          nu, eta ~ uniform on a grid of logarithms

z are ratings on the scale of the linear link, or latent, with ratings as steps between cut points (``ordinal.py``); f are
effects of time, where they are asked for (``drift.py``). With tau = gamma = 1 and no W this is Salakhutdinov & Mnih,
"Bayesian PMF" (ICML 2008), with W it is Simm et al., "Macau" (2017). tau makes the rows' prior a multivariate t with nu degrees
of freedom, gamma the noise a matter of the person and the film, as in Houlsby et al., "Cold-start active learning with robust
ordinal matrix factorization" (ICML 2014).

Each sweep also takes features, biases and weights of both sides to other scales (``scale_moves.py``).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core import drift, ordinal, posterior
from pmfcli.core.conditional import Prior, conditional, draw_rows, features
from pmfcli.core.drift import Effects, Group
from pmfcli.core.means import Means, ridge
from pmfcli.core.ordinal import Habits, Latent, Levels
from pmfcli.core.parallel import by_blocks, take
from pmfcli.core.posterior import Factors, Observations, inverse
from pmfcli.core.scale_moves import Heard, draw_lam, rescale, reweigh
from pmfcli.core.sparse import Pattern, sampled_dot, spmm
from pmfcli.core.streams import Ranges, Source, normal
from pmfcli.core.streams import gamma as gamma_of
from pmfcli.core.team import ALONE, Team
from pmfcli.errors import TrainingError

BETA0 = 2.0  # of the Normal-Wishart, as in ICML 2008
_SPREAD = 0.1  # standard deviation of the first factors
_LEAST = 1e-6
_START_DOF = 8.0
_NO_SCALES = 1e6  # degrees of freedom of scales that are all 1
_TOLERANCE = 1e-2  # of the solution that is a draw of W: small beside the spread of the draw
_TOLERANCE_OF_MEAN = 3e-3  # of its mean
DOFS = torch.logspace(math.log10(2.5), math.log10(250), 200, dtype=torch.float64)  # nu and eta: above 2 variances are finite


class GibbsSettings(NamedTuple):
    """What is sampled."""

    latent: int
    biases: bool
    user_means: bool  # W: hierarchical means for users
    movie_means: bool  # the same for movies
    user_noise: bool  # gamma of users; else 1
    movie_noise: bool  # gamma of movies
    prior_scales: bool  # tau; else a Gaussian prior
    habits: int  # sets of cut points; 0 takes ratings as numbers
    weight_scales: bool = True  # whether W and lambda also move together; else only in turn


class Side(NamedTuple):
    """The rows of one side, with all that is sampled for it."""

    A: Tensor  # (rows, d) factors, then the bias if there is one
    W: Tensor | None  # (columns, d)
    M: Tensor  # (rows, d) F W
    mu: Tensor  # (d,)
    Lambda: Tensor  # (d, d)
    lam: Tensor  # (blocks,) precision of each block of W, relative to that of the rows
    tau: Tensor  # (rows,)
    gamma: Tensor  # (rows,)
    prior_dof: Tensor  # () of tau
    noise_dof: Tensor  # () of gamma


class State(NamedTuple):
    """Where a chain stands."""

    users: Side
    movies: Side
    alpha: Tensor  # () precision of the noise, on the scale of x
    habits: Habits | None
    effects: tuple[Effects, ...] = ()  # of time


class Info(NamedTuple):
    """What one sweep reached."""

    loss: float  # -log likelihood of the ratings on the unit scale; where they are steps, of these, before the sweep
    sigma: float  # on the unit scale


class Own(NamedTuple):
    """Random numbers for the users that a process has, where it is one of several, and for their ratings."""

    rows: Ranges
    ratings: Ranges


class Sources(NamedTuple):
    """Where the random numbers of one side come from, and which processes have some of its rows, or of its columns, each."""

    all: torch.Generator
    rows: Source
    columns: Source
    of_rows: Team = ALONE
    of_columns: Team = ALONE


class Problem(NamedTuple):
    """Observations as the sampler needs them, from both sides."""

    users: Observations
    movies: Observations  # movies as rows
    z: Tensor  # (n,) ratings on the scale of x, less the offset, in the order of ``users``
    levels: Levels | None  # None: ratings are numbers
    user_means: Means | None  # None: users have one mean for all
    movie_means: Means | None
    groups: tuple[Group, ...] = ()  # stretches of time


def prepare(
    observations: Observations,
    settings: GibbsSettings,
    user_features: Means | None = None,
    movie_features: Means | None = None,
    groups: tuple[Group, ...] = (),
) -> Problem:
    """Both views of the observations, whose link must be linear, with what else is known of users, movies and times.

    Raises:
        ValueError: the link is another one.
    """
    o, s = observations, settings
    if o.link != "linear":
        raise ValueError("the sampler is for the linear link")
    team, found = o.users.team, o.flipped()
    rated = [Means.of(o.F, o.pattern, rows=o.users, crowd=o.crowd) if s.user_means else None]
    rated.append(Means.of(o.G, o.pattern.T, columns=o.users) if s.movie_means else None)
    user_means, movie_means = (
        known if one is None else one if known is None else one.beside(known)
        for one, known in zip(rated, (user_features, movie_features), strict=True)
    )
    z = inverse(o.t, o.link) - o.offset
    moved = [
        group._replace(row=group.row.to(z.device), stretch=group.stretch.to(z.device), part=group.part.to(z))
        for group in groups
    ]
    levels = ordinal.levels(o.t, z, o.pattern.row, team) if s.habits else None
    return Problem(o, found, z, levels, user_means, movie_means, tuple(moved))


def init(problem: Problem, settings: GibbsSettings, generator: torch.Generator, own: Own | None = None) -> State:
    """First state: factors 0.1 randn, weights and biases 0, precisions 1, habits of people who use the scale alike.

    Args:
        generator: on the device of the ratings, in the same state in all processes.
        own: of the users that a process has, where there are several; else the generator serves these, too.
    """
    of_users = generator if own is None else own.rows
    s, like = settings, problem.z
    d = s.latent + s.biases

    def side(rows: int, means: Means | None, with_noise: bool, source: Source) -> Side:
        A = like.new_zeros(rows, d)
        A[:, : s.latent] = _SPREAD * normal((rows, s.latent), like, source)
        return Side(
            A=A,
            W=None if means is None else like.new_zeros(means.pattern.shape[1], d),
            M=like.new_zeros(rows, d),
            mu=like.new_zeros(d),
            Lambda=torch.eye(d).to(like),
            lam=like.new_ones(0 if means is None else len(means.sizes)),
            tau=like.new_ones(rows),
            gamma=like.new_ones(rows),
            prior_dof=like.new_full((), _START_DOF),
            noise_dof=like.new_full((), _START_DOF if with_noise else _NO_SCALES),
        )

    n_users, n_movies = problem.users.pattern.shape
    users = side(n_users, problem.user_means, s.user_noise, of_users)
    movies = side(n_movies, problem.movie_means, s.movie_noise, generator)
    habits = None
    if problem.levels is not None:
        habits = ordinal.init(problem.levels, s.habits, n_users, problem.z, of_users, problem.users.users.team)
    return State(users, movies, like.new_ones(()), habits, tuple(drift.init(group, like) for group in problem.groups))


@torch.no_grad()
def step(
    state: State, problem: Problem, settings: GibbsSettings, generator: torch.Generator, own: Own | None = None
) -> tuple[State, Info]:
    """One sweep over all conditionals: cut points; each side's hyper-parameters, weights, rows and row scales; both sides'
    scales; time; the noise.

    Args:
        generator, own: as for ``init``.

    Raises:
        TrainingError: the loss is not finite, or a precision not positive definite.
    """
    s, p, g = settings, problem, generator
    users, movies, alpha, habits, effects = state
    team = p.users.users.team
    sources: tuple[Source, Source] = (g, g) if own is None else own
    of_users = sources[0]
    row, col, perm = p.users.pattern.row, p.users.pattern.col, p.users.pattern.perm
    weight = take(users.gamma, row).mul_(take(movies.gamma, col)).mul_(alpha)
    z, f = p.z, drift.total([one.value for one in effects], p.groups, p.z) if effects else None
    if habits is not None and p.levels is not None:
        x = products(users, movies, p.users, s.latent)
        latent = Latent(x if f is None else x.add_(f), weight.sqrt())
        habits, z, loss = ordinal.step(habits, p.levels, latent, g, sources, team)
    z = z if f is None else z - f
    users = draw_side(users, movies, p.users.pattern, weight, z, p.user_means, s, Sources(g, of_users, g, team))
    by_movie = take(weight, perm), take(z, perm)
    of_movies = Sources(g, g, of_users, of_columns=team)
    movies = draw_side(movies, users, p.movies.pattern, *by_movie, p.movie_means, s, of_movies)
    heard = Heard(p.users, weight, z, s.latent)
    users, movies = rescale(users, movies, heard, g)
    error = z - products(users, movies, p.users, s.latent)
    if s.weight_scales:
        users, movies = reweigh(users, movies, (p.user_means, p.movie_means), heard._replace(z=error), g)
    drawn = []
    for one, group in zip(effects, p.groups, strict=True):
        one, error = drift.draw(one, group.stretch, weight, error, g)
        drawn.append(one)
    square = error.square_()
    if s.user_noise:
        gamma = draw_scales(take(movies.gamma, col).mul_(square).mul_(alpha), p.users.pattern, users.noise_dof, of_users)
        users = users._replace(gamma=gamma, noise_dof=draw_dof(gamma, g, team))
    square.mul_(take(users.gamma, row))
    if s.movie_noise:
        gamma = draw_scales(take(square, perm).mul_(alpha), p.movies.pattern, movies.noise_dof, g, team)
        movies = movies._replace(gamma=gamma, noise_dof=draw_dof(gamma, g))
    square.mul_(take(movies.gamma, col))
    n, total = len(square), square.sum()
    if team.size > 1:
        n, total = int(team.sum(torch.tensor(n, device=square.device))), team.sum(total)
    alpha = gamma_of(1 + 0.5 * square.new_full((), n), 1 + 0.5 * total, g)
    spread = 0.25 / alpha.sqrt()  # dt = dz / 4
    if habits is None:
        log_gamma = team.sum(users.gamma.log()[row].sum() + movies.gamma.log()[col].sum())
        loss = 0.5 * alpha * total - 0.5 * log_gamma + n * (spread.log() + 0.5 * math.log(2 * math.pi))
    if not math.isfinite(float(loss)):
        raise TrainingError(f"the loss is {float(loss)}")
    return State(users, movies, alpha, habits, tuple(drawn)), Info(float(loss), float(spread))


def products(users: Side, movies: Side, o: Observations, latent: int) -> Tensor:
    """x of every rating, (n,), less the offset and the effects of time."""
    factors = Factors.of(users.A, movies.A, latent, o.offset, o.link)
    return sampled_dot(*posterior.sides(factors), o.pattern)


def draw_side(
    side: Side,
    other: Side,
    pattern: Pattern,
    weight: Tensor,
    z: Tensor,
    means: Means | None,
    settings: GibbsSettings,
    sources: Sources,
) -> Side:
    """mu, Lambda, then W and lambda, then the rows, then their scales, each given all else.

    Args:
        pattern: the side's rows x the other's. weight: (n,) precision of each rating. z: (n,) ratings less the offset.
    """
    s, g = settings, sources.all
    mu, Lambda = draw_hyper(side, means, sources)
    side = side._replace(mu=mu, Lambda=Lambda)
    if side.W is not None and means is not None:
        W = draw_weights(side, means, sources.rows, sources.columns)
        squares = sources.of_columns.sum(torch.stack([part.sum() for part in ((W @ Lambda) * W).split(means.sizes)]))
        counts = W.shape[1] * sources.of_columns.sum(torch.tensor(means.sizes).to(squares))
        side = side._replace(W=W, M=means.up(W), lam=draw_lam(counts, squares, side.lam, g))
    f, noise = features(other.A, s.latent), normal(tuple(side.A.shape), side.A, sources.rows) / side.tau.sqrt()[:, None]

    def drawn(start: int, stop: int) -> Tensor:
        """All precisions over tau, so that Lambda is that of all rows."""
        part, own = pattern.view(start, stop), slice(int(pattern.crow[start]), int(pattern.crow[stop]))
        target = z[own]
        if other.A.shape[1] > s.latent:
            target = target - other.A[:, s.latent].index_select(0, part.col)
        over_tau = side.tau[start:stop].index_select(0, part.row).reciprocal_().mul_(weight[own])
        given = part, f, over_tau, target, Prior(side.mu + side.M[start:stop], side.Lambda)
        if isinstance(sources.columns, Ranges):  # of a row another process may have ratings
            return conditional(*given, team=sources.of_columns).draw_by(noise[start:stop])
        return draw_rows(*given, noise[start:stop])

    shared = sources.of_columns.size > 1
    side = side._replace(A=torch.cat(by_blocks(drawn, pattern, side.Lambda.numel(), in_order=shared)))
    if not s.prior_scales:
        return side
    tau = draw_tau(side.A - side.mu - side.M, side.Lambda, side.prior_dof, sources.rows)
    return side._replace(tau=tau, prior_dof=draw_dof(tau, g, sources.of_rows))


def draw_hyper(side: Side, means: Means | None, sources: Sources) -> tuple[Tensor, Tensor]:
    """mu, Lambda given the rows, their means, scales and W: Normal-Wishart. ICML 2008, Eq. 14, rows weighted by tau."""
    off, tau, d = (side.A - side.M).double(), side.tau.double(), side.A.shape[1]
    generator, rows, columns = sources.all, sources.of_rows, sources.of_columns
    k = rows.sum(tau.sum())
    centre = rows.sum((tau[:, None] * off).sum(0)) / k
    scatter = rows.sum(((off - centre) * tau[:, None]).mT @ (off - centre))
    scatter = scatter + torch.eye(d).to(off) + k * BETA0 / (k + BETA0) * torch.outer(centre, centre)
    freedom = d + int(rows.sum(torch.tensor(len(off), device=off.device)))
    if side.W is not None and means is not None:
        W = side.W.double()
        scatter = scatter + columns.sum((means.each(side.lam) * W).mT @ W)
        freedom += int(columns.sum(torch.tensor(len(W), device=off.device)))
    Lambda = draw_wishart(scatter, freedom, generator)
    root = torch.linalg.cholesky((BETA0 + k) * Lambda)
    away = torch.linalg.solve_triangular(root.mT, normal((d, 1), Lambda, generator), upper=True)[:, 0]
    return (k / (k + BETA0) * centre + away).to(side.A), Lambda.to(side.A)


def draw_wishart(inverse: Tensor, freedom: float, generator: torch.Generator) -> Tensor:
    """Wishart(inverse^-1, freedom), mean freedom * inverse^-1, by Bartlett's decomposition. inverse: (d, d), freedom >= d."""
    d = len(inverse)
    lower = normal((d, d), inverse, generator).tril(-1)
    chi_square = 2 * gamma_of((freedom - torch.arange(d).to(inverse)) / 2, inverse.new_ones(()), generator)
    factor = torch.linalg.cholesky(inverse).mT
    root = torch.linalg.solve_triangular(factor, lower + torch.diag(chi_square.sqrt()), upper=True)
    drawn: Tensor = root @ root.mT
    return drawn


def draw_weights(side: Side, means: Means, of_rows: Source, of_columns: Source) -> Tensor:
    """W given the rows, by noise-injected conjugate gradients: Simm et al. 2017, Eq. 6, rows weighted by tau."""
    root = torch.linalg.cholesky(side.Lambda).mT

    def noise(count: int, source: Source) -> Tensor:
        d = side.A.shape[1]
        ranges = isinstance(source, Ranges)
        white = normal((count, d), side.A, source).mT if ranges else normal((d, count), side.A, source)
        drawn: Tensor = torch.linalg.solve_triangular(root, white, upper=True).mT
        return drawn

    tau = side.tau[:, None]
    lam = means.each(side.lam)
    right = means.down(tau * (side.A - side.mu) + tau.sqrt() * noise(len(side.A), of_rows))
    right += lam.sqrt() * noise(len(right), of_columns)
    return ridge(means, right, side.tau, lam, tolerance=_TOLERANCE)


def mean_weights(A: Tensor, mu: Tensor, tau: Tensor, lam: Tensor, means: Means) -> tuple[Tensor, Tensor]:
    """W given the rows A and their scales: its mean, (columns, d), and ``Means.variances``, (columns,)."""
    each = means.each(lam)
    mean = ridge(means, means.down(tau[:, None] * (A - mu)), tau, each, tolerance=_TOLERANCE_OF_MEAN)
    return mean, means.variances(tau, each)[:, 0]


def draw_tau(off: Tensor, Lambda: Tensor, dof: Tensor, source: Source) -> Tensor:
    """The scale of every row, (rows,), given how far it is from its prior mean.

    Args:
        off: (rows, d). Lambda: (d, d), or (rows, d, d). dof: (), or (rows,).
    """
    squares = ((off[:, None] @ Lambda)[:, 0] * off).sum(1)
    return gamma_of((0.5 * (dof + off.shape[1])).expand_as(squares), 0.5 * (dof + squares), source).clamp(min=_LEAST)


def draw_scales(square: Tensor, pattern: Pattern, dof: Tensor, source: Source, of_columns: Team = ALONE) -> Tensor:
    """gamma of every row given its weighted squared errors (n,), (rows,). dof: (), or (rows,)."""
    total = of_columns.sum(spmm(square, square.new_ones(pattern.shape[1], 1), pattern))[:, 0]
    count = of_columns.sum(pattern.row_counts())
    return gamma_of(0.5 * (dof + count), 0.5 * (dof + total), source).clamp(min=_LEAST)


def draw_dof(scales: Tensor, generator: torch.Generator, of_rows: Team = ALONE) -> Tensor:
    """The degrees of freedom, (), of the Gamma that scales (rows,) come from: one of DOFS, with its probability."""
    half, drawn = 0.5 * DOFS.to(scales.device), scales.double()
    count, logs, total = of_rows.sum(torch.stack([drawn.new_tensor(len(drawn)), drawn.log().sum(), drawn.sum()]))
    log_p = count * (half * half.log() - half.lgamma()) + (half - 1) * logs - half * total
    place = torch.multinomial(torch.softmax(log_p, 0), 1, generator=generator)[0]
    return (2 * half[place]).to(scales)
