"""pmf similar: movies like a movie, users like a user."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pmfcli.cli.common import find_movie, find_user, load_model, movie_fields
from pmfcli.cli.options import AsJson, ByRow, Count, ModelFile, OutputFormat
from pmfcli.console import Shape, emit, note, number, pick_format
from pmfcli.errors import UsageError

EXAMPLE = "pmf similar --movie 1"


def similar(
    movie: Annotated[str | None, typer.Option("--movie", "-i", help="A movie id or title.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user id.")] = None,
    n: Count = 10,
    metric: Annotated[
        Literal["cosine", "dot", "euclidean"], typer.Option("--metric", help="How to compare factors.")
    ] = "cosine",
    min_ratings: Annotated[int, typer.Option("--min-ratings", min=0, help="Leave out those with fewer ratings.")] = 10,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the movies most similar to a movie, or the users most similar to a user, by their factors."""
    if (movie is None) == (user is None):
        raise UsageError("give either --movie or --user")
    found = load_model(model)
    from pmfcli.core.neighbours import similar as nearest

    if movie is not None:
        row = find_movie(found, movie, by_row)
        vectors, counts = found.factors.V, found.seen.movie_counts(len(found.movies))
        shape = Shape(
            "similar", ("rank", "movie", "title", "similarity", "ratings"), f"Like {found.titles[row] or found.movies.ids[row]}"
        )
    else:
        row = find_user(found, user or "", by_row)
        vectors, counts = found.factors.U, found.seen.start.diff()
        shape = Shape("similar", ("rank", "user", "similarity", "ratings"), f"Like user {found.users.ids[row]}")
    rows, similarity = nearest(vectors, row, counts >= min_ratings, n, metric)
    answers = [
        {
            "rank": rank,
            **(movie_fields(found, other) if movie is not None else {"user": found.users.ids[other]}),
            "similarity": number(value),
            "ratings": int(counts[other]),
        }
        for rank, (other, value) in enumerate(zip(rows.tolist(), similarity.tolist(), strict=True), 1)
    ]
    if len(answers) < n:
        note(f"{len(answers)} have at least {min_ratings} ratings; --min-ratings changes that")
    emit(answers, shape, pick_format(output, as_json))
