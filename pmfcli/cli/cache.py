"""pmf cache: what is kept of files that were read, so that they load at once next time."""

from pathlib import Path
from typing import Annotated

import typer

from pmfcli.cli.options import AsJson, OutputFormat
from pmfcli.console import Row, Shape, emit, note, pick_format
from pmfcli.errors import UsageError

EXAMPLE = "pmf cache data --clear"


def cache(
    folder: Annotated[Path, typer.Argument(help="Folder to search, with its subfolders.")] = Path("."),
    clear: Annotated[bool, typer.Option("--clear", help="Remove the caches.")] = False,
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List or remove the caches that are left beside large rating files when they are read."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name one with data")
    chosen = pick_format(output, as_json)
    from pmfcli.data.cache import caches

    rows: list[Row] = []
    for found in caches(folder):
        rows.append({"source": str(found.source), "ratings": found.ratings, "megabytes": round(found.size / 1e6, 1)})
        if clear:
            found.file.unlink(missing_ok=True)
    emit(rows, Shape("cache", ("source", "ratings", "megabytes"), ids=1), chosen)
    if not rows:
        note(f"no caches in {folder}")
    elif clear:
        note(f"removed {len(rows)}")
