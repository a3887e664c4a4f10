"""What commands read: ratings, models, a visitor's ratings; and the notes about them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmfcli.cli.options import Source
from pmfcli.console import note
from pmfcli.data.catalog import CATALOG, DEFAULT
from pmfcli.errors import DataError, UnknownIdError, UsageError
from pmfcli.text import short

if TYPE_CHECKING:
    from pmfcli.answers import Visitor
    from pmfcli.artifact import Model
    from pmfcli.data.ratings import Ratings


def in_parts(source: Source) -> bool:
    """Whether the ratings are Parquet, of which a process can read a part."""
    path = Path(source.data or "")
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def read_data(source: Source, part: tuple[int, int] = (0, 1), leave_cache: bool = True) -> "Ratings":
    """The ratings that the flags name, with notes on stderr about what was skipped.

    Args:
        part: for Parquet, which part of the rows to read, of how many.

    Raises:
        DataError: they cannot be read.
        UsageError: columns are named for the sample, which is no file.
    """
    data, data_dir, side, skip_bad = source.data, source.data_dir, source.side, source.skip_bad
    columns = source.user_col, source.movie_col, source.rating_col, source.time_col
    from pmfcli.data.cache import read
    from pmfcli.data.fields import Columns
    from pmfcli.data.sample import NAME, NOTICE, read_sample

    by_default = data is None and not (data_dir / DEFAULT).is_dir()
    if data == NAME or by_default:
        if any(columns):
            raise UsageError("--user-col and the like name columns of a file; give the file with --data")
        if side is not None:
            raise UsageError("--side: only for MovieLens; for other data give tables with --movie-features and --user-features")
        note(f"Using {NOTICE}." + (f" For MovieLens: pmf download {DEFAULT}" if by_default else ""))
        return _with_features(read_sample(), None, source)
    path: Path | None
    if data == "-":
        path = None
    elif data is None or data in CATALOG:
        path = data_dir / (data or DEFAULT)
        if not path.is_dir():
            raise DataError(f"{path}: not downloaded yet; get it with: pmf download {data} --data-dir {data_dir}")
    else:
        path = Path(data)
    left: Path | None = None
    if path is None or source.no_cache or (part[1] > 1 and in_parts(source)):
        from pmfcli.data.readers import read_ratings

        reading = read_ratings(path, Columns(*columns), skip_bad, part)
    else:
        reading, left = read(path, Columns(*columns), skip_bad, leave_cache)
    ratings, duplicates, skipped = reading
    if left is not None:
        note(f"{ratings.name}: left a cache beside it for next time, {left.stat().st_size / 1e6:.0f} MB; pmf cache lists it")
    if duplicates:
        by = "by time" if ratings.time is not None else "in the file"
        note(f"{ratings.name}: {duplicates:,} rating(s) dropped: the same user and movie have a later one {by}")
    if skipped:
        note(f"{ratings.name}: {skipped:,} row(s) skipped that are not ratings")
    return _with_features(ratings, path, source)


def _with_features(ratings: "Ratings", path: Path | None, source: Source) -> "Ratings":
    if source.side is None and source.movie_features is None and source.user_features is None:
        return ratings
    from pmfcli.data.features import attach, read_side, read_table
    from pmfcli.data.reading import ratings_file

    tables: Any = {"movie": [], "user": []}
    if source.side is not None:
        if path is None:
            raise UsageError("--side: the ratings come from a pipe; give tables with --movie-features and --user-features")
        names = [name.strip() for name in source.side.split(",") if name.strip()]
        for kind, table in read_side(ratings_file(path), names).items():
            tables[kind].append(table)
    if source.movie_features is not None:
        tables["movie"].append(read_table(source.movie_features, "movie"))
    if source.user_features is not None:
        tables["user"].append(read_table(source.user_features, "user"))
    found = attach(ratings, tables)
    for kind, blocks, count in (
        ("movie", found.movie_features, len(found.movies)),
        ("user", found.user_features, len(found.users)),
    ):
        if tables[kind]:
            said = ", ".join(f"{block.name} ({len(block.columns)})" for block in blocks) or "none that two of them share"
            note(f"features of {count:,} {kind}s: {said}")
    return found


def load_model(path: Path) -> "Model":
    """The model that ``--model`` names; ``-`` reads standard input."""
    from pmfcli.artifact import load
    from pmfcli.data.sample import NAME, NOTICE
    from pmfcli.memory import keep

    keep()
    model = load(None if str(path) == "-" else path)
    if model.data.get("name") == NAME:
        note(f"A model of {NOTICE}.")
    return model


def read_visitor(source: str, model: "Model") -> "Visitor":
    """The ratings of somebody who is not in the data, as far as the model knows their movies; notes what it does not.

    Raises:
        DataError: no ratings, of several users, or outside the model's scale.
        UnknownIdError: the model knows none of the movies.
    """
    from pmfcli.answers import Visitor
    from pmfcli.data.fields import no_rating
    from pmfcli.data.fields import rating as rating_of
    from pmfcli.data.lines import read_records

    lo, hi = model.scale
    found: dict[int, float] = {}
    unknown: list[str] = []
    again = 0
    users: set[str] = set()
    for place, fields in read_records(source, ("movie", "rating"), also=("user",)):
        movie, text = fields["movie"], fields["rating"]
        rating = rating_of(text)
        if rating is None:
            raise DataError(f"{place}: {no_rating(text, 'is not a rating')}")
        if not lo <= rating <= hi:
            raise DataError(f"{place}: rating {short(text)} is outside the model's scale, {lo:g} to {hi:g}")
        users.add(fields.get("user", ""))
        if len(users) > 1:
            raise DataError(f"{place}: ratings of several users ({', '.join(map(short, sorted(users)))}); give those of one")
        row = model.movies.row(movie)
        if row is None:
            unknown.append(short(movie))
        else:
            again += row in found
            found[row] = rating
    if unknown:
        some = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        if not found:
            raise UnknownIdError(f"--ratings {source}: the model knows none of these movies: {some}")
        note(f"skipped {len(unknown)} rating(s) of movies that the model does not know: {some}")
    if again:
        note(f"{again} rating(s) dropped: the same movie has a later one")
    if not found:
        raise DataError(f"--ratings {source}: no ratings; give a movie id and a rating on each line")
    return Visitor(tuple(sorted(found)), tuple(found[row] for row in sorted(found)))


def say_if_dates_are_told(times: Iterable[str], test: "Ratings", from_a_file: bool) -> None:
    """Say whether models with effects of time are given the dates of a test, which makes it an easier one."""
    told = sorted(set(times) - {"none"})
    if not told:
        return
    flags = " and ".join(f"--time {time}" for time in told)
    if test.time is None:
        note(f"{test.name} has no dates: the model ({flags}) treats them as unknown")
        return
    without = "; to score it without them, give a file of user, movie and rating only" if from_a_file else ""
    note(f"the model is given the dates of the test ratings ({flags}), and so knows which were made together{without}")


def say_if_off_the_scale(models: "Iterable[Model]", ratings: "Ratings") -> None:
    """Warn of test ratings that a model cannot give: they are often those of another data set."""
    for lo, hi in dict.fromkeys(model.scale for model in models):
        outside = int(((ratings.stars < lo) | (ratings.stars > hi)).sum())
        if outside:
            of = f"{outside:,} of {ratings.n:,} test ratings"
            note(f"warning: {of} are outside the scale of the model, {lo:g} to {hi:g}; is it the right file?")
