"""Fixtures: small ratings, one trained sample model, the command line as a process, MovieLens where it is at hand."""

import io
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is imported
# what is exact to the last bit is so on the CPU: a GPU has tests of its own, which look for it here
os.environ.setdefault("TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: threads of one would wait for those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from pmfcli import cli
from pmfcli.artifact import Model, dumps
from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.data.sample import read_sample
from pmfcli.steps import run
from pmfcli.training import train

torch.set_num_threads(1)  # small problems: threads would wait for each other

ROOT = Path(__file__).parents[1]
COMMANDS = [command.name for command in cli.app.registered_commands]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def in_a_terminal(command: str, folder: Path, **environment: str | None) -> tuple[int, str]:
    """Exit code and output of a shell command whose stdout is a terminal of 100 columns, by default without colour."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PMF_")}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    master, slave = pty.openpty()
    chosen = clean | {"PATH": path, "NO_COLOR": "1", "COLUMNS": "100", "TERM": "xterm"} | environment
    chosen = {name: value for name, value in chosen.items() if value is not None}
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=chosen, stdout=slave, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the terminal was closed: Linux says so by EIO
            break
        if not part:
            break
        output += part
    os.close(master)
    assert process.stderr is not None
    errors = process.stderr.read()
    return process.wait(), (output + errors).decode().replace("\r\n", "\n")


@pytest.fixture(scope="session")
def sample() -> Ratings:
    return read_sample()


@pytest.fixture(scope="session")
def sample_model(sample: Ratings) -> Model:
    return run(train(sample, Settings(epochs=100, holdout=0.0)))


@pytest.fixture(scope="session")
def sample_file(sample_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "sample.pt"
    path.write_bytes(dumps(sample_model))
    return path


@pytest.fixture
def pmf(tmp_path: Path) -> Run:
    """Run ``pmf`` as a process in an empty folder, with no settings of the outer environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PMF_")}

    def command(*arguments: str | Path, stdin: str | bytes = "", cwd: Path = tmp_path, **environment: str):
        return subprocess.run(
            [sys.executable, "-m", "pmfcli", *map(str, arguments)],
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            cwd=cwd,
            env=clean | environment,
            timeout=300,
        )

    def decoded(*arguments: str | Path, **more):
        done = command(*arguments, **more)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return decoded


@pytest.fixture
def answer(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same as ``pmf`` without a process of its own: for what is answered, not for how it behaves as a process."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PMF_")]:
        monkeypatch.delenv(name)

    def command(*arguments: str | Path, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        capfd.readouterr()
        with monkeypatch.context() as here:
            here.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            for name, value in environment.items():
                here.setenv(name, value)
            code = cli.run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return command


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ml-latest-small; skips where it is not at hand."""
    here = ROOT / "data" / "ml-latest-small"
    archive = os.environ.get("MOVIELENS_ARCHIVE")
    if here.is_dir():
        return here
    if not archive:
        pytest.skip("no MovieLens: run 'pmf download', or set MOVIELENS_ARCHIVE to ml-latest-small.zip")
    folder = tmp_path_factory.mktemp("movielens")
    with zipfile.ZipFile(archive) as box:
        box.extractall(folder)
    return folder / "ml-latest-small"
