"""pmf evaluate: scores on ratings that the model has not seen."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from pmfcli.cli.inputs import load_model, read_data, say_if_dates_are_told, say_if_off_the_scale
from pmfcli.cli.options import AsJson, Config, ModelFile, OutputFormat, Source, by_hand, with_data_and_settings
from pmfcli.cli.outputs import check_apart, check_folder, check_is_not_data, read_beside
from pmfcli.cli.scored import COLUMNS, describe, rows
from pmfcli.config import Settings, resolve
from pmfcli.console import Shape, document, emit, note, pick_format, progress
from pmfcli.errors import GateError, UsageError
from pmfcli.files import write_atomically

if TYPE_CHECKING:
    from pmfcli.data.ratings import Array, Ratings
    from pmfcli.evaluation import Tested

EXAMPLE = "pmf evaluate --model pmf.pt --test held-out.csv"
_ADVICE = "; --split time holds out the latest"


class _Split(NamedTuple):
    """Which ratings are held out."""

    folds: int | None  # each in one of so many; if so, the rest says nothing
    way: str  # random, last or time
    fraction: float  # by random and time
    last_n: int  # of each user, by last


@with_data_and_settings
def evaluate(
    context: typer.Context,
    model: ModelFile = Path("pmf.pt"),
    test: Annotated[str | None, typer.Option("--test", help="Score the saved model on these ratings; '-' for a pipe.")] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, help="Cross-validate: train and score on this many folds.")
    ] = None,
    split: Annotated[
        Literal["random", "last", "time"] | None,
        typer.Option("--split", help="Train on a part, score on the rest: at random, each user's last, or the latest."),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", help="Fraction that random and time splits hold out.")
    ] = 0.1,
    last_n: Annotated[int, typer.Option("--last-n", min=1, help="Ratings of each user that a last split holds out.")] = 1,
    max_rmse: Annotated[float | None, typer.Option("--max-rmse", help="Exit with 7 if the RMSE is above this.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Plot how well calibrated it is, to a .png, .svg or .html file.")
    ] = None,
    ranking: Annotated[
        int | None,
        typer.Option(
            "--ranking", metavar="K", min=1, help="Also rank each user's unseen movies: NDCG and recall of the top K."
        ),
    ] = None,
    config: Config = None,
    output: OutputFormat = None,
    as_json: AsJson = False,
    *,
    source: Source,
    given: dict[str, Any],
) -> None:
    """Score a saved model on a test file, or train and score on splits, beside two baselines: the mean, and biases only."""
    chosen = pick_format(output, as_json)
    if test == "-" and str(model) == "-":
        raise UsageError("--test and --model cannot both come from standard input")
    if max_rmse is not None and not max_rmse >= 0:
        raise UsageError(f"--max-rmse: {max_rmse} is not a bound; give a number that is not negative")
    if plot is not None:
        from pmfcli.plots import check_plot

        check_plot(plot)
        check_is_not_data("--plot", plot, test or source.data, source.data_dir)
        check_apart("--plot", plot, {"--model": model, **read_beside(source, config)})
        check_folder("--plot", plot)
    _check_flags(context, test, folds, split, [f"--{name.replace('_', '-')}" for name in given])
    if test is not None:
        tests = _of_a_model(model, source._replace(data=test), ranking)
    else:
        if not 0 < test_fraction < 1:
            raise UsageError(f"--test-fraction: {test_fraction} is not valid; give a number between 0 and 1, such as 0.1")
        settings = resolve(given, config, os.environ)
        tests = _of_splits(source, settings, _Split(folds, split or "random", test_fraction, last_n), ranking)
    from pmfcli.reports import report, report_ranking

    result = report([test.scored for test in tests])
    result["ranking"] = report_ranking([test.ranked for test in tests if test.ranked], ranking) if ranking else None
    if chosen == "json":
        document(result, "evaluate")
    else:
        emit(rows(result), Shape("evaluate", COLUMNS, decimals=3), chosen)
    if plot is not None:
        from pmfcli.plots import draw

        write_atomically(plot, draw(result, plot.suffix.lower()))
        note(f"wrote {plot}")
    describe(result, test is not None)
    if max_rmse is not None and not result["rmse"] <= max_rmse:
        raise GateError(f"RMSE {result['rmse']:.4f} is above --max-rmse {max_rmse:g}")


def _check_flags(context: typer.Context, test: str | None, folds: int | None, split: str | None, settings: list[str]) -> None:
    """Refuse flags that would be ignored."""
    if test is not None:
        useless = ["data", "folds", "split", "test_fraction", "last_n", "config", "side", "movie_features", "user_features"]
        way = "--test scores a saved model"
    elif folds is not None:
        useless, way = ["model", "split", "test_fraction", "last_n"], "--folds trains on random folds"
    else:
        useless = ["model", "test_fraction" if split == "last" else "last_n"]
        way = f"--split {split} trains on a part of --data" if split else "without --test FILE it trains on a part of --data"
    wrong = [f"--{name.replace('_', '-')}" for name in useless if by_hand(context, name)] + (
        settings if test is not None else []
    )
    if wrong:
        raise UsageError(
            f"{way}: {', '.join(wrong)} {'does' if len(wrong) == 1 else 'do'} not go with it; see pmf evaluate --help"
        )


def _of_a_model(model: Path, test: Source, ranking: int | None) -> "list[Tested]":
    """The test of a saved model on a file of ratings."""
    found = load_model(model)
    from pmfcli.evaluation import Tested, rank_model, score_model

    ratings = read_data(test)
    say_if_dates_are_told([str(found.settings["time"])], ratings, True)
    say_if_off_the_scale([found], ratings)
    _say_if_the_future_is_known(ratings, found.data["latest"], "")
    return [Tested(score_model(found, ratings), rank_model(found, ratings, ranking) if ranking else None)]


def _of_splits(source: Source, settings: Settings, split: _Split, ranking: int | None) -> "list[Tested]":
    """The tests of models that are trained on what each split leaves."""
    ratings = read_data(source)
    held_out = _parts(ratings, split, settings.seed)
    if ratings.time is not None:
        say_if_dates_are_told([settings.time], ratings, False)
    if split.way in ("last", "time"):
        held, rest = ratings.select(held_out == 0), ratings.select(held_out != 0)
        _say_if_the_future_is_known(held, None if rest.time is None or not rest.n else int(rest.time.max()), _ADVICE)
    from pmfcli.evaluation import cross_score

    tests = []
    with progress("fold") as bar:
        for part in cross_score(ratings, settings, held_out, ranking):
            tests.append(part)
            bar.show(len(tests), split.folds or 1, f"{len(tests)}/{split.folds or 1}")
    return tests


def _parts(ratings: "Ratings", split: _Split, seed: int) -> "Array":
    """The part in which each rating is held out, from 0; -1 if in none."""
    from pmfcli.data.split import fold_numbers, last_mask, random_mask, time_mask

    if split.folds is not None:
        if split.folds > ratings.n:
            raise UsageError(f"--folds {split.folds}: more than the {ratings.n:,} ratings of {ratings.name}")
        return fold_numbers(ratings.n, split.folds, seed)
    if split.way == "last":
        mask = last_mask(ratings, split.last_n)
    else:
        mask = random_mask(ratings.n, split.fraction, seed) if split.way == "random" else time_mask(ratings, split.fraction)
    return mask.astype("int8") - 1


def _say_if_the_future_is_known(test: "Ratings", latest: int | None, advice: str) -> None:
    if test.time is None or latest is None:
        return
    early = int((test.time < latest).sum())
    if early:
        note(
            f"warning: training includes ratings later than {early:,} of the {test.n:,} test ratings, "
            f"which a real forecast would not have{advice}"
        )
