"""pmf blend: several saved models as one, weighted by how well they predict ratings that none of them has seen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pmfcli.cli.inputs import load_model, read_data, say_if_dates_are_told
from pmfcli.cli.options import AsJson, OutputFormat, Source, by_hand, with_columns
from pmfcli.cli.outputs import check_apart, check_folder, check_is_model, check_is_not_data
from pmfcli.console import Row, Shape, emit, note, pick_format
from pmfcli.errors import UsageError
from pmfcli.files import write_atomically
from pmfcli.text import file_size

if TYPE_CHECKING:
    from pmfcli.blending import Blended

EXAMPLE = "pmf blend pmf.pt bayes.pt --holdout held-out.csv -o blend.pt"
_COLUMNS = ("part", "method", "weight", "rmse", "mae", "nll", "crps")


@with_columns
def blend(
    context: typer.Context,
    models: Annotated[list[Path], typer.Argument(metavar="A.pt B.pt …", help="Models that were trained on the same ratings.")],
    holdout: Annotated[
        str | None,
        typer.Option("--holdout", help="Ratings that none of them was trained on, to learn weights from; '-' for a pipe."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Instead of --holdout: take the weights of this blend of the same kinds of models."),
    ] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours/--no-neighbours", help="Also blend in an item-neighbourhood model of the ratings.")
    ] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")] = Path("blend.pt"),
    output_format: OutputFormat = None,
    as_json: AsJson = False,
    *,
    columns: dict[str, Any],
) -> None:
    """Blend saved models into one that is used like any other: a weighted average of their predictive distributions."""
    if (holdout is None) == (weights is None):
        raise UsageError("give one of: --holdout FILE, --weights BLEND.pt")
    if [*map(str, models), holdout, str(weights)].count("-") > 1:
        raise UsageError("only one of the models and --holdout can come from standard input")
    if weights is not None and by_hand(context, "neighbours"):
        raise UsageError(f"--{'' if neighbours else 'no-'}neighbours: with --weights, that blend decides this; leave it out")
    unread = [name for name in columns if weights is not None and by_hand(context, name)]
    if unread:
        raise UsageError(f"--{unread[0].replace('_', '-')}: with --weights, no ratings are read; leave it out")
    chosen = pick_format(output_format, as_json)
    if str(output) == "-":
        raise UsageError("--output -: the weights go to standard output; give a file")
    check_is_not_data("--output", output, holdout or "-")
    check_apart("--output", output, {"--weights": weights, **{f"the model {model}": model for model in models}})
    check_folder("--output", output)
    check_is_model(output)
    found = [load_model(model) for model in models]
    from pmfcli.artifact import dumps
    from pmfcli.blending import blend as pool
    from pmfcli.blending import blend_like

    names = [str(model) for model in models]
    if holdout is not None:
        ratings = read_data(Source(holdout, **columns))
        say_if_dates_are_told([str(model.settings["time"]) for model in found], ratings, True)
        blended = pool(found, names, ratings, neighbours)
    else:
        assert weights is not None
        blended = blend_like(found, names, load_model(weights))
    content = dumps(blended.model)
    write_atomically(output, content)
    emit(_rows(blended), Shape("blend", _COLUMNS, decimals=4, ids=2), chosen)
    if blended.unknown:
        note(f"{blended.unknown:,} of {blended.held_out:,} held-out ratings have a user or movie that is not in training")
    if blended.unknown == blended.held_out > 0:
        note("warning: no held-out rating has both its user and its movie in training; are the ids the same?")
    if blended.off_grid:
        note(f"warning: {blended.off_grid:,} of {blended.held_out:,} held-out ratings have a value that is not in training")
    if blended.passed_over:
        note(f"skipped {blended.passed_over:,} held-out ratings that a model was trained on")
    if blended.scores:
        best = min(blended.parts, key=lambda part: float(part.scores["crps"]))
        if best.scores["crps"] < blended.scores["crps"]:
            note(f"{best.name} alone has a lower CRPS on these ratings: blend fewer parts, or hold out more")
    note(f"wrote {output} ({file_size(len(content))})")


def _rows(blended: "Blended") -> list[Row]:
    rows = [{"part": part.name, "method": part.model.method, "weight": part.weight, **part.scores} for part in blended.parts]
    rows.append({"part": "all", "method": "blend", "weight": 1.0, **blended.scores})
    return [{name: row.get(name) for name in _COLUMNS} for row in rows]
