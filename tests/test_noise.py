"""The noise of a mode, of all and of each user, and how unsure its rows are at other noises than the one they were found at."""

import math

import numpy as np
import pytest
import torch
from made import random_pattern, ratings_of, seeded
from torch import Tensor

from pmfcli.config import Settings
from pmfcli.core.approximation import Laplace
from pmfcli.core.noise import _directions, _heard, _likeliest, scaled
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Factors, Observations, Parameters, mean, observe
from pmfcli.core.predict import predict_pairs
from pmfcli.core.rows import each_of, rows_of
from pmfcli.core.settling import noise_at_rest
from pmfcli.core.sparse import Pattern
from pmfcli.core.team import ALONE, Share
from pmfcli.data.ratings import Ratings
from pmfcli.steps import run
from pmfcli.training import train


@pytest.mark.parametrize("link", ["sigmoid", "linear"])
def test_rows_at_another_noise_are_those_found_there(sample: Ratings, link: str) -> None:
    model = run(train(sample.select(sample.user < 100), Settings(solver="als", latent=5, epochs=4, link=link)))
    p, seen = model.posterior._replace(doubt=torch.tensor(1.0)), model.seen
    known = torch.rand(200, generator=seeded()) < 0.9
    pairs = Pairs(seen.users()[:200], seen.movie[:200].long(), known, known)
    for times in (0.1, 1.0, 30.0):
        there = rows_of(p._replace(noise=p.noise / times**0.5), seen, pairs)
        for each, expected, prior in zip(each_of(p, seen, pairs), there, (p.precision_u, p.precision_v), strict=True):
            found = _heard(*each, _directions(each[0], prior), torch.tensor(times).double(), known)
            torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-3, atol=1e-6)


def test_hardly_any_prior_is_no_reason_to_break_down(sample: Ratings) -> None:
    """Covariances of which rounding leaves no positive definite matrix."""
    wide = {f"sigma_{name}": 1000.0 for name in "uvb"}
    model = run(train(sample, Settings(sigma=0.001, latent=40, epochs=30, **wide)))
    assert 0 < float(model.posterior.noise) < 1


def test_noise_and_doubt_are_the_likeliest() -> None:
    """Against a search on a grid, and against what the errors were made by."""
    n = 20_000
    gamma, own, movies = (torch.rand(n, generator=seeded(k), dtype=torch.float64) + 0.1 for k in range(3))
    own, movies = 0.02 * own, 0.05 * movies
    square = (0.04 * gamma + own + 0.3 * movies) * torch.randn(n, generator=seeded(3), dtype=torch.float64).square()
    noise, doubt, usual = torch.tensor([0.5, 1.0, 0.1]).double()
    for _ in range(4):
        noise, doubt = _likeliest(square, gamma, own, movies, noise, doubt, usual, ALONE)
    assert (float(noise), float(doubt)) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.3, abs=0.1))

    def loss(noise: float, doubt: float) -> float:
        variance = gamma * noise**2 + own + doubt * movies
        prior = math.log(doubt) ** 2 + math.log(noise**2 / float(usual) ** 2) ** 2
        return float(0.5 * (variance.log() + square / variance).sum()) + 0.5 * prior

    least = loss(float(noise), float(doubt))
    near = [(s, b) for s in np.linspace(-0.05, 0.05, 11) for b in np.linspace(-0.3, 0.3, 11)]
    assert all(least <= loss(float(noise) * math.exp(s), float(doubt) * math.exp(b)) + 1e-6 for s, b in near)


def test_priors_that_explain_all_errors_leave_the_noise_of_training() -> None:
    """Of users with a rating each hardly anything is known, and with no noise at all their errors would be as likely.

    The scale of X is one by which training explains most of what it sees. By the one that would be found, an eighth of that,
    the error of training is larger, and the noise a third to a half of it (seeds 0 to 7; by this one .26 to .77 of it).
    """
    user = [*range(1500), *range(0, 1500, 150)]
    stars = torch.randn(len(user), generator=seeded(3)).mul(0.5).add(3).clamp(1, 5)
    order = sorted(range(len(user)), key=lambda n: (user[n], n))
    ratings = ratings_of([user[n] for n in order], [int(n >= 1500) for n in order], stars[order].tolist())
    model = run(train(ratings, Settings(epochs=60, sigma_x=0.4)))
    p = model.posterior
    assert 0.5 * float(p.residual) < float(p.noise) < 2 * float(p.residual)


def test_scales_of_users_are_their_errors_among_those_of_all() -> None:
    n_users, n_movies = 12, 9
    pattern = random_pattern(n_users, n_movies, 0.5, seed=2)
    U, V, b, c = (
        torch.randn(size, generator=seeded(len(size))) for size in ((n_users, 2), (n_movies, 2), (n_users,), (n_movies,))
    )
    o = observe(pattern, torch.rand(pattern.n, generator=seeded(9)))
    f, one = Factors(U, V, b, c, o.offset), torch.tensor(1.0)
    p = Laplace(
        f, Parameters(U, V, None, None, b, c, one), torch.eye(3), torch.eye(3), one, torch.ones(n_users), one, one, False
    )
    sums, counts = np.zeros(n_users), np.zeros(n_users)
    for i, j, t in zip(pattern.row.tolist(), pattern.col.tolist(), o.t.tolist(), strict=True):
        sums[i] += (1 / (1 + math.exp(-float(U[i] @ V[j] + b[i] + c[j] + o.offset))) - t) ** 2
        counts[i] += 1
    usual = sums.sum() / counts.sum()
    centre = 1.0
    for _ in range(200):  # until it is the mean of what it makes
        expected = (5 * centre + sums / usual) / (5 + counts)
        centre = expected.mean()
    found = scaled(p, o)
    assert float(found.residual) == pytest.approx(math.sqrt(usual), rel=1e-5)
    assert found.noise_u.numpy() == pytest.approx(expected, rel=1e-5)
    every = scaled(p, o, pattern.row.long())  # a sample that has all ratings
    torch.testing.assert_close(every.noise_u, found.noise_u)
    assert torch.equal(scaled(p, o, torch.arange(0)).noise_u, p.noise_u)  # and one that has none


def test_users_of_a_fit_without_errors_are_alike() -> None:
    """All ratings but one are alike, and are fitted to a millionth of the scale: such errors do not tell who is noisy."""
    user, movie = torch.nonzero(torch.ones(12, 10)).T
    ratings = ratings_of(user.tolist(), movie.tolist(), [3.0] + [4.0] * 119)
    p = run(train(ratings, Settings(solver="als", latent=3, sigma=0.001, holdout=0))).posterior
    assert float(p.noise_u.min()) > 0.5
    assert float(p.noise) < 0.001


def test_the_mean_noise_scale_is_that_of_people_not_of_ratings() -> None:
    """A sample of ratings has mostly those of users who rate much; who rates little is noisier here."""
    heavy = torch.arange(2000) % 10 == 0
    counts = torch.where(heavy, 60, 6)
    user = torch.arange(2000).repeat_interleave(counts)
    movie = torch.cat([torch.arange(int(count)) for count in counts])
    pattern = Pattern.of(user, movie, (2000, 60))
    away = torch.randn(len(user), generator=seeded(5)) * torch.where(heavy, 0.05, 0.1)[user]
    o = observe(pattern, 0.5 + away, link="linear", with_offset=False)
    one, none = torch.tensor(1.0), torch.zeros(2000, 1)
    f = Factors(none, torch.zeros(60, 1), None, None, 0.0, "linear")
    q = Parameters(none, f.V, None, None, None, None, one)
    p = Laplace(f, q, torch.eye(1), torch.eye(1), one, torch.ones(2000), one, one, False)
    every = scaled(p, o)
    means = [
        float(scaled(p, o, user[torch.randperm(len(user), generator=seeded(seed))[:400]]).noise_u.mean()) for seed in range(10)
    ]
    assert float(np.mean(means)) == pytest.approx(float(every.noise_u.mean()), rel=0.05)


@pytest.mark.parametrize("link", ["sigmoid", "linear"])
def test_intervals_hold_of_those_who_rate_noisily_and_of_those_who_do_not(link: str) -> None:
    """Planted: every other user has half the noise. One for all would hold 95 and 69 % in intervals of 80 %."""
    n_users, n_movies, k = 120, 400, 2
    U, V = (0.7 * torch.randn(rows, k, generator=seeded(rows)) for rows in (n_users, n_movies))
    noise = torch.tensor([0.06, 0.12]).repeat(n_users // 2)
    t = mean(U @ V.T, link) + noise[:, None] * torch.randn(n_users, n_movies, generator=seeded(5))
    mask = torch.rand(n_users, n_movies, generator=seeded(6)) < 0.6
    mask &= (t > 0) & (t < 1)
    test = mask & (torch.rand(n_users, n_movies, generator=seeded(7)) < 0.2)
    user, movie = torch.nonzero(mask & ~test, as_tuple=True)
    ratings = ratings_of(user.tolist(), movie.tolist(), (1 + 4 * t[user, movie]).tolist())
    model = run(train(ratings, Settings(latent=k, sigma=0.1, sigma_u=0.7, sigma_v=0.7, hierarchical="none", link=link)))
    user, movie = torch.nonzero(test, as_tuple=True)
    known = torch.ones(len(user), dtype=torch.bool)
    pairs = Pairs(user, movie, known, known)
    found = predict_pairs(model.posterior, model.seen, pairs)
    true = model.scale.to_unit(1 + 4 * t[user, movie])
    low, high = found.interval(0.8)
    for half in (0, 1):
        mine = user % 2 == half
        inside = float(((low <= true) & (true <= high))[mine].double().mean())
        assert inside == pytest.approx(0.8, abs=0.04)
    gamma = model.posterior.noise_u
    assert float(gamma[1::2].mean() / gamma[::2].mean()) == pytest.approx(4, rel=0.3)


def test_nobody_who_is_held_out_has_a_rating_left() -> None:
    """Every user rated once: there is nobody to tell the noise of."""
    movie = torch.randint(20, (600,), generator=seeded()).tolist()
    stars = torch.randint(1, 6, (600,), generator=seeded(1)).tolist()
    ratings = ratings_of(list(range(600)), movie, stars)
    for solver in ("adam", "als"):
        model = run(train(ratings, Settings(solver=solver, latent=2, epochs=5)))
        assert "holdout_rmse" in model.metrics
        assert bool((model.posterior.noise_u > 0).all())


def at_start(noise: float, held: int) -> tuple[Laplace, Seen, Observations, Pairs, Tensor]:
    """Movies as planted, 200 users at 0, and so many ratings that were held out."""
    U, V = (torch.randn(rows, 3, generator=seeded(rows)) for rows in (200, 150))
    pattern = random_pattern(200, 150, 0.3, seed=4)

    def rated(user: Tensor, movie: Tensor, seed: int) -> Tensor:
        return mean((U[user] * V[movie]).sum(1), "linear") + noise * torch.randn(len(user), generator=seeded(seed))

    user, movie = pattern.row.long(), pattern.col.long()
    o = observe(pattern, rated(user, movie, 1), link="linear", with_offset=False)
    zero, eye, one = torch.zeros(200, 3), torch.eye(3), torch.tensor(1.0)
    p = Parameters(zero, V, None, None, None, None, torch.tensor(0.5))
    laplace = Laplace(Factors(zero, V, None, None, 0.0, "linear"), p, 4 * eye, eye, one, torch.ones(200), one, one, False)
    asked = torch.randint(200, (held,), generator=seeded(2)), torch.randint(150, (held,), generator=seeded(3))
    known = torch.ones(held, dtype=torch.bool)
    seen = Seen(pattern.crow.long(), pattern.col, o.t)
    return laplace, seen, o, Pairs(*asked, known, known), rated(*asked, 4)


def test_users_settle_by_less_noise_where_that_predicts_clearly_better() -> None:
    laplace, seen, o, pairs, t = at_start(0.05, 5000)
    assert noise_at_rest(laplace, seen, o, pairs, t) < 0.3
    for noise, held in ((0.5, 5000), (0.05, 999)):  # as much as there is; or too few to tell
        assert noise_at_rest(*at_start(noise, held)) == 0.5
    nobody = pairs._replace(user_known=torch.zeros_like(pairs.user_known))
    assert noise_at_rest(laplace, seen, o, nobody, t) == 0.5
    elsewhere = o._replace(users=Share(first=1_000_064, of=1_000_264))  # a process whose users are none of those that tell
    assert noise_at_rest(laplace, seen, elsewhere, pairs, t) == 0.5
