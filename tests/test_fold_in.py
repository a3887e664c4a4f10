"""Somebody who is not in the data: the same ratings give the answers that training gave."""

import pytest
import torch
from conftest import Run

from pmfcli.answers import Detail, Visitor, predict, recommend
from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
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
        {"solver": "als"},
        {"solver": "als", "link": "linear", "biases": False, "hierarchical": "users"},
    ],
    ids=["als", "als-linear"],
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
