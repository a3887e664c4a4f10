"""pmf recommend: what a user should watch next."""

from pathlib import Path
from typing import Annotated

import typer

from pmfcli.cli.common import load_model
from pmfcli.cli.options import AsJson, ByRow, Count, ModelFile, OutputFormat
from pmfcli.console import Shape, emit, note, pick_format

EXAMPLE = "pmf recommend --user 4 -n 5"
_COLUMNS = ("rank", "movie", "title", "prediction", "sd", "lo", "hi", "source")


def recommend(
    user: Annotated[str, typer.Option("--user", "-u", help="A user id.")],
    n: Count = 10,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="A movie to leave out; may be repeated.")] = None,
    candidates: Annotated[
        list[str] | None, typer.Option("--candidates", help="A movie to choose from; may be repeated; all without.")
    ] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also movies that the user has rated.")] = False,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the unseen movies with the highest predicted rating for a user."""
    found = load_model(model)
    from pmfcli.answers import find_movie, find_user
    from pmfcli.answers import recommend as best

    row = find_user(found, user, by_row)
    chosen = [find_movie(found, name, flag="--candidates") for name in candidates or []]
    left_out = [find_movie(found, name, flag="--exclude") for name in exclude or []]
    rows = best(found, row, n, chosen, left_out, include_seen)
    if not rows:
        note("nothing is left to recommend; --include-seen adds what the user has rated")
    emit(rows, Shape("recommend", _COLUMNS, f"For user {found.users.ids[row]}"), pick_format(output, as_json))
