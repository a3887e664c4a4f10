"""Held-out error of the models on a 90/10 split, by the commands that a person would use.

    python benchmarks/accuracy.py data/ml-latest-small/ratings.csv [--seeds 5] [--models default,em,bayes]

The split is ``sample(frac=0.1, random_state=0)`` of pandas on the rows in file order; every test row counts, also those of
movies without a training rating.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {
    "default": [],
    "none": ["--hierarchical", "none"],
    "paper": ["--config", str(CONFIGS / "paper.toml")],
    "blog": ["--config", str(CONFIGS / "blog.toml")],
    "em": ["--priors", "em", "--noise", "em"],
    "em-none": ["--priors", "em", "--noise", "em", "--hierarchical", "none"],
    "bayes": ["--method", "bayes"],
    "bayes-gaussian": ["--method", "bayes", "--likelihood", "gaussian"],
    "bayes-none": ["--method", "bayes", "--hierarchical", "none"],
    "bayes-4": ["--method", "bayes", "--chains", "4"],
}


def pmf(*arguments: str | Path) -> dict:
    done = subprocess.run([sys.executable, "-m", "pmfcli", *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def read(path: Path) -> pd.DataFrame:
    """Ratings as MovieLens lays them out: user, movie, rating, time, by whatever names; u.data and ratings.dat have none."""
    bare = path.name in ("u.data", "ratings.dat")
    names = ["user", "movie", "rating", "timestamp"] if bare else None
    return pd.read_csv(path, sep="::" if path.suffix == ".dat" else None, engine="python", names=names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", default="default,none,paper,blog")
    options = parser.parse_args()
    ratings = read(options.ratings)
    test = ratings.sample(frac=0.1, random_state=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        test.to_csv(folder / "test.csv", index=False)
        ratings.drop(test.index).to_csv(folder / "train.csv", index=False)
        titles = f"{'model':14s} {'RMSE, mean':>10s} {'worst':>7s} {'MAE':>7s} {'training s':>10s} {'NLL':>7s} {'RPS':>7s}"
        print(f"{titles}   over {options.seeds} seeds")
        for name in options.models.split(","):
            seconds, scores = [], []
            for seed in range(options.seeds):
                model = folder / "model.pt"
                done = pmf("train", "--data", folder / "train.csv", "-o", model, "--seed", str(seed), *MODELS[name])
                seconds.append(done["seconds"])
                scores.append(pmf("evaluate", "-m", model, "--test", folder / "test.csv"))
            keys = ("rmse", "mae", "nll", "crps")
            mean, mae, nll, rps = (sum(score[key] for score in scores) / len(scores) for key in keys)
            covered = {level: round(share, 3) for level, share in scores[-1]["coverage"].items()}
            worst, middle = max(score["rmse"] for score in scores), sorted(seconds)[len(seconds) // 2]
            print(f"{name:14s} {mean:10.4f} {worst:7.4f} {mae:7.4f} {middle:10.1f} {nll:7.4f} {rps:7.4f}   covered {covered}")
        for name, found in scores[-1]["baselines"].items():
            print(f"{name:14s} {found['rmse']:10.4f} {'':7s} {found['mae']:7.4f}")


if __name__ == "__main__":
    main()
