"""What reading ratings returns, and the file that it reads: apart from the readers, whose libraries are slow to import."""

from pathlib import Path
from typing import NamedTuple

from pmfcli.data.ratings import Ratings
from pmfcli.errors import DataError
from pmfcli.text import short

LAYOUTS = ("ratings.csv", "ratings.dat", "u.data")  # the ratings file of a MovieLens folder
BESIDE = (  # what lies there
    *("movies.csv", "tags.csv", "links.csv", "genome-scores.csv", "genome-tags.csv"),
    *("movies.dat", "tags.dat", "users.dat", "u.item", "u.user", "u.genre", "u.occupation"),
)


class Reading(NamedTuple):
    """Ratings, and what was skipped to get them."""

    ratings: Ratings
    duplicates: int  # earlier ratings of a pair that was rated again
    skipped: int  # rows that could not be read


def ratings_file(path: Path) -> Path:
    """The file of ratings, given that file or a folder in a MovieLens layout; a folder of Parquet files is returned as it is.

    Raises:
        DataError: there is none, or none that may be read.
    """
    try:
        return _ratings_file(path)
    except PermissionError as error:
        raise DataError(f"{short(str(path))}: {error.strerror}; give a ratings file that you can read") from None


def _ratings_file(path: Path) -> Path:
    if path.is_dir():
        for name in (*LAYOUTS, *(f"{name}.gz" for name in LAYOUTS)):
            if (path / name).is_file():
                return path / name
        if any(path.glob("*.parquet")):
            return path
        raise DataError(f"{path}: none of {', '.join(LAYOUTS)} in this folder; give a MovieLens folder or a file")
    if not path.exists():
        raise DataError(f"{path}: no such file; give a ratings file, a MovieLens folder, a data set's name, or 'sample'")
    return path
