"""Planted ratings of any size: the truth is known, and so is the error that it would have itself.

    python benchmarks/planted.py 10m.parquet --users 70000 --movies 20000 --ratings 10000000
    python benchmarks/planted.py 25m.csv --users 160000 --movies 40000 --ratings 25000000

r_ij = 3.5 + b_i + c_j + U_i . V_j + noise, with b, c and U . V of standard deviation 0.3, 0.3 and 0.6 stars, to two decimals,
cut off at 0.5 and 5 stars. How active users are is log-normal; how popular movies are falls as a power of their rank. A tenth
of the ratings, at random, is written to a second file for testing, such as 10m-test.parquet. Printed beside each: the RMSE of
the planted means, cut off alike, which nobody has to estimate.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

BLOCK = 5_000_000
SCALE = 0.5, 5.0  # stars


def pairs(rng: np.random.Generator, users: int, movies: int, ratings: int, skew: float) -> np.ndarray:
    """Different pairs as sorted numbers user * movies + movie."""
    activity = rng.lognormal(0, 1, users)
    popularity = (np.arange(movies) + 20.0) ** -skew
    who, what = np.cumsum(activity / activity.sum()), np.cumsum(popularity / popularity.sum())
    found = np.empty(0, dtype=np.int64)
    while len(found) < ratings:
        count = int(1.1 * (ratings - len(found))) + 1000
        user = np.searchsorted(who, rng.random(count)).clip(max=users - 1)
        movie = np.searchsorted(what, rng.random(count)).clip(max=movies - 1)
        found = np.union1d(found, user * movies + movie)
    keep = np.ones(len(found), dtype=bool)
    keep[rng.choice(len(found), len(found) - ratings, replace=False)] = False
    return found[keep]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, help="what to write: .csv or .parquet")
    for name, default in (("users", 70_000), ("movies", 20_000), ("ratings", 10_000_000), ("latent", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--noise", type=float, default=0.75, help="in stars")
    parser.add_argument("--skew", type=float, default=0.8, help="of popularity: the power of the rank")
    o = parser.parse_args()
    rng = np.random.default_rng(o.seed)
    key = pairs(rng, o.users, o.movies, o.ratings, o.skew)
    spread = (0.6**2 / o.latent) ** 0.25
    U, V = (rng.normal(0, spread, (count, o.latent)).astype(np.float32) for count in (o.users, o.movies))
    b, c = (rng.normal(0, 0.3, count).astype(np.float32) for count in (o.users, o.movies))
    order = rng.permutation(len(key))
    for name, part in ((o.file, order[len(key) // 10 :]), (o.file.with_stem(o.file.stem + "-test"), order[: len(key) // 10])):
        chosen = np.sort(part)
        stars, squares = np.empty(len(chosen), dtype=np.float32), 0.0
        for start in range(0, len(chosen), BLOCK):
            block = slice(start, start + BLOCK)
            user, movie = np.divmod(key[chosen[block]], o.movies)
            mean = 3.5 + b[user] + c[movie] + np.einsum("nd,nd->n", U[user], V[movie])
            stars[block] = (mean + o.noise * rng.normal(size=len(user))).clip(*SCALE)
            squares += np.square(stars[block] - mean.clip(*SCALE), dtype=np.float64).sum()
        user, movie = np.divmod(key[chosen], o.movies)
        table = pa.table({"user": user, "movie": movie, "rating": np.round(stars.astype(np.float64), 2)})
        if name.suffix == ".csv":
            pa.csv.write_csv(table, name)
        else:
            pa.parquet.write_table(table, name)
        print(f"{name}: {len(chosen):,} ratings, the truth has an RMSE of {(squares / len(chosen)) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
