"""How a model predicts ratings that it has not seen, beside the baselines, and how it ranks movies."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pmfcli.artifact import Model, in_stars
from pmfcli.config import Settings
from pmfcli.core import kinds, metrics
from pmfcli.core.baselines import fit_biases, predict_baselines
from pmfcli.core.distinct import nearest
from pmfcli.core.pairs import Pairs
from pmfcli.core.predictive import Predictive
from pmfcli.core.recommend import block_of, rank
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import LIKED, Array, Ratings, Scale
from pmfcli.errors import DataError
from pmfcli.processes import side_by_side
from pmfcli.steps import run
from pmfcli.training import choose_device, train

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals whose coverage is measured
_QUADRATURE = 200  # points on the scale, where it has no steps
_SEED = 0  # of the users whose movies are ranked
_LARGE = 0.25  # of the scale: an error that is a large one
_RANKED_USERS, _LIKED = 1000, 0.75  # at most; a movie is liked from there on the scale, 4 of 5 stars


class Scored(NamedTuple):
    """Test ratings with all that was predicted for them, in stars; (n,) each."""

    user: Tensor  # a number for each person
    stars: Tensor
    model: Tensor
    mean: Tensor  # always the mean
    bias: Tensor  # biases alone
    sd: Tensor
    nll: Tensor  # -log of the rating's probability; nan where ratings are no steps of a scale
    crps: Tensor
    mean_nll: Tensor  # the same of always answering how often each rating is given
    mean_crps: Tensor
    low: Tensor  # (n, levels) the intervals
    high: Tensor
    below: Tensor  # the probability of a lower rating
    up_to: Tensor  # and of that or a lower one
    liked: Tensor  # the probability of 4 stars or more; nan where the scale has no 4
    user_count: Tensor  # training ratings of the user
    movie_count: Tensor  # training ratings of the movie
    trained_on: Tensor  # bool: the pair was among the training ratings
    off_grid: Tensor  # bool: a rating that training never had, where these are steps of a scale
    large: Tensor  # beyond this an error is a large one

    def select(self, mask: Tensor) -> "Scored":
        """The ratings where ``mask`` (n,) holds."""
        return Scored(*(column[mask] for column in self))


class Ranked(NamedTuple):
    """How users who liked a test movie would have found it among all that they had not rated in training; (users,) each."""

    user: Tensor
    liked: Tensor  # what they liked has so many stars at least
    ndcg: Tensor
    recall: Tensor
    ndcg_popular: Tensor  # the same where everybody is shown what most rated
    recall_popular: Tensor


class Tested(NamedTuple):
    """The results of a test."""

    scored: Scored
    ranked: Ranked | None


def score_model(model: Model, test: Ratings) -> Scored:
    """A saved model on a test set, whose ids are matched to the model's; its times are given to a model that uses them."""
    return _score(model, matched(model, test), *_given(test))


def rank_model(model: Model, test: Ratings, k: int) -> Ranked:
    """How well the top k of the movies that a user has not rated in training match those that they like in the test.

    Over users with such a movie: at most a thousand of them, drawn at random.
    """
    return _rank(model, matched(model, test), *_given(test), k)


def _given(test: Ratings) -> tuple[Tensor, Tensor]:
    """The stars, and a number for each person, (n,): the same in all tests of the same data, whomever a model knows."""
    return torch.from_numpy(test.stars), torch.from_numpy(test.user.astype(np.int64))


def matched(model: Model, test: Ratings) -> Pairs:
    """Test ratings as pairs of a model, by ids."""
    user, user_known = model.users.rows(test.users.ids)
    movie, movie_known = model.movies.rows(test.movies.ids)
    parts = (user[test.user], movie[test.movie], user_known[test.user], movie_known[test.movie])
    time = None if test.time is None else torch.from_numpy(test.time)
    return Pairs(*map(torch.from_numpy, parts))._replace(time=time)


def trained_on(model: Model, pairs: Pairs) -> Tensor:
    """Which pairs were among the training ratings, (n,) bool."""
    return (model.seen.find(pairs.user, pairs.movie) >= 0) & pairs.user_known & pairs.movie_known


def cross_score(ratings: Ratings, settings: Settings, part: Array, k: int | None = None) -> Iterator[Tested]:
    """For each part that is held out: train on the rest, score on it. In parallel where cores allow.

    Args:
        part: the part that each rating is in, from 0, or -1 if in none: (n,).
        k: also rank movies, and score the top k.

    Raises:
        DataError: a part has no ratings, or leaves too few to train on.
        ProcessError: a process was killed.
    """
    sizes = np.bincount(part[part >= 0], minlength=1)
    if not ((sizes > 0) & (sizes < ratings.n)).all():
        raise DataError(f"{ratings.name}: {ratings.n} ratings are too few for this split; hold out more or fewer of them")
    cores = settings.threads or os.cpu_count() or 1
    workers = min(len(sizes), cores) if choose_device(settings.device).type == "cpu" else 1
    if workers == 1:
        for number in range(len(sizes)):
            yield _train_and_score(ratings, settings, part == number, k)
        return
    share = settings.model_copy(update={"threads": cores // workers})
    calls = ((ratings, share, part == number, k) for number in range(len(sizes)))
    yield from side_by_side(_train_and_score, calls, workers)


def _train_and_score(ratings: Ratings, settings: Settings, mask: Array, k: int | None) -> Tested:
    rest = ratings.select(~mask)
    replace(rest.dense()[0], name=f"{ratings.name} without the ratings to score").check_trainable()
    model = run(train(rest, settings))
    test = ratings.select(mask)
    return Tested(score_model(model, test), None if k is None else rank_model(model, test, k))


def _score(model: Model, pairs: Pairs, stars: Tensor, people: Tensor) -> Scored:
    seen, scale = model.seen, model.scale
    user_counts, movie_counts = seen.start.diff(), model.movie_counts
    of_user = seen.users()
    pattern = Pattern.of(of_user, seen.movie, (len(model.users), len(model.movies)))
    beside = predict_baselines(fit_biases(pattern, seen.stars), pairs)
    found: dict[str, list[Tensor]] = {
        name: [] for name in ("model", "sd", "nll", "crps", "low", "high", "below", "up_to", "liked")
    }
    size = kinds.chunk_of(model.posterior)
    posterior = kinds.ready(model.posterior, seen) if len(stars) > size else model.posterior
    grid = torch.tensor(model.steps) if model.steps else None
    for part, truth in zip(pairs.split(size), stars.split(size), strict=True):
        for name, column in _predicted(kinds.predict_pairs(posterior, seen, part), scale, grid, truth).items():
            found[name].append(column)
    often = torch.bincount(nearest(grid, seen.stars), minlength=len(grid)) / len(seen.stars) if grid is not None else None
    return Scored(
        user=people,
        stars=stars,
        mean=beside["mean"],
        bias=beside["bias"],
        **_of_steps("mean_", grid, None if often is None else often.expand(len(stars), -1), stars),
        user_count=user_counts[pairs.user] * pairs.user_known,
        movie_count=movie_counts[pairs.movie] * pairs.movie_known,
        trained_on=trained_on(model, pairs),
        off_grid=torch.zeros_like(pairs.user_known) if grid is None else ~torch.isin(stars, grid),
        large=torch.full_like(stars, large_error(scale, model.steps)),
        **{name: torch.cat(columns) for name, columns in found.items()},
    )


def large_error(scale: Scale, steps: Sequence[float]) -> float:
    """A quarter of the scale, in whole steps where it has them: 1 star of 5."""
    quarter, apart = _LARGE * (scale.hi - scale.lo), torch.tensor(steps).diff()
    step = float(apart.min()) if len(apart) else quarter
    return math.floor(quarter / step + 1e-4) * step or quarter


def _rank(model: Model, pairs: Pairs, stars: Tensor, people: Tensor, k: int) -> Ranked:
    posterior, seen, n_movies = model.posterior, model.seen, len(model.movies)
    upper = model.scale.to_stars(_LIKED)
    liked_from = min((step for step in model.steps if step >= upper), default=upper)
    wanted = (stars >= liked_from) & pairs.user_known & pairs.movie_known
    users = pairs.user[wanted].unique()
    users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(_SEED))[:_RANKED_USERS]]
    popular, every = model.movie_counts.float(), torch.arange(n_movies)
    found = []
    for some in users.split(block_of(posterior, n_movies, k)):
        scores = rank(posterior, seen, kinds.people(posterior, seen, some), every, "mean", LEVELS[0])
        for user, score in zip(some.tolist(), scores, strict=True):
            movies = every[torch.isin(every, seen.of(user)[0], invert=True)]
            theirs = wanted & (pairs.user == user)
            liked = torch.isin(movies, pairs.movie[theirs])
            if bool(liked.any()):
                by_model, by_count = (metrics.ranking(one[movies], liked, k) for one in (score, popular))
                found.append([int(people[theirs][0]), liked_from, *by_model, *by_count])
    columns = torch.tensor(found, dtype=torch.float64).reshape(-1, len(Ranked._fields)).T
    return Ranked(*columns)


def _predicted(said: Predictive, scale: Scale, grid: Tensor | None, stars: Tensor) -> dict[str, Tensor]:
    """What is predicted for some ratings, in stars."""
    steps = () if grid is None else grid.tolist()
    ends = [said.interval(level) for level in LEVELS]
    found = {
        "model": scale.to_stars(said.mean()),
        "sd": said.sd() * (scale.hi - scale.lo),
        "low": in_stars(torch.stack([low for low, _ in ends], 1), steps, scale),
        "high": in_stars(torch.stack([high for _, high in ends], 1), steps, scale),
        "liked": torch.full_like(stars, math.nan),
    }
    if grid is None:
        points = torch.linspace(0, 1, _QUADRATURE + 1)[1:] - 0.5 / _QUADRATURE
        reached = torch.stack([said.below(float(point)) for point in points], 1)
        t = scale.to_unit(stars)
        came = (points >= t[:, None]).to(reached)
        crps = (reached - came).square().mean(1) * (scale.hi - scale.lo)
        at = said.below(t)
        found |= {"below": torch.where(t <= 0, 0.0, at), "up_to": torch.where(t >= 1, 1.0, at)}
        return found | {"nll": torch.full_like(stars, math.nan), "crps": crps}
    mass = said.masses(torch.tensor([scale.to_unit(star) for star in grid.tolist()]))
    level = nearest(grid, stars)
    up_to = mass.cumsum(1).gather(1, level[:, None])[:, 0]
    if scale.lo < LIKED <= scale.hi:
        found["liked"] = (mass * (grid >= LIKED)).sum(1)
    found |= {"up_to": up_to, "below": up_to - mass.gather(1, level[:, None])[:, 0]}
    return found | _of_steps("", grid, mass, stars)


def _of_steps(prefix: str, grid: Tensor | None, mass: Tensor | None, stars: Tensor) -> dict[str, Tensor]:
    if grid is None or mass is None:
        return {f"{prefix}{name}": torch.full_like(stars, math.nan) for name in ("nll", "crps")}
    level = nearest(grid, stars)
    crps = metrics.ranked_probability_score(mass, grid, level)
    return {f"{prefix}nll": metrics.log_score(mass, level), f"{prefix}crps": crps}
