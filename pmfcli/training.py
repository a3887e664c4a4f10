"""From ratings and settings to a model: hold out, find the best epoch, fit again on everything. Yields as it goes."""

import hashlib
import json
import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmfcli import __version__, memory
from pmfcli.artifact import Model
from pmfcli.config import FOUND_SCALES, Settings
from pmfcli.core.approximation import Fitted, Laplace
from pmfcli.core.baselines import fit_biases, predict_baselines
from pmfcli.core.changes import kept
from pmfcli.core.distinct import distinct
from pmfcli.core.map import number_of_blocks
from pmfcli.core.metrics import scores
from pmfcli.core.pairs import Pairs
from pmfcli.core.posterior import Parameters
from pmfcli.core.team import ALONE, WHOLE, Team, everywhere
from pmfcli.core.tree import Tree, plain
from pmfcli.data.ratings import STEPS, Array, Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import UsageError
from pmfcli.fitting import SURE, Found, Report, Task, Test, climb, observed, sample, seen
from pmfcli.sharing import Part, collected, held_out_mask
from pmfcli.steps import Steps

MORE = 2  # sweeps of least squares over all ratings, from where those over most of many ended
_USUAL_LATENT = 100  # features that are asked for of any data
LEAST_HELD = 50  # fewer held-out ratings than this say nothing about the best epoch, and none are held out


def train(
    ratings: Ratings, settings: Settings, resume: Tree = None, part: Part | None = None
) -> Generator[Report, None, Model]:
    """Fit a model, yielding a Report after every epoch; the return value of the generator is the model.

    A part is held out only if it has at least LEAST_HELD ratings; otherwise the metrics have no ``holdout_rmse``.

    Args:
        resume: the snapshot of a report of a run with the same ``identity``, to continue from, to the same model.
        part: which part of the ratings of several processes these are. The first process returns the whole model.

    Raises:
        DataError: ratings that no model can be fitted to.
        TrainingError: the loss stopped being finite.
        UsageError: no such device, or settings that these ratings, or several processes, cannot have.
        ProcessError: another process is gone.
    """
    users = WHOLE if part is None else part.share
    settings, device = fitted_to(ratings, settings, users.team)
    if part is not None:
        _check_kind(ratings, settings)
    how = (settings.holdout, settings.seed)
    held = random_mask(ratings.n, *how) if part is None else held_out_mask(ratings.n, part.first_rating, *how)
    out, n = users.team.sum(torch.tensor([int(held.sum()), ratings.n])).tolist()
    task = partial(Task, settings=settings, device=device, blocks=number_of_blocks(n, settings.block_ratings))
    if not LEAST_HELD <= out < n:
        only = task(phase="fit", ratings=ratings, observations=observed(ratings, settings, users), epochs=settings.epochs)
        posterior, found = yield from _fitted(only, None, resume)
        found.pop("holdout_rmse")
        return _model(ratings, settings, posterior, found, part)
    before = None if resume is None else resume["before"]
    if before is None:
        fitted = ratings.select(~held)
        observations = observed(fitted, settings, users)
        pairs, stars = held_out(ratings, held, users.team)
        test = Test(pairs, stars, ratings.scale)
        first = task(phase="fit", ratings=fitted, observations=observations, epochs=settings.epochs, test=test)
        posterior, found = yield from _fitted(first._replace(passing=settings.refit), None, resume)
        rest = found.get("settling_sigma")
        bias = fit_biases(observations.pattern, ratings.scale.to_stars(observations.t), users.team)
        beside = {name: scores(value, stars, users.team)._asdict() for name, value in predict_baselines(bias, pairs).items()}
        metrics = {"holdout_rmse": found.pop("holdout_rmse"), "holdout_baselines": beside}
        if not settings.refit:
            return _model(fitted, settings, posterior, found | metrics, part)
        noise = (posterior.noise, posterior.doubt) if isinstance(posterior, Laplace) else None
        learned = {"noise": noise, "rest": rest, "epochs": found["epochs"], "start": None, "done": 0}
        by_steps = (settings.solver, settings.priors, settings.noise) == ("als", "fixed", "fixed")
        if isinstance(posterior, Laplace) and by_steps and out >= SURE:
            learned |= {"epochs": MORE, "start": posterior.parameters, "done": found["epochs"]}
        before, resume = {"metrics": metrics, **learned}, None
        del posterior, first, test, pairs, stars, observations, bias, fitted  # at size there is no room for two fits
    metrics, done = dict(before["metrics"]), int(before["done"])  # a checkpoint that is none fails here, before the fit
    again = task(phase="refit", ratings=ratings, observations=observed(ratings, settings, users), epochs=before["epochs"])
    start = None if before["start"] is None else Parameters(*before["start"])
    again = again._replace(noise=before["noise"], rest=before["rest"], start=start)
    posterior, found = yield from _fitted(again, before, resume)
    found.pop("holdout_rmse")
    found["epochs"] += done
    return _model(ratings, settings, posterior, found | metrics, part)


def fitted_to(ratings: Ratings, settings: Settings, team: Team = ALONE) -> tuple[Settings, torch.device]:
    """The settings as they are for these ratings, and where to compute: from now on by as many threads as they say, and with
    memory that stays the process's own (``memory.keep``).

    Args:
        team: processes that have some of the ratings each.

    Raises:
        DataError, UsageError: as ``train``, which begins with this.
    """
    ratings.check_trainable()
    device = choose_device(settings.device)
    if device.type == "mps" and settings.kinds() & {"bayes", "als"}:
        raise UsageError("--device mps: it has no double precision, which this fit needs; use --device cpu")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    memory.keep()
    most = max(len(ratings.users), len(ratings.movies), _USUAL_LATENT)
    if settings.latent > most:
        sides = f"{len(ratings.users):,} users and {len(ratings.movies):,} movies"
        raise UsageError(f"--latent {settings.latent}: {ratings.name} has {sides}; give at most {most}")
    if settings.method != "bayes" and (ratings.user_features or ratings.movie_features):
        raise UsageError("--side and features are for --method bayes; add it, or leave them out")
    if settings.time != "none" and ratings.time is None:
        raise UsageError(
            f"--time {settings.time}: {ratings.name} has no timestamps; name their column with --time-col, or leave it out"
        )
    return _with_likelihood(settings, ratings, team), device


def _check_kind(ratings: Ratings, settings: Settings) -> None:
    """Refuse what several processes cannot do."""
    ways = ["--priors em and --noise em"] if settings.by_em else []
    ways += ["--time"] if settings.time != "none" else []
    ways += ["--side and features"] if ratings.user_features or ratings.movie_features else []
    if ways:
        raise UsageError(f"{ways[0]}: works in one process only; leave it out, or run without torchrun (-j uses more cores)")


def _fitted(task: Task, before: Tree, resume: Tree) -> Generator[Report, None, Found]:
    """A fit, whose snapshots say what came before it."""
    task = task._replace(resume=None if resume is None else resume["now"])
    fitting = Steps((sample if task.settings.method == "bayes" else climb)(task))
    for report in fitting:
        yield report._replace(snapshot=_with(before, report.snapshot))
    return fitting.result


def _with(before: Tree, now: Callable[[], Tree] | None) -> Callable[[], Tree] | None:
    return None if now is None else lambda: {"before": plain(before), "now": now()}


def identity(ratings: Ratings, settings: Settings) -> str:
    """What makes a run the same: SHA-256 of the settings, except the machine's, and of all data that is learned from."""
    digest = hashlib.sha256(json.dumps(settings.model_dump(exclude={"device", "threads"}), sort_keys=True).encode())
    digest.update(f"{__version__} {ratings.digest()}".encode())
    parts: list[Array | None] = [ratings.time]
    for block in (*ratings.user_features, *ratings.movie_features):
        digest.update("\n".join((block.name, *block.columns)).encode() + b"\0")
        parts += [block.row, block.col, block.weight]
    for part in parts:
        digest.update(b"none" if part is None else np.ascontiguousarray(part).data)
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA if there is a GPU for each process of this machine, else the CPU.

    Raises:
        UsageError: the machine, or this build of torch, has no such device, or too few.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ["LOCAL_WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    has = {"cpu": True, "cuda": gpus > 0, "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if gpus >= processes else "cpu")
    if name == "cuda" and 0 < gpus < processes:
        raise UsageError(f"--device cuda: {processes} processes on {gpus} GPU(s); start one for each, or use --device cpu")
    if not has[name]:
        raise UsageError(f"--device {name}: torch {torch.__version__} finds none; use --device cpu")
    return torch.device(name)


def _with_likelihood(settings: Settings, ratings: Ratings, team: Team) -> Settings:
    if settings.likelihood == "gaussian":
        return settings
    different = len(everywhere(team, distinct(torch.from_numpy(ratings.stars))).unique())
    steps = 2 <= different <= STEPS
    if settings.likelihood == "ordinal" and not steps:
        raise UsageError(f"--likelihood ordinal: needs 2 to {STEPS} different ratings, not {different:,}; leave it out")
    if not steps and settings.habits != Settings(method=settings.method).habits:
        raise UsageError(f"--habits: needs 2 to {STEPS} different ratings, not {different:,}; leave it out")
    usual = "ordinal" if steps else "gaussian"
    return settings.model_copy(update={"likelihood": settings.likelihood or usual})


def held_out(ratings: Ratings, held: Array, team: Team = ALONE) -> tuple[Pairs, Tensor]:
    """Held-out ratings as pairs and their stars (n,); a side with no rating and no features left to learn from is unknown.

    Args:
        held: (n,) bool over all ratings. team: processes that have some of the users each.
    """
    of_movies = team.sum(torch.from_numpy(np.bincount(ratings.movie[~held], minlength=len(ratings.movies)))).numpy()
    left_user = (np.bincount(ratings.user[~held], minlength=len(ratings.users)) > 0) | bool(ratings.user_features)
    left_movie = (of_movies > 0) | bool(ratings.movie_features)
    user, movie = ratings.user[held].astype(np.int64), ratings.movie[held].astype(np.int64)
    parts = (user, movie, left_user[user], left_movie[movie])
    time = None if ratings.time is None else torch.from_numpy(ratings.time[held])
    return Pairs(*map(torch.from_numpy, parts))._replace(time=time), torch.from_numpy(ratings.stars[held])


def _of_rated(ratings: Ratings, posterior: Fitted) -> tuple[Ratings, Fitted]:
    """Without whom, and what, is known by held-out ratings alone: the model knows nothing of them."""
    if ratings.user_features or ratings.movie_features:
        return ratings, posterior
    found, users, movies = ratings.dense()
    if found is ratings:
        return ratings, posterior
    rows = kept(posterior, torch.from_numpy(users), torch.from_numpy(movies))
    assert isinstance(rows, Fitted)
    return found, rows


def _model(ratings: Ratings, settings: Settings, posterior: Fitted, metrics: dict[str, Any], part: Part | None) -> Model:
    if part is not None:
        ratings, posterior = collected(ratings, posterior, part)
    ratings, posterior = _of_rated(ratings, posterior)
    return Model(
        method=settings.method,
        posterior=posterior,
        users=ratings.users,
        movies=ratings.movies,
        titles=ratings.titles,
        scale=ratings.scale,
        seen=seen(ratings),
        settings=settings.model_dump() | {name: metrics[name] for name in FOUND_SCALES if name in metrics},
        metrics={name: value for name, value in metrics.items() if name not in FOUND_SCALES},
        data={
            "name": ratings.name,
            "sha256": ratings.digest(),
            "ratings": ratings.n,
            "users": len(ratings.users),
            "movies": len(ratings.movies),
            "latest": None if ratings.time is None else int(ratings.time.max()),
            "features": [block.name for block in (*ratings.user_features, *ratings.movie_features)],
        },
        versions={"pmf": __version__, "torch": torch.__version__},
    )
