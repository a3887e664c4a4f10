"""pmf update: add new ratings to a saved model, without the old ones and without training it again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pmfcli.cli.inputs import load_model, read_data
from pmfcli.cli.options import AsJson, Source, with_columns
from pmfcli.cli.outputs import check_is_model, check_is_not_data, check_output, state_of, write_changed
from pmfcli.console import note, progress
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.updating import Updated

EXAMPLE = "pmf update pmf.pt new.csv"


@with_columns
def update(
    model: Annotated[Path, typer.Argument(metavar="MODEL.pt", help="A model file; '-' for standard input.")],
    ratings: Annotated[str, typer.Argument(metavar="FILE", help="New ratings; '-' for standard input.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model file to write; without it, MODEL.pt is replaced.")
    ] = None,
    as_json: AsJson = False,
    *,
    columns: dict[str, Any],
) -> None:
    """Add new ratings to a model without training it again: only users and movies with new ratings are recomputed."""
    if str(model) == "-" and (ratings == "-" or output is None):
        raise UsageError("a model from standard input: give --output, and the ratings as a file")
    check_is_not_data("--output", output, ratings)
    check_output(output or model, as_json)
    if output is not None:
        check_is_model(output)
    was = state_of(model)
    old = load_model(model)
    new = read_data(Source(ratings, **columns))
    from pmfcli.updating import update as take_in

    with progress("update"):
        found = take_in(old, new)
    _say(found, new.name)
    write_changed(found, model, was, output, "update", as_json, changed=found.model is not old)


def _say(found: "Updated", name: str) -> None:
    f, data = found, found.model.data
    again = f"{f.changed:,} replacing another, {f.repeated:,} that the model already has"
    note(f"{name}: {f.new:,} new rating(s), {again}; {f.new_users:,} new user(s), {f.new_movies:,} new movie(s)")
    if not f.recomputed_users:
        note("nothing is new: the model is unchanged")
        return
    drawn = found.model.method == "bayes"
    movies = f"{f.recomputed_movies:,} {'new movie(s)' if drawn else 'movie(s)'}"
    note(f"computed{' on every draw' if drawn else ''}: {f.recomputed_users:,} user(s), {movies}")
    note(
        f"left as trained: {data['users'] - f.recomputed_users:,} user(s), {data['movies'] - f.recomputed_movies:,} movie(s)"
        + (f", {f.rated_movies_left:,} of them with new ratings" if drawn else "")
        + ", and all shared parameters"
    )
