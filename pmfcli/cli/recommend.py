"""pmf recommend: what a user should watch next."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pmfcli.cli.common import load_model, read_visitor
from pmfcli.cli.options import AsJson, ByRow, Count, Interval, ModelFile, OutputFormat, VisitorRatings
from pmfcli.console import Shape, emit, note, pick_format
from pmfcli.errors import UsageError

EXAMPLE = "pmf recommend --user 4 -n 5"
_COLUMNS = ("rank", "movie", "title", "prediction", "sd", "lo", "hi", "source")


def recommend(
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user id.")] = None,
    ratings: VisitorRatings = None,
    n: Count = 10,
    rank_by: Annotated[
        Literal["mean", "lower", "upper"],
        typer.Option("--rank-by", help="The predicted rating, or an end of its interval: lower is the safe choice."),
    ] = "mean",
    interval: Interval = 0.9,
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
    """List the unseen movies with the highest predicted rating, for a user or for somebody with a few ratings."""
    if (user is None) == (ratings is None):
        raise UsageError("give either --user ID, or --ratings FILE ('-' for standard input)")
    if ratings is not None and by_row:
        raise UsageError("--row goes with --user; a file of ratings names movies by id")
    if ratings == "-" and str(model) == "-":
        raise UsageError("the ratings and --model cannot both come from standard input")
    found = load_model(model)
    from pmfcli.answers import Detail, find_movie, find_user
    from pmfcli.answers import recommend as best

    who = read_visitor(ratings, found) if ratings is not None else find_user(found, user or "", by_row)
    chosen = [find_movie(found, name, flag="--candidates") for name in candidates or []]
    left_out = [find_movie(found, name, flag="--exclude") for name in exclude or []]
    rows = best(found, who, n, chosen, left_out, include_seen, rank_by, Detail(interval, stars=False))
    if not rows:
        note("nothing is left to recommend; --include-seen adds what the user has rated")
    heading = f"For user {found.users.ids[who]}" if isinstance(who, int) else f"For these {len(who.movies)} ratings"
    emit(rows, Shape("recommend", _COLUMNS, heading), pick_format(output, as_json))
