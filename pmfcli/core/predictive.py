"""What is known of a rating: a mixture of Gaussians, one component a draw, with its mean, interval and masses."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BISECTIONS = 30  # of the range of the components, to the precision of its numbers
_REACH = 8.0  # standard deviations beyond the outermost component


class Mixture(NamedTuple):
    """Equal-weight Gaussians for each of n ratings, on the unit scale."""

    centre: Tensor  # (draws, n)
    spread: Tensor  # (draws, n) standard deviations

    def mean(self) -> Tensor:
        """The predictive mean, (n,): components beyond the scale count as its end."""
        return self.centre.clamp(0, 1).mean(0)

    def sd(self) -> Tensor:
        """The predictive standard deviation, (n,): what lies beyond the scale counts as its end, as in the masses."""
        c, s = self.centre.double(), self.spread.double()
        low, high = -c / s, (1 - c) / s
        inside, above = torch.special.ndtr(high) - torch.special.ndtr(low), torch.special.ndtr(-high)
        at_low, at_high = _density(low), _density(high)
        first = c * inside + s * (at_low - at_high) + above
        second = (c.square() + s.square()) * inside + s * (c * at_low - (c + 1) * at_high) + above
        variance = second.mean(0) - first.mean(0).square()
        found: Tensor = variance.clamp(min=0).sqrt().to(self.centre)
        return found

    def below(self, t: float | Tensor) -> Tensor:
        """The probability of a rating below t, (n,)."""
        found: Tensor = torch.special.ndtr((t - self.centre) / self.spread).mean(0)
        return found

    def quantile(self, q: float) -> Tensor:
        """The q-quantile, (n,), within the scale: no rating lies beyond."""
        return self.quantile_of_x(q).clamp(0, 1)

    def quantile_of_x(self, q: float) -> Tensor:
        """The same where the scale has no ends: to tell apart what lies beyond them, (n,)."""
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
        below = torch.stack([self.below(float(edge)) for edge in edges], 1) if len(edges) else self.centre.new_zeros(self.n, 0)
        ends = below.new_zeros(self.n, 1), below.new_ones(self.n, 1)
        return torch.cat([ends[0], below, ends[1]], 1).diff(dim=1)

    @property
    def n(self) -> int:
        """Number of ratings."""
        return self.centre.shape[1]


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
