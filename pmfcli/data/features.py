"""What is known of movies and users besides ratings: genres, years, tags, ages, or the columns of any table.

A column of numbers becomes hat functions between its quantiles, so that its effect need not be linear; any other column is
a list, separated by ``|``, of things that have one learned effect each.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from pmfcli.data.fields import LONGEST_LINE, SEPARATORS, UNQUOTED, Columns, by_role, split
from pmfcli.data.ratings import Array, Block, Ratings, Vocabulary
from pmfcli.data.titles import read_dat
from pmfcli.errors import DataError, UsageError
from pmfcli.text import clean, short

Side = Literal["user", "movie"]
SIDES = ("genres", "year", "tags", "user")
_KNOTS = 8  # quantiles that hats stand on, at most
_NUMBERS = 10  # different numbers that are a quantity, not names, at least
_LARGEST = 1e30  # of a number that says how much of something there is
_QUANTITY = 0.95  # of the entries of a quantity are numbers, at least; the rest are taken as missing
_SHARED = 2  # rows that have a thing, at least: of one row's own thing nothing is to be learned
_MOST = 100_000  # things of a column
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_GENRES = (  # of ml-100k, in the order of its columns
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def read_side(ratings_file: Path, names: Sequence[str]) -> dict[Side, pd.DataFrame]:
    """Tables of movies and users from the files beside MovieLens ratings, ids as index, one column for each name; and titles.

    Args:
        ratings_file: as ``reading.ratings_file`` gives it: also packed, or a folder of Parquet.
        names: of SIDES; ``user`` stands for all that is known of users.

    Raises:
        UsageError: no such name.
        DataError: the files are missing, or do not have it.
    """
    if not names:
        raise UsageError(f"--side: give some of {', '.join(SIDES)}")
    unknown = [name for name in names if name not in SIDES]
    if unknown:
        raise UsageError(f"--side: '{short(unknown[0])}' is none of {', '.join(SIDES)}")
    if ratings_file.is_dir():  # of Parquet
        ratings_file = ratings_file / "ratings.parquet"
    elif ratings_file.suffix == ".gz":
        ratings_file = ratings_file.with_suffix("")
    folder = ratings_file.parent
    found: dict[Side, pd.DataFrame] = {}
    try:
        if set(names) - {"user"}:
            movies = _movies(ratings_file)
            if "tags" in names:
                movies["tags"] = _tags(folder).reindex(movies.index).fillna("")
            found["movie"] = movies[[*(name for name in names if name != "user"), "title"]]
        if "user" in names:
            found["user"] = _users(ratings_file)
    except FileNotFoundError as error:
        raise DataError(
            f"--side: {error.filename}: no such file beside the ratings; give a table with --movie-features or --user-features"
        ) from None
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"--side: {folder}: not MovieLens' own files ({clean(str(error))[:100]})") from None
    return found


def _movies(ratings_file: Path) -> pd.DataFrame:
    if ratings_file.name == "u.data":
        raw = _piped(ratings_file.with_name("u.item"))
        flags = raw.iloc[:, 5:].to_numpy() == "1"
        named = ["|".join(np.array(_GENRES[: flags.shape[1]])[row]) for row in flags]
        return pd.DataFrame({"genres": named, "year": raw[2].str[-4:].to_numpy(), "title": raw[1].to_numpy()}, index=raw[0])
    if ratings_file.name == "ratings.dat":
        rows = read_dat(ratings_file.with_name("movies.dat"))
        raw = pd.DataFrame([row[:3] for row in rows], columns=["movieId", "title", "genres"])
    else:
        raw = pd.read_csv(ratings_file.with_name("movies.csv"), dtype=str, keep_default_na=False)
    genres = raw["genres"].where(raw["genres"] != "(no genres listed)", "")
    found = {"genres": genres.to_numpy(), "year": _years(raw["title"]).to_numpy(), "title": raw["title"].to_numpy()}
    return pd.DataFrame(found, index=raw["movieId"])


def _tags(folder: Path) -> pd.Series:
    if (folder / "tags.csv").is_file():
        raw = pd.read_csv(folder / "tags.csv", dtype=str, keep_default_na=False)
    else:
        raw = pd.DataFrame([row[:3] for row in read_dat(folder / "tags.dat")], columns=["userId", "movieId", "tag"])
    raw["tag"] = raw["tag"].str.lower().str.strip().str.replace("|", " ")
    unique = raw.drop_duplicates(["movieId", "tag"])
    return unique.groupby("movieId")["tag"].agg("|".join)


def _users(ratings_file: Path) -> pd.DataFrame:
    if ratings_file.name == "u.data":
        raw = _piped(ratings_file.with_name("u.user"))
        return raw.set_index(0).set_axis(["age", "gender", "occupation", "zip"], axis=1).drop(columns="zip")
    rows = read_dat(ratings_file.with_name("users.dat"))
    raw = pd.DataFrame([row[:4] for row in rows], columns=["user", "gender", "age", "occupation"])
    return raw.set_index("user")


def _piped(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="|", header=None, dtype=str, keep_default_na=False, encoding="latin-1", quoting=csv.QUOTE_NONE)


def _years(titles: pd.Series) -> pd.Series:
    return titles.str.extract(_YEAR, expand=False).fillna("")


def read_table(path: Path, side: Side) -> pd.DataFrame:
    """A table of movies or users, ids as index: CSV, TSV or the like with a header, the ids found by name.

    A title is not a feature, but the year at its end is. Columns typed as RecBole does (``class:token_seq``) are known.

    Raises:
        DataError: it cannot be read, has no column of ids, or an id twice.
    """
    if path.suffix in (".gz", ".parquet"):
        raise DataError(f"{path}: a table of {side}s is plain text here: CSV, TSV or the like")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:  # once: it may be a pipe
            line = stream.readline(LONGEST_LINE)
            separator = next((mark for mark in SEPARATORS if len(split(line.rstrip("\r\n"), mark)) > 1), None)
            if separator is None:
                raise DataError(f"{path}:1: no columns in '{short(line)}'; expected {side} ids and what is known of them")
            lines, (header, *rows) = zip(*_rows(itertools.chain([line], stream), path, separator), strict=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give a table of features") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert it, for instance with iconv -f latin1 -t utf8") from None
    for line, row in zip(lines[1:], rows, strict=True):
        if any(row[len(header) :]):
            raise DataError(f"{path}:{line}: {len(row)} fields under a header of {len(header)} names; correct one")
    rows = [(row + [""] * len(header))[: len(header)] for row in rows]
    raw = pd.DataFrame(rows, columns=header, dtype=str)
    names = [clean(str(name)) for name in raw.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are called '{short(twice)}'; rename one")
    raw.columns = pd.Index(names)
    roles = by_role(names, Columns())
    if side not in roles:
        raise DataError(f"{path}:1: no column of {side} ids among {', '.join(map(short, names[:12]))}; call one '{side}'")
    table = raw.set_index(names[roles[side]])
    for name in table.columns:
        if str(name).endswith(":token_seq") and name != names[roles.get("title", 0)]:
            table[name] = table[name].str.replace(" ", "|")
    if "title" in roles and side == "movie":
        title = names[roles["title"]]
        years = _years(raw[title])
        table = table.rename(columns={title: "title"})
        if (years != "").mean() > 0.5 and "year" not in table:
            table["year"] = years.to_numpy()
    table.columns = [re.sub(r":\w+$", "", str(name)) for name in table.columns]
    again = np.flatnonzero(table.index.duplicated() & (table.index != ""))
    if len(again):
        name = short(str(table.index[again[0]]))
        raise DataError(f"{path}:{lines[1:][again[0]]}: {side} '{name}' occurs twice; keep one row for each")
    return table


def _rows(table: Iterable[str], path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, and the line on which each begins; its first is the header.

    Raises:
        DataError: a quote is not closed, or a field too long.
    """
    if separator in UNQUOTED:
        for line, text in enumerate(table, 1):
            if text.strip():
                yield line, split(text.rstrip("\r\n"), separator)
        return
    reader, begins = csv.reader(table, delimiter=separator, strict=True), 1
    try:
        for row in reader:
            if any(row):
                yield begins, [field.strip() for field in row]
            begins = reader.line_num + 1
    except csv.Error as error:
        what = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        raise DataError(f"{path}:{begins}: {what}; correct the row") from None


def attach(ratings: Ratings, tables: dict[Side, list[pd.DataFrame]]) -> Ratings:
    """The ratings with features; a movie or user that is only in a table becomes one without ratings.

    Raises:
        DataError: none of the ids of a table is among the ratings, or one occurs twice.
    """
    for side, given in tables.items():
        if not given:
            continue
        table = _joined(side, given)
        titles = dict(table.pop("title")) if side == "movie" and "title" in table else {}
        known: Vocabulary = getattr(ratings, f"{side}s")
        if not table.index.isin(known.ids).any():
            raise DataError(f"none of the {len(table):,} {side}s with features is in {ratings.name}; are the ids the same?")
        new = [name for name in table.index if name and known.row(name) is None]
        vocabulary = Vocabulary((*known.ids, *new))  # behind the others: the rows of these stay
        changed: dict[str, Any] = {f"{side}s": vocabulary}
        if side == "movie":
            given_names = zip(vocabulary.ids, [*ratings.titles, *[None] * len(new)], strict=True)
            changed["titles"] = tuple(title or clean(titles.get(name, "")) or None for name, title in given_names)
        blocks = [encode(str(name), table[name], vocabulary) for name in table]
        changed[f"{side}_features"] = tuple(block for block in blocks if block.columns)
        ratings = replace(ratings, **changed)
    return ratings


def _joined(side: Side, given: list[pd.DataFrame]) -> pd.DataFrame:
    """The tables of a side beside each other; of two columns of one name the later counts, as it was named by hand."""
    cleaned = []
    for table in given:
        table = table.set_axis(pd.Index([clean(str(name)) for name in table.index]))
        table = table[table.index != ""]
        if table.index.has_duplicates:
            raise DataError(f"{side} '{short(table.index[table.index.duplicated()][0])}' occurs twice in a table of features")
        cleaned.append(table)
    joined = pd.concat(cleaned, axis=1).fillna("")
    last: pd.DataFrame = joined.loc[:, ~joined.columns.duplicated(keep="last")]
    return last


def encode(name: str, values: pd.Series, vocabulary: Vocabulary) -> Block:
    """One column as a sparse block, rows those of the vocabulary."""
    row, known = vocabulary.rows([str(label) for label in values.index])
    texts = values.astype(str).to_numpy()
    said = known & (texts != "")
    numbers = pd.to_numeric(pd.Series(texts[said]), errors="coerce").to_numpy(dtype=np.float64)
    right = np.abs(numbers) <= _LARGEST  # not where it is NaN
    if right.sum() >= _QUANTITY * max(1, len(right)) and len(np.unique(numbers[right])) >= _NUMBERS:
        return _hats(name, row[said][right], numbers[right])
    things = [list(dict.fromkeys(part.strip() for part in text.split("|") if part.strip())) for text in texts[said]]
    counts = pd.Series([thing for listed in things for thing in listed], dtype=object).value_counts()
    names = sorted(counts[counts >= _SHARED].index[:_MOST])
    place = {thing: number for number, thing in enumerate(names)}
    entries = [(r, place[t], len(kept) ** -0.5) for r, kept in _kept(row[said], things, place) for t in kept]
    return _block(name, tuple(names), *map(np.array, zip(*entries, strict=True))) if entries else Block(name, (), *_nothing())


def _kept(rows: Array, things: list[list[str]], place: dict[str, int]) -> list[tuple[int, list[str]]]:
    return [(int(row), [thing for thing in listed if thing in place]) for row, listed in zip(rows, things, strict=True)]


def _hats(name: str, row: Array, numbers: Array) -> Block:
    knots = np.unique(np.quantile(numbers, np.linspace(0, 1, _KNOTS)))
    right = np.clip(np.searchsorted(knots, numbers), 1, len(knots) - 1)
    part = (numbers - knots[right - 1]) / (knots[right] - knots[right - 1])
    rows, cols = np.concatenate([row, row]), np.concatenate([right - 1, right])
    return _block(name, tuple(f"{knot:g}" for knot in knots), rows, cols, np.concatenate([1 - part, part]))


def _block(name: str, columns: tuple[str, ...], row: Array, col: Array, weight: Array) -> Block:
    order = np.lexsort((col, row))
    return Block(name, columns, row[order].astype(np.int32), col[order].astype(np.int32), weight[order].astype(np.float32))


def _nothing() -> tuple[Array, Array, Array]:
    return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
