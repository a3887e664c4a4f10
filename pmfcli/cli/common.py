"""What several commands do the same way: find the data, load the model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pmfcli.cli.options import Source
from pmfcli.console import note
from pmfcli.data.catalog import CATALOG, DEFAULT
from pmfcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from pmfcli.artifact import Model
    from pmfcli.data.ratings import Ratings


def read_data(source: Source) -> "Ratings":
    """The ratings that the flags name, with notes on stderr of what was passed over.

    Raises:
        DataError: they cannot be read.
        UsageError: columns are named for the sample, which is no file.
    """
    data, data_dir, *columns, skip_bad = source
    from pmfcli.data.fields import Columns
    from pmfcli.data.readers import read_ratings
    from pmfcli.data.sample import NAME, NOTICE, read_sample

    by_default = data is None and not (data_dir / DEFAULT).is_dir()
    if data == NAME or by_default:
        if any(columns):
            raise UsageError("--user-col and its kin name columns of a file; name the file by --data")
        note(f"Using {NOTICE}." + (f" For MovieLens: pmf download {DEFAULT}" if by_default else ""))
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
    ratings, duplicates, skipped = read_ratings(path, Columns(*columns), skip_bad)
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


def by_hand(context: typer.Context, name: str) -> bool:
    """Whether a flag was given on the command line, not by the environment or by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
