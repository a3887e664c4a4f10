"""What else is known of movies and users: how it is read, what the sampler makes of it, and what an answer says of it."""

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Run
from made import random_pattern, ratings_of, seeded

from pmfcli.answers import Asked, Detail, Visitor, predict
from pmfcli.config import Settings
from pmfcli.core.means import Means
from pmfcli.data.features import attach, encode, read_side, read_table
from pmfcli.data.ratings import Block, Vocabulary
from pmfcli.errors import DataError, UsageError
from pmfcli.steps import run
from pmfcli.training import train

DETAIL = Detail(0.9, stars=False)
FILMS = (
    "movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n2,Heat (1995),Crime|Adventure\n3,Up (2009),(no genres listed)\n"
)


def dense(block: Block, rows: int) -> np.ndarray:
    found = np.zeros((rows, len(block.columns)))
    found[block.row, block.col] = block.weight
    return found


def test_things_and_lists_have_a_column_for_each_that_two_share() -> None:
    values = pd.Series({"a": "x|y", "b": "y", "c": "x|y|z", "d": "", "gone": "x"})
    block = encode("kind", values, Vocabulary(("a", "b", "c", "d")))
    assert block.columns == ("x", "y")
    half = 0.5**0.5
    np.testing.assert_allclose(dense(block, 4), [[half, half], [0, 1], [half, half], [0, 0]], rtol=1e-6)
    assert encode("own", pd.Series({"a": "p", "b": "q"}), Vocabulary(("a", "b"))).columns == ()


def test_numbers_are_interpolated_between_quantiles() -> None:
    numbers = np.random.default_rng(1).normal(50, 20, 200).round(2)
    names = tuple(f"m{row:03d}" for row in range(200))
    block = encode("year", pd.Series([f"{number}" for number in numbers[:199]] + ["?"], index=names), Vocabulary(names))
    knots = np.array(block.columns, dtype=float)
    assert len(knots) == 8
    X = dense(block, 200)
    np.testing.assert_allclose(X[:199].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(X[:199] @ knots, numbers[:199], atol=0.01 * numbers.max())
    assert not X[199].any()


def test_tables_find_ids_years_and_typed_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(FILMS)
    table = read_table(tmp_path / "a.csv", "movie")
    assert table.to_dict("index")["2"] == {"genres": "Crime|Adventure", "year": "1995", "title": "Heat (1995)"}
    (tmp_path / "b.item").write_text("item_id:token\tmovie_title:token_seq\tclass:token_seq\n7\tToy Story\tComedy War\n")
    assert read_table(tmp_path / "b.item", "movie").to_dict("index") == {"7": {"class": "Comedy|War", "title": "Toy Story"}}
    for text, said in (
        ("x,y\n1,2\n", "no column of movie ids"),
        ("movie,y\n1,2,x\n3,4,x\n", "3 fields under a header of 2 names"),
        ("movie\n1\n", "no columns"),
        ("movie,y,y \n1,2,3\n", "two columns are called 'y'"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=said):
            read_table(tmp_path / "bad.csv", "movie")
    (tmp_path / "codes.csv").write_text(" movie,\x1b]0;pwned\x07\x1b[31mkind\n1,a\n")
    assert read_table(tmp_path / "codes.csv", "movie").to_dict("index") == {"1": {"]0;pwned [31mkind": "a"}}
    (tmp_path / "trailing.csv").write_text("movie,y\n1,2,\n3,4,\n")
    assert read_table(tmp_path / "trailing.csv", "movie").to_dict("index") == {"1": {"y": "2"}, "3": {"y": "4"}}
    (tmp_path / "quote.tsv").write_text('movie\ty\n1\t"a\n2\tb"\n')
    assert list(read_table(tmp_path / "quote.tsv", "movie").index) == ["1", "2"]
    (tmp_path / "latin.csv").write_bytes("movie,kind\n1,café\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text; convert it"):
        read_table(tmp_path / "latin.csv", "movie")
    with pytest.raises(DataError, match="No such file"):
        read_table(tmp_path / "none.csv", "movie")


def test_movielens_layouts(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(FILMS)
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,Pixar,5\n2,1,pixar,6\n2,3,Pixar,7\n")
    found = read_side(tmp_path / "ratings.csv", ["genres", "year", "tags"])["movie"]
    assert found.loc["1"].to_dict() == {
        "genres": "Adventure|Comedy",
        "year": "1995",
        "tags": "pixar",
        "title": "Toy Story (1995)",
    }
    assert found.loc["3"].to_dict() == {"genres": "", "year": "2009", "tags": "pixar", "title": "Up (2009)"}
    (tmp_path / "movies.dat").write_bytes("1::Léon (1994)::Crime|Drama\n".encode("latin-1"))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    found = read_side(tmp_path / "ratings.dat", ["year", "genres", "user"])
    assert found["movie"].loc["1"].to_dict() == {"year": "1994", "genres": "Crime|Drama", "title": "Léon (1994)"}
    assert found["user"].loc["1"].to_dict() == {"gender": "F", "age": "1", "occupation": "10"}
    flags = "|".join("1" if place in (3, 5) else "0" for place in range(19))
    (tmp_path / "u.item").write_text(f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags}\n", encoding="latin-1")
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n")
    found = read_side(tmp_path / "u.data", ["genres", "year", "user"])
    assert found["movie"].loc["1"].to_dict() == {"genres": "Animation|Comedy", "year": "1995", "title": "Toy Story (1995)"}
    assert found["user"].loc["1"].to_dict() == {"age": "24", "gender": "M", "occupation": "technician"}
    with pytest.raises(UsageError, match="'actors' is none of genres, year, tags, user"):
        read_side(tmp_path / "ratings.csv", ["actors"])
    with pytest.raises(DataError, match="no such file beside the ratings"):
        read_side(tmp_path / "elsewhere" / "ratings.csv", ["genres"])


def test_columns_beside_each_other_are_one_matrix() -> None:
    F, H = (random_pattern(6, columns, 0.5, seed=columns) for columns in (4, 3))
    one, two = (torch.rand(p.n, generator=seeded(1)).double() for p in (F, H))
    means = Means.of(one, F).beside(Means.of_features(two, H))
    both = torch.zeros(6, 7).double()
    both[F.row.long(), F.col.long()] = one
    both[H.row.long(), H.col.long() + 4] = two
    W = torch.randn(7, 2, generator=seeded(2)).double()
    torch.testing.assert_close(means.up(W), both @ W)
    torch.testing.assert_close(means.down(means.up(W)), both.T @ both @ W)
    torch.testing.assert_close(means.usual, torch.cat([torch.zeros(4).double(), both[:, 4:].mean(0)]))
    torch.testing.assert_close(means.each(torch.tensor([2.0, 3.0]))[:, 0], torch.tensor([2.0] * 4 + [3.0] * 3))


def planted() -> tuple:
    """Films of two kinds, liked or not; the last 20 of 80 films nobody rated."""
    g = np.random.default_rng(3)
    user = np.repeat(np.arange(100), 20)
    movie = np.concatenate([np.sort(g.choice(60, 20, replace=False)) for _ in range(100)])
    good = np.arange(80) % 2 == 0
    stars = np.clip(np.round(3 + 1.2 * (2 * good[movie] - 1) + 0.7 * g.normal(size=len(user))), 1, 5)
    ratings = ratings_of(user.tolist(), movie.tolist(), stars.tolist())
    ids = [f"{10 * row}" for row in range(80)]
    return ratings, pd.DataFrame({"kind": np.where(good, "good", "bad")}, index=ids), good


def test_an_unseen_movie_is_predicted_by_its_features() -> None:
    ratings, table, good = planted()
    model = run(train(attach(ratings, {"movie": [table]}), Settings(method="bayes", epochs=80, latent=2)))
    rows = list(predict(model, [Asked("u1", f"{10 * row}") for row in range(60, 80)], DETAIL))
    assert {row["source"] for row in rows} == {"features"}
    predictions = np.array([row["prediction"] for row in rows])
    assert abs(predictions[good[60:]].mean() - 4.2) < 0.3
    assert abs(predictions[~good[60:]].mean() - 1.8) < 0.3
    assert next(iter(predict(model, [Asked("u1", "0")], DETAIL)))["source"] == "model"
    assert next(iter(predict(model, [Asked("u1", "new")], DETAIL)))["source"] == "user-only"


def test_users_have_features_too_and_a_visitor_has_the_usual_ones() -> None:
    """A third of the people give one star less. Somebody unknown lies between the clubs, by how many are in each."""
    ratings, table, _ = planted()
    club = pd.DataFrame({"club": ["in" if row % 3 else "out" for row in range(100)]}, index=ratings.users.ids)
    stars = np.clip(ratings.stars + np.where(ratings.user % 3, 0.0, -1.0), 1, 5).astype(np.float32)
    ratings = replace(ratings, stars=stars)
    nobody = Visitor((), ())
    for hierarchical in ("both", "none"):
        new = pd.DataFrame({"club": ["in", "out"]}, index=["new in", "new out"])
        people = pd.concat([club, new])
        settings = Settings(method="bayes", epochs=60, latent=2, hierarchical=hierarchical)
        model = run(train(attach(ratings, {"user": [people], "movie": [table]}), settings))
        assert model.data["features"] == ["club", "kind"]
        weights = model.posterior.weights
        assert (weights is None) == (hierarchical == "none")
        assert weights is None or weights.W.shape[1] == len(model.movies)
        films = [f"{10 * row}" for row in range(40)]

        def level(user: str, visitor: Visitor | None = None, model=model, films=films) -> float:
            return float(
                np.mean([row["prediction"] for row in predict(model, [Asked(user, film) for film in films], DETAIL, visitor)])
            )

        low, high = level("new out"), level("new in")
        assert high - low > 0.4
        for usual in (level("", nobody), level("somebody")):
            assert low + 0.4 * (high - low) < usual < high


def test_what_is_odd_in_a_table() -> None:
    ratings, table, _ = planted()
    twice = pd.DataFrame({"x": ["p", "q"]}, index=["0", " 0"])
    with pytest.raises(DataError, match="movie '0' occurs twice"):
        attach(ratings, {"movie": [twice]})
    blank = pd.DataFrame({"x": ["p", "p", "p"]}, index=["0", "", ""])
    assert attach(ratings, {"movie": [blank]}).movies == ratings.movies
    by_hand = table.assign(kind="same")
    found = attach(ratings, {"movie": [table, by_hand]})
    assert [block.columns for block in found.movie_features] == [("same",)]
    huge = pd.DataFrame({"x": [f"{(-1) ** row}e308" for row in range(80)]}, index=table.index)
    assert all(np.isfinite(block.weight).all() for block in attach(ratings, {"movie": [huge]}).movie_features)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('movie,x\n1,"a\nb"\n2,b\n\n"4,c\n', ":6: a quote is not closed; correct the row"),
        ("movie,x\n\n1,a,3\n", ":3: 3 fields under a header of 2 names"),
        ("movie::x\n1::a\n2::a::b\n", ":3: 3 fields under a header of 2 names"),
        ('movie,x\n1,"a\nb"\n2,b\n1,c\n', ":5: movie '1' occurs twice"),
        ("movie,x,x\n1,a,b\n", ":1: two columns are called 'x'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "films.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"films.csv{said}")):
        read_table(path, "movie")


def test_a_table_may_come_from_a_pipe(tmp_path: Path) -> None:
    path, pipe = tmp_path / "films.csv", tmp_path / "pipe"
    path.write_text(FILMS)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(FILMS,))
    writer.start()
    pd.testing.assert_frame_equal(read_table(pipe, "movie"), read_table(path, "movie"))
    writer.join()


def test_rows_of_a_table_may_be_short_and_a_quote_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "films.tsv"
    path.write_text('movie\tx\ty\n1\t"a\tb\n2\tc\n')
    found = read_table(path, "movie")
    assert found.loc["1"].tolist() == ['"a', "b"]
    assert found.loc["2"].tolist() == ["c", ""]


def test_ids_that_are_nobody_are_refused() -> None:
    ratings, table, _ = planted()
    with pytest.raises(DataError, match="are the ids the same"):
        attach(ratings, {"movie": [table.set_axis([f"x{name}" for name in table.index])]})


def test_on_the_command_line(answer: Run, tmp_path: Path) -> None:
    ratings, table, _ = planted()
    ids = [
        f"{ratings.users.ids[u]},{ratings.movies.ids[m]},{s}"
        for u, m, s in zip(ratings.user, ratings.movie, ratings.stars, strict=True)
    ]
    (tmp_path / "r.csv").write_text("user,movie,rating\n" + "\n".join(ids) + "\n")
    table.rename_axis("movie").to_csv(tmp_path / "films.csv")
    common = ("train", "--data", "r.csv", "--movie-features", "films.csv", "--epochs", "40", "--latent", "2")
    done = answer(*common, "--method", "bayes")
    assert done.returncode == 0, done.stderr
    assert "features of 80 movies: kind (2)" in done.stderr
    found = json.loads(answer("predict", "--user", "u3", "--movie", "630", "--json").stdout)["rows"][0]
    assert (found["source"], found["prediction"] < 3) == ("features", True)
    assert answer("predict", "-", stdin="u3\t630\n").stderr == ""  # which the model knows
    assert "--method bayes" in answer(*common).stderr
    assert answer(*common).returncode == 2
    assert answer("train", "--data", "-", "--side", "genres", "--method", "bayes", stdin="a,b,3\n").returncode == 2
    assert answer("train", "--side", "genres", "--method", "bayes").returncode == 2  # the sample is not MovieLens
    assert answer("evaluate", "--test", "r.csv", "--side", "genres").returncode == 2
    scored = answer("evaluate", *common[1:], "--method", "bayes", "--folds", "2", "--json")
    assert json.loads(scored.stdout)["n"] == ratings.n


def test_what_lies_beside_ratings_in_parquet_or_gzip_is_found(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv.gz").touch()
    (tmp_path / "a.parquet").touch()
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Crime|Drama\n")
    for ratings in (tmp_path, tmp_path / "ratings.csv.gz"):
        assert read_side(ratings, ["genres", "year"])["movie"].loc["7"].tolist() == ["Crime|Drama", "1995", "Heat (1995)"]
    with pytest.raises(DataError, match="plain text here"):
        read_table(tmp_path / "a.parquet", "movie")
