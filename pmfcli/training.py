"""From ratings and settings to a model: hold out, find the best epoch, fit again on everything. Yields as it goes."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pmfcli import __version__
from pmfcli.artifact import Model
from pmfcli.config import Settings
from pmfcli.core import als, chains, drift, gibbs
from pmfcli.core import map as map_fit
from pmfcli.core.fold_in import settled
from pmfcli.core.means import Means
from pmfcli.core.metrics import fit_biases, predict_baselines, scores
from pmfcli.core.posterior import Factors, Observations, Parameters, Scales, effective, mean, observe, score
from pmfcli.core.predict import (
    Laplace,
    Pairs,
    Posterior,
    Seen,
    chunk_of,
    estimate_noise,
    means_of_pairs,
    predict_pairs,
)
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import STEPS, Array, Block, Ratings, Scale
from pmfcli.data.split import random_mask
from pmfcli.errors import TrainingError, UsageError

LEAST_HELD = 50  # fewer held-out ratings than this say nothing about the best epoch, and none are held out
_CLEARLY = 1e-3  # better by this part


class Pace(NamedTuple):
    """How often to look at the held-out ratings, and when to stop. In epochs."""

    check_every: int
    patience: int  # without a clearly better held-out error
    still_for: int  # the loss no longer moves: its relative range over so many epochs is below ``still``
    still: float


PACES = {"adam": Pace(5, 50, 20, 1e-5), "als": Pace(1, 10, 5, 1e-4)}


class Report(NamedTuple):
    """What training says after an epoch."""

    phase: str  # "fit" on what is not held out, or "refit" on everything
    step: int  # counts from 0
    epochs: int  # at most, in this phase
    loss: float  # before this epoch's update by Adam; after it by other ways
    sigma: float
    holdout_rmse: float | None  # in stars, where it was looked at
    r_hat: float | None = None  # of a sampler, where it was looked at
    ess: float | None = None


class _Test(NamedTuple):
    pairs: Pairs
    stars: Tensor
    scale: Scale


class _Task(NamedTuple):
    """One fit to do."""

    phase: str
    ratings: Ratings
    observations: Observations
    settings: Settings
    epochs: int | None
    test: _Test | None
    noise: Tensor | None  # of a mode, where it is known
    device: torch.device


class _Mode(NamedTuple):
    """A point on the way of a fit, with what a model needs of it."""

    parameters: Parameters
    factors: Factors
    precision_u: Tensor
    precision_v: Tensor


class _Fit(NamedTuple):
    mode: _Mode
    loss: float
    sigma: float
    epochs: int  # the best number of them by held-out error; all without a test
    holdout_rmse: float | None


def train(ratings: Ratings, settings: Settings) -> Generator[Report, None, Model]:
    """Fit a model, yielding a Report after every epoch; the return value of the generator is the model.

    A part is held out only if it has at least LEAST_HELD ratings; the metrics of the model have no ``holdout_rmse`` else.

    Raises:
        DataError: ratings that no model can be fitted to.
        TrainingError: the loss stopped being finite.
        UsageError: no such device, or an ordinal likelihood for ratings that are no steps of a scale, no times.
    """
    ratings.check_trainable()
    device = choose_device(settings.device)
    if device.type == "mps" and settings.kinds() & {"bayes", "als"}:
        raise UsageError("--device mps: it has no double precision, which this kind of fit needs; use --device cpu")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.method != "bayes" and (ratings.user_features or ratings.movie_features):
        raise UsageError("--side and features are for --method bayes; add it, or leave them out")
    if settings.time != "none" and ratings.time is None:
        raise UsageError(f"--time {settings.time}: {ratings.name} has no timestamps; name them by --time-col, or leave it out")
    settings = _with_likelihood(settings, ratings)
    fit = _sample if settings.method == "bayes" else _climb
    metrics: dict[str, Any] = {}
    fitted, epochs = ratings, settings.epochs
    held = random_mask(ratings.n, settings.holdout, settings.seed)
    if LEAST_HELD <= held.sum() < ratings.n:
        fitted = ratings.select(~held)
        observations = _observe(fitted, settings)
        pairs, stars = held_out(ratings, held)
        posterior, found = yield from fit(
            _Task("fit", fitted, observations, settings, epochs, _Test(pairs, stars, ratings.scale), None, device)
        )
        bias = fit_biases(observations.pattern, ratings.scale.to_stars(observations.t))
        beside = {name: scores(value, stars)._asdict() for name, value in predict_baselines(bias, pairs).items()}
        metrics = {"holdout_rmse": found["holdout_rmse"], "holdout_baselines": beside}
        if settings.refit:
            fitted, epochs = ratings, found["epochs"]
            observations = _observe(ratings, settings)
            noise = posterior.noise if isinstance(posterior, Laplace) else None
            posterior, found = yield from fit(_Task("refit", fitted, observations, settings, epochs, None, noise, device))
    else:
        observations = _observe(ratings, settings)
        posterior, found = yield from fit(_Task("fit", fitted, observations, settings, epochs, None, None, device))
    del found["holdout_rmse"]  # that of a refit, which has none
    return _model(fitted, settings, posterior, found | metrics)


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


def _with_likelihood(settings: Settings, ratings: Ratings) -> Settings:
    different = len(np.unique(ratings.stars))
    steps = 2 <= different <= STEPS
    if settings.likelihood == "ordinal" and not steps:
        raise UsageError(f"--likelihood ordinal: {different:,} different ratings are not 2 to {STEPS} steps; leave it out")
    usual = "ordinal" if steps else "gaussian"
    return settings.model_copy(update={"likelihood": settings.likelihood or usual})


def held_out(ratings: Ratings, held: Array) -> tuple[Pairs, Tensor]:
    """Held-out ratings as pairs and their stars (n,); a side with no rating and no features left to learn from is unknown.

    Args:
        held: (n,) bool over all ratings.
    """
    left_user = (np.bincount(ratings.user[~held], minlength=len(ratings.users)) > 0) | bool(ratings.user_features)
    left_movie = (np.bincount(ratings.movie[~held], minlength=len(ratings.movies)) > 0) | bool(ratings.movie_features)
    user, movie = ratings.user[held].astype(np.int64), ratings.movie[held].astype(np.int64)
    parts = (user, movie, left_user[user], left_movie[movie])
    time = None if ratings.time is None else torch.from_numpy(ratings.time[held])
    return Pairs(*map(torch.from_numpy, parts))._replace(time=time), torch.from_numpy(ratings.stars[held])


def _observe(ratings: Ratings, settings: Settings) -> Observations:
    user, movie, t = ratings.tensors()
    return observe(
        Pattern.of(user, movie, (len(ratings.users), len(ratings.movies))),
        t,
        user_power=settings.user_power,
        movie_power=settings.movie_power,
        rater_power=settings.rater_power,
        with_offset=settings.offset,
        link=settings.link,
    )


_Found = tuple[Posterior, dict[str, Any]]


def _climb(task: _Task) -> Generator[Report, None, _Found]:
    """A mode with its curvature, and what was found on the way."""
    phase, ratings, observations, settings, epochs, test, noise, device = task
    assert epochs is not None
    fit = yield from _fit(phase, observations.to(device), settings, epochs, test)
    mode, known = fit.mode, seen(ratings)
    by_em = settings.solver == "als" and "em" in (settings.priors, settings.noise)
    if not bool(torch.isfinite(score(mode.factors, observations.pattern)).all()):
        raise TrainingError("training diverged at its last step; try a smaller --lr")
    laplace = Laplace(**mode._asdict(), noise=mode.parameters.sigma, mean_field=by_em)
    if settings.early_stop:  # else the fit is to be what so many steps make of it
        laplace = settled(laplace, known, observations)
    fitted = mean(score(laplace.factors, observations.pattern), observations.link).clamp(0, 1)
    train_rmse = _rmse(fitted, observations.t, ratings.scale)
    if noise is None:
        of_test = None if test is None else (test.pairs, ratings.scale.to_unit(test.stars))
        pairs, t = of_test or (_pairs_of(observations.pattern), observations.t)
        noise = estimate_noise(laplace, known, pairs, t, fitted=test is None, seed=settings.seed)
    laplace = laplace._replace(noise=noise)
    found = {key: getattr(fit, key) for key in ("epochs", "loss", "sigma", "holdout_rmse")}
    return laplace, found | {"train_rmse": train_rmse}


def _sample(task: _Task) -> Generator[Report, None, _Found]:
    """Draws of the posterior, and what was found on the way."""
    phase, ratings, observations, s, epochs, test, _, device = task
    how = gibbs.GibbsSettings(
        latent=s.latent,
        biases=s.biases,
        user_means=s.hierarchical in ("users", "both"),
        movie_means=s.hierarchical == "both",
        user_noise=s.noise in ("user", "both"),
        movie_noise=s.noise in ("movie", "both"),
        prior_scales=s.prior_scales,
        habits=s.habits if s.likelihood == "ordinal" else 0,
    )
    features = (
        _features(ratings.user_features, len(ratings.users), device),
        _features(ratings.movie_features, len(ratings.movies), device),
    )
    sampling = chains.fit(observations.to(device), how, epochs, s.chains, s.keep, s.seed, features, _groups(ratings, s.time))
    while True:
        try:
            p = next(sampling)
        except StopIteration as end:
            sampled: chains.Sampled = end.value
            break
        yield Report(phase, p.step, epochs or chains.MOST, p.loss, p.sigma, None, p.r_hat, p.ess)
    found: dict[str, Any] = {key: getattr(sampled, key) for key in ("burn_in", "loss", "sigma", "r_hat", "ess")}
    found |= {"epochs": sampled.sweeps, "draws": len(sampled.draws.alpha)}
    found |= {"train_rmse": _rmse(sampled.fitted.cpu(), observations.t, ratings.scale), "holdout_rmse": None}
    if test is not None:
        known = seen(ratings)
        parts = test.pairs.split(chunk_of(sampled.draws))
        predicted = torch.cat([predict_pairs(sampled.draws, known, part).mean() for part in parts])
        found["holdout_rmse"] = scores(test.scale.to_stars(predicted), test.stars).rmse
    return sampled.draws, found


def _groups(ratings: Ratings, whose: str) -> tuple[drift.Group, ...]:
    if whose == "none" or ratings.time is None:
        return ()
    user, movie, _ = ratings.tensors()
    users, movies = whose in ("user", "both"), whose in ("movie", "both")
    return tuple(drift.groups(user, movie, torch.from_numpy(ratings.time), users, movies))


def _features(blocks: Sequence[Block], rows: int, device: torch.device) -> Means | None:
    found: Means | None = None
    for block in blocks:
        pattern = Pattern.of(torch.from_numpy(block.row), torch.from_numpy(block.col), (rows, len(block.columns))).to(device)
        means = Means.of_features(torch.from_numpy(block.weight).to(device), pattern)
        found = means if found is None else found.beside(means)
    return found


def _fit(
    phase: str, observations: Observations, settings: Settings, epochs: int, test: _Test | None
) -> Generator[Report, None, _Fit]:
    """One fit. It stops early where the settings say so, except in a refit, whose length is known to be right."""
    steps, mode = _adam(observations, settings, epochs) if settings.solver == "adam" else _als(observations, settings, epochs)
    pace = PACES[settings.solver]
    device = observations.t.device
    pairs = None if test is None else test.pairs.to(device)
    best: _Fit | None = None
    clear, clear_at = math.inf, 0  # the last held-out error that was clearly better, and its epoch
    recent: deque[float] = deque(maxlen=pace.still_for)
    for progress in steps:
        done = progress.step + 1
        rmse = None
        if test is not None and pairs is not None and (progress.step % pace.check_every == 0 or done == epochs):
            now = mode(progress.state)
            rmse = scores(test.scale.to_stars(means_of_pairs(now.factors, pairs)), test.stars).rmse
            if best is None or best.holdout_rmse is None or rmse < best.holdout_rmse:
                best = _Fit(now, progress.loss, progress.sigma, done, rmse)
            if rmse < clear * (1 - _CLEARLY):
                clear, clear_at = rmse, done
        yield Report(phase, progress.step, epochs, progress.loss, progress.sigma, rmse)
        recent.append(progress.loss)
        if settings.early_stop and phase == "fit":
            still = len(recent) == pace.still_for and max(recent) - min(recent) <= pace.still * abs(progress.loss)
            if still or (test is not None and done - clear_at >= pace.patience):
                break
    best = best or _Fit(mode(progress.state), progress.loss, progress.sigma, progress.step + 1, None)
    return best._replace(mode=_on_cpu(best.mode))


_Steps = tuple[Iterator[Any], Callable[[Any], _Mode]]


def _scales(s: Settings) -> Scales:
    return Scales(s.sigma_u, s.sigma_v, s.sigma_w, s.sigma_x, s.sigma_b)


def _adam(observations: Observations, s: Settings, epochs: int) -> _Steps:
    how = map_fit.MapSettings(
        latent=s.latent,
        scales=_scales(s),
        sigma=s.sigma,
        learn_sigma=s.noise == "learned",
        biases=s.biases,
        user_means=s.hierarchical in ("users", "both"),
        movie_means=s.hierarchical == "both",
        lr=s.lr,
        block_ratings=s.block_ratings,
    )

    def prior(scale: float) -> Tensor:
        return torch.diag(torch.tensor([scale**-2] * s.latent + [s.sigma_b**-2] * s.biases))

    @torch.no_grad()
    def mode(state: map_fit.State) -> _Mode:
        parameters = map_fit.gather(state)
        return _Mode(parameters, effective(parameters, observations), prior(s.sigma_u), prior(s.sigma_v))

    return map_fit.fit(observations, how, epochs, torch.Generator().manual_seed(s.seed)), mode


def _als(observations: Observations, s: Settings, epochs: int) -> _Steps:
    how = als.AlsSettings(
        latent=s.latent,
        scales=_scales(s),
        sigma=s.sigma,
        biases=s.biases,
        user_means=s.hierarchical in ("users", "both"),
        movie_means=s.hierarchical == "both",
        learn_priors=s.priors == "em",
        learn_noise=s.noise == "em",
        shape=s.prior_shape,
    )

    def mode(state: als.State) -> _Mode:
        factors = als.current(state, observations, how)
        return _Mode(als.gather(state, how), factors, state.users.precision, state.movies.precision)

    return als.fit(observations, how, epochs, torch.Generator().manual_seed(s.seed)), mode


def _pairs_of(pattern: Pattern) -> Pairs:
    known = torch.ones(pattern.n, dtype=torch.bool)
    return Pairs(pattern.row.long(), pattern.col.long(), known, known)


def _on_cpu(mode: _Mode) -> _Mode:
    def moved(parts: tuple[Any, ...]) -> list[Any]:
        return [part.cpu() if isinstance(part, Tensor) else part for part in parts]

    return _Mode(
        Parameters(*moved(mode.parameters)), Factors(*moved(mode.factors)), mode.precision_u.cpu(), mode.precision_v.cpu()
    )


def _rmse(fitted: Tensor, t: Tensor, scale: Scale) -> float:
    return scores(scale.to_stars(fitted), scale.to_stars(t)).rmse


def seen(ratings: Ratings) -> Seen:
    """The ratings as a model keeps them."""
    start = np.searchsorted(ratings.user, np.arange(len(ratings.users) + 1))
    return Seen(*(torch.from_numpy(part) for part in (start, ratings.movie, ratings.stars)))


def _model(ratings: Ratings, settings: Settings, posterior: Posterior, metrics: dict[str, Any]) -> Model:
    return Model(
        method=settings.method,
        posterior=posterior,
        users=ratings.users,
        movies=ratings.movies,
        titles=ratings.titles,
        scale=ratings.scale,
        seen=seen(ratings),
        settings=settings.model_dump(),
        metrics=metrics,
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
