"""Settings that do better on held-out ratings, by a search that can be taken up again. The search is optuna's."""

import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pmfcli.config import Settings
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import TrainingError, UsageError
from pmfcli.evaluation import cross_score
from pmfcli.reports import compare
from pmfcli.steps import Steps
from pmfcli.training import train

_LONGEST_RECORD = 1 << 20  # characters
_HELD = 0.1  # of the ratings, where the settings hold none out
_CHECK = 0.1  # of the ratings, others than the search saw as held out, compare the best to the default

_Range = tuple[float, float]
SPACE: dict[str, dict[str, _Range]] = {  # whole numbers and scales are drawn by their logarithm
    "map": {
        "latent": (5, 80),
        "sigma": (0.1, 0.6),
        "sigma_u": (0.1, 1.0),
        "sigma_v": (0.1, 1.0),
        "sigma_w": (0.03, 0.5),
        "sigma_x": (0.05, 1.0),
        "sigma_b": (0.1, 1.5),
        "user_power": (0.0, 1.0),
        "movie_power": (0.0, 1.0),
        "rater_power": (0.0, 1.0),
    },
    "bayes": {
        "latent": (4, 30),
        "habits": (1, 4),
        "user_power": (0.0, 1.0),
        "movie_power": (0.0, 1.0),
        "rater_power": (0.0, 1.0),
    },
}
_POWERS = ("user_power", "movie_power", "rater_power")


class Tried(NamedTuple):
    """One trial."""

    number: int  # counts from 0: the settings that the search starts from
    rmse: float | None  # held out; None: given up, as it fell behind
    settings: dict[str, Any]  # what was searched


class Found(NamedTuple):
    """What a search came to."""

    changed: dict[str, Any]  # settings of the best that differ from the start
    rmse: float  # of the best, on the ratings that the search held out
    start: float  # of the start, on the same
    check: list[dict[str, Any]]  # ``reports.compare`` of the best to the start on ratings held out from both; empty if equal


def tune(ratings: Ratings, start: Settings, fixed: Iterable[str], trials: int, journal: Path) -> Generator[Tried, None, Found]:
    """Search for settings, yielding every trial; those of a journal that is there already come first.

    Args:
        start: where to begin. fixed: settings that stay as they are there.
        trials: how many in all.
        journal: what was tried, kept as it goes: a search that was stopped is taken up again.

    Raises:
        UsageError: optuna is missing; the journal is none, or of other ratings or settings; nothing is left to search.
        TrainingError: the fit that it starts from broke down.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UsageError("pmf tune needs optuna; pip install optuna") from None
    ratings.check_trainable()
    searched = SPACE[start.method].items()
    space = {name: bounds for name, bounds in searched if name not in set(fixed) and not start.lacks(name)}
    if not space:
        raise UsageError("every setting that is searched was given; leave some out")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        _check_journal(journal)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="pmf",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20),
            load_if_exists=True,
        )
    except OSError as error:
        raise UsageError(f"--journal {journal}: {error.strerror or error}; give a file that you may write") from None
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise UsageError(f"--journal {journal}: not the journal of a search; give another file") from None
    mark = {"ratings": ratings.digest(), "start": start.model_dump(mode="json"), "searched": sorted(space)}
    if study.user_attrs.setdefault("mark", mark) != mark:
        raise UsageError(f"{journal}: a search with other ratings or settings; give another --journal, or remove it")
    study.set_user_attr("mark", mark)
    ended = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    done = study.get_trials(deepcopy=False, states=ended)
    for old in done:
        yield Tried(old.number, old.value if old.state == ended[0] else None, old.params)
    study.sampler = optuna.samplers.TPESampler(seed=start.seed + len(done))  # other numbers than those that are used up
    if not done:
        study.enqueue_trial({name: getattr(start, name) for name in space})
    for _ in range(trials - len(done)):
        trial = study.ask()
        settings = start.model_copy(update=_suggest(trial, space) | {"refit": False, "holdout": start.holdout or _HELD})
        try:
            rmse = _held_out_error(ratings, settings, trial)
        except TrainingError:
            if not study.get_trials(deepcopy=False, states=ended):
                raise
            rmse = None
        study.tell(trial, rmse, state=ended[0] if rmse is not None else ended[1])
        yield Tried(trial.number, rmse, trial.params)
    first = next(old for old in study.trials if old.state == ended[0])
    changed = {name: value for name, value in study.best_params.items() if value != getattr(start, name)}
    best = start.model_copy(update=changed)
    check: list[dict[str, Any]] = []
    if changed:
        held = random_mask(ratings.n, start.holdout or _HELD, start.seed)  # as ``train`` holds them out
        mask = random_mask(ratings.n, _CHECK, start.seed + 1) & ~held
        scored = [next(cross_score(ratings, settings, mask.astype(np.int8) - 1)).scored for settings in (start, best)]
        check = compare(*scored)
    return Found(changed, float(study.best_value), float(first.value or np.nan), check)


def _check_journal(path: Path) -> None:
    """Refuse a file that is something else, before optuna writes to it; take off a last record that was not written whole.

    Raises:
        OSError: it cannot be read or written.
        ValueError: a line is no record of a journal.
    """
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


def _suggest(trial: Any, space: dict[str, _Range]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (low, high) in space.items():
        if isinstance(low, int):
            found[name] = trial.suggest_int(name, low, high, log=True)
        else:
            found[name] = trial.suggest_float(name, low, high, log=name not in _POWERS)
    return found


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
        raise UsageError(f"{ratings.name}: {ratings.n:,} ratings are too few to hold out a part of them")
    return rmse
