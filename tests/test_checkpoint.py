"""Training that was stopped goes on to the very model of a run that was not."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Run
from made import moody
from saved import Code, beginnings, saved

from pmfcli import checkpoint
from pmfcli.artifact import dumps
from pmfcli.cli.keeper import Keeper
from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.errors import ModelError, OutputError
from pmfcli.steps import Steps, run
from pmfcli.training import identity, train

KILLS = int(os.environ.get("KILLS", "3"))  # KILLS=20 takes two minutes
KINDS = {
    "adam": {"epochs": 40},
    "blocks": {"epochs": 25, "block_ratings": 3000, "noise": "learned"},
    "als": {"solver": "als", "epochs": 12, "latent": 4},
    "em": {"priors": "em", "noise": "em", "epochs": 12, "latent": 4},
    "no refit": {"epochs": 20, "refit": False, "hierarchical": "none"},
    "bayes": {"method": "bayes", "latent": 2, "epochs": 30, "chains": 2, "time": "both"},
    "gaussian": {"method": "bayes", "latent": 2, "epochs": 20, "likelihood": "gaussian", "holdout": 0.1, "noise": "learned"},
}


@pytest.fixture(scope="module")
def few(sample: Ratings) -> Ratings:
    return sample.select(sample.user < 200)


@pytest.mark.parametrize("kind", KINDS)
def test_from_any_step_to_the_same_bytes(few: Ratings, tmp_path: Path, kind: str) -> None:
    settings = Settings(**KINDS[kind])
    path, name = tmp_path / "c", identity(few, settings)
    training, steps = Steps(train(few, settings)), []
    for report in training:
        checkpoint.save(tmp_path / f"{len(steps)}", name, report.snapshot())
        steps.append(report)
    expected = dumps(training.result)
    phases = {report.phase for report in steps}
    assert phases == ({"fit"} if kind in ("no refit", "bayes") else {"fit", "refit"})
    last = max(number for number, report in enumerate(steps) if report.phase == "fit")
    chosen = {0, last, len(steps) - 1, *random.Random(1).sample(range(len(steps)), 4)}
    for number in sorted(chosen):
        resumed = train(few, settings, checkpoint.load(tmp_path / f"{number}", name))
        first = next(resumed, None) if number + 1 < len(steps) else None
        if first is not None:
            assert first[:5] == steps[number + 1][:5]
        assert dumps(run(resumed)) == expected
    assert not path.exists()


def test_a_search_that_ends_by_itself_ends_there_again() -> None:
    """Chains that agree, and a fit that stands still, are not carried on."""
    training, _, _ = moody()
    for settings in (Settings(method="bayes", latent=1), Settings(latent=1, epochs=400)):
        snapshots, fitting = [], Steps(train(training, settings))
        for report in fitting:
            if report.phase == "fit":
                snapshots = [report.snapshot()]
                last = report
        assert last.step + 1 < last.epochs
        assert dumps(run(train(training, settings, checkpoint_of(snapshots[0])))) == dumps(fitting.result)


def checkpoint_of(snapshot: object) -> object:
    return torch.load(io.BytesIO(saved(snapshot)), weights_only=True)


def test_what_is_no_checkpoint_of_this_run_is_refused(few: Ratings, tmp_path: Path) -> None:
    settings = Settings(epochs=3)
    name, path = identity(few, settings), tmp_path / "c"
    assert checkpoint.load(path, name) is None
    checkpoint.save(path, name, next(train(few, settings)).snapshot())
    content = path.read_bytes()
    for other in (identity(few, Settings(epochs=4)), identity(few.select(few.user > 0), settings)):
        with pytest.raises(ModelError, match="other settings, ratings or number of processes; remove it"):
            checkpoint.load(path, other)
    assert identity(few, Settings(epochs=3, threads=1)) == name
    for damaged in (content[:1000], b"", b"x" + content[1:], content[:5000] + b"y" + content[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="remove it to start over"):
            checkpoint.load(path, name)
    path.write_bytes(saved({"format": "pmf-checkpoint", "version": 1, "identity": name, "snapshot": Code()}))
    with pytest.raises(ModelError, match="none of it was run"):
        checkpoint.load(path, name)
    whole = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "identity": name}
    for snapshot in ({}, {"snapshot": None}, {"snapshot": [1]}, {"snapshot": {"now": 1}}):
        path.write_bytes(saved(whole | snapshot))
        with pytest.raises(ModelError, match="no snapshot of a run"):
            checkpoint.load(path, name)
    path.write_bytes(saved({"format": "pmf-model"}))
    with pytest.raises(ModelError, match="not a pmf checkpoint"):
        checkpoint.load(path, name)
    with pytest.raises(OutputError, match=r"No such file or directory$"):
        checkpoint.save(tmp_path / "no" / "c", name, {})
    with pytest.raises(OutputError, match="the previous one is kept"):
        checkpoint.save(tmp_path, name, {})


FOREIGN = {
    "empty": lambda snapshot: {"before": None, "now": {}},
    "text": lambda snapshot: "fit-3",
    "generator": lambda snapshot: (
        snapshot | {"now": snapshot["now"] | {"fit": snapshot["now"]["fit"] | {"generator": torch.ones(1)}}}
    ),
    "what came before": lambda snapshot: snapshot | {"before": {"epochs": 2}},
    "its metrics": lambda snapshot: snapshot | {"before": snapshot["before"] | {"metrics": None}},  # used at the end
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_checkpoint_of_this_run_with_other_contents_is_told(answer: Run, sample: Ratings, tmp_path: Path, kind: str) -> None:
    settings = Settings(epochs=4, latent=2)
    name = identity(sample, settings)
    snapshot = next(report.snapshot() for report in train(sample, settings) if report.phase == "refit")
    checkpoint.save(tmp_path / "c", name, FOREIGN[kind](snapshot))
    flags = ("--epochs", "4", "-k", "2", "--checkpoint", "c", "--resume")
    done = answer("train", "--data", "sample", *flags)
    said = done.stderr.splitlines()[-1]
    assert (done.returncode, said.startswith("pmf: --checkpoint c: damaged checkpoint (")) == (4, True), done.stderr
    assert said.endswith("; remove it to start over")
    checkpoint.save(tmp_path / "c", name, snapshot)
    assert answer("train", "--data", "sample", *flags).returncode == 0


def started(folder: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pmfcli", "train", "--data", "sample", "-j", "1", "-o", "m.pt"]
    command += ["--checkpoint", "c", "--checkpoint-every", "0", "--resume", "--log", "log", *more]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("kind", [["--epochs", "30"], ["--method", "bayes", "-k", "2", "--epochs", "15"]], ids=["map", "bayes"])
def test_killed_at_any_moment_it_goes_on_to_the_same_model(tmp_path: Path, kind: list[str]) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert started(whole, *kind).wait() == 0
    dice = random.Random(2)
    killed = 0
    while True:
        process = started(tmp_path, *kind)
        wait = time.monotonic() + (dice.uniform(0, 4) if killed else 0)
        while (time.monotonic() < wait or not (tmp_path / "c").exists()) and process.poll() is None:
            time.sleep(0.01)
        if killed < KILLS and process.poll() is None:
            process.kill()
            killed += 1
            process.communicate()
            continue
        assert process.wait() == 0, process.stderr.read()
        break
    assert (killed > 0, beginnings(tmp_path / "log")) == (True, 1)
    assert (tmp_path / "m.pt").read_bytes() == (whole / "m.pt").read_bytes()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_told_to_stop_it_leaves_a_checkpoint(tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "c"
    for _ in range(2):  # from the start, and from where that ended
        before = path.read_bytes() if path.exists() else None
        process = started(tmp_path, "--method", "bayes", "--epochs", "1000")
        while process.poll() is None and (not path.exists() or path.read_bytes() == before):
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode == code
        assert "stopping after this step; a second signal stops at once" in said
        assert "--resume continues from c" in said
        assert path.exists()
        assert not (tmp_path / "m.pt").exists()
    assert beginnings(tmp_path / "log") == 1


def test_checkpoints_on_the_command_line(answer: Run, tmp_path: Path) -> None:
    train = ["train", "--data", "sample", "--epochs", "4", "-k", "2"]
    assert answer(*train, "--resume").returncode == 2
    assert answer(*train, "--checkpoint", "no/c").returncode == 2
    (tmp_path / "c").write_text("x")
    done = answer(*train, "--checkpoint", "c")
    assert (done.returncode, "already exists; continue from it with --resume, or remove it" in done.stderr) == (2, True)
    done = answer(*train, "--checkpoint", "c", "--resume")
    assert (done.returncode, "not a checkpoint, or cut short" in done.stderr) == (4, True)
    (tmp_path / "c").unlink()
    assert answer(*train, "--checkpoint", "c", "--log", "log").returncode == 0
    assert not (tmp_path / "c").exists()
    assert "snapshot" not in json.loads((tmp_path / "log").read_text().splitlines()[0])


def test_what_a_kill_left_unfinished_is_removed(answer: Run, tmp_path: Path) -> None:
    killed = "import os, sys, torch; from pathlib import Path; from pmfcli import checkpoint; "
    killed += "torch.save = lambda *_: os._exit(9); checkpoint.save(Path(sys.argv[1]), '', None)"
    for name in ("c", "c.refit-12.1", "cc"):
        subprocess.run([sys.executable, "-c", killed, name], cwd=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    answer("train", "--data", "sample", "--epochs", "2", "-k", "2", "--checkpoint", "c", "--resume")
    assert sorted(file.name[:4] for file in tmp_path.iterdir()) == [".cc.", "pmf."]


def test_a_link_to_a_checkpoint_stays_a_link(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "c").symlink_to("far/c")
    answer("train", "--data", "sample", "--epochs", "2", "-k", "2", "--checkpoint", "c", "--checkpoint-every", "0.001")
    assert ((tmp_path / "c").is_symlink(), list((tmp_path / "far").iterdir())) == (True, [])


def test_where_no_checkpoint_can_be_written_training_goes_on(
    few: Ratings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = next(train(few, Settings(epochs=2, latent=2)))
    keeper = Keeper(tmp_path / "gone" / "c", 0, "x", None)
    keeper.look(report)
    assert "No such file or directory; training continues; next try" in capsys.readouterr().err
    (tmp_path / "gone").mkdir()
    keeper.look(report)
    assert checkpoint.load(tmp_path / "gone" / "c", "x") is not None
    with keeper:
        signal.raise_signal(signal.SIGTERM)
        (tmp_path / "gone" / "c").unlink()
        (tmp_path / "gone").rmdir()
        with pytest.raises(OutputError, match="No such file"):
            keeper.look(report)
