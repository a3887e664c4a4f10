"""Several processes find what one does. Threads stand in for them here; one run is by torchrun itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Run
from made import far_apart, ratings_of
from saved import beginnings
from torch import Tensor

from pmfcli import checkpoint
from pmfcli.artifact import Model, load
from pmfcli.config import Settings
from pmfcli.core.team import Team
from pmfcli.data.ratings import Ratings
from pmfcli.data.readers import read_ratings
from pmfcli.errors import DataError, ModelError, UsageError
from pmfcli.sharing import agreed, exchange, held_out_mask, share_out
from pmfcli.steps import run
from pmfcli.training import train


class Thread(Team):
    """One of several threads, which leave what they say on a board."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, len(board), board, barrier

    def _all(self, own: Tensor) -> list[Tensor]:
        self._board[self.rank] = own.clone()
        self._barrier.wait(60)
        found = list(self._board)
        self._barrier.wait(60)
        return found

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._all(values)).sum(0).to(values.dtype)

    def collect(self, rows: Tensor) -> Tensor:
        found = self._all(rows)
        return rows if self.rank else torch.cat(found)

    def exchange(self, rows: Tensor, sizes: list[int]) -> Tensor:
        self._board[self.rank] = rows.split(sizes)
        self._barrier.wait(60)
        found = torch.cat([given[self.rank] for given in self._board])
        self._barrier.wait(60)
        return found


def together(size: int, work: Callable[[Team], Any]) -> list[Any]:
    """What each of so many gives."""
    board, barrier = [None] * size, threading.Barrier(size)

    def one(rank: int) -> Any:
        try:
            return work(Thread(rank, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        ended = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for each in ended if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # of one that did not only wait for another
    return [each.result() for each in ended]


def trained(ratings: Ratings, settings: Settings, size: int) -> Model:
    def work(team: Team) -> Model:
        own, part = share_out(ratings, team)
        return run(train(own, settings, part=part))

    return together(size, work)[0]


KINDS = {
    "adam": {"epochs": 30},
    "learned": {"epochs": 30, "noise": "learned", "biases": False},
    "blocks": {"epochs": 40, "block_ratings": 30_000, "early_stop": False},
    "als": {"solver": "als", "epochs": 6, "latent": 4, "link": "sigmoid"},
    "linear": {"solver": "als", "epochs": 6, "latent": 4, "hierarchical": "none"},
}


def test_all_processes_see_the_same_scale() -> None:
    """The ratings of one have few different ones, those of all have too many to be steps."""
    user, movie = torch.nonzero(torch.ones(160, 20)).T
    stars = torch.where(user < 64, (3 * user + movie) % 31 + 1, movie % 2 + 1)
    ratings = ratings_of(user.tolist(), movie.tolist(), stars.tolist())
    for settings in (Settings(epochs=3, latent=2), Settings(method="bayes", epochs=3, latent=2)):
        assert trained(ratings, settings, 2).posterior.grid is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_does_not_depend_on_how_many_there_are(sample: Ratings, kind: str) -> None:
    settings = Settings(**KINDS[kind])
    one, three = trained(sample, settings, 1), trained(sample, settings, 3)
    assert three.users == one.users == sample.users
    assert three.data == one.data
    assert all(torch.equal(a, b) for a, b in zip(three.seen, one.seen, strict=True))
    near = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(three.posterior.factors.U, one.posterior.factors.U, **near)
    torch.testing.assert_close(three.posterior.factors.V, one.posterior.factors.V, **near)
    for ours, theirs in zip(three.posterior.usage.groups, one.posterior.usage.groups, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for name in ("train_rmse", "holdout_rmse"):
        assert three.metrics[name] == pytest.approx(one.metrics[name], abs=near["atol"])
    assert three.metrics["holdout_baselines"]["bias"]["rmse"] == pytest.approx(one.metrics["holdout_baselines"]["bias"]["rmse"])
    torch.testing.assert_close(three.posterior.noise_u, one.posterior.noise_u, rtol=0.01, atol=0)
    assert float(three.posterior.residual) == pytest.approx(float(one.posterior.residual), rel=1e-3)
    for name in ("noise", "doubt"):
        assert float(getattr(three.posterior, name)) == pytest.approx(float(getattr(one.posterior, name)), rel=0.01)


def test_who_is_unknown_is_the_average_of_the_users_of_all() -> None:
    """Users with a rating or two, the later ones higher ones: of many held-out ratings nothing is left of their user."""
    draw = np.random.default_rng(0)
    user = np.sort(np.concatenate([np.arange(600), np.arange(0, 600, 2)]))
    movie = draw.integers(0, 20, 900) + 20 * np.append(0, user[1:] == user[:-1])
    ratings = ratings_of(user.tolist(), movie.tolist(), np.clip(user // 150 + draw.integers(1, 3, 900), 1, 5).tolist())
    settings = Settings(epochs=10, latent=2, sigma_b=1, refit=False)
    one, three = (trained(ratings, settings, size).metrics["holdout_rmse"] for size in (1, 3))
    assert three == pytest.approx(one, rel=1e-5)


def test_all_processes_find_the_same_scales() -> None:
    settings = Settings(epochs=2, latent=2)
    one, three = (trained(far_apart(), settings, size).settings for size in (1, 3))
    for name in ("sigma_b", "sigma_x"):
        assert three[name] == pytest.approx(one[name], rel=1e-6)
    assert (one["sigma_b"] > 0.6, one["sigma_x"] < 0.4) == (True, True)


@pytest.mark.parametrize("likelihood", ["ordinal", "gaussian"])
def test_draws_do_not_depend_on_how_many_there_are(sample: Ratings, likelihood: str) -> None:
    """A few sweeps: rounding grows, and now and then makes another number of a rejection."""
    settings = Settings(method="bayes", likelihood=likelihood, latent=3, epochs=4, chains=2, keep=8)
    one, three = trained(sample, settings, 1), trained(sample, settings, 3)
    a, b = one.posterior, three.posterior
    x, y = ((p.U.float() @ p.V.float().mT) for p in (a, b))
    assert float((x - y).abs().mean()) < 0.01 * float(x.std())
    torch.testing.assert_close(a.alpha, b.alpha, rtol=1e-3, atol=0)
    torch.testing.assert_close(a.mean_u, b.mean_u, rtol=0, atol=2e-3)
    assert three.metrics["train_rmse"] == pytest.approx(one.metrics["train_rmse"], abs=1e-3)
    assert three.data == one.data


def test_a_last_one_with_hardly_any_users() -> None:
    """Each has its own number of columns of X: they must go on for as many iterations."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(66), 25)
    movie = np.concatenate([np.sort(draw.choice(40, 25, replace=False)) for _ in range(66)])
    ratings = ratings_of(user.tolist(), movie.tolist(), draw.integers(1, 6, len(user)).tolist())
    settings = Settings(method="bayes", latent=3, epochs=4, holdout=0)
    one, two = trained(ratings, settings, 1), trained(ratings, settings, 2)
    assert two.metrics["train_rmse"] == pytest.approx(one.metrics["train_rmse"], abs=1e-3)


def test_several_find_what_a_plain_run_does(sample: Ratings) -> None:
    """Where none are held out, which is done in another way."""
    settings = Settings(epochs=20, holdout=0)
    plain, two = run(train(sample, settings)), trained(sample, settings, 2)
    torch.testing.assert_close(two.posterior.factors.V, plain.posterior.factors.V, rtol=0, atol=1e-3)
    assert two.data == plain.data


def test_ratings_are_shared_out_evenly(sample: Ratings) -> None:
    parts = together(4, lambda team: share_out(sample, team))
    assert sum(own.n for own, _ in parts) == sample.n
    assert max(own.n for own, _ in parts) < 1.1 * sample.n / 4
    assert np.concatenate([own.user + part.share.first for own, part in parts]).tolist() == sample.user.tolist()
    assert [part.first_rating for _, part in parts] == np.cumsum([0] + [own.n for own, _ in parts])[:-1].tolist()
    with pytest.raises(DataError, match="too few for 2000"):
        share_out(sample, Thread(0, [None] * 2000, threading.Barrier(1)))


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_parts_of_parquet_become_the_same(tmp_path: Path, sample: Ratings, layout: str) -> None:
    """Each reads a part of the rows, in no order, some pairs twice: what it has then is what it has of the whole file."""
    rng = np.random.default_rng(0)
    row = np.concatenate([rng.permutation(sample.n), rng.choice(sample.n, 500)])
    columns = {"user": np.array(sample.users.ids)[sample.user[row]], "movie": np.array(sample.movies.ids)[sample.movie[row]]}
    columns |= {"rating": np.where(np.arange(len(row)) < sample.n, sample.stars[row], 3.0), "time": rng.permutation(len(row))}
    columns |= {"title": np.array(sample.titles)[sample.movie[row]]}
    table = pa.table(columns)
    path = tmp_path / "r.parquet"
    if layout == "file":
        pq.write_table(table, path, row_group_size=30_000)
    else:
        path.mkdir()
        for number in range(3):
            pq.write_table(table.slice(number * 30_000, 30_000), path / f"{number}.parquet")
    whole = read_ratings(path).ratings

    def work(team: Team) -> tuple[Any, Any]:
        return exchange(read_ratings(path, part=(team.rank, team.size)).ratings, team), share_out(whole, team)

    for (own, part), (expected, its) in together(3, work):
        assert (part.share.first, part.share.of, part.first_rating) == (its.share.first, its.share.of, its.first_rating)
        assert (own.users, own.movies, own.titles, own.scale) == (
            expected.users,
            expected.movies,
            expected.titles,
            expected.scale,
        )
        for name in ("user", "movie", "stars", "time"):
            assert np.array_equal(getattr(own, name), getattr(expected, name))


def test_what_is_held_out_does_not_depend_on_the_parts() -> None:
    whole = held_out_mask(1000, 0, 0.1, 7)
    assert 60 < whole.sum() < 140
    assert np.concatenate([held_out_mask(300, 0, 0.1, 7), held_out_mask(700, 300, 0.1, 7)]).tolist() == whole.tolist()


def test_what_several_cannot_do_is_refused(sample: Ratings) -> None:
    for settings in (Settings(method="bayes", time="both"), Settings(priors="em", noise="em")):
        with pytest.raises(UsageError, match="works in one process only"):
            trained(sample, settings, 2)


@pytest.mark.parametrize("flag", ["--data", "--config"])
def test_a_pipe_is_not_for_several(answer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Each would get a part of it: nothing is read, so that the others do not wait for it either."""
    monkeypatch.setattr("pmfcli.cli.train._team", Team)
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", "pipe"):
        done = answer("train", flag, path, stdin="latnet = 3\n")
        said = f"pmf: {flag} {path}: several processes cannot read one pipe; write it to a file and give that\n"
        assert (done.returncode, done.stderr) == (2, said)


def test_a_checkpoint_of_parts_is_that_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def work(team: Team) -> list[Any]:
        said = [checkpoint.load_part(path, f"run {team.rank}", team)]
        for step in range(3):
            checkpoint.save_part(path, f"run {team.rank}", {"before": step, "now": team.rank}, f"fit-{step}", team)
            said.append(checkpoint.load_part(path, f"run {team.rank}", team))
        return said

    for rank, (first, *later) in enumerate(together(2, work)):
        assert first is None
        assert later == [{"before": step, "now": rank} for step in range(3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "c.fit-2.0", "c.fit-2.1"]
    (tmp_path / "c.fit-2.1").unlink()
    with pytest.raises(ModelError, match=r"part c\.fit-2\.1 is missing"):
        together(2, lambda team: checkpoint.load_part(path, f"run {team.rank}", team))
    with pytest.raises(ModelError, match="number of processes"):
        together(3, lambda team: checkpoint.load_part(path, "run", team))
    checkpoint.save(path, "parts of 2 processes", "../fit-2")
    with pytest.raises(ModelError, match=r"names no parts\); remove it"):
        together(2, lambda team: checkpoint.load_part(path, f"run {team.rank}", team))
    together(2, lambda team: checkpoint.remove_part(path, team))
    assert not list(tmp_path.iterdir())


def test_parts_in_folders_that_are_not_shared(tmp_path: Path) -> None:
    """The file of the first process counts: with it, all go on, or none does."""

    def path(team: Team) -> Path:
        return tmp_path / str(team.rank) / "c"

    def saved(team: Team) -> None:
        path(team).parent.mkdir()
        for step in range(3):
            checkpoint.save_part(path(team), "run", {"before": step, "now": team.rank}, f"fit-{step}", team)

    def loaded(team: Team) -> Any:
        return checkpoint.load_part(path(team), "run", team)

    together(2, saved)
    assert together(2, loaded) == [{"before": 2, "now": rank} for rank in range(2)]
    files = [file.relative_to(tmp_path).as_posix() for file in sorted(tmp_path.glob("*/*"))]
    assert files == ["0/c", "0/c.fit-2.0", "1/c.fit-2.1"]
    (tmp_path / "1" / "c.fit-2.1").rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"part c\.fit-2\.1 is missing"):
        together(2, loaded)
    (tmp_path / "kept").rename(tmp_path / "1" / "c.fit-2.1")
    (tmp_path / "0" / "c").unlink()
    assert together(2, loaded) == [None, None]
    together(2, lambda team: checkpoint.remove_part(path(team), team))
    assert not [*tmp_path.glob("*/*")]


def test_parts_that_a_kill_left_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    others = {"c.fit-1.txt", "c.fit-x.0", "cc.fit-1.0", "d.fit-1.0"}
    left = {"c.fit-1.0", "c.fit-1.1", "c.fit-12.0", "c.refit-1.2"}
    for name in others | left:
        (tmp_path / name).touch()
    together(2, lambda team: checkpoint.save_part(path, "run", {"before": 0, "now": 0}, "fit-2", team))
    assert {file.name for file in tmp_path.iterdir()} == others | {"c", "c.fit-2.0", "c.fit-2.1"}
    (tmp_path / "c.fit-1.0").touch()
    together(2, lambda team: checkpoint.remove_part(path, team))
    assert {file.name for file in tmp_path.iterdir()} == others


def test_they_stop_together() -> None:
    assert together(2, lambda team: agreed(team, team.rank == 1, 15 * team.rank)) == [(False, 15)] * 2
    assert together(2, lambda team: agreed(team, team.rank == 0, 0)) == [(True, 0)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the processes")
def test_torchrun_goes_on_when_one_is_killed(tmp_path: Path, sample: Ratings) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "--", "pmfcli", "train", "--data", "sample", "--epochs", "60", "--holdout", "0", "-o", "two.pt"]
    command += ["--checkpoint", "c", "--checkpoint-every", "0", "--resume", "--log", "log"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "c").exists() and running.poll() is None:
        time.sleep(0.01)
    last = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[-1]
    os.kill(int(last), signal.SIGKILL)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert "another process of this run is gone" in said or "exitcode: -9" in said  # whichever was seen first
    assert said.count("wrote two.pt") == 1
    plain = run(train(sample, Settings(epochs=60, holdout=0)))
    two = load(tmp_path / "two.pt")
    torch.testing.assert_close(two.posterior.factors.V, plain.posterior.factors.V, rtol=0, atol=1e-3)
    assert beginnings(tmp_path / "log") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"two.pt", "log"}


@pytest.mark.parametrize("count", [2, 3])
def test_sums_over_real_processes(tmp_path: Path, count: int) -> None:
    (tmp_path / "sums.py").write_text("""if True:
        import torch
        from pmfcli.sharing import join, leave
        team = join()
        for kind in (torch.float32, torch.float64, torch.int64):
            found = team.sum(torch.arange(6).reshape(2, 3).T.to(kind) * (team.rank + 1))
            expected = torch.arange(6).reshape(2, 3).T * sum(range(team.size + 1))
            assert found.dtype == kind and torch.equal(found, expected.to(kind)), found
        leave()
    """)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "sums.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
