"""Somebody who is not in the data: the same ratings give the answers that training gave."""

import pytest
import torch
from conftest import Run

from pmfcli.answers import Detail, Visitor, predict, recommend
from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
from pmfcli.core.predict import Draws, Head, Seen, fold_in
from pmfcli.training import run, train

DETAIL = Detail(0.9, stars=False)


def beside(model: Model, user: int) -> tuple[list[dict], list[dict]]:
    """Answers for all movies: of a training user, and of a visitor with that user's ratings."""
    movies, stars = model.seen.of(user)
    visitor = Visitor(tuple(movies.tolist()), tuple(stars.tolist()))
    pairs = [(model.users.ids[user], movie) for movie in model.movies.ids]
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
    model = run(train(sample, Settings(**({"holdout": 0.0, "latent": 4, "epochs": 300, "early_stop": False} | settings))))
    known, visitor = beside(model, 5)
    for a, b in zip(known, visitor, strict=True):
        assert b["prediction"] == pytest.approx(a["prediction"], abs=1e-3)
        assert b["sd"] == pytest.approx(a["sd"], abs=1e-2)
        assert (b["rating"], b["source"]) == (a["rating"], "fold-in")


@pytest.fixture(scope="module")
def draws(sample) -> Model:
    return run(train(sample, Settings(method="bayes", epochs=150, latent=4)))


def test_draws_give_the_same_to_sampling_error(draws: Model) -> None:
    known, visitor = beside(draws, 5)
    difference = torch.tensor([b["prediction"] - a["prediction"] for a, b in zip(known, visitor, strict=True)])
    spread = torch.tensor([a["sd"] for a in known])
    assert float(difference.abs().mean()) < 0.1 * float(spread.mean())
    assert float(difference.abs().max()) < 0.5 * float(spread.mean())


def test_the_mean_of_a_newcomer_is_as_unsure_as_its_weights() -> None:
    """One draw, one feature, Gaussian: prior N(W, (1 + var W) / Lambda), then one rating of precision alpha."""
    one, V, W, var, Lambda, alpha = (torch.tensor(value) for value in (1.0, 0.5, 0.75, 0.5, 2.0, 4.0))
    posterior = Draws(
        U=torch.zeros(1, 1, 1).half(),
        V=V.expand(1, 1, 1).half(),
        W=W.expand(1, 1, 1).half(),
        var_w=var[None],
        gamma_u=one.expand(1, 1).half(),
        gamma_v=one.expand(1, 1).half(),
        mean_u=torch.zeros(1, 1),
        mu_u=torch.zeros(1, 1),
        mu_v=torch.zeros(1, 1),
        Lambda_u=Lambda.expand(1, 1, 1),
        Lambda_v=Lambda.expand(1, 1, 1),
        alpha=alpha[None],
        prior_dof=None,
        noise_dof=None,
        head=Head(1, 0.0, "linear"),
    )
    none = Seen(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    row = fold_in(posterior, none, torch.tensor([0]), torch.tensor([0.75]), 0.5)
    precision = Lambda / (1 + var) + alpha * V**2
    torch.testing.assert_close(row.A[0, 0, 0], (Lambda / (1 + var) * W + alpha * V * 1.0) / precision)
    torch.testing.assert_close(row.covariance[0, 0, 0, 0], 1 / precision)


def test_few_ratings_leave_it_unsure_and_many_do_not(draws: Model) -> None:
    movies, stars = (part.tolist() for part in draws.seen.of(5))
    pairs = [("", movie) for movie in draws.movies.ids]
    few, many = (Visitor(tuple(movies[:count]), tuple(stars[:count])) for count in (1, len(movies)))
    few, many = (sum(row["sd"] for row in predict(draws, pairs, DETAIL, visitor)) for visitor in (few, many))
    assert few > many
    best = recommend(draws, Visitor(tuple(movies), tuple(stars)), 5, [], [], False, "lower", DETAIL)
    assert [row["lo"] for row in best] == sorted((row["lo"] for row in best), reverse=True)
    assert not {row["movie"] for row in best} & {draws.movies.ids[movie] for movie in movies}


def test_in_a_pipe(answer: Run, draws: Model, tmp_path) -> None:
    (tmp_path / "pmf.pt").write_bytes(dumps(draws))
    done = answer("recommend", "--ratings", "-", "-n", "3", stdin="movie,rating\n1,5\n260,4.5\n")
    header, *rows = done.stdout.splitlines()
    assert header.split("\t") == ["rank", "movie", "title", "prediction", "sd", "lo", "hi", "source"]
    for row in rows:
        prediction, sd, lo, hi = map(float, row.split("\t")[3:7])
        assert lo < prediction < hi
        assert sd > 0
    one = answer("predict", "--ratings", "-", "--movie", "260", "--stars", "--json", stdin="1 5\n")
    assert '"source": "fold-in"' in one.stdout
    for text, code, said in (
        ("movie,rating\n1,nine\n", 3, "line"),
        ("1,9\n", 3, "outside the model's scale"),
        ("nofilm,4\n", 5, "knows none"),
        ("", 3, "no ratings"),
        ("user,movie,rating\na,1,4\nb,1,4\n", 3, "several users"),
    ):
        done = answer("recommend", "--ratings", "-", stdin=text)
        assert done.returncode == code, text
        assert done.stdout == ""
        assert said in done.stderr or said == "line"
    assert answer("recommend", "--user", "4", "--ratings", "-").returncode == 2
    assert answer("predict", "--user", "4", "--interval", "1.5").returncode == 2
