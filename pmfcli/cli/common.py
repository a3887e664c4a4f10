"""What several commands do the same way: find the data, load the model, find users and movies, one row of an answer."""

import difflib
import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmfcli.console import Row, note, number
from pmfcli.data.catalog import CATALOG, DEFAULT
from pmfcli.errors import DataError, UnknownIdError, UsageError

if TYPE_CHECKING:
    from pmfcli.artifact import Model
    from pmfcli.data.ratings import Ratings, Vocabulary

_CANDIDATES = 6  # of an ambiguous title that are named


def read_data(
    data: str | None,
    data_dir: Path,
    skip_bad: bool = False,
    user: str | None = None,
    movie: str | None = None,
    rating: str | None = None,
    time: str | None = None,
) -> "Ratings":
    """The ratings that ``--data`` names, with notes on stderr of what was passed over."""
    from pmfcli.data.readers import Columns, read_ratings
    from pmfcli.data.sample import NAME, NOTICE, read_sample

    if data is None and not (data_dir / DEFAULT).is_dir():
        note(f"Using {NOTICE}. For MovieLens: pmf download {DEFAULT}")
        return read_sample()
    if data == NAME:
        note(f"Using {NOTICE}.")
        return read_sample()
    path: Path | None
    if data == "-":
        path = None
    elif data is None or data in CATALOG:
        path = data_dir / (data or DEFAULT)
        if not path.is_dir():
            raise DataError(f"{path}: not downloaded yet; get it by: pmf download {data} --data-dir {data_dir}")
    else:
        path = Path(data)
    ratings, duplicates, skipped = read_ratings(path, Columns(user, movie, rating, time), skip_bad)
    if duplicates:
        by = "by time" if ratings.time is not None else "in the file"
        note(f"{ratings.name}: {duplicates:,} rating(s) of a pair that was rated again; the latest {by} counts")
    if skipped:
        note(f"{ratings.name}: {skipped:,} row(s) that are no ratings passed over")
    return ratings


def load_model(path: Path) -> "Model":
    """The model that ``--model`` names; ``-`` reads standard input."""
    from pmfcli.artifact import load, loads
    from pmfcli.data.sample import NAME, NOTICE

    model = loads(sys.stdin.buffer.read(), "standard input") if str(path) == "-" else load(path)
    if model.data.get("name") == NAME:
        note(f"A model of {NOTICE}.")
    return model


def find_user(model: "Model", name: str, by_row: bool) -> int:
    """The row of a user.

    Raises:
        UnknownIdError: there is none; names the nearest ids.
    """
    return _find(model.users, name, by_row, "user", "--user")


def find_movie(model: "Model", name: str, by_row: bool) -> int:
    """The row of a movie, by id, else by title: the whole title, with or without the year, else a part of just one.

    Raises:
        UnknownIdError: there is none, or several fit; names candidates.
    """
    if by_row or model.movies.row(name) is not None:
        return _find(model.movies, name, by_row, "movie", "--movie")
    wanted = _plain(name)
    titles = [(row, _plain(title)) for row, title in enumerate(model.titles) if title is not None]
    whole = [row for row, title in titles if wanted in (title, re.sub(r" \d{4}$", "", title))]
    found = whole or [row for row, title in titles if wanted and f" {wanted} " in f" {title} "]
    if len(found) == 1:
        return found[0]
    if found:
        counts = model.seen.movie_counts(len(model.movies))
        found.sort(key=lambda row: -int(counts[row]))
        named = "; ".join(f"{model.movies.ids[row]} {model.titles[row]}" for row in found[:_CANDIDATES])
        more = f"; and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
        raise UnknownIdError(f"--movie: '{name}' fits {len(found)} movies, give an id: {named}{more}")
    return _find(model.movies, name, by_row, "movie", "--movie")


def movie_fields(model: "Model", row: int) -> Row:
    """Id and title of a movie."""
    return {"movie": model.movies.ids[row], "title": model.titles[row]}


def stars(model: "Model", unit: Any) -> list[float]:
    """Predictions on the unit scale, (n,), as numbers of stars to print."""
    return [number(value) for value in model.scale.to_stars(unit).tolist()]


def _find(vocabulary: "Vocabulary", name: str, by_row: bool, what: str, flag: str) -> int:
    if by_row:
        if not name.isdecimal() or int(name) >= len(vocabulary):
            raise UnknownIdError(f"{flag} --row: no row {name}; rows of {what}s are 0 to {len(vocabulary) - 1}")
        return int(name)
    row = vocabulary.row(name)
    if row is None:
        near = difflib.get_close_matches(name, vocabulary.ids, 3, 0.6) if len(vocabulary) <= 100_000 else []
        hint = f"near: {', '.join(near)}" if near else f"it knows {len(vocabulary):,}, such as {', '.join(vocabulary.ids[:3])}"
        raise UnknownIdError(f"{flag}: the model knows no {what} '{name}'; {hint}")
    return row


def _plain(title: str) -> str:
    """A title to compare by: no case, accents or punctuation; 'Matrix, The (1999)' becomes 'the matrix 1999'."""
    title = re.sub(r"^(.*), (The|A|An|Le|La|Les|L'|Il|El|Das|Der|Die)( \(|$)", r"\2 \1\3", title)
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", letters)) or title.lower()


def single(values: list[str] | None, flag: str) -> str:
    """The one value of a flag that may be given once here."""
    if not values or len(values) != 1:
        raise UsageError(f"{flag}: give one")
    return values[0]
