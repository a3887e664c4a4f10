"""pmf similar: movies like a movie, users like a user."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pmfcli.cli.inputs import load_model
from pmfcli.cli.options import AsJson, ByRow, Count, ModelFile, OutputFormat
from pmfcli.console import Shape, emit, note, pick_format
from pmfcli.errors import UsageError

EXAMPLE = "pmf similar --movie 1"


def similar(
    movie: Annotated[str | None, typer.Option("--movie", "-i", help="A movie id or title.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user id.")] = None,
    n: Count = 10,
    metric: Annotated[
        Literal["cosine", "dot", "euclidean"], typer.Option("--metric", help="How to compare factors.")
    ] = "cosine",
    min_ratings: Annotated[
        int | None,
        typer.Option(
            "--min-ratings", min=0, help="Leave out those with fewer ratings.", show_default="10, fewer on small data"
        ),
    ] = None,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the movies most similar to a movie, or the users most similar to a user, by their factors."""
    if (movie is None) == (user is None):
        raise UsageError("give either --movie or --user")
    found = load_model(model)
    from pmfcli.answers import find_movie, find_user
    from pmfcli.answers import similar as nearest

    if movie is not None:
        row = find_movie(found, movie, by_row)
        rows = nearest(found, "movie", row, n, metric, min_ratings)
        heading = f"Like {found.titles[row] or found.movies.ids[row]}"
        shape = Shape("similar", ("rank", "movie", "title", "similarity", "ratings", "sd"), heading)
    else:
        row = find_user(found, user or "", by_row)
        rows = nearest(found, "user", row, n, metric, min_ratings)
        shape = Shape("similar", ("rank", "user", "similarity", "ratings", "sd"), f"Like user {found.users.ids[row]}")
    if len(rows) < n:
        which = "there are" if min_ratings is None else f"with at least {min_ratings} ratings there are"
        note(f"{which} {len(rows) or 'no'} others")
    emit(rows, shape, pick_format(output, as_json))
