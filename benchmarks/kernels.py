"""What the inner loops of training cost on a file of ratings: half sweeps of least squares, and epochs of Adam.

python benchmarks/planted.py 10m.parquet --users 70000 --movies 20000 --ratings 10000000
python benchmarks/kernels.py 10m.parquet [--latent 32]

Floating-point operations of a half sweep, for n ratings and rows of d = features + bias: n d (d + 1) for the upper triangles,
2 n d for right sides, d^3 / 3 + 2 d^2 for each row that is solved. The best of three is printed.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pmfcli.config import Settings
from pmfcli.core import als
from pmfcli.core import map as map_fit
from pmfcli.core.half_step import half_step
from pmfcli.data.cache import read
from pmfcli.data.fields import Columns
from pmfcli.fitting import _scales, observed


def best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--latent", type=int, default=32)
    options = parser.parse_args()
    ratings, k = read(options.ratings, Columns(), False)[0].ratings, options.latent
    settings = Settings(solver="als", latent=k)
    o, n, d, seeded = observed(ratings, settings), ratings.n, k + 1, torch.Generator().manual_seed
    how = als.AlsSettings(k, _scales(settings), settings.sigma, True, False, False, False, False, "full")
    problem, state = als.Problem.of(o, how), als.init(o, how, seeded(0))
    for name, half, rows in (
        ("users", lambda: half_step(state.users, state.movies, problem.users, state.sigma, k), len(ratings.users)),
        ("movies", lambda: half_step(state.movies, state.users, problem.movies, state.sigma, k), len(ratings.movies)),
    ):
        with torch.no_grad():
            seconds = best(half)
        work = n * d * (d + 1) + 2 * n * d + rows * (d**3 / 3 + 2 * d**2)
        print(f"half sweep of {name:6s} {seconds:6.2f} s   {work / seconds / 1e9:5.1f} GFLOP/s")
    for means in (False, True):
        adam = map_fit.MapSettings(
            k, _scales(settings), 0.3, False, True, means, means, 0.03, map_fit.number_of_blocks(n, None)
        )
        blocks, generator = map_fit.cut(o, adam.blocks), seeded(0)
        fit = map_fit.init(o, adam, generator)
        seconds = best(lambda fit=fit, blocks=blocks, generator=generator: map_fit.step(fit, blocks, generator))
        said = f"{seconds:6.2f} s   {1e9 * seconds / n:5.1f} ns a rating"
        print(f"epoch of Adam {'with' if means else 'without'} hierarchical means {said}")


if __name__ == "__main__":
    main()
