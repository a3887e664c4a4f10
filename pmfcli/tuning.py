"""Settings that do better on held-out ratings, by a search that can be resumed. The search is optuna's."""

import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import DataError, TrainingError, UsageError
from pmfcli.evaluation import cross_score
from pmfcli.fitting import observed, with_scales
from pmfcli.reports import compare
from pmfcli.steps import Steps
from pmfcli.training import fitted_to, train

_LONGEST_RECORD = 1 << 20  # characters
_HELD = 0.1  # of the ratings, where the settings hold none out
_CHECK = 0.1  # of the ratings, others than the search saw as held out, compare the best to the default


class Range(NamedTuple):
    """Where a setting is searched."""

    low: float
    high: float
    whole: bool = False  # whole numbers alone
    log: bool = True  # drawn by the logarithm


_POWER = Range(0.0, 1.0, log=False)
SPACE: dict[str, dict[str, Range]] = {
    "map": {
        "latent": Range(5, 80, whole=True),
        "sigma": Range(0.1, 0.6),
        "sigma_u": Range(0.1, 1.0),
        "sigma_v": Range(0.1, 1.0),
        "sigma_w": Range(0.03, 0.5),
        "sigma_x": Range(0.05, 1.0),
        "sigma_b": Range(0.1, 1.5),
        "user_power": _POWER,
        "movie_power": _POWER,
        "rater_power": _POWER,
    },
    "bayes": {
        "latent": Range(4, 30, whole=True),
        "habits": Range(1, 4, whole=True),
        "user_power": _POWER,
        "movie_power": _POWER,
        "rater_power": _POWER,
    },
}


class Tried(NamedTuple):
    """One trial."""

    number: int  # counts from 0: the settings that the search starts from
    rmse: float | None  # held out; None: given up, as it fell behind
    settings: dict[str, Any]  # what was searched


class Found(NamedTuple):
    """The result of a search."""

    changed: dict[str, Any]  # settings of the best that differ from the start
    rmse: float  # of the best, on the ratings that the search held out
    start: float  # of the start, on the same
    check: list[dict[str, Any]]  # ``reports.compare`` of the best to the start on ratings held out from both; empty if equal


def tune(ratings: Ratings, start: Settings, fixed: Iterable[str], trials: int, journal: Path) -> Generator[Tried, None, Found]:
    """Search for settings, yielding every trial; those of a journal that is there already come first.

    Args:
        start: where to begin. fixed: settings that stay as they are there.
        trials: how many in all.
        journal: what was tried, kept as it goes: a search that was stopped is resumed.

    Raises:
        UsageError: optuna is missing; the journal is not one, or from other ratings or settings; nothing is left to search.
        DataError: there are too few ratings to hold some out.
        TrainingError: the fit that it starts from broke down.
    """
    optuna = _optuna()
    here, _ = fitted_to(ratings, start)
    of_trials = ratings.select(~random_mask(ratings.n, start.holdout or _HELD, start.seed))  # as ``train`` leaves them
    here = with_scales(here, observed(of_trials, here))
    space = {name: bounds for name, bounds in SPACE[start.method].items() if name not in set(fixed) and not here.lacks(name)}
    if not space:
        raise UsageError("every setting that could be searched is given; leave some out")
    study = _study(journal, {"ratings": ratings.digest(), "start": start.model_dump(mode="json"), "searched": sorted(space)})
    yield from _trials(study, ratings, here, space, trials)
    first = next(old for old in study.trials if old.state == optuna.trial.TrialState.COMPLETE)
    changed = {name: value for name, value in study.best_params.items() if value != getattr(here, name)}
    return Found(changed, float(study.best_value), float(first.value or np.nan), _check(ratings, here, changed))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("pmf tune needs optuna; pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study(journal: Path, mark: dict[str, Any]) -> Any:
    """The study that a journal keeps, or a new one.

    Args:
        mark: what it is a search of, by which it is known again.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        _check_journal(journal)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="pmf",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20),
            load_if_exists=True,
        )
    except OSError as error:
        raise UsageError(f"--journal {journal}: {error.strerror or error}; give a file that you can write to") from None
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise UsageError(f"--journal {journal}: not the journal of a search; give another file") from None
    if study.user_attrs.setdefault("mark", mark) != mark:
        raise UsageError(f"{journal}: from a search with other ratings or settings; give another --journal, or remove it")
    study.set_user_attr("mark", mark)
    return study


def _trials(study: Any, ratings: Ratings, start: Settings, space: dict[str, Range], count: int) -> Iterator[Tried]:
    """The trials that a study has, then new ones until there are so many."""
    import optuna

    complete, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    done = study.get_trials(deepcopy=False, states=(complete, pruned))
    for old in done:
        yield Tried(old.number, old.value if old.state == complete else None, old.params)
    study.sampler = optuna.samplers.TPESampler(seed=start.seed + len(done))  # other numbers than those that are used up
    if not done:
        study.enqueue_trial({name: getattr(start, name) for name in space})
    for _ in range(count - len(done)):
        trial = study.ask()
        settings = start.model_copy(update=_suggest(trial, space) | {"refit": False, "holdout": start.holdout or _HELD})
        try:
            rmse = _held_out_error(ratings, settings, trial)
        except TrainingError:
            if not study.get_trials(deepcopy=False, states=(complete, pruned)):
                raise
            rmse = None
        study.tell(trial, rmse, state=complete if rmse is not None else pruned)
        yield Tried(trial.number, rmse, trial.params)


def _check(ratings: Ratings, start: Settings, changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The changed settings beside the start, on ratings that the search did not hold out; empty if nothing changed."""
    if not changed:
        return []
    held = random_mask(ratings.n, start.holdout or _HELD, start.seed)  # as ``train`` holds them out
    mask = random_mask(ratings.n, _CHECK, start.seed + 1) & ~held
    both = start, start.model_copy(update=changed)
    return compare(*(next(cross_score(ratings, settings, mask.astype(np.int8) - 1)).scored for settings in both))


def _check_journal(path: Path) -> None:
    """Refuse a file that is something else, before optuna writes to it; take off a last record that was not written whole.

    Raises:
        OSError: it cannot be read or written.
        ValueError: it is no file, or a line is no record of a journal.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no file")  # a pipe or device may have no end
    if not path.exists() or not path.stat().st_size:
        return
    whole = 0
    with path.open("r+b") as file:
        while line := file.readline(_LONGEST_RECORD):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None and whole and not file.read(1):
                file.truncate(whole)
            elif not isinstance(record, dict) or "op_code" not in record:
                raise ValueError("not a journal")
            whole += len(line)


def _suggest(trial: Any, space: dict[str, Range]) -> dict[str, Any]:
    return {
        name: (trial.suggest_int if whole else trial.suggest_float)(name, low, high, log=log)
        for name, (low, high, whole, log) in space.items()
    }


def _held_out_error(ratings: Ratings, settings: Settings, trial: Any) -> float | None:
    """The held-out RMSE of a fit; None if it fell behind the others."""
    fit = Steps(train(ratings, settings))
    for report in fit:
        if report.holdout_rmse is not None:
            trial.report(report.holdout_rmse, report.step)
            if trial.should_prune():
                return None
    rmse: float | None = fit.result.metrics.get("holdout_rmse")
    if rmse is None:
        raise DataError(f"{ratings.name}: {ratings.n:,} ratings are too few to hold out a part of them; give more")
    return rmse
