"""pmf forget: remove people from a saved model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pmfcli.cli.inputs import load_model
from pmfcli.cli.options import AsJson, ModelFile
from pmfcli.cli.outputs import check_is_model, check_output, state_of, write_changed
from pmfcli.console import note
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.updating import Forgotten

EXAMPLE = "pmf forget --user 4"


def forget(
    user: Annotated[list[str], typer.Option("--user", "-u", help="A user id; may be repeated.")],
    model: ModelFile = Path("pmf.pt"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model file to write; without it, the model is replaced.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove users from a model: their ids, ratings and rows, and the movies that nobody else rated."""
    if str(model) == "-" and output is None:
        raise UsageError("a model from standard input: give --output")
    check_output(output or model, as_json)
    if output is not None:
        check_is_model(output)
    was = state_of(model)
    old = load_model(model)
    from pmfcli.answers import find_user
    from pmfcli.updating import forget as without

    found = without(old, [find_user(old, name) for name in user])
    _say(found)
    write_changed(found, model, was, output, "forget", as_json)


def _say(found: "Forgotten") -> None:
    f = found
    movies = f"{f.forgotten_movies:,} movie(s) that nobody else rated"
    note(f"forgot {f.forgotten_users:,} user(s) with {f.forgotten_ratings:,} rating(s), and {movies}")
    if f.recomputed_movies:
        note(f"recomputed without them: {f.recomputed_movies:,} movie(s) that they rated")
    kept = "the rows of other people and movies, and all shared parameters"
    if f.rated_movies_left:  # by draws or a neighbourhood
        kept = f"what is known of {f.rated_movies_left:,} movie(s) that they rated, and {kept}"
    note(f"still as learned with them, until the model is trained again: {kept}")
