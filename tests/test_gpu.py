"""What a GPU finds is what the CPU does. Each command is a process of its own, as the other tests see no GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch is for the CPU alone")

KINDS = {
    "adam": ["--epochs", "40", "--holdout", "0"],
    "stopping": ["--epochs", "60"],
    "als": ["--solver", "als", "--hierarchical", "none", "--epochs", "5", "--holdout", "0"],
    "em": ["--solver", "als", "--priors", "em", "--epochs", "5"],
    "bayes": ["--method", "bayes", "--epochs", "30"],
    "gaussian": ["--method", "bayes", "--likelihood", "gaussian", "--noise", "both", "--chains", "2", "--epochs", "30"],
    "side": ["--method", "bayes", "--side", "genres,year", "--time", "both", "--epochs", "30"],
}


@pytest.fixture(scope="session")
def gpu() -> dict[str, str]:
    """The environment in which there is one; skips where there is none."""
    seen = {"CUDA_VISIBLE_DEVICES": os.environ["TEST_GPUS"]}
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    if subprocess.run(asked, env=os.environ | seen, capture_output=True, text=True, check=True).stdout != "True\n":
        pytest.skip("no GPU")
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_the_cpu_does(kind: str, pmf: Run, gpu: dict[str, str], movielens: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        file = f"{device}.pt"
        done = pmf("train", "--data", movielens, *KINDS[kind], "--device", device, "-o", file, "--json", **gpu)
        assert done.returncode == 0, done.stderr
        answered = pmf("predict", "-m", file, "--user", "4", "--movie", "1", "--json")  # by no GPU
        assert answered.returncode == 0, answered.stderr
        found[device] = json.loads(done.stdout)
    drawn = "bayes" in KINDS[kind]
    np.testing.assert_allclose(found["cuda"]["train_rmse"], found["cpu"]["train_rmse"], rtol=0.03 if drawn else 1e-3)


@pytest.mark.parametrize("kind", ["adam", "bayes"])
def test_one_that_goes_on_ends_where_it_would_have(kind: str, pmf: Run, gpu: dict[str, str], movielens: Path, tmp_path: Path):
    train = ["train", "--data", movielens, *KINDS[kind], "--device", "cuda"]
    whole = pmf(*train, "-o", "whole.pt", "--json", **gpu)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "pmfcli", *map(str, train), "-o", "part.pt"]
    command += ["--checkpoint", "c", "--checkpoint-every", "0"]
    running = subprocess.Popen(command, cwd=tmp_path, env=os.environ | gpu, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "c").exists() and running.poll() is None:
        time.sleep(0.01)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143, said
    rest = pmf(*train, "-o", "part.pt", "--checkpoint", "c", "--resume", "--json", **gpu)
    assert rest.returncode == 0, rest.stderr
    near = pytest.approx(json.loads(whole.stdout)["train_rmse"], rel=0.03 if kind == "bayes" else 1e-3)
    assert json.loads(rest.stdout)["train_rmse"] == near


@pytest.mark.parametrize("kind", ["adam", "als", "bayes"])
def test_torchrun_on_gpus(kind: str, pmf: Run, gpu: dict[str, str], movielens: Path, tmp_path: Path) -> None:
    train = ["-m", "pmfcli", "train", "--data", str(movielens), *KINDS[kind], "--device", "cuda", "--json"]
    found = []
    for before in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]):
        command = [sys.executable, *before, *train]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | gpu, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["train_rmse"])
    assert found[1] == pytest.approx(found[0], rel=0.03 if kind == "bayes" else 1e-3)
