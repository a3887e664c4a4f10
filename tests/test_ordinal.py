"""Ratings as steps of a scale: masses, cut points, habits, against integrals and what was planted."""

import itertools
import math

import pytest
import torch
from made import NOBODY, PLAIN, copies, random_pattern, sampled, seeded

from pmfcli.core import ordinal
from pmfcli.core.approximation import Ordinal
from pmfcli.core.fold_in import fold_in
from pmfcli.core.posterior import inverse, observe
from pmfcli.core.predictive import Masses
from pmfcli.core.rows import shares_of

CUTS = torch.tensor([[[0.2, 0.5, 0.7], [0.3, 0.301, 0.9]]])
SHARE = torch.tensor([[[0.4, 0.6]]])


def test_masses_are_integrals_and_sum_to_one() -> None:
    centre, spread = torch.tensor([[0.1, 0.45, 2.0]]), torch.tensor([[0.2, 0.1, 0.3]])
    found = ordinal.masses(CUTS, SHARE, centre, spread)
    z = torch.linspace(-2, 4, 60_001).double()
    density = torch.distributions.Normal(centre[0, :, None].double(), spread[0, :, None].double()).log_prob(z).exp() * 1e-4
    level = (z[:, None, None] > CUTS[0].double()).sum(2)
    expected = sum(SHARE[0, 0, s] * torch.zeros(3, 4).double().index_add_(1, level[:, s], density) for s in range(2))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_shares_in_half_precision_add_up_to_one() -> None:
    """What is missing would all be of the highest step."""
    share = torch.tensor([[[0.3333, 0.6667], [0.0101, 0.9899]]]).half()
    assert (share.float().sum(2) - 1).abs().max() > 1e-5
    found = shares_of(share, torch.tensor([1, 0]))
    torch.testing.assert_close(found.sum(2), torch.ones(1, 2), rtol=0, atol=1e-7)
    torch.testing.assert_close(found, share.float()[:, [1, 0]], rtol=0, atol=1e-3)


def test_latent_values_have_the_moments_of_a_truncated_normal() -> None:
    cuts, g = torch.tensor([[-0.5, 0.3, 6.0]]).double(), seeded(1)
    n = 20_000
    for level, x in itertools.product(range(4), (0.0, 1.5)):
        nothing = torch.zeros(n, dtype=torch.int64)
        latent = ordinal.Latent(torch.full((n,), x).double(), torch.full((n,), 2.0).double())
        z = ordinal.draw_latent(cuts, ordinal.Steps(nothing + level, nothing), nothing, latent, g)
        low, high = (-math.inf, *cuts[0].tolist(), math.inf)[level : level + 2]
        assert low <= float(z.min()) <= float(z.max()) <= high
        grid = torch.linspace(max(low, -8), min(high, 12), 100_001).double()
        p = torch.softmax(-0.5 * (2 * (grid - x)).square(), 0)
        mean = float((p * grid).sum())
        sd = float((p * (grid - mean).square()).sum().sqrt())
        assert float(z.mean()) == pytest.approx(mean, abs=5 * sd / n**0.5 + 1e-4)
        assert float(z.std()) == pytest.approx(sd, rel=0.05)


def planted(habits: int = 2):
    """Ratings of 5 levels: half of the users never give levels 1 and 3."""
    g = seeded(2)
    pattern = random_pattern(150, 100, 0.4, seed=3)
    U, V = (0.8 * torch.randn(count, 2, generator=g) for count in (150, 100))
    row = pattern.row.long()
    x = (U[row] * V[pattern.col.long()]).sum(1)
    cuts = torch.tensor([[-0.8, -0.3, 0.3, 0.8], [-0.55, -0.5, 0.5, 0.55]])[:habits]
    z = x + 0.4 * torch.randn(pattern.n, generator=g)
    kind = (row % habits)[:, None]
    level = (z[:, None] > cuts[kind[:, 0]]).sum(1)
    return observe(pattern, level / 4, link="linear"), cuts / 0.4, (U @ V.T) / 0.4


def test_planted_cut_points_and_factors_are_found() -> None:
    """In units of the noise: the scale of z is for the prior to say."""
    o, cuts, x = planted(1)
    found = sampled(PLAIN._replace(habits=1), o, sweeps=300, chains=1).draws
    per_noise = found.alpha.sqrt()[:, None] * 4
    gaps = found.ordinal.cuts[:, 0].diff(dim=1) * per_noise
    assert ((gaps.mean(0) - cuts[0].diff()).abs() < 4 * gaps.std(0)).all()
    assert (gaps.std(0) < 0.1 * cuts[0].diff()).all()
    U, V = found.U.float(), found.V.float()
    score = (U[..., :2] @ V[..., :2].mT + U[..., 2:] + V[..., 2:].mT) * found.alpha.sqrt()[:, None, None]
    away = score.mean(0) - x
    assert float((away - away.mean()).square().mean().sqrt()) < 0.3 * float(x.std())


def test_planted_habits_are_apart_at_the_start() -> None:
    """Whoever never gives levels 1 and 3 is in one group, and its cut points beside these all but coincide."""
    o, _, _ = planted()
    z = inverse(o.t, "linear")
    found = ordinal.init(ordinal.levels(o.t, z, o.pattern.row.long()), 2, 150, z, seeded(5))
    rare = int(found.share[1::2].mean(0).argmax())
    assert float(found.share[1::2, rare].mean()) > 0.9 > 0.1 > float(found.share[0::2, rare].mean())
    never, always = (found.cuts[habit].diff()[[0, 2]] for habit in (rare, 1 - rare))
    assert (never < 0.5 * always).all()
    assert (found.cuts.diff() > 0).all()


def test_planted_habits_are_found() -> None:
    o, cuts, _ = planted()
    found = sampled(PLAIN._replace(habits=2), o, sweeps=300, chains=1).draws
    of_users = found.ordinal.share.float()[:, :, 0].mean(0)
    apart = (of_users[0::2].mean() - of_users[1::2].mean()).abs()
    assert apart > 0.8
    rare = 0 if of_users[1::2].mean() > 0.5 else 1
    width = (found.ordinal.cuts.diff(dim=2) * (found.alpha.sqrt() * 4)[:, None, None]).mean(0)
    torch.testing.assert_close(width[rare], cuts[1].diff(), rtol=0.15, atol=0.1)


def test_the_interval_is_the_one_with_the_nearest_probability() -> None:
    grid = torch.linspace(0, 1, 5)
    mass = torch.tensor([[0.05, 0.1, 0.4, 0.3, 0.15], [0.9, 0.06, 0.02, 0.01, 0.01], [0.2, 0.2, 0.2, 0.2, 0.2]])
    found = Masses(mass, grid)
    grown = ([[2, 2], [2, 3], [2, 4], [1, 4], [0, 4]], [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4]])
    for level in (0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.999):
        low, high = found.interval(level)
        assert (low <= high).all()
        for row, nested in enumerate(grown):
            inside = [float(mass[row, a : b + 1].sum()) for a, b in nested]
            away = [abs(math.sqrt(max(0.0, 1 - p)) - math.sqrt(1 - level)) for p in inside]
            a, b = nested[min(range(5), key=away.__getitem__)]
            assert (float(low[row]), float(high[row])) == (float(grid[a]), float(grid[b])), (level, row)


def test_the_interval_does_not_end_at_a_step_that_nobody_expects() -> None:
    """Half stars of somebody who hardly gives any: no ends, but no bars either, to what is more probable beyond them."""
    found = Masses(torch.tensor([[0.1, 0.0005, 0.6, 0.0, 0.2990, 0.0005]]), torch.arange(6) / 5)
    for level, ends in ((0.5, [2, 2]), (0.9, [2, 4]), (0.98, [0, 4]), (0.9999, [0, 5])):
        assert [round(5 * float(end)) for end in found.interval(level)] == ends
        mirrored = Masses(found.mass.flip(1), found.grid)
        assert [round(5 * (1 - float(end))) for end in mirrored.interval(level)] == ends[::-1]


def test_on_two_or_three_steps_the_interval_has_at_least_the_level() -> None:
    for mass in ([0.28, 0.34, 0.38], [0.05, 0.9, 0.05], [0.7, 0.3], [1.0]):
        found = Masses(torch.tensor([mass]), torch.linspace(0, 1, len(mass)))
        for level in (0.3, 0.5, 0.9, 0.9999999):
            low, high = found.interval(level)
            inside = (found.grid >= low) & (found.grid <= high)
            smaller = [sum(mass[a:b]) for a in range(len(mass)) for b in range(a + 1, a + int(inside.sum()))]
            assert float(found.mass[0, inside].sum()) >= level - 1e-6
            assert all(one < level for one in smaller)


def test_moments_and_quantiles_of_masses() -> None:
    grid = torch.tensor([0.0, 0.5, 1.0])
    found = Masses(torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]), grid)
    torch.testing.assert_close(found.mean(), torch.tensor([0.55, 1.0]))
    torch.testing.assert_close(found.sd(), torch.tensor([(0.125 + 0.3 - 0.55**2) ** 0.5, 0.0]))
    torch.testing.assert_close(found.below(0.5), torch.tensor([0.2, 0.0]))
    torch.testing.assert_close(found.quantile_of_x(0.2), torch.tensor([0.25, 0.85]))
    torch.testing.assert_close(found.quantile_of_x(0.45), torch.tensor([0.5, 0.975]))
    torch.testing.assert_close(found.masses(torch.tensor([0.5, 0.7])), torch.tensor([[0.5, 0.0], [0.0, 0.0]]))


def test_a_newcomer_is_folded_in_by_their_steps() -> None:
    """One user, one rating on the highest of two steps: a probit regression on one point, integrated on a grid."""
    count = 4000
    p = copies(count, None)._replace(
        ordinal=Ordinal(
            share=torch.ones(count, 1, 1).half(),
            cuts=torch.full((count, 1, 1), 0.6),
            habits=torch.ones(count, 1),
            grid=torch.tensor([0.0, 1.0]),
        )
    )
    row = fold_in(p, NOBODY, torch.tensor([0]), torch.tensor([1.0]), 0.5)
    a = torch.linspace(-8, 8, 16_001).double()
    own = 2.0 / 1.5  # Lambda / (1 + var W)
    prior = torch.distributions.Normal(0.75, own**-0.5).log_prob(a).exp()
    posterior = prior * torch.special.ndtr((0.5 * a - 0.4) * 2**0.5)  # the cut is 4 (0.6 - 0.5) on x, the precision 4 * 0.5
    posterior /= posterior.sum()
    mean = float((posterior * a).sum())
    assert float(row.A.mean()) == pytest.approx(mean, abs=0.05)
    variance = float(row.covariance.mean() + row.A.var())
    assert variance == pytest.approx(float((posterior * (a - mean) ** 2).sum()), rel=0.1)
