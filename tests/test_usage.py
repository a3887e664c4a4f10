"""How people use a scale: groups of them, and what a mode answers in their steps."""

import math

import numpy as np
import pytest
import torch
from made import ratings_of, seeded

from pmfcli.answers import Asked, Detail, Visitor, predict, star_columns
from pmfcli.artifact import Model, dumps, loads
from pmfcli.config import Settings
from pmfcli.core.usage import Groups, Usage, belonging, counted, find, learn
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import UsageError
from pmfcli.evaluation import score_model
from pmfcli.fitting import observed
from pmfcli.reports import summary
from pmfcli.steps import run
from pmfcli.training import train

USERS, MOVIES = 120, 60


def made() -> Ratings:
    """Ratings of 1 to 5 by halves, that every other person rounds to whole stars."""
    g = seeded(0)
    user, movie = torch.nonzero(torch.rand(USERS, MOVIES, generator=g) < 0.5).T
    x = 3 + torch.randn(USERS, generator=g)[user] * 0.5 + torch.randn(MOVIES, generator=g)[movie] * 0.7
    x = x + 0.5 * torch.randn(len(x), generator=g)
    stars = torch.where(user % 2 == 0, (2 * x).round() / 2, x.round()).clamp(1, 5)
    return ratings_of(user.tolist(), movie.tolist(), stars.tolist())


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    return made()


@pytest.fixture(scope="module")
def model(ratings: Ratings) -> Model:
    return run(train(ratings, Settings(latent=4, epochs=100)))


def halves(model: Model, asked: Asked) -> float:
    (row,) = predict(model, [asked], Detail(0.9, stars=True))
    assert sum(row[f"p_{step:g}"] for step in model.steps) == pytest.approx(1, abs=1e-6)
    return sum(row[f"p_{step:g}"] for step in model.steps if step % 1)


def test_who_never_gives_half_stars_is_not_said_to(model: Model) -> None:
    for user in range(10):
        found = np.mean([halves(model, Asked(f"u{user}", str(10 * movie))) for movie in range(20)])
        assert found > 0.3 if user % 2 == 0 else found < 0.02
    assert 0.1 < halves(model, Asked("nobody", "0")) < 0.4  # who may be either


def test_a_visitor_uses_the_scale_as_somebody_with_their_ratings_does(model: Model) -> None:
    for user in (4, 5):
        movies, stars = model.seen.of(user)
        visitor = Visitor(tuple(movies.tolist()), tuple(stars.tolist()))
        asked = [Asked(None, str(10 * movie)) for movie in range(5)]
        own = predict(model, [one._replace(user=f"u{user}") for one in asked], Detail(0.9, stars=True))
        new = predict(model, asked, Detail(0.9, stars=True), visitor)
        for a, b in zip(own, new, strict=True):
            for step in model.steps:
                assert a[f"p_{step:g}"] == pytest.approx(b[f"p_{step:g}"], abs=1e-3)


def test_it_predicts_the_same_and_knows_better_what_may_come(ratings: Ratings) -> None:
    held = random_mask(ratings.n, 0.2, 1)
    rest, test = ratings.select(~held), ratings.select(held)
    scores = {}
    for likelihood in ("gaussian", "ordinal"):
        found = run(train(rest, Settings(latent=4, epochs=100, likelihood=likelihood)))
        assert (found.posterior.usage is None) == (likelihood == "gaussian")
        scores[likelihood] = summary(score_model(found, test))
    assert scores["ordinal"]["rmse"] == pytest.approx(scores["gaussian"]["rmse"], abs=1e-6)
    assert scores["ordinal"]["nll"] < scores["gaussian"]["nll"] - 0.2
    assert scores["ordinal"]["crps"] < scores["gaussian"]["crps"]


def test_planted_groups_are_found(ratings: Ratings) -> None:
    """Cut points of each where the density of what its people think has them, z being a normal around its mean."""
    o = observed(ratings, Settings())
    found = find(o, ratings.scale, 2, 0)
    assert found.grid.tolist() == pytest.approx(np.linspace(0, 1, 9).tolist())
    gaps = found.groups.cuts.diff()  # of 1.5 stars, 2, ..., 4.5
    whole = int(gaps[:, 0].argmin())
    assert (gaps[whole, 0::2] < 0.02).all()
    assert gaps[whole, 1::2].tolist() == pytest.approx([0.25] * 3, abs=0.06)
    assert gaps[1 - whole].tolist() == pytest.approx([0.125] * 7, abs=0.05)
    assert (found.groups.people / found.groups.people.sum()).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_belonging_is_bayes_rule() -> None:
    groups = Groups(
        torch.tensor([[0.2, 0.6], [0.4, 0.5]]), torch.tensor([30.0, 10.0]), torch.tensor([0.2, 0.3]), torch.zeros(2)
    )
    level, row = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 0, 1])
    given, mean = counted(row, level, (3, 3)), torch.tensor([[0.5], [0.3], [0.0]])
    for person in range(3):
        expected = []
        for cuts, people, sd in zip(groups.cuts.tolist(), (30, 10), (0.2, 0.3), strict=True):
            edges = [0.0, *(0.5 * math.erfc((float(mean[person]) - cut) / sd / math.sqrt(2)) for cut in cuts), 1.0]
            of = [edges[k + 1] - edges[k] for k in level[row == person].tolist()]
            expected.append(people * math.prod(of))
        assert belonging(groups, given, mean)[person].tolist() == pytest.approx(np.divide(expected, sum(expected)), rel=1e-4)


def test_one_group_has_its_cut_points_where_its_ratings_are() -> None:
    """A normal with the mean and the variance of all has the part of each step between them."""
    g = seeded(1)
    level = torch.randint(4, (2000,), generator=g)
    row, z = torch.arange(2000) % 50, level / 3
    groups, share = learn(4, level, row, z, torch.ones(50, 1))
    normal = torch.distributions.Normal(z.mean(), z.std(correction=0))
    below = torch.bincount(level, minlength=4).cumsum(0)[:-1] / 2000
    assert normal.cdf(groups.cuts[0]).tolist() == pytest.approx(below.tolist(), abs=2e-3)
    assert torch.equal(share, torch.ones(50, 1))


def test_the_file_keeps_it(model: Model) -> None:
    found, p = loads(dumps(model), "x").posterior.usage, model.posterior.usage
    assert isinstance(found, Usage)
    assert all(torch.equal(a, b) for a, b in zip((*found[:2], *found.groups), (*p[:2], *p.groups), strict=True))


def test_ratings_that_are_all_alike_once_some_are_held_out_are_numbers() -> None:
    user, movie = torch.nonzero(torch.ones(12, 10)).T.tolist()
    one = ratings_of(user, movie, [1.0] + [5.0] * (len(user) - 1))
    seed = next(seed for seed in range(100) if random_mask(one.n, 0.5, seed)[0])
    for method in ("map", "bayes"):
        found = run(train(one, Settings(method=method, latent=2, epochs=20, holdout=0.5, refit=False, seed=seed)))
        assert found.posterior.grid is None
        assert loads(dumps(found), "x").steps == ()


def test_ratings_that_are_too_different_have_no_habits() -> None:
    user, movie = torch.nonzero(torch.ones(6, 6)).T.tolist()
    many = ratings_of(user, movie, [float(value) for value in range(36)])
    with pytest.raises(UsageError, match="--habits: needs 2 to 25 different ratings, not 36; leave it out"):
        run(train(many, Settings(habits=3, epochs=2, latent=2)))


def test_columns_of_a_large_scale_have_names_of_their_own() -> None:
    user, movie = torch.nonzero(torch.ones(6, 5)).T.tolist()
    large = ratings_of(user, movie, [1e9 + 1e3 * row for row in movie])
    found = run(train(large, Settings(latent=2, epochs=3)))
    assert len(set(star_columns(found, stars=True))) == 5


def test_a_rating_that_hardly_anybody_gives_is_found_all_the_same() -> None:
    """Of more people than are looked at for groups: those who are all gave the same."""
    user = np.arange(20_001).repeat(2).tolist()
    stars = [5.0] * len(user)
    stars[2] = 1.0
    found = run(train(ratings_of(user, [0, 1] * 20_001, stars), Settings(latent=1, epochs=3)))
    assert loads(dumps(found), "x").steps == (1.0, 5.0)
