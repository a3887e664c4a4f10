"""pmf recommend: what a user should watch next."""

from pathlib import Path
from typing import Annotated

import typer

from pmfcli.cli.common import find_movie, find_user, load_model, movie_fields, stars
from pmfcli.cli.options import AsJson, ByRow, Count, ModelFile, OutputFormat
from pmfcli.console import Shape, emit, note, pick_format

EXAMPLE = "pmf recommend --user 4 -n 5"
_COLUMNS = ("rank", "movie", "title", "prediction", "sd", "lo", "hi", "source")


def recommend(
    user: Annotated[str, typer.Option("--user", "-u", help="A user id.")],
    n: Count = 10,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="A movie to leave out; may be repeated.")] = None,
    candidates: Annotated[
        list[str] | None, typer.Option("--candidates", help="Choose only among these; may be repeated.")
    ] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also movies that the user has rated.")] = False,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the unseen movies with the highest predicted rating for a user."""
    found = load_model(model)
    row = find_user(found, user, by_row)
    chosen = [find_movie(found, name, by_row) for name in candidates or []]
    left_out = [find_movie(found, name, by_row) for name in exclude or []]
    import torch

    from pmfcli.core.predict import recommend as best

    allowed = torch.full((len(found.movies),), not chosen)
    allowed[chosen] = True
    allowed[left_out] = False
    if not include_seen:
        allowed[found.seen.of(row)[0]] = False
    movies, unit = best(found.factors, row, allowed, n)
    answers = enumerate(zip(movies.tolist(), stars(found, unit), strict=True), 1)
    rows = [{"rank": i, **movie_fields(found, m), "prediction": mean, "source": "model"} for i, (m, mean) in answers]
    if not rows:
        note("nothing is left to recommend; --include-seen adds what the user has rated")
    heading = f"For user {found.users.ids[row]}"
    emit(rows, Shape("recommend", _COLUMNS, heading), pick_format(output, as_json))
