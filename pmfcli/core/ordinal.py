"""Ratings as steps of a scale, not as numbers: an ordered probit, with habits of using the scale.

    r_ij = k   iff   c_s(k-1) < z_ij <= c_sk          z_ij ~ N(x_ij, 1 / w_ij)
    s ~ Categorical(share_i)          share_i ~ Dirichlet(a)          log a_s ~ N(-log S, 1)
    c_s1 < c_s2 < ... ~ N(half way between the steps, spread^2), given their order

A habit s is a set of cut points c_s, such as that of people who never give half stars; every person mixes the habits in shares
of their own. Latent z and cut points: Albert & Chib, "Bayesian analysis of binary and polychotomous response data" (JASA
1993), the cut points with z integrated out, after Cowles (1996). People who use a scale in ways of their own: Rossi, Gilula &
Allenby, "Overcoming scale usage heterogeneity" (JASA 2001); Koren & Sill, "OrdRec" (RecSys 2011).
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.parallel import by_parts, take
from pmfcli.core.streams import Source, dirichlet, uniform
from pmfcli.core.team import ALONE, Team, everywhere
from pmfcli.core.usage import below, learn, padded

_NUMBERS = 1 << 17  # draws x ratings at a time, which a cache holds
_LEAST = 1e-37  # of a probability
_IMPOSSIBLE = -1e30  # logarithm of one that is 0
_LEAST_PRIOR = 1e-3  # of a, and one over its largest
_REACH_OF_PRIOR, _REACH_OF_CUTS = (-1.5, 0.5), (-1.0, 1.0)  # powers of ten that proposals are scaled by


class Steps(NamedTuple):
    """Ratings by their place on the scale."""

    level: Tensor  # (n,) int64, 0 .. K - 1
    row: Tensor  # (n,) who gave it
    first: Tensor | int = 0  # where among all sets of cut points theirs begin, (n,), or one place for all

    def at(self, own: slice) -> "Steps":
        """Those of some ratings."""
        return Steps(self.level[own], self.row[own], self.first if isinstance(self.first, int) else self.first[own])


class Levels(NamedTuple):
    """The scale, and the ratings on it."""

    steps: Steps
    grid: Tensor  # (K,) the different ratings, on the unit scale
    middle: Tensor  # (K - 1,) half way between the steps, on the scale of z: where cut points have their prior
    spread: Tensor  # () its standard deviation


class Latent(NamedTuple):
    """What z is distributed like, but for its rating: N(x, 1 / root^2)."""

    x: Tensor  # (n,)
    root: Tensor  # (n,)

    def at(self, own: slice) -> "Latent":
        """That of some ratings."""
        return Latent(self.x[own], self.root[own])


class Kinds(NamedTuple):
    """The habit behind every rating."""

    kind: Tensor  # (n,) 0 .. S - 1
    log_mass: Tensor  # (n,) logarithm of the probability of the rating given that


class Habits(NamedTuple):
    """Cut points and who uses which."""

    cuts: Tensor  # (S, K - 1) ascending in each row, on the scale of z
    share: Tensor  # (rows, S) of a row's ratings, by habit
    prior: Tensor  # (S,) a


def levels(t: Tensor, z: Tensor, row: Tensor, team: Team = ALONE) -> Levels:
    """Ratings t (n,) of rows (n,) by their place among the different ones. z (n,): the same on another scale.

    Args:
        team: processes that have some of the ratings each.
    """
    if team.size == 1:
        grid, level = t.unique(return_inverse=True)
        steps, spread = z.new_zeros(len(grid)).index_copy(0, level, z), z.std(correction=0)
    else:
        grid = everywhere(team, t.unique()).unique()
        level = torch.searchsorted(grid, t)
        n, total, squares = team.sum(torch.stack([z.new_tensor(len(z)), z.sum(), z.square().sum()]).double())
        have = torch.bincount(level, minlength=len(grid)).to(z)
        steps = team.sum(z.new_zeros(len(grid)).index_add(0, level, z)) / team.sum(have)
        spread = (squares / n - (total / n).square()).sqrt().to(z)
    return Levels(Steps(level, row), grid, 0.5 * (steps[1:] + steps[:-1]), spread)


def init(data: Levels, habits: int, rows: int, z: Tensor, source: Source, team: Team = ALONE) -> Habits:
    """Habits of groups of people who use the scale alike (``usage.py``). Cut points that start as equals take up to a hundred
    sweeps to part.

    Args:
        rows: how many people. z: (n,) ratings on the scale of x.
        source: random numbers of the rows. team: processes that have some of the rows each.
    """
    prior = z.new_full((habits,), 1 / habits)
    share = dirichlet(prior.expand(rows, -1), source)
    if habits == 1:
        return Habits(data.middle[None], share, prior)
    level, row, _ = data.steps
    groups, share = learn(len(data.grid), level, row, z, share, team)
    n = torch.bincount(row, minlength=rows)[:, None]
    return Habits(groups.cuts, dirichlet(prior + n * share, source), prior)


def step(
    habits: Habits,
    data: Levels,
    latent: Latent,
    generator: torch.Generator,
    sources: tuple[Source, Source],
    team: Team = ALONE,
) -> tuple[Habits, Tensor, Tensor]:
    """One sweep over habits, cut points and z: (habits, z (n,), -log likelihood of the ratings ()).

    Args:
        sources: random numbers of rows, and of ratings, of which processes have some each. team: those processes.
    """
    cuts, share, prior = habits
    of_rows, of_ratings = sources
    kinds, loss = draw_kind(cuts, share, data.steps, latent, of_ratings)
    if len(cuts) > 1:
        counts = count_kinds(kinds.kind, data.steps.row, share.shape)
        prior = draw_prior(prior, counts, generator, team)
        share = draw_share(prior, counts, of_rows)
    cuts = draw_cuts(cuts, data, kinds, latent, generator, team)
    return Habits(cuts, share, prior), draw_latent(cuts, data.steps, kinds.kind, latent, of_ratings), team.sum(loss)


def draw_kind(cuts: Tensor, share: Tensor, steps: Steps, latent: Latent, source: Source) -> tuple[Kinds, Tensor]:
    """The habit behind every rating, with z integrated out; and -log likelihood with the habits summed out, ().

    Args:
        cuts: (sets, K - 1). share: (rows, S).
    """
    u = uniform(latent.x.shape, latent.x, source)

    def drawn(own: slice) -> tuple[Tensor, Tensor, Tensor]:
        (level, row, first), its = steps.at(own), latent.at(own)
        parts = torch.stack([_mass(*_bin(cuts, first + s, level), its) for s in range(share.shape[1])], 1)
        reached = (share.index_select(0, row) * parts).cumsum(1)
        total = reached[:, -1]
        kind = ((u[own] * total)[:, None] > reached[:, :-1]).sum(1)
        log_mass = parts.gather(1, kind[:, None])[:, 0].clamp_(min=_LEAST).log_()
        return kind, log_mass, -total.clamp(min=_LEAST).log().sum()

    kind, log_mass, loss = zip(*by_parts(drawn, len(u), u.device), strict=True)
    return Kinds(torch.cat(kind), torch.cat(log_mass)), torch.stack(loss).sum()


def count_kinds(kind: Tensor, row: Tensor, shape: torch.Size) -> Tensor:
    """How often each row has each habit, (rows, S)."""
    return torch.bincount(row * shape[1] + kind, minlength=shape.numel()).view(shape)


def draw_share(prior: Tensor, counts: Tensor, source: Source) -> Tensor:
    """The shares of each row, (rows, S), given its counts and the Dirichlet parameters (S,), or (rows, S)."""
    return dirichlet(prior + counts, source)


def draw_prior(prior: Tensor, counts: Tensor, generator: torch.Generator, team: Team = ALONE) -> Tensor:
    """The Dirichlet parameters a, (S,), given how often each row has each habit, (rows, S), by a Metropolis step on log a."""

    rows = float(team.sum(prior.new_tensor(len(counts), dtype=torch.float64)))

    def log_p(a: Tensor) -> Tensor:
        total, of_all = a.sum(), counts.sum(1).double()
        fit = team.sum((a + counts.double()).lgamma().sum() - (total + of_all).lgamma().sum()) + rows * total.lgamma()
        found: Tensor = fit - rows * a.lgamma().sum() - 0.5 * (a.log() + math.log(len(a))).square().sum()
        return found

    now = prior.double()
    away = torch.randn(now.shape, generator=generator, dtype=now.dtype, device=now.device)
    proposal = now * (_reach(now, (), _REACH_OF_PRIOR, generator) * away).exp()
    accepted = uniform((), now, generator).log() < log_p(proposal) - log_p(now)
    return torch.where(accepted & (proposal > _LEAST_PRIOR).all() & (proposal < 1 / _LEAST_PRIOR).all(), proposal, now).to(
        prior
    )


def draw_cuts(
    cuts: Tensor, data: Levels, kinds: Kinds, latent: Latent, generator: torch.Generator, team: Team = ALONE
) -> Tensor:
    """The cut points given everything but z, (S, K - 1), by Metropolis steps.

    The cut points of a habit fall into random blocks of neighbours, which move as they are: first every other block, then the
    rest. (Where a habit never gives a rating, the cut points beside it all but coincide, and only move together.)
    """
    count, width = cuts.shape
    g, bins, root = generator, width + 1, latent.root
    place, log_mass = kinds.kind * bins + data.steps.level, kinds.log_mass
    have = team.sum(torch.bincount(place, minlength=count * bins).view(count, bins).double())
    starts = uniform((count, width), cuts, g) < 0.5
    block = starts.cumsum(1)  # 0 .. width
    touching = have[:, :-1] + have[:, 1:]
    size = cuts.new_zeros(count, bins).scatter_add(1, block, touching.to(cuts))
    away = torch.randn(size.shape, generator=g, dtype=cuts.dtype, device=cuts.device) * _reach(
        cuts, size.shape, _REACH_OF_CUTS, g
    )
    weight = root.square().mean()
    if team.size > 1:
        weight = (team.sum(root.square().sum(dtype=torch.float64)) / have.sum()).to(cuts)
    shift = (away / (weight * (1 + size)).sqrt()).gather(1, block)

    def tried(proposal: Tensor, log_mass: Tensor, own: slice) -> tuple[Tensor, Tensor]:
        then = _log_mass(proposal, place[own], latent.at(own))
        return then, _by_bin(then - log_mass[own], place[own], (count, bins))

    for parity in (0, 1):
        moving = block % 2 == parity
        proposal = torch.where(moving, cuts + shift, cuts)
        edges = padded(proposal)
        then, gains = zip(*by_parts(partial(tried, proposal, log_mass), len(root), root.device), strict=True)
        ratio = team.sum(torch.stack(gains).sum(0))
        ratio = torch.where(edges[:, 1:] > edges[:, :-1], ratio, _IMPOSSIBLE)
        edge = moving.new_zeros(count, 1)
        left, right = torch.cat([edge, moving], 1), torch.cat([moving, edge], 1)
        owner = torch.where(left, torch.cat([block[:, :1], block], 1), torch.cat([block, block[:, -1:]], 1))
        gain = ratio.new_zeros(count, bins).scatter_add(1, owner, torch.where(left | right, ratio, 0.0))
        far = ((cuts - data.middle).square() - (proposal - data.middle).square()) / (2 * data.spread.square())
        gain = gain.scatter_add(1, block, far.double())
        accepted = uniform(gain.shape, gain, g).log() < gain
        cuts = torch.where(accepted.gather(1, block) & moving, proposal, cuts)
        if parity == 0:
            moved = (accepted.gather(1, owner) & (left | right)).flatten()
            log_mass = torch.where(take(moved, place), torch.cat(then), log_mass)
    return cuts


def draw_latent(cuts: Tensor, steps: Steps, kind: Tensor, latent: Latent, source: Source) -> Tensor:
    """z given its rating and the habit behind that, (n,): a normal between two cut points."""
    u, numbers = uniform(latent.x.shape, latent.x, source), torch.finfo(latent.x.dtype)

    def drawn(own: slice) -> Tensor:
        (level, _, first), its = steps.at(own), latent.at(own)
        low, high = _bin(cuts, first + kind[own], level)
        one, other, sign = _tails(low, high, its)
        away = torch.special.ndtri((one + (other - one) * u[own]).clamp(numbers.tiny, 1 - 0.5 * numbers.eps))
        z: Tensor = (its.x + sign * away / its.root).clamp(low, high)
        return z

    return torch.cat(by_parts(drawn, len(u), u.device))


def masses(cuts: Tensor, share: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """The probability of every level, (n, K), averaged over draws.

    Args:
        cuts: (draws, S, K - 1). share: (draws, 1 or n, S). centre, spread: (draws, n) of z, in the units of the cut points.
    """

    def of(own: slice) -> Tensor:
        return _masses(cuts, share if share.shape[1] == 1 else share[:, own], centre[:, own], spread[:, own])

    return torch.cat(by_parts(of, centre.shape[1], centre.device, max(1, _NUMBERS // len(cuts))))


def _masses(cuts: Tensor, share: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    by = -math.sqrt(0.5) / spread
    start, half = -centre * by, 0.5 / len(cuts) * share
    below = [torch.zeros_like(centre[0])]
    for k in range(cuts.shape[2]):
        total = torch.zeros_like(centre[0])
        for s in range(cuts.shape[1]):
            twice = torch.addcmul(start, by, cuts[:, s, k, None]).erfc_()  # 2 Phi((c - centre) / spread)
            total = total + (half[:, 0, s] @ twice if half.shape[1] == 1 else (half[..., s] * twice).sum(0))
        below.append(total)
    return torch.stack([*below, torch.ones_like(centre[0])], 1).diff(dim=1).clamp(min=0)


def _bin(cuts: Tensor, kind: Tensor | int, level: Tensor) -> tuple[Tensor, Tensor]:
    edges = padded(cuts)
    place = kind * edges.shape[1] + level
    return edges.flatten().index_select(0, place), edges.flatten().index_select(0, place + 1)


def _tails(low: Tensor, high: Tensor, latent: Latent) -> tuple[Tensor, Tensor, Tensor]:
    """Normal probabilities below low and high, (n,); where low is above the mean those above them, which are exact there.

    The third is 1, and -1 where it was turned round like this.
    """
    a, b = (low - latent.x) * latent.root, (high - latent.x) * latent.root
    sign = torch.copysign(a.new_ones(()), -a)
    return below(-a.abs()), below(b * sign), sign


def _mass(low: Tensor, high: Tensor, latent: Latent) -> Tensor:
    one, other, _ = _tails(low, high, latent)
    mass: Tensor = (other - one).abs_()
    return mass


def _log_mass(cuts: Tensor, place: Tensor, latent: Latent) -> Tensor:
    edges = padded(cuts)
    low, high = (part.flatten().index_select(0, place) for part in (edges[:, :-1], edges[:, 1:]))
    found: Tensor = _mass(low, high, latent).clamp_(min=_LEAST).log_()
    return found


def _by_bin(values: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of values (n,) for each habit and level, (S, K), in double precision."""
    return values.new_zeros(math.prod(shape), dtype=torch.float64).index_add(0, place, values.double()).view(shape)


def _reach(like: Tensor, shape: tuple[int, ...], powers: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scales of proposals, from too small to too large: one of them fits, whatever the posterior."""
    low, high = powers
    return 10 ** (low + (high - low) * uniform(shape, like, generator))
