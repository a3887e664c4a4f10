"""What training is expected to take, before it does: against whole runs, as processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from made import ratings_of
from saved import OLD

from pmfcli import sizing
from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.steps import run
from pmfcli.training import fitted_to, train

KEYS = ["schema", "version", "ratings", "users", "movies", "parameters", "model_bytes", "peak_bytes", "seconds", "assumes"]
MEASURED = """
import os, subprocess, sys
command = [sys.executable, "-m", "pmfcli", *sys.argv[1:]]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def most_memory(folder: Path, *arguments: str | Path) -> int:
    """Bytes that a ``pmf`` command had at most."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    code, peak = map(int, subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split())
    assert code == 0
    return peak


def planted(users: int, movies: int, ratings: int, seed: int) -> Ratings:
    """Ratings to half stars, with times, of a model with two features."""
    rng = np.random.default_rng(seed)
    pair = np.sort(rng.choice(users * movies, ratings, replace=False))
    user, movie = np.divmod(pair, movies)
    mean = 3 + (rng.normal(size=(users, 2))[user] * rng.normal(size=(movies, 2))[movie]).sum(1)
    stars = np.clip(np.round(2 * (mean + 0.5 * rng.normal(size=ratings))) / 2, 0.5, 5)
    return ratings_of(user.tolist(), movie.tolist(), stars.tolist(), rng.integers(10**9, 10**9 + 10**6, ratings).tolist())


@pytest.mark.parametrize(
    ("data", "flags"),
    [("sample", ("--epochs", "10")), ("planted.csv", ("--method", "bayes", "--epochs", "30"))],
    ids=["map", "bayes"],
)
def test_a_dry_run_says_what_the_run_takes_and_writes_nothing(
    pmf: Run, tmp_path: Path, sample: Ratings, data: str, flags: tuple[str, ...]
) -> None:
    ratings = sample
    if data != "sample":
        ratings = planted(800, 2000, 30_000, 3)
        lines = zip(ratings.user, ratings.movie, ratings.stars, strict=True)
        (tmp_path / data).write_text("user,movie,rating\n" + "".join(f"{u},{m},{r}\n" for u, m, r in lines))
    before = {path.name for path in tmp_path.iterdir()}
    done = pmf("train", "--data", data, "--dry-run", "--json", *flags)
    assert (done.returncode, {path.name for path in tmp_path.iterdir()}) == (0, before)
    said = json.loads(done.stdout)
    assert list(said) == KEYS
    assert (said["schema"], said["ratings"], said["users"]) == ("pmf.dry-run", ratings.n, len(ratings.users))
    assert flags[-1] in said["assumes"]
    assert 0 < said["seconds"] < 60
    peak = most_memory(tmp_path, "train", "--data", data, *flags)
    assert peak / 1.5 < said["peak_bytes"] < 1.5 * peak
    assert said["model_bytes"] == pytest.approx((tmp_path / "pmf.pt").stat().st_size, rel=0.05)


def test_a_dry_run_in_a_pipe(answer: Run) -> None:
    done = answer("train", "--data", "sample", "--dry-run", "--epochs", "2", "-k", "2")
    rows = dict(line.split("\t") for line in done.stdout.splitlines())
    assert list(rows) == ["what", *KEYS[2:]]
    assert rows["parameters"] == str(2230 * 3 + 2230 * 2)


KINDS = {
    "adam": {},
    "no refit": {"refit": False, "hierarchical": "users", "biases": False},
    "als": {"solver": "als", "hierarchical": "none", "holdout": 0.0},
    "em": {"priors": "em", "noise": "em"},
    "bayes": {"method": "bayes", "keep": 5, "chains": 2},
    "times": {"method": "bayes", "time": "both", "hierarchical": "users"},
    "numbers": {"method": "bayes", "likelihood": "gaussian", "hierarchical": "none", "holdout": 0.2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_file(kind: str) -> None:
    ratings = planted(400, 150, 20_000, 1)
    settings, _ = fitted_to(ratings, Settings(latent=5, epochs=12, **KINDS[kind]))
    model: Model = run(train(ratings, settings))
    expected = sizing.size(ratings, settings)
    assert expected.model_bytes == pytest.approx(len(dumps(model)), rel=0.05)
    assert sizing.length(ratings, settings).draws == model.metrics.get("draws", 1)


def test_more_of_anything_needs_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_memory", lambda: (0.0, 0.0))  # of this process, which other tests made large
    ratings, larger = planted(400, 150, 20_000, 1), planted(800, 300, 160_000, 1)

    def peak(data: Ratings, **given: object) -> int:
        return sizing.size(data, fitted_to(data, Settings(**given))[0]).peak_bytes

    assert peak(ratings) < peak(larger)
    assert peak(ratings, latent=10) < peak(ratings, latent=100)
    assert peak(ratings, method="bayes", keep=10) < peak(ratings, method="bayes", keep=100)


def test_a_smaller_copy_has_as_many_ratings_a_row() -> None:
    ratings = planted(2000, 5000, 60_000, 2)
    part = sizing._part(ratings, 6000)
    assert part.n == pytest.approx(6000, rel=0.1)  # some pairs fall together
    assert (len(part.users), len(part.movies)) == (200, 500)
    assert len(set(zip(part.user.tolist(), part.movie.tolist(), strict=True))) == part.n
    part.check_trainable()


def test_epochs_are_those_given_or_those_of_early_stopping(sample: Ratings) -> None:
    def length(**given: object) -> tuple[int, int]:
        return sizing.length(sample, Settings(**given))[:2]

    assert length(epochs=7) == (7, 7)
    assert length(epochs=7, holdout=0.0) == (7, 0)
    assert length(epochs=7, refit=False) == (7, 0)
    assert length(early_stop=False, holdout=0.0) == (1000, 0)
    assert 100 < length()[0] < 300
    assert length(block_ratings=8000)[0] < 30  # ten steps an epoch
    assert length(method="bayes", epochs=30) == (30, 0)


def test_seconds_are_those_of_a_part_times_what_the_whole_has_more(sample: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"fit": 2.0, "refit": 1.0}, 3.0, 7.0, 5.0, 4  # a step of each phase, before, between, after, draws
    monkeypatch.setattr(sizing, "_spent", lambda ratings, settings: spent)
    assert sizing.seconds(sample, Settings(epochs=10)) == 10 * 2 + 10 * 1 + 2 * 3 + 7 + 5 / 4  # both fits begin
    draws = sizing.seconds(sample, Settings(method="bayes", epochs=10))
    assert draws == 10 * 2 + 3 + 7 + 5 * (10 - 3) / 4  # three sweeps of burn-in
    monkeypatch.setattr(sizing, "_PART", 8000)
    assert sizing.seconds(sample, Settings(method="bayes", epochs=10)) > sample.n / 8000 * draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-memory", "1M"], "pmf: --max-memory 1M: training is expected to need "),
        (["--max-memory", "1M", "--method", "bayes"], "--keep, or --method map"),
        (["--max-memory", "1048576"], "--block-ratings"),
        (["--max-memory", "8X"], "'8X' is not a size; give bytes, or a number with K, M, G or T, such as 8G"),
        (["--max-memory", "-1"], "is not a size"),
    ],
)
def test_too_little_memory_is_refused(answer: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "pmf.pt").write_bytes(OLD)
    done = answer("train", "--data", "sample", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("pmf: ")]
    assert len(said) == 1
    assert message in said[0]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLD]


def test_enough_memory_changes_nothing(answer: Run, tmp_path: Path) -> None:
    for name, more in (("a.pt", []), ("b.pt", ["--max-memory", "64g"])):
        assert answer("train", "--data", "sample", "--epochs", "3", "-o", name, *more).returncode == 0
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
