"""Columns as they were read to Ratings: bad rows, ids to rows, duplicates, order."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmfcli.data.fields import LARGEST, LATEST, rating, seconds
from pmfcli.data.ratings import Array, Ratings, Scale, Vocabulary
from pmfcli.data.reading import Reading
from pmfcli.data.titles import read_titles
from pmfcli.errors import DataError
from pmfcli.text import clean

Table = dict[str, pa.ChunkedArray]  # a column for each role
_PARTS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}  # of a second


def assemble(
    columns: Table, file: Path | None, name: str, broken: int, skip_bad: bool, first_bad: Callable[[], str] | None
) -> Reading:
    """Columns to Ratings: bad rows, ids to rows, duplicates, order. Each column is let go as soon as it is read.

    Raises:
        DataError: a row is not a rating, unless such rows are skipped; or no row is one.
    """
    user, user_ids = _codes(columns.pop("user"))
    pa.default_memory_pool().release_unused()
    movie, movie_ids = _codes(columns.pop("movie"))
    stars = _numbers(columns.pop("rating"))
    time = _times(columns.pop("time")) if "time" in columns else None
    title, known_titles = _codes(columns.pop("title")) if "title" in columns else (None, [])
    pa.default_memory_pool().release_unused()
    good = np.isfinite(stars) & (user >= 0) & (movie >= 0)
    if time is not None:
        good &= (time <= LATEST) & (time >= -LATEST)  # not where it is NaN
    skipped = broken + int((~good).sum())
    if skipped and not skip_bad:
        where = first_bad() if first_bad else f"{name}: row {int(np.argmin(good)) + 1} is not a rating"
        raise DataError(f"{where}; correct it, or skip such rows with --skip-bad")
    if not good.any():
        raise DataError(f"{name}: a header but no ratings" if not skipped else f"{name}: none of its rows is a rating")
    if not good.all():
        user, movie, stars = user[good], movie[good], stars[good]
        time, title = (None if part is None else part[good] for part in (time, title))
    del good
    time = None if time is None else time.astype(np.int64, copy=not time.flags.writeable)  # Arrow's own memory is not
    users, user = _vocabulary(user, user_ids)
    movies, movie = _vocabulary(movie, movie_ids)
    order, repeated = _in_order(user, movie, len(movies), time)
    if order is not None:
        user, movie, stars = user[order], movie[order], stars[order]
        time, title = (None if part is None else part[order] for part in (time, title))
    if title is not None:
        titled = title >= 0
        by_row = dict(zip(movie[titled].tolist(), title[titled].tolist(), strict=True))
        titles = tuple(known_titles[by_row[row]] if row in by_row else None for row in range(len(movies)))
    else:
        titles = read_titles(file, movies) if file is not None else (None,) * len(movies)
    scale = Scale(float(stars.min()), float(stars.max()))
    return Reading(Ratings(user, movie, stars, time, users, movies, titles, scale, name), repeated, skipped)


def _in_order(user: Array, movie: Array, n_movies: int, time: Array | None) -> tuple[Array | None, int]:
    """Positions by user, then movie, the latest of each pair alone, and how many others there are; None if all are in order."""
    key = user * np.int64(n_movies) + movie
    if (key[1:] > key[:-1]).all():
        return None, 0
    order = np.argsort(key, kind="stable").astype(np.int32 if len(key) < 2**31 else np.int64)
    key = key[order]
    again = key[1:] == key[:-1]
    if not again.any():
        return order, 0
    if time is not None:
        among = np.append(again, False) | np.insert(again, 0, False)
        some = order[among]
        order[among] = some[np.lexsort((some, time[some], key[among]))]
    return order[np.append(~again, True)], int(again.sum())


def _codes(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Positions in a list of distinct texts, -1 where there is none. A text that runs over lines is none: a stray quote."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.int64())  # ids that became floats, as pandas does beside missing values
    if not pa.types.is_dictionary(column.type):
        column = (column if pa.types.is_integer(column.type) else column.cast(pa.string())).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes = _array(whole.indices.fill_null(-1) if whole.null_count else whole.indices)
    texts = ["" if label is None else str(label) for label in whole.dictionary.to_pylist()]
    labels = [clean(text) if "\n" not in text else "" for text in texts]
    distinct = sorted(set(labels) - {""})
    place = {label: i for i, label in enumerate(distinct)}
    return np.array([*(place.get(label, -1) for label in labels), -1], dtype=np.int32)[codes], distinct


def _array(numbers: pa.Array) -> Array:
    """As they lie in memory; or as floats, with NaN for what is missing, by way of pandas, whose import takes a moment."""
    found: Array = numbers.to_numpy(zero_copy_only=False) if numbers.null_count else np.from_dlpack(numbers)
    return found


def _vocabulary(codes: Array, labels: list[str]) -> tuple[Vocabulary, Array]:
    """The ids that occur, in their order, and the row of each code."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(labels)))
    names = [labels[code] for code in used]
    order = Vocabulary.order(names)
    rows = np.zeros(len(labels), dtype=np.int32)
    rows[used[order]] = np.arange(len(order), dtype=np.int32)
    return Vocabulary(tuple(names[i] for i in order)), rows[codes]


def _numbers(column: pa.ChunkedArray) -> Array:
    """Ratings as float32, NaN where there is no usable number."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = _array(column.cast(pa.float64()).combine_chunks())
        return np.where(np.abs(values) <= LARGEST, values, np.nan).astype(np.float32)
    codes, labels = _codes(column)
    parsed = [rating(label) for label in labels]
    return np.array([*(math.nan if value is None else value for value in parsed), math.nan], dtype=np.float32)[codes]


def _times(column: pa.ChunkedArray) -> Array:
    """Seconds since 1970, from these, milliseconds or dates (ISO 8601 in text); float64, with NaN, where some are missing."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _of_dates(column.combine_chunks())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _in_seconds(_array(column.cast(pa.float64()).combine_chunks()))
    if pa.types.is_temporal(kind):
        raise pa.ArrowInvalid(f"times are of type {kind}, not dates or seconds since 1970")
    with contextlib.suppress(pa.ArrowInvalid):
        return _in_seconds(_array(column.cast(pa.int64()).combine_chunks()))
    return np.concatenate([_of_text(chunk) for chunk in column.chunks])


def _of_text(times: pa.Array) -> Array:
    """The same of texts: Arrow reads those that are all of one form, ``seconds`` all others."""
    with contextlib.suppress(pa.ArrowInvalid):
        return _in_seconds(_array(times.cast(pa.float64())))
    for form in (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        with contextlib.suppress(pa.ArrowInvalid):
            return _of_dates(times.cast(form))
    codes, labels = _codes(pa.chunked_array([times]))
    parsed = [seconds(label) for label in labels]
    return np.array([*(math.nan if value is None else value for value in parsed), math.nan])[codes]


def _of_dates(dates: pa.Array) -> Array:
    """Dates by Arrow count days, or parts of a second."""
    if pa.types.is_date32(dates.type):
        return 86_400 * _array(dates.cast(pa.int32()).cast(pa.int64()))
    parts = 1000 if pa.types.is_date64(dates.type) else _PARTS[dates.type.unit]
    return _array(dates.cast(pa.int64())) // parts


def _in_seconds(times: Array) -> Array:
    if not len(times) or (np.fmax.reduce(times) <= LATEST and np.fmin.reduce(times) >= -LATEST):
        return times
    size = np.abs(times)
    with np.errstate(invalid="ignore"):  # of infinity
        return np.where((size > LATEST) & (size <= 1000 * LATEST), times // 1000, times)
