"""From saved models of the same ratings to one: a pool, weighted by how well they predict ratings that none had seen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pmfcli import __version__
from pmfcli.artifact import Model
from pmfcli.config import FOUND_SCALES
from pmfcli.core import kinds, neighbourhood
from pmfcli.core.approximation import Fitted
from pmfcli.core.blend import Blend, weights
from pmfcli.core.distinct import nearest
from pmfcli.core.neighbourhood import Neighbourhood
from pmfcli.data.ratings import Ratings
from pmfcli.errors import DataError, UsageError
from pmfcli.evaluation import matched, score_model, trained_on
from pmfcli.reports import summary

NEIGHBOURHOOD = "item neighbourhood"
_MAY_DIFFER = ("seed", "epochs", "keep", "device", "threads", "holdout", "refit", *FOUND_SCALES)  # in models that share weights
LEAST_HELD = 50  # ratings that weights are learned from
_NARROW = 0.005  # of the scale: the density of a rating, where there are no steps, is what lies so near


class Part(NamedTuple):
    """One of the models of a blend, by name, and how good it is on the held-out ratings."""

    name: str
    model: Model
    weight: float
    scores: dict[str, Any]  # none where there are no held-out ratings


class Blended(NamedTuple):
    """A blend with its parts."""

    model: Model
    parts: list[Part]
    scores: dict[str, Any]  # of the blend, on the same ratings
    passed_over: int = 0  # held-out ratings that a model had seen
    held_out: int = 0  # those that none had
    unknown: int = 0  # of these, of users or movies that training did not have
    off_grid: int = 0  # of these, none that training had


def blend(models: Sequence[Model], names: Sequence[str], held_out: Ratings, with_neighbourhood: bool) -> Blended:
    """Pool models, and an item neighbourhood of their ratings, with weights learned from ratings that none of them saw.

    Raises:
        UsageError: models of different ratings, or blends.
        DataError: too few ratings that the models had not seen.
    """
    found, names = _aligned(models, names, with_neighbourhood)
    seen = torch.stack([trained_on(one, matched(one, held_out)) for one in found]).any(0)
    fresh = held_out.select(~seen.numpy())
    if fresh.n < LEAST_HELD:
        raise DataError(
            f"{held_out.name}: only {fresh.n:,} of its {held_out.n:,} ratings are new to all the models; weights need at "
            f"least {LEAST_HELD}, so hold some out and train on the others"
        )
    if with_neighbourhood:  # its noise is by how much it is wrong
        last = score_model(found[-1], fresh)
        found[-1] = _with_noise(found[-1], (last.model - last.stars).square().mean().sqrt())
    tests = [score_model(one, fresh) for one in found]
    scored = [summary(one) for one in tests]
    weight = weights(torch.stack([_mass(one, fresh) for one in found], 1))
    parts = [Part(*each) for each in zip(names, found, weight.tolist(), scored, strict=True)]
    model = _model(parts, {"holdout_ratings": fresh.n})
    whole = summary(score_model(model, fresh))
    model = replace(model, metrics={**model.metrics, "holdout_rmse": whole["rmse"]})
    most = max(zip(found, tests, strict=True), key=lambda one: len(one[0].movies))[1]
    unknown = int(((most.user_count == 0) | (most.movie_count == 0)).sum())
    return Blended(model, parts, whole, int(seen.sum()), fresh.n, unknown, int(most.off_grid.sum()))


def blend_like(models: Sequence[Model], names: Sequence[str], like: Model) -> Blended:
    """The same with the weights of another blend of the same kinds of models, such as these before training on all ratings.

    Raises:
        UsageError: it is not such a blend.
    """
    old = like.posterior
    if not isinstance(old, Blend):
        raise UsageError("--weights: the model is not a blend; give one made by pmf blend")
    with_neighbourhood = isinstance(old.parts[-1], Neighbourhood)
    found, names = _aligned(models, names, with_neighbourhood)
    wanted = list(like.settings["parts"].values())
    if len(wanted) != len(found):
        raise UsageError(
            f"--weights: that blend has {len(wanted) - with_neighbourhood} models; give as many, in the same order"
        )
    for name, one, its in zip(names, found, wanted, strict=True):
        other = [key for key, value in one.settings.items() if key not in _MAY_DIFFER and its.get(key) != value]
        if other:
            was, now = its.get(other[0]), one.settings[other[0]]
            raise UsageError(
                f"--weights: {name} takes the place of {its.get('name')} in that blend, but has {other[0]} {now}, not {was}; "
                "give models with the same settings, in the same order"
            )
    if isinstance(last := old.parts[-1], Neighbourhood):
        found[-1] = _with_noise(found[-1], last.noise)
    parts = [Part(name, one, w, {}) for name, one, w in zip(names, found, old.weight.tolist(), strict=True)]
    return Blended(_model(parts, {}), parts, {})


def _aligned(models: Sequence[Model], names: Sequence[str], with_neighbourhood: bool) -> tuple[list[Model], list[str]]:
    """The models, of the same ratings, each knowing the first of the movies; and their neighbourhood."""
    first = max(range(len(models)), key=lambda number: len(models[number].movies))
    most = models[first]
    for one, name in zip(models, names, strict=True):
        if isinstance(one.posterior, Blend):
            raise UsageError(f"{name}: it is a blend; blend its parts")
        same = one.users == most.users and one.movies.ids == most.movies.ids[: len(one.movies)] and one.scale == most.scale
        if not same or not all(torch.equal(a, b) for a, b in zip(one.seen, most.seen, strict=True)):
            raise UsageError(f"{name}: not trained on the ratings of {names[first]}; blend models trained on the same")
    found = list(models)
    if with_neighbourhood:
        alike = neighbourhood.fit(most.seen, (len(most.users), len(most.movies)), *most.scale)
        found.append(replace(most, method=NEIGHBOURHOOD, posterior=alike, settings={"method": NEIGHBOURHOOD, "time": "none"}))
    return found, [*names, *([NEIGHBOURHOOD] if with_neighbourhood else [])]


def _with_noise(model: Model, noise: Tensor) -> Model:
    assert isinstance(model.posterior, Neighbourhood)
    return replace(model, posterior=model.posterior._replace(noise=neighbourhood.least_noise(noise, *model.scale)))


def _mass(model: Model, held_out: Ratings) -> Tensor:
    """The probability of every held-out rating, (n,), or of what is very near where there are no steps."""
    pairs, t = matched(model, held_out), model.scale.to_unit(torch.from_numpy(held_out.stars))
    size = kinds.chunk_of(model.posterior)
    posterior = kinds.ready(model.posterior, model.seen) if len(t) > size else model.posterior
    grid = _grid(model)
    found = []
    for part, truth in zip(pairs.split(size), t.split(size), strict=True):
        said = kinds.predict_pairs(posterior, model.seen, part)
        if grid is None:
            high, low = truth + _NARROW, truth - _NARROW  # what lies beyond the scale is at its end
            found.append(torch.where(high < 1, said.below(high), 1.0) - torch.where(low > 0, said.below(low), 0.0))
        else:
            level = nearest(grid, truth)
            found.append(said.masses(grid).gather(1, level[:, None])[:, 0])
    return torch.cat(found)


def _grid(model: Model) -> Tensor | None:
    if isinstance(model.posterior, Fitted) and model.posterior.grid is not None:
        return model.posterior.grid
    return torch.tensor([model.scale.to_unit(star) for star in model.steps]) if model.steps else None


def _model(parts: Sequence[Part], metrics: dict[str, Any]) -> Model:
    most = max((part.model for part in parts), key=lambda one: len(one.movies))
    told = {str(part.model.settings["time"]) for part in parts} - {"none"}
    of_steps = [
        part.model for part in parts if isinstance(part.model.posterior, Fitted) and part.model.posterior.grid is not None
    ]
    return replace(
        most,
        method="blend",
        posterior=Blend(
            parts=tuple(part.model.posterior for part in parts),  # type: ignore[misc] # none is a blend
            weight=torch.tensor([part.weight for part in parts]),
            movies=tuple(len(part.model.movies) for part in parts),
            powers=tuple(float(part.model.settings.get("user_power", 0)) for part in parts),
            grid=_grid(of_steps[0] if of_steps else most),  # the same numbers, to the last bit
        ),
        settings={
            "method": "blend",
            "time": "none" if not told else told.pop() if len(told) == 1 else "both",
            "parts": {str(number): {"name": part.name, **part.model.settings} for number, part in enumerate(parts)},
        },
        metrics={"weights": [part.weight for part in parts], **metrics},
        versions={"pmf": __version__, "torch": torch.__version__},
    )
