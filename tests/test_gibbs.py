"""The sampler: the moments of its draws, the joint distribution test, recovery of what was planted, diagnostics."""

import math

import pytest
import torch
from made import PLAIN, random_pattern, sampled, seeded

from pmfcli.core import chains, drift, gibbs, ordinal, scale_moves
from pmfcli.core.diagnostics import effective_size, r_hat
from pmfcli.core.gibbs import GibbsSettings, Problem, Side, State
from pmfcli.core.means import Means
from pmfcli.core.ordinal import Habits, Levels, Steps
from pmfcli.core.posterior import observe
from pmfcli.core.sparse import Pattern

FULL = GibbsSettings(2, True, True, True, True, True, True, 0)
ORDINAL = PLAIN._replace(user_noise=True, habits=2)
LEVELS = 4


def test_wishart_moments() -> None:
    root = torch.randn(3, 3, generator=seeded(), dtype=torch.float64)
    scale, freedom, g = root @ root.T / 10 + torch.eye(3).double(), 7.0, seeded(1)
    draws = torch.stack([gibbs.draw_wishart(torch.linalg.inv(scale), freedom, g) for _ in range(20_000)])
    spread = freedom * (scale**2 + torch.outer(scale.diagonal(), scale.diagonal()))
    error = (spread / len(draws)).sqrt()
    assert ((draws.mean(0) - freedom * scale).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), spread, rtol=0.06, atol=0)


def test_noise_injected_weights_have_their_moments() -> None:
    pattern = random_pattern(8, 5, 0.6, seed=1)
    weight = torch.rand(pattern.n, generator=seeded(2), dtype=torch.float64) + 0.2
    means = Means.of(weight, pattern)
    F = torch.zeros(8, 5, dtype=torch.float64)
    F[pattern.row.long(), pattern.col.long()] = weight
    A = torch.randn(8, 2, generator=seeded(3), dtype=torch.float64)
    Lambda = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    tau = torch.rand(8, generator=seeded(4), dtype=torch.float64) + 0.5
    lam = torch.tensor([1.5], dtype=torch.float64)
    one = torch.ones(8, dtype=torch.float64)
    side = Side(A, torch.zeros(5, 2).double(), torch.zeros_like(A), torch.ones(2).double(), Lambda, lam, tau, one, lam, lam)
    g = seeded(5)
    draws = torch.stack([gibbs.draw_weights(side, means, g, g) for _ in range(6000)])
    K = torch.linalg.inv(F.T @ torch.diag(tau) @ F + lam * torch.eye(5).double())
    mean = K @ F.T @ torch.diag(tau) @ (A - side.mu)
    covariance = torch.kron(K, torch.linalg.inv(Lambda))
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(draws.flatten(1).T.cov(), covariance, rtol=0, atol=0.03)
    found, variance = gibbs.mean_weights(A, side.mu, tau, lam, means)
    torch.testing.assert_close(found, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(variance, 1 / (torch.linalg.inv(K).diagonal()))


def forward(p: Problem, how: GibbsSettings, g: torch.Generator) -> State:
    """A draw of everything from the prior, written down from the model."""
    d = how.latent + 1

    def side(rows: int, means: Means | None, with_noise: bool) -> Side:
        Lambda = gibbs.draw_wishart(torch.eye(d).double(), d, g)
        L = torch.linalg.cholesky(torch.linalg.inv(Lambda))

        def normal(count: int) -> torch.Tensor:
            return torch.randn(count, d, generator=g, dtype=torch.float64) @ L.T

        def gamma(shape: float, rate: float, count: int) -> torch.Tensor:
            return torch._standard_gamma(torch.full((count,), shape).double(), generator=g) / rate

        mu = normal(1)[0] / gibbs.BETA0**0.5
        lam = gamma(1.0, 1.0, blocks := 0 if means is None else len(means.sizes)) / gamma(0.5, 1.0, blocks)
        W = None if means is None else normal(means.pattern.shape[1]) / means.each(lam).sqrt()
        M = torch.zeros(rows, d).double() if means is None else means.up(W)
        one = torch.ones(rows).double()
        nu, eta = gibbs.DOFS[torch.randint(len(gibbs.DOFS), (2,), generator=g)]
        nu, tau = (nu, gamma(float(nu) / 2, float(nu) / 2, rows)) if how.prior_scales else (one[0], one)
        eta, noise = (eta, gamma(float(eta) / 2, float(eta) / 2, rows)) if with_noise else (one[0], one)
        return Side(mu + M + normal(rows) / tau.sqrt()[:, None], W, M, mu, Lambda, lam, tau, noise, nu, eta)

    n_users, n_movies = p.users.pattern.shape
    users = side(n_users, p.user_means, how.user_noise)
    movies = side(n_movies, p.movie_means, how.movie_noise)
    alpha = torch._standard_gamma(torch.ones(()).double(), generator=g)
    moved = []
    for group in p.groups:
        precision = torch._standard_gamma(torch.ones(()).double(), generator=g)
        value = torch.randn(len(group.row), generator=g, dtype=torch.float64) / precision.sqrt()
        moved.append(drift.Effects(value, precision))
    ways = habits(how.habits, n_users, p.levels, g) if how.habits else None
    return State(users, movies, alpha, ways, tuple(moved))


def habits(count: int, rows: int, levels: Levels, g: torch.Generator) -> Habits:
    def ordered() -> torch.Tensor:
        while True:
            cuts = levels.middle + levels.spread * torch.randn(LEVELS - 1, generator=g, dtype=torch.float64)
            if bool((cuts.diff() > 0).all()):
                return cuts

    prior = (torch.randn(count, generator=g, dtype=torch.float64) - math.log(count)).exp()
    shares = torch._standard_gamma(prior.expand(rows, -1).contiguous(), generator=g) + 1e-300
    return Habits(torch.stack([ordered() for _ in range(count)]), shares / shares.sum(1, keepdim=True), prior)


def scaled(p: Problem) -> Problem:
    """The problem with a scale of its own, whatever its ratings are."""
    middle = torch.tensor([-0.7, 0.0, 0.7]).double()
    steps = Steps(torch.zeros(len(p.z), dtype=torch.int64), p.users.pattern.row)
    return p._replace(levels=Levels(steps, torch.arange(LEVELS) / (LEVELS - 1), middle, torch.tensor(0.8).double()))


def rated(state: State, p: Problem, g: torch.Generator) -> Problem:
    """Ratings drawn given everything, as a problem whose offset is 0."""
    o = p.users
    x = gibbs.products(state.users, state.movies, o, PLAIN.latent) + o.offset
    for one, group in zip(state.effects, p.groups, strict=True):
        x = x + one.value[group.stretch.long()]
    precision = state.alpha * state.users.gamma[o.pattern.row] * state.movies.gamma[o.pattern.col]
    z = x + torch.randn(len(x), generator=g, dtype=torch.float64) / precision.sqrt()
    if state.habits is None:
        return p._replace(z=z)
    kind = torch.multinomial(state.habits.share[o.pattern.row.long()], 1, generator=g)[:, 0]
    level = (z[:, None] > state.habits.cuts[kind]).sum(1)
    return p._replace(levels=p.levels._replace(steps=p.levels.steps._replace(level=level)))


def numbers(state: State) -> torch.Tensor:
    """Functions of a state that a wrong conditional would shift. Logarithms tame the tails."""
    u, v = state.users, state.movies
    parts = [state.alpha.log(), torch.logdet(u.Lambda), torch.logdet(v.Lambda), u.mu.abs().mean().log()]
    parts += [u.A.abs().mean().log(), v.A.abs().mean().log(), u.lam.log().sum(), u.tau.log().mean(), v.gamma.log().mean()]
    parts += [u.prior_dof.log(), v.noise_dof.log()]
    for one in state.effects:
        parts += [one.precision.log(), one.value.abs().mean().log(), one.value.mean().tanh()]
    if state.habits is not None:
        cuts, share, prior = state.habits
        parts += [*cuts.mean(0), cuts.diff(dim=1).log().mean(), (cuts[0] - cuts[1]).abs().mean(), share.square().mean()]
        parts += [prior.log().mean(), u.gamma.log().mean(), u.A[:, -1].mean().tanh(), v.A[:, -1].mean().tanh()]
    return torch.stack(parts)


def geweke(how: GibbsSettings, in_time: bool = False, replicates: int = 400, until: float = math.inf) -> float:
    """The largest z-score of what changes between a draw from the prior and the same after sweeps that alternate with fresh
    ratings, in so many replicates, or in as many fifties as it takes to be beyond ``until``.

    It should be nothing: each is a draw from the prior. Geweke, "Getting it right" (JASA 2004), with independent short chains
    for one long one, of which nobody knows how many draws it is worth.
    """
    pattern = random_pattern(5, 4, 0.5, seed=1)
    o = observe(pattern, torch.full((pattern.n,), 0.5).double(), with_offset=False, link="linear")
    g = seeded(7)
    times = torch.arange(pattern.n) * 47 % 300
    kinds = drift.groups(pattern.row, pattern.col, times, in_time, in_time)
    groups = (kinds[0], kinds[-1]) if in_time else ()
    problem = scaled(gibbs.prepare(o, how, groups=groups))
    moved, largest = [], 0.0
    while len(moved) < replicates and largest <= until:
        for _ in range(50):
            state = forward(problem, how, g)
            before = numbers(state)
            for _ in range(6):
                state, _ = gibbs.step(state, rated(state, problem, g), how, g)
            moved.append(numbers(state) - before)
        change = torch.stack(moved)
        varies = change.std(0) > 1e-9
        largest = float((change.mean(0) / change.std(0)).abs()[varies].max()) * len(moved) ** 0.5
    return largest


@pytest.mark.parametrize("how", [PLAIN, FULL, ORDINAL], ids=["plain", "everything", "ordinal"])
def test_the_joint_distribution_test_passes(how: GibbsSettings) -> None:
    assert geweke(how) < 4


@pytest.mark.parametrize("how", [PLAIN, ORDINAL], ids=["plain", "ordinal"])
def test_it_passes_with_effects_of_time(how: GibbsSettings) -> None:
    assert geweke(how, in_time=True) < 4


def test_it_fails_when_the_effects_of_time_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = drift.draw

    def wrong(effects, stretch, weight, error, g):
        return right(effects, stretch, 2 * weight, error, g)

    monkeypatch.setattr(drift, "draw", wrong)
    assert geweke(PLAIN, in_time=True, replicates=150, until=6) > 6


def test_it_fails_when_a_conditional_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gibbs.draw_scales

    def wrong(square, *rest):
        return right(1.5 * square, *rest)

    monkeypatch.setattr(gibbs, "draw_scales", wrong)
    assert geweke(FULL, until=6) > 6


def test_scales_of_features_leave_their_density_as_it_is() -> None:
    n, g = 40_000, seeded(3)
    logs = torch.linspace(-6, 6, 24_001).double()
    mass = torch.softmax(0.1 * logs.exp() - 0.05 * (2 * logs).exp() - 0.05 * (-2 * logs).exp() - logs, 0)
    before = logs[torch.multinomial(mass, n, replacement=True, generator=g)]
    moved = []
    for c in before.exp().split(1):
        moved.append(scale_moves.draw_scales(torch.diag(0.1 * c**2), 0.1 * c, 0.1 / c**2, g).log())
    moves = torch.cat(moved)
    for change in (moves, (before + moves).square() - before.square()):
        assert abs(float(change.mean() / change.std())) * n**0.5 < 3.5


@pytest.mark.parametrize(("how", "density"), [(PLAIN, "density_of_scale"), (FULL, "density_of_share")])
def test_it_fails_when_a_move_of_scales_is_broken(how: GibbsSettings, density: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(scale_moves, density)

    def wrong(pull, curvature, last, *rest):
        return lambda log: right(pull, curvature, last, *rest)(log) + 2 * log

    monkeypatch.setattr(scale_moves, density, wrong)
    assert geweke(how, until=6) > 6


def few_each() -> Problem:
    """Biases of sd .3 on the unit scale and noise of .1 in two ratings of each of 3000 people, and nothing else."""
    g = seeded(1)
    row, col = torch.arange(3000).repeat_interleave(2), torch.randint(0, 1500, (3000,), generator=g)
    pattern = Pattern.of(row, torch.stack([col, (col + 1) % 1500], 1).sort().values.flatten(), (3000, 1500))
    b, c = torch.randn(3000, generator=g), torch.randn(1500, generator=g)
    t = 0.5 + 0.3 * (b[pattern.row] + c[pattern.col]) + 0.1 * torch.randn(pattern.n, generator=g)
    return gibbs.prepare(observe(pattern, t, link="linear"), GROWING)


GROWING = PLAIN._replace(user_means=True, movie_means=True, weight_scales=False)


def test_biases_are_at_their_scale_after_a_few_sweeps() -> None:
    problem, g = few_each(), seeded(2)
    state = gibbs.init(problem, GROWING, g)
    for _ in range(20):
        state, _ = gibbs.step(state, problem, GROWING, g)
    for side in (state.users, state.movies):
        assert 0.9 < float(side.A[:, -1].std()) < 1.5  # 1.2 logits; by rows and precisions in turn alone it is .1


def test_weights_that_say_nothing_leave_their_first_scale() -> None:
    problem, g = few_each(), seeded(3)
    state = gibbs.init(problem, GROWING, g)
    for sweep in range(120):
        state, _ = gibbs.step(state, problem, GROWING._replace(weight_scales=sweep >= 20), g)
    for side in (state.users, state.movies):
        assert float(side.lam) > 3  # in turn alone it is below 1


@pytest.mark.parametrize("broken", ["draw_cuts", "draw_latent", "draw_kind", "draw_prior"])
def test_it_fails_when_a_step_of_the_ordinal_model_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(ordinal, broken)

    def wrong(first, second, *rest):
        if broken == "draw_kind":  # takes the shares for those of each other
            return right(first, second.flip(1), *rest)
        if broken == "draw_prior":  # counts two too many
            return right(first, second + 2, *rest)
        return right(first + 1.0, second, *rest)  # is off by one

    monkeypatch.setattr(ordinal, broken, wrong)
    assert geweke(ORDINAL, replicates=100 if broken == "draw_cuts" else 400, until=6) > 6  # those show at once


def test_chains_do_not_agree_while_the_factors_still_grow() -> None:
    """Predictions that are mostly biases may agree long before."""
    run_of = chains._Run.__new__(chains._Run)
    run_of.verdict, run_of._burn_in, run_of._states = (1.0, 1e6), 0, [None, None]
    noise = torch.randn(100, 2, 2, generator=seeded(1))
    run_of._seen = list(noise)
    assert run_of.agree()
    noise[:, :, -1] += torch.linspace(0, 4, 100)[:, None]
    assert not run_of.agree()
    noise[:, :, -1] -= torch.linspace(0, 4, 100)[:, None]
    run_of.verdict = (1.0, 2 * chains.ENOUGH - 1)
    assert not run_of.agree()


def planted(n_users: int = 150, n_movies: int = 100, noise: float = 0.08):
    g = seeded(2)
    pattern = random_pattern(n_users, n_movies, 0.3, seed=3)
    U, V = (0.8 * torch.randn(count, 2, generator=g) for count in (n_users, n_movies))
    x = (U[pattern.row.long()] * V[pattern.col.long()]).sum(1)
    t = 0.5 + 0.25 * x + noise * torch.randn(pattern.n, generator=g)
    return observe(pattern, t, link="linear"), (U @ V.T)


def test_what_was_planted_is_found() -> None:
    o, truth = planted()
    found = sampled(PLAIN, o)
    sigma = 0.25 / found.draws.alpha.sqrt()
    assert sigma.min() < 0.08 < sigma.max() or abs(float(sigma.mean()) - 0.08) < 3 * float(sigma.std())
    U, V = found.draws.U.float(), found.draws.V.float()
    x = (U[..., :2] @ V[..., :2].mT + U[..., 2:] + V[..., 2:].mT).mean(0) + o.offset
    assert float((x - truth).square().mean().sqrt()) < 0.25 * float(truth.std())
    assert found.r_hat < 1.2


def test_means_of_nobody_change_nothing() -> None:
    """With F = 0 the rows' prior means are mu alone: predictions agree with the plain model."""
    o, _ = planted(40, 30)
    empty = o._replace(F=torch.zeros_like(o.F), G=torch.zeros_like(o.G))
    with_means, plain = (
        sampled(PLAIN._replace(user_means=means, movie_means=means), data).fitted for means, data in ((True, empty), (False, o))
    )
    assert float((with_means - plain).abs().mean()) < 0.02


def test_same_seed_same_draws_and_chains_differ() -> None:
    o, _ = planted(40, 30)
    one, two, other = (sampled(FULL, o, sweeps=30, seed=seed).draws for seed in (1, 1, 2))
    assert torch.equal(one.V, two.V)
    assert not torch.equal(one.V, other.V)
    assert not torch.equal(one.V[0], one.V[-1])


def test_r_hat_and_effective_size() -> None:
    g = seeded(1)
    white = torch.randn(4, 1000, 1, generator=g).double()
    assert float(r_hat(white)) == pytest.approx(1, abs=0.01)
    assert float(effective_size(white)) == pytest.approx(4000, rel=0.15)
    apart = white + 3 * torch.arange(4).double()[:, None, None]
    assert float(r_hat(apart)) > 2
    slow = torch.zeros(4, 4000, 1).double()
    for k in range(1, 4000):  # AR(1): n (1 - 0.9) / (1 + 0.9)
        slow[:, k] = 0.9 * slow[:, k - 1] + torch.randn(4, 1, generator=g)
    assert float(effective_size(slow)) == pytest.approx(16000 / 19, rel=0.25)
