"""Test RMSE against time on planted ratings (planted.py), through pmf and other factorizations of ratings, each a process.

    python -m venv peers && peers/bin/pip install 'setuptools<81' numpy pandas pyarrow scipy
    peers/bin/pip install cmfrec threadpoolctl lenskit scikit-surprise
    python benchmarks/planted.py 1m.parquet --users 16000 --movies 6000 --ratings 1000000
    python benchmarks/race.py 1m.parquet --peers peers/bin/python --plot race.png [--only pmf,cmfrec] [--threads 2]

Whole seconds are those from the start of the process to the end of training: imports and reading are among them (of Parquet;
pmf reads the cache that an earlier run left, from a million ratings on), and pmf writes its model; predictions of the test are
not, but for a peer's peak. All have as many threads, but for Surprise, which has one. The regularization of the peers was
searched here; pmf is told the planted noise. The test is the -test file beside; planted.py says what RMSE the truth has on it.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from scale import measured, planted_sigma, pmf

COLUMNS = ("run", "test RMSE", "whole s", "training s", "cpu s", "peak MB")
RUNS = {
    "pmf": [{"k": 10, "epochs": epochs} for epochs in (1, 2, 3, 5)],
    "cmfrec": [
        *({"k": 10, "lambda_": 5.0, "niter": epochs} for epochs in (2, 3, 5, 10)),
        {"k": 10, "lambda_": 5.0, "niter": 5, "use_cg": False},
        {"k": 30, "lambda_": 10.0, "niter": 5},
        {"k": 40, "lambda_": 10.0, "niter": 10},
    ],
    "lenskit": [
        *({"embedding_size": 10, "regularization": 0.07, "epochs": epochs} for epochs in (2, 5, 10)),
        {"embedding_size": 50, "regularization": 0.1, "epochs": 10},
    ],
    "surprise": [{"n_factors": 10, "lr_all": 0.02, "reg_all": 0.06, "n_epochs": epochs} for epochs in (5, 10, 20, 40)],
}
SHORT = {"embedding_size": "k", "n_factors": "k", "niter": "epochs", "n_epochs": "epochs", "use_cg": "cg"}  # in labels
SHORT |= {"lambda_": "λ", "regularization": "λ", "reg_all": "λ", "lr_all": "lr"}


def by_pmf(how: dict, file: Path, test: Path, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.pt"
        flags = ["--solver", "als", "--hierarchical", "none", "--link", "linear", "--holdout", "0", "-j", str(threads)]
        flags += [f"--sigma={planted_sigma(file):.4f}", f"--latent={how['k']}", f"--epochs={how['epochs']}"]
        cost, trained = pmf("train", "--data", file, "-o", model, *flags)
        _, scored = pmf("evaluate", "-m", model, "--test", test)
    return {"rmse": scored["rmse"], "whole": cost.wall, "training": trained["seconds"], "cpu": cost.cpu, "peak": cost.peak}


def by_peer(python: str, name: str, how: dict, file: Path, test: Path) -> dict:
    began = time.time()
    cost, printed = measured([python, __file__, "--child", json.dumps([name, how, str(file), str(test)])])
    said = json.loads(printed.splitlines()[-1])
    return said | {"whole": said["ended"] - began, "peak": cost.peak}


def child(name: str, how: dict, file: str, test: str) -> None:
    """One run of a peer, in its own process."""
    import numpy as np
    import pandas as pd

    train, asked = pd.read_parquet(file), pd.read_parquet(test)
    importlib.import_module({"lenskit": "lenskit.als"}.get(name, name))
    began = time.perf_counter()
    predict = {"cmfrec": cmfrec, "lenskit": lenskit, "surprise": surprise}[name](train, how)
    said = {"training": time.perf_counter() - began, "ended": time.time(), "cpu": time.process_time()}
    known = asked.user.isin(train.user.unique()) & asked.movie.isin(train.movie.unique())
    found = np.full(len(asked), train.rating.mean())
    found[known] = predict(asked[known])
    found = np.where(np.isnan(found), train.rating.mean(), found).clip(train.rating.min(), train.rating.max())
    print(json.dumps(said | {"rmse": float(np.sqrt(np.mean((found - asked.rating) ** 2)))}))


def cmfrec(train, how):
    from cmfrec import CMF

    model = CMF(**how, nthreads=int(os.environ["OMP_NUM_THREADS"]), verbose=False, precompute_for_predictions=False)
    model.fit(train.rename(columns={"user": "UserId", "movie": "ItemId", "rating": "Rating"}))
    return lambda asked: model.predict(asked.user.to_numpy(), asked.movie.to_numpy())


def lenskit(train, how):
    from lenskit.als import BiasedMFScorer
    from lenskit.data import from_interactions_df

    model = BiasedMFScorer(**how)
    model.train(from_interactions_df(train.rename(columns={"user": "user_id", "movie": "item_id"})))

    def answers(asked):  # its own predictions are one user at a time, a minute for a million
        u, i = model.users.numbers(asked.user.to_numpy()), model.items.numbers(asked.movie.to_numpy())
        bias = model.bias.global_bias + model.bias.user_biases[u] + model.bias.item_biases[i]
        return bias + (model.user_embeddings[u] * model.item_embeddings[i]).sum(1)

    return answers


def surprise(train, how):
    from surprise import SVD, Dataset, Reader

    scale = Reader(rating_scale=(train.rating.min(), train.rating.max()))
    model = SVD(**how, random_state=0)
    model.fit(Dataset.load_from_df(train[["user", "movie", "rating"]], scale).build_full_trainset())
    return lambda asked: [model.predict(u, m).est for u, m in zip(asked.user, asked.movie, strict=True)]


def label(how: dict) -> str:
    return ", ".join(f"{SHORT.get(key, key)} {value:g}" for key, value in how.items())


def draw(found: list[tuple[str, dict, dict]], file: Path, plot: Path) -> None:
    """A line for the same settings, a point for so many epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    lines: dict[str, list[tuple[float, float, int]]] = {}
    for name, how, one in found:
        (epochs,) = (value for key, value in how.items() if SHORT.get(key, key) == "epochs")
        same = {key: value for key, value in how.items() if SHORT.get(key, key) != "epochs"}
        lines.setdefault(f"{name}, {label(same)}", []).append((one["whole"], one["rmse"], epochs))
    for line, points in lines.items():
        axes.plot(*zip(*((x, y) for x, y, _ in points), strict=True), "o-", label=line)
        for x, y, epochs in points:
            axes.annotate(str(epochs), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="seconds of the whole process, to the end of training", ylabel="test RMSE")
    axes.set_title(f"{file.name}; numbers are epochs")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ticker.StrMethodFormatter("{x:g}"))
    axes.legend(fontsize=8)
    figure.savefig(plot, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", help="a Parquet file of planted.py")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--only", default=",".join(RUNS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--plot", type=Path, help="a PNG to draw")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child:
        child(*json.loads(o.child))
        return
    os.environ["OMP_NUM_THREADS"] = str(o.threads)
    test, found = o.file.with_stem(f"{o.file.stem}-test"), []
    pmf(
        "train", "--data", o.file, "-o", os.devnull, "--epochs", "1", "--solver", "als"
    )  # leaves a cache, and warms up the disk

    def run(name: str, how: dict) -> dict:
        return by_pmf(how, o.file, test, o.threads) if name == "pmf" else by_peer(o.peers, name, how, o.file, test)

    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for name in o.only.split(","):
        for how in RUNS[name]:
            one = min((run(name, how) for _ in range(o.runs)), key=lambda one: one["whole"])
            found.append((name, how, one))
            spent = f"{one['whole']:.1f} | {one['training']:.1f} | {one['cpu']:.1f} | {one['peak']:.0f}"
            print(f"| {name}, {label(how)} | {one['rmse']:.4f} | {spent} |", flush=True)
    if o.plot:
        draw(found, o.file, o.plot)


if __name__ == "__main__":
    main()
