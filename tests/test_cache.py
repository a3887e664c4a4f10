"""What is kept of a file that was read: it is the same, it is given up when the file changes, and it cannot do harm."""

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from pmfcli.data import cache, readers
from pmfcli.data import ratings as data
from pmfcli.data.fields import Columns
from pmfcli.data.ratings import Ratings
from pmfcli.data.readers import read_ratings
from pmfcli.data.reading import Reading

COLUMNS = Columns()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "LEAST", 10)
    monkeypatch.setattr(data, "_PIECE", 2)
    lines = [f"u{n * 7 % 5},{n * 3 % 8},{1 + n % 5},{1000 - n}" for n in range(60)]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n3,Heat (1995),Crime\n")
    return tmp_path / "ratings.csv"


def same(a: Reading, b: Reading) -> None:
    assert a[1:] == b[1:]
    for name in Ratings.__dataclass_fields__:
        one, other = getattr(a.ratings, name), getattr(b.ratings, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


def test_the_second_reading_is_the_first_and_comes_from_the_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_ratings(file)
    first, left = cache.read(file, COLUMNS, False)
    assert left == file.with_name(".ratings.csv.pmf-cache")
    same(first, plain)
    assert first.duplicates > 0
    monkeypatch.setattr(readers, "read_ratings", None)
    for path in (file, file.parent):
        again, left = cache.read(path, COLUMNS, False)
        assert left is None
        same(again, plain)
    os.utime(file, ns=(1, 1))
    same(cache.read(file, COLUMNS, False)[0], plain)
    (file.parent / "movies.csv").write_text("movieId,title,genres\n3,Cold (1995),Crime\n")
    assert "Cold (1995)" in cache.read(file, COLUMNS, False)[0].ratings.titles


def test_it_is_given_up_when_the_file_or_the_question_changes(file: Path) -> None:
    cache.read(file, COLUMNS, False)
    assert cache.read(file, COLUMNS._replace(rating="timestamp"), False)[1] is not None
    text = file.read_text()
    file.write_text(text.replace("u1,", "u2,"))  # of the same size
    os.utime(file, ns=(1, 1))
    reading, left = cache.read(file, COLUMNS, False)
    assert left is not None
    assert "u1" not in reading.ratings.users.ids
    file.write_text(text + "u9,1,5,0\n")
    assert "u9" in cache.read(file, COLUMNS, False)[0].ratings.users.ids


@pytest.mark.parametrize("moment", ["reading", "hashing", "writing"])
def test_a_file_that_changes_while_it_is_read_leaves_no_cache(file: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = {"reading": (readers, "read_ratings"), "hashing": (cache, "_digest"), "writing": (np, "savez")}[moment]
    does = getattr(owner, name)

    def and_the_file_changes(*given: object, **named: object) -> object:
        done = does(*given, **named)
        file.write_text(file.read_text().replace("u1,", "u2,"))
        os.utime(file, ns=(1, 1))
        return done

    def never(*_: object) -> None:
        raise AssertionError("a cache was there for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_the_file_changes)
        patch.setattr(os, "replace", never)
        reading, left = cache.read(file, COLUMNS, False)
    assert (left, "u1" in reading.ratings.users.ids) == (None, True)
    assert [one.name for one in file.parent.glob(".*")] == []
    assert "u1" not in cache.read(file, COLUMNS, False)[0].ratings.users.ids


def test_a_cache_that_is_no_good_is_none(file: Path) -> None:
    plain, left = cache.read(file, COLUMNS, False)
    content = left.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        left.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        same(cache.read(file, COLUMNS, False)[0], plain)
    for size in (0, 10, len(content) // 2):
        left.write_bytes(content[:size])
        same(cache.read(file, COLUMNS, False)[0], plain)

    def rewritten(**change: object) -> None:
        left.write_bytes(content)
        with np.load(left) as box:
            parts = dict(box)
        about = json.loads(parts["about"].tobytes())
        for name, value in change.items():
            if name in about:
                about[name] = value
            else:
                parts[name] = value(parts[name])
        parts["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        with left.open("wb") as out:
            np.savez(out, **parts)

    for change in (
        {"user": lambda part: part + 100},
        {"user": lambda part: part[::-1]},
        {"movie": lambda part: part[[0, 2, 1, *range(3, len(part))]]},  # beyond the first piece
        {"movie": lambda part: part.astype(np.int64)},
        {"stars": lambda part: part * np.nan},
        {"stars": lambda part: part * np.float32(1e30)},
        {"users": ["\ud800", "u2", "u3", "u4", "u5"]},
        {"time": lambda part: part[1:]},
        {"users": ["u1"]},
        {"titles": []},
        {"format": 99},
        {"size": 1},
        {"movies": 3},
        {"users": ["u1"] * 5},
        {"time": lambda part: part + (1 << 62)},
        {"duplicates": math.inf},
    ):
        rewritten(**change)
        again, renewed = cache.read(file, COLUMNS, False)
        same(again, plain)
        assert renewed == left, change  # it was none, and is one again
    left.write_bytes(content)
    with zipfile.ZipFile(left) as box:
        members = {one.filename: box.read(one) for one in box.infolist()}
    with zipfile.ZipFile(left, "w", zipfile.ZIP_DEFLATED) as box:
        for name, member in members.items():
            box.writestr(name, member)
    same(cache.read(file, COLUMNS, False)[0], plain)
    secret = bytearray(content)
    secret[6] |= 1  # says that a member is encrypted
    secret[secret.find(b"PK\x01\x02") + 8] |= 1
    left.write_bytes(secret)
    same(cache.read(file, COLUMNS, False)[0], plain)
    for shape in ("(10000000000000,)", "(100000000000000000000,)"):
        members["stars.npy"] = npy_header(shape)
        with zipfile.ZipFile(left, "w") as box:
            for name, member in members.items():
                box.writestr(name, member)
        same(cache.read(file, COLUMNS, False)[0], plain)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_a_link_in_the_place_of_a_cache_is_not_followed(
    file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path_factory.mktemp("home") / "keys"
    precious.write_text("precious")
    place = file.with_name(".ratings.csv.pmf-cache")
    place.symlink_to(precious)
    _, left = cache.read(file, COLUMNS, False)
    assert (left, precious.read_text()) == (None, "precious")
    place.unlink()
    cache.read(file, COLUMNS, False)[1].rename(precious)
    place.symlink_to(precious)
    monkeypatch.setattr(readers, "read_ratings", None)
    with pytest.raises(TypeError):  # it would have been read anew
        cache.read(file, COLUMNS, False)
    assert list(cache.caches(file.parent)) == []


def test_small_files_pipes_and_folders_that_cannot_be_written_leave_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(cache, "replacing", refused)
        assert cache.read(file, COLUMNS, False)[1] is None
    monkeypatch.setattr(cache, "LEAST", 1000)
    assert cache.read(file, COLUMNS, False)[1] is None
    assert [one.name for one in file.parent.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize("length", [240, 250])  # too long for what it is called while it is written, for its own name
def test_a_file_whose_cache_would_have_too_long_a_name_is_read_without(file: Path, length: int) -> None:
    long = file.rename(file.with_name("r" * (length - 4) + ".csv"))
    reading, left = cache.read(long, COLUMNS, False)
    assert (reading.ratings.n > 0, left) == (True, None)
    assert {one.name for one in long.parent.iterdir()} == {long.name, "movies.csv"}


def test_cache_on_the_command_line(answer: Run, file: Path) -> None:
    train = ["train", "--data", str(file), "--epochs", "2", "-k", "2"]
    assert answer(*train, "--no-cache").returncode == 0
    done = answer("cache", "--json")
    assert (json.loads(done.stdout)["rows"], done.stderr) == ([], "no caches in .\n")
    assert "left a cache beside it for next time" in answer(*train).stderr
    assert "left a cache" not in answer(*train).stderr
    (row,) = json.loads(answer("cache", str(file.parent), "--json").stdout)["rows"]
    assert row["source"] == str(file)
    (file.parent / "..ratings.csv.pmf-cache.qoj8bkgf").write_bytes(b"of a run that was killed")
    (file.parent / ".other.csv.pmf-cache").write_bytes(b"damaged")
    notes = [file.parent / name for name in (".my.pmf-cached.conf", ".ratings.csv.pmf-cache-notes.md")]
    for note in notes:
        note.touch()
    rows = json.loads(answer("cache", str(file.parent), "--json").stdout)["rows"]
    assert [row["ratings"] is None for row in rows] == [True, True, False]
    assert [Path(row["source"]).name for row in rows] == ["ratings.csv", "other.csv", "ratings.csv"]
    done = answer("cache", "--clear")
    assert (done.returncode, "removed 3" in done.stderr) == (0, True)
    assert sorted(file.parent.glob(".*")) == notes
    assert answer("cache", "nowhere").returncode == 2
