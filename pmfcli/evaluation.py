"""Scores of a model on ratings it has not seen, with the baselines beside, overall and by how much was known."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pmfcli.artifact import Model
from pmfcli.config import Settings
from pmfcli.core.metrics import fit_biases, predict_baselines, scores
from pmfcli.core.predict import Pairs, chunk_of, predict_pairs
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import Array, Ratings
from pmfcli.errors import DataError
from pmfcli.training import held_out, run, train

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals whose coverage is measured
_EDGES = (0, 1, 3, 10, 30, 100, 300)  # groups by number of training ratings: 0, 1-2, 3-9, …


class Scored(NamedTuple):
    """Test ratings with all that was predicted for them, in stars; (n,) each."""

    stars: Tensor
    model: Tensor
    mean: Tensor  # always the mean
    bias: Tensor  # biases alone
    inside: Tensor  # (n, levels) bool: the interval of each level covers the rating
    user_count: Tensor  # training ratings of the user
    movie_count: Tensor  # training ratings of the movie
    trained_on: Tensor  # bool: the pair was among the training ratings


def score_model(model: Model, test: Ratings) -> Scored:
    """A saved model on a test set, whose ids are matched to the model's."""
    user, user_known = model.users.rows(test.users.ids)
    movie, movie_known = model.movies.rows(test.movies.ids)
    parts = (user[test.user], movie[test.movie], user_known[test.user], movie_known[test.movie])
    return _score(model, Pairs(*map(torch.from_numpy, parts)), torch.from_numpy(test.stars))


def cross_score(ratings: Ratings, settings: Settings, held: Iterable[Array]) -> Iterator[Scored]:
    """For each mask (n,) of held-out ratings: train on the rest, score on it."""
    for mask in held:
        if not 0 < mask.sum() < len(mask):
            raise DataError(f"{ratings.name}: {ratings.n} ratings are too few for this split")
        model = run(train(ratings.select(~mask), settings))
        yield _score(model, *held_out(ratings, mask))


def report(parts: Sequence[Scored]) -> dict[str, Any]:
    """All scores of one or several test sets, as plain numbers; what a model cannot give is None."""
    whole = Scored(*(torch.cat(column) for column in zip(*parts, strict=True)))
    cold = (whole.user_count == 0) | (whole.movie_count == 0)
    beside = {name: _errors(whole.stars, getattr(whole, name)) for name in ("mean", "bias")}
    return {
        "n": len(whole.stars),
        "n_cold": int(cold.sum()),
        "n_trained_on": int(whole.trained_on.sum()),
        **_errors(whole.stars, whole.model),
        "nll": None,
        "crps": None,
        "coverage": {
            f"{level:g}": float(covered) for level, covered in zip(LEVELS, whole.inside.double().mean(0), strict=True)
        },
        "baselines": beside,
        "by_user_ratings": _groups(whole, whole.user_count),
        "by_movie_ratings": _groups(whole, whole.movie_count),
        "folds": [_errors(part.stars, part.model) for part in parts] if len(parts) > 1 else None,
    }


def _score(model: Model, pairs: Pairs, stars: Tensor) -> Scored:
    seen = model.seen
    user_counts, movie_counts = seen.start.diff(), seen.movie_counts(len(model.movies))
    of_user = seen.users()
    pattern = Pattern.of(of_user, seen.movie, (len(model.users), len(model.movies)))
    beside = predict_baselines(fit_biases(pattern, seen.stars), pairs)
    both = pairs.user_known & pairs.movie_known
    trained_on = torch.isin(pairs.user * len(model.movies) + pairs.movie, of_user * len(model.movies) + seen.movie) & both
    model_stars, inside = [], []
    size = chunk_of(model.posterior)
    for part, truth in zip(pairs.split(size), stars.split(size), strict=True):
        found = predict_pairs(model.posterior, model.seen, part)
        model_stars.append(model.scale.to_stars(found.mean()))
        ends = [[model.scale.to_stars(end) for end in found.interval(level)] for level in LEVELS]
        inside.append(torch.stack([(low <= truth) & (truth <= high) for low, high in ends], 1))
    return Scored(
        stars=stars,
        model=torch.cat(model_stars),
        mean=beside["mean"],
        bias=beside["bias"],
        inside=torch.cat(inside),
        user_count=user_counts[pairs.user] * pairs.user_known,
        movie_count=movie_counts[pairs.movie] * pairs.movie_known,
        trained_on=trained_on,
    )


def _errors(stars: Tensor, prediction: Tensor) -> dict[str, float]:
    found = scores(prediction, stars)
    return {"rmse": found.rmse, "mae": found.mae}


def _groups(scored: Scored, count: Tensor) -> list[dict[str, Any]]:
    groups = []
    for low, high in itertools.pairwise((*_EDGES, math.inf)):
        inside = (count >= low) & (count < high)
        if not inside.any():
            continue
        name = f"{low}+" if high == math.inf else str(low) if high == low + 1 else f"{low}-{high - 1}"
        part = Scored(*(column[inside] for column in scored))
        beside = {f"rmse_{name}": _errors(part.stars, getattr(part, name))["rmse"] for name in ("bias", "mean")}
        groups.append({"ratings": name, "n": len(part.stars), **_errors(part.stars, part.model), **beside})
    return groups
