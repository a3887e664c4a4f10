"""pmf evaluate: scores on ratings that the model has not seen."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pmfcli.cli.inputs import load_model, read_data, say_if_dates_are_told, say_if_off_the_scale
from pmfcli.cli.options import AsJson, Config, ModelFile, OutputFormat, Source, by_hand, with_data_and_settings
from pmfcli.cli.outputs import check_apart, check_folder, check_is_not_data, read_beside
from pmfcli.config import resolve
from pmfcli.console import Row, Shape, document, emit, note, pick_format, progress
from pmfcli.errors import GateError, UsageError
from pmfcli.files import write_atomically

if TYPE_CHECKING:
    from pmfcli.data.ratings import Array, Ratings

EXAMPLE = "pmf evaluate --model pmf.pt --test held-out.csv"
_ADVICE = "; --split time holds out the latest"
_COLUMNS = ("group", "ratings", "n", "rmse", "mae", "rmse_bias", "rmse_mean", "nll", "crps", "inside_90")


@with_data_and_settings
def evaluate(
    context: typer.Context,
    model: ModelFile = Path("pmf.pt"),
    test: Annotated[str | None, typer.Option("--test", help="Score the saved model on these ratings; '-' for a pipe.")] = None,
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Train and score on so many folds.")] = None,
    split: Annotated[
        Literal["random", "last", "time"] | None,
        typer.Option("--split", help="Train on a part, score on the rest: a random part, each user's last, the latest."),
    ] = None,
    test_fraction: Annotated[float, typer.Option("--test-fraction", help="What random and time splits hold out.")] = 0.1,
    last_n: Annotated[int, typer.Option("--last-n", min=1, help="What a last split holds out of each user.")] = 1,
    max_rmse: Annotated[float | None, typer.Option("--max-rmse", help="Exit with 7 if the RMSE is above this.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw how well its uncertainty holds: a .png, .svg or .html file.")
    ] = None,
    ranking: Annotated[
        int | None,
        typer.Option(
            "--ranking", metavar="K", min=1, help="Also rank each user's unseen movies: NDCG and recall of the best K."
        ),
    ] = None,
    config: Config = None,
    output: OutputFormat = None,
    as_json: AsJson = False,
    *,
    source: Source,
    given: dict[str, Any],
) -> None:
    """Score a saved model on a test file, or train and score on splits; the mean and a bias-only predictor stand beside."""
    chosen = pick_format(output, as_json)
    if test == "-" and str(model) == "-":
        raise UsageError("--test and --model cannot both come from standard input")
    if max_rmse is not None and not max_rmse >= 0:
        raise UsageError(f"--max-rmse: {max_rmse} is no bound")
    if plot is not None:
        from pmfcli.plots import check_plot

        check_plot(plot)
        check_is_not_data("--plot", plot, test or source.data, source.data_dir)
        check_apart("--plot", plot, {"--model": model, **read_beside(source, config)})
        check_folder("--plot", plot)
    _check_flags(context, test, folds, split, [f"--{name.replace('_', '-')}" for name in given])
    if test is not None:
        found = load_model(model)
        from pmfcli.evaluation import Tested, rank_model, score_model

        ratings = read_data(source._replace(data=test))
        say_if_dates_are_told([str(found.settings["time"])], ratings, True)
        say_if_off_the_scale([found], ratings)
        _say_if_the_future_is_known(ratings, found.data["latest"], "")
        tests = [Tested(score_model(found, ratings), rank_model(found, ratings, ranking) if ranking else None)]
    else:
        if not 0 < test_fraction < 1:
            raise UsageError(f"--test-fraction: {test_fraction} is not between 0 and 1")
        settings = resolve(given, config, os.environ)
        ratings = read_data(source)
        held_out = _parts(ratings, folds, split or "random", test_fraction, last_n, settings.seed)
        if ratings.time is not None:
            say_if_dates_are_told([settings.time], ratings, False)
        if split in ("last", "time"):
            held, rest = ratings.select(held_out == 0), ratings.select(held_out != 0)
            _say_if_the_future_is_known(held, None if rest.time is None or not rest.n else int(rest.time.max()), _ADVICE)
        from pmfcli.evaluation import cross_score

        tests = []
        with progress("fold") as bar:
            for part in cross_score(ratings, settings, held_out, ranking):
                tests.append(part)
                bar.show(len(tests), folds or 1, f"{len(tests)}/{folds or 1}")
    from pmfcli.reports import report, report_ranking

    result = report([test.scored for test in tests])
    result["ranking"] = report_ranking([test.ranked for test in tests if test.ranked], ranking) if ranking else None
    if chosen == "json":
        document(result, "evaluate")
    else:
        emit(_rows(result), Shape("evaluate", _COLUMNS, decimals=3), chosen)
    if plot is not None:
        from pmfcli.plots import draw

        write_atomically(plot, draw(result, plot.suffix.lower()))
        note(f"wrote {plot}")
    _say(result, max_rmse)


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


def _parts(ratings: "Ratings", folds: int | None, split: str, fraction: float, last_n: int, seed: int) -> "Array":
    """The part in which each rating is held out, from 0; -1 if in none."""
    from pmfcli.data.split import fold_numbers, last_mask, random_mask, time_mask

    if folds is not None:
        if folds > ratings.n:
            raise UsageError(f"--folds {folds}: more than the {ratings.n:,} ratings of {ratings.name}")
        return fold_numbers(ratings.n, folds, seed)
    if split == "last":
        mask = last_mask(ratings, last_n)
    else:
        mask = random_mask(ratings.n, fraction, seed) if split == "random" else time_mask(ratings, fraction)
    return mask.astype("int8") - 1


def _say_if_the_future_is_known(test: "Ratings", latest: int | None, advice: str) -> None:
    if test.time is None or latest is None:
        return
    early = int((test.time < latest).sum())
    if early:
        note(
            f"warning: training holds ratings later than {early:,} of the {test.n:,} test ratings, "
            f"which nobody has who predicts{advice}"
        )


def _rows(result: Row) -> list[Row]:
    beside = {f"rmse_{name}": result["baselines"][name]["rmse"] for name in ("bias", "mean")}
    rows = [{"group": "all", **result, **beside}]
    for group in ("user", "movie"):
        rows += [{"group": f"{group}s with", **part} for part in result[f"by_{group}_ratings"]]
    return [{name: (row | {"inside_90": row["coverage"]["0.9"]}).get(name) for name in _COLUMNS} for row in rows]


def _say(result: Row, max_rmse: float | None) -> None:
    if result["n_cold"]:
        note(f"{result['n_cold']:,} of {result['n']:,} test ratings are of users or movies that training did not have")
    if result["n_trained_on"]:
        note(f"warning: {result['n_trained_on']:,} of {result['n']:,} test pairs were in the training data; this is no test")
    inside, width, auc = result["coverage"]["0.9"], result["width"]["0.9"], result["auc_sd"]
    told = "" if auc is None else f"; sd tells errors over {result['large_error']:g} from others with AUC {auc:.2f}"
    note(f"the 90 % intervals hold {100 * inside:.1f} % of the ratings, {width:.2f} wide{told}")
    if result["ranking"]:
        _say_ranking(result["ranking"])
    if result["n_off_grid"]:
        note(
            f"warning: {result['n_off_grid']:,} of {result['n']:,} test ratings are none that training had: "
            "for NLL and CRPS they count as the nearest"
        )
    if result["n_cold"] == result["n"]:
        note("warning: no test rating has both its user and its movie in training; is it the right file, are the ids the same?")
    elif result["rmse"] > result["baselines"]["mean"]["rmse"]:
        note("warning: worse than always answering the mean; is the scale the same? Else try the default settings")
    if max_rmse is not None and not result["rmse"] <= max_rmse:
        raise GateError(f"RMSE {result['rmse']:.4f} is above --max-rmse {max_rmse:g}")


def _say_ranking(found: Row) -> None:
    if not found["users"]:
        note("ranking: no test rating in the upper quarter of the scale is of a known user and a movie new to them")
        return
    popular = found["popular"]
    note(
        f"ranking, {found['users']:,} users, all movies they had not rated in training: the best {found['k']} hold "
        f"{100 * found['recall']:.1f} % of those they liked in the test, NDCG {found['ndcg']:.3f}; "
        f"the most rated hold {100 * popular['recall']:.1f} %, NDCG {popular['ndcg']:.3f}"
    )
