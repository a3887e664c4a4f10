"""What each part of the best model adds on a 90/10 split, with 95 % intervals of the difference, by the commands of a person.

    python benchmarks/parts.py data/ml-latest-small/ratings.csv
    python benchmarks/parts.py data/ml-100k/u.data

The split is that of ``accuracy.py``. Movies have genres and years where a movies.csv lies beside the ratings. The weights of
the blend are learned on a tenth of the training ratings, by models of the other nine, then given to models of all of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

BAYES, CHAINS, TIME = ["--method", "bayes"], ["--chains", "4"], ["--time", "both"]
SIDE = ["--side", "genres,year"]
WIDE = ["--latent", "24"]


def pmf(*arguments: str | Path) -> dict:
    command = [sys.executable, "-m", "pmfcli", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout)


def write(ratings: pd.DataFrame, folder: Path, movies: Path) -> Path:
    folder.mkdir()
    ratings.to_csv(folder / "ratings.csv", index=False)
    if movies.exists():
        (folder / "movies.csv").write_bytes(movies.read_bytes())
    return folder


def train(data: Path, flags: list[str]) -> Path:
    model = data / f"{'_'.join(flags).replace('-', '') or 'map'}.pt"
    if not model.exists():
        pmf("train", "--data", data, "-o", model, *flags)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    options = parser.parse_args()
    names = ["user", "movie", "rating", "timestamp"] if options.ratings.name == "u.data" else None
    ratings = pd.read_csv(options.ratings, sep=None, engine="python", names=names)
    movies = options.ratings.with_name("movies.csv")
    side = SIDE if movies.exists() else []
    test = ratings.sample(frac=0.1, random_state=0)
    rest = ratings.drop(test.index)
    held = rest.sample(frac=0.1, random_state=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        full, most = write(rest, folder / "full", movies), write(rest.drop(held.index), folder / "most", movies)
        test.to_csv(folder / "told.csv", index=False)
        test.iloc[:, :3].to_csv(folder / "untold.csv", index=False)
        held.to_csv(folder / "held.csv", index=False)
        rows = [BAYES, BAYES + CHAINS, *([BAYES + side, BAYES + side + CHAINS] if side else []), BAYES + TIME]
        rows += [BAYES + TIME + side, BAYES + TIME + side + CHAINS] if side else [BAYES + TIME + CHAINS]
        parts = [[], BAYES, BAYES + TIME + side, BAYES + TIME + side + WIDE, BAYES + TIME + side + CHAINS]
        models = {" ".join(flags): train(full, flags) for flags in rows}
        learned = folder / "weights.pt"
        found = pmf("blend", *(train(most, flags) for flags in parts), "--holdout", folder / "held.csv", "-o", learned)
        for row in found["rows"]:
            print(f"{Path(row['part']).stem:55s} weight {row['weight']:.3f}   RMSE {row['rmse']:.4f}   NLL {row['nll']:.4f}")
        models["blend"] = folder / "blend.pt"
        pmf("blend", *(train(full, flags) for flags in parts), "--weights", learned, "-o", models["blend"])
        for told in ("told", "untold"):
            compared = pmf("compare", *models.values(), "--test", folder / f"{told}.csv")["rows"]
            print(f"\ntimes {told}{'':47s} RMSE                       NLL")
            for name, path in models.items():
                of = {row["score"]: row for row in compared if row["model"] == str(path)}
                first = {row["score"]: row["first"] for row in compared}
                said = [
                    f"{of[score]['value']:.4f} {of[score]['lo']:+.4f} {of[score]['hi']:+.4f}" if of else f"{first[score]:.4f}"
                    for score in ("rmse", "nll")
                ]
                print(f"{name:55s} {said[0]:26s} {said[1]}")


if __name__ == "__main__":
    main()
