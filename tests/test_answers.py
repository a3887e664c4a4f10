"""Predictions, recommendations, neighbours, scores: each against a plain calculation of its own."""

import math

import numpy as np
import pytest
import torch
from made import random_pattern, seeded

from pmfcli.core import recommend as recommend_module
from pmfcli.core.approximation import Laplace
from pmfcli.core.baselines import fit_biases, predict_baselines
from pmfcli.core.metrics import scores
from pmfcli.core.neighbours import similar
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Factors, Parameters
from pmfcli.core.predict import means_of_pairs, predict_pairs
from pmfcli.core.predictive import Masses, Mixture
from pmfcli.core.recommend import rank
from pmfcli.core.rows import movies_of, of_unknown_movies, of_unknown_users, users_of


@pytest.fixture
def factors() -> Factors:
    g = seeded()
    return Factors(
        torch.randn(5, 3, generator=g),
        torch.randn(8, 3, generator=g),
        torch.randn(5, generator=g),
        torch.randn(8, generator=g),
        0.4,
    )


def all_pairs(user_known: bool = True, movie_known: bool = True) -> Pairs:
    user, movie = torch.meshgrid(torch.arange(5), torch.arange(8), indexing="ij")
    known = torch.ones(40, dtype=torch.bool)
    return Pairs(user.flatten(), movie.flatten(), known & user_known, known & movie_known)


SEEN = Seen(torch.tensor([0, 2, 4, 5, 7, 8]), torch.tensor([0, 3, 1, 3, 5, 2, 6, 7], dtype=torch.int32), torch.ones(8))


SCALES, DOUBT = torch.tensor([0.5, 2.0, 1.0, 1.5, 0.7]), torch.tensor(0.4)


def laplace(f: Factors) -> Laplace:
    d = f.U.shape[1] + (f.b is not None)
    parameters = Parameters(f.U, f.V, None, None, f.b, f.c, torch.tensor(0.3))
    return Laplace(
        f, parameters, torch.eye(d), 2 * torch.eye(d), torch.tensor(0.2), SCALES, torch.tensor(0.15), DOUBT, mean_field=False
    )


def test_pairs_are_the_dense_matrix(factors: Factors) -> None:
    U, V, b, c = (part.double().numpy() for part in factors[:4])
    dense = 1 / (1 + np.exp(-(U @ V.T + b[:, None] + c[None, :] + 0.4)))
    found = predict_pairs(laplace(factors), SEEN, all_pairs())
    assert found.mean().numpy() == pytest.approx(dense.flatten(), abs=1e-6)
    assert means_of_pairs(factors, all_pairs()).numpy() == pytest.approx(dense.flatten(), abs=1e-6)


def test_the_spread_of_a_pair_is_that_of_two_regressions(factors: Factors) -> None:
    """The variance written out for one pair: both rows' curvature given the other side. Their product is for unknown ones."""
    f, (i, j) = factors, (1, 3)
    x = f.U @ f.V.T + f.b[:, None] + f.c[None, :] + 0.4
    g = torch.sigmoid(x)
    w = (g * (1 - g) / 0.2) ** 2
    ones = torch.ones(8, 1)
    V1, U1 = torch.cat([f.V, ones], 1), torch.cat([f.U, ones[:5]], 1)
    Ci = torch.linalg.inv(torch.eye(4) + sum(w[1, m] * torch.outer(V1[m], V1[m]) for m in (1, 3)))
    Cj = torch.linalg.inv(2 * torch.eye(4) + sum(w[u, 3] * torch.outer(U1[u], U1[u]) for u in (0, 1)))
    Cj = DOUBT * Cj
    variance = V1[j] @ Ci @ V1[j] + U1[i] @ Cj @ U1[i]
    expected = (SCALES[i] * 0.04 + (g * (1 - g))[i, j] ** 2 * variance) ** 0.5
    pairs = Pairs(torch.tensor([i]), torch.tensor([j]), torch.tensor([True]), torch.tensor([True]))
    assert float(predict_pairs(laplace(f), SEEN, pairs).spread) == pytest.approx(float(expected), rel=1e-5)


def test_an_unknown_movie_has_its_prior_mean_and_an_unknown_user_is_the_average_one(factors: Factors) -> None:
    b, c, mean_b = factors.b.repeat_interleave(8), factors.c.repeat(5), factors.b.mean()
    average = (factors.V @ factors.U.mean(0)).repeat(5)
    known = predict_pairs(laplace(factors), SEEN, all_pairs()).sd().mean()
    for user_known, movie_known, x in ((True, False, b), (False, True, average + mean_b + c), (False, False, 0 * b + mean_b)):
        found = predict_pairs(laplace(factors), SEEN, all_pairs(user_known, movie_known))
        torch.testing.assert_close(found.mean(), torch.sigmoid(x + 0.4))
        torch.testing.assert_close(means_of_pairs(factors, all_pairs(user_known, movie_known)), torch.sigmoid(x + 0.4))
        if not (user_known or movie_known):
            assert found.sd().mean() > known
    plain = predict_pairs(laplace(factors._replace(b=None, c=None)), SEEN, all_pairs(False, True))
    torch.testing.assert_close(plain.mean(), torch.sigmoid(average + 0.4))


def test_who_is_unknown_is_as_unsure_as_the_prior_and_the_hierarchical_means_of_others(factors: Factors) -> None:
    p = laplace(factors)
    Y, Z = 0.5 * factors.U, 0.25 * factors.V
    hierarchical = p._replace(parameters=p.parameters._replace(Y=Y, Z=Z, W=factors.V, X=factors.U))
    of_users, of_movies = torch.eye(4), torch.eye(4) / 2
    torch.testing.assert_close(of_unknown_users(p), of_users)
    torch.testing.assert_close(of_unknown_movies(p), of_movies)
    of_users[:3, :3] += (factors.U - Y).mT.cov(correction=0)  # around the average user, who is where the unknown one is
    of_movies[:3, :3] += (factors.V - Z).mT @ (factors.V - Z) / 8  # around 0
    torch.testing.assert_close(of_unknown_users(hierarchical), of_users)
    torch.testing.assert_close(of_unknown_movies(hierarchical), of_movies)
    nobody = torch.tensor([-1])
    users, movies = users_of(hierarchical, SEEN, nobody), movies_of(hierarchical, SEEN, nobody)
    torch.testing.assert_close(users.covariance, of_users[None, None])
    torch.testing.assert_close(movies.covariance, DOUBT * of_movies[None, None])
    assert float(users.gamma) == pytest.approx(1 / float(SCALES.mean()))


@pytest.mark.parametrize("by", ["mean", "lower", "upper"])
def test_the_rank_is_the_mean_or_an_end_of_the_interval(factors: Factors, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_module, "_BLOCK", 3)
    p, movies = laplace(factors), torch.tensor([0, 1, 2, 4, 5, 6, 7])
    (found,) = rank(p, SEEN, users_of(p, SEEN, torch.tensor([1])), movies, by, 0.8)
    every = torch.ones(7, dtype=torch.bool)
    m = predict_pairs(p, SEEN, Pairs(torch.full((7,), 1), movies, every, every))
    expected = {"mean": m.mean(), "lower": m.by_end(0.8, upper=False), "upper": m.by_end(0.8, upper=True)}[by]
    torch.testing.assert_close(torch.sigmoid(found) if by == "mean" else found, expected)


def test_films_whose_intervals_end_at_the_same_step_are_told_apart() -> None:
    top = torch.linspace(0.05, 0.9, 18)
    masses = Masses(torch.stack([(1 - top) / 2, (1 - top) / 2, top], 1), torch.tensor([0.0, 0.5, 1.0]))
    by_upper, by_lower = masses.by_end(0.9, upper=True), masses.by_end(0.9, upper=False)
    assert bool((by_upper.diff() > 0).all())
    flipped = Masses(masses.mass.flip(1), masses.grid)
    assert bool((flipped.by_end(0.9, upper=False).diff() < 0).all())
    for rank_of, end in ((by_upper, masses.interval(0.9)[1]), (by_lower, masses.interval(0.9)[0])):
        assert torch.equal(rank_of.floor(), torch.searchsorted(masses.grid, end).float())


def test_films_beyond_the_scale_are_told_apart(factors: Factors) -> None:
    p = laplace(factors._replace(link="linear", offset=9.0))
    (found,) = rank(p, SEEN, users_of(p, SEEN, torch.tensor([1])), torch.arange(8), "mean", 0.8)
    assert len(found.unique()) == 8
    assert bool((0.5 + 0.25 * found > 1).all())


def test_a_mixture_against_its_draws() -> None:
    """Mean, sd, quantiles and masses of a mixture against a million draws of it."""
    centre, spread = torch.tensor([[0.3], [0.7], [0.6]]).double(), torch.tensor([[0.05], [0.1], [0.2]]).double()
    m, g = Mixture(centre, spread), seeded(2)
    which = torch.randint(3, (1_000_000,), generator=g)
    draws = centre[which, 0] + spread[which, 0] * torch.randn(1_000_000, generator=g).double()
    assert float(m.mean()) == pytest.approx(float(centre.mean()))
    assert float(m.sd()) == pytest.approx(float(draws.clamp(0, 1).std()), abs=1e-3)
    for level in (0.1, 0.5, 0.9):
        ends = draws.clamp(0, 1).quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2]).double()).tolist()
        assert [float(end) for end in m.interval(level)] == pytest.approx(ends, abs=2e-3)
    masses = m.masses(torch.tensor([0.0, 0.5, 1.0]).double())[0].tolist()
    low, high = float((draws < 0.25).double().mean()), float((draws > 0.75).double().mean())
    assert masses == pytest.approx([low, 1 - low - high, high], abs=2e-3)


@pytest.mark.parametrize("q", [0.025, 0.4, 0.9])
def test_quantiles_of_one_gaussian_and_of_the_same_twice(q: float) -> None:
    one = Mixture(torch.tensor([[0.3, 0.9]]).double(), torch.tensor([[0.05, 0.3]]).double())
    twice = Mixture(one.centre.repeat(2, 1), one.spread.repeat(2, 1))
    torch.testing.assert_close(one.quantile_of_x(q), twice.quantile_of_x(q), rtol=0, atol=1e-7)
    torch.testing.assert_close(one.below(one.quantile_of_x(q)), torch.full((2,), q).double())
    assert bool(torch.isfinite(one.quantile_of_x(1.0)).all())  # what the widest interval's end is rounded to


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_neighbours_are_the_nearest(metric: str) -> None:
    vectors = torch.randn(20, 3, generator=seeded(1))
    x = vectors.double().numpy()
    near = {
        "cosine": [x[i] @ x[4] / np.linalg.norm(x[i]) / np.linalg.norm(x[4]) for i in range(20)],
        "dot": [x[i] @ x[4] for i in range(20)],
        "euclidean": [-np.linalg.norm(x[i] - x[4]) for i in range(20)],
    }[metric]
    allowed = torch.ones(20, dtype=torch.bool)
    allowed[7] = False
    rows, similarity, sd = similar(vectors[None], 4, allowed, 6, metric)
    assert sd.tolist() == [0] * 6
    expected = [i for i in np.argsort(near)[::-1] if i not in (4, 7)][:6]
    assert rows.tolist() == expected
    assert similarity.tolist() == pytest.approx([near[i] for i in expected], abs=1e-5)


def test_scores_are_their_definitions() -> None:
    found = scores(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 2.0, 3.0]))
    assert found == (3, pytest.approx(math.sqrt(5 / 3)), pytest.approx(1.0))


def test_biases_are_the_ridge_regression() -> None:
    """The alternating fit against one joint least-squares solution of the same penalised problem."""
    pattern = random_pattern(12, 9, 0.7, seed=2)
    stars = 3 + torch.randn(pattern.n, generator=seeded(3))
    design = np.zeros((pattern.n, 21))
    design[np.arange(pattern.n), pattern.row.numpy()] = 1
    design[np.arange(pattern.n), 12 + pattern.col.numpy()] = 1
    penalty = np.diag([15.0] * 12 + [10.0] * 9)
    centred = (stars - stars.double().mean()).double().numpy()
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ centred)
    bias = fit_biases(pattern, stars)
    assert torch.cat([bias.b, bias.c]).numpy() == pytest.approx(expected, abs=1e-5)

    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([True, False]), torch.tensor([True, False]))
    beside = predict_baselines(bias, pairs)
    mean = float(stars.double().mean())
    assert beside["mean"].tolist() == pytest.approx([mean, mean])
    assert beside["bias"].tolist() == pytest.approx([mean + float(bias.b[0] + bias.c[1]), mean])
