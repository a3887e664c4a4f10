"""One fit, by gradient steps, least squares or sampling: to a posterior, yielding as it goes, or resuming."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pmfcli.config import FOUND_SCALES, Settings
from pmfcli.core import als, chains, drift, gibbs, usage
from pmfcli.core import map as map_fit
from pmfcli.core.approximation import Common, Fitted, Laplace
from pmfcli.core.distinct import distinct
from pmfcli.core.means import Means
from pmfcli.core.metrics import scores
from pmfcli.core.noise import chosen, estimate_noise, scaled
from pmfcli.core.pairs import Pairs, Seen
from pmfcli.core.posterior import Factors, Observations, Parameters, Scales, effective, observe, sides
from pmfcli.core.predict import means_of_pairs, predict_pairs
from pmfcli.core.rows import chunk_of
from pmfcli.core.scales import bias_scale, means_scale
from pmfcli.core.settling import by_noise, noise_at_rest, settled
from pmfcli.core.sparse import Pattern
from pmfcli.core.team import ALONE, WHOLE, Share, Team, everywhere
from pmfcli.core.tree import Tree, plain
from pmfcli.data.ratings import Block, Ratings, Scale
from pmfcli.errors import TrainingError
from pmfcli.steps import Steps

_CLEARLY = 1e-3  # better by this part
_UNUSED = 1.0  # a prior scale of what there is not
_FINDERS = {"sigma_b": bias_scale, "sigma_x": means_scale}


class Pace(NamedTuple):
    """How often to look at the held-out ratings, and when to stop. In steps: an epoch by blocks has one for each block."""

    check_every: int
    patience: int  # without a clearly better held-out error
    still_for: int  # epochs: the loss no longer moves, its relative range over so many is below ``still``
    still: float
    sure: int  # patience where a clear difference cannot be chance
    worse: float  # looks in a row at an error that is clearly worse than the best, there

    def of(self, blocks: int, held_out: int) -> "Pace":
        """The same in epochs of so many blocks, with so many ratings held out."""
        sure = held_out >= SURE
        patience, worse = (self.sure, self.worse) if sure else (self.patience, math.inf)
        return self._replace(check_every=-(-self.check_every // blocks), patience=-(-patience // blocks), worse=worse)


PACES = {"adam": Pace(5, 50, 20, 1e-5, 50, 2), "als": Pace(1, 10, 5, 1e-4, 1, 1)}
SURE = 200_000  # held-out ratings, whose RMSE is known to a part in a thousand


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
    snapshot: Callable[[], Tree] | None = None  # all that ``train`` needs to go on from here


class Test(NamedTuple):
    """Held-out ratings."""

    pairs: Pairs
    stars: Tensor
    scale: Scale


class Task(NamedTuple):
    """One fit to do."""

    phase: str
    ratings: Ratings
    observations: Observations
    settings: Settings
    epochs: int | None  # at most; None: a sampler stops by itself
    device: torch.device
    blocks: int  # of users, for Adam: the same with and without what is held out
    test: Test | None = None
    noise: tuple[Tensor, Tensor] | None = None  # of a mode, and the doubt of its movies, where they are known
    rest: float | None = None  # the noise that users settle by, where it is known
    resume: Tree = None  # a snapshot of this fit
    start: Parameters | None = None  # where least squares begin, if not at the principal factors
    passing: bool = False  # whether what counts is what it finds out, and another fit makes the model


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


def observed(ratings: Ratings, settings: Settings, users: Share = WHOLE) -> Observations:
    """Ratings as the core takes them."""
    user, movie, t = ratings.tensors()
    return observe(
        Pattern.of(user, movie, (len(ratings.users), len(ratings.movies))),
        t,
        user_power=settings.user_power,
        movie_power=settings.movie_power,
        rater_power=settings.rater_power,
        user_means=settings.user_means,
        movie_means=settings.movie_means,
        with_offset=settings.offset,
        link=settings.link,
        users=users,
    )


Found = tuple[Fitted, dict[str, Any]]


def climb(task: Task) -> Generator[Report, None, Found]:
    """A mode with its curvature, and what was found on the way.

    Raises:
        TrainingError: it diverged; names the remedy.
    """
    task = task._replace(settings=with_scales(task.settings, task.observations))
    ratings, observations, settings, test, noise = task.ratings, task.observations, task.settings, task.test, task.noise
    team = observations.users.team
    fit = yield from _fit(task)
    mode, known = fit.mode, seen(ratings)
    by_em = settings.by_em
    if not all(bool(torch.isfinite(part).all()) for part in sides(mode.factors)):
        raise TrainingError(f"training diverged at its last step; {_remedy(settings)}")
    sigma = mode.parameters.sigma
    ones, one = sigma.new_ones(len(mode.factors.U)), torch.ones_like(sigma)
    laplace = Laplace(**mode._asdict(), noise=sigma, noise_u=ones, residual=sigma, doubt=one, mean_field=by_em)
    if (W := mode.parameters.W) is not None and (crowd := observations.crowd) is not None:
        laplace = laplace._replace(common=Common(crowd.mean(W), crowd.typical))
    asked = _of_noise(laplace, observations, test, settings.seed) if noise is None else None
    few = asked[0].user[asked[0].user_known] if asked is not None and task.passing and not by_em else None
    try:
        laplace, rest = _at_rest(task, laplace, known, few, by_em)
        if asked is not None:
            noise = estimate_noise(laplace, known, *asked, fitted=test is None, team=team)
    except TrainingError as error:
        raise TrainingError(f"training diverged: {error}; {_remedy(settings)}") from None
    if noise is not None:
        laplace = laplace._replace(noise=noise[0], doubt=noise[1])
    if _of_steps(task) and not task.passing:
        laplace = laplace._replace(usage=usage.find(observations, ratings.scale, settings.habits, settings.seed))
    found = {key: getattr(fit, key) for key in ("epochs", "loss", "sigma", "holdout_rmse")}
    found |= {"settling_sigma": rest, "noise": float(laplace.noise), "doubt": float(laplace.doubt)}
    found |= {name: scale for name in FOUND_SCALES if (scale := getattr(settings, name)) is not None}
    if not task.passing:
        found["train_rmse"] = float(laplace.residual) * (ratings.scale.hi - ratings.scale.lo)
    if not all(math.isfinite(value) for value in found.values() if value is not None):
        raise TrainingError(f"training diverged; {_remedy(settings)}")
    return laplace, found


def with_scales(settings: Settings, observations: Observations) -> Settings:
    """With the prior scales of a mode that are not given estimated from the ratings."""
    wanted = [name for name in FOUND_SCALES if getattr(settings, name) is None and not settings.lacks(name)]
    return settings.model_copy(update={name: _FINDERS[name](observations) for name in wanted})


def _at_rest(task: Task, laplace: Laplace, known: Seen, few: Tensor | None, by_em: bool) -> tuple[Laplace, float]:
    """The mode with its users settled, unless the fit is to be what so many steps make of it, and their noise scales."""
    observations, test = task.observations, task.test
    rest = float(laplace.parameters.sigma) if task.rest is None else task.rest
    if task.settings.early_stop:
        if task.rest is None and test is not None and not by_em:
            rest = noise_at_rest(laplace, known, observations, test.pairs, test.scale.to_unit(test.stars))
        laplace = by_noise(laplace, rest)
        laplace = settled(laplace, known, observations, None if few is None else few.unique())
    return scaled(laplace, observations, few), rest


def _remedy(settings: Settings) -> str:
    return "try a smaller --lr" if settings.solver == "adam" else "try a larger --sigma"


def _of_noise(laplace: Laplace, o: Observations, test: Test | None, seed: int) -> tuple[Pairs, Tensor]:
    """Pairs and their ratings on the unit scale, to find the noise from: held out, if any are."""
    some = chosen(o.pattern.n if test is None else len(test.stars), laplace, seed, o.users.team)
    if test is not None:
        return test.pairs.at(some), test.scale.to_unit(test.stars[some])
    user, movie, known = o.pattern.row[some].long(), o.pattern.col[some].long(), torch.ones_like(some, dtype=torch.bool)
    return Pairs(user, movie, known, known), o.t[some]


def sample(task: Task) -> Generator[Report, None, Found]:
    """Draws of the posterior, and what was found on the way.

    Raises:
        TrainingError: the sampler broke down.
    """
    ratings, observations, s, test, device = task.ratings, task.observations, task.settings, task.test, task.device
    team = observations.users.team
    how = gibbs.GibbsSettings(
        latent=s.latent,
        biases=s.biases,
        user_means=s.user_means,
        movie_means=s.movie_means,
        user_noise=s.noise in ("user", "both"),
        movie_noise=s.noise in ("movie", "both"),
        prior_scales=s.prior_scales,
        habits=s.habits if _of_steps(task) else 0,
    )
    features = (
        _features(ratings.user_features, len(ratings.users), device),
        _features(ratings.movie_features, len(ratings.movies), device),
    )
    groups = _groups(ratings, s.time)
    data = observations.to(device)
    sampling = Steps(chains.fit(data, how, task.epochs, s.chains, s.keep, s.seed, features, groups, task.resume))
    for p in sampling:
        yield Report(task.phase, p.step, task.epochs or chains.MOST, p.loss, p.sigma, None, p.r_hat, p.ess, p.snapshot)
    sampled = sampling.result
    found: dict[str, Any] = {key: getattr(sampled, key) for key in ("burn_in", "loss", "sigma", "r_hat", "ess")}
    found |= {"epochs": sampled.sweeps, "draws": len(sampled.draws.alpha)}
    found |= {"train_rmse": _rmse(sampled.fitted.cpu(), sampled.rated.cpu(), ratings.scale, team), "holdout_rmse": None}
    if test is not None:
        known = seen(ratings)
        parts = test.pairs.split(chunk_of(sampled.draws))
        predicted = torch.cat([predict_pairs(sampled.draws, known, part).mean() for part in parts])
        found["holdout_rmse"] = scores(test.scale.to_stars(predicted), test.stars, team).rmse
    return sampled.draws, found


def _of_steps(task: Task) -> bool:
    """Whether ratings are steps of a scale; those that are left where some are held out may all be alike."""
    o = task.observations
    return task.settings.likelihood == "ordinal" and len(everywhere(o.users.team, distinct(o.t)).unique()) > 1


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


def _fit(task: Task) -> Generator[Report, None, _Fit]:
    """One fit. It stops early where the settings say so, except in a refit, whose length is known to be right."""
    settings, test, epochs, device = task.settings, task.test, task.epochs, task.device
    assert epochs is not None
    old = task.resume
    by_adam = settings.solver == "adam"
    observations, before = task.observations.to(device), None if old is None else old["fit"]
    if by_adam:
        steps, mode = _adam(observations, settings, task.blocks, epochs, before)
    else:
        steps, mode = _als(observations, settings, epochs, before, task.start)
    users = task.observations.users
    team = users.team
    held_out = int(team.sum(torch.tensor(0 if test is None else len(test.stars))))
    pace = PACES[settings.solver].of(task.blocks if by_adam else 1, held_out)
    pairs = None if test is None else test.pairs.to(device)
    best: _Fit | None = None
    clear, clear_at = math.inf, 0  # the last held-out error that was clearly better, and its epoch
    worse = 0  # looks in a row at one that is clearly worse than the best
    recent: deque[float] = deque(maxlen=pace.still_for)
    if old is not None:
        best = None if old["best"] is None else _unpacked(old["best"])
        clear, clear_at, worse = old["clear"], old["clear_at"], old["worse"]
        recent.extend(old["recent"])

    def snapshot() -> Tree:
        found = {"best": best, "clear": clear, "clear_at": clear_at, "worse": worse, "recent": tuple(recent)}
        return plain(found) | {"fit": progress.snapshot()}

    for progress in steps:
        done = progress.step + 1
        again = old is not None and progress.step == old["fit"]["step"]  # all that follows was said before
        rmse = None
        if not again and test is not None and pairs is not None and (progress.step % pace.check_every == 0 or done == epochs):
            now = mode(progress.state)
            rmse = scores(test.scale.to_stars(means_of_pairs(now.factors, pairs, users)), test.stars, team).rmse
            if not math.isfinite(rmse):
                raise TrainingError(f"training diverged at step {progress.step}; {_remedy(settings)}")
            if best is None or best.holdout_rmse is None or rmse < best.holdout_rmse:
                best = _Fit(now, progress.loss, progress.sigma, done, rmse)
            if rmse < clear * (1 - _CLEARLY):
                clear, clear_at = rmse, done
            settled_down = clear_at > 1  # it is better than at the first look, after which Adam may lose its way for a moment
            worse = worse + 1 if settled_down and rmse > (best.holdout_rmse or math.inf) * (1 + _CLEARLY) else 0
        if not again:
            recent.append(progress.loss)
            yield Report(task.phase, progress.step, epochs, progress.loss, progress.sigma, rmse, snapshot=snapshot)
        if settings.early_stop and task.phase == "fit":
            still = len(recent) == pace.still_for and max(recent) - min(recent) <= pace.still * abs(progress.loss)
            if still or (test is not None and (done - clear_at >= pace.patience or worse >= pace.worse)):
                break
    best = best or _Fit(mode(progress.state), progress.loss, progress.sigma, progress.step + 1, None)
    return best._replace(mode=_on_cpu(best.mode))


def _unpacked(saved: Tree) -> _Fit:
    (parameters, factors, *precisions), *rest = saved
    return _Fit(_Mode(Parameters(*parameters), Factors(*factors), *precisions), *rest)


_Steps = tuple[Iterator[Any], Callable[[Any], _Mode]]


def _scales(s: Settings) -> Scales:
    return Scales(s.sigma_u, s.sigma_v, s.sigma_w, s.sigma_x or _UNUSED, s.sigma_b or _UNUSED)


def _adam(observations: Observations, s: Settings, blocks: int, epochs: int, resume: Tree) -> _Steps:
    how = map_fit.MapSettings(
        latent=s.latent,
        scales=_scales(s),
        sigma=s.sigma,
        learn_sigma=s.noise == "learned",
        biases=s.biases,
        user_means=s.user_means,
        movie_means=s.movie_means,
        lr=s.lr,
        blocks=blocks,
    )

    def prior(scale: float) -> Tensor:
        return torch.diag(torch.tensor([scale**-2] * s.latent + [how.scales.sigma_b**-2] * s.biases))

    @torch.no_grad()
    def mode(state: map_fit.State) -> _Mode:
        parameters = map_fit.gather(state)
        return _Mode(parameters, effective(parameters, observations), prior(s.sigma_u), prior(s.sigma_v))

    return map_fit.fit(observations, how, epochs, torch.Generator().manual_seed(s.seed), resume), mode


def _als(observations: Observations, s: Settings, epochs: int, resume: Tree, start: Parameters | None) -> _Steps:
    how = als.AlsSettings(
        latent=s.latent,
        scales=_scales(s),
        sigma=s.sigma,
        biases=s.biases,
        user_means=s.user_means,
        movie_means=s.movie_means,
        learn_priors=s.priors == "em",
        learn_noise=s.noise == "em",
        shape=s.prior_shape,
    )

    def mode(state: als.State) -> _Mode:
        factors = als.current(state, observations, how)
        return _Mode(als.gather(state, how), factors, state.users.precision, state.movies.precision)

    if start is not None:
        moved: list[Any] = [None if part is None else part.to(observations.t) for part in start]
        start = Parameters(*moved)
    return als.fit(observations, how, epochs, torch.Generator().manual_seed(s.seed), resume, start), mode


def _on_cpu(mode: _Mode) -> _Mode:
    def moved(parts: tuple[Any, ...]) -> list[Any]:
        return [part.cpu() if isinstance(part, Tensor) else part for part in parts]

    return _Mode(
        Parameters(*moved(mode.parameters)), Factors(*moved(mode.factors)), mode.precision_u.cpu(), mode.precision_v.cpu()
    )


def _rmse(fitted: Tensor, t: Tensor, scale: Scale, team: Team = ALONE) -> float:
    return scores(fitted, t, team).rmse * (scale.hi - scale.lo)


def seen(ratings: Ratings) -> Seen:
    """The ratings as a model keeps them."""
    start = np.searchsorted(ratings.user, np.arange(len(ratings.users) + 1, dtype=ratings.user.dtype))
    return Seen(*(torch.from_numpy(part) for part in (start, ratings.movie, ratings.stars)))
