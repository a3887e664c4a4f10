"""Ratings that were read before, as arrays in a file beside theirs.

A cache is valid for the size and time of a file, or, if only the time has changed, for its content. One that is damaged, or not
what it should be, is ignored. A link in its place leads to a file that nobody named: it is neither read nor written.
"""

import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pmfcli.data.fields import LARGEST, LATEST, Columns
from pmfcli.data.ratings import Array, Ratings, Scale, Vocabulary, pieces
from pmfcli.data.reading import Reading, ratings_file
from pmfcli.data.titles import read_titles
from pmfcli.files import replacing
from pmfcli.text import clean

LEAST = 1_000_000  # ratings worth a cache
FORMAT = 2  # changes with what reading makes of a file, too
_SUFFIX = ".pmf-cache"
_NAME = re.compile(rf"\.(.+){re.escape(_SUFFIX)}")
_UNFINISHED = re.compile(rf"\.\.(.+){re.escape(_SUFFIX)}\.\w{{8}}")  # as it is called while it is written
_TYPES = {"user": np.int32, "movie": np.int32, "stars": np.float32, "time": np.int64}


class Cached(NamedTuple):
    """A cache that is there."""

    file: Path
    source: Path  # whose ratings it has
    ratings: int | None  # None: it is damaged, of another version, or was left by a run that was killed
    size: int  # bytes


def read(path: Path, columns: Columns, skip_bad: bool, leave: bool = True) -> tuple[Reading, Path | None]:
    """As ``read_ratings``, but from a valid cache if there is one; else it leaves one, if that is allowed and useful: its path.

    Raises:
        DataError: as ``read_ratings``.
    """
    source = ratings_file(path)
    asked = {"columns": list(columns), "skip_bad": skip_bad}
    file = _beside(source)
    found = _load(file, source, asked) if source.is_file() else None
    if found is not None:
        return found, None
    from pmfcli.data.readers import read_ratings  # whose libraries a cache does without

    before = source.stat()
    reading = read_ratings(path, columns, skip_bad)
    if not source.is_file() or not leave or reading.ratings.n < LEAST:
        return reading, None
    try:
        if file.is_symlink():
            return reading, None
        _store(file, source, before, asked, reading)
    except OSError:  # a folder that cannot be written to, a full disk, a name that becomes too long, a source that changes
        return reading, None
    return reading, file


def caches(folder: Path) -> Iterator[Cached]:
    """The caches in a folder and below, whole or not."""
    for file in sorted(folder.rglob(f".*{_SUFFIX}*")):
        name = _NAME.fullmatch(file.name) or _UNFINISHED.fullmatch(file.name)
        if name is not None and file.is_file() and not file.is_symlink():
            about = _about(file)
            yield Cached(file, file.with_name(name[1]), None if about is None else int(about["ratings"]), file.stat().st_size)


def _beside(source: Path) -> Path:
    return source.with_name(f".{source.name}{_SUFFIX}")


def _store(file: Path, source: Path, before: os.stat_result, asked: dict[str, Any], reading: Reading) -> None:
    ratings = reading.ratings
    about = {
        "format": FORMAT,
        "size": before.st_size,
        "mtime_ns": before.st_mtime_ns,
        "sha256": _digest(source),
        "asked": asked,
        "ratings": ratings.n,
        "duplicates": reading.duplicates,
        "skipped": reading.skipped,
        "users": ratings.users.ids,
        "movies": ratings.movies.ids,
        "titles": None if ratings.titles == read_titles(source, ratings.movies) else ratings.titles,
    }
    arrays = {"user": ratings.user, "movie": ratings.movie, "stars": ratings.stars}
    if ratings.time is not None:
        arrays["time"] = ratings.time
    text = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)
    with replacing(file, f".{file.name}.") as out:
        np.savez(out, about=text, **arrays)  # type: ignore[arg-type]
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OSError(f"{source} was written to meanwhile")


def _about(file: Path) -> dict[str, Any] | None:
    """What a cache says of itself; None if it is none, or would unpack to more than it is."""
    try:
        with zipfile.ZipFile(file) as box:
            members = box.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED for one in members):
                return None
            if sum(one.file_size for one in members) > file.stat().st_size:
                return None
            if any(_claimed(box, one) > one.file_size for one in members):
                return None
        with np.load(file, allow_pickle=False) as box:
            about = json.loads(box["about"].tobytes())
            json.dumps(about, ensure_ascii=False).encode()  # no half of a surrogate pair, which could not be written
            return (
                about if isinstance(about, dict) and about["format"] == FORMAT and isinstance(about["ratings"], int) else None
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, RuntimeError):  # such as of what is encrypted
        return None


def _claimed(box: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The bytes of an array, as its header says."""
    with box.open(member) as stream:
        np.lib.format.read_magic(stream)
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    return math.prod(shape) * kind.itemsize


def _load(file: Path, source: Path, asked: dict[str, Any]) -> Reading | None:
    try:
        about = _about(file) if file.is_file() and not file.is_symlink() else None
        if about is None:
            return None
        status = source.stat()
        if about["asked"] != asked or about["size"] != status.st_size:
            return None
        if about["mtime_ns"] != status.st_mtime_ns and about["sha256"] != _digest(source):
            return None
        with np.load(file, allow_pickle=False) as box:
            found = {name: box[name] for name in _TYPES if name in box}
        users, movies = (Vocabulary(tuple(clean(str(label)) for label in about[name])) for name in ("users", "movies"))
        titles = about["titles"]
        if titles is None:
            titles = read_titles(source, movies)
        if not _fits(found, len(users), len(movies)) or len(titles) != len(movies):
            return None
        if any(len(set(side.ids)) < len(side) for side in (users, movies)):
            return None
        titles = tuple(None if title is None else clean(str(title)) for title in titles)
        stars = found["stars"]
        scale = Scale(float(stars.min()), float(stars.max()))
        arrays = found["user"], found["movie"], stars, found.get("time")
        ratings = Ratings(*arrays, users, movies, titles, scale, str(source))
        return Reading(ratings, int(about["duplicates"]), int(about["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, zipfile.BadZipFile, EOFError):
        return None


def _fits(found: dict[str, Array], n_users: int, n_movies: int) -> bool:
    n = len(found["stars"])
    if any(found[name].dtype != kind or found[name].shape != (n,) for name, kind in _TYPES.items() if name in found):
        return False
    user, movie = found["user"], found["movie"]
    inside = n > 0 and 0 <= user.min() <= user.max() < n_users and 0 <= movie.min() <= movie.max() < n_movies
    if "time" in found and n and not -LATEST <= found["time"].min() <= found["time"].max() <= LATEST:
        return False
    keys = (user[some] * np.int64(n_movies) + movie[some] for some in pieces(n, beyond=1))
    return bool(
        inside
        and -LARGEST <= found["stars"].min() <= found["stars"].max() <= LARGEST
        and all((key[1:] > key[:-1]).all() for key in keys)
    )


def _digest(source: Path) -> str:
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
