"""The figures that were promised on MovieLens latest-small. Skipped, with the reason, where the data is not at hand."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Run

BLOG = ROOT / "configs" / "blog.toml"


@pytest.fixture(scope="module")
def split(movielens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The development split: train and test file, 90,752 and 10,084 ratings."""
    folder = tmp_path_factory.mktemp("split")
    ratings = pd.read_csv(movielens / "ratings.csv")
    test = ratings.sample(frac=0.1, random_state=0)
    test.to_csv(folder / "test.csv", index=False)
    ratings.drop(test.index).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv", folder / "test.csv"


def neighbours(answer: Run, movie: str) -> list[str]:
    done = answer("similar", "--movie", movie, "-n", "5", "--json")
    return [row["movie"] for row in json.loads(done.stdout)["rows"]]


def test_the_commands_as_the_user_wrote_them(pmf: Run, answer: Run, movielens: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ml-latest-small").symlink_to(movielens)
    assert pmf("train", "--epochs", "1000", "--latent", "30").returncode == 0
    known = pmf("predict", "--user", "4").stdout.splitlines()
    assert len(known) == 1 + 216
    assert "3114" in neighbours(answer, "1"), "Toy Story 2 is like Toy Story"
    assert {"1196", "1210"} <= set(neighbours(answer, "260")), "both sequels are like Star Wars"
    (tmp_path / "data" / "ml-latest-small").unlink()
    assert pmf("predict", "--user", "4").stdout.splitlines() == known


@pytest.mark.parametrize("seed", range(5))
def test_the_post_is_reproduced(answer: Run, movielens: Path, tmp_path: Path, seed: int) -> None:
    done = answer("train", "--data", movielens, "--config", BLOG, "--seed", str(seed), "--log", "trace.jsonl")
    assert done.returncode == 0, done.stderr
    log = {entry["step"]: entry["loss"] for entry in map(json.loads, (tmp_path / "trace.jsonl").read_text().splitlines())}
    assert log[0] == pytest.approx(8585, abs=2)
    assert log[950] == pytest.approx(-180_980, rel=0.003)
    rows = json.loads(answer("predict", "--user", "4", "--row", "--json").stdout)["rows"]
    assert len(rows) == 44
    assert sum(round(row["prediction"]) == row["rating"] for row in rows) >= 42


def rmse(answer: Run, split: tuple[Path, Path], *arguments: str | Path) -> float:
    train, test = split
    assert answer("train", "--data", train, *arguments).returncode == 0
    found = json.loads(answer("evaluate", "--test", test, "--json").stdout)
    assert (found["n"], found["n_cold"]) == (10_084, 347)
    return found["rmse"]


def test_held_out_error_of_the_default(answer: Run, split: tuple[Path, Path]) -> None:
    found = [rmse(answer, split, "--seed", str(seed)) for seed in range(5)]
    assert sum(found) / 5 <= 0.831
    assert max(found) <= 0.838


def test_held_out_error_without_the_hierarchy(answer: Run, split: tuple[Path, Path]) -> None:
    assert rmse(answer, split, "--hierarchical", "none") <= 0.868


def test_held_out_error_of_the_post_is_worse_than_the_mean(answer: Run, split: tuple[Path, Path]) -> None:
    assert rmse(answer, split, "--config", BLOG) == pytest.approx(1.25, abs=0.03)
