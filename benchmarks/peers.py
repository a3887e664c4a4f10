"""The same split through other rating predictors and through pmf, one after the other on this machine.

    pip install 'setuptools<81' myfm cmfrec lenskit scikit-surprise
    python benchmarks/peers.py data/ml-latest-small/ratings.csv [--only myfm-sides,bayes] [--runs 1]

The split is that of ``accuracy.py``; all test rows count; predictions are clipped to the range of the ratings. NLL and RPS, of
what gives a probability to every rating, are over rows with both sides in training. Times are of training. A peer that is not
installed is passed over. Their settings are the best of those that were tried here.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import accuracy
import numpy as np
import pandas as pd
from scipy import sparse


class Split(NamedTuple):
    train: pd.DataFrame  # user, movie, rating; users and movies as rows
    test: pd.DataFrame  # the row of what training does not have is the number of rows
    users: int
    movies: int
    folder: Path


def read(path: Path, folder: Path) -> Split:
    ratings = accuracy.read(path).iloc[:, :3]
    ratings.columns = ["user", "movie", "rating"]
    test = ratings.sample(frac=0.1, random_state=0)
    train = ratings.drop(test.index)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    users, movies = pd.Index(sorted(train.user.unique())), pd.Index(sorted(train.movie.unique()))

    def rows(part: pd.DataFrame) -> pd.DataFrame:
        user, movie = users.get_indexer(part.user), movies.get_indexer(part.movie)
        return pd.DataFrame(
            {
                "user": np.where(user < 0, len(users), user),
                "movie": np.where(movie < 0, len(movies), movie),
                "rating": part.rating.to_numpy(float),
            }
        )

    return Split(rows(train), rows(test), len(users), len(movies), folder)


def myfm(split: Split, rank: int, sides: bool, ordinal: bool = False) -> tuple[float, np.ndarray]:
    from myfm import MyFMOrderedProbit, MyFMRegressor, RelationBlock

    train, test = split.train, split.test
    R = sparse.csr_matrix((np.ones(len(train)), (train.user, train.movie)), shape=(split.users, split.movies))

    def block(own: sparse.csr_matrix) -> sparse.csr_matrix:
        count = own.shape[0]
        implicit = sparse.diags(1 / np.sqrt(np.maximum(own.sum(1).A1, 1))) @ own if sides else own[:, :0]
        features = sparse.hstack([sparse.eye(count), implicit])
        return sparse.vstack([features, sparse.csr_matrix((1, features.shape[1]))]).tocsr()  # an unknown id is a row of zeros

    U, V = block(R), block(R.T.tocsr())
    shapes = [split.users, split.movies, split.movies, split.users] if sides else [split.users, split.movies]

    def given(part: pd.DataFrame) -> list[RelationBlock]:
        return [RelationBlock(part.user.to_numpy(), U), RelationBlock(part.movie.to_numpy(), V)]

    model = (MyFMOrderedProbit if ordinal else MyFMRegressor)(rank=rank)
    rating = train.rating.to_numpy()
    began = time.perf_counter()
    nothing = sparse.csr_matrix((len(train), 0))
    target = np.searchsorted(np.unique(rating), rating) if ordinal else rating
    model.fit(nothing, target, X_rel=given(train), n_iter=200, n_kept_samples=200, group_shapes=shapes)
    seconds = time.perf_counter() - began
    return seconds, model.predict_proba(None, given(test)) if ordinal else model.predict(None, given(test))


def cmfrec(split: Split) -> tuple[float, np.ndarray]:
    from cmfrec import CMF

    renamed = {"user": "UserId", "movie": "ItemId", "rating": "Rating"}
    model = CMF(k=40, lambda_=10, add_implicit_features=True, verbose=False)
    began = time.perf_counter()
    model.fit(split.train.rename(columns=renamed))
    seconds = time.perf_counter() - began
    return seconds, model.predict(split.test.user.to_numpy(), split.test.movie.to_numpy())


def surprise(split: Split, knn: bool) -> tuple[float, np.ndarray]:
    from surprise import SVD, Dataset, KNNBaseline, Reader

    low, high = split.train.rating.min(), split.train.rating.max()
    data = Dataset.load_from_df(split.train, Reader(rating_scale=(low, high))).build_full_trainset()
    item_based = {"name": "pearson_baseline", "user_based": False}
    model = KNNBaseline(sim_options=item_based, verbose=False) if knn else SVD(random_state=0)
    began = time.perf_counter()
    model.fit(data)
    seconds = time.perf_counter() - began
    return seconds, np.array([model.predict(u, m).est for u, m in zip(split.test.user, split.test.movie, strict=True)])


def lenskit(split: Split) -> tuple[float, np.ndarray]:
    from lenskit.als import BiasedMFScorer
    from lenskit.data import ItemList, from_interactions_df
    from lenskit.operations import predict
    from lenskit.pipeline import predict_pipeline

    data = from_interactions_df(split.train.rename(columns={"user": "user_id", "movie": "item_id"}))
    model = predict_pipeline(BiasedMFScorer(embedding_size=50))
    began = time.perf_counter()
    model.train(data)
    seconds = time.perf_counter() - began
    found = np.full(len(split.test), np.nan)
    known = split.test.movie < split.movies  # it has no answer for others
    for user, rows in split.test[known].groupby("user").groups.items():
        found[rows] = predict(model, user, ItemList(item_ids=split.test.movie[rows].to_numpy())).scores()
    return seconds, found


def of_masses(split: Split, mass: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The mean rating of probabilities (n, ratings), and their NLL and RPS on rows with both sides known."""
    grid = np.unique(split.train.rating)
    warm = ((split.test.user < split.users) & (split.test.movie < split.movies)).to_numpy()
    level = np.searchsorted(grid, split.test.rating.to_numpy())
    nll = -np.log(np.maximum(mass[np.arange(len(level)), level], 1e-12))
    came = np.arange(len(grid) - 1) >= level[:, None]
    rps = ((mass.cumsum(1)[:, :-1] - came) ** 2 @ np.diff(grid))[warm].mean()
    return mass @ grid, float(nll[warm].mean()), float(rps)


def pmf(split: Split, *flags: str) -> tuple[float, float, float, float, float]:
    """Training seconds, RMSE, MAE, NLL and RPS, by the commands that a person would use."""

    def run(*arguments: str | Path) -> dict:
        done = subprocess.run([sys.executable, "-m", "pmfcli", *map(str, arguments), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout)

    model = split.folder / "model.pt"
    trained = run("train", "--data", split.folder / "train.csv", "-o", model, *flags)
    scored = run("evaluate", "-m", model, "--test", split.folder / "test.csv")
    return trained["seconds"], scored["rmse"], scored["mae"], scored["warm"]["nll"], scored["warm"]["crps"]


PEERS = {
    "surprise-svd": ("surprise", lambda split: surprise(split, knn=False)),
    "surprise-knn": ("surprise", lambda split: surprise(split, knn=True)),
    "lenskit": ("lenskit", lenskit),
    "cmfrec": ("cmfrec", cmfrec),
    "myfm-ids": ("myfm", lambda split: myfm(split, 20, sides=False)),
    "myfm-sides": ("myfm", lambda split: myfm(split, 10, sides=True)),
    "myfm-ordinal": ("myfm", lambda split: myfm(split, 10, sides=True, ordinal=True)),
}
OURS = {
    "default": [],
    "bayes": ["--method", "bayes"],
    "bayes-chains": ["--method", "bayes", "--chains", "4"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--only", default=",".join([*PEERS, *OURS]))
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        split = read(options.ratings, Path(scratch))
        truth, low, high = split.test.rating.to_numpy(), split.train.rating.min(), split.train.rating.max()
        print(f"{'system':14s} {'RMSE':>7s} {'MAE':>7s} {'training s':>10s} {'NLL':>7s} {'RPS':>7s}")
        for _ in range(options.runs):
            for name in options.only.split(","):
                nll = rps = None
                if name in OURS:
                    seconds, rmse, mae, nll, rps = pmf(split, *OURS[name])
                elif importlib.util.find_spec(PEERS[name][0]) is None:
                    print(f"{name:14s} not installed")
                    continue
                else:
                    seconds, found = PEERS[name][1](split)
                    if found.ndim == 2:
                        found, nll, rps = of_masses(split, found)
                    found = np.where(np.isnan(found), split.train.rating.mean(), found)
                    error = np.clip(found, low, high) - truth
                    rmse, mae = float(np.sqrt((error**2).mean())), float(np.abs(error).mean())
                more = "" if nll is None else f" {nll:7.4f} {rps:7.4f}"
                print(f"{name:14s} {rmse:7.4f} {mae:7.4f} {seconds:10.1f}{more}", flush=True)


if __name__ == "__main__":
    main()
