"""pmf download: get a data set."""

from pathlib import Path
from typing import Annotated

import typer

from pmfcli.cli.options import AsJson, DataDir, OutputFormat
from pmfcli.console import Shape, emit, note, pick_format, progress
from pmfcli.data.catalog import CATALOG, DEFAULT, look_up
from pmfcli.errors import UsageError

EXAMPLE = "pmf download ml-1m"


def download(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Data sets; {DEFAULT} if none is named.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the available data sets.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="Take the data set from this archive: a file or a URL.")] = None,
    data_dir: DataDir = Path("data"),
    force: Annotated[bool, typer.Option("--force", help="Replace a data set that is already there.")] = False,
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Download MovieLens data sets, checked and unpacked, into a folder."""
    if show:
        columns = ("name", "ratings", "here", "licence")
        rows = ({**data._asdict(), "here": "yes" if (data_dir / name).is_dir() else "no"} for name, data in CATALOG.items())
        emit(rows, Shape("download", columns), pick_format(output, as_json))
        return
    from pmfcli.data.download import fetch

    wanted = [look_up(name) for name in names or [DEFAULT]]
    if source is not None and len(wanted) > 1:
        raise UsageError("--from gives one archive; name one data set")
    done = []
    for data in wanted:
        with progress(data.name) as bar:
            found = fetch(data, data_dir, source, force, bar)
        if found.was_there:
            note(f"{found.folder} is already there; --force replaces it")
        else:
            note(f"{found.folder}: {data.ratings:,} ratings, {found.checked}. Licence: {data.licence}. See its README.")
        done.append({"name": data.name, "folder": str(found.folder), "new": not found.was_there})
    emit(done, Shape("download", ("name", "folder", "new")), pick_format(output, as_json))
