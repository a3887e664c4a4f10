"""Flags that mean the same in every command, and the flags of the settings, made from the settings themselves."""

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pmfcli.config import flags
from pmfcli.console import Format
from pmfcli.errors import UsageError

_DATA = "The data"

DataDir = Annotated[Path, typer.Option("--data-dir", envvar="PMF_DATA_DIR", help="Folder of downloaded data sets.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings. Default: ./pmf.toml, if it exists.")]
ModelFile = Annotated[
    Path, typer.Option("--model", "-m", envvar="PMF_MODEL", readable=False, help="A model file; '-' for standard input.")
]
OutputFormat = Annotated[Format | None, typer.Option("--format", help="Default: a table on a terminal, TSV in a pipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Interval = Annotated[
    float,
    typer.Option(
        "--interval",
        help="Probability that a rating lies between lo and hi. Where ratings are steps of a scale, these enclose the "
        "likeliest steps, and the prediction may lie outside.",
    ),
]
VisitorRatings = Annotated[
    str | None,
    typer.Option(
        "--ratings", metavar="FILE|-", help="Ratings of someone who is not in the data: a movie id and a rating on each line."
    ),
]
Count = Annotated[int, typer.Option("-n", min=1, help="How many to list.")]
ByRow = Annotated[bool, typer.Option("--row", help="Read --user and --movie as zero-based rows instead of ids.")]


def _column(role: str) -> Any:
    return typer.Option(f"--{role}-col", help=f"Name of the {role} column, if it is not a usual one.", rich_help_panel=_DATA)


UserCol = Annotated[str | None, _column("user")]
MovieCol = Annotated[str | None, _column("movie")]
RatingCol = Annotated[str | None, _column("rating")]
TimeCol = Annotated[str | None, _column("time")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip rows that cannot be read, and say how many.", rich_help_panel=_DATA)
]


class Source(NamedTuple):
    """Where ratings come from: the flags of every command that reads them."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            envvar="PMF_DATA",
            help="A data set's name, 'sample', a file, a folder, or '-' for standard input. "
            "Default: ml-latest-small if downloaded, else the sample.",
            rich_help_panel=_DATA,
        ),
    ] = None
    data_dir: DataDir = Path("data")
    user_col: UserCol = None
    movie_col: MovieCol = None
    rating_col: RatingCol = None
    time_col: TimeCol = None
    skip_bad: SkipBad = False
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Neither use nor leave a cache beside a large rating file.", rich_help_panel=_DATA),
    ] = False
    side: Annotated[
        str | None,
        typer.Option(
            "--side",
            metavar="NAME,…",
            help="What else to learn from, for MovieLens: genres, year, tags, user. With --method bayes.",
            rich_help_panel=_DATA,
        ),
    ] = None
    movie_features: Annotated[
        Path | None,
        typer.Option(
            "--movie-features",
            help="A table of movie features to learn from: a column of ids, and any others.",
            rich_help_panel=_DATA,
        ),
    ] = None
    user_features: Annotated[
        Path | None, typer.Option("--user-features", help="The same for users.", rich_help_panel=_DATA)
    ] = None


_OF_A_FILE = ("user_col", "movie_col", "rating_col", "time_col", "skip_bad")


def with_columns(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that say how to read a file of ratings that it names itself.

    They arrive in its argument ``columns``, a dict for ``Source``.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        columns = {name: values.pop(name) for name in _OF_A_FILE}
        command(**values, columns=columns)

    return _with_parameters(wrapped, [*_own(command), *_of_source(_OF_A_FILE)])


def with_data_and_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of Source and one for every setting.

    They arrive in its arguments ``source``, and ``given``, a dict of the settings that were given.
    """
    made = {flag.name: _parameter(*flag) for flag in flags()}

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        source = Source(**{name: values.pop(name) for name in Source._fields})
        given = {name: value for name in made if (value := values.pop(name)) is not None}
        _check_standard_input(source, values.get("config"))
        command(**values, source=source, given=given)

    return _with_parameters(wrapped, [*_own(command), *_of_source(Source._fields), *made.values()])


def _check_standard_input(source: Source, config: Path | None) -> None:
    for flag, path in (("--movie-features", source.movie_features), ("--user-features", source.user_features)):
        if str(path) == "-":
            raise UsageError(f"{flag} -: standard input is for ratings; give a file")
    if source.data == str(config) == "-":
        raise UsageError("--data and --config cannot both come from standard input")


def by_hand(context: typer.Context, name: str) -> bool:
    """Whether a flag was given on the command line, not in the environment or by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _own(command: Callable[..., None]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(command).parameters.values() if p.name not in ("source", "given", "columns")]


def _of_source(names: Iterable[str]) -> list[inspect.Parameter]:
    kind, defaults, annotations = inspect.Parameter.KEYWORD_ONLY, Source._field_defaults, Source.__annotations__
    return [inspect.Parameter(name, kind, default=defaults[name], annotation=annotations[name]) for name in names]


def _with_parameters(wrapped: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def _parameter(
    name: str, kind: Any, default: Any, text: str, panel: str, short: str | None, shown: str | None
) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag, *([short] if short else [])]
    shown = shown or (flag if default is True else str(default))
    option = typer.Option(*names, help=text, rich_help_panel=panel, show_default=shown)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
