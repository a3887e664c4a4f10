"""How people use the steps of a scale: groups of them, each with its own cut points.

    r_ij = k   iff   c_s(k-1) < z_ij <= c_sk,   s = s_i          z_ij ~ N(z_i, v_s)          P(s_i = s) ~ n_s

z_i is the mean of what person i gave, and v_s how noisily the group rates, so that cut points say how people use the scale, not
how high or how noisily they rate: some never give half stars, say. A group is as likely as it has people, n_s. By EM (Dempster,
Laird & Rubin, JRSS B 1977), except that a group's cut points are those by which a normal z with its mean and variance has its
ratings. Scales used in ways of one's own: Rossi, Gilula & Allenby, "Overcoming scale usage heterogeneity" (JASA 2001).

Sampling mixes such cut points within each person (``ordinal.py``), and starts from here. A mode is fitted to ratings as
numbers; its answers become steps by the groups that somebody may belong to.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.distinct import distinct, nearest
from pmfcli.core.parallel import by_parts
from pmfcli.core.posterior import Observations
from pmfcli.core.team import ALONE, Team, everywhere

_TO_TELL = 10_000  # people, of how all use the scale
_STEPS_OF_EM, _APART = 20, 2.0  # and how far groups are apart where it begins, in logarithms
_RARE = 1e-4  # part of a group's ratings that every step has, at least
_LEAST_WITHIN = 0.01  # part of the variance of all ratings that a person's own have, at least
_LEAST = 1e-9  # variance, where ratings are nearly all alike
_PRIOR = 100.0  # ratings like those of all that every group has beside its own


class Groups(NamedTuple):
    """Groups of people who use a scale alike."""

    cuts: Tensor  # (S, K - 1) ascending in each row, on the scale of z
    people: Tensor  # (S,) in each
    within: Tensor  # (S,) standard deviation of a person's z around their mean
    rounding: Tensor  # (S,) variance of z within a step


class Usage(NamedTuple):
    """The steps of a scale, and how people use them."""

    grid: Tensor  # (K,) ascending, on the unit scale
    stars: Tensor  # (2,) at 0 and at 1 there
    groups: Groups  # z is on the unit scale, too

    def to_unit(self, stars: Tensor) -> Tensor:
        """Stars on the unit scale."""
        lo, hi = self.stars
        t: Tensor = (stars - lo) / (hi - lo)
        return t

    def shares(self, row: Tensor, t: Tensor, rows: int) -> Tensor:
        """How probably each of so many people is of each group, (rows, S), by what they gave: t (n,), people's rows (n,)."""
        counts = counted(row, nearest(self.grid, t), (rows, len(self.grid)))
        return belonging(self.groups, counts, counts @ self.grid[:, None] / counts.sum(1, keepdim=True).clamp(min=1))


@torch.no_grad()
def find(o: Observations, stars: tuple[float, float], groups: int, seed: int) -> Usage:
    """How people use the scale, from some of them.

    Args:
        stars: at 0 and at 1 of the unit scale. seed: of where the search for groups begins.
    """
    share, n_users = o.users, o.pattern.shape[0]
    grid = everywhere(share.team, distinct(o.t)).unique()
    users = share.some(n_users, _TO_TELL)
    own = o.only(users)[0]
    if len(everywhere(share.team, distinct(own.t)).unique()) < 2:  # theirs are all alike; who rates otherwise is rare
        users, own = torch.arange(n_users), o
    random = share.randn(n_users, groups, torch.Generator().manual_seed(seed), torch.float32)[users]
    begin = (_APART * random).softmax(1)
    found, _ = learn(len(grid), nearest(grid, own.t), own.pattern.row.long(), own.t, begin, share.team)
    return Usage(grid, torch.tensor(stars), found)


def counted(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """How often each row has each column, (rows, columns)."""
    return torch.bincount(row * shape[1] + column, minlength=math.prod(shape)).view(shape).float()


def learn(steps: int, level: Tensor, row: Tensor, z: Tensor, share: Tensor, team: Team = ALONE) -> tuple[Groups, Tensor]:
    """Groups, and how probably people are of each, (rows, S).

    Args:
        steps: K. level: (n,) 0 .. K - 1, the step of each rating, row: (n,) who gave it, z: (n,) it itself, on any scale.
        share: (rows, S) where to begin. team: processes that have some of the people each.
    """
    given = counted(row, level, (len(share), steps)).to(z)
    n = given.sum(1, keepdim=True)
    mean = z.new_zeros(len(share), 1).index_add(0, row, z[:, None]) / n.clamp(min=1)
    own = z.new_zeros(len(share), 1).index_add(0, row, (z - mean[row, 0]).square()[:, None])
    moments = torch.cat([given, n * mean, n * mean.square(), own], 1)
    everything = team.sum(moments.sum(0).double())
    total, (first, second, within) = everything[:steps].sum(), everything[steps:]
    least = (_LEAST_WITHIN * ((second + within) / total - (first / total).square())).clamp(min=_LEAST)
    usual = everything * _PRIOR / total
    for _ in range(_STEPS_OF_EM):
        have, first, second, within = (team.sum((share.mT @ moments).double()) + usual).split([steps, 1, 1, 1], 1)
        people = team.sum(share.sum(0))
        count = have.sum(1, keepdim=True)
        reached = ((have / count + _RARE).cumsum(1) / (1 + steps * _RARE))[:, :-1]
        centre = first / count
        within = (within / count).clamp(min=least)
        deviation = (within + (second / count - centre.square()).clamp(min=0)).sqrt()
        cuts = (centre + deviation * torch.special.ndtri(reached)).to(z)
        groups = Groups(cuts, people, within[:, 0].sqrt().to(z), _rounding(cuts, (have / count).to(z)))
        share = belonging(groups, given, mean)
    return groups, share


def _rounding(cuts: Tensor, part: Tensor) -> Tensor:
    """The variance of z within a step, (S,), of parts (S, K) of the ratings each: as if z were evenly spread between its cut
    points, and the open steps at the ends as wide as their neighbours (Sheppard's correction). None of two steps is closed.
    """
    if cuts.shape[1] == 1:
        return torch.zeros_like(cuts[:, 0])
    width = cuts.diff()
    return (part * torch.cat([width[:, :1], width, width[:, -1:]], 1).square()).sum(1) / 12


def belonging(groups: Groups, given: Tensor, mean: Tensor) -> Tensor:
    """How probably people are of each group, (rows, S), by how often they gave each step, (rows, K), and their mean."""

    def fits(own: slice) -> Tensor:
        of_groups = zip(padded(groups.cuts), groups.within, strict=True)
        edges = [below((cuts - mean[own]) / within) for cuts, within in of_groups]
        return torch.stack([(each.diff(dim=1).clamp(min=_RARE).log() * given[own]).sum(1) for each in edges], 1)

    return (torch.cat(by_parts(fits, len(given), given.device)) + groups.people.log()).softmax(1)


def below(x: Tensor) -> Tensor:
    """The standard normal distribution function, exact in its lower tail: ``torch.special.ndtr`` is not."""
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def padded(cuts: Tensor) -> Tensor:
    """Cut points with the open ends of the scale, (S, K + 1)."""
    ends = cuts.new_full((len(cuts), 1), math.inf)
    return torch.cat([-ends, cuts, ends], 1)
