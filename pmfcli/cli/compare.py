"""pmf compare: which of several saved models predicts better, and whether that is more than chance."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pmfcli.cli.inputs import load_model, read_data, say_if_dates_are_told, say_if_off_the_scale
from pmfcli.cli.options import AsJson, OutputFormat, Source, with_columns
from pmfcli.console import Shape, emit, note, pick_format
from pmfcli.errors import UsageError

EXAMPLE = "pmf compare pmf.pt bayes.pt --test held-out.csv"
_COLUMNS = ("model", "group", "score", "n", "first", "value", "difference", "lo", "hi")


@with_columns
def compare(
    models: Annotated[list[Path], typer.Argument(metavar="A.pt B.pt …", help="Model files; each is compared to the first.")],
    test: Annotated[str, typer.Option("--test", help="Ratings that none of them was trained on; '-' for a pipe.")],
    by: Annotated[
        Literal["user", "movie"] | None,
        typer.Option("--by", help="Also group by how many training ratings the user or movie had."),
    ] = None,
    output: OutputFormat = None,
    as_json: AsJson = False,
    *,
    columns: dict[str, Any],
) -> None:
    """Compare saved models on the same test ratings: how each score differs from the first model's, with a 95 % interval."""
    if len(models) < 2:
        raise UsageError("give two model files or more: each is compared to the first")
    if [*map(str, models), test].count("-") > 1:
        raise UsageError("only one of the models and --test can come from standard input")
    chosen = pick_format(output, as_json)
    found = [load_model(model) for model in models]
    ratings = read_data(Source(test, **columns))
    say_if_dates_are_told([str(model.settings["time"]) for model in found], ratings, True)
    say_if_off_the_scale(found, ratings)
    from pmfcli.evaluation import score_model
    from pmfcli.reports import compare as paired
    from pmfcli.reports import groups

    scored = [score_model(model, ratings) for model in found]
    for path, one in zip(models, scored, strict=True):
        if bool(one.trained_on.any()):
            note(f"warning: {path}: {int(one.trained_on.sum()):,} of {ratings.n:,} test pairs were in its training data")
        if not bool(((one.user_count > 0) & (one.movie_count > 0)).any()):
            note(f"warning: {path}: no test rating has both its user and its movie in training; is it the right file?")
    if bool(scored[0].off_grid.any()):
        note(f"warning: {int(scored[0].off_grid.sum()):,} of {ratings.n:,} test ratings have a value that is not in training")
    same_steps = len({model.steps for model in found}) == 1
    if not same_steps:
        note("warning: the rating scales of the models have different steps: NLL and CRPS cannot be compared and are left out")
    parts = [("all", scored[0].user_count >= 0)]
    if by is not None:
        parts += [(f"{by}s with {name} ratings", one) for name, one in groups(getattr(scored[0], f"{by}_count"))]
    rows = []
    for path, other in zip(models[1:], scored[1:], strict=True):
        for group, inside in parts:
            found_here = paired(scored[0].select(inside), other.select(inside))
            place = {"model": str(path), "group": group, "n": int(inside.sum())}
            rows += [place | row for row in found_here if same_steps or row["score"] in ("rmse", "mae")]
        whole = {str(row["score"]): row for row in rows if (row["model"], row["group"]) == (str(path), "all")}
        note(_sentence(str(models[0]), str(path), whole))
    emit(rows, Shape("compare", _COLUMNS, f"Compared to {models[0]}", decimals=4, ids=3), chosen)


def _sentence(first: str, other: str, by_score: dict[str, dict[str, Any]]) -> str:
    said = []
    for score, name in (("rmse", "RMSE"), ("nll", "NLL")):
        if score not in by_score:
            continue
        lo, hi = by_score[score]["lo"], by_score[score]["hi"]
        if lo is None or hi is None:
            return f"{other} compared to {first}: too few users to tell them apart"
        if lo <= 0 <= hi:
            said.append(f"no clear difference in {name} ({lo:+.4f} to {hi:+.4f})")
        else:
            low, high = sorted((abs(lo), abs(hi)))
            said.append(f"{other if hi < 0 else first} has the better {name}, by {low:.4f} to {high:.4f}")
    return f"{other} compared to {first}: {'; '.join(said)}"
