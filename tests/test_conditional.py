"""The row conditional against Bayesian linear regression written out row by row, and the solvers built on it."""

import itertools

import pytest
import torch
from made import BASE, problem, random_pattern, seeded

from pmfcli.core import als
from pmfcli.core import map as map_fit
from pmfcli.core.conditional import Prior, conditional, draw_rows, outer, pack, unpack
from pmfcli.core.half_step import settle
from pmfcli.core.means import Means, ridge
from pmfcli.core.posterior import Factors, Observations, Scales, mean, observe, score
from pmfcli.core.sparse import Pattern, spmm
from pmfcli.data.ratings import Ratings

D = 5


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("own_precision", [False, True])
def test_it_is_bayesian_regression_row_by_row(weighted: bool, own_precision: bool) -> None:
    pattern = random_pattern(9, 13, 0.4, seed=2)
    features, z, m = randn(13, D), randn(pattern.n, seed=3), randn(9, D, seed=4)
    w = torch.rand(pattern.n, generator=seeded(5), dtype=torch.float64) + 0.1 if weighted else torch.full_like(z, 2.5)
    root = randn(9, D, D, seed=6) if own_precision else randn(D, D, seed=6)
    Lambda = root @ root.mT + torch.eye(D, dtype=torch.float64)
    found = conditional(pattern, features, w, z, Prior(m, Lambda))
    for i in range(9):
        at = pattern.row == i
        X, P = features[pattern.col[at].long()], Lambda[i] if own_precision else Lambda
        covariance = torch.linalg.inv(P + X.T @ torch.diag(w[at]) @ X)
        mean = covariance @ (P @ m[i] + X.T @ (w[at] * z[at]))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.covariance()[i], covariance, rtol=1e-8, atol=1e-8)


def test_its_draws_have_its_moments() -> None:
    pattern = Pattern.of(torch.zeros(3, dtype=torch.int64), torch.arange(3), (1, 3))
    one = conditional(pattern, randn(3, 2), torch.ones(3).double(), randn(3, seed=2), Prior(randn(2), torch.eye(2).double()))
    many = one._replace(shift=one.shift.expand(40_000, 2), cholesky=one.cholesky.expand(40_000, 2, 2)).draw(seeded())
    torch.testing.assert_close(many.mean(0), one.mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(many.T.cov(), one.covariance()[0], rtol=0, atol=0.02)


def test_draws_by_few_ratings_are_those_by_features() -> None:
    d = 12
    row = torch.arange(8).repeat_interleave(torch.arange(8))  # from none to 7: up to 4 are few
    pattern = Pattern.of(row, torch.cat([torch.arange(n) for n in range(8)]), (8, 7))
    w, z, root = torch.rand(pattern.n, generator=seeded()).double() + 0.1, randn(pattern.n, seed=3), randn(d, d, seed=6)
    given = pattern, randn(7, d), w, z, Prior(randn(8, d, seed=4), root @ root.mT + torch.eye(d).double())
    expected = conditional(*given)
    none = torch.zeros(8, d).double()
    mean = draw_rows(*given, none)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-8, atol=1e-8)
    away = torch.stack([draw_rows(*given, none + one) - mean for one in torch.eye(d).double()], 2)  # (rows, d, by noise)
    torch.testing.assert_close(away @ away.mT, expected.covariance(), rtol=1e-8, atol=1e-8)


def test_uncertain_features_add_their_covariance() -> None:
    pattern = random_pattern(4, 6, 0.5, seed=2)
    spread = randn(6, D, D, seed=7)
    spread = spread @ spread.mT
    prior = Prior(randn(4, D), torch.eye(D).double())
    w = torch.full((pattern.n,), 1.5).double()
    found = conditional(pattern, randn(6, D), w, randn(pattern.n, seed=8), prior, pack(spread))
    plain = conditional(pattern, randn(6, D), w, randn(pattern.n, seed=8), prior)
    for i in range(4):
        more = 1.5 * spread[pattern.col[pattern.row == i].long()].sum(0)
        inverse = torch.linalg.inv
        torch.testing.assert_close(inverse(found.covariance()[i]), inverse(plain.covariance()[i]) + more, rtol=1e-8, atol=1e-8)


def test_packing() -> None:
    v = randn(3, D)
    torch.testing.assert_close(unpack(outer(v), D), v[:, :, None] * v[:, None])
    torch.testing.assert_close(unpack(pack(unpack(outer(v), D)), D), unpack(outer(v), D))


def test_ridge_is_the_dense_solution() -> None:
    pattern = random_pattern(9, 13, 0.4, seed=2)
    weight, tau, lam = (
        torch.rand(pattern.n, generator=seeded()).double(),
        torch.rand(9, generator=seeded()).double(),
        randn(3).abs(),
    )
    means = Means.of(weight, pattern)
    F = torch.zeros(9, 13, dtype=torch.float64)
    F[pattern.row.long(), pattern.col.long()] = weight
    right = randn(13, 3, seed=9)
    found = ridge(means, right, tau, lam, tolerance=1e-12)
    for k in range(3):
        A = F.T @ torch.diag(tau) @ F + lam[k] * torch.eye(13).double()
        torch.testing.assert_close(found[:, k], torch.linalg.solve(A, right[:, k]), rtol=1e-8, atol=1e-8)


def test_main_directions_spare_iterations(sample: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    user, movie, t = sample.tensors()
    o = observe(Pattern.of(user, movie, (len(sample.users), len(sample.movies))), t)
    means, products = Means.of(o.F, o.pattern, crowd=o.crowd), []
    assert o.crowd is not None
    F = Means.up(means, torch.eye(means.pattern.shape[1]))
    assert torch.linalg.eigvalsh(F.mT @ F - means.loadings @ means.loadings.mT)[0] > -1e-3  # a part of it
    right = F.mT @ torch.randn(len(F), 3, generator=seeded())
    up = Means.up
    monkeypatch.setattr(Means, "up", lambda self, W: products.append(1) or up(self, W))

    def taken(means: Means) -> int:
        products.clear()
        ridge(means, right, torch.ones(len(F)), torch.tensor(1.0), tolerance=1e-2)
        return len(products)

    assert 2 * taken(means) <= taken(means._replace(loadings=0 * means.loadings))
    right *= 1e-20  # W that nothing is left of, whose squares are no numbers any more
    assert taken(means) < 3


def als_settings(**changes) -> als.AlsSettings:
    base = als.AlsSettings(2, Scales(0.3, 0.4, 0.15, 0.2, 0.5), 0.3, True, True, True, False, False, "spherical")
    return base._replace(**changes)


def planted(link: str, seed: int = 3, n_users: int = 40, n_movies: int = 30) -> Observations:
    pattern = random_pattern(n_users, n_movies, 0.4, seed)
    U, V = 0.6 * randn(n_users, 2, seed=11), 0.6 * randn(n_movies, 2, seed=12)
    t = 0.5 + 0.25 * (U[pattern.row.long()] * V[pattern.col.long()]).sum(1) + 0.05 * randn(pattern.n, seed=13)
    return observe(pattern, t.clamp(0, 1), link=link)


@pytest.mark.parametrize("link", ["linear", "sigmoid"])
@pytest.mark.parametrize("means", [False, True])
def test_als_and_adam_reach_the_same_optimum(link: str, means: bool) -> None:
    o = planted(link)
    *_, last = als.fit(o, als_settings(user_means=means, movie_means=means), 400, seeded())
    how = BASE._replace(latent=2, scales=als_settings().scales, user_means=means, movie_means=means, lr=0.01)
    *_, adam = map_fit.fit(o, how, 3000, seeded())
    assert last.loss == pytest.approx(adam.loss, rel=1e-4)


@pytest.mark.parametrize("shape", ["spherical", "diagonal", "full"])
def test_the_bound_of_em_never_falls(shape: str) -> None:
    how = als_settings(user_means=False, movie_means=False, learn_priors=True, learn_noise=True, shape=shape)
    losses = [progress.loss for progress in als.fit(planted("linear"), how, 60, seeded())]
    assert all(later <= earlier + 1e-7 * abs(earlier) for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0] - 10


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.8])
def test_em_finds_the_noise_from_any_start(sigma: float) -> None:
    how = als_settings(sigma=sigma, user_means=False, movie_means=False, learn_priors=True, learn_noise=True)
    *_, last = als.fit(planted("linear", n_users=200, n_movies=100), how, 60, seeded())
    assert last.sigma == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("shape", [(3, 5), (40, 30)])
@pytest.mark.parametrize("latent", [2, 30])
def test_em_with_means_comes_to_rest_on_little_data(shape: tuple[int, int], latent: int) -> None:
    how = als_settings(latent=latent, sigma=0.3, learn_priors=True, learn_noise=True, shape="full")
    *_, last = als.fit(planted("linear", n_users=shape[0], n_movies=shape[1]), how, 200, seeded())
    assert 0 < last.sigma < 0.5
    for side in (last.state.users, last.state.movies):
        scales = torch.linalg.inv(side.precision.double())
        assert torch.linalg.eigvalsh(scales).min() > 1e-9
        assert torch.linalg.eigvalsh(scales).max() < 10


def test_em_counts_that_the_weights_are_unsure() -> None:
    """Where no rating says anything, a row varies as its own part and its mean do: (1 + |F_i|^2 / lambda) / Lambda."""
    o = planted("linear")
    how = als_settings(sigma=1e4, learn_priors=True, learn_noise=False, biases=False)
    state, _ = als.step(als.init(o, how, seeded()), als.Problem.of(o, how), how)
    k, before = how.latent, als.init(o, how, seeded()).users
    found = unpack(state.users.spread, k).diagonal(dim1=1, dim2=2).mean(1)
    F = torch.zeros(o.pattern.shape).to(o.F)
    F[o.pattern.row.long(), o.pattern.col.long()] = o.F
    squares = (F + torch.outer(o.crowd.part, o.crowd.share)).square().sum(1)
    torch.testing.assert_close(found, (1 + squares / before.lam[0]) / before.precision[0, 0], rtol=1e-4, atol=0)


def test_weights_of_nobody_change_nothing() -> None:
    o = planted("linear")
    empty = o._replace(F=torch.zeros_like(o.F), G=torch.zeros_like(o.G), crowd=None)
    *_, with_means = als.fit(empty, als_settings(), 20, seeded())
    *_, plain = als.fit(o, als_settings(user_means=False, movie_means=False), 20, seeded())
    torch.testing.assert_close(with_means.state.users.A, plain.state.users.A)


def test_products_of_the_means() -> None:
    o = problem()
    means = Means.of(o.G, o.pattern.T)
    B, R = randn(7, 3), randn(11, 3, seed=2)
    torch.testing.assert_close(means.up(B), spmm(o.G, B, o.pattern.T))
    torch.testing.assert_close((means.up(B) * R).sum(), (B * means.down(R)).sum())


def test_products_of_the_means_with_a_crowd() -> None:
    o = planted("linear")
    assert 5 < int((o.crowd.part > 0).sum()) < 35
    features = Means.of_features(torch.rand(o.pattern.n, generator=seeded()).double(), random_pattern(40, 30, 0.4, 3))
    dense = torch.zeros(40, 60).double()
    dense[o.pattern.row.long(), o.pattern.col.long()] = o.F
    dense[:, :30] += torch.outer(o.crowd.part, o.crowd.share)
    dense[o.pattern.row.long(), o.pattern.col.long() + 30] = features.weight
    B, R = randn(60, 2), randn(40, 2, seed=2)
    tau, variances = torch.rand(40, generator=seeded()).double(), torch.rand(60, 1, generator=seeded()).double()
    alone = Means.of(o.F, o.pattern, crowd=o.crowd)
    for means, F in ((alone, dense[:, :30]), (alone.beside(features), dense)):
        columns = F.shape[1]
        torch.testing.assert_close(means.up(B[:columns]), F @ B[:columns])
        torch.testing.assert_close(means.down(R), F.mT @ R)
        torch.testing.assert_close(means.squares(tau), tau @ F.square())
        torch.testing.assert_close(means.up_squared(variances[:columns]), F.square() @ variances[:columns])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_rows_settle_among_others_as_alone(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most are still at once; a few, off at the start, go on without them, and of these the farthest alone."""
    n = 64
    o = planted("sigmoid", n_users=n)
    V = torch.cat([0.6 * randn(30, 2, seed=12), torch.zeros(30, 1).double()], 1)
    centre = 0.5 * randn(n, 3, seed=7)
    prior, sigma = Prior(centre, torch.eye(3).double()), torch.tensor(0.1).double()
    start = settle(centre, prior, V, None, o, sigma, 2)
    start[5::8] += 0.01 * randn(8, 3, seed=6)
    start[13] += scale
    narrowed = []
    monkeypatch.setattr(
        Observations, "only", lambda o, rows, only=Observations.only: narrowed.append(len(rows)) or only(o, rows)
    )
    found = settle(start, prior, V, None, o, sigma, 2)
    assert narrowed[0] == 8
    assert narrowed[-1] == 1
    monkeypatch.undo()
    for i in range(n):
        alone, own = o.only(slice(i, i + 1))[0], slice(i, i + 1)
        one = settle(start[own], prior._replace(mean=prior.mean[own]), V, None, alone, sigma, 2)
        torch.testing.assert_close(found[own], one, rtol=0, atol=1e-4)
        A = found[own].clone().requires_grad_()
        x = score(Factors.of(A, V, 2, o.offset, o.link), alone.pattern)
        cost = ((alone.t - mean(x, o.link)) / sigma).square().sum() + (A - centre[own]).square().sum()
        assert float(torch.autograd.grad(cost, A)[0].abs().max()) < 0.05
