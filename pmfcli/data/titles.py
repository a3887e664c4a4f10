"""Titles of movies, from the file that lies beside the ratings in each MovieLens layout."""

import csv
from pathlib import Path

from pmfcli.data.fields import LONGEST_LINE
from pmfcli.data.ratings import Vocabulary
from pmfcli.errors import DataError
from pmfcli.text import clean


def read_titles(ratings_file: Path, movies: Vocabulary) -> tuple[str | None, ...]:
    """The title of each movie, None where there is none, from the layout that ``ratings_file`` belongs to.

    Raises:
        DataError: the file of titles cannot be read.
    """
    readers = {
        "ratings.csv": ("movies.csv", _from_csv),
        "ratings.dat": ("movies.dat", _from_dat),
        "u.data": ("u.item", _from_item),
    }
    name, read = readers.get(ratings_file.name.removesuffix(".gz"), ("", _from_csv))
    path = ratings_file.with_name(name) if name else ratings_file
    if not name or not path.is_file():
        return (None,) * len(movies)
    try:
        titles = {clean(movie): clean(title) for movie, title in read(path).items()}
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a file of titles ({clean(str(error))[:100]}); correct it, or move it away") from None
    return tuple(map(titles.get, movies.ids))


def _from_csv(path: Path) -> dict[str, str]:
    with path.open("rb") as raw:
        if b"movieId" not in raw.readline(LONGEST_LINE):
            return {}  # somebody else's movies.csv, of whatever encoding
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, [])
            if not {"movieId", "title"} <= set(header):
                return {}
            movie, title = header.index("movieId"), header.index("title")
            return {row[movie]: row[title] for row in rows if len(row) > max(movie, title)}
        except csv.Error as error:  # such as a quote that is not closed
            raise ValueError(f"line {rows.line_num}: {error}") from None


def _from_dat(path: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in read_dat(path) if len(row) > 1}


def read_dat(path: Path) -> list[list[str]]:
    """The fields of each line of a file of MovieLens that separates them by ``::``."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")  # ml-10m
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # ml-1m
    return [line.split("::") for line in text.splitlines() if line]


def _from_item(path: Path) -> dict[str, str]:
    rows = [line.split("|", 2) for line in path.read_text(encoding="latin-1").splitlines()]
    return {row[0]: row[1] for row in rows if len(row) > 1}
