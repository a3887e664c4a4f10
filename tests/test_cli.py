"""The command line as a person and a pipe meet it: real processes, their streams, their exit codes."""

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMMANDS, Run, in_a_terminal
from made import ratings_of
from saved import OLD, Code, saved

from pmfcli import checkpoint, cli
from pmfcli.artifact import dumps, load
from pmfcli.config import Settings
from pmfcli.console import say
from pmfcli.processes import _deaf
from pmfcli.steps import run
from pmfcli.text import clean, file_size
from pmfcli.training import train

GOOD = "user,movie,rating\n" + "".join(f"{u},{m},{1 + (u * m) % 5}\n" for u in range(1, 9) for m in range(1, 9))
SIMULATED = "A model of the embedded sample: real films, simulated viewers.\n"
TRAIN = ["model", "method", "epochs", "loss", "sigma", "holdout_rmse", "train_rmse", "seconds", "ratings", "users", "movies"]
PREDICT = ["user", "movie", "title", "rating", "prediction", "sd", "lo", "hi", "p_ge_4", "source"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(text: str) -> bool:
    return text.startswith("pmf: ") and text.count("\n") == 1 and text.endswith("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(answer: Run, command: str) -> None:
    done = answer(command, "--help")
    assert done.returncode == 0
    assert "Example: pmf " + command in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_variable_that_is_no_setting_is_told_by_every_command(answer: Run, command: str) -> None:
    done = answer(command, PMF_MODLE="x.pt")
    assert (done.returncode, done.stdout, one_line(done.stderr)) == (2, "", True)
    assert "did you mean PMF_MODEL?" in done.stderr


BAD_DATA = {
    "no file": None,
    "empty": b"",
    "header only": b"user,movie,rating\n",
    "text in rating": GOOD.encode() + b"1,9,good\n",
    "nan": GOOD.encode() + b"1,9,nan\n",
    "inf": GOOD.encode() + b"1,9,-inf\n",
    "one user": b"user,movie,rating\n1,1,1\n1,2,2\n",
    "one movie": b"user,movie,rating\n1,1,1\n2,1,2\n",
    "one rating": b"user,movie,rating\n1,1,1\n",
    "all equal": b"user,movie,rating\n1,1,3\n1,2,3\n2,1,3\n2,2,3\n",
    "long line": GOOD.encode() + b"1" * 10_000_000 + b",1,1\n",
    "wrong delimiter": GOOD.replace(",", "^").encode(),
    "binary": bytes(range(256)) * 50,
}


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_data_is_3(answer: Run, tmp_path: Path, name: str, command: str) -> None:
    path = tmp_path / "bad.csv"
    if BAD_DATA[name] is not None:
        path.write_bytes(BAD_DATA[name])
    (tmp_path / "pmf.pt").write_bytes(OLD)
    before = tree(tmp_path)
    done = answer(command, "--data", path)
    assert (done.returncode, done.stdout) == (3, "")
    assert one_line(done.stderr), done.stderr
    assert len(done.stderr) < 500
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--latent", "0"], "--latent: 0 is not valid; give a value that is greater than or equal to 1"),
        (["train", "--latent", "x"], "--latent"),
        (["train", "--lr", "nan"], "--lr: nan is not valid"),
        (["train", "--latent", "5000"], "--latent 5000: sample has 2,000 users and 230 movies; give at most 2000"),
        (["train", "--no-such-flag"], "--no-such-flag"),
        (["train", "--config", "bad.toml"], "did you mean latent?"),
        (["train", "--config", "none.toml"], "none.toml: No such file"),
        (["train", "--device", "cuda"], "use --device cpu"),
        (["train", "-o", "no/such/folder/m.pt"], "No such file or directory"),
        (["train", "-o", "."], "is a folder"),
        (["train", "-o", "/proc/m.pt"], "--output /proc/m.pt"),
        (["train", "-o", "m" * 303], "File name too long; give a "),
        (["train", "--data", "m" * 303], "File name too long; give a shorter one"),
        (["train", "--data", "alloc" * 70], "File name too long; give a shorter one"),
        (["recommend", "--all-users", "-o", "/proc/m.csv"], "--output /proc/m.csv"),
        (["evaluate", "--plot", "/proc/m.svg"], "--plot /proc/m.svg"),
        (["tune", "-o", "/proc/t.toml"], "--output /proc/t.toml"),
        (["train", "-o", "-", "--json"], "the model goes to standard output"),
        (["train", "-o", "-", "--log", "-"], "the model goes to standard output"),
        (["predict", "-", "-m", "-"], "cannot both come from standard input"),
        (["train", "--log", "no/such/folder/l.jsonl"], "--log"),
        (["similar"], "give either --movie or --user"),
        (["similar", "--movie", "1", "-n", "0"], "-n"),
        (["predict"], "give one of: --user ID"),
        (["predict", "--user"], "Option '--user' requires an argument; see pmf predict --help"),
        (["evaluate", "--test", "x.csv", "--folds", "3"], "--test scores a saved model: --folds does not go with it"),
        (["evaluate", "--test", "x.csv", "--latent", "3", "--data", "sample"], "--data, --latent do not go with it"),
        (["evaluate", "--test", "-", "-m", "-"], "cannot both come from standard input"),
        (["evaluate", "--max-rmse", "nan"], "--max-rmse"),
        (["evaluate", "-m", "x.pt"], "trains on a part of --data: --model does not go with it"),
        (["evaluate", "--data", "sample", "--folds", "100000000"], "--folds 100000000: more than the 79,821 ratings"),
        (["train", "--data", "sample", "--user-col", "who"], "name columns of a file"),
        (["evaluate", "--folds", "3", "--last-n", "3"], "--last-n does not go with it"),
        (["evaluate", "--test-fraction", "2"], "--test-fraction"),
        (["download", "ml-3m"], "no data set is called 'ml-3m'; known: ml-latest-small"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_usage_is_2(answer: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.toml").write_text("latnet = 3\n")
    before = tree(tmp_path)
    done = answer(*arguments)
    notice = r"^Using the embedded sample: real films, simulated viewers\..*\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(re.sub(notice, "", done.stderr)), done.stderr
    assert message in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_ran_out_is_said(error: Exception, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert cli.run(["info"]) == 1
    assert capfd.readouterr().err == "pmf: not enough memory for this; try a smaller --latent or fewer ratings\n"


def test_model_errors_are_4_and_unknown_ids_5(answer: Run, tmp_path: Path, sample_file: Path) -> None:
    def check(code: int, message: str, *arguments: str | Path) -> None:
        done = answer(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert one_line(done.stderr.removeprefix(SIMULATED)), done.stderr
        assert message in done.stderr

    check(4, "no such model; train one with", "predict", "--user", "4")
    (tmp_path / "cut.pt").write_bytes(sample_file.read_bytes()[:5000])
    check(4, "cut short", "info", "-m", "cut.pt")
    torch.save({"format": "pmf-model", "version": 99, "meta": "", "tensors": {}}, tmp_path / "new.pt")
    check(4, "upgrade pmf", "recommend", "--user", "4", "-m", "new.pt")

    (tmp_path / "evil.pt").write_bytes(saved(Code()))
    check(4, "refused", "similar", "--movie", "1", "-m", "evil.pt")
    assert not (tmp_path / "it-ran").exists()

    check(5, "no user '9999'", "predict", "--user", "9999", "-m", sample_file)
    check(5, "no user 'nobody'", "recommend", "--user", "nobody", "-m", sample_file)
    check(5, "no movie 'xyzzy'", "similar", "--movie", "xyzzy", "-m", sample_file)
    check(5, "matches 4 movies; give an id: ", "similar", "--movie", "star wars", "-m", sample_file)
    check(5, "rows of users are 0 to 1999", "predict", "--row", "--user", "2000", "-m", sample_file)


def test_network_errors_are_6(pmf: Run, tmp_path: Path) -> None:
    done = pmf("download", "ml-100k", "--from", "http://127.0.0.1:1/ml-100k.zip")
    assert (done.returncode, done.stdout) == (6, "")
    assert one_line(done.stderr)
    assert "--data sample" in done.stderr
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert pmf("download", "--from", "x.zip").returncode == 3


def test_a_gate_is_7(answer: Run, tmp_path: Path, sample_file: Path, sample) -> None:
    rows = zip(sample.user[:500], sample.movie[:500], sample.stars[:500], strict=True)
    lines = [f"{sample.users.ids[u]},{sample.movies.ids[m]},{s}\n" for u, m, s in rows]
    (tmp_path / "test.csv").write_text("user,movie,rating\n" + "".join(lines))
    assert answer("evaluate", "-m", sample_file, "--test", "test.csv", "--max-rmse", "2").returncode == 0
    done = answer("evaluate", "-m", sample_file, "--test", "test.csv", "--max-rmse", "0.1", "--json")
    assert done.returncode == 7
    assert "500 of 500 test pairs were in the training data" in done.stderr
    found = json.loads(done.stdout)
    keys = {"schema", "version", "n", "n_cold", "rmse", "mae", "nll", "crps", "coverage", "baselines"}
    assert keys <= found.keys()
    assert (found["n"], found["n_cold"]) == (500, 0)
    assert found["nll"] < found["baselines"]["mean"]["nll"]
    assert found["crps"] < found["baselines"]["mean"]["crps"]
    assert found["baselines"].keys() == {"mean", "bias"}
    low, high = found["intervals"]["rmse"]
    assert low < found["rmse"] < high
    for part in (found, *found["by_user_ratings"]):
        low, high = part["intervals"]["coverage"]["0.8"] or (0, 1)  # none of fewer than ten people
        assert low <= part["coverage"]["0.8"] <= high
    assert sum(found["pit"]) == pytest.approx(1)
    assert sum(part["n"] for part in found["reliability"]) == 500
    assert found["risk_coverage"][-1] == {"part": 1.0, "rmse": pytest.approx(found["rmse"])}
    assert found["ranking"] is None
    done = answer("evaluate", "-m", sample_file, "--test", "test.csv", "--ranking", "5", "--json")
    assert json.loads(done.stdout)["ranking"]["users"] == 0  # all that they liked was in training
    assert "ranking: no test rating in the upper quarter of the scale" in done.stderr
    done = answer("evaluate", "--ranking", "5", "--epochs", "20", "--folds", "2", "--json")
    found = json.loads(done.stdout)["ranking"]
    assert found["k"] == 5
    assert 1000 < found["users"] <= len(sample.users)
    assert f"ranking, {found['users']:,} users, all movies they had not rated in training: the top 5 include" in done.stderr
    for name, start in (("x.png", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.html", b"<!DOCTYPE html>")):
        assert answer("evaluate", "-m", sample_file, "--test", "test.csv", "--plot", name).returncode == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    assert answer("evaluate", "-m", sample_file, "--test", "test.csv", "--plot", "x.jpg").returncode == 2


def test_a_test_from_before_the_end_of_training_is_told(answer: Run, tmp_path: Path) -> None:
    rows = "".join(f"u{n // 11},m{n % 11},{1 + n % 5},{1000 * n}\n" for n in range(77))
    (tmp_path / "all.csv").write_text("user,movie,rating,time\n" + rows)
    common = ["--data", "all.csv", "--epochs", "2"]
    last = answer("evaluate", *common, "--split", "last")
    assert "warning: training includes ratings later than 6 of the 7 test ratings" in last.stderr
    assert "training includes ratings later" not in answer("evaluate", *common, "--split", "time").stderr
    strangers = answer("evaluate", *common, "--split", "time", "--test-fraction", str(55 / 77)).stderr
    assert strangers.endswith("no test rating has both its user and its movie in training\n")  # and the file is the same
    assert answer("train", *common).returncode == 0
    (tmp_path / "late.csv").write_text("user,movie,rating,time\nu1,m2,3,76000\nu1,m3,3,75999\n")
    assert "later than 1 of the 2 test ratings" in answer("evaluate", "--test", "late.csv").stderr


def test_compare_says_which_is_better_and_by_how_much(answer: Run, tmp_path: Path, sample_file: Path, sample) -> None:
    rows = list(zip(sample.user[:2000], sample.movie[:2000], sample.stars[:2000], strict=True))
    lines = [f"{sample.users.ids[u]},{sample.movies.ids[m]},{s}\n" for u, m, s in rows]
    (tmp_path / "test.csv").write_text("user,movie,rating\n" + "".join(lines))
    assert answer("train", "--data", "test.csv", "--epochs", "1", "--holdout", "0", "-o", "poor.pt").returncode == 0
    done = answer("compare", sample_file, sample_file, "poor.pt", "--test", "test.csv", "--json")
    found = json.loads(done.stdout)["rows"]
    assert [row["score"] for row in found] == ["rmse", "mae", "nll", "crps"] * 2
    assert all((row["difference"], row["lo"], row["hi"]) == (0, 0, 0) for row in found[:4])
    worse = found[4]
    assert worse["value"] - worse["first"] == worse["difference"] > 0
    assert 0 < worse["lo"] < worse["difference"] < worse["hi"]
    assert "2,000 of 2,000 test pairs were in its training data" in done.stderr
    assert f"poor.pt compared to {sample_file}: {sample_file} has the better RMSE, by 0." in done.stderr
    assert "no clear difference in RMSE (+0.0000 to +0.0000)" in done.stderr
    (tmp_path / "strange.csv").write_text("user,movie,rating\nann,dune,3\nbob,heat,4\n")
    strange = answer("compare", sample_file, sample_file, "--test", "strange.csv")
    warned = f"warning: {sample_file}: no test rating has both its user and its movie in training; is it the right file?"
    assert (strange.returncode, warned in strange.stderr, warned in done.stderr) == (0, True, False)
    assert answer("compare", sample_file, "--test", "test.csv").returncode == 2
    assert answer("compare", sample_file, "no.pt", "--test", "test.csv").returncode == 4


def test_train_writes_a_model_a_log_and_json(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    common = ("train", "--data", "good.csv", "--epochs", "120", "--holdout", "0", "--no-early-stop")
    done = answer(*common, "--log", "log.jsonl", "--json", PMF_LATENT="3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["schema", "version", *TRAIN]
    assert (found["model"], found["epochs"], found["ratings"], found["holdout_rmse"]) == ("pmf.pt", 120, 64, None)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["holdout_rmse"] for entry in log] == [None] * 4
    assert [entry["step"] for entry in log] == [0, 50, 100, 119]
    assert {"step", "loss", "sigma", "holdout_rmse", "seconds"} <= log[0].keys()
    assert log[-1]["loss"] == found["loss"]
    info = json.loads(answer("info", "--json").stdout)
    assert (info["settings"]["latent"], info["settings"]["epochs"], info["settings"]["seed"]) == (3, 120, 0)
    assert info["parameters"]["Y"] == [8, 3]
    lines = [json.loads(line) for line in answer("info", "--format", "jsonl").stdout.splitlines()]
    assert {"what": "metrics.loss", "value": info["metrics"]["loss"]} in lines
    assert {"what": "data.ratings", "value": 64} in lines
    assert {"what": "metrics.loss", "value": str(info["metrics"]["loss"])} in csv.DictReader(
        io.StringIO(answer("info", "--format", "csv").stdout)
    )

    again = answer(*common, "-o", "again.pt", PMF_LATENT="3")
    assert again.stdout == ""
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "pmf.pt").read_bytes()

    held = answer("train", "--data", "sample", "--epochs", "52", "--no-early-stop", "--no-refit", "--log", "held.jsonl")
    assert held.returncode == 0
    log = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["holdout_rmse"] is not None) for entry in log] == [(0, True), (50, True), (51, True)]

    piped = answer("train", "--data", "-", "--holdout", "0", stdin=GOOD)
    assert piped.returncode == 0
    assert "standard input" in piped.stderr


def test_divergence_keeps_the_old_model(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "pmf.pt").write_bytes(OLD)
    done = answer("train", "--data", "good.csv", "--lr", "1e30", "--holdout", "0")
    assert done.returncode == 1
    assert one_line(done.stderr)
    assert "diverged at step" in done.stderr
    assert "smaller --lr" in done.stderr
    for rate in ("1e16", "1e20"):
        done = answer("train", "--data", "sample", "--lr", rate)
        assert done.returncode == 1
        assert "diverged" in done.stderr
        assert "smaller --lr" in done.stderr
    done = answer("train", "--data", "sample", "--priors", "em", "--noise", "em", "--sigma", "1e-6", "--sigma-u", "1e6")
    assert done.returncode == 1
    assert "diverged at step 0" in done.stderr
    assert "larger --sigma" in done.stderr
    assert (tmp_path / "pmf.pt").read_bytes() == OLD


def test_small_data_trains_and_says_how(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "three.csv").write_text("user,movie,rating\na,x,1\nb,x,2\nb,y,3\n")
    done = answer("train", "--data", "three.csv")
    assert done.returncode == 0
    assert "3 ratings are too few to hold 0.1 of them out" in done.stderr
    checks = [(u, m, 9 if (u + m) % 2 else 2) for u in range(20) for m in range(15) if (u * 7 + m * 3) % 4]
    (tmp_path / "board.csv").write_text("user,movie,rating\n" + "".join(f"{u},{m},{r}\n" for u, m, r in checks))
    assert "it learned little" not in answer("train", "--data", "board.csv", "--sigma-u", "1", "--sigma-v", "1").stderr
    assert "it learned little" in answer("train", "--data", "board.csv", *(f"--sigma-{of}=0.01" for of in "uvx")).stderr
    similar = answer("similar", "--movie", "x", "-n", "1", "--json")
    assert similar.returncode == 5  # board.csv has no x
    assert len(json.loads(answer("similar", "--movie", "3", "-n", "2", "--json").stdout)["rows"]) == 2


def test_the_ratings_are_not_written_over(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    for flag in ("--output", "--log"):
        done = answer("train", "--data", "good.csv", flag, tmp_path / "good.csv")
        assert done.returncode == 2
        assert "these are the ratings" in done.stderr
    folder = tmp_path / "data" / "ml-latest-small"
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(GOOD)
    (folder / "part.parquet").write_bytes(b"a part")
    (folder / "movies.csv").write_text("movieId,title\n")
    others = ("plot.png", "m.svg", "m.csv", "pmf.toml")
    for name in others:
        (tmp_path / name).write_text("# kept")
    for arguments in (
        ["train", "-o", "data/ml-latest-small/ratings.csv"],
        ["train", "--data", "data/ml-latest-small", "-o", "data/ml-latest-small/ratings.csv"],
        ["tune", "--data", "ml-latest-small", "-o", "data/ml-latest-small/ratings.csv"],
        ["tune", "--data", "good.csv", "-o", "good.csv"],
        ["evaluate", "--test", "plot.png", "--plot", "plot.png"],
        ["evaluate", "--data", "good.csv", "-m", "m.svg", "--plot", "m.svg"],
        ["recommend", "--all-users", "-m", "m.csv", "-o", "m.csv"],
        ["train", "--data", "data/ml-latest-small", "-o", "data/ml-latest-small/movies.csv"],
        ["evaluate", "--data", "good.csv", "--method", "bayes", "--user-features", "m.svg", "--plot", "m.svg"],
        ["tune", "--data", "good.csv", "--method", "bayes", "--movie-features", "m.csv", "-o", "m.csv"],
        ["tune", "--data", "good.csv", "--journal", "pmf.toml"],
        ["train", "--data", "good.csv", "-o", "pmf.toml"],
        ["train", "--data", "sample", "-o", "m.csv"],
        ["update", "m.pt", "good.csv", "-o", "m.csv"],
        ["forget", "-m", "m.pt", "--user", "4", "-o", "m.csv"],
        ["blend", "m.pt", "m.pt", "--holdout", "good.csv", "-o", "m.csv"],
        ["blend", "a.pt", "b.pt", "--holdout", "good.csv", "-o", "good.csv"],
    ):
        done = answer(*arguments)
        assert (done.returncode, one_line(done.stderr), "give another" in done.stderr) == (2, True, True), arguments
    (folder / "ratings.csv").rename(folder / "kept")
    done = answer("train", "--data", folder, "-o", folder / "part.parquet")
    assert (done.returncode, "these are the ratings" in done.stderr) == (2, True)
    left = {
        "good.csv": GOOD.encode(),
        **dict.fromkeys(others, b"# kept"),
        "data/ml-latest-small/kept": GOOD.encode(),
        "data/ml-latest-small/part.parquet": b"a part",
        "data/ml-latest-small/movies.csv": b"movieId,title\n",
    }
    assert tree(tmp_path) == left


def test_a_model_takes_the_place_of_nothing_but_a_model(answer: Run, tmp_path: Path, sample_file: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    for name in ("thesis.docx", "ratings.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as box:
            box.writestr("word/document.xml", "pmf-model")
    np.savez(tmp_path / "a.npz", data=np.arange(3))
    checkpoint.save(tmp_path / "c", "a run", {"before": None, "now": None})
    (tmp_path / "net.pt").write_bytes(saved({"weight": torch.zeros(3)}))
    (tmp_path / "notes.pt").write_text("pmf-model")
    before = tree(tmp_path)
    for name in sorted(before.keys() - {"good.csv"}):
        done = answer("train", "--data", "good.csv", "--epochs", "2", "-o", name)
        assert (done.returncode, done.stderr) == (
            2,
            f"pmf: --output {name}: exists and is not a model; give another file, or remove it\n",
        )
    assert tree(tmp_path) == before
    for name, content in (("old.pt", OLD), ("whole.pt", sample_file.read_bytes()), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        assert answer("train", "--data", "good.csv", "--epochs", "2", "-o", name).returncode == 0
        assert load(tmp_path / name).data["name"] == "good.csv"


def test_no_file_is_written_over_another_of_the_same_run(answer: Run, tmp_path: Path) -> None:
    for name, text in (("good.csv", GOOD), ("films.csv", "movie,kind\n1,a\n2,b\n"), ("c.toml", "latent = 2\n")):
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    for arguments, said in (
        (["-o", "m.pt", "--checkpoint", "./m.pt"], "--checkpoint m.pt: is also the file of --output"),
        (["-o", "m.pt", "--log", "m.pt"], "--log m.pt: is also the file of --output"),
        (["--config", "c.toml", "-o", "c.toml"], "--output c.toml: is also the file of --config"),
        (["--method", "bayes", "--movie-features", "films.csv", "-o", "films.csv"], "is also the file of --movie-features"),
        (["--resume", "--checkpoint", "good.csv"], "--checkpoint good.csv: these are the ratings"),
    ):
        done = answer("train", "--data", "good.csv", "--epochs", "2", *arguments)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert tree(tmp_path) == before


def test_a_link_that_leads_to_itself_is_no_file(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "loop").symlink_to("loop")
    for arguments in (
        *(["train", flag, "loop"] for flag in ("--output", "--log", "--checkpoint", "--config")),
        *(["tune", "--trials", "1", flag, "loop"] for flag in ("--output", "--journal")),
    ):
        done = answer(*arguments, "--data", "good.csv", "--epochs", "1")
        assert (done.returncode, "Too many levels of symbolic links" in done.stderr) == (2, True), done.stderr
        assert sorted(os.listdir(tmp_path)) == ["good.csv", "loop"]


def test_a_folder_that_may_not_be_looked_into(answer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may, so that the answer of the system is put in its place."""
    (tmp_path / "good.csv").write_text(GOOD)
    stat = Path.stat

    def closed(path: Path, **how: bool) -> os.stat_result:
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", closed)
    for arguments, code, said in (
        (["train", "--data", "closed/r.csv"], 3, "closed/r.csv: Permission denied; give a ratings file that you can read"),
        (["train", "--data", "good.csv", "-o", "closed/m.pt"], 2, "closed/m.pt: Permission denied; give one that you can"),
        (["info", "-m", "closed/m.pt"], 4, "closed/m.pt: Permission denied; give a model file"),
    ):
        done = answer(*arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_no_file_is_called_by_a_hyphen(answer: Run, tmp_path: Path, sample_file: Path) -> None:
    for arguments in (["tune", "-o", "-"], ["blend", "a.pt", "b.pt", "--holdout", "x.csv", "-o", "-"]):
        done = answer(*arguments)
        assert (done.returncode, "go to standard output; give a file" in done.stderr) == (2, True)
    done = answer("blend", sample_file, "--holdout", "x.csv", "-o", sample_file)
    assert (done.returncode, f"is also the file of the model {sample_file}" in done.stderr) == (2, True)
    done = answer("train", "--data", "sample", "--checkpoint", "-")
    assert (done.returncode, "--checkpoint -: a run can only continue from a file" in done.stderr) == (2, True)
    done = answer("train", "--data", "sample", "--method", "bayes", "--movie-features", "-")
    assert (done.returncode, "--movie-features -: standard input is for ratings" in done.stderr) == (2, True)
    done = answer("train", "--data", "-", "--config", "-", stdin="latent = 3\n")
    assert (done.returncode, "--data and --config cannot both come from standard input" in done.stderr) == (2, True)
    assert not tree(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_model_to_standard_output_is_whole_or_an_error(sample_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pmfcli", "forget", "--user", "4", "-m", str(sample_file), "-o", "-"]
    for unbuffered in ("", "1"):
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        whole = subprocess.run(command, capture_output=True, env=environment, check=True).stdout
        (tmp_path / "whole.pt").write_bytes(whole)
        assert len(load(tmp_path / "whole.pt").users) == 1999
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.read(10)
            process.stdout.close()
            process.wait()
        assert process.returncode == 141
        with open("/dev/full", "wb") as full:
            assert subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment).returncode == 1


def test_a_full_log_is_said_and_the_model_kept(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    done = answer("train", "--data", "good.csv", "--epochs", "3", "--log", "/dev/full")
    assert done.returncode == 0
    assert "--log: No space left on device; logging stops" in done.stderr
    assert (tmp_path / "pmf.pt").exists()


def test_titles_that_are_nearly_right(answer: Run, sample_file: Path) -> None:
    common = ("predict", "--user", "4", "-m", sample_file, "--movie")
    for title in ("usual suspects, the (1995)", "The Usual Suspects", "USUAL SUSPECTS"):
        assert "\t50\t" in answer(*common, title).stdout
    assert "closest: 1 Toy Story (1995)" in answer(*common, "toy stroy").stderr
    assert (
        "--exclude: the model knows no movie" in answer("recommend", "--user", "4", "--exclude", "zz", "-m", sample_file).stderr
    )


def test_ids_that_are_nearly_right(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("user,movie,rating\nann,up,3\nbob,up,4\nZoë,up,5\nann,heat,2\nbob,heat,1\n")
    assert answer("train", "--data", "names.csv", "--epochs", "2", "-k", "2").returncode == 0
    for written, near in (("ANN", "ann"), ("zoe", "Zoë"), ("bop", "bob")):
        done = answer("predict", "--user", written)
        assert (done.returncode, f"no user '{written}'; closest: {near}" in done.stderr) == (5, True)


def test_one_pair_has_one_prediction(answer: Run, sample_file: Path) -> None:
    best = json.loads(answer("recommend", "--user", "4", "-n", "100", "-m", sample_file, "--json").stdout)["rows"]
    movies = [part for row in best for part in ("--movie", row["movie"])]
    again = json.loads(answer("predict", "--user", "4", *movies, "-m", sample_file, "--json").stdout)["rows"]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in best]


def test_a_test_on_another_scale_is_called_so(answer: Run, sample_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("user,movie,rating\n4,1,77\n4,2,3\n")
    for command in (["evaluate", "-m", sample_file], ["compare", sample_file, sample_file]):
        done = answer(*command, "--test", "other.csv")
        assert done.returncode == 0
        assert "1 of 2 test ratings are outside the scale of the model, 0.5 to 5; is it the right file?" in done.stderr


def test_a_model_that_memorises_is_called_so(answer: Run, tmp_path: Path) -> None:
    """Ratings that are noise: whoever fits them well is wrong on the rest."""
    stars = np.random.default_rng(0).integers(1, 10, (60, 30))
    lines = [f"{u},{m},{r}\n" for (u, m), r in np.ndenumerate(stars)]
    (tmp_path / "noise.csv").write_text("user,movie,rating\n" + "".join(lines))
    wide = ("--sigma", "0.01", "--sigma-u", "3", "--sigma-v", "3", "--no-refit", "--hierarchical", "none", "--no-early-stop")
    done = answer("evaluate", "--data", "noise.csv", *wide, "--holdout", "0", "--epochs", "200")
    assert "worse than always predicting the mean; try the default settings" in done.stderr  # the scale is that of training


def test_a_model_that_biases_alone_outdo_is_called_so(answer: Run) -> None:
    done = answer("train", "--data", "sample", "--epochs", "3")
    assert "warning: on held-out ratings biases alone do better. Try more --epochs" in done.stderr
    assert "biases alone" not in answer("train", "--data", "sample", "--epochs", "60").stderr


def test_every_format_says_the_same(answer: Run, sample_file: Path) -> None:
    common = ("predict", "--user", "4", "--movie", "1", "--movie", "alien", "-m", sample_file)
    document = json.loads(answer(*common, "--json").stdout)
    assert (document["schema"], document["version"]) == ("pmf.predict", 1)
    rows = document["rows"]
    assert [list(row) for row in rows] == [PREDICT, PREDICT]
    assert [(row["movie"], row["title"], row["source"]) for row in rows] == [
        ("1", "Toy Story (1995)", "model"),
        ("1214", "Alien (1979)", "model"),
    ]
    assert json.loads(answer(*common, "--format", "json").stdout) == document
    assert [json.loads(line) for line in answer(*common, "--format", "jsonl").stdout.splitlines()] == rows
    assert answer(*common, "--json", "--format", "csv").returncode == 2
    tsv = list(csv.DictReader(io.StringIO(answer(*common).stdout), delimiter="\t"))
    assert answer(*common, "--format", "tsv").stdout == answer(*common).stdout
    assert list(csv.DictReader(io.StringIO(answer(*common, "--format", "csv").stdout))) == tsv
    assert [float(row["prediction"]) for row in tsv] == [row["prediction"] for row in rows]
    for row in tsv:
        assert float(row["lo"]) < float(row["prediction"]) < float(row["hi"])
        assert 0 < float(row["p_ge_4"]) < 1 < 5 * float(row["sd"])


def test_pairs_from_a_pipe_and_where_their_answers_come_from(answer: Run, sample_file: Path, tmp_path: Path) -> None:
    pairs = "4\t1\n4\t50\n\n4\t99999999\nnobody\t1\nnobody\tnothing\n"
    done = answer("predict", "-", "-m", sample_file, "--format", "jsonl", stdin="user\tmovie\n" + pairs)
    unknown = "3 of 5 pairs have a user or movie that the model does not know; 'source' shows which\n"
    assert (done.returncode, done.stderr) == (0, SIMULATED + unknown)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["source"] for row in rows] == ["model", "model", "user-only", "movie-only", "prior"]
    assert [row["title"] for row in rows][:3] == ["Toy Story (1995)", "Usual Suspects, The (1995)", None]
    (tmp_path / "pairs.tsv").write_text(pairs)
    assert answer("predict", "pairs.tsv", "-m", sample_file, "--format", "jsonl").stdout == done.stdout
    for separator in (",", ";", "|", "::", " "):
        same = answer("predict", "-", "-m", sample_file, "--format", "jsonl", stdin=pairs.replace("\t", separator))
        assert same.stdout == done.stdout
    alone = answer("predict", "-", "-m", sample_file, "--format", "jsonl", stdin="4\t1\n").stdout
    numbers = ("prediction", "sd", "lo", "hi", "p_ge_4")  # of one pair they round otherwise than of many
    assert {key: json.loads(alone)[key] for key in numbers} == pytest.approx({key: rows[0][key] for key in numbers}, rel=1e-5)
    assert {key: value for key, value in json.loads(alone).items() if key not in numbers}.items() <= rows[0].items()
    for given in (
        "movie,user,rating\n1,4,5\n",
        "\n\ufeff4\t1\n".replace("\n", "", 1),
        "4::1\n",
        "item_id:token\tuser_id:token\n1\t4\n",
    ):
        assert answer("predict", "-", "-m", sample_file, "--format", "jsonl", stdin=given).stdout == alone, given
    for brackets in ("[bob]\t[REC]\n", "user\tmovie\n[bob]\t[REC]\n", "{3F2504E0-4F89}\t1\n"):
        said = answer("predict", "-", "-m", sample_file, stdin=brackets).stdout.splitlines()[1]
        assert said.startswith(brackets.splitlines()[-1])
    for bad, message in (
        ("4\t1\n4\n", "standard input:2: '4' is not a user and a movie; give TSV or CSV"),
        ("rank\tmovie\ttitle\n1\t4\tx\n", "standard input:1: a header without user; a user and a movie are needed"),
        ("[-1, 2]\n", "standard input:1: '[-1, 2]' is not a user and a movie"),
        ("{'user': 4, 'movie': 1}\n", "standard input:1: '{'user': 4, 'movie': 1}' is not a user and a movie"),
        ("{user: 4, movie: 1}\n", "standard input:1: '{user: 4, movie: 1}' is not a user and a movie"),
        ('{"user": "4", "movie": "1"}\n', """standard input:1: '{"user": "4", "movie": "1"}' is not a user and a movie"""),
    ):
        done = answer("predict", "-", "-m", sample_file, stdin=bad)
        assert done.returncode == 3
        assert message in done.stderr
    for source in (tmp_path, tmp_path / "none.tsv"):
        done = answer("predict", source, "-m", sample_file)
        assert (done.returncode, done.stdout) == (3, "")


def test_known_ratings_beside_their_reconstruction(answer: Run, sample_file: Path, sample) -> None:
    done = answer("predict", "--user", "4", "-m", sample_file)
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    mine = sample.user == sample.users.row("4")
    assert [row["movie"] for row in rows] == [sample.movies.ids[m] for m in sample.movie[mine]]
    assert [float(row["rating"]) for row in rows] == sample.stars[mine].tolist()
    by_row = answer("predict", "--user", "3", "--row", "-m", sample_file)
    assert by_row.stdout == done.stdout


def test_recommendations_are_unseen_unless_asked(answer: Run, sample_file: Path) -> None:
    def movies(*arguments: str) -> list[str]:
        done = answer("recommend", "--user", "4", "-m", sample_file, *arguments)
        return [row["movie"] for row in csv.DictReader(io.StringIO(done.stdout), delimiter="\t")]

    seen = {row.split("\t")[1] for row in answer("predict", "--user", "4", "-m", sample_file).stdout.splitlines()[1:]}
    best = movies("-n", "5")
    assert len(best) == 5
    assert not seen & set(best)
    assert movies("-n", "5", "--exclude", best[0])[0] == best[1]
    assert movies("--candidates", best[3], "--candidates", best[1]) == [best[1], best[3]]
    everything = movies("-n", "1000", "--include-seen")
    assert len(everything) == 230
    assert seen <= set(everything)
    nothing = ("recommend", "--user", "4", "-m", sample_file, "--candidates", best[0], "--exclude", best[0])
    assert answer(*nothing).stderr.endswith("nothing is left to recommend\n")
    assert answer(*nothing, "--include-seen").stderr.endswith("nothing is left to recommend\n")


def test_similar_users_and_movies(answer: Run, sample_file: Path) -> None:
    rows = answer("similar", "--movie", "star wars episode iv a new hope", "-n", "3", "-m", sample_file).stdout.splitlines()
    assert rows[0] == "rank\tmovie\ttitle\tsimilarity\tratings\tsd"
    assert sum("Star Wars" in row for row in rows[1:]) >= 2
    users = answer("similar", "--user", "4", "-n", "3", "-m", sample_file).stdout.splitlines()
    assert users[0] == "rank\tuser\tsimilarity\tratings\tsd"
    assert len(users) == 4
    few = answer("similar", "--movie", "1", "--min-ratings", "1000000", "-m", sample_file)
    assert few.stdout.count("\n") == 1
    assert "with at least 1000000 ratings there are no others" in few.stderr


def test_a_closed_pipe_is_quiet(sample_file: Path) -> None:
    command = f"{sys.executable} -m pmfcli predict - -m {sample_file} | head -n 1; exit ${{PIPESTATUS[0]}}"
    pairs = "4\t1\n" * 60_000
    done = subprocess.run(["bash", "-c", command], input=pairs, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("user\t")
    assert done.stdout.count("\n") == 1
    assert done.stderr == SIMULATED
    assert done.returncode == 141  # as of any program that SIGPIPE ends
    for other in ("--help", "--version", f"info --json -m {sample_file}", f"forget --user 4 -m {sample_file} -o -"):
        line = f"exec 3> >(exec true); sleep 0.1; {sys.executable} -m pmfcli {other} >&3"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, "pmf: " in done.stderr) == (141, False), done.stderr


def test_a_full_pipe_target_is_an_error(sample_file: Path) -> None:
    command = f"{sys.executable} -m pmfcli predict --user 4 -m {sample_file} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("pmf: standard output: No space left on device\n")


def workers_of(process: "subprocess.Popen[str]") -> list[str]:
    """The processes that work for one that leads a group, as soon as there are any."""
    workers: list[str] = []
    while not workers:
        time.sleep(0.2)
        assert process.poll() is None
        found = subprocess.run(["pgrep", "-f", "-g", str(process.pid), "spawn_main"], capture_output=True, text=True)
        workers = found.stdout.split()
    return workers


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="looks for processes by pgrep")
def test_nobody_is_left_behind(tmp_path: Path) -> None:
    """However a run by several processes ends: by a signal to it alone, or to all of them."""
    command = [sys.executable, "-m", "pmfcli", "evaluate", "--data", "sample", "--folds", "4", "-j", "2", "--latent", "100"]
    for number, code, everybody in (
        (signal.SIGTERM, 143, False),
        (signal.SIGHUP, 129, False),
        (signal.SIGKILL, -9, False),
        (signal.SIGINT, 130, False),
        (signal.SIGINT, 130, True),
    ):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert workers_of(process)
        os.killpg(process.pid, number) if everybody else process.send_signal(number)
        _, said = process.communicate(timeout=60)  # which ends when nobody has stderr open
        assert process.returncode == code, said
        assert "Traceback" not in said


def test_an_interrupt_while_processes_begin_is_not_lost() -> None:
    said = []
    with pytest.raises(KeyboardInterrupt), _deaf():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        said.append("it goes on")
    assert said


AS_PROCESSES_BEGIN = """
import os, signal, sys
from multiprocessing import util
from pmfcli.cli import main

begin, number = util.spawnv_passfds, getattr(signal, sys.argv.pop(1))

def begin_and_be_told(path, arguments, descriptors):
    process = begin(path, arguments, descriptors)
    if b"spawn_main" in b" ".join(map(os.fsencode, arguments)):
        os.kill(os.getpid(), number)
        util.spawnv_passfds = begin
    return process

util.spawnv_passfds = begin_and_be_told
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_process_that_begins_as_the_others_are_told_to_end(name: str, code: int) -> None:
    command = [sys.executable, "-c", AS_PROCESSES_BEGIN, name, "evaluate", "--data", "sample", "--folds", "4", "-j", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="looks for processes by pgrep")
def test_a_fold_that_is_killed_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pmfcli", "evaluate", "--data", "sample", "--folds", "4", "-j", "2", "--latent", "100"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    os.kill(int(workers_of(process)[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (
        1,
        "pmf: one of 2 processes was killed, perhaps for lack of memory; try fewer by -j",
    )


def test_a_process_that_is_killed_while_another_begins_is_said() -> None:
    """The pool's own thread ends those that it knows of, waits for all, and learns of the new one in between."""
    slow = """
import os, time
from multiprocessing.context import SpawnProcess
from pmfcli.processes import side_by_side

start = SpawnProcess.start

def begin_slowly(process):
    start(process)
    time.sleep(1)

if __name__ == "__main__":
    SpawnProcess.start = begin_slowly
    list(side_by_side(os.system, [("kill -9 $PPID",), ("true",)], 2))
"""
    done = subprocess.run([sys.executable, "-c", slow], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("pmfcli.errors.ProcessError: one of 2 processes was killed")


def test_sigterm_that_python_drops_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a callback of a weak reference; there is one in every import."""
    monkeypatch.setattr(cli, "_UNHEARD", 0.1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Thing:
        pass

    thing = Thing()
    watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        signal.signal(signal.SIGTERM, cli._terminate)
        del thing
        assert watch() is None
        assert len(dropped) == 1
        with pytest.raises(cli._Terminated):
            time.sleep(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_completion_is_no_closed_pipe(pmf: Run) -> None:
    done = pmf("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_where_stderr_is_full_the_work_is_done_all_the_same(sample_file: Path, tmp_path: Path) -> None:
    for command, code in (("train --data sample --epochs 3 -o x.pt", 0), ("info -m none.pt", 4)):
        line = f"{sys.executable} -m pmfcli {command} 2>/dev/full"
        assert subprocess.run(["bash", "-c", line], cwd=tmp_path, check=False, timeout=60).returncode == code
    assert (tmp_path / "x.pt").exists()


def test_closed_streams(sample_file: Path) -> None:
    for command, code in (("info -m {} >&-", 1), ("predict - -m {} <&-", 0), ("train --data - <&-", 3), ("info -m x 2>&-", 4)):
        line = f"{sys.executable} -m pmfcli {command.format(sample_file)}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, "unexpected" in done.stderr) == (code, False), done.stderr


def test_colour_only_on_a_terminal_that_wants_it(answer: Run, sample_file: Path, tmp_path: Path) -> None:
    command = f"pmf similar --movie 1 -m {sample_file}"
    assert "\x1b[" in in_a_terminal(command, tmp_path, NO_COLOR=None)[1]
    assert "\x1b" not in in_a_terminal(command, tmp_path, NO_COLOR=None, TERM="dumb")[1]
    assert "\x1b" not in answer("similar", "--movie", "1", "-m", sample_file, "--format", "table").stdout


def test_odd_environments(answer: Run, pmf: Run, sample_file: Path, tmp_path: Path) -> None:
    table = ("similar", "--movie", "1", "-m", sample_file, "--format", "table")
    assert answer(*table, COLUMNS="abc").returncode == 0
    done = pmf(
        "predict", "--user", "4", "--movie", "293", "-m", sample_file, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="latin-1"
    )
    assert "Léon: The Professional" in done.stdout
    (tmp_path / "test.csv").write_text("user,movie,rating\n4,1,5\n")
    assert answer("evaluate", "-m", sample_file, "--test", "test.csv", PMF_DATA="sample", PMF_SEED="3").returncode == 0


def test_a_folder_that_is_gone_is_said(sample_file: Path, tmp_path: Path) -> None:
    here = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {sys.executable} -m pmfcli"
    for command in ("train --data sample", f"info -m {sample_file}"):
        done = subprocess.run(["sh", "-c", f"{here} {command}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (
            2,
            "pmf: the current folder no longer exists; change to one that does\n",
        )


def test_titles_in_any_script(answer: Run, tmp_path: Path) -> None:
    rows = [
        ("a", "1", 1, "Зеркало (1979)"),
        ("a", "2", 2, "Сталкер (1979)"),
        ("b", "1", 3, "Зеркало (1979)"),
        ("b", "3", 4, "Amélie"),
    ]
    (tmp_path / "r.tsv").write_text("user\tmovie\trating\ttitle\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    assert answer("train", "--data", "r.tsv", "--holdout", "0", "--epochs", "3").returncode == 0
    for title, movie in (("Зеркало (1979)", "1"), ("зеркало", "1"), ("сталкер", "2"), ("AMELIE", "3")):
        done = answer("predict", "--user", "a", "--movie", title, "--json")
        assert [row["movie"] for row in json.loads(done.stdout)["rows"]] == [movie]
    assert answer("predict", "--user", "a", "--movie", "Толстой 1979").returncode == 5


def test_pairs_as_csv_keep_their_commas(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text("user\tmovie\trating\nu\ta,b\t1\nu\ta\t2\nv\ta\t3\n")
    assert answer("train", "--data", "r.tsv", "--holdout", "0", "--epochs", "3").returncode == 0
    for pairs in ("u\ta,b\n", 'u,"a,b"\n', 'user,movie\n"u","a,b"\n'):
        done = answer("predict", "-", "--json", stdin=pairs)
        assert [(row["movie"], row["source"]) for row in json.loads(done.stdout)["rows"]] == [("a,b", "model")]
    written = answer("predict", "--user", "u", "--format", "csv").stdout
    assert answer("predict", "-", "--format", "csv", stdin=written).stdout == written


@pytest.mark.parametrize("command", ["predict {}", "recommend --ratings {}"])
def test_what_has_no_lines_and_no_end_is_refused(answer: Run, sample_file: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "long").write_text("4\t1\n" + "0" * 10_000_000)
    for file in ("long", "/dev/zero"):
        done = answer(*command.format(file).split(), "-m", sample_file)
        assert (done.returncode, "not lines of text" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("command", ["predict {}", "recommend --ratings {}"])
def test_bytes_that_are_no_text_are_named_by_their_line(answer: Run, sample_file: Path, tmp_path: Path, command: str) -> None:
    lines = "user,movie,rating\n4,1,3\n4,50,3\n"
    for content, line, coded in (
        (lines.encode() + b"4,caf\xe9,3\n", 4, "latin1"),
        (lines.encode("utf-16"), 1, "utf-16"),
    ):
        (tmp_path / "pairs.csv").write_bytes(content)
        said = answer(*command.format("pairs.csv").split(), "-m", sample_file)
        assert said.returncode == 3
        assert f"pairs.csv:{line}: not UTF-8 text; convert it, for instance with iconv -f {coded} -t utf8" in said.stderr


def test_a_line_of_a_pipe_that_is_no_text_is_named(sample_file: Path) -> None:
    command = [sys.executable, "-m", "pmfcli", "predict", "-", "-m", sample_file]
    done = subprocess.run(command, input=b"4\t1\n4\t\xe9\n", capture_output=True)
    said = b"pmf: standard input:2: not UTF-8 text; convert it, for instance with iconv -f latin1 -t utf8"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (3, said)


def test_blanks_around_an_id_are_none_of_it(answer: Run, sample_file: Path) -> None:
    asked = ("predict", "-m", sample_file, "--format", "csv")
    assert answer(*asked, "--user", "4\r", "--movie", " 1 ").stdout == answer(*asked, "--user", "4", "--movie", "1").stdout


def test_control_characters_in_an_id_are_blanks_wherever_it_is_given(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('user,movie,rating\n"a\tb",x\u200ey,1\nc,x\u200ey,2\nc,\u200ez,3\n')
    (tmp_path / "visitor.csv").write_text("movie,rating\nx\u200ey,1\n")
    assert answer("train", "--data", "r.csv").returncode == 0
    for asked in (("r.csv",), ("--user", "a\tb", "--movie", "x\u200ey"), ("--ratings", "visitor.csv")):
        found = answer("predict", *asked, "--json")
        assert {row["source"] for row in json.loads(found.stdout)["rows"]} <= {"model", "fold-in"}, found.stderr


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_other_separators_are_letters_of_ids(answer: Run, tmp_path: Path, separator: str) -> None:
    """In a file as in training; and what was printed is read again."""
    ids = [f"a{mark}b" for mark in ("::", ",", ";", "|") if mark != separator]
    rows = [("user", "movie", "rating"), *((user, movie, str(1 + n % 5)) for n, user in enumerate(ids) for movie in ids)]
    (tmp_path / "r.csv").write_text("".join(separator.join(row) + "\n" for row in rows))
    assert answer("train", "--data", "r.csv", "--holdout", "0", "--epochs", "3").returncode == 0
    for printed in (answer("predict", "r.csv", "--format", "csv").stdout, answer("predict", "--user", ids[0]).stdout):
        found = answer("predict", "-", "--json", stdin=printed)
        assert {(row["user"], row["source"]) for row in json.loads(found.stdout)["rows"]} <= {(user, "model") for user in ids}
    visitor = "".join(f"{movie}{separator}3\n" for movie in ("movie", *ids)).replace("3", "rating", 1)
    found = answer("recommend", "--ratings", "-", "--include-seen", "--json", stdin=visitor)
    assert len(json.loads(found.stdout)["rows"]) == len(ids), found.stderr
    done = answer("predict", "-", stdin=f"user{separator}movie\n{ids[0]}\n")
    assert (done.returncode, "standard input:2: " in done.stderr) == (3, True)


@pytest.mark.parametrize("old", [None, OLD])
def test_a_killed_train_leaves_no_model_or_the_old_one(tmp_path: Path, old: bytes | None) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    if old is not None:
        (tmp_path / "pmf.pt").write_bytes(old)
    arguments = ["train", "--data", "good.csv", "--epochs", "100000000", "--holdout", "0", "--no-early-stop", "--log", "log"]
    process = subprocess.Popen([sys.executable, "-m", "pmfcli", *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    left = {name: content for name, content in tree(tmp_path).items() if name not in ("good.csv", "log")}
    assert left == ({} if old is None else {"pmf.pt": old})


def test_control_c_is_130(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    arguments = ["train", "--data", "good.csv", "--epochs", "100000000", "--holdout", "0", "--no-early-stop", "--log", "log"]
    process = subprocess.Popen([sys.executable, "-m", "pmfcli", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "pmf: interrupted\n")
    assert not (tmp_path / "pmf.pt").exists()


def test_control_c_before_there_is_a_command_line_is_130() -> None:
    """As if it came while typer is imported."""
    code = (
        "import sys, builtins; real = builtins.__import__\n"
        "def fake(name, *more, **named):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *more, **named)\n"
        "builtins.__import__ = fake\n"
        "from pmfcli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pmf: interrupted\n")


def test_a_table_at_a_fixed_width(answer: Run, tmp_path: Path) -> None:
    """The golden text of a table: a hand-made model, so that no training stands between it and the text."""
    model = run(
        train(ratings_of([0, 0, 1, 1], [0, 1, 1, 2], [1, 5, 2, 4]), Settings(latent=2, epochs=1, holdout=0.0, sigma_b=0.5))
    )
    U, V = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    factors = model.posterior.factors._replace(U=U, V=V, b=torch.zeros(2), c=torch.zeros(3), offset=0.0)
    posterior = model.posterior._replace(factors=factors, noise=torch.tensor(0.1))
    made = type(model)(
        **{**vars(model), "posterior": posterior, "titles": ("First", None, "A [red]third[/] with a long title (1999)")}
    )
    (tmp_path / "pmf.pt").write_bytes(dumps(made))
    for width, name in ((90, "predict.txt"), (120, "predict-wide.txt")):
        asked = ("predict", "--user", "u0", "--movie", "0", "--movie", "20", "--format", "table")
        golden = (Path(__file__).parent / "golden" / name).read_text()
        assert [line.rstrip() for line in answer(*asked, COLUMNS=str(width)).stdout.splitlines()] == golden.splitlines()


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_no_number_is_cut_off_by_a_narrow_terminal(answer: Run, sample_file: Path, columns: str) -> None:
    asked = ("predict", "-m", sample_file, "--user", "4", "--movie", "1", "--stars", "--format")
    (row,) = json.loads(answer(*asked, "json").stdout)["rows"]
    printed = answer(*asked, "table", COLUMNS=columns).stdout
    assert max(map(len, printed.splitlines())) <= int(columns)
    words = printed.split()
    for name, value in row.items():
        assert value is None or name.split("_")[-1] in words, name
        assert not isinstance(value, float) or f"{value:.2f}" in words, name


def test_runs_that_are_too_short_say_so(answer: Run) -> None:
    few = "user,movie,rating\nann,dune,9\nann,heat,3\nbob,dune,8\nbob,heat,4\nbob,up,6\n"
    assert (
        "too few sweeps to tell whether"
        in answer("train", "--data", "-", "--method", "bayes", "--epochs", "1", stdin=few).stderr
    )
    assert json.loads(answer("similar", "--movie", "up", "--min-ratings", "0", "--json").stdout)["rows"][0]["sd"] is None
    assert (
        "EM had not converged after 3 epochs"
        in answer("train", "--data", "-", "--priors", "em", "--epochs", "3", stdin=few).stderr
    )
    assert "converged" not in answer("train", "--data", "-", "--epochs", "3", stdin=few).stderr


def test_what_strangers_write_does_not_turn_a_line_round() -> None:
    assert clean("Evil\u202egpj.exe\x1b[2J\n") == "Evil gpj.exe [2J"
    assert [file_size(count) for count in (12_345, 99_999, 5_000_000)] == ["12 kB", "100 kB", "5.0 MB"]


def test_no_line_and_no_json_holds_what_a_terminal_obeys(
    answer: Run, sample_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    say("one\x1b]0;pwned\x07\ntwo\x9b")
    assert capfd.readouterr().err == "one ]0;pwned\ntwo\n"
    name = "1\x9b2\u202e\U0001f600"
    model = load(sample_file)
    (tmp_path / "m.pt").write_bytes(dumps(replace(model, data=model.data | {"name": name})))
    for more in (["--json"], ["--format", "jsonl"]):
        shown = answer("info", "-m", "m.pt", *more).stdout
        assert not {"\x9b", "\u202e"} & set(shown)
        rows = [json.loads(line) for line in shown.splitlines()]
        assert name in [row.get("value", row.get("data", {}).get("name")) for row in rows]
