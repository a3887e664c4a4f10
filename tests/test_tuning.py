"""The search for settings: what it tries, how it goes on, what it says and writes."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from pmfcli import evaluation, tuning
from pmfcli.cli.tune import _say
from pmfcli.config import Settings, resolve
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import random_mask
from pmfcli.evaluation import cross_score
from pmfcli.steps import run
from pmfcli.tuning import Found, tune


@pytest.fixture
def small(tmp_path: Path, sample) -> Path:
    rows = zip(sample.user[:4000], sample.movie[:4000], sample.stars[:4000], strict=True)
    lines = [f"{sample.users.ids[u]},{sample.movies.ids[m]},{s}\n" for u, m, s in rows]
    (tmp_path / "small.csv").write_text("user,movie,rating\n" + "".join(lines))
    return tmp_path


def test_a_search_goes_on_where_it_was_stopped(answer: Run, small: Path) -> None:
    common = ("tune", "--data", "small.csv", "--epochs", "30", "--sigma", "0.35", "--json")
    first = answer(*common, "--trials", "2")
    assert first.returncode == 0, first.stderr
    second = answer(*common, "--trials", "4")
    tried, more = (json.loads(done.stdout)["rows"] for done in (first, second))
    assert [row["trial"] for row in more] == [0, 1, 2, 3]
    assert more[:2] == tried
    assert len({row["settings"] for row in more}) == 4  # not the first ones again
    assert "sigma=" not in more[0]["settings"]
    assert f"sigma_u={Settings().sigma_u:g}" in more[0]["settings"]
    best = min(row["rmse"] for row in more if row["rmse"] is not None)
    content = (small / "tuned.toml").read_text()
    assert f"# pmf tune: held-out RMSE {best:.4f}, before {more[0]['rmse']:.4f}\n" in content
    found = resolve({}, small / "tuned.toml", {})
    assert (found.sigma, found.epochs) == (0.35, 30)
    said = "on other held-out ratings" if best < more[0]["rmse"] else "nothing did better"
    assert said in second.stderr
    other = answer("tune", "--data", "small.csv", "--epochs", "31", "--trials", "4")
    assert (other.returncode, "another --journal" in other.stderr) == (2, True)


def test_a_search_goes_on_when_its_last_record_is_cut(answer: Run, small: Path) -> None:
    common = ("tune", "--data", "small.csv", "--epochs", "20", "--journal", "cut.log", "--json")
    assert answer(*common, "--trials", "2").returncode == 0
    journal = small / "cut.log"
    content = journal.read_bytes()
    for cut in (content[:-20], content[:-1], content + b"\0" * 100):
        journal.write_bytes(cut)
        done = answer(*common, "--trials", "3")
        assert done.returncode == 0, done.stderr
        assert [row["trial"] for row in json.loads(done.stdout)["rows"]][:1] == [0]


def test_the_best_is_what_its_file_gives(answer: Run, small: Path) -> None:
    assert answer("tune", "--data", "small.csv", "--epochs", "20", "--trials", "3").returncode == 0
    found = resolve({}, small / "tuned.toml", {})
    line = (small / "tuned.toml").read_text().splitlines()[0]
    flags = ("train", "--data", "small.csv", "--config", "tuned.toml", "--no-refit", "--json")
    again = json.loads(answer(*flags).stdout)
    assert f"RMSE {again['holdout_rmse']:.4f}" in line
    assert found.epochs == 20


def test_a_few_users_do_not_tell_settings_apart(answer: Run, small: Path) -> None:
    header, *rows = (small / "small.csv").read_text().splitlines()
    users = [user for user, _ in Counter(row.split(",")[0] for row in rows).most_common(8)]
    (small / "few.csv").write_text("\n".join([header, *(row for row in rows if row.split(",")[0] in users), ""]))
    done = answer("tune", "--data", "few.csv", "--epochs", "30", "--sigma", "0.9", "--trials", "6")
    assert (done.returncode, "too few users to tell them apart" in done.stderr) == (0, True), done.stderr


def test_the_file_has_all_that_was_given_however_and_to_the_digit(answer: Run, small: Path) -> None:
    (small / "start.toml").write_text('hierarchical = "none"\nlatent = 5\nlr = 0.0123456789\n')
    flags = ("--epochs", "5", "--seed", "12345678", "--config", "start.toml", "--trials", "2", "--json")
    done = answer("tune", "--data", "small.csv", *flags, PMF_SIGMA="0.3")
    assert done.returncode == 0, done.stderr
    found = resolve({}, small / "tuned.toml", {})
    assert (found.hierarchical, found.latent, found.lr, found.sigma) == ("none", 5, 0.0123456789, 0.3)
    assert (found.epochs, found.seed) == (5, 12345678)
    rows = json.loads(done.stdout)["rows"]
    assert not any(f"{name}=" in row["settings"] for row in rows for name in ("latent", "lr", "sigma"))


def test_what_cannot_be_searched_is_refused(answer: Run, small: Path) -> None:
    few = small / "few.csv"
    few.write_text("user,movie,rating\na,x,1\na,y,2\nb,x,3\nb,z,4\n")
    done = answer("tune", "--data", "few.csv")
    assert (done.returncode, "too few" in done.stderr) == (3, True), done.stderr
    for arguments, said in (
        (("--data", "small.csv", "-o", "nowhere/tuned.toml"), "--output"),
        (("--data", "small.csv", "--trials", "0"), "--trials"),
        (("--data", "small.csv", "--trials", "1", "--epochs", "1", "-o", "few.csv"), "exists and is not a settings file"),
        (("--data", "small.csv", "--journal", "few.csv"), "not the journal of a search"),
        (("--data", "small.csv", "--journal", "."), "--journal"),
        (("--data", "small.csv", "--trials", "1", "--journal", "/dev/null"), "not the journal of a search"),
    ):
        done = answer("tune", *arguments)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (small / "tuned.toml").exists()
    notes = small / "notes.txt"
    for content in ("my notes\n", '{"op": 1}\n', "[1]\n", '{"op_code": 99}\n', '{"op_code": 0}\nnotes\n{"op_code": 0}\n'):
        notes.write_text(content)
        done = answer("tune", "--data", "small.csv", "--trials", "1", "--journal", "notes.txt")
        assert (done.returncode, "not the journal of a search" in done.stderr) == (2, True), done.stderr
        assert notes.read_text() == content
    done = answer("tune", "--data", "small.csv", "--trials", "1", "--journal", "x.toml", "-o", "x.toml")
    assert (done.returncode, "is also the file of --output" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("holdout", [0.2, 0.0])
def test_the_best_is_compared_to_the_start_on_ratings_that_the_search_saw_as_training(
    sample: Ratings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: float
) -> None:
    few = sample.select(sample.user < 150)
    start = Settings(epochs=10, latent=4, sigma=0.6, holdout=holdout)  # which others are better than
    asked = {}

    def recorded(ratings: Ratings, settings: Settings, part: np.ndarray) -> Iterator[evaluation.Tested]:
        for test in cross_score(ratings, settings, part):
            asked[settings.sigma] = (part == 0, test.scored)
            yield test

    monkeypatch.setattr(tuning, "cross_score", recorded)
    fixed = set(Settings.model_fields) - {"sigma"}
    found = run(tune(few, start, fixed, 4, tmp_path / "journal"))
    assert found.rmse < found.start
    assert asked.keys() == {start.sigma, found.changed["sigma"]}
    (mask, of_start), (same, of_best) = asked[start.sigma], asked[found.changed["sigma"]]
    assert (mask == same).all()
    searched = random_mask(few.n, holdout or 0.1, start.seed)
    assert not (mask & searched).any()
    assert 0.07 * few.n < mask.sum() < 0.1 * few.n
    row = found.check[0]
    for name, scored in (("first", of_start), ("value", of_best)):
        assert row[name] == pytest.approx(float((scored.model - scored.stars).square().mean().sqrt()), rel=1e-4)
    assert row["difference"] == pytest.approx(row["value"] - row["first"])


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (-0.15, -0.05, "better (-0.1500 to -0.0500)"),
        (0.05, 0.15, "worse (+0.0500 to +0.1500)"),
        (-0.05, 0.05, "not clearly different (-0.0500 to +0.0500)"),
        (None, None, "too few users to tell them apart"),
    ],
)
def test_the_verdict(capsys: pytest.CaptureFixture[str], lo: float | None, hi: float | None, verdict: str) -> None:
    row = {"score": "rmse", "first": 0.95, "value": 0.85, "difference": -0.1, "lo": lo, "hi": hi}
    _say(Found({"sigma": 0.3}, 0.8, 0.9, [row]), Path("t.toml"))
    said = "held-out RMSE 0.8000, before 0.9000; on other held-out ratings 0.8500, before 0.9500: "
    assert capsys.readouterr().err.startswith(f"{said}{verdict}\n")
