"""Scores: arrays in, numbers out.

Scores of a predictive distribution are those of Gneiting & Raftery, "Strictly proper scoring rules, prediction, and
estimation" (JASA 2007), lower is better; its calibration is looked at as in Gneiting, Balabdaoui & Raftery, "Probabilistic
forecasts, calibration and sharpness" (JRSS B 2007).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.team import ALONE, Team

_AT_A_TIME = 1 << 16  # errors, so that they stay in the cache
_NARROW = 1e-9  # what stands for all of a probability that rounds to 0 or 1
_LEAST_MASS = 1e-12  # of a rating that came all the same
_REPLICATES, _LEAST_GROUPS = 2000, 10
_FEWER = 3  # groups in a replicate than there are, for intervals about as wide as by Student's t


class Scores(NamedTuple):
    """Errors over n ratings, in the units of these."""

    n: int
    rmse: float
    mae: float


def scores(prediction: Tensor, truth: Tensor, team: Team = ALONE) -> Scores:
    """RMSE and MAE of predictions (n,) against the truth (n,), in the same units, n > 0 over all processes."""
    total = torch.tensor([len(truth), 0, 0], dtype=torch.float64)
    for ours, theirs in zip(prediction.cpu().split(_AT_A_TIME), truth.cpu().split(_AT_A_TIME), strict=True):
        error = ours.double() - theirs.double()
        total[1] += error @ error
        total[2] += error.abs().sum()
    n, square, absolute = team.sum(total).tolist()
    return Scores(int(n), math.sqrt(square / n), absolute / n)


def log_score(mass: Tensor, level: Tensor) -> Tensor:
    """-log of the probability that each rating had, (n,), in nats.

    Args:
        mass: (n, K) probabilities of the steps of the scale. level: (n,) the steps that came.
    """
    return -mass.gather(1, level[:, None])[:, 0].clamp(min=_LEAST_MASS).log()


def ranked_probability_score(mass: Tensor, grid: Tensor, level: Tensor) -> Tensor:
    """The integral of (F(r) - [r >= rating])^2 over the scale, (n,), in the units of grid (K,): CRPS on its steps."""
    reached = mass.cumsum(1)[:, :-1]
    came = torch.arange(len(grid) - 1, device=level.device) >= level[:, None]
    return ((reached - came.to(reached)).square() * grid.diff()).sum(1)


def pit_histogram(low: Tensor, high: Tensor, bins: int) -> list[float]:
    """The part of ratings whose probability integral transform falls in each of so many equal bins: flat if calibrated.

    A rating on a step of the scale stands for all of the probability between low and high, (n,) each, as if drawn from there
    at random: Czado, Gneiting & Held, "Predictive model assessment for count data" (Biometrics 2009).
    """
    return _pit(low, high, torch.linspace(0, 1, bins + 1, dtype=torch.float64)).diff().tolist()


def central_coverage(low: Tensor, high: Tensor, level: float) -> float:
    """The part of the same transforms that is between (1 - level) / 2 and (1 + level) / 2: the level itself if calibrated.

    So it is whatever the steps of the scale, of which an interval can only have whole ones.
    """
    ends = torch.tensor([0.5 * (1 - level), 0.5 * (1 + level)], dtype=torch.float64)
    return float(_pit(low, high, ends).diff())


def _pit(low: Tensor, high: Tensor, points: Tensor) -> Tensor:
    """The part of the transforms below each point, (points,)."""
    low, width = low.double().clamp(max=1 - _NARROW)[:, None], (high - low).double().clamp(min=_NARROW)[:, None]
    return ((points - low) / width).clamp(0, 1).mean(0)


def area_under_roc(score: Tensor, event: Tensor) -> float | None:
    """The probability that a rating with the event (n,) bool has the higher score (n,); None if all have it, or none."""
    from torchmetrics.functional.classification import binary_auroc

    if bool(event.all()) or not bool(event.any()):
        return None
    place = torch.unique(score, return_inverse=True)[1].double()  # ranks, in [0, 1] below: of others it would take the sigmoid
    return float(binary_auroc(place / place.amax().clamp(min=1), event.long()))


def ranking(score: Tensor, liked: Tensor, k: int) -> tuple[float, float]:
    """NDCG and recall of the k candidates with the highest score, (n,), where some are liked, (n,) bool.

    NDCG: Jarvelin & Kekalainen, "Cumulated gain-based evaluation of IR techniques" (TOIS 2002), gain 1 for what is liked.
    Of equal scores the first candidate counts as the higher.
    """
    from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall

    order = torch.argsort(score, descending=True, stable=True)
    place = torch.empty(len(score), dtype=torch.float64)  # above 0: others would be passed over
    place[order] = torch.arange(len(score), 0, -1, dtype=torch.float64)
    return float(retrieval_normalized_dcg(place, liked.long(), k)), float(retrieval_recall(place, liked, k))


def rmse_by_score(score: Tensor, error: Tensor, parts: int) -> list[tuple[float, float]]:
    """Mean score and RMSE of so many equal parts of the ratings (n,) in order of their score: fewer if n is less."""
    order = torch.sort(score, stable=True).indices
    cut = [part for part in torch.tensor_split(order, parts) if len(part)]
    return [(float(score[part].double().mean()), float(error[part].double().square().mean().sqrt())) for part in cut]


def bootstrap(group: Tensor, columns: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sums of columns over ratings whose groups are drawn with replacement, (replicates, c), and how many, (replicates,).

    There are no replicates of fewer than ten groups: these do not show how groups differ. A replicate has three groups less
    than there are ("m out of n": Bickel, Goetze & van Zwet, Statistica Sinica 1997). With as many, intervals of ten to thirty
    groups would be too narrow: for n / (n - 1) the variance is too small, and for Student's t the normal quantile.

    Args:
        group: (n,) what belongs together, such as the user. columns: (n, c).
    """
    names, place = group.unique(return_inverse=True)
    count = len(names)
    sums = columns.new_zeros(count, columns.shape[1], dtype=torch.float64).index_add_(0, place, columns.double())
    sizes = torch.bincount(place, minlength=count).double()
    generator, every = torch.Generator().manual_seed(seed), []
    for _ in range(_REPLICATES if count >= _LEAST_GROUPS else 0):
        some = torch.randint(count, (count,), generator=generator)[_FEWER:]
        drawn = torch.bincount(some, minlength=count).double()
        every.append(torch.cat([drawn @ sums, (drawn @ sizes)[None]]))
    found = torch.stack(every) if every else sums.new_zeros(0, sums.shape[1] + 1)
    return found[:, :-1], found[:, -1]
