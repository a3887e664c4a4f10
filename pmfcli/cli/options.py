"""Flags that mean the same in every command, and the flags of the settings, made from the settings themselves."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pmfcli.config import flags
from pmfcli.console import Format

DataDir = Annotated[Path, typer.Option("--data-dir", envvar="PMF_DATA_DIR", help="Folder of downloaded data sets.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="PMF_DATA",
        help="A data set's name, 'sample', a file, a folder, or '-' for standard input. "
        "Without it: ml-latest-small if it was downloaded, else the sample.",
    ),
]
UserColumn = Annotated[str | None, typer.Option("--user-col", help="Name of the column of user ids.")]
MovieColumn = Annotated[str | None, typer.Option("--movie-col", help="Name of the column of movie ids.")]
RatingColumn = Annotated[str | None, typer.Option("--rating-col", help="Name of the column of ratings.")]
TimeColumn = Annotated[str | None, typer.Option("--time-col", help="Name of the column of times.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Pass over rows that cannot be read, and count them.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings; ./pmf.toml is taken if it is there.")]
ModelFile = Annotated[Path, typer.Option("--model", "-m", envvar="PMF_MODEL", help="A model file; '-' for standard input.")]
OutputFormat = Annotated[Format | None, typer.Option("--format", help="Without it: a table on a terminal, TSV in a pipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Count = Annotated[int, typer.Option("-n", min=1, help="How many to list.")]
ByRow = Annotated[bool, typer.Option("--row", help="Read --user and --movie as zero-based rows instead of ids.")]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every setting; those that were given arrive in its argument ``given``."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
    made = {flag.name: _parameter(*flag) for flag in flags()}

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        given = {name: value for name in made if (value := values.pop(name)) is not None}
        command(**values, given=given)

    parameters = [*own, *made.values()]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapped.__wrapped__
    return wrapped


def _parameter(name: str, kind: Any, default: Any, text: str, panel: str, short: str | None) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag, *([short] if short else [])]
    shown = default if default is not None else "all"
    shown = flag if shown is True else shown
    option = typer.Option(*names, help=text, rich_help_panel=panel, show_default=str(shown))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
