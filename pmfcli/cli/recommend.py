"""pmf recommend: what a user should watch next."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pmfcli import tables
from pmfcli.cli.inputs import load_model, read_visitor
from pmfcli.cli.options import AsJson, ByRow, Count, Interval, ModelFile, OutputFormat, VisitorRatings
from pmfcli.cli.outputs import check_apart, check_folder
from pmfcli.console import Format, Progress, Shape, emit, note, pick_format, progress
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.answers import Recommended

EXAMPLE = "pmf recommend --user 4 -n 5"
_COLUMNS = ("rank", "movie", "title", "prediction", "sd", "lo", "hi", "source")


def recommend(
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user id.")] = None,
    ratings: VisitorRatings = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Recommend to every user of the model.")] = False,
    n: Count = 10,
    rank_by: Annotated[
        Literal["mean", "lower", "upper"],
        typer.Option("--rank-by", help="Rank by predicted rating, or by an end of its interval: lower is the safe choice."),
    ] = "mean",
    interval: Interval = 0.9,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="A movie to leave out; may be repeated.")] = None,
    candidates: Annotated[
        list[str] | None, typer.Option("--candidates", help="A movie to choose from; may be repeated. Default: all.")
    ] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also list movies that the user has rated.")] = False,
    by_row: ByRow = False,
    model: ModelFile = Path("pmf.pt"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --all-users: a .parquet, .csv, .tsv or .jsonl file to write.")
    ] = None,
    output_format: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the unseen movies with the highest predicted ratings, for one user, all users, or someone new with a few ratings."""
    if [user is not None, ratings is not None, all_users].count(True) != 1:
        raise UsageError("give one of: --user ID, --ratings FILE ('-' for standard input), --all-users")
    if user is None and by_row:
        raise UsageError("--row goes with --user")
    if ratings == "-" and str(model) == "-":
        raise UsageError("the ratings and --model cannot both come from standard input")
    if str(output) == "-":
        output = None  # where it goes without
    if output is not None and not all_users:
        raise UsageError("--output goes with --all-users; the answer for one goes to standard output")
    if output is not None:
        check_apart("--output", output, {"--model": model})
    chosen = _format_of_all(output, output_format, as_json) if all_users else pick_format(output_format, as_json)
    found = load_model(model)
    from pmfcli.answers import Choice, Detail, find_movie, find_user, recommend_all
    from pmfcli.answers import recommend as best

    among = [find_movie(found, name, flag="--candidates") for name in candidates or []]
    left_out = [find_movie(found, name, flag="--exclude") for name in exclude or []]
    how = Choice(n, among, left_out, include_seen, rank_by), Detail(interval, stars=False)
    if all_users:
        _write(recommend_all(found, range(len(found.users)), *how), len(found.users), output, chosen)
        return
    who = read_visitor(ratings, found) if ratings is not None else find_user(found, user or "", by_row)
    rows = best(found, who, *how)
    if not rows:
        more = "" if include_seen or candidates or exclude else "; --include-seen also lists what the user has rated"
        note(f"nothing is left to recommend{more}")
    if isinstance(who, int):
        heading = f"For user {found.users.ids[who]}"
    else:
        heading = "For this rating" if len(who.movies) == 1 else f"For these {len(who.movies)} ratings"
    emit(rows, Shape("recommend", _COLUMNS, heading), chosen)


def _format_of_all(output: Path | None, asked: Format | None, as_json: bool) -> Format:
    if output is not None:
        tables.check(output)
        check_folder("--output", output)
        if asked or as_json:
            raise UsageError(f"--output {output}: its extension sets the format; leave --format and --json out")
    elif as_json or asked in ("json", "table"):
        said = "--json" if as_json else f"--format {asked}"
        raise UsageError(
            f"{said}: --all-users writes rows as they come; give --format tsv, csv or jsonl, or a file with --output"
        )
    return asked or "tsv"


def _write(parts: "Iterator[Recommended]", users: int, output: Path | None, chosen: Format) -> None:
    columns, said = ("user", *_COLUMNS), list[str]()
    with progress("recommend", shown=output is not None or not sys.stdout.isatty()) as bar:
        counted = _counted(parts, users, bar, said)
        if output is None:
            emit((row for part in counted for row in part.rows()), Shape("recommend", columns), chosen)
        else:
            tables.write(output, counted, columns)
    for line in said:  # not before the file is whole, for nobody may be there to read it
        note(line)
    if output is not None:
        note(f"wrote {output}")


def _counted(parts: "Iterator[Recommended]", users: int, bar: Progress, said: list[str]) -> "Iterator[Recommended]":
    """The same parts; shows how many users are done, and in the end has to say how many there were, and how fast."""
    began, done, rows, served = time.perf_counter(), 0, 0, 0
    for part in parts:
        yield part
        rank = part.columns["rank"]
        done, rows, served = done + part.users, rows + len(rank), served + int((rank == 1).sum())
        seconds = time.perf_counter() - began
        bar.show(done, users, f"{done / seconds:,.0f} users a second")
    said.append(f"{rows:,} recommendations for {served:,} users: {seconds:.1f} s, {users / seconds:,.0f} users a second")
    if served < users:
        said.append(f"nothing is left to recommend to {users - served:,} users; --include-seen adds what they have rated")
