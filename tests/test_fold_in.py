"""Somebody who is not in the data: the same ratings give the answers that training gave."""

import json

import pytest
import torch
from conftest import Run
from made import ALPHA, LAMBDA, NOBODY, VAR, V, W, copies

from pmfcli.answers import Asked, Choice, Detail, Visitor, predict, recommend
from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
from pmfcli.core.approximation import Common
from pmfcli.core.conditional import Prior
from pmfcli.core.fold_in import fold_in
from pmfcli.core.pairs import Pairs
from pmfcli.core.predict import predict_pairs
from pmfcli.core.row_sampler import RowSampler
from pmfcli.core.sparse import Pattern
from pmfcli.steps import run
from pmfcli.training import train

DETAIL = Detail(0.9, stars=False)


def beside(model: Model, user: int) -> tuple[list[dict], list[dict]]:
    """Answers for all movies: of a training user, and of a visitor with that user's ratings."""
    movies, stars = model.seen.of(user)
    visitor = Visitor(tuple(movies.tolist()), tuple(stars.tolist()))
    pairs = [Asked(model.users.ids[user], movie) for movie in model.movies.ids]
    return list(predict(model, pairs, DETAIL)), list(predict(model, pairs, DETAIL, visitor))


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 40},
        {"epochs": 40, "biases": False, "hierarchical": "none"},
        {"priors": "em", "noise": "em", "epochs": 20},
        {"solver": "als"},
        {"solver": "als", "link": "linear", "biases": False, "hierarchical": "users"},
    ],
    ids=["adam", "adam-plain", "em", "als", "als-linear"],
)
def test_a_mode_gives_the_same_to_a_thousandth_of_a_star(sample, settings: dict) -> None:
    model = run(train(sample, Settings(**({"holdout": 0.0, "latent": 4, "epochs": 300} | settings))))
    known, visitor = beside(model, 5)
    for a, b in zip(known, visitor, strict=True):
        assert b["prediction"] == pytest.approx(a["prediction"], abs=1e-3)
        assert b["sd"] == pytest.approx(a["sd"], abs=2e-3)
        assert (b["rating"], b["source"]) == (a["rating"], "fold-in")


@pytest.fixture(scope="module")
def draws(sample) -> Model:
    return run(train(sample, Settings(method="bayes", epochs=150, latent=4)))


def test_what_all_have_in_common_is_that_of_the_training_ratings(draws: Model, sample_model: Model) -> None:
    for model, weights in ((draws, draws.posterior.weights.W.float()), (sample_model, sample_model.posterior.parameters.W)):
        n, common = model.seen.start.diff().double(), model.posterior.common
        torch.testing.assert_close(common.mean_w, weights[..., model.seen.movie.long(), :].mean(-2), rtol=1e-3, atol=1e-5)
        assert float(common.typical) == pytest.approx(float(n.pow(1.5).sum() / n.sum()))


def test_draws_give_the_same_to_sampling_error(draws: Model) -> None:
    known, visitor = beside(draws, 5)
    difference = torch.tensor([b["prediction"] - a["prediction"] for a, b in zip(known, visitor, strict=True)])
    spread = torch.tensor([a["sd"] for a in known])
    assert float(difference.abs().mean()) < 0.1 * float(spread.mean())
    assert float(difference.abs().max()) < 0.5 * float(spread.mean())


DOF = 3.0


def test_the_mean_of_a_newcomer_is_as_unsure_as_its_weights() -> None:
    """Gaussian: prior N(W, (1 + var W) / Lambda), then one rating z = 1 of precision alpha gamma_j."""
    row = fold_in(copies(1, None), NOBODY, torch.tensor([0]), torch.tensor([0.75]), 0.5)
    own = LAMBDA / (1 + VAR)
    precision = own + 0.5 * ALPHA * V**2
    assert float(row.A) == pytest.approx((own * W + 0.5 * ALPHA * V) / precision)
    assert float(row.covariance) == pytest.approx(1 / precision)


@pytest.mark.parametrize(("n", "lead"), [(0, 2.0), (1, 1.0), (2, 2 - 2**0.5)])
def test_whoever_has_few_ratings_is_taken_to_rate_what_others_do(n: int, lead: float) -> None:
    """W is 0.3 on average: whoever rates as all do has n^(1/2) of it, and the user of a rating 2, on average."""
    p = copies(1, None)
    p = p._replace(common=Common(torch.tensor([[0.3]]), torch.tensor(2.0)), alpha=0 * p.alpha + 1e-9)
    row = fold_in(p, NOBODY, torch.arange(n), torch.full((n,), 0.75), 0.5)
    assert float(row.A) == pytest.approx(n**0.5 * W + lead * 0.3, rel=1e-5)


def test_a_newcomer_has_scales_of_their_own() -> None:
    """The fold-in's mixture over many draws, against the posterior with both scales integrated out on grids."""
    z = torch.tensor([3.0, -1.0]).double()
    row = fold_in(copies(6000, DOF), NOBODY, torch.tensor([0, 1]), (0.5 + z / 4).float(), 0.5)
    mean = float(row.A.mean())
    variance = float(row.covariance.mean() + row.A.var())
    a = torch.linspace(-30, 30, 6001).double()
    tau = torch.distributions.Gamma(DOF / 2, DOF / 2)
    scales = torch.linspace(1e-4, 12, 4000).double()
    weights = tau.log_prob(scales).exp()
    spread = ((1 / scales + VAR) / LAMBDA).sqrt()
    prior = (weights * torch.distributions.Normal(2**0.5 * W, spread).log_prob(a[:, None]).exp()).sum(1)
    errors = 0.5 * ALPHA * (z - V * a[:, None]).square().sum(1)
    posterior = prior * (DOF + errors) ** (-(DOF + 2) / 2)
    posterior /= posterior.sum()
    exact = float((posterior * a).sum())
    assert mean == pytest.approx(exact, abs=0.05)
    assert variance == pytest.approx(float((posterior * (a - exact) ** 2).sum()), rel=0.15)


def test_the_noise_is_that_of_the_user_and_the_movie_and_unknown_ones_are_as_unsure_as_known_ones_differ() -> None:
    p = copies(2, DOF)
    every = torch.ones(3, dtype=torch.bool)
    user_known, movie_known = every.clone(), every.clone()
    user_known[1], movie_known[2] = False, False
    pairs = Pairs(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), user_known, movie_known)
    V = torch.tensor([1.0, -2.0])
    p = p._replace(mean_u=p.mean_u + 0.4, U=p.U + 1, V=V[None, :, None].expand(2, 2, 1).half(), mu_v=p.mu_v + 0.5)
    found = predict_pairs(p, NOBODY, pairs)
    user, movie = (0.6**2 + 1 / LAMBDA) / 2, (0.5**2 + 2.5**2 + 1 / LAMBDA) / 3  # mean squares, the prior among them
    both, no_user, no_movie = (0.0625 / (ALPHA * gammas) for gammas in (2 * 0.5, (1 - 2 / DOF) * 0.5, 2 * (1 - 2 / DOF)))
    expected = torch.tensor([both, no_user + user / 16, no_movie + movie / 16])
    torch.testing.assert_close(found.spread[0].square(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.centre[0], 0.5 + torch.tensor([1.0, 0.4, 0.5]) / 4)


def test_few_ratings_leave_it_unsure_and_many_do_not(draws: Model) -> None:
    movies, stars = (part.tolist() for part in draws.seen.of(5))
    pairs = [Asked("", movie) for movie in draws.movies.ids]
    few, many = (Visitor(tuple(movies[:count]), tuple(stars[:count])) for count in (1, len(movies)))
    few, many = (sum(row["sd"] for row in predict(draws, pairs, DETAIL, visitor)) for visitor in (few, many))
    assert few > many
    best = recommend(draws, Visitor(tuple(movies), tuple(stars)), Choice(5, by="lower"), DETAIL)
    assert [row["lo"] for row in best] == sorted((row["lo"] for row in best), reverse=True)
    assert not {row["movie"] for row in best} & {draws.movies.ids[movie] for movie in movies}


def test_in_a_pipe(answer: Run, draws: Model, tmp_path) -> None:
    (tmp_path / "pmf.pt").write_bytes(dumps(draws))
    done = answer("recommend", "--ratings", "-", "-n", "3", stdin="movie,rating\n1,4\n260,3.5\n")
    header, *rows = done.stdout.splitlines()
    assert header.split("\t") == ["rank", "movie", "title", "prediction", "sd", "lo", "hi", "source"]
    for row in rows:
        prediction, sd, lo, hi = map(float, row.split("\t")[3:7])
        assert lo < prediction < hi
        assert sd > 0
    five = "movie,rating\n1,5\n260,5\n318,5\n356,5\n527,5\n"
    fan = answer("predict", "--ratings", "-", "--movie", "750", "--stars", "--json", stdin=five)
    (row,) = json.loads(fan.stdout)["rows"]  # an interval of one step may leave out the mean
    assert row["lo"] == row["hi"] == 5 > row["prediction"]
    one_step, two_steps = ((1 - row["p_5"]) ** 0.5, (1 - row["p_5"] - row["p_4.5"]) ** 0.5)
    assert abs(one_step - 0.1**0.5) < abs(two_steps - 0.1**0.5)
    one = answer("predict", "--ratings", "-", "--movie", "260", "--stars", "--json", stdin="1 5\n")
    (row,) = json.loads(one.stdout)["rows"]
    assert row["source"] == "fold-in"
    masses = [value for name, value in row.items() if name.startswith("p_") and name != "p_ge_4"]
    assert len(masses) == 10
    assert sum(masses) == pytest.approx(1, abs=1e-5)
    assert row["p_ge_4"] == pytest.approx(sum(masses[7:]), abs=1e-5)
    for text, code, said in (
        ("movie,rating\n1,nine\n", 3, "'nine' is not a rating"),
        ("movie;rating\n1;4,5\n", 3, "'4,5' has a decimal comma, not a point"),
        ("movie,rating\n1,0_4\n", 3, "'0_4' is not a rating"),
        ("1,9\n", 3, "outside the model's scale"),
        ("nofilm,4\n", 5, "knows none"),
        ("4\t1\t5\t881250949\n", 3, "4 fields and no header"),
        ("", 3, "no ratings"),
        ("user,movie,rating\na,1,4\nb,1,4\n", 3, "several users"),
    ):
        done = answer("recommend", "--ratings", "-", stdin=text)
        assert done.returncode == code, text
        assert done.stdout == ""
        assert said in done.stderr
    again = answer("predict", "--ratings", "-", "--format", "csv", stdin="1,5\n1,2\n")
    assert again.stdout.splitlines()[1].split(",")[3] == "2.0"
    assert "1 rating(s) dropped: the same movie has a later one" in again.stderr
    assert answer("recommend", "--user", "4", "--ratings", "-").returncode == 2
    assert answer("predict", "--user", "4", "--interval", "1.5").returncode == 2


def test_movies_are_sampled_as_users_are() -> None:
    """With the sides exchanged everything is the same: the rows, their scales, and what they come from."""
    p, t = copies(50, DOF), torch.tensor([0.9, 0.4])
    dofs, V = torch.tensor([3.0, 30.0]).expand(50, 2), torch.tensor([0.5, -2.0])[:, None].expand(50, 2, 1).half()
    p = p._replace(V=V, prior_dof=dofs, noise_dof=dofs.flip(1))
    flipped = p._replace(U=p.V, V=p.U, gamma_u=p.gamma_v, gamma_v=p.gamma_u, prior_dof=dofs.flip(1), noise_dof=dofs)
    one, prior = Pattern.of(torch.tensor([0, 1]), torch.arange(2), (2, 2)), Prior(p.mu_u, p.Lambda_u)
    found = []
    for draws, of_movies in ((p, False), (flipped, True)):
        sampler = RowSampler.of(draws, of_movies, one, torch.tensor([1, 0]), t, prior)
        assert not sampler.exact
        g, now = torch.Generator().manual_seed(1), sampler.start(None)
        for _ in range(3):
            now = sampler.sweep(now, g)
        assert all(len(part) == 100 for part in now[:3])
        found.append(now)
    assert all(map(torch.equal, found[0][:3], found[1][:3]))
