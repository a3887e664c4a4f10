"""What each part of the best model adds on a 90/10 split, with 95 % intervals of the difference, by the commands of a person.

    python benchmarks/parts.py data/ml-latest-small/ratings.csv
    python benchmarks/parts.py data/ml-100k/u.data

The split is that of ``accuracy.py``. What MovieLens says of movies, and in ml-100k of people, lies beside the ratings. The
weights of the blend are learned on a tenth of the training ratings, by models of the other nine, then given to models of all.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import accuracy
import pandas as pd

BAYES, CHAINS, TIME = ["--method", "bayes"], ["--chains", "4"], ["--time", "both"]
SIDES = {"movies.csv": "genres,year", "u.item": "genres,year,user"}  # u.user goes with u.item
NARROW = ["--latent", "12"]


def pmf(*arguments: str | Path) -> dict:
    command = [sys.executable, "-m", "pmfcli", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout)


def write(ratings: pd.DataFrame, folder: Path, source: Path) -> Path:
    """Ratings in the layout of their source, with what lies beside it."""
    folder.mkdir()
    plain = source.name == "u.data"
    ratings.to_csv(folder / ("u.data" if plain else "ratings.csv"), index=False, header=not plain, sep="\t" if plain else ",")
    for name in ("movies.csv", "u.item", "u.user"):
        if source.with_name(name).exists():
            (folder / name).write_bytes(source.with_name(name).read_bytes())
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
    ratings = accuracy.read(options.ratings)
    known = [said for file, said in SIDES.items() if options.ratings.with_name(file).exists()]
    side = ["--side", known[0]] if known else []
    test = ratings.sample(frac=0.1, random_state=0)
    rest = ratings.drop(test.index)
    held = rest.sample(frac=0.1, random_state=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        full = write(rest, folder / "full", options.ratings)
        most = write(rest.drop(held.index), folder / "most", options.ratings)
        test.to_csv(folder / "told.csv", index=False)
        test.iloc[:, :3].to_csv(folder / "untold.csv", index=False)
        held.to_csv(folder / "held.csv", index=False)
        rows = [BAYES, BAYES + CHAINS, *([BAYES + side, BAYES + side + CHAINS] if side else []), BAYES + TIME]
        rows += [BAYES + TIME + side, BAYES + TIME + side + CHAINS] if side else [BAYES + TIME + CHAINS]
        parts = [[], BAYES, BAYES + TIME + side, BAYES + TIME + side + NARROW, BAYES + TIME + side + CHAINS]
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
