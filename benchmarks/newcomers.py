"""Users with three ratings: the hierarchical Bayesian model beside its mode, PMF and movie averages, and folded in from a pipe.

    python benchmarks/newcomers.py data/ml-latest-small/ratings.csv [--splits 4]

In each split a hundred random users keep three random ratings for training; the rest of theirs is the test, where others rated
the movie. RMSE over these, the mean of each user's own RMSE, and the 90 % bootstrap interval, over users, of how much worse a
model is than the hierarchical one. ``another seed`` is that one again, for what chance alone does; ``folded in``: a model that
was trained without these users at all, given their three ratings.
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

NEWCOMERS, KEPT, RESAMPLED = 100, 3, 10_000
HIERARCHICAL = ["--method", "bayes"]
MODELS = {
    "hierarchical": HIERARCHICAL,
    "another seed": [*HIERARCHICAL, "--seed", "1"],
    "mode": [],
    "PMF": ["--hierarchical", "none"],
    "Bayesian PMF": ["--method", "bayes", "--hierarchical", "none"],
}


def pmf(*arguments: str | Path, text: str = "") -> str:
    done = subprocess.run([sys.executable, "-m", "pmfcli", *map(str, arguments)], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def predictions(printed: str) -> list[float]:
    return [float(row["prediction"]) for row in csv.DictReader(io.StringIO(printed), delimiter="\t")]


def squared_errors(ratings: pd.DataFrame, seed: int, folder: Path) -> pd.DataFrame:
    """One row for each test rating: its user, and the squared error of each model."""
    users = np.random.default_rng(seed).choice(ratings.user.unique(), NEWCOMERS, replace=False)
    theirs = ratings[ratings.user.isin(users)]
    kept = theirs.groupby("user").sample(KEPT, random_state=seed)
    others = ratings.drop(theirs.index)
    test = theirs.drop(kept.index)
    test = test[test.movie.isin(others.movie)]
    train = pd.concat([others, kept])
    found = {"movie averages": test.movie.map(train.groupby("movie").rating.mean())}
    data, model = folder / "train.csv", folder / "model.pt"
    train.to_csv(data, index=False)
    for name, flags in MODELS.items():
        pmf("train", "--data", data, "-o", model, *flags)
        found[name] = predictions(pmf("predict", "-", "-m", model, text=test[["user", "movie"]].to_csv(index=False)))
    others.to_csv(data, index=False)
    pmf("train", "--data", data, "-o", model, *HIERARCHICAL)

    def fold_in(user: int) -> pd.Series:
        own = kept.loc[kept.user == user, ["movie", "rating"]].to_csv(index=False)
        rows = test[test.user == user]
        movies = [flag for movie in rows.movie for flag in ("--movie", str(movie))]
        return pd.Series(predictions(pmf("predict", "--ratings", "-", *movies, "-m", model, text=own)), index=rows.index)

    with ThreadPoolExecutor(2) as pool:
        folded = pd.concat(list(pool.map(fold_in, test.user.unique())))
    found["folded in"] = folded.reindex(test.index)
    errors = pd.DataFrame({name: (np.asarray(values) - test.rating.to_numpy()) ** 2 for name, values in found.items()})
    return errors.assign(user=[f"{seed}:{user}" for user in test.user])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--splits", type=int, default=4)
    options = parser.parse_args()
    ratings = pd.read_csv(options.ratings).iloc[:, :3].set_axis(["user", "movie", "rating"], axis=1)
    with tempfile.TemporaryDirectory() as scratch:
        errors = pd.concat([squared_errors(ratings, seed, Path(scratch)) for seed in range(options.splits)])
    by_user = errors.groupby("user")
    sums, counts = by_user.sum(), by_user.size().to_numpy()
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLED, len(counts)))
    rmse = {name: np.sqrt(sums[name].to_numpy()[drawn].sum(1) / counts[drawn].sum(1)) for name in sums}
    print(f"{options.splits} x {NEWCOMERS} users   RMSE   a user   worse than hierarchical by")
    for name in sums:
        low, high = np.quantile(rmse[name] - rmse["hierarchical"], [0.05, 0.95])
        each = np.sqrt(sums[name] / counts).mean()
        print(f"{name:15s} {np.sqrt(errors[name].mean()):8.4f} {each:8.4f}   {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    main()
