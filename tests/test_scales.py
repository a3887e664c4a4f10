"""Prior scales from the ratings: planted ones come back, and others are as by hand."""

import pytest
import torch
from made import far_apart, seeded

from pmfcli.config import Settings
from pmfcli.core.posterior import Link, Observations, observe
from pmfcli.core.scales import bias_scale, means_scale
from pmfcli.core.sparse import Pattern
from pmfcli.steps import run
from pmfcli.training import train


def observed(user: torch.Tensor, movie: torch.Tensor, t: torch.Tensor, shape: tuple[int, int], link: Link) -> Observations:
    return observe(Pattern.of(user.int(), movie.int(), shape), t, user_means=False, movie_means=False, link=link)


@pytest.mark.parametrize(("link", "centre", "rate"), [("linear", 0.7, 0.25), ("sigmoid", 0.8, 0.16)])
@pytest.mark.parametrize(("users", "movies"), [(0.6, 0.6), (0.5, 0.8), (0.8, 0.0), (0.3, 0.2)])
def test_planted_biases_are_as_far_apart(users: float, movies: float, link: Link, centre: float, rate: float) -> None:
    """Every user has rated every tenth movie, with a noise of 0.1 of the scale; biases go by the slope of the link there."""
    g = seeded()
    b, c = users * torch.randn(2000, generator=g), movies * torch.randn(1000, generator=g)
    user = torch.arange(2000).repeat_interleave(100)
    movie = 10 * torch.arange(100).repeat(2000) + user % 10
    t = centre + rate * (b[user] + c[movie]) + 0.1 * torch.randn(len(user), generator=g)
    found = bias_scale(observed(user, movie, t, (2000, 1000), link))
    rows = 2000 * users**2 + 1000 * movies**2 + 50 * 0.5**2
    assert found == pytest.approx(max(0.5, (rows / 3050) ** 0.5), rel=0.05)


def test_rows_by_hand() -> None:
    """Two users with two ratings each, a mean of 1/4 and one of 3/4; every movie has one rating, which says nothing of it.

    Squares between users add up to 1/4, of one degree of freedom, those within to 1/4, of two; the slope is 1/4.
    """
    user, movie, t = torch.tensor([0, 0, 1, 1]), torch.arange(4), torch.tensor([0.0, 0.5, 0.5, 1.0])
    between = (0.25 - 0.125) / 2
    variance = (50 * 0.25 + 2 * between * 16) / 52
    assert bias_scale(observed(user, movie, t, (3, 4), "linear")) == pytest.approx(variance**0.5)


def test_a_scale_that_is_given_stays_and_one_that_is_not_is_found() -> None:
    apart = far_apart()
    small = {"epochs": 2, "latent": 2}
    assert run(train(apart, Settings(**small, sigma_b=0.2))).settings["sigma_b"] == 0.2
    user, movie, t = apart.tensors()
    whole = bias_scale(observed(user, movie, t, (len(apart.users), len(apart.movies)), "sigmoid"))
    assert whole > 0.6
    assert run(train(apart, Settings(**small))).settings["sigma_b"] == whole
    assert run(train(apart, Settings(**small, method="bayes"))).settings["sigma_b"] is None
    assert run(train(apart, Settings(**small, biases=False))).settings["sigma_b"] is None


def test_the_means_of_movies_are_not_too_wide() -> None:
    """One movie of a hundred people with a rating each, and eight of four people who rated all of these."""
    user = torch.cat([torch.arange(100), 100 + torch.arange(4).repeat_interleave(8)])
    movie = torch.cat([torch.zeros(100), 1 + torch.arange(8).repeat(4)])
    o = observe(Pattern.of(user.int(), movie.int(), (104, 9)), torch.full((132,), 0.5))
    width = (100 * 100 * 100**-0.5 + 32 * 4 * 4**-0.5 * 8**-0.5) / 132
    assert means_scale(o) == pytest.approx(0.4 * (0.6 / width) ** 0.5)
    few = observe(Pattern.of(user[100:].int() - 100, movie[100:].int() - 1, (4, 8)), torch.full((32,), 0.5), movie_power=0.5)
    assert means_scale(few) == 0.4
    apart = far_apart()
    found = run(train(apart, Settings(epochs=2, latent=2))).settings["sigma_x"]
    user, movie, t = apart.tensors()
    assert found == means_scale(observe(Pattern.of(user, movie, (len(apart.users), len(apart.movies))), t)) < 0.4
    assert run(train(apart, Settings(epochs=2, latent=2, sigma_x=0.2))).settings["sigma_x"] == 0.2
