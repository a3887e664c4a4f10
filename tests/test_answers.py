"""Predictions, recommendations, neighbours, scores: each against a plain calculation of its own."""

import math

import numpy as np
import pytest
import torch
from conftest import random_pattern

from pmfcli.core import predict as predict_module
from pmfcli.core.metrics import fit_biases, predict_baselines, scores
from pmfcli.core.neighbours import similar
from pmfcli.core.posterior import Factors
from pmfcli.core.predict import Pairs, predict_pairs, recommend


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def factors() -> Factors:
    g = generator()
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


def test_pairs_are_the_dense_matrix(factors: Factors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "_BLOCK", 7)
    U, V, b, c = (part.double().numpy() for part in factors[:4])
    dense = 1 / (1 + np.exp(-(U @ V.T + b[:, None] + c[None, :] + 0.4)))
    assert predict_pairs(factors, all_pairs()).numpy() == pytest.approx(dense.flatten(), abs=1e-6)


def test_an_unknown_movie_has_its_prior_mean_and_an_unknown_user_is_the_average_one(factors: Factors) -> None:
    b, c, mean_b = factors.b.repeat_interleave(8), factors.c.repeat(5), factors.b.mean()
    average = (factors.V @ factors.U.mean(0)).repeat(5)
    for user_known, movie_known, x in ((True, False, b), (False, True, average + mean_b + c), (False, False, 0 * b + mean_b)):
        found = predict_pairs(factors, all_pairs(user_known, movie_known))
        torch.testing.assert_close(found, torch.sigmoid(x + 0.4))
    plain = predict_pairs(factors._replace(b=None, c=None), all_pairs(False, True))
    torch.testing.assert_close(plain, torch.sigmoid(average + 0.4))


def test_recommendations_are_the_best_allowed_and_ties_go_by_row(factors: Factors) -> None:
    tied = factors._replace(V=factors.V.index_copy(0, torch.tensor([6]), factors.V[2:3]))
    tied = tied._replace(c=tied.c.index_copy(0, torch.tensor([6]), tied.c[2:3]))
    allowed = torch.tensor([True, True, True, False, True, True, True, True])
    x = tied.V @ tied.U[1] + tied.b[1] + tied.c + 0.4
    expected = sorted((row for row in range(8) if allowed[row]), key=lambda row: (-round(float(x[row]), 5), row))
    assert recommend(tied, 1, allowed, 5).tolist() == expected[:5]
    assert len(recommend(tied, 1, torch.zeros(8, dtype=torch.bool), 5)) == 0


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_neighbours_are_the_nearest(metric: str) -> None:
    vectors = torch.randn(20, 3, generator=generator(1))
    x = vectors.double().numpy()
    near = {
        "cosine": [x[i] @ x[4] / np.linalg.norm(x[i]) / np.linalg.norm(x[4]) for i in range(20)],
        "dot": [x[i] @ x[4] for i in range(20)],
        "euclidean": [-np.linalg.norm(x[i] - x[4]) for i in range(20)],
    }[metric]
    allowed = torch.ones(20, dtype=torch.bool)
    allowed[7] = False
    rows, similarity = similar(vectors, 4, allowed, 6, metric)
    expected = [i for i in np.argsort(near)[::-1] if i not in (4, 7)][:6]
    assert rows.tolist() == expected
    assert similarity.tolist() == pytest.approx([near[i] for i in expected], abs=1e-5)


def test_scores_are_their_definitions() -> None:
    found = scores(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 2.0, 3.0]))
    assert found == (3, pytest.approx(math.sqrt(5 / 3)), pytest.approx(1.0))


def test_biases_are_the_ridge_regression() -> None:
    """The alternating fit against one joint least-squares solution of the same penalised problem."""
    pattern = random_pattern(12, 9, 0.7, seed=2)
    stars = 3 + torch.randn(pattern.n, generator=generator(3))
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
