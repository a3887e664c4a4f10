"""Scores against closed forms, counting and simulation; what a correctly specified model must show."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import ratings_of, seeded

from pmfcli.answers import Choice, Detail, recommend
from pmfcli.config import Settings
from pmfcli.core import metrics
from pmfcli.core.predictive import Masses, Mixture
from pmfcli.data.ratings import Ratings, Scale
from pmfcli.data.split import random_mask
from pmfcli.evaluation import LEVELS, _predicted, cross_score, large_error, rank_model
from pmfcli.reports import report_ranking
from pmfcli.steps import run
from pmfcli.training import train

GRID = torch.tensor([1.0, 2.0, 3.0, 5.0])


def some_masses(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    mass = torch.rand(n, 4, generator=seeded(1)).double()
    return mass / mass.sum(1, keepdim=True), torch.randint(4, (n,), generator=seeded(2))


def test_the_log_score_is_that_of_a_categorical() -> None:
    mass, level = some_masses()
    torch.testing.assert_close(metrics.log_score(mass, level), -torch.distributions.Categorical(mass).log_prob(level))


def test_the_ranked_score_is_what_its_expectations_say() -> None:
    """CRPS = E|R - r| - E|R - R'| / 2 for independent R, R' of the distribution (Gneiting & Raftery 2007, Eq. 21)."""
    mass, level = some_masses()
    found = metrics.ranked_probability_score(mass, GRID, level)
    to_truth = (mass * (GRID - GRID[level][:, None]).abs()).sum(1)
    among = torch.einsum("ni,nj,ij->n", mass, mass, (GRID[:, None] - GRID).abs().double())
    torch.testing.assert_close(found, to_truth - 0.5 * among)


def test_without_steps_the_score_of_a_gaussian_is_the_known_one() -> None:
    """CRPS of N(m, s): s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), far from the ends of the scale."""
    m, s, r = 50.0, 4.0, torch.tensor([43.0, 50.0, 57.5])
    z = (r - m) / s
    phi = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    exact = s * (z * (2 * torch.special.ndtr(z) - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    said = Mixture(torch.full((1, 3), m / 100), torch.full((1, 3), s / 100))
    found = _predicted(said, Scale(0.0, 100.0), None, r)
    torch.testing.assert_close(found["crps"], exact, rtol=0, atol=0.02)
    torch.testing.assert_close(found["below"], torch.special.ndtr(z))
    assert bool(found["nll"].isnan().all())


def test_the_area_under_roc_counts_pairs() -> None:
    g = seeded(3)
    score = torch.randint(30, (200,), generator=g).float() - 4
    event = torch.rand(200, generator=g) < 0.3
    above = (score[event][:, None] > score[~event]).double() + 0.5 * (score[event][:, None] == score[~event]).double()
    assert metrics.area_under_roc(score, event) == pytest.approx(float(above.mean()))
    assert metrics.area_under_roc(score, torch.zeros(200, dtype=torch.bool)) is None


def test_the_pit_histogram_is_that_of_random_draws() -> None:
    mass, level = some_masses(20)
    high = mass.cumsum(1).gather(1, level[:, None])[:, 0]
    low = high - mass.gather(1, level[:, None])[:, 0]
    drawn = low + (high - low) * torch.rand(20_000, 20, generator=seeded(4)).double()
    simulated = torch.histc(drawn, 5, 0, 1) / drawn.numel()
    assert metrics.pit_histogram(low, high, 5) == pytest.approx(simulated.tolist(), abs=0.005)
    sure = torch.tensor([0.0, 1.0, 1.0])
    assert metrics.pit_histogram(sure, sure, 4) == pytest.approx([1 / 3, 0, 0, 2 / 3])


def test_the_bootstrap_of_a_mean_has_its_standard_error() -> None:
    """Groups of equal size: the mean of group means, whose standard error is known."""
    values = torch.randn(400, 5, generator=seeded(5)).double() + torch.randn(400, 1, generator=seeded(6)).double()
    group = torch.arange(400).repeat_interleave(5)
    sums, count = metrics.bootstrap(group, values.flatten()[:, None], 0)
    means = sums[:, 0] / count
    assert float(means.mean()) == pytest.approx(float(values.mean()), abs=0.01)
    assert float(means.std()) == pytest.approx(float(values.mean(1).std()) / 20, rel=0.1)


@pytest.mark.parametrize(("groups", "student"), [(10, 2.262), (20, 2.093), (30, 2.045)])
def test_intervals_of_few_groups_are_as_wide_as_by_students_t(groups: int, student: float) -> None:
    ratio = []
    for seed in range(30):
        values = torch.randn(groups, generator=seeded(seed)).double()
        sums, count = metrics.bootstrap(torch.arange(groups), values[:, None], seed)
        low, high = (sums[:, 0] / count).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        ratio.append((high - low) / (2 * student * float(values.std()) / groups**0.5))
    assert sum(ratio) / len(ratio) == pytest.approx(1, abs=0.04)


def test_few_groups_have_no_bootstrap() -> None:
    sums, count = metrics.bootstrap(torch.arange(9), torch.ones(9, 1), 0)
    assert (len(sums), len(count)) == (0, 0)


def test_the_people_of_a_split_are_those_of_the_data() -> None:
    """Also those whom training does not know: all of a person's ratings are drawn together."""
    ratings = ratings_of([0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 0, 1, 2], [1, 2, 3, 4, 5, 4, 1])
    mask = np.array([False] * 4 + [True] * 3)
    ((found, _),) = cross_score(ratings, Settings(epochs=2, latent=1, holdout=0.0), mask.astype(int) - 1)
    assert found.user.tolist() == [2, 2, 2]
    assert found.user_count.tolist() == [0, 0, 0]


def test_ranking_by_hand() -> None:
    score = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.2])
    liked = torch.tensor([True, False, True, True, False])  # places 5, 3 and 2
    ndcg, recall = metrics.ranking(score, liked, 3)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / best)
    assert recall == pytest.approx(2 / 3)
    for other in (score - 10, 1000 * score - 500, score.exp()):  # in the same order
        assert metrics.ranking(other, liked, 3) == (ndcg, recall)
    first = torch.arange(50) == 0
    assert metrics.ranking(torch.ones(50), first, 10) == (1, 1)  # as the list has it
    assert metrics.ranking(torch.ones(50), first.flip(0), 10) == (0, 0)


def test_the_candidates_are_all_that_the_user_has_not_rated(sample: Ratings) -> None:
    """Against the places of liked films in the recommendations of each user."""
    mask = random_mask(sample.n, 0.1, 3)
    model = run(train(sample.select(~mask), Settings(epochs=30, holdout=0.0)))
    test = sample.select(mask)
    k = 10
    found = rank_model(model, test, k)
    users = {int(user) for user, stars in zip(test.user, test.stars, strict=True) if stars >= 4}
    assert set(found.user.tolist()) <= users
    assert len(found.user) == min(len(users), 1000)
    often = np.argsort(-np.bincount(sample.movie[~mask], minlength=len(sample.movies)), kind="stable")
    for row in list(zip(*found, strict=True))[:20]:
        user = int(row[0])
        liked = {sample.movies.ids[m] for m in test.movie[(test.user == user) & (test.stars >= 4)]}
        best = [row["movie"] for row in recommend(model, user, Choice(k), Detail(0.9, stars=False))]
        seen = sample.movie[~mask & (sample.user == user)]
        popular = [sample.movies.ids[movie] for movie in often if movie not in seen][:k]
        for (ndcg, recall), listed in ((row[2:4], best), (row[4:6], popular)):
            gains = [1 / math.log2(2 + place) for place, movie in enumerate(listed) if movie in liked]
            most = sum(1 / math.log2(2 + place) for place in range(min(k, len(liked))))
            assert float(recall) == pytest.approx(len(gains) / len(liked))
            assert float(ndcg) == pytest.approx(sum(gains) / most)
    said = report_ranking([found], k)
    assert said["intervals"]["recall"][0] < said["recall"] < said["intervals"]["recall"][1]
    assert said["popular"]["ndcg"] > 0


@pytest.mark.parametrize(("lo", "hi", "least"), [(0, 1, 1), (1, 10, 8), (-10, 10, 6)])
def test_what_is_liked_is_the_upper_quarter_of_the_scale(sample: Ratings, lo: int, hi: int, least: int) -> None:
    stars = np.round(lo + (sample.stars - 0.5) / 4.5 * (hi - lo))
    there = replace(sample, stars=stars.astype(np.float32), scale=Scale(lo, hi))
    mask = random_mask(sample.n, 0.1, 3)
    found = rank_model(run(train(there.select(~mask), Settings(epochs=3, holdout=0.0))), there.select(mask), 10)
    test = there.select(mask)
    assert set(found.user.tolist()) <= {int(user) for user, given in zip(test.user, test.stars, strict=True) if given >= least}
    assert report_ranking([found], 10)["relevant"] == f"test ratings of {least} or more"


@pytest.mark.parametrize(
    ("lo", "hi", "step", "large"), [(0.5, 5, 0.5, 1), (1, 5, 1, 1), (1, 10, 1, 2), (0, 1, 0.1, 0.2), (0, 1, 1, 0.25)]
)
def test_a_large_error_is_a_quarter_of_the_scale(lo: float, hi: float, step: float, large: float) -> None:
    steps = tuple(torch.arange(lo, hi + step / 2, step).tolist())
    assert large_error(Scale(lo, hi), steps) == pytest.approx(large)
    assert large_error(Scale(-10.0, 10.0), ()) == 5


def test_parts_by_score() -> None:
    score, error = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 1.0, 0.0])
    assert metrics.rmse_by_score(score, error, 2) == [(0.5, pytest.approx(8**0.5)), (2.5, pytest.approx(5**0.5))]
    assert len(metrics.rmse_by_score(score, error, 10)) == 4


@pytest.mark.parametrize("kind", ["gaussian", "five steps", "eleven steps"])  # of tens some are no step times 1/10
def test_a_planted_model_covers_what_it_says(kind: str) -> None:
    """Ratings drawn from the predictive distribution itself: coverage is nominal, or the probability inside, but for chance."""
    n, g = 20_000, seeded(7)
    if kind == "gaussian":
        said = Mixture(0.2 + 0.6 * torch.rand(1, n, generator=g).double(), 0.05 + 0.02 * torch.rand(1, n, generator=g).double())
        stars = 100 * (said.centre[0] + said.spread[0] * torch.randn(n, generator=g).double())
        grid, expected = None, list(LEVELS)
    else:
        steps = 5 if kind == "five steps" else 11
        mass = torch.softmax(2 * torch.randn(n, steps, generator=g), 1)
        said = Masses(mass, torch.linspace(0, 1, steps))
        grid = torch.linspace(0, 100, steps)
        stars = grid[torch.multinomial(mass, 1, generator=g)[:, 0]]
        ends = [said.interval(level) for level in LEVELS]
        inside = [(said.grid >= low[:, None]) & (said.grid <= high[:, None]) for low, high in ends]
        expected = [float((mass * one).sum(1).mean()) for one in inside]
    found = _predicted(said, Scale(0.0, 100.0), grid, stars)
    covered = ((found["low"] <= stars[:, None]) & (stars[:, None] <= found["high"])).double().mean(0)
    for share, level in zip(covered.tolist(), expected, strict=True):
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / n)
    pit = metrics.pit_histogram(found["below"], found["up_to"], 10)
    assert max(abs(part - 0.1) for part in pit) < 4 * math.sqrt(0.09 / n)
    for level in LEVELS:
        central = metrics.central_coverage(found["below"], found["up_to"], level)
        assert abs(central - level) < 4 * math.sqrt(level * (1 - level) / n)
    assert metrics.central_coverage(found["below"], found["up_to"], 0.8) == pytest.approx(sum(pit[1:-1]))


def test_a_rating_that_training_never_had_is_its_nearest_step() -> None:
    said = Masses(torch.tensor([[0.25, 0.75]]), torch.tensor([0.0, 1.0]))
    found = _predicted(said, Scale(1.0, 5.0), torch.tensor([1.0, 5.0]), torch.tensor([4.0]))
    assert float(found["nll"]) == pytest.approx(-math.log(0.75))
