"""Reports of a few ratings against numbers by hand; comparisons, also by groups, against the scores of each model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from made import seeded

from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.evaluation import LEVELS, Scored, score_model
from pmfcli.reports import report
from pmfcli.steps import run
from pmfcli.training import train


def scored(stars: list[float], model: list[float], **columns: list[float]) -> Scored:
    """Test ratings of one person each, where not said otherwise; what does not matter is the same for all."""
    n = len(stars)
    zeros, ones = torch.zeros(n), torch.ones(n)
    whole: dict[str, torch.Tensor] = dict.fromkeys(Scored._fields, zeros) | {
        **dict.fromkeys(("user_count", "movie_count"), torch.full((n,), 5)),
        **dict.fromkeys(("trained_on", "off_grid"), zeros > 0),
        **dict.fromkeys(("low", "high"), torch.zeros(n, len(LEVELS))),
        **{"user": torch.arange(n), "sd": ones, "large": ones},
        **{"stars": torch.tensor(stars), "model": torch.tensor(model)},
    }
    return Scored(**whole | {name: torch.tensor(column) for name, column in columns.items()})


def test_what_training_did_not_have_counts_apart() -> None:
    """Cold is a rating whose user or whose movie training did not have."""
    found = report(
        [
            scored(
                [3.0, 3.0, 3.0, 3.0, 3.0],
                [4.0, 5.0, 6.0, 3.5, 3.1],
                user_count=[0, 7, 0, 2, 30],
                movie_count=[7, 0, 0, 1, 3],
                trained_on=[False, True, False, False, False],
                off_grid=[False, False, True, True, False],
            )
        ]
    )
    assert (found["n"], found["n_cold"], found["n_trained_on"], found["n_off_grid"]) == (5, 3, 1, 2)
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 4 + 9 + 0.25 + 0.01) / 5))
    assert found["warm"]["rmse"] == pytest.approx(math.sqrt((0.25 + 0.01) / 2))
    assert found["warm"]["mae"] == pytest.approx(0.3)
    users, movies = ([(part["ratings"], part["n"]) for part in found[f"by_{of}_ratings"]] for of in ("user", "movie"))
    assert users == [("0", 2), ("1-2", 1), ("3-9", 1), ("30-99", 1)]
    assert movies == [("0", 2), ("1-2", 1), ("3-9", 2)]
    assert report([scored([3.0], [3.0], user_count=[0])])["warm"] is None


def test_the_surest_ratings_come_first() -> None:
    error = [9.0, 1.0, 3.0, 5.0, 7.0, 2.0, 4.0, 8.0, 6.0, 0.5]
    sd = [error[-1 - place] for place in range(10)]  # the last rating is the least sure
    found = report([scored([0.0] * 10, error, sd=sd)])["risk_coverage"]
    by_sd = [error[place] for place in np.argsort(sd)]
    for part, row in enumerate(found, 1):
        assert row == {"part": part / 10, "rmse": pytest.approx(math.sqrt(sum(e * e for e in by_sd[:part]) / part))}
    assert found[0]["rmse"] == 9


def test_a_rating_of_four_is_one_of_four_or_more() -> None:
    found = report([scored([4.0, 3.5, 5.0, 4.0, 2.0], [3.0] * 5, liked=[0.22, 0.26, 0.28, 1.0, 0.95])])["reliability"]
    low, high = found
    assert (low["n"], high["n"]) == (3, 2)
    assert (low["p"], high["p"]) == (pytest.approx((0.22 + 0.26 + 0.28) / 3), pytest.approx(0.975))
    assert (low["observed"], high["observed"]) == (pytest.approx(2 / 3), 0.5)


def test_intervals_are_of_users_and_hold_95_in_100() -> None:
    """All ratings of a user miss by as much: the mean over 400 users is as sure as so many numbers make it."""
    missed = torch.rand(400, generator=seeded(1)).double()
    found = report([scored([0.0] * 2000, missed.repeat_interleave(5).tolist(), user=[n // 5 for n in range(2000)])])
    spread = 1.96 * float(missed.std()) / 20
    assert found["intervals"]["mae"] == [
        pytest.approx(float(missed.mean()) - spread, abs=0.1 * spread),
        pytest.approx(float(missed.mean()) + spread, abs=0.1 * spread),
    ]


@pytest.mark.parametrize("of", ["user", "movie"])
def test_a_comparison_by_how_much_was_known(
    answer: Run, tmp_path: Path, sample: Ratings, sample_model: Model, sample_file: Path, of: str
) -> None:
    """Groups are by what the first model was trained on."""
    other = run(train(sample.select(sample.user < 100), Settings(epochs=2, latent=2, holdout=0.0)))
    (tmp_path / "other.pt").write_bytes(dumps(other))
    test = sample.select((sample.user < 600) & (np.arange(sample.n) % 5 == 0))
    lines = [
        f"{sample.users.ids[u]},{sample.movies.ids[m]},{s}\n" for u, m, s in zip(test.user, test.movie, test.stars, strict=True)
    ]
    (tmp_path / "test.csv").write_text("user,movie,rating\n" + "".join(lines))
    done = answer("compare", sample_file, "other.pt", "--test", "test.csv", "--by", of, "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["rows"] if row["score"] == "mae"]
    trained = np.bincount(getattr(sample, of))[getattr(test, of)]
    found = [score_model(model, test) for model in (sample_model, other)]
    assert all(one.user.tolist() == test.user.tolist() for one in found)
    errors = [(one.model - one.stars).abs().numpy() for one in found]
    expected = [("all", trained > 0)]
    for low, high in ((1, 2), (3, 9), (10, 29), (30, 99), (100, 299), (300, math.inf)):
        inside = (trained >= low) & (trained <= high)
        name = f"{low}+" if high == math.inf else f"{low}-{high}"
        expected += [(f"{of}s with {name} ratings", inside)] if inside.any() else []
    assert len(expected) > 2
    assert [(row["group"], row["n"]) for row in rows] == [(name, inside.sum()) for name, inside in expected]
    for row, (_, inside) in zip(rows, expected, strict=True):
        assert (row["first"], row["value"]) == tuple(pytest.approx(float(one[inside].mean()), rel=1e-4) for one in errors)
        assert row["difference"] == pytest.approx(row["value"] - row["first"])
