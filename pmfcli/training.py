"""From ratings and settings to a model: hold out, find the best epoch, fit again on everything. Yields as it goes."""

import math
from collections import deque
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pmfcli import __version__
from pmfcli.artifact import Model, Seen
from pmfcli.config import Settings
from pmfcli.core import map as map_fit
from pmfcli.core.metrics import fit_biases, predict_baselines, scores
from pmfcli.core.posterior import Observations, Parameters, Scales, effective, link, observe, score
from pmfcli.core.predict import Pairs, predict_pairs
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import Array, Ratings, Scale
from pmfcli.data.split import random_mask
from pmfcli.errors import TrainingError, UsageError

CHECK_EVERY = 5  # epochs between two looks at the held-out ratings
LEAST_HELD = 50  # fewer held-out ratings than this say nothing about the best epoch, and none are held out
PATIENCE = 50  # epochs without a clearly better held-out error before the fit stops
_CLEARLY = 1e-3  # better by this part
_STILL_FOR, _STILL = 20, 1e-5  # the loss no longer moves: its relative range over so many epochs


class Report(NamedTuple):
    """What training says after an epoch."""

    phase: str  # "fit" on what is not held out, or "refit" on everything
    step: int  # counts from 0
    epochs: int  # at most, in this phase
    loss: float  # before this epoch's update
    sigma: float
    holdout_rmse: float | None  # in stars, where it was looked at


class _Test(NamedTuple):
    pairs: Pairs
    stars: Tensor
    scale: Scale


class _Fit(NamedTuple):
    parameters: Parameters
    progress: map_fit.Progress
    epochs: int  # the best number of them by held-out error; all without a test
    holdout_rmse: float | None


def train(ratings: Ratings, settings: Settings) -> Generator[Report, None, Model]:
    """Fit a model, yielding a Report after every epoch; the return value of the generator is the model.

    A part is held out only if it has at least LEAST_HELD ratings; the metrics of the model have no ``holdout_rmse`` else.

    Raises:
        DataError: ratings that no model can be fitted to.
        TrainingError: the loss stopped being finite.
        UsageError: no such device.
    """
    ratings.check_trainable()
    device = choose_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    metrics: dict[str, Any] = {}
    fitted = ratings
    held = random_mask(ratings.n, settings.holdout, settings.seed)
    if LEAST_HELD <= held.sum() < ratings.n:
        fitted = ratings.select(~held)
        observations = _observe(fitted, settings)
        pairs, stars = held_out(ratings, held)
        test = _Test(pairs.to(device), stars, ratings.scale)
        fit = yield from _fit("fit", observations.to(device), settings, settings.epochs, test)
        bias = fit_biases(observations.pattern, ratings.scale.to_stars(observations.t))
        beside = {name: scores(found, stars)._asdict() for name, found in predict_baselines(bias, pairs).items()}
        metrics = {"holdout_rmse": fit.holdout_rmse, "holdout_baselines": beside}
        if settings.refit:
            fitted = ratings
            observations = _observe(ratings, settings)
            fit = yield from _fit("refit", observations.to(device), settings, fit.epochs, None)
    else:
        observations = _observe(ratings, settings)
        fit = yield from _fit("fit", observations.to(device), settings, settings.epochs, None)
    return _model(fitted, settings, observations, fit, metrics)


def run(training: Generator[Report, None, Model]) -> Model:
    """Train to the end without looking at the reports."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            model: Model = end.value
            return model


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA if there is one, else the CPU.

    Raises:
        UsageError: the machine, or this build of torch, has no such device.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if has["cuda"] else "cpu")
    if not has[name]:
        raise UsageError(f"--device {name}: there is none for torch {torch.__version__}; use --device cpu")
    return torch.device(name)


def held_out(ratings: Ratings, held: Array) -> tuple[Pairs, Tensor]:
    """Held-out ratings as pairs and their stars (n,); a side with no rating left to learn from is unknown.

    Args:
        held: (n,) bool over all ratings.
    """
    left_user = np.bincount(ratings.user[~held], minlength=len(ratings.users)) > 0
    left_movie = np.bincount(ratings.movie[~held], minlength=len(ratings.movies)) > 0
    user, movie = ratings.user[held].astype(np.int64), ratings.movie[held].astype(np.int64)
    parts = (user, movie, left_user[user], left_movie[movie])
    return Pairs(*map(torch.from_numpy, parts)), torch.from_numpy(ratings.stars[held])


def _observe(ratings: Ratings, settings: Settings) -> Observations:
    user, movie, t = ratings.tensors()
    return observe(
        Pattern.of(user, movie, (len(ratings.users), len(ratings.movies))),
        t,
        user_power=settings.user_power,
        movie_power=settings.movie_power,
        rater_power=settings.rater_power,
        with_offset=settings.offset,
    )


def _fit(
    phase: str, observations: Observations, settings: Settings, epochs: int, test: _Test | None
) -> Generator[Report, None, _Fit]:
    """One fit. It stops early where the settings say so, except in a refit, whose length is known to be right."""
    s = settings
    how = map_fit.MapSettings(
        latent=s.latent,
        scales=Scales(s.sigma_u, s.sigma_v, s.sigma_w, s.sigma_x, s.sigma_b),
        sigma=s.sigma,
        learn_sigma=s.noise == "learned",
        biases=s.biases,
        user_means=s.hierarchical in ("users", "both"),
        movie_means=s.hierarchical == "both",
        lr=s.lr,
        block_ratings=s.block_ratings,
    )
    generator = torch.Generator().manual_seed(s.seed)
    best: _Fit | None = None
    clear, clear_at = math.inf, 0  # the last held-out error that was clearly better, and its epoch
    recent: deque[float] = deque(maxlen=_STILL_FOR)
    for progress in map_fit.fit(observations, how, epochs, generator):
        done = progress.step + 1
        rmse = None
        if test is not None and (progress.step % CHECK_EVERY == 0 or done == epochs):
            prediction = predict_pairs(map_fit.current(progress.state, observations), test.pairs)
            rmse = scores(test.scale.to_stars(prediction), test.stars).rmse
            if best is None or best.holdout_rmse is None or rmse < best.holdout_rmse:
                best = _Fit(map_fit.gather(progress.state), progress, done, rmse)
            if rmse < clear * (1 - _CLEARLY):
                clear, clear_at = rmse, done
        yield Report(phase, progress.step, epochs, progress.loss, progress.sigma, rmse)
        recent.append(progress.loss)
        if s.early_stop and phase == "fit":
            still = len(recent) == _STILL_FOR and max(recent) - min(recent) <= _STILL * abs(progress.loss)
            if still or (test is not None and done - clear_at >= PATIENCE):
                break
    return best or _Fit(map_fit.gather(progress.state), progress, progress.step + 1, None)


def _model(ratings: Ratings, settings: Settings, observations: Observations, fit: _Fit, metrics: dict[str, Any]) -> Model:
    parameters = Parameters(*(None if part is None else part.cpu() for part in fit.parameters))  # type: ignore[arg-type]
    with torch.no_grad():
        factors = effective(parameters, observations)
        fitted = ratings.scale.to_stars(link(score(factors, observations.pattern)))
    truth = ratings.scale.to_stars(observations.t)
    metrics |= {"epochs": fit.epochs, "loss": fit.progress.loss, "sigma": fit.progress.sigma}
    metrics["train_rmse"] = scores(fitted, truth).rmse
    if not math.isfinite(metrics["train_rmse"]):
        raise TrainingError(f"training diverged at its last step, {fit.progress.step}; try a smaller --lr")
    start = np.searchsorted(ratings.user, np.arange(len(ratings.users) + 1))
    return Model(
        method="map",
        factors=factors,
        parameters=parameters,
        users=ratings.users,
        movies=ratings.movies,
        titles=ratings.titles,
        scale=ratings.scale,
        seen=Seen(*(torch.from_numpy(part) for part in (start, ratings.movie, ratings.stars))),
        settings=settings.model_dump(),
        metrics=metrics,
        data={
            "name": ratings.name,
            "sha256": ratings.digest(),
            "ratings": ratings.n,
            "users": len(ratings.users),
            "movies": len(ratings.movies),
        },
        versions={"pmf": __version__, "torch": torch.__version__},
    )
