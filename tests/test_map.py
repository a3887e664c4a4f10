import math

import pytest
import torch
from made import BASE, SCALES, dense_log_posterior, problem, random_pattern, seeded
from torch.overrides import TorchFunctionMode

from pmfcli.core import map as map_fit
from pmfcli.core.posterior import log_posterior, mean, observe, score
from pmfcli.core.sparse import Pattern
from pmfcli.errors import TrainingError


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_steps_are_adam_on_the_dense_posterior(learn_sigma: bool) -> None:
    o = problem()
    settings = BASE._replace(user_means=False, movie_means=False, learn_sigma=learn_sigma)
    state = map_fit.init(o, settings, seeded())
    mine = map_fit.gather(state)
    leaves = [p.requires_grad_(p is not mine.sigma or learn_sigma) for p in mine if p is not None]
    adam = torch.optim.Adam([p for p in leaves if p.requires_grad], lr=0.03)
    for _ in range(20):
        loss = -dense_log_posterior(o, mine)
        adam.zero_grad()
        loss.backward()
        adam.step()
        state, info = map_fit.step(state, (o,), seeded())
        assert info.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    for found, expected in zip(map_fit.gather(state), mine, strict=True):
        if found is not None and expected is not None:
            torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-9)


def test_hierarchical_weights_get_their_exact_gradient() -> None:
    o = problem()
    state = map_fit.init(o, BASE, seeded())
    for _ in range(3):  # away from W = X = 0
        state, _ = map_fit.step(state, (o,), seeded())
    before = map_fit.gather(state)
    assert before.W is not None
    assert before.X is not None
    leaves = [before.W.requires_grad_(), before.X.requires_grad_()]
    expected = torch.autograd.grad(-dense_log_posterior(o, before), leaves)
    moments = [state.adam[1].mean[0], state.adam_x.mean[0]]
    old = [moment.clone() for moment in moments]
    map_fit.step(state, (o,), seeded())
    for moment, was, gradient in zip(moments, old, expected, strict=True):
        found = (moment - 0.9 * was) / 0.1  # Adam's first moment holds the gradient that it was given
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)


class _SinglePrecision(TorchFunctionMode):
    """A device without double precision, as those of Apple."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            assert not any(isinstance(part, torch.Tensor) and part.dtype == torch.float32 for part in args), function
        return found


def test_a_device_needs_no_double_precision() -> None:
    pattern = random_pattern(9, 7, 0.5, seed=2)
    o = observe(pattern, torch.rand(pattern.n, generator=seeded(3)))
    with _SinglePrecision():
        state, info = map_fit.step(map_fit.init(o, BASE, seeded()), (o,), seeded())
        found = map_fit.gather(state)
    assert math.isfinite(info.loss)
    assert all(part.dtype == torch.float32 for part in found if part is not None)


@pytest.mark.parametrize("count", [1, 3, 7, 10**9])
def test_blocks_add_up_to_the_whole_loss(count: int) -> None:
    o = problem()
    blocks = map_fit.cut(o, count)
    state = map_fit.init(o, BASE._replace(lr=1e-12, blocks=count), seeded())
    assert len(blocks) == min(count, o.pattern.shape[0])
    expected = -float(log_posterior(map_fit.gather(state), o, SCALES))
    _, info = map_fit.step(state, blocks, seeded())
    assert info.loss == pytest.approx(expected, rel=1e-9)


def test_there_are_usually_five_blocks_neither_small_nor_large() -> None:
    sizes = {90_000: 1, 499_999: 1, 900_000: 3, 1_000_209: 4, 9_000_003: 5, 20_000_000: 5, 100_000_000: 25}
    assert {n: map_fit.number_of_blocks(n, None) for n in sizes} == sizes
    assert map_fit.number_of_blocks(90_000, 30_000) == 3


def test_blocks_reach_the_optimum_of_the_whole() -> None:
    o = problem(30, 20)
    best = {}
    for count in (1, 8):
        settings = BASE._replace(lr=0.005, blocks=count)
        *_, last = map_fit.fit(o, settings, 800, seeded())
        best[count] = float(log_posterior(map_fit.gather(last.state), o, SCALES))
    assert best[8] == pytest.approx(best[1], rel=2e-3)


def test_a_checkerboard_is_learned() -> None:
    """Users and movies of two kinds, 0 or 1 where kinds match or not: half the cells tell all."""
    n = 40
    truth = ((torch.arange(n)[:, None] + torch.arange(n)[None, :]) % 2).double()
    seen = torch.rand(n, n, generator=seeded(1)) < 0.5
    row, col = torch.nonzero(seen, as_tuple=True)
    o = observe(Pattern.of(row, col, (n, n)), truth[row, col])
    *_, last = map_fit.fit(o, BASE._replace(sigma=0.1), 300, seeded())
    row, col = torch.nonzero(~seen, as_tuple=True)
    prediction = mean(score(map_fit.current(last.state, o), Pattern.of(row, col, (n, n))), "sigmoid")
    assert ((prediction > 0.5).double() == truth[row, col]).double().mean() > 0.99


def test_planted_factors_are_recovered_to_the_noise() -> None:
    """Ratings from known factors: the held-out error must come near the noise that was put in."""
    n_users, n_movies, noise = 300, 200, 0.05
    U, V = (torch.randn(n, 3, generator=seeded(2)) for n in (n_users, n_movies))
    mask = torch.rand(n_users, n_movies, generator=seeded(3)) < 0.4
    row, col = torch.nonzero(mask, as_tuple=True)
    expected = mean((U[row] * V[col]).sum(1), "sigmoid")
    t = expected + noise * torch.randn(len(row), generator=seeded(4))
    settings = BASE._replace(latent=3, sigma=noise, user_means=False, movie_means=False)
    settings = settings._replace(scales=SCALES._replace(sigma_u=1.0, sigma_v=1.0))
    o = observe(Pattern.of(row, col, (n_users, n_movies)), t)
    *_, last = map_fit.fit(o, settings, 300, seeded())
    row, col = torch.nonzero(~mask, as_tuple=True)
    prediction = mean(score(map_fit.current(last.state, o), Pattern.of(row, col, (n_users, n_movies))), "sigmoid")
    error = (prediction - mean((U[row] * V[col]).sum(1), "sigmoid")).square().mean().sqrt()
    assert float(error) < noise / 2


def test_dense_data_does_not_diverge() -> None:
    """Movies with hundreds of raters: a step of all their X at once must not overshoot."""
    pattern = random_pattern(400, 50, 0.8, seed=5)
    t = torch.rand(pattern.n, generator=seeded(6))
    losses = [progress.loss for progress in map_fit.fit(observe(pattern, t), BASE, 60, seeded())]
    assert losses[-1] < losses[0]
    assert max(losses[20:]) < losses[0]


def test_a_learned_sigma_never_reaches_zero() -> None:
    """Ratings without noise: sigma falls as far as it may, and the fit stays."""
    U, V = (torch.randn(n, 2, generator=seeded(2)) for n in (35, 35))
    row, col = torch.nonzero(torch.ones(35, 35), as_tuple=True)
    o = observe(Pattern.of(row, col, (35, 35)), mean((U[row] * V[col]).sum(1), "sigmoid"))
    settings = BASE._replace(latent=8, sigma=1.0, learn_sigma=True, scales=SCALES._replace(sigma_u=1.0, sigma_v=1.0))
    *_, last = map_fit.fit(o, settings, 400, seeded())
    residual = mean(score(map_fit.current(last.state, o), o.pattern), "sigmoid") - o.t
    assert last.sigma < 0.06
    assert float(residual.square().mean().sqrt()) < 0.03


def test_divergence_names_the_step_and_the_remedy() -> None:
    with pytest.raises(TrainingError, match=r"step \d+.*--lr"):
        list(map_fit.fit(problem(), BASE._replace(lr=1e200), 50, seeded()))


def test_same_seed_same_numbers() -> None:
    a, b, other = (list(map_fit.fit(problem(), BASE, 10, seeded(seed)))[-1] for seed in (1, 1, 2))
    assert torch.equal(map_fit.gather(a.state).Y, map_fit.gather(b.state).Y)
    assert a.loss == b.loss != other.loss
