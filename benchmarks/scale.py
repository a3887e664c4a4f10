"""What whole `pmf train` commands cost as the ratings grow, on planted files (planted.py), one after the other.

    python benchmarks/planted.py 1m.parquet --users 16000 --movies 6000 --ratings 1000000
    python benchmarks/planted.py 10m.parquet --users 70000 --movies 20000 --ratings 10000000
    python benchmarks/scale.py 1m.parquet 10m.parquet [--only als,planted,default,bayes] [-k 10] [--epochs 10]

Wall and processor seconds and the most memory are of the whole process, as the system counts them. The test RMSE, by
`pmf evaluate`, is of the -test file beside; planted.py says what the truth itself would have. In the end: the power of the
ratings by which the processor's seconds grow, less those that the same command takes for a few ratings.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet

NOISE = 0.75  # stars, as planted.py has it


class Cost(NamedTuple):
    wall: float  # seconds
    cpu: float  # seconds, of all threads
    peak: float  # MB


def measured(arguments: list[str]) -> tuple[Cost, str]:
    """What a command costs as a process of its own, and what it prints."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=out, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, errors):
            stream.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(arguments)}: {errors.read()}")
        return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6), out.read()


def pmf(*arguments: str | Path) -> tuple[Cost, dict]:
    """The same of a `pmf` command, with its JSON."""
    cost, printed = measured([sys.executable, "-m", "pmfcli", *map(str, arguments), "--json"])
    return cost, json.loads(printed)


def planted_sigma(file: Path) -> float:
    """The planted noise as a part of the rating scale."""
    rating = pyarrow.parquet.read_table(file, columns=["rating"])["rating"].to_numpy()
    return NOISE / float(rating.max() - rating.min())


def runs(file: Path, latent: int, epochs: int) -> dict[str, list[str]]:
    """The commands, by name."""
    size = ["--latent", str(latent), "--epochs", str(epochs)]
    als = ["--solver", "als", "--hierarchical", "none", "--link", "linear", "--holdout", "0", *size]
    return {
        "als": als,
        "planted": [*als, "--sigma", f"{planted_sigma(file):.4f}"],
        "default": [],
        "bayes": ["--method", "bayes", *size],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+", help="Parquet files of planted.py")
    parser.add_argument("--only", default="als,planted,default,bayes")
    parser.add_argument("--latent", "-k", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    o = parser.parse_args()
    print("run\tratings\twall s\tcpu s\tpeak MB\tepochs\ttraining RMSE\ttest RMSE")
    with tempfile.TemporaryDirectory() as scratch:
        model, few = Path(scratch) / "model.pt", Path(scratch) / "few.csv"
        few.write_text("user,movie,rating\n" + "".join(f"{u},{m},{(u * m) % 7}\n" for u in range(10) for m in range(10)))
        for name in o.only.split(","):
            found = []
            for file in o.files:
                flags = runs(file, o.latent, o.epochs)[name]
                cost, trained = pmf("train", "--data", file, "-o", model, *flags)
                _, scored = pmf("evaluate", "-m", model, "--test", file.with_stem(f"{file.stem}-test"))
                start, _ = pmf("train", "--data", few, "-o", model, *flags, "--epochs", "1")
                found.append((trained["ratings"], cost.cpu - start.cpu))
                spent = f"{cost.wall:.1f}\t{cost.cpu:.1f}\t{cost.peak:.0f}\t{trained['epochs']}"
                print(f"{name}\t{trained['ratings']}\t{spent}\t{trained['train_rmse']:.4f}\t{scored['rmse']:.4f}", flush=True)
            if len(found) > 1:
                power, _ = np.polyfit(*np.log(np.array(found)).T, 1)
                print(f"{name}: cpu seconds grow as ratings to the power of {power:.2f}", flush=True)


if __name__ == "__main__":
    main()
