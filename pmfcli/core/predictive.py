"""What is known of a rating: a mixture of Gaussians, one component a draw, or the probability of each step of the scale."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.distinct import nearest

_COARSE, _SHORT = 3, 1e-6  # steps of a scale; by how little rounding may leave a probability short of a level
_HARDLY = 0.05  # of the probability outside an interval: a step with less hardly ever comes
_ROUNDING = 1e-5  # of a step on the unit scale
_BISECTIONS = 30  # of the range of the components, to the precision of its numbers
_REACH, _LEAST = 8.0, 1e-15  # standard deviations beyond the outermost component; the probability there


class Mixture(NamedTuple):
    """Gaussians for each of n ratings, on the unit scale."""

    centre: Tensor  # (draws, n)
    spread: Tensor  # (draws, n) standard deviations
    weight: Tensor | None = None  # (draws,) of the components, in sum 1; None: all alike

    def mean(self) -> Tensor:
        """The prediction, (n,): the mean of the centres, where those beyond the scale count as its end.

        It is not the mean of the ratings that ``sd`` and the masses are of, which is a little farther from the ends.
        """
        return self._averaged(self.centre.clamp(0, 1))

    def sd(self) -> Tensor:
        """The predictive standard deviation, (n,): what lies beyond the scale counts as its end, as in the masses."""
        c, s = self.centre.double(), self.spread.double()
        low, high = -c / s, (1 - c) / s
        inside, above = torch.special.ndtr(high) - torch.special.ndtr(low), torch.special.ndtr(-high)
        at_low, at_high = _density(low), _density(high)
        first = c * inside + s * (at_low - at_high) + above
        second = (c.square() + s.square()) * inside + s * (c * at_low - (c + 1) * at_high) + above
        variance = self._averaged(second) - self._averaged(first).square()
        found: Tensor = variance.clamp(min=0).sqrt().to(self.centre)
        return found

    def below(self, t: float | Tensor) -> Tensor:
        """The probability of a rating below t, (n,)."""
        return self._averaged(torch.special.ndtr((t - self.centre) / self.spread))

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """What lies between the quantiles (1 - level) / 2 and (1 + level) / 2, (n,) each; cut at the ends of the scale."""
        low, high = (self.quantile_of_x(0.5 * (1 + sign * level)).clamp(0, 1) for sign in (-1, 1))
        return low, high

    def by_end(self, level: float, upper: bool) -> Tensor:
        """What a rank by an end of the interval goes by, (n,): that end where the scale has none, to tell what lies beyond."""
        return self.quantile_of_x(0.5 * (1 + level if upper else 1 - level))

    def quantile_of_x(self, q: float) -> Tensor:
        """The q-quantile where the scale has no ends, (n,)."""
        if len(self.centre) == 1:
            return self.centre[0] + NormalDist().inv_cdf(min(max(q, _LEAST), 1 - _LEAST)) * self.spread[0]
        low = (self.centre - _REACH * self.spread).amin(0)
        high = (self.centre + _REACH * self.spread).amax(0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            short = self.below(middle) < q
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return 0.5 * (low + high)

    def masses(self, grid: Tensor) -> Tensor:
        """The probability of every value of an ascending grid, (n, values): bins meet half way, tails belong to the ends."""
        edges = 0.5 * (grid[1:] + grid[:-1])
        exact = self._replace(centre=self.centre.double(), spread=self.spread.double())  # probabilities near 1 are apart, too
        none, whole = exact.centre.new_zeros(self.n), exact.centre.new_ones(self.n)
        below = torch.stack([none, *(exact.below(float(edge)) for edge in edges), whole], 1)
        return below.diff(dim=1).to(self.centre)

    @property
    def n(self) -> int:
        """Number of ratings."""
        return self.centre.shape[1]

    def _averaged(self, values: Tensor) -> Tensor:
        return values.mean(0) if self.weight is None else self.weight.to(values) @ values


class Masses(NamedTuple):
    """The probability of every step of the scale, for each of n ratings."""

    mass: Tensor  # (n, K)
    grid: Tensor  # (K,) ascending, on the unit scale
    point: Tensor | None = None  # (n,) the prediction, if it is not their mean

    def mean(self) -> Tensor:
        """The predictive mean, (n,), or what is given in its place."""
        return self.mass @ self.grid if self.point is None else self.point

    def sd(self) -> Tensor:
        """The predictive standard deviation, (n,), from ``mean``."""
        away = self.grid - self.mean()[:, None]
        return (self.mass * away.square()).sum(1).sqrt()

    def below(self, t: float | Tensor) -> Tensor:
        """The probability of a rating below t, (n,)."""
        return (self.mass * (self.grid < torch.as_tensor(t).reshape(-1, 1))).sum(1)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """The interval of steps whose probability is nearest to the level, (n,) each.

        It grows from the most probable step towards its more probable neighbour; steps that hardly ever come, as half stars of
        somebody who never gives any, are passed over, and it does not end at them. A scale of few steps has few intervals, and
        one of at least the level would hold more of the ratings than it says; nearest is by the square root of the probability
        outside, for which the ratings outside are equally well counted everywhere. On a scale of two or three steps the nearest
        may be far: there it is the first of at least the level.
        """
        steps, pad = self.mass.shape[1], torch.nn.functional.pad
        mass = self.mass.T.contiguous()  # (K, n)
        likely = mass >= (0.0 if steps <= _COARSE else _HARDLY * (1 - level))
        below, above = _last(likely), steps - 1 - _last(likely.flip(0)).flip(0)
        beside, reached = pad(mass, (0, 0, 1, 1), value=-1.0), pad(mass.cumsum(0), (0, 0, 1, 0))
        low = high = mass.argmax(0, keepdim=True)
        best, best_low, best_high = torch.full_like(mass[:1], math.inf), low, high
        for _ in range(steps):
            inside = reached.gather(0, high + 1) - reached.gather(0, low)
            far = ((1 - inside).clamp(min=0).sqrt() - math.sqrt(1 - level)).abs()
            if steps <= _COARSE:
                far = (inside < level - _SHORT).to(mass)
            nearer = far < best
            best, best_low, best_high = (
                torch.where(nearer, new, old) for new, old in ((far, best), (low, best_low), (high, best_high))
            )
            if bool((inside >= level).all()):
                break  # from here on it only comes away from the level
            down, up = below.gather(0, low), above.gather(0, high)
            left = beside.gather(0, down + 1) > beside.gather(0, up + 1)
            low, high = torch.where(left, down, low), torch.where(left | (up == steps), high, up)
        return self.grid[best_low[0]], self.grid[best_high[0]]

    def by_end(self, level: float, upper: bool) -> Tensor:
        """What a rank by an end of the interval goes by, (n,): its step, then the quantile, as far as the bins reach."""
        quantile = self.quantile_of_x(0.5 * (1 + level if upper else 1 - level))
        first, last = self._edges()[[0, -1]].tolist()
        found: Tensor = torch.searchsorted(self.grid, self.interval(level)[upper]) + 0.5 * (quantile - first) / (last - first)
        return found

    def quantile_of_x(self, q: float) -> Tensor:
        """The q-quantile, (n,), as if the probability of a step were spread evenly half way to its neighbours."""
        edges = self._edges()
        reached = self.mass.cumsum(1)
        place = (reached < q).sum(1, keepdim=True).clamp(max=self.mass.shape[1] - 1)
        inside = self.mass.gather(1, place).clamp(min=torch.finfo(self.mass.dtype).tiny)
        part = ((q - reached.gather(1, place)) / inside + 1).clamp(0, 1)[:, 0]
        return edges[place[:, 0]] + part * edges.diff()[place[:, 0]]

    def _edges(self) -> Tensor:
        half = 0.5 * self.grid.diff()
        return torch.cat([self.grid[:1] - half[:1], self.grid[:-1] + half, self.grid[-1:] + half[-1:]])

    def masses(self, grid: Tensor) -> Tensor:
        """The probability of every value of an ascending grid, (n, values): its own steps, and 0 for what is none of them."""
        place = nearest(self.grid, grid)
        return self.mass[:, place] * ((self.grid[place] - grid).abs() < _ROUNDING)

    @property
    def n(self) -> int:
        """Number of ratings."""
        return len(self.mass)


Predictive = Mixture | Masses


def pooled(parts: Sequence[Predictive], weight: Tensor, grid: Tensor | None) -> Predictive:
    """The linear pool of distributions of the same n ratings, with weights (parts,); it predicts the mean of what they do.

    Args:
        grid: (K,) the steps of the scale, whose probabilities are pooled; without one the parts are mixtures.
    """
    if grid is not None:
        masses = torch.stack([part.masses(grid) * w for part, w in zip(parts, weight, strict=True)]).sum(0)
        return Masses(masses, grid, torch.stack([part.mean() * w for part, w in zip(parts, weight, strict=True)]).sum(0))
    mixtures = [part for part in parts if isinstance(part, Mixture)]
    shares = [w / len(part.centre) * torch.ones(len(part.centre)) for part, w in zip(mixtures, weight, strict=True)]
    return Mixture(
        torch.cat([part.centre for part in mixtures]), torch.cat([part.spread for part in mixtures]), torch.cat(shares)
    )


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _last(likely: Tensor) -> Tensor:
    """For every step the last one before it that is likely, or -1: (K, n), of likely (K, n)."""
    found = [torch.full_like(likely[0], -1, dtype=torch.int64)]
    for step, here in enumerate(likely[:-1]):
        found.append(torch.where(here, step, found[-1]))
    return torch.stack(found)
