"""What tests make: ratings, problems and posteriors of which the answer is known."""

from dataclasses import replace

import numpy as np
import torch
from torch.distributions import HalfNormal, Normal

from pmfcli.core import chains
from pmfcli.core.approximation import Common, Draws, Head, Weights
from pmfcli.core.gibbs import GibbsSettings
from pmfcli.core.map import MapSettings
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Observations, Parameters, Scales, observe
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import Ratings, Scale, Vocabulary
from pmfcli.steps import run

DAY = 86_400
MOOD = 0.7  # stars
V, W, VAR, LAMBDA, ALPHA = 0.5, 0.75, 0.5, 2.0, 4.0  # of ``copies``
SCALES = Scales(0.3, 0.4, 0.15, 0.2, 0.5)
BASE = MapSettings(
    latent=4,
    scales=SCALES,
    sigma=0.3,
    learn_sigma=False,
    biases=True,
    user_means=True,
    movie_means=True,
    lr=0.03,
    blocks=1,
)
PLAIN = GibbsSettings(2, True, False, False, False, False, False, 0)
NOBODY = Seen(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ratings_of(user: list[int], movie: list[int], stars: list[float], time: list[int] | None = None) -> Ratings:
    """Ratings from rows that are already sorted and dense."""
    values = np.array(stars, dtype=np.float32)
    movies = Vocabulary(tuple(str(10 * row) for row in range(max(movie) + 1)))
    return Ratings(
        user=np.array(user, dtype=np.int32),
        movie=np.array(movie, dtype=np.int32),
        stars=values,
        time=None if time is None else np.array(time, dtype=np.int64),
        users=Vocabulary(tuple(f"u{row}" for row in range(max(user) + 1))),
        movies=movies,
        titles=tuple(f"Film {name} (2000)" for name in movies.ids),
        scale=Scale(float(values.min()), float(values.max())),
        name="made for a test",
    )


def far_apart() -> Ratings:
    """Ratings 1 to 5 by 200 users of 40 movies, in which users, and movies, are farther apart than usual."""
    user, movie = torch.nonzero(torch.ones(200, 40)).T
    g = seeded()
    b, c = 0.9 * torch.randn(200, generator=g), 0.9 * torch.randn(40, generator=g)
    stars = (3 + b[user] + c[movie] + 0.5 * torch.randn(len(user), generator=g)).round().clamp(1, 5)
    return ratings_of(user.tolist(), movie.tolist(), stars.tolist())


def random_pattern(n_users: int, n_movies: int, density: float, seed: int) -> Pattern:
    """A random pattern in which every user and movie has a rating."""
    generator = seeded(seed)
    mask = torch.rand(n_users, n_movies, generator=generator) < density
    mask[torch.arange(n_users), torch.arange(n_users) % n_movies] = True
    mask[torch.arange(n_movies) % n_users, torch.arange(n_movies)] = True
    user, movie = torch.nonzero(mask, as_tuple=True)
    return Pattern.of(user, movie, (n_users, n_movies))


def moody(seed: int = 1) -> tuple[Ratings, Ratings, np.ndarray]:
    """Ratings of people who are in a mood of their own on each day, as training and test; and the moods of the test's."""
    g = np.random.default_rng(seed)
    pattern = random_pattern(80, 60, 0.5, seed=seed)
    user, movie = pattern.row.numpy(), pattern.col.numpy()
    day = g.integers(0, 5, len(user))
    mood = MOOD * g.normal(size=(80, 5))
    stars = 3 + 0.5 * g.normal(size=80)[user] + mood[user, day] + 0.3 * g.normal(size=len(user))
    ratings = ratings_of(
        user.tolist(), movie.tolist(), stars.tolist(), (day * 30 * DAY + g.integers(0, 600, len(user))).tolist()
    )
    ratings = replace(ratings, scale=Scale(0.0, 6.0))
    held = g.random(len(user)) < 0.2
    own = mood - mood.mean(1, keepdims=True)
    return ratings.select(~held), ratings.select(held), own[user, day][held]


def problem(n_users: int = 7, n_movies: int = 11, seed: int = 3) -> Observations:
    pattern = random_pattern(n_users, n_movies, 0.4, seed)
    t = torch.rand(pattern.n, generator=seeded(seed), dtype=torch.float64)
    return observe(pattern, t)


def dense_log_posterior(o, p: Parameters, user_power: float = 0.5, with_offset: bool = True) -> torch.Tensor:
    """The log-posterior, written down from MATH: dense matrices, loops, torch.distributions."""
    n_users, n_movies = o.pattern.shape
    rated = torch.zeros(n_users, n_movies, dtype=torch.bool)
    t = torch.zeros(n_users, n_movies, dtype=torch.float64)
    rated[o.pattern.row, o.pattern.col] = True
    t[o.pattern.row, o.pattern.col] = o.t
    n, m = rated.sum(1).double(), rated.sum(0).double()
    U, V = p.Y.clone(), p.Z.clone()
    typical, q = (n[n > 0] ** (2 - user_power)).sum() / n.sum(), m / m.sum()
    for i in range(n_users):
        own = n[i] ** (1 - user_power) if n[i] > 0 else 0
        if own < typical and p.W is not None:
            U[i] += (typical - own) * (q @ p.W)
        for k in range(n_movies):
            if rated[i, k] and p.W is not None:
                U[i] += n[i] ** -user_power * p.W[k]
            if rated[i, k] and p.X is not None:
                V[k] += m[k] ** -0.25 * n[i] ** -0.25 * p.X[i]
    x = U @ V.T
    if p.b is not None and p.c is not None:
        x = x + p.b[:, None] + p.c[None, :]
    if with_offset:
        mean = t[rated].mean()
        x = x + torch.log(mean / (1 - mean))
    total = Normal(1 / (1 + torch.exp(-x)), p.sigma).log_prob(t)[rated].sum()
    total = total + HalfNormal(torch.tensor(100.0, dtype=torch.float64)).log_prob(p.sigma)
    scales = {"Y": SCALES.sigma_u, "Z": SCALES.sigma_v, "W": SCALES.sigma_w, "X": SCALES.sigma_x}
    for name, scale in {**scales, "b": SCALES.sigma_b, "c": SCALES.sigma_b}.items():
        part = getattr(p, name)
        if part is not None:
            total = total + Normal(0.0, torch.tensor(scale, dtype=torch.float64)).log_prob(part).sum()
    return total


def sampled(how: GibbsSettings, o, **more) -> chains.Sampled:
    return run(chains.fit(o, how, **({"sweeps": 200, "chains": 2, "keep": 40, "seed": 1} | more)))


def copies(count: int, dof: float | None) -> Draws:
    """So many times the same draw, of one feature, one user and two movies."""
    dofs = None if dof is None else torch.full((count, 2), dof)
    row = torch.ones(count, 1, 1)
    return Draws(
        U=0 * row.half(),
        V=(V * row).expand(count, 2, 1).half(),
        weights=Weights((W * row).expand(count, 2, 1).half(), torch.full((2,), VAR)),
        common=Common(W * row[:, 0], torch.tensor(1.0)),
        gamma_u=2 * row[..., 0].half(),
        gamma_v=(0.5 * row[..., 0]).expand(count, 2).half(),
        mean_u=0 * row[:, 0],
        mu_u=0 * row[:, 0],
        mu_v=0 * row[:, 0],
        Lambda_u=LAMBDA * row,
        Lambda_v=LAMBDA * row,
        alpha=ALPHA * row[:, 0, 0],
        prior_dof=dofs,
        noise_dof=dofs,
        ordinal=None,
        drift=None,
        head=Head(1, 0.0, "linear"),
    )
