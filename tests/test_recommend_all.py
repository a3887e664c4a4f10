"""The best movies of all users are those of each of them alone, to any file; and what blocks must not change elsewhere."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import Run
from made import seeded

from pmfcli import tables
from pmfcli.answers import Asked, Choice, Detail, Recommended, predict, recommend, recommend_all
from pmfcli.artifact import Model, dumps
from pmfcli.blending import blend
from pmfcli.config import Settings
from pmfcli.core import neighbours
from pmfcli.core import recommend as core
from pmfcli.core import rows as core_rows
from pmfcli.core.approximation import Laplace
from pmfcli.core.kinds import ready
from pmfcli.core.neighbours import similar
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Factors, Link, Parameters
from pmfcli.core.predict import predict_pairs
from pmfcli.core.recommend import best
from pmfcli.core.rows import movies_of, users_of
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import OutputError
from pmfcli.steps import run
from pmfcli.training import train

DETAIL = Detail(0.9, stars=False)
KINDS = {
    "mode": {"epochs": 60, "holdout": 0.0},
    "em": {"priors": "em", "noise": "em", "latent": 4, "epochs": 10, "holdout": 0.0},
    "draws": {"method": "bayes", "latent": 4, "epochs": 20, "keep": 6},
}
USERS = 40


@pytest.fixture(scope="module")
def models(sample: Ratings) -> dict[str, Model]:
    small = sample.select(sample.user < 300)
    held = random_mask(small.n, 0.2, 1)
    found = {name: run(train(small.select(~held), Settings(**kind))) for name, kind in KINDS.items()}
    return {**found, "blend": blend(list(found.values()), list(found), small.select(held), True).model}


def what(row: dict) -> tuple:
    return tuple(row[name] for name in ("user", "rank", "movie", "title", "source"))


@pytest.mark.parametrize("by", ["mean", "lower"])
@pytest.mark.parametrize("name", [*KINDS, "blend"])
def test_they_are_those_of_each_user_alone(
    models: dict[str, Model], name: str, by: core.Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[name]
    monkeypatch.setattr(core, "_SCORES", 17 * len(model.movies))  # blocks of 17 users, and a shorter one
    alone = [row for user in range(USERS) for row in recommend(model, user, Choice(4, exclude=[2], by=by), DETAIL)]
    parts = list(recommend_all(model, range(USERS), Choice(4, exclude=[2], by=by), DETAIL))
    assert [part.users for part in parts] == [17, 17, 6]
    rows = [row for part in parts for row in part.rows()]
    assert [what(row) for row in rows] == [what(row) for row in alone]
    for column in ("prediction", "sd", "lo", "hi"):
        assert [row[column] for row in rows] == pytest.approx([row[column] for row in alone], abs=1e-4)
    pairs = [Asked(row["user"], row["movie"]) for row in rows]
    said = list(predict(model, pairs, DETAIL))
    assert [row["prediction"] for row in rows] == pytest.approx([row["prediction"] for row in said], abs=1e-5)
    assert [row["rating"] for row in said] == [None] * len(rows)


def made(link: Link, biases: bool) -> tuple[Laplace, Seen]:
    """A mode with movies that are exactly alike, and with the linear link predictions far beyond the scale."""
    g = seeded(5)
    U, V = 2 * torch.randn(9, 3, generator=g), torch.randn(40, 3, generator=g)
    V[5:30] = 0
    b, c = (torch.randn(9, generator=g), torch.randn(40, generator=g)) if biases else (None, None)
    if c is not None:
        c[5:30] = 0.25
    mask = torch.rand(9, 40, generator=g) < 0.3
    mask[2], mask[3, 6:] = False, True
    start = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    movie = torch.nonzero(mask)[:, 1].int()
    d = 3 + biases
    parameters = Parameters(U, V, None, None, b, c, torch.tensor(0.3))
    noise, residual, doubt, gamma = torch.tensor(0.2), torch.tensor(0.3), torch.tensor(1.7), 0.5 + torch.rand(9, generator=g)
    laplace = Laplace(
        Factors(U, V, b, c, 0.4, link), parameters, torch.eye(d), torch.eye(d), noise, gamma, residual, doubt, False
    )
    return laplace, Seen(start, movie, torch.ones(len(movie)))


@pytest.mark.parametrize("n", [1, 3, 12, 39, 40, 100])
@pytest.mark.parametrize(("link", "biases"), [("sigmoid", True), ("linear", True), ("linear", False)])
def test_the_best_are_a_stable_sort_of_the_dense_matrix(link: Link, biases: bool, n: int) -> None:
    p, seen = made(link, biases)
    x = p.factors.U.double() @ p.factors.V.double().T + 0.4
    if p.factors.b is not None and p.factors.c is not None:
        x = x + p.factors.b[:, None] + p.factors.c
    movies = torch.tensor([m for m in range(40) if m != 7])
    rated = torch.repeat_interleave(torch.arange(9), seen.start.diff()), seen.movie.long()
    found = best(p, seen, users_of(p, seen, torch.arange(9)), movies, rated, n, "mean", 0.9)
    for user in range(9):
        allowed = [m for m in movies.tolist() if m not in seen.of(user)[0].tolist()]
        expected = sorted(allowed, key=lambda m: (-np.float32(x[user, m]), m))[:n]
        assert found.movie[found.person == user].tolist() == expected
    assert bool((found.person.diff() >= 0).all())


def test_the_first_of_many_ties() -> None:
    scores = torch.randint(0, 4, (200, 50), generator=seeded(1)).float()
    scores[torch.rand(200, 50, generator=seeded(2)) < 0.5] = -torch.inf
    expected = torch.sort(scores, dim=1, descending=True, stable=True).indices
    for n in (1, 7, 30, 49, 50, 51):
        assert torch.equal(core._first(scores, n), expected[:, :n])


@pytest.mark.parametrize("ratings", [1, 7, 1 << 22])
def test_covariances_in_runs_of_rows_are_inverses_of_curvatures(ratings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a sum over its ratings, with a user and movies that have none; and those that are computed once for all."""
    p, seen = made("linear", True)
    monkeypatch.setattr(core_rows, "RATINGS", ratings)
    U, V = (torch.cat([A, torch.ones(len(A), 1)], 1) for A in (p.factors.U, p.factors.V))
    who, which = seen.users(), seen.movie.long()
    w = (0.25 / 0.2) ** 2
    users, movies = (
        torch.stack([torch.linalg.inv(torch.eye(4) + w * B[at == row].T @ B[at == row]) for row in range(len(A))])
        for A, B, at in ((U, V[which], who), (V, U[who], which))
    )
    torch.testing.assert_close(users_of(p, seen, torch.arange(9)).covariance[0], users)
    for posterior in (p, ready(p, seen)):
        torch.testing.assert_close(movies_of(posterior, seen, torch.arange(40)).covariance[0], 1.7 * movies)
        some = movies_of(posterior, seen, torch.tensor([-1, 3, 31])).covariance[0]
        torch.testing.assert_close(some, 1.7 * torch.stack([torch.eye(4), movies[3], movies[31]]))
    pairs = Pairs(torch.tensor([1, 2, 0]), torch.tensor([3, 30, 0]), torch.tensor([True, True, False]), torch.ones(3).bool())
    now, then = (predict_pairs(posterior, seen, pairs) for posterior in (p, ready(p, seen)))
    torch.testing.assert_close(now.sd(), then.sd())


def test_ratings_are_found_by_pair() -> None:
    _, seen = made("linear", True)
    known = {(u, m): at for at, (u, m) in enumerate(zip(seen.users().tolist(), seen.movie.tolist(), strict=True))}
    user, movie = (part.flatten() for part in torch.meshgrid(torch.arange(9), torch.arange(40), indexing="ij"))
    order = torch.randperm(360, generator=seeded(3))
    for some in (order, order[:1], order[:0]):
        expected = [known.get(pair, -1) for pair in zip(user[some].tolist(), movie[some].tolist(), strict=True)]
        assert seen.find(user[some], movie[some]).tolist() == expected


def test_many_pairs_are_answered_as_few_are(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk after chunk, with what all need of the movies computed on the way."""
    movies = models["blend"].movies.ids
    pairs = [Asked(user, movie) for user in ("1", "nobody", "7") for movie in (*movies, "nothing")]
    once = {name: list(predict(model, pairs, DETAIL)) for name, model in models.items()}
    made_ready = []
    monkeypatch.setattr("pmfcli.core.kinds.chunk_of", lambda _: 50)
    monkeypatch.setattr("pmfcli.answers.kinds.ready", lambda *of: made_ready.append(ready(*of)) or made_ready[-1])
    for name, model in models.items():
        for a, b in zip(once[name], predict(model, pairs, DETAIL), strict=True):
            assert b == {**a, **{key: pytest.approx(a[key], abs=1e-4) for key in a if type(a[key]) is float}}
    assert made_ready


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_neighbours_in_blocks_are_the_same(metric: neighbours.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, allowed = torch.randn(5, 60, 3, generator=seeded(4)).half(), torch.rand(63, generator=seeded(5)) < 0.9
    whole = torch.nn.functional.pad(vectors.float(), (0, 0, 0, 3))
    once = similar(whole, 4, allowed, 50, metric)
    monkeypatch.setattr(neighbours, "_NUMBERS", 5 * 3 * 7)
    for a, b in zip(similar(vectors, 4, allowed, 50, metric), once, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert similar(vectors, 61, allowed, 2, "dot")[1].tolist() == [0, 0]


def test_the_file_is_whole_where_nobody_reads_what_is_said(sample_file: Path, tmp_path: Path) -> None:
    for name in ("best.csv", "best.parquet"):
        command = f"{sys.executable} -m pmfcli recommend --all-users -n 1 -m {sample_file} -o {name} 2> >(exec true)"
        done = subprocess.run(["bash", "-c", f"{command}; exit $?"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0
        assert len(rows_of(tmp_path / name)) == 2000


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))


def test_a_file_of_each_kind_and_the_stream_hold_the_same(answer: Run, sample_file: Path, tmp_path: Path) -> None:
    flags = ("recommend", "-m", sample_file, "-n", "3", "--exclude", "1")
    done = answer(*flags, "--all-users")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "user\trank\tmovie\ttitle\tprediction\tsd\tlo\thi\tsource"
    assert "6,000 recommendations for 2,000 users: " in done.stderr
    assert answer(*flags, "--all-users", "-o", "-").stdout == done.stdout
    for user in ("1", "4", "2000"):
        alone = answer(*flags, "--user", user).stdout.splitlines()[1:]
        own = [line.split("\t", 1)[1] for line in lines if line.startswith(f"{user}\t")]
        assert [line.split("\t")[:3] for line in own] == [line.split("\t")[:3] for line in alone]
    for suffix in ("tsv", "csv", "jsonl", "parquet"):
        path = tmp_path / f"best.{suffix}"
        path.write_text("what was there before")
        done = answer(*flags, "--all-users", "-o", path)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.endswith(f" users a second\nwrote {path}\n")
        rows = rows_of(path)
        texts = [[str(np.float32(v)) if type(v) is float else str(v) for v in row.values()] for row in rows]
        assert ["\t".join(row) for row in texts] == lines[1:]
    assert [str(kind) for kind in pyarrow.parquet.read_schema(path).types] == [
        *("string", "int32", "string", "string"),
        *("float",) * 4,
        "string",
    ]
    lines = answer(*flags, "--all-users", "--format", "jsonl").stdout.splitlines()
    assert lines == (tmp_path / "best.jsonl").read_text().splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"best.{kind}" for kind in ("csv", "jsonl", "parquet", "tsv")]


def test_parts_that_wait_for_a_group_are_copies(tmp_path: Path) -> None:
    """Their own memory is for the next part: small pieces of it that stayed would take new memory for each."""
    rank = np.empty(2, dtype=np.int32)

    def parts() -> Iterator[Recommended]:
        for number in range(3):
            rank[:] = number
            yield Recommended(1, {"rank": rank})

    tables.write(tmp_path / "r.parquet", parts(), ["rank"])
    assert pyarrow.parquet.read_table(tmp_path / "r.parquet")["rank"].to_pylist() == [0, 0, 1, 1, 2, 2]


def test_nothing_left_is_said(answer: Run, sample_file: Path) -> None:
    done = answer("recommend", "--all-users", "-m", sample_file, "--candidates", "1", "-n", "2")
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert {(row[1], row[2]) for row in rows} == {("1", "1")}
    assert f"nothing is left to recommend to {2000 - len(rows):,} users; --include-seen adds" in done.stderr
    done = answer("recommend", "--all-users", "-m", sample_file, "--candidates", "1", "--include-seen")
    assert done.stdout.count("\n") == 2001
    assert "nothing is left" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "4"], "give one of: --user ID, --ratings FILE"),
        (["--ratings", "-"], "give one of: --user ID, --ratings FILE"),
        (["--row"], "--row goes with --user"),
        (["--json"], "give --format tsv, csv or jsonl, or a file with --output"),
        (["--format", "table"], "give --format tsv, csv or jsonl, or a file with --output"),
        (["-o", "best.xlsx"], "give .parquet, .csv, .tsv or .jsonl"),
        (["-o", "no/best.csv"], "No such file or directory; give a file in a folder that you can write to"),
        (["-o", "best.csv", "--format", "csv"], "leave --format and --json out"),
    ],
)
def test_what_does_not_go_together(answer: Run, arguments: list[str], message: str) -> None:
    done = answer("recommend", "--all-users", "-m", "no.pt", *arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    done = answer("recommend", "--user", "4", "-o", "best.csv", "-m", "no.pt")
    assert (done.returncode, "--output goes with --all-users" in done.stderr) == (2, True)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_is_whole_or_what_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"best.{suffix}"
    path.write_text("before")

    def parts() -> Iterator[Recommended]:
        yield Recommended(1, {"user": ["x"], "rank": np.ones(1, dtype=np.int32)})
        raise OSError("the disk is full")

    with pytest.raises(OutputError, match=r"the disk is full; nothing was written"):
        tables.write(path, parts(), ("user", "rank"))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_as_it_is(answer: Run, sample_file: Path, tmp_path: Path) -> None:
    pipe, came = tmp_path / "pipe.jsonl", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()), daemon=True)
    reader.start()
    assert answer("recommend", "--all-users", "-n", "1", "-m", sample_file, "-o", pipe).returncode == 0
    reader.join(20)
    assert [len(text.splitlines()) for text in came] == [2000]
    assert pipe.is_fifo()


def test_the_bar_leaves_rows_where_they_go(sample_model: Model, tmp_path: Path) -> None:
    """A bar on the terminal of stderr, while stdout is a file."""
    (tmp_path / "pmf.pt").write_bytes(dumps(sample_model))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "pmfcli", "recommend", "--all-users", "-n", "1"]
    with (tmp_path / "rows.tsv").open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=slave, stdin=subprocess.DEVNULL)
        os.close(slave)
        said = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            said += part
    os.close(master)
    assert process.wait() == 0
    assert len(rows_of(tmp_path / "rows.tsv")) == 2000
    assert b"recommend" in said
    assert b"Toy Story" not in said
