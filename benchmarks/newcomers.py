"""Users with three ratings: the hierarchical Bayesian model beside movie averages and plain PMF, and folded in from a file.

    python benchmarks/newcomers.py data/ml-latest-small/ratings.csv

A hundred random users keep three random ratings for training; the rest of theirs is the test. RMSE over these, with the
90 % bootstrap interval, over users, of how much better the hierarchical model is. ``folded in``: a model that was trained
without these users at all, given their three ratings.
"""

import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

NEWCOMERS, KEPT, RESAMPLED = 100, 3, 10_000
MODELS = {
    "hierarchical": ["--method", "bayes"],
    "plain PMF": ["--method", "bayes", "--hierarchical", "none", "--noise-dof", "0", "--prior-dof", "0"],
}


def pmf(*arguments: str | Path, text: str = "") -> str:
    done = subprocess.run([sys.executable, "-m", "pmfcli", *map(str, arguments)], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def predictions(printed: str) -> list[float]:
    return [float(row["prediction"]) for row in csv.DictReader(io.StringIO(printed), delimiter="\t")]


def main() -> None:
    ratings = pd.read_csv(sys.argv[1]).iloc[:, :3].set_axis(["user", "movie", "rating"], axis=1)
    random = np.random.default_rng(0)
    users = random.choice(ratings.user.unique(), NEWCOMERS, replace=False)
    theirs = ratings[ratings.user.isin(users)]
    kept = theirs.groupby("user").sample(KEPT, random_state=0)
    test = theirs.drop(kept.index)
    others = ratings.drop(theirs.index)
    train = pd.concat([others, kept])
    found = {"movie averages": test.movie.map(train.groupby("movie").rating.mean()).fillna(train.rating.mean()).to_numpy()}
    with tempfile.TemporaryDirectory() as scratch:
        data, model = Path(scratch) / "train.csv", Path(scratch) / "model.pt"
        train.to_csv(data, index=False)
        pairs = test[["user", "movie"]].to_csv(index=False)
        for name, flags in MODELS.items():
            pmf("train", "--data", data, "-o", model, *flags)
            found[name] = np.array(predictions(pmf("predict", "-", "-m", model, text=pairs)))
        others.to_csv(data, index=False)
        pmf("train", "--data", data, "-o", model, *MODELS["hierarchical"])
        folded = pd.Series(0.0, index=test.index)
        for user, rows in test.groupby("user"):
            own = kept.loc[kept.user == user, ["movie", "rating"]].to_csv(index=False)
            asked = rows.movie.isin(others.movie)
            known = [flag for movie in rows.movie[asked] for flag in ("--movie", str(movie))]
            folded[rows.index[asked]] = predictions(pmf("predict", "--ratings", "-", *known, "-m", model, text=own))
            folded[rows.index[~asked]] = others.rating.mean()
        found["folded in"] = folded.to_numpy()
    square = {name: (prediction - test.rating.to_numpy()) ** 2 for name, prediction in found.items()}
    owner = np.searchsorted(np.sort(users), test.user.to_numpy())
    sums = {name: np.bincount(owner, values, NEWCOMERS) for name, values in square.items()}
    count = np.bincount(owner, minlength=NEWCOMERS)
    drawn = random.integers(NEWCOMERS, size=(RESAMPLED, NEWCOMERS))
    rmse = {name: np.sqrt(values[drawn].sum(1) / count[drawn].sum(1)) for name, values in sums.items()}
    for name, values in square.items():
        low, high = np.quantile(rmse[name] - rmse["hierarchical"], [0.05, 0.95])
        print(f"{name:15s} RMSE {np.sqrt(values.mean()):.4f}   worse than hierarchical by {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    main()
