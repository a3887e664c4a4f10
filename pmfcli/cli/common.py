"""What several commands do the same way: find the data, load the model."""

import contextlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pmfcli.cli.options import Source
from pmfcli.console import document, note
from pmfcli.data.catalog import CATALOG, DEFAULT
from pmfcli.errors import DataError, OutputError, UnknownIdError, UsageError
from pmfcli.files import check_replaceable, write_atomically
from pmfcli.text import file_size, short

if TYPE_CHECKING:
    from pmfcli.answers import Visitor
    from pmfcli.artifact import Model
    from pmfcli.data.ratings import Ratings
    from pmfcli.updating import Forgotten, Updated

_HEAD = 512  # bytes of a file that tell what it is


def in_parts(source: Source) -> bool:
    """Whether the ratings are Parquet, of which a process can read a part."""
    path = Path(source.data or "")
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def read_data(source: Source, part: tuple[int, int] = (0, 1), leave_cache: bool = True) -> "Ratings":
    """The ratings that the flags name, with notes on stderr of what was passed over.

    Args:
        part: of Parquet, which part of how many to read.

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
            raise UsageError("--user-col and its kin name columns of a file; name the file by --data")
        if side is not None:
            raise UsageError("--side: it is of MovieLens; of other data give tables by --movie-features and --user-features")
        note(f"Using {NOTICE}." + (f" For MovieLens: pmf download {DEFAULT}" if by_default else ""))
        return _with_features(read_sample(), None, source)
    path: Path | None
    if data == "-":
        path = None
    elif data is None or data in CATALOG:
        path = data_dir / (data or DEFAULT)
        if not path.is_dir():
            raise DataError(f"{path}: not downloaded yet; get it by: pmf download {data} --data-dir {data_dir}")
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
        note(
            f"{ratings.name}: left a cache beside it for the next time, {left.stat().st_size / 1e6:.0f} MB; pmf cache lists it"
        )
    if duplicates:
        by = "by time" if ratings.time is not None else "in the file"
        note(f"{ratings.name}: {duplicates:,} rating(s) of a pair that was rated again; the latest {by} counts")
    if skipped:
        note(f"{ratings.name}: {skipped:,} row(s) that are no ratings passed over")
    return _with_features(ratings, path, source)


def _with_features(ratings: "Ratings", path: Path | None, source: Source) -> "Ratings":
    if source.side is None and source.movie_features is None and source.user_features is None:
        return ratings
    from pmfcli.data.features import attach, read_side, read_table
    from pmfcli.data.reading import ratings_file

    tables: Any = {"movie": [], "user": []}
    if source.side is not None:
        if path is None:
            raise UsageError("--side: the ratings come from a pipe; give tables by --movie-features and --user-features")
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
            said = ", ".join(f"{block.name} ({len(block.columns)})" for block in blocks) or "nothing that two of them share"
            note(f"features of {count:,} {kind}s: {said}")
    return found


def say_if_dates_are_told(times: Iterable[str], test: "Ratings", from_a_file: bool) -> None:
    """What a test of models with effects of time is a test of."""
    told = sorted(set(times) - {"none"})
    if not told:
        return
    flags = " and ".join(f"--time {time}" for time in told)
    if test.time is None:
        note(f"{test.name} has no dates: a model by {flags} takes them for unknown")
        return
    without = "; to score it without, give a file of user, movie and rating alone" if from_a_file else ""
    note(f"the test's own dates are told to the model ({flags}), and so which ratings were given together{without}")


def load_model(path: Path) -> "Model":
    """The model that ``--model`` names; ``-`` reads standard input."""
    from pmfcli.artifact import load, loads
    from pmfcli.data.sample import NAME, NOTICE
    from pmfcli.memory import keep

    keep()
    model = loads(sys.stdin.buffer.read(), "standard input") if str(path) == "-" else load(path)
    if model.data.get("name") == NAME:
        note(f"A model of {NOTICE}.")
    return model


def check_is_not_data(flag: str, path: Path | None, data: str | None, data_dir: Path = Path("data")) -> None:
    """Refuse to write over the ratings, or what MovieLens has beside them.

    Args:
        data, data_dir: as in ``Source``.

    Raises:
        UsageError: the file to write is one of those, or of the folder of Parquet, that they are read from.
    """
    from pmfcli.data.sample import NAME

    source = data_dir / (data or DEFAULT) if data is None or data in CATALOG else Path(data)
    if path is None or data in ("-", NAME) or not path.is_file() or not source.exists():
        return
    from pmfcli.data.reading import BESIDE, ratings_file

    file = ratings_file(source)
    folder = file if file.is_dir() else file.parent
    if path.samefile(file) or (file.is_dir() and path.suffix == ".parquet" and path.resolve().parent.samefile(file)):
        raise UsageError(f"{flag} {path}: these are the ratings; give another file")
    if path.resolve().name in BESIDE and path.resolve().parent.samefile(folder):
        raise UsageError(f"{flag} {path}: it goes with the ratings; give another file")


def read_beside(source: Source, config: Path | None) -> dict[str, Path | None]:
    """The files that a run reads beside its ratings, by what names them."""
    from pmfcli.config import LOCAL_FILE

    tables = {"--movie-features": source.movie_features, "--user-features": source.user_features}
    return {"--config": config or (LOCAL_FILE if LOCAL_FILE.is_file() else None), **tables}


def check_apart(flag: str, path: Path, read: Mapping[str, Path | None]) -> None:
    """Refuse to write over what is read.

    Args:
        read: files, by what names them.

    Raises:
        UsageError: the file to write is one of them.
    """
    for name, other in read.items():
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise UsageError(f"{flag} {path}: is the file of {name}, too; give another file")


def check_folder(flag: str, path: Path) -> None:
    """Refuse, before the work, a file that could not be written after it.

    Raises:
        UsageError: it is a folder, or is in none, or in one where nothing may be written.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{flag} {path}: is a folder; give a file")
        check_replaceable(path)
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}; give a file in a folder that you may write") from None


def check_output(output: Path, as_json: bool) -> None:
    """Refuse, before the work, a model file that could not be written after it.

    Raises:
        UsageError: it is a folder or a terminal, takes the place of ``--json``, or is where nothing may be written.
    """
    if str(output) == "-":
        if as_json:
            raise UsageError("--output -: the model takes standard output; leave --json out")
        if sys.stdout.isatty():
            raise UsageError("--output -: a model is not text; send it to a file or a pipe")
        return
    check_folder("--output", output)


def check_is_model(output: Path) -> None:
    """Refuse to write a model over what is none. What is empty, or no file, is nothing to keep.

    Raises:
        UsageError: it is something else, such as a checkpoint, or cannot be read.
    """
    if not output.is_file() or not output.stat().st_size:
        return
    from pmfcli.artifact import begins_a_model

    begins = b""
    with contextlib.suppress(OSError), output.open("rb") as file:
        begins = file.read(_HEAD)
    if not begins_a_model(begins):
        raise UsageError(f"--output {output}: is there and is no model; give another file, or remove it")


def write_model(output: Path, content: bytes) -> None:
    """Write the bytes of a model file, whole or not at all; ``-`` is standard output.

    Raises:
        OutputError: it cannot be written.
    """
    if str(output) == "-":
        rest = memoryview(content)
        while rest:  # unbuffered, as by PYTHONUNBUFFERED, a write may be of a part
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    else:
        write_atomically(output, content)


def state_of(path: Path) -> tuple[int, int, int] | None:
    """What tells whether a file was written since; None where there is none, as of standard input."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def write_changed(
    found: "Updated | Forgotten",
    model: Path,
    was: tuple[int, int, int] | None,
    output: Path | None,
    schema: str,
    as_json: bool,
    changed: bool = True,
) -> None:
    """Write what became of a model, to ``output`` or in its own place, and say so; as JSON, say what changed.

    Args:
        was: its ``state_of`` when it was read.
        changed: one that did not is not written in its own place.

    Raises:
        OutputError: it would be written in its own place, where another command has written meanwhile.
    """
    from pmfcli.artifact import dumps

    path = output or model
    if changed or output is not None:
        content = dumps(found.model)
        to_stdout = str(path) == "-"
        in_place = not to_stdout and (path == model or (path.exists() and model.exists() and path.samefile(model)))
        if in_place and state_of(path) != was:
            raise OutputError(f"{path}: another command has written it meanwhile; nothing was written; give this one again")
        write_model(path, content)
        note(
            f"wrote {'to standard output' if to_stdout else path} ({file_size(len(content))})"
            + (", in place of the old model" if in_place else "")
        )
    if as_json:
        counts = {name: value for name, value in found._asdict().items() if name != "model"}
        counts |= {name: found.model.data[name] for name in ("ratings", "users", "movies")}
        document({"model": str(path), "method": found.model.method, **counts}, schema)


def say_if_off_the_scale(models: "Iterable[Model]", ratings: "Ratings") -> None:
    """Test ratings that a model cannot give are often those of another data set."""
    for lo, hi in dict.fromkeys(model.scale for model in models):
        outside = int(((ratings.stars < lo) | (ratings.stars > hi)).sum())
        if outside:
            of = f"{outside:,} of {ratings.n:,} test ratings"
            note(f"warning: {of} are outside the scale of the model, {lo:g} to {hi:g}; is it the right file?")


def read_visitor(source: str, model: "Model") -> "Visitor":
    """The ratings of somebody who is not in the data, as far as the model knows their movies; says what it does not.

    Raises:
        DataError: no ratings, of several users, or outside the model's scale.
        UnknownIdError: the model knows none of the movies.
    """
    from pmfcli.answers import Visitor
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
            raise DataError(f"{place}: '{short(text)}' is not a rating")
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
        note(f"{len(unknown)} rating(s) of movies that the model does not know passed over: {some}")
    if again:
        note(f"{again} rating(s) of a movie that was rated again; the last counts")
    if not found:
        raise DataError(f"--ratings {source}: no ratings; give a movie id and a rating on each line")
    return Visitor(tuple(sorted(found)), tuple(found[row] for row in sorted(found)))


def by_hand(context: typer.Context, name: str) -> bool:
    """Whether a flag was given on the command line, not by the environment or by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
