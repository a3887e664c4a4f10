"""Scores of test sets, overall and by how much was known, as plain numbers with bootstrap intervals; two models compared."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pmfcli.core import metrics
from pmfcli.data.ratings import LIKED
from pmfcli.evaluation import LEVELS, Ranked, Scored

BINS = 10  # of the PIT histogram, of the ratings by sd, and of the reliability diagram
_EDGES = (0, 1, 3, 10, 30, 100, 300)  # groups by number of training ratings: 0, 1-2, 3-9, …
_ENDS = (0.025, 0.975)  # of bootstrap intervals
_SEED = 0  # of the bootstrap
_NAMES = [f"{level:g}" for level in LEVELS]
_COLUMNS = ("rmse", "mae", "nll", "crps")


def report(parts: Sequence[Scored]) -> dict[str, Any]:
    """All scores of one or several test sets, as plain numbers; what a model cannot give is None."""
    whole = Scored(*(torch.cat(column) for column in zip(*parts, strict=True)))
    cold = (whole.user_count == 0) | (whole.movie_count == 0)
    error = whole.model - whole.stars
    return {
        "n": len(whole.stars),
        "n_cold": int(cold.sum()),
        "n_trained_on": int(whole.trained_on.sum()),
        "n_off_grid": int(whole.off_grid.sum()),
        **summary(whole),
        "warm": summary(whole.select(~cold)) if bool((~cold).any()) else None,
        "intervals": _intervals(whole),
        "width": dict(zip(_NAMES, (whole.high - whole.low).double().mean(0).tolist(), strict=True)),
        "pit": metrics.pit_histogram(whole.below, whole.up_to, BINS),
        "large_error": float(whole.large[0]),
        "auc_sd": metrics.area_under_roc(whole.sd, error.abs() > whole.large),
        "rmse_by_sd": [{"sd": sd, "rmse": rmse} for sd, rmse in metrics.rmse_by_score(whole.sd, error, BINS)],
        "risk_coverage": _risk(whole.sd, error),
        "reliability": _reliability(whole),
        "baselines": {
            "mean": {
                **_errors(whole.stars, whole.mean),
                "nll": _number(whole.mean_nll.mean()),
                "crps": _number(whole.mean_crps.mean()),
            },
            "bias": _errors(whole.stars, whole.bias),
        },
        "by_user_ratings": _groups(whole, whole.user_count),
        "by_movie_ratings": _groups(whole, whole.movie_count),
        "folds": [summary(part) for part in parts] if len(parts) > 1 else None,
    }


def report_ranking(parts: Sequence[Ranked], k: int) -> dict[str, Any]:
    """Means over users of one or several test sets, beside those of the most rated movies, with 95 % bootstrap intervals.

    A user in several test sets counts in each of them; the bootstrap draws users, each with all their ratings.
    """
    whole = Ranked(*(torch.cat(column) for column in zip(*parts, strict=True)))
    means = torch.stack([whole.ndcg, whole.recall], 1)
    sums, count = metrics.bootstrap(whole.user, means, _SEED)
    drawn = sums / count[:, None]
    return {
        "k": k,
        "candidates": "all movies of the model that the user had not rated in training",
        "relevant": f"test ratings of {float(whole.liked[0]):g} or more"
        if len(whole.liked)
        else "test ratings in the upper quarter of the scale",
        "users": len(whole.user.unique()),
        "ndcg": _number(whole.ndcg.mean()),
        "recall": _number(whole.recall.mean()),
        "intervals": {"ndcg": ends(drawn[:, 0]), "recall": ends(drawn[:, 1])},
        "popular": {"ndcg": _number(whole.ndcg_popular.mean()), "recall": _number(whole.recall_popular.mean())},
    }


def summary(scored: Scored) -> dict[str, Any]:
    """RMSE, MAE, NLL, CRPS, coverage of the intervals, and that of central ones which may end within a step of the scale."""
    return {
        **_errors(scored.stars, scored.model),
        "nll": _number(scored.nll.double().mean()),
        "crps": _number(scored.crps.double().mean()),
        "coverage": dict(zip(_NAMES, _inside(scored).mean(0).tolist(), strict=True)),
        "central": {
            name: metrics.central_coverage(scored.below, scored.up_to, level)
            for name, level in zip(_NAMES, LEVELS, strict=True)
        },
    }


def _inside(scored: Scored) -> Tensor:
    """Which ratings lie in the interval of each level, (n, levels), 1 or 0."""
    return ((scored.low <= scored.stars[:, None]) & (scored.stars[:, None] <= scored.high)).double()


def _errors(stars: Tensor, prediction: Tensor) -> dict[str, float]:
    found = metrics.scores(prediction, stars)
    return {"rmse": found.rmse, "mae": found.mae}


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def losses(scored: Scored) -> Tensor:
    """What each score averages, (n, 4): squared error, absolute error, and the two of the distribution."""
    error = scored.model.double() - scored.stars.double()
    return torch.stack([error.square(), error.abs(), scored.nll.double(), scored.crps.double()], 1)


def averages(sums: Tensor, count: Tensor) -> Tensor:
    """Scores from sums of ``losses`` (k, 4) over so many ratings (k,)."""
    found = sums / count[:, None]
    return torch.cat([found[:, :1].sqrt(), found[:, 1:]], 1)


def _intervals(scored: Scored) -> dict[str, Any]:
    """95 % bootstrap intervals of the scores and of the coverage, over users."""
    k = len(_COLUMNS)
    sums, count = metrics.bootstrap(scored.user, torch.cat([losses(scored), _inside(scored)], 1), _SEED)
    drawn, covered = averages(sums[:, :k], count), sums[:, k:] / count[:, None]
    found: dict[str, Any] = {name: ends(drawn[:, place]) for place, name in enumerate(_COLUMNS)}
    return found | {"coverage": {name: ends(covered[:, place]) for place, name in enumerate(_NAMES)}}


def ends(drawn: Tensor) -> list[float] | None:
    """The ends of the 95 % interval of bootstrap replicates (k,); None if there are none, or they are nan."""
    return None if not len(drawn) or bool(drawn.isnan().any()) else drawn.quantile(torch.tensor(_ENDS).double()).tolist()


def compare(first: Scored, other: Scored) -> list[dict[str, Any]]:
    """For each score of two models on the same ratings: both, the difference (second minus first), and its 95 % interval.

    The interval is from a bootstrap over users, paired between the models.
    """
    k = len(_COLUMNS)
    both = torch.cat([losses(first), losses(other)], 1)
    sums, count = metrics.bootstrap(first.user, both, _SEED)
    drawn = averages(sums[:, k:], count) - averages(sums[:, :k], count)
    whole, n = both.sum(0, keepdim=True), torch.tensor([len(both)])
    of_first, of_other = (averages(part, n)[0].tolist() for part in (whole[:, :k], whole[:, k:]))
    found = []
    for name, one, two, differences in zip(_COLUMNS, of_first, of_other, drawn.T, strict=True):
        if math.isnan(one) or math.isnan(two):
            continue
        lo, hi = ends(differences) or (None, None)
        found.append({"score": name, "first": one, "value": two, "difference": two - one, "lo": lo, "hi": hi})
    return found


def _risk(sd: Tensor, error: Tensor) -> list[dict[str, float]]:
    """RMSE of the surest part of the ratings, for parts of a tenth and more."""
    squares = error[torch.sort(sd, stable=True).indices].double().square().cumsum(0)
    found = []
    for part in range(1, BINS + 1):
        count = max(1, round(len(sd) * part / BINS))
        found.append({"part": part / BINS, "rmse": math.sqrt(float(squares[count - 1]) / count)})
    return found


def _reliability(scored: Scored) -> list[dict[str, float]] | None:
    """How often a rating is 4 or more where its probability lies in each tenth of [0, 1]."""
    if bool(scored.liked.isnan().any()):
        return None
    place = (scored.liked * BINS).long().clamp(max=BINS - 1)
    found = []
    for part in range(BINS):
        here = place == part
        if bool(here.any()):
            observed = (scored.stars[here] >= LIKED).double().mean()
            found.append({"p": float(scored.liked[here].double().mean()), "observed": float(observed), "n": int(here.sum())})
    return found


def groups(count: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The name of each group of ratings by number of training ratings (n,), and who is in it, (n,) bool; none is empty."""
    for low, high in itertools.pairwise((*_EDGES, math.inf)):
        inside = (count >= low) & (count < high)
        if bool(inside.any()):
            yield f"{low}+" if high == math.inf else str(low) if high == low + 1 else f"{low}-{high - 1}", inside


def _groups(scored: Scored, count: Tensor) -> list[dict[str, Any]]:
    found = []
    for name, inside in groups(count):
        part = scored.select(inside)
        beside = {f"rmse_{name}": _errors(part.stars, getattr(part, name))["rmse"] for name in ("bias", "mean")}
        found.append({"ratings": name, "n": len(part.stars), **summary(part), "intervals": _intervals(part), **beside})
    return found
